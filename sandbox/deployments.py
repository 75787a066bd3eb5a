"""What a deployment does next: which replica set is the present one, and how many pods each may have. Pure."""

from __future__ import annotations

import hashlib
import json
import math

from sandbox.admission import ALPHABET
from sandbox.kinds import REPLICA_SETS, Object

REVISION = "deployment.kubernetes.io/revision"
HASH_LABEL = "pod-template-hash"


def template_hash(template: Object) -> str:
    """Equal for equal templates; the end of the name of their replica set."""
    digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).digest()
    return "".join(ALPHABET[byte % len(ALPHABET)] for byte in digest[:10])


def revision_of(document: Object) -> int:
    """The revision that is written on a deployment or replica set."""
    text = (document["metadata"].get("annotations") or {}).get(REVISION, "0")
    return int(text) if text.isdecimal() else 0


def owned_by(owner: Object, documents: list[Object]) -> list[Object]:
    """The documents that an object controls."""
    uid = owner["metadata"]["uid"]
    return [
        item for item in documents if any(ref["uid"] == uid for ref in item["metadata"].get("ownerReferences") or [])
    ]


def owner_reference(owner: Object) -> Object:
    """What a document says of the one that controls it."""
    metadata = owner["metadata"]
    reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": metadata["name"]}
    return reference | {"uid": metadata["uid"], "controller": True, "blockOwnerDeletion": True}


def new_replica_set(deployment: Object, revision: int) -> Object:
    """The replica set for the present template, with no pods yet."""
    spec, metadata = deployment["spec"], deployment["metadata"]
    template, selector = spec["template"], spec["selector"]
    hash_label = {HASH_LABEL: template_hash(template)}
    labels = {**template["metadata"].get("labels", {}), **hash_label}
    annotations = {
        key: value for key, value in (metadata.get("annotations") or {}).items() if "last-applied" not in key
    }
    return REPLICA_SETS.of(
        {
            "metadata": {
                "name": f"{metadata['name']}-{hash_label[HASH_LABEL]}",
                "namespace": metadata["namespace"],
                "labels": labels,
                "annotations": annotations | {REVISION: str(revision)},
                "ownerReferences": [owner_reference(deployment)],
            },
            "spec": {
                "replicas": 0,
                "selector": {**selector, "matchLabels": {**(selector.get("matchLabels") or {}), **hash_label}},
                "template": {**template, "metadata": {**template["metadata"], "labels": labels}},
            },
        }
    )


def _available(replica_set: Object) -> int:
    return int((replica_set.get("status") or {}).get("availableReplicas", 0))


def _running(replica_set: Object) -> int:
    return int((replica_set.get("status") or {}).get("replicas", 0))


def _share(value: int | str, total: int, *, up: bool) -> int:
    """A number, or a percentage of the total."""
    if isinstance(value, int):
        return value
    exact = int(value.rstrip("%")) * total / 100
    return math.ceil(exact) if up else math.floor(exact)


def replica_counts(deployment: Object, current: Object, old: list[Object]) -> dict[str, int]:
    """By name of the replica set: how many pods it is to have now. Called again whenever something has changed."""
    spec = deployment["spec"]
    wanted, name = spec["replicas"], current["metadata"]["name"]
    held = {item["metadata"]["name"]: item["spec"]["replicas"] for item in (*old, current)}
    if not any(held[item["metadata"]["name"]] for item in old):
        wait = (spec.get("strategy") or {}).get("type") == "Recreate" and any(_running(item) for item in old)
        return held | {name: held[name] if wait else wanted}
    if (spec.get("strategy") or {}).get("type") == "Recreate":
        return dict.fromkeys(held, 0)
    rolling = (spec.get("strategy") or {}).get("rollingUpdate") or {}
    surge = _share(rolling.get("maxSurge", 1), wanted, up=True)
    unavailable = _share(rolling.get("maxUnavailable", 0), wanted, up=False)
    if surge == 0 and unavailable == 0:
        unavailable = 1
    counts = dict(held)
    counts[name] = max(min(wanted, held[name] + max(0, wanted + surge - sum(held.values()))), 0)
    spare = sum(map(_available, (*old, current))) - (wanted - unavailable)
    for item in sorted(old, key=lambda item: (_available(item), revision_of(item))):
        old_name = item["metadata"]["name"]
        useless = held[old_name] - _available(item)  # takes nothing away from those who are served
        removed = min(held[old_name], useless + max(0, min(spare, _available(item))))
        spare -= max(0, removed - useless)
        counts[old_name] = held[old_name] - removed
    return counts


def status_of(deployment: Object, current: Object, all_sets: list[Object], moment: str) -> Object:
    """The status of a deployment; what is nought is left out."""
    wanted = deployment["spec"]["replicas"]
    available, total, updated = sum(map(_available, all_sets)), sum(map(_running, all_sets)), _running(current)
    is_done = updated == total == available == wanted
    name = current["metadata"]["name"]
    before = {item["type"]: item for item in (deployment.get("status") or {}).get("conditions") or []}
    has_minimum = available >= wanted - _share(
        ((deployment["spec"].get("strategy") or {}).get("rollingUpdate") or {}).get("maxUnavailable", 0),
        wanted,
        up=False,
    )
    wordings = {
        "Available": (
            ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
            if has_minimum
            else ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
        ),
        "Progressing": (
            ("True", "NewReplicaSetAvailable", f'ReplicaSet "{name}" has successfully progressed.')
            if is_done
            else ("True", "ReplicaSetUpdated", f'ReplicaSet "{name}" is progressing.')
        ),
    }
    counts = {"replicas": total, "updatedReplicas": updated, "readyReplicas": available, "availableReplicas": available}
    counts["unavailableReplicas"] = max(0, wanted - available)
    conditions = [condition(before.get(kind), kind, *words, moment) for kind, words in wordings.items()]
    result: Object = {"observedGeneration": deployment["metadata"]["generation"], "conditions": conditions}
    return result | {key: count for key, count in counts.items() if count}


def condition(before: Object | None, kind: str, value: str, reason: str, message: str, moment: str) -> Object:
    """A condition that keeps its times for as long as it says the same."""
    if before and (before["status"], before["reason"], before["message"]) == (value, reason, message):
        return before
    moved = before["lastTransitionTime"] if before and before["status"] == value else moment
    result = {"type": kind, "status": value, "reason": reason, "message": message}
    return result | {"lastUpdateTime": moment, "lastTransitionTime": moved}
