"""Create, replace, patch, apply and delete; the scale of what has replicas."""

from __future__ import annotations

import random
from typing import Any

from sandbox import patches
from sandbox.admission import admit, identify
from sandbox.calls import Call
from sandbox.kinds import DEPLOYMENTS, NAMESPACES, PODS, REPLICA_SETS, Kind, Object
from sandbox.objects import grace_of, is_going
from sandbox.status import ApiError, bad_request, conflict, invalid, success
from sandbox.store import Store

APPLY_WARNING = "sandbox: server-side apply knows one manager here and detects no conflicts"
_PATCHES = {
    "application/json-patch+json": patches.json_patch,
    "application/merge-patch+json": patches.merge,
    "application/strategic-merge-patch+json": patches.strategic_merge,
}
_APPLY = "application/apply-patch+yaml"


class Writing:
    """Changes of objects as callers ask for them."""

    def __init__(self, store: Store, randomness: random.Random) -> None:
        self._store = store
        self._random = randomness

    async def create(self, call: Call, kind: Kind, namespace: str) -> Object:
        """Add an object; with dryRun, say what would be added. Raises `ApiError`, as all of these do."""
        return self._create(call, kind, identify(kind, await call.document(), namespace, "", self._random))

    def _create(self, call: Call, kind: Kind, document: Object) -> Object:
        if "status" in kind.subresources:
            document = {key: value for key, value in document.items() if key != "status"}
        document = admit(kind, document, self._random)
        metadata = document["metadata"]
        if "resourceVersion" in metadata:
            raise bad_request("resourceVersion should not be set on objects to be created")
        if kind.is_namespaced and is_going(self._store.get(NAMESPACES, "", metadata["namespace"])):
            problem = f"namespace {metadata['namespace']} is being terminated"
            raise ApiError(403, "Forbidden", f"{kind.resource} cannot be created: {problem}")
        return document if "dryRun" in call.query else self._store.create(kind, document)

    async def change(self, call: Call, kind: Kind, namespace: str, name: str, subresource: str) -> Object:
        """Put a document in the place of an object, its status or its scale, or patch it in one of the four ways."""
        body, content_type = await call.document(), call.field(b"content-type").partition(";")[0]
        if call.method == "PATCH" and content_type == _APPLY:
            return self._apply(call, kind, identify(kind, body, namespace, name, self._random), subresource)
        present = self._store.get(kind, namespace, name)
        if call.method == "PATCH":
            if content_type not in _PATCHES:
                problem = f"accepted media types include: {', '.join([*_PATCHES, _APPLY])}"
                message = f"the body of the request was in an unknown format - {problem}"
                raise ApiError(415, "UnsupportedMediaType", message)
            body = _PATCHES[content_type](scale_of(present) if subresource == "scale" else present, body)
        if subresource == "scale":
            return self._rescale(call, kind, present, body)
        return self._put(call, kind, present, identify(kind, body, namespace, name, self._random), subresource)

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
        if subresource:
            document = {**present, "status": document.get("status"), "metadata": document["metadata"]}
        elif "status" in kind.subresources:
            document = {**document, "status": present.get("status")}
        document = admit(kind, document, self._random)
        if kind in (DEPLOYMENTS, REPLICA_SETS) and document["spec"]["selector"] != present["spec"]["selector"]:
            raise invalid(kind, document["metadata"]["name"], "spec.selector", "Invalid value: field is immutable")
        if "dryRun" in call.query:
            return {**document, "metadata": present["metadata"] | document["metadata"]}
        return self._store.replace(kind, document)

    def _rescale(self, call: Call, kind: Kind, present: Object, scale: Any) -> Object:
        replicas = (scale.get("spec") or {}).get("replicas", 0) if isinstance(scale, dict) else None
        if not isinstance(replicas, int) or replicas < 0:
            raise bad_request("the number of replicas in the scale is not one")
        version = (scale.get("metadata") or {}).get("resourceVersion", present["metadata"]["resourceVersion"])
        document = {**present, "spec": {**present["spec"], "replicas": replicas}}
        document["metadata"] = {**present["metadata"], "resourceVersion": version}
        return scale_of(self._put(call, kind, present, document, ""))

    def delete(self, call: Call, kind: Kind, document: Object, options: Object) -> Object:
        """Delete an object; what it owns follows."""
        metadata = document["metadata"]
        for name, value in (options.get("preconditions") or {}).items():
            if value != metadata.get(name):
                raise conflict(kind, metadata["name"])
        if "dryRun" in call.query or options.get("dryRun"):
            return success(kind, document)
        if "Orphan" in (options.get("propagationPolicy"), call.query.get("propagationPolicy")):
            raise bad_request("the sandbox leaves no orphans: what an object owns goes with it")
        grace, asked = grace_of(document), options.get("gracePeriodSeconds", call.number("gracePeriodSeconds"))
        if kind is NAMESPACES:
            document, grace = self._store.patch(kind, document, {"status": {"phase": "Terminating"}}), 1
        elif grace and asked is not None:
            grace = asked
        if type(grace) is not int or grace < 0:
            raise bad_request(f"gracePeriodSeconds: {grace} is not a number of seconds")
        gone = self._store.delete(kind, document, grace_seconds=grace)
        is_there = self._store.find(kind, metadata.get("namespace", ""), metadata["name"]) is not None
        return gone if is_there or kind is PODS else success(kind, document)


def scale_of(document: Object) -> Object:
    """The ``Scale`` of what has replicas."""
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    labels = document["spec"]["selector"].get("matchLabels") or {}
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {key: value for key, value in document["metadata"].items() if key in kept},
        "spec": {"replicas": document["spec"]["replicas"]},
        "status": {"replicas": (document.get("status") or {}).get("replicas", 0), "selector": selector},
    }
