"""The objects of the cluster, their resource versions, and what has changed lately.

Everything is synchronous but waiting for a change, so each read-modify-write is atomic. Objects that were handed out
are never altered: a change puts a new one in the place of the old one. The history of a kind is bounded; who asks for
more than it holds is told so, and reads everything again.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import uuid
from collections import deque
from collections.abc import Callable
from datetime import datetime

import trio

from sandbox import patches, status
from sandbox.kinds import PODS, STORED, Kind, Object
from sandbox.objects import timestamp
from sandbox.status import ApiError

HISTORY = 1000
"""Changes of one kind that are remembered for watches."""

OBJECTS = 5000
"""Objects of all kinds together."""

PODS_LIMIT = 300
"""Pods, each of which costs a task. More than the nodes have room for, so that some may be seen to wait."""

Now = Callable[[], datetime]


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One change: what it made, and of what. ``previous`` is None for a new object."""

    revision: int
    type: str
    current: Object
    previous: Object | None


class Store:
    """Objects by kind, namespace and name."""

    def __init__(self, *, now: Now, randomness: random.Random) -> None:
        self.now = now
        self.revision = 1
        self.uids: set[str] = set()
        self.applied: dict[str, Object] = {}
        """By uid: what server-side apply was last given."""
        self._random = randomness
        self._objects: dict[Kind, dict[tuple[str, str], Object]] = {kind: {} for kind in STORED}
        self._history: dict[Kind, deque[Change]] = {kind: deque() for kind in STORED}
        self._forgotten = dict.fromkeys(STORED, 0)  # the revision of the last change that the history has lost
        self._changed = trio.lowlevel.ParkingLot()

    def find(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """The object, or None."""
        return self._objects[kind].get((namespace, name))

    def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """The object. Raises `ApiError`."""
        found = self.find(kind, namespace, name)
        if found is None:
            raise status.not_found(kind, name)
        return found

    def objects(self, kind: Kind, namespace: str = "") -> list[Object]:
        """All objects of a kind in a namespace, or everywhere, in the order of their keys."""
        held = self._objects[kind]
        return [held[key] for key in sorted(held) if namespace in ("", key[0])]

    def create(self, kind: Kind, document: Object) -> Object:
        """Add an object. Raises `ApiError` where there is one of that name, or no room."""
        metadata = document["metadata"]
        if self.find(kind, metadata.get("namespace", ""), metadata["name"]) is not None:
            raise status.already_exists(kind, metadata["name"])
        if len(self.uids) >= OBJECTS:
            raise ApiError(507, "InsufficientStorage", f"the sandbox holds {OBJECTS} objects and takes no more")
        if kind is PODS and len(self._objects[PODS]) >= PODS_LIMIT:
            raise ApiError(403, "Forbidden", f"the sandbox holds {PODS_LIMIT} pods and takes no more")
        uid = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
        metadata = {**metadata, "uid": uid, "creationTimestamp": timestamp(self.now())}
        if "spec" in document:
            metadata["generation"] = 1
        self.uids.add(uid)
        return self._commit(kind, "ADDED", {**document, "metadata": metadata}, None)

    def replace(self, kind: Kind, document: Object) -> Object:
        """Put a document in the place of the object of that name; nothing happens where they are equal.

        What was only waiting for its last finalizer to be removed goes away. Raises `ApiError`: no such object, or
        a resource version that is not the present one.
        """
        metadata = document["metadata"]
        previous = self.get(kind, metadata.get("namespace", ""), metadata["name"])
        before = previous["metadata"]
        if metadata.get("resourceVersion", before["resourceVersion"]) != before["resourceVersion"]:
            raise status.conflict(kind, metadata["name"])
        kept = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation")
        metadata = {key: value for key, value in metadata.items() if key not in kept}
        metadata |= {key: before[key] for key in (*kept, "resourceVersion") if key in before}
        if document.get("spec") != previous.get("spec"):
            metadata["generation"] = before.get("generation", 0) + 1
        document = {**document, "metadata": metadata}
        if document == previous:
            return previous
        if "deletionTimestamp" in metadata and before.get("finalizers") and not metadata.get("finalizers"):
            return self._remove(kind, document)
        return self._commit(kind, "MODIFIED", document, previous)

    def patch(self, kind: Kind, document: Object, patch: Object) -> Object:
        """A JSON merge patch on the object of that name, as it is by now."""
        metadata = document["metadata"]
        present = self.get(kind, metadata.get("namespace", ""), metadata["name"])
        return self.replace(kind, patches.merge(present, patch))

    def delete(self, kind: Kind, document: Object, *, grace_seconds: int = 0) -> Object:
        """Remove an object, or mark it as going: where it has finalizers, or somebody has to end it in grace first."""
        metadata = document["metadata"]
        if not metadata.get("finalizers") and not grace_seconds:
            return self._remove(kind, document)
        if "deletionTimestamp" in metadata:
            return document
        going = {"deletionTimestamp": timestamp(self.now()), "deletionGracePeriodSeconds": grace_seconds}
        return self._commit(kind, "MODIFIED", {**document, "metadata": metadata | going}, document)

    def changes(self, kind: Kind, after: int) -> list[Change]:
        """What has changed since a revision. Raises `ApiError` where that is not known any more, or not yet."""
        if after < self._forgotten[kind] or after > self.revision:
            raise status.expired(after)
        newest_first = itertools.takewhile(lambda change: change.revision > after, reversed(self._history[kind]))
        return list(newest_first)[::-1]

    async def wait_beyond(self, revision: int) -> None:
        """Return once anything has changed since a revision. Always a checkpoint; cancelling is safe."""
        await trio.lowlevel.checkpoint()
        while self.revision <= revision:
            await self._changed.park()

    def _remove(self, kind: Kind, document: Object) -> Object:
        uid = document["metadata"]["uid"]
        self.uids.discard(uid)
        self.applied.pop(uid, None)
        return self._commit(kind, "DELETED", document, document)

    def _commit(self, kind: Kind, change: str, document: Object, previous: Object | None) -> Object:
        self.revision += 1
        metadata = {**document["metadata"], "resourceVersion": str(self.revision)}
        document = {**document, "metadata": metadata}
        key = (metadata.get("namespace", ""), metadata["name"])
        if change == "DELETED":
            del self._objects[kind][key]
        else:
            self._objects[kind][key] = document
        history = self._history[kind]
        history.append(Change(self.revision, change, document, previous))
        if len(history) > HISTORY:
            self._forgotten[kind] = history.popleft().revision
        self._changed.unpark_all()
        return document
