"""What a deployment does next: which replica set is the present one, and how many pods each may have. Pure."""

from __future__ import annotations

import hashlib
import json
import math

from sandbox.kinds import REPLICA_SETS, Object
from sandbox.objects import ALPHABET, condition, owner_reference

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


def new_replica_set(deployment: Object, revision: int) -> Object:
    """The replica set for the present template, with no pods yet."""
    spec, metadata = deployment["spec"], deployment["metadata"]
    template, selector, hashed = spec["template"], spec["selector"], template_hash(spec["template"])
    labels = {**template["metadata"].get("labels", {}), HASH_LABEL: hashed}
    annotations = {
        key: value for key, value in (metadata.get("annotations") or {}).items() if "last-applied" not in key
    }
    set_metadata = {
        "name": f"{metadata['name']}-{hashed}",
        "namespace": metadata["namespace"],
        "labels": labels,
        "annotations": annotations | {REVISION: str(revision)},
        "ownerReferences": [owner_reference(deployment)],
    }
    set_spec = {
        "replicas": 0,
        "selector": {**selector, "matchLabels": {**(selector.get("matchLabels") or {}), HASH_LABEL: hashed}},
        "template": {**template, "metadata": {**template["metadata"], "labels": labels}},
    }
    return REPLICA_SETS.of({"metadata": set_metadata, "spec": set_spec})


def _count(replica_set: Object, name: str) -> int:
    return int((replica_set.get("status") or {}).get(name, 0))


def _limits(deployment: Object) -> tuple[int, int]:
    """How many pods there may be too many, and too few, during a rollout."""
    strategy, wanted = deployment["spec"].get("strategy") or {}, deployment["spec"]["replicas"]
    if strategy.get("type") == "Recreate":
        return 0, 0
    rolling = {"maxSurge": "25%", "maxUnavailable": "25%"} | (strategy.get("rollingUpdate") or {})
    surge, unavailable = (
        value if isinstance(value, int) else int(value.rstrip("%")) * wanted / 100
        for value in (rolling["maxSurge"], rolling["maxUnavailable"])
    )
    return math.ceil(surge), math.floor(unavailable) or (0 if surge else 1)


def replica_counts(deployment: Object, current: Object, old: list[Object]) -> dict[str, int]:
    """By name of the replica set: how many pods it is to have now. Called again whenever something has changed."""
    wanted, name = deployment["spec"]["replicas"], current["metadata"]["name"]
    is_recreated = (deployment["spec"].get("strategy") or {}).get("type") == "Recreate"
    held = {item["metadata"]["name"]: item["spec"]["replicas"] for item in (*old, current)}
    if is_recreated and any(held[item["metadata"]["name"]] or _count(item, "replicas") for item in old):
        return dict.fromkeys(held, 0) | {name: held[name]}
    if not any(held[item["metadata"]["name"]] for item in old):
        return held | {name: wanted}
    surge, unavailable = _limits(deployment)
    counts = dict(held)
    counts[name] = min(wanted, held[name] + max(0, wanted + surge - sum(held.values())))
    spare = sum(_count(item, "availableReplicas") for item in (*old, current)) - (wanted - unavailable)
    for item in sorted(old, key=lambda item: (_count(item, "availableReplicas"), revision_of(item))):
        available, old_name = _count(item, "availableReplicas"), item["metadata"]["name"]
        useless = held[old_name] - available  # takes nothing away from those who are served
        removed = min(held[old_name], useless + max(0, min(spare, available)))
        spare -= max(0, removed - useless)
        counts[old_name] = held[old_name] - removed
    return counts


def status_of(deployment: Object, current: Object, all_sets: list[Object], moment: str) -> Object:
    """The status of a deployment, as a merge patch: what is nought is None."""
    wanted, name = deployment["spec"]["replicas"], current["metadata"]["name"]
    available, total = (sum(_count(item, key) for item in all_sets) for key in ("availableReplicas", "replicas"))
    updated = _count(current, "replicas")
    minimum = ("MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    if has_minimum := available >= wanted - _limits(deployment)[1]:
        minimum = ("MinimumReplicasAvailable", "Deployment has minimum availability.")
    progress = ("ReplicaSetUpdated", f'ReplicaSet "{name}" is progressing.')
    if updated == total == available == wanted:
        progress = ("NewReplicaSetAvailable", f'ReplicaSet "{name}" has successfully progressed.')
    conditions = [
        condition(deployment, "Available", moment, *minimum, is_true=has_minimum),
        condition(deployment, "Progressing", moment, *progress, is_true=True),
    ]
    counts = {"replicas": total, "updatedReplicas": updated, "readyReplicas": available, "availableReplicas": available}
    counts["unavailableReplicas"] = max(0, wanted - available)
    result: Object = {"observedGeneration": deployment["metadata"]["generation"], "conditions": conditions}
    return result | {key: count or None for key, count in counts.items()}
