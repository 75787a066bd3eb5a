"""What a cluster does by itself: deployments, replica sets, endpoints, namespaces that go, objects without an owner.

Level-triggered: whenever anything has changed, everything is looked at and brought one step nearer to what it should be,
until nothing changes any more. At this size that is cheaper than knowing what to look at.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

from sandbox import deployments, selectors
from sandbox.admission import suffix
from sandbox.kinds import (
    DEPLOYMENTS,
    ENDPOINT_SLICES,
    ENDPOINTS,
    NAMESPACES,
    PODS,
    REPLICA_SETS,
    SERVICES,
    STORED,
    Kind,
    Object,
)
from sandbox.recorder import Recorder
from sandbox.status import ApiError
from sandbox.store import Store, timestamp

logger = logging.getLogger(__name__)


def is_ready(pod: Object) -> bool:
    """Whether a pod serves: ready, and not on its way out."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    is_going = "deletionTimestamp" in pod["metadata"]
    return not is_going and any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


class Controllers:
    """All controllers, in one task."""

    def __init__(self, store: Store, recorder: Recorder, randomness: random.Random) -> None:
        self._store = store
        self._recorder = recorder
        self._random = randomness
        self._is_full = False

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            revision = self._store.revision
            self.reconcile()
            await self._store.wait_beyond(revision)

    def reconcile(self) -> None:
        """Look at everything once."""
        for kind, work in self._work():
            for document in self._store.objects(kind):
                try:
                    work(document)
                except Exception:  # one object that makes no sense must not stop the others
                    name = document["metadata"]["name"]
                    logger.exception("sandbox: the controller of %s failed at %s", kind.resource, name)
        self._collect_garbage()

    def _work(self) -> list[tuple[Kind, Callable[[Object], None]]]:
        return [
            (NAMESPACES, self._namespace),
            (DEPLOYMENTS, self._deployment),
            (REPLICA_SETS, self._replica_set),
            (SERVICES, self._service),
        ]

    def _deployment(self, deployment: Object) -> None:
        store, spec, metadata = self._store, deployment["spec"], deployment["metadata"]
        if "deletionTimestamp" in metadata:
            return
        sets = deployments.owned_by(deployment, store.objects(REPLICA_SETS, metadata["namespace"]))
        wanted_hash = deployments.template_hash(spec["template"])
        current = next(
            (item for item in sets if item["metadata"]["labels"][deployments.HASH_LABEL] == wanted_hash), None
        )
        old = sorted((item for item in sets if item is not current), key=deployments.revision_of)
        revision = deployments.revision_of(old[-1]) + 1 if old else 1
        if current is None:
            if spec.get("paused"):
                return
            current = store.create(REPLICA_SETS, deployments.new_replica_set(deployment, revision))
        elif deployments.revision_of(current) < revision and not spec.get("paused"):
            annotations = {deployments.REVISION: str(revision)}
            current = store.patch(REPLICA_SETS, current, {"metadata": {"annotations": annotations}})
        counts = deployments.replica_counts(deployment, current, old)
        for replica_set in (current, *old):
            self._scale(deployment, replica_set, counts[replica_set["metadata"]["name"]])
        revision_text = str(deployments.revision_of(current))
        status = deployments.status_of(deployment, current, [current, *old], timestamp(store.now()))
        annotations = {**(metadata.get("annotations") or {}), deployments.REVISION: revision_text}
        store.replace(
            DEPLOYMENTS, {**deployment, "metadata": {**metadata, "annotations": annotations}, "status": status}
        )
        unused = [
            item for item in old if not item["spec"]["replicas"] and not (item.get("status") or {}).get("replicas")
        ]
        for replica_set in unused[: max(0, len(unused) - spec["revisionHistoryLimit"])]:
            store.delete(REPLICA_SETS, replica_set)

    def _scale(self, deployment: Object, replica_set: Object, count: int) -> None:
        before, name = replica_set["spec"]["replicas"], replica_set["metadata"]["name"]
        if before == count:
            return
        self._store.patch(REPLICA_SETS, replica_set, {"spec": {"replicas": count}})
        message = f"Scaled {'up' if count > before else 'down'} replica set {name} from {before} to {count}"
        self._recorder.record(deployment, "ScalingReplicaSet", message, component="deployment-controller")

    def _replica_set(self, replica_set: Object) -> None:
        store, metadata = self._store, replica_set["metadata"]
        if "deletionTimestamp" in metadata:
            return
        owned = deployments.owned_by(replica_set, store.objects(PODS, metadata["namespace"]))
        pods = [
            pod
            for pod in owned
            if "deletionTimestamp" not in pod["metadata"]
            and (pod.get("status") or {}).get("phase") not in ("Failed", "Succeeded")
        ]
        wanted = replica_set["spec"]["replicas"]
        for _ in range(wanted - len(pods)):
            if not self._create_pod(replica_set):
                break
        surplus = sorted(pods, key=lambda pod: (is_ready(pod), -int(pod["metadata"]["resourceVersion"])))
        for pod in surplus[: max(0, len(pods) - wanted)]:
            store.delete(PODS, pod, grace_seconds=pod["spec"]["terminationGracePeriodSeconds"])
            message = f"Deleted pod: {pod['metadata']['name']}"
            self._recorder.record(replica_set, "SuccessfulDelete", message, component="replicaset-controller")
        ready = sum(map(is_ready, pods))
        status = {
            "replicas": len(pods),
            "fullyLabeledReplicas": len(pods),
            "observedGeneration": metadata["generation"],
        }
        if ready:
            status |= {"readyReplicas": ready, "availableReplicas": ready}
        store.replace(
            REPLICA_SETS, {**store.get(REPLICA_SETS, metadata["namespace"], metadata["name"]), "status": status}
        )

    def _create_pod(self, replica_set: Object) -> bool:
        """Whether there was room for one."""
        metadata, template = replica_set["metadata"], replica_set["spec"]["template"]
        pod_metadata = {
            **(template.get("metadata") or {}),
            "name": f"{metadata['name']}-{suffix(self._random)}",
            "generateName": f"{metadata['name']}-",
            "namespace": metadata["namespace"],
            "ownerReferences": [deployments.owner_reference(replica_set)],
        }
        component = "replicaset-controller"
        try:
            self._store.create(PODS, PODS.of({"metadata": pod_metadata, "spec": template["spec"]}))
        except ApiError as error:
            if not self._is_full:  # said once, since saying it is a change that brings us here again
                self._recorder.record(replica_set, "FailedCreate", str(error), component=component, warning=True)
            self._is_full = True
            return False
        self._is_full = False
        message = f"Created pod: {pod_metadata['name']}"
        self._recorder.record(replica_set, "SuccessfulCreate", message, component=component)
        return True

    def _service(self, service: Object) -> None:
        metadata, spec = service["metadata"], service["spec"]
        if not spec.get("selector"):
            return
        pods = [
            pod
            for pod in self._store.objects(PODS, metadata["namespace"])
            if selectors.matches_labels({"matchLabels": spec["selector"]}, pod["metadata"].get("labels"))
            and (pod.get("status") or {}).get("podIP")
        ]
        ports = [
            {"name": port.get("name", ""), "port": number, "protocol": port["protocol"]}
            for port in spec.get("ports") or []
            if (number := _target_port(port, pods)) is not None
        ]
        addresses: dict[bool, list[Object]] = {True: [], False: []}
        for pod in pods:
            target = {"kind": "Pod", "namespace": metadata["namespace"], "name": pod["metadata"]["name"]}
            target["uid"] = pod["metadata"]["uid"]
            entry = {"ip": pod["status"]["podIP"], "nodeName": pod["spec"].get("nodeName"), "targetRef": target}
            addresses[is_ready(pod)].append(entry)
        subset: Object = {"addresses": addresses[True], "notReadyAddresses": addresses[False], "ports": ports}
        subset = {key: value for key, value in subset.items() if value}
        self._put(ENDPOINTS, service, metadata["name"], {"subsets": [subset] if pods else []})
        endpoints = [
            {
                "addresses": [entry["ip"]],
                "conditions": {"ready": ready, "serving": ready, "terminating": False},
                "nodeName": entry["nodeName"],
                "targetRef": entry["targetRef"],
            }
            for ready, entries in addresses.items()
            for entry in entries
        ]
        name = f"{metadata['name']}-{deployments.template_hash({'uid': metadata['uid']})[:5]}"
        labels = {"kubernetes.io/service-name": metadata["name"]}
        contents = {"addressType": "IPv4", "endpoints": endpoints, "ports": ports}
        self._put(ENDPOINT_SLICES, service, name, contents, labels)

    def _put(self, kind: Kind, service: Object, name: str, contents: Object, labels: Object | None = None) -> None:
        namespace = service["metadata"]["namespace"]
        if (found := self._store.find(kind, namespace, name)) is not None:
            self._store.replace(kind, {**found, **contents})
            return
        metadata = {"name": name, "namespace": namespace, "ownerReferences": [deployments.owner_reference(service)]}
        if labels:
            metadata["labels"] = labels
        self._store.create(kind, kind.of({"metadata": metadata, **contents}))

    def _namespace(self, namespace: Object) -> None:
        metadata = namespace["metadata"]
        if "deletionTimestamp" not in metadata:
            return
        left = 0
        for kind in STORED:
            for document in self._store.objects(kind, metadata["name"]) if kind.is_namespaced else []:
                self._store.delete(kind, document, grace_seconds=1 if kind is PODS else 0)
                left += 1
        if not left:
            self._store.delete(NAMESPACES, namespace)

    def _collect_garbage(self) -> None:
        """Delete what has owners, all of which are gone."""
        for kind in STORED:
            for document in self._store.objects(kind):
                owners = document["metadata"].get("ownerReferences")
                if owners and not any(owner.get("uid") in self._store.uids for owner in owners):
                    grace_seconds = document["spec"].get("terminationGracePeriodSeconds", 0) if kind is PODS else 0
                    self._store.delete(kind, document, grace_seconds=grace_seconds)


def _target_port(port: Object, pods: list[Object]) -> int | None:
    """The number of the port of the pods; names are looked up in the first one that has it."""
    target = port.get("targetPort")
    if isinstance(target, int):
        return target
    for pod in pods:
        for container in pod["spec"]["containers"]:
            for declared in container.get("ports") or []:
                if declared.get("name") == target:
                    return int(declared["containerPort"])
    return None
