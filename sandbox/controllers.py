"""What a cluster does by itself: deployments, replica sets, the scheduler, endpoints, and what goes with its owner.

Level-triggered: whenever anything has changed, everything is looked at and brought one step nearer to what it should be,
until nothing changes any more. At this size that is cheaper than knowing what to look at.
"""

from __future__ import annotations

import logging
import random
from collections import Counter

from sandbox import deployments, selectors
from sandbox.kinds import BY_NAME, DEPLOYMENTS, NAMESPACES, NODES, PODS, REPLICA_SETS, STORED, Kind, Object
from sandbox.objects import (
    condition,
    conditions_of,
    grace_of,
    is_going,
    is_ready,
    owned_by,
    owner_reference,
    suffix,
    timestamp,
)
from sandbox.recorder import Recorder
from sandbox.status import ApiError
from sandbox.store import Store

PODS_PER_NODE = 110
logger = logging.getLogger(__name__)


class Controllers:
    """All controllers, in one task."""

    def __init__(self, store: Store, recorder: Recorder, randomness: random.Random) -> None:
        self._store = store
        self._recorder = recorder
        self._random = randomness
        self._is_full = False
        self._nodes: list[Object] = []
        self._placed: Counter[str] = Counter()
        """How many pods there are on each node."""

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            revision = self._store.revision
            self.reconcile()
            await self._store.wait_beyond(revision)

    def reconcile(self) -> None:
        """Look at everything once."""
        work = {
            NAMESPACES: self._namespace,
            DEPLOYMENTS: self._deployment,
            REPLICA_SETS: self._replica_set,
            PODS: self._schedule,
            BY_NAME["Service"]: self._service,
        }
        self._nodes = self._store.objects(NODES)
        self._placed = Counter(pod["spec"].get("nodeName") for pod in self._store.objects(PODS))
        for kind in STORED:
            for document in self._store.objects(kind):
                try:
                    if self._is_abandoned(document):
                        self._store.delete(kind, document, grace_seconds=grace_of(document))
                    elif kind in work and (kind is NAMESPACES or not is_going(document)):
                        work[kind](document)
                except Exception:  # one object that makes no sense must not stop the others
                    name = document["metadata"]["name"]
                    logger.exception("sandbox: the controller of %s failed at %s", kind.resource, name)

    def _is_abandoned(self, document: Object) -> bool:
        """Whether an object had owners, and all of them are gone."""
        owners = document["metadata"].get("ownerReferences")
        return bool(owners) and not any(owner.get("uid") in self._store.uids for owner in owners)

    def _deployment(self, deployment: Object) -> None:
        store, spec, metadata = self._store, deployment["spec"], deployment["metadata"]
        sets = owned_by(deployment, store.objects(REPLICA_SETS, metadata["namespace"]))
        wanted_hash = deployments.template_hash(spec["template"])
        current = next(
            (item for item in sets if item["metadata"]["labels"][deployments.HASH_LABEL] == wanted_hash), None
        )
        old = [item for item in sets if item is not current]
        revision = max(map(deployments.revision_of, old), default=0) + 1
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
        annotations = {deployments.REVISION: str(deployments.revision_of(current))}
        status = deployments.status_of(deployment, current, [current, *old], timestamp(store.now()))
        store.patch(DEPLOYMENTS, deployment, {"metadata": {"annotations": annotations}, "status": status})

    def _scale(self, deployment: Object, replica_set: Object, count: int) -> None:
        before, name = replica_set["spec"]["replicas"], replica_set["metadata"]["name"]
        if before != count:
            self._store.patch(REPLICA_SETS, replica_set, {"spec": {"replicas": count}})
            message = f"Scaled {'up' if count > before else 'down'} replica set {name} from {before} to {count}"
            self._recorder.record(deployment, "ScalingReplicaSet", message, component="deployment-controller")

    def _replica_set(self, replica_set: Object) -> None:
        store, metadata, wanted = self._store, replica_set["metadata"], replica_set["spec"]["replicas"]
        owned = owned_by(replica_set, store.objects(PODS, metadata["namespace"]))
        pods = [pod for pod in owned if not is_going(pod) and pod["status"]["phase"] not in ("Failed", "Succeeded")]
        missing = wanted - len(pods)
        while missing > 0 and self._create_pod(replica_set):
            missing -= 1
        surplus = sorted(pods, key=lambda pod: (is_ready(pod), -int(pod["metadata"]["resourceVersion"])))
        for pod in surplus[: max(0, len(pods) - wanted)]:
            store.delete(PODS, pod, grace_seconds=grace_of(pod))
            message = f"Deleted pod: {pod['metadata']['name']}"
            self._recorder.record(replica_set, "SuccessfulDelete", message, component="replicaset-controller")
        ready = sum(map(is_ready, pods)) or None  # which a merge patch takes away
        status = {"replicas": len(pods), "observedGeneration": metadata["generation"]}
        status |= {"readyReplicas": ready, "availableReplicas": ready}
        store.patch(REPLICA_SETS, replica_set, {"status": status})

    def _create_pod(self, replica_set: Object) -> bool:
        """Whether there was room for one."""
        metadata, template = replica_set["metadata"], replica_set["spec"]["template"]
        pod_metadata = {
            **template["metadata"],
            "name": f"{metadata['name']}-{suffix(self._random)}",
            "generateName": f"{metadata['name']}-",
            "namespace": metadata["namespace"],
            "ownerReferences": [owner_reference(replica_set)],
        }
        pod = PODS.of({"metadata": pod_metadata, "spec": template["spec"], "status": PODS.defaults["status"]})
        component = "replicaset-controller"
        was_full, self._is_full = self._is_full, False
        try:
            self._store.create(PODS, pod)
        except ApiError as error:
            self._is_full = True
            if not was_full:  # said once, since saying it is a change that brings us here again
                self._recorder.record(replica_set, "FailedCreate", str(error), component=component, warning=True)
        else:
            message = f"Created pod: {pod_metadata['name']}"
            self._recorder.record(replica_set, "SuccessfulCreate", message, component=component)
        return not self._is_full

    def _schedule(self, pod: Object) -> None:
        """Give a pod the node with the fewest pods of those that suit it and have room."""
        if pod["spec"].get("nodeName"):
            return
        metadata, wanted = pod["metadata"], pod["spec"].get("nodeSelector", {})
        counts = {
            node["metadata"]["name"]: self._placed[node["metadata"]["name"]]
            for node in self._nodes
            if not node["spec"].get("unschedulable") and wanted.items() <= node["metadata"].get("labels", {}).items()
        }
        name = min(counts, key=lambda name: counts[name], default="")
        moment = timestamp(self._store.now())
        if name and counts[name] < PODS_PER_NODE:
            self._placed[name] += 1
            scheduled = condition(pod, "PodScheduled", moment, is_true=True)
            self._store.patch(PODS, pod, {"spec": {"nodeName": name}, "status": {"conditions": [scheduled]}})
            message = f"Successfully assigned {metadata['namespace']}/{metadata['name']} to {name}"
            self._recorder.record(pod, "Scheduled", message, component="default-scheduler")
        elif "PodScheduled" not in conditions_of(pod):
            why = ("Unschedulable", "0 nodes are available: none suits the pod and has room for it")
            scheduled = condition(pod, "PodScheduled", moment, *why, is_true=False)
            self._store.patch(PODS, pod, {"status": {"conditions": [scheduled]}})

    def _service(self, service: Object) -> None:
        metadata, spec = service["metadata"], service["spec"]
        if not spec.get("selector"):
            return
        selector = {"matchLabels": spec["selector"]}
        pods = [
            pod
            for pod in self._store.objects(PODS, metadata["namespace"])
            if selectors.matches_labels(selector, pod["metadata"].get("labels")) and pod["status"].get("podIP")
        ]
        ports = [
            {"name": port.get("name", ""), "port": number, "protocol": port["protocol"]}
            for port in spec.get("ports", [])
            if (number := _target_port(port, pods)) is not None
        ]
        subset: Object = {"addresses": [], "notReadyAddresses": [], "ports": ports}
        endpoints = []
        for pod in pods:
            where: Object = {"nodeName": pod["spec"].get("nodeName")}
            where["targetRef"] = {"kind": "Pod"} | {key: pod["metadata"][key] for key in ("namespace", "name", "uid")}
            address, ready = pod["status"]["podIP"], is_ready(pod)
            subset["addresses" if ready else "notReadyAddresses"].append({"ip": address} | where)
            conditions = {"ready": ready, "serving": ready, "terminating": False}
            endpoints.append({"addresses": [address], "conditions": conditions} | where)
        subset = {key: value for key, value in subset.items() if value}
        self._put(BY_NAME["Endpoints"], service, metadata["name"], {"subsets": [subset] if pods else []}, {})
        name = f"{metadata['name']}-{deployments.template_hash({'uid': metadata['uid']})[:5]}"
        contents = {"addressType": "IPv4", "endpoints": endpoints, "ports": ports}
        self._put(BY_NAME["EndpointSlice"], service, name, contents, {"kubernetes.io/service-name": metadata["name"]})

    def _put(self, kind: Kind, service: Object, name: str, contents: Object, labels: Object) -> None:
        metadata: Object = {"name": name, "namespace": service["metadata"]["namespace"], "labels": labels}
        if (found := self._store.find(kind, metadata["namespace"], name)) is not None:
            self._store.replace(kind, {**found, **contents})
        else:
            metadata["ownerReferences"] = [owner_reference(service)]
            self._store.create(kind, kind.of({"metadata": metadata, **contents}))

    def _namespace(self, namespace: Object) -> None:
        """Empty a namespace that is to go, and then let it go."""
        name = namespace["metadata"]["name"]
        left = [(kind, item) for kind in STORED if kind.is_namespaced for item in self._store.objects(kind, name)]
        if not is_going(namespace):
            return
        for kind, document in left:
            self._store.delete(kind, document, grace_seconds=min(1, grace_of(document)))
        if not left:
            self._store.delete(NAMESPACES, namespace)


def _target_port(port: Object, pods: list[Object]) -> int | None:
    """The number of the port of the pods; names are looked up in the first one that has it."""
    target = port.get("targetPort")
    if isinstance(target, int):
        return target
    containers = [container for pod in pods for container in pod["spec"]["containers"]]
    declared = [item for container in containers for item in container.get("ports") or []]
    return next((int(item["containerPort"]) for item in declared if item.get("name") == target), None)
