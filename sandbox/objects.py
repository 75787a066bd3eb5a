"""What many parts of the sandbox ask of an object, or write on one. Pure."""

from __future__ import annotations

import random
from datetime import UTC, datetime

from sandbox.kinds import Object

ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
"""What generated names are made of: nothing that reads as a word."""


def suffix(randomness: random.Random, length: int = 5) -> str:
    """The end of a generated name."""
    return "".join(randomness.choices(ALPHABET, k=length))


def timestamp(moment: datetime) -> str:
    """As Kubernetes writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def is_going(document: Object) -> bool:
    """Whether an object was deleted and is only waiting for its end."""
    return "deletionTimestamp" in document["metadata"]


def grace_of(document: Object) -> int:
    """How long an object takes to end, in seconds: nought for everything but a pod that is on a node."""
    spec = document.get("spec") or {}
    has_grace = document["kind"] == "Pod" and bool(spec.get("nodeName"))
    return max(0, int(spec["terminationGracePeriodSeconds"])) if has_grace else 0


def is_ready(pod: Object) -> bool:
    """Whether a pod serves: ready, and not on its way out."""
    ready = conditions_of(pod).get("Ready")
    return ready is not None and ready["status"] == "True" and not is_going(pod)


def owner_reference(owner: Object) -> Object:
    """What a document says of the one that controls it."""
    metadata = owner["metadata"]
    reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": metadata["name"]}
    return reference | {"uid": metadata["uid"], "controller": True, "blockOwnerDeletion": True}


def owned_by(owner: Object, documents: list[Object]) -> list[Object]:
    """The documents that an object controls."""
    uid = owner["metadata"]["uid"]
    return [
        item
        for item in documents
        if any(ref.get("uid") == uid for ref in item["metadata"].get("ownerReferences") or [])
    ]


def conditions_of(document: Object) -> dict[str, Object]:
    """The conditions in a status, by their type."""
    return {item["type"]: item for item in (document.get("status") or {}).get("conditions") or []}


def condition(before: Object, kind: str, moment: str, reason: str = "", message: str = "", *, is_true: bool) -> Object:
    """A condition of an object that keeps its times for as long as it says the same."""
    known = conditions_of(before).get(kind, {})
    said = {"type": kind, "status": "True" if is_true else "False", "reason": reason, "message": message}
    said = {key: value for key, value in said.items() if value}
    if known and said == {key: value for key, value in known.items() if not key.endswith("Time")}:
        return known
    moved = known["lastTransitionTime"] if known.get("status") == said["status"] else moment
    return {**said, "lastUpdateTime": moment, "lastTransitionTime": moved}
