"""Create, replace, patch, apply and delete; the scale of what has replicas."""

from __future__ import annotations

import random
from typing import Any

from sandbox import patches
from sandbox.admission import admit, identify
from sandbox.calls import Call
from sandbox.kinds import DEPLOYMENTS, NAMESPACES, PODS, REPLICA_SETS, STORED, Kind, Object
from sandbox.status import ApiError, bad_request, conflict, invalid, success
from sandbox.store import Store

APPLY_WARNING = "sandbox: server-side apply knows one manager here and detects no conflicts"
_PATCHES = {
    "application/json-patch+json": patches.json_patch,
    "application/merge-patch+json": patches.merge,
    "application/strategic-merge-patch+json": patches.strategic_merge,
}
_APPLY = ("application/apply-patch+yaml", "application/apply-patch+json")


class Writing:
    """Changes of objects as callers ask for them."""

    def __init__(self, store: Store, randomness: random.Random) -> None:
        self._store = store
        self._random = randomness

    async def create(self, call: Call, kind: Kind, namespace: str) -> Object:
        """Add an object; with dryRun, say what would be added."""
        document = identify(kind, await call.document(), namespace, "", self._random)
        return self._create(call, kind, document)

    def _create(self, call: Call, kind: Kind, document: Object) -> Object:
        document = admit(kind, document, self._random)
        metadata = document["metadata"]
        if "resourceVersion" in metadata:
            raise bad_request("resourceVersion should not be set on objects to be created")
        if kind.is_namespaced:
            namespace = self._store.get(NAMESPACES, "", metadata["namespace"])
            if "deletionTimestamp" in namespace["metadata"]:
                message = f"{kind.resource} cannot be created: namespace {metadata['namespace']} is being terminated"
                raise ApiError(403, "Forbidden", message)
        if "status" in kind.subresources and kind is not NAMESPACES:
            document.pop("status", None)
        if "dryRun" in call.query:
            return document
        return self._store.create(kind, document)

    async def replace(self, call: Call, kind: Kind, namespace: str, name: str, subresource: str) -> Object:
        """Put a document in the place of an object, or its status or scale in the place of that."""
        document = await call.document()
        present = self._store.get(kind, namespace, name)
        if subresource == "scale":
            return self._rescale(call, kind, present, document)
        return self._put(call, kind, present, identify(kind, document, namespace, name, self._random), subresource)

    async def patch(self, call: Call, kind: Kind, namespace: str, name: str, subresource: str) -> Object:
        """Change an object, its status or its scale by one of the four kinds of patch."""
        content_type = call.field(b"content-type").partition(";")[0]
        body = await call.document()
        if content_type in _APPLY:
            return self._apply(call, kind, identify(kind, body, namespace, name, self._random), subresource)
        if content_type not in _PATCHES:
            supported = ", ".join([*_PATCHES, *_APPLY])
            message = f"the body of the request was in an unknown format - accepted media types include: {supported}"
            raise ApiError(415, "UnsupportedMediaType", message)
        present = self._store.get(kind, namespace, name)
        before = scale_of(present) if subresource == "scale" else present
        after = _PATCHES[content_type](before, body)
        if subresource == "scale":
            return self._rescale(call, kind, present, after)
        return self._put(call, kind, present, identify(kind, after, namespace, name, self._random), subresource)

    def _apply(self, call: Call, kind: Kind, wanted: Object, subresource: str) -> Object:
        call.warnings.append(APPLY_WARNING)
        metadata = wanted["metadata"]
        present = self._store.find(kind, metadata.get("namespace", ""), metadata["name"])
        if present is None:
            result = self._create(call, kind, wanted)
        else:
            previous = self._store.applied.get(present["metadata"]["uid"], {})
            result = self._put(call, kind, present, patches.apply(present, previous, wanted), subresource)
        if "dryRun" not in call.query and not subresource:
            self._store.applied[result["metadata"]["uid"]] = wanted
        return result

    def _put(self, call: Call, kind: Kind, present: Object, document: Object, subresource: str) -> Object:
        has_status = "status" in kind.subresources
        if subresource:
            document = {**present, "status": document.get("status"), "metadata": document["metadata"]}
        elif has_status:
            document = {key: value for key, value in document.items() if key != "status"}
            document |= {"status": present["status"]} if "status" in present else {}
        document = admit(kind, document, self._random)
        if kind in (DEPLOYMENTS, REPLICA_SETS) and document["spec"]["selector"] != present["spec"]["selector"]:
            name = document["metadata"]["name"]
            raise invalid(kind, name, "spec.selector", "Invalid value: field is immutable")
        version = document["metadata"].get("resourceVersion") or present["metadata"]["resourceVersion"]
        if version != present["metadata"]["resourceVersion"]:
            raise conflict(kind, document["metadata"]["name"])
        document["metadata"]["resourceVersion"] = version
        return document if "dryRun" in call.query else self._store.replace(kind, document)

    def _rescale(self, call: Call, kind: Kind, present: Object, scale: Any) -> Object:
        replicas = (scale.get("spec") or {}).get("replicas", 0) if isinstance(scale, dict) else None
        if not isinstance(replicas, int) or replicas < 0:
            raise bad_request("the number of replicas in the scale is not one")
        document = {**present, "spec": {**present["spec"], "replicas": replicas}}
        document["metadata"] = dict(present["metadata"])
        if (version := (scale.get("metadata") or {}).get("resourceVersion")) is not None:
            document["metadata"]["resourceVersion"] = version
        return scale_of(self._put(call, kind, present, document, ""))

    async def delete(self, call: Call, kind: Kind, document: Object) -> Object:
        """Delete one object, as the DeleteOptions in the body and the query say."""
        return self.delete_one(call, kind, document, await call.document())

    def delete_one(self, call: Call, kind: Kind, document: Object, options: Object) -> Object:
        """Delete an object, and with orphaning let go of those that it owns. Others follow their owner in any case."""
        metadata = document["metadata"]
        for name, value in (options.get("preconditions") or {}).items():
            if value != metadata.get(name):
                raise conflict(kind, metadata["name"])
        grace = options.get("gracePeriodSeconds")
        grace = call.number("gracePeriodSeconds") if grace is None else grace
        if kind is not PODS or "nodeName" not in document["spec"]:
            grace = 0
        elif grace is None:
            grace = document["spec"]["terminationGracePeriodSeconds"]
        policy = options.get("propagationPolicy") or call.query.get("propagationPolicy")
        if "dryRun" in call.query or options.get("dryRun"):
            return success(kind, metadata["name"], metadata["uid"])
        if policy == "Orphan" or options.get("orphanDependents"):
            self._orphan(metadata["uid"])
        if kind is NAMESPACES:
            going = self._store.patch(kind, document, {"status": {"phase": "Terminating"}})
            return self._store.delete(kind, going, grace_seconds=1)
        gone = self._store.delete(kind, document, grace_seconds=grace)
        is_gone = self._store.find(kind, metadata.get("namespace", ""), metadata["name"]) is None
        return success(kind, metadata["name"], metadata["uid"]) if is_gone and kind is not PODS else gone

    def _orphan(self, uid: str) -> None:
        for kind in STORED:
            for document in self._store.objects(kind):
                owners = document["metadata"].get("ownerReferences") or []
                kept = [owner for owner in owners if owner.get("uid") != uid]
                if len(kept) < len(owners):
                    self._store.patch(kind, document, {"metadata": {"ownerReferences": kept}})


def scale_of(document: Object) -> Object:
    """The ``Scale`` of what has replicas."""
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    labels = (document["spec"].get("selector") or {}).get("matchLabels") or {}
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {key: value for key, value in document["metadata"].items() if key in kept},
        "spec": {"replicas": document["spec"]["replicas"]},
        "status": {"replicas": (document.get("status") or {}).get("replicas", 0), "selector": selector},
    }
