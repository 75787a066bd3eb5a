"""Events about objects. The oldest go when there are too many."""

from __future__ import annotations

import contextlib
import random
from collections import deque

from sandbox.kinds import EVENTS, Object
from sandbox.objects import suffix, timestamp
from sandbox.status import ApiError
from sandbox.store import Store

EVENTS_KEPT = 400


class Recorder:
    """Writes events into the store."""

    def __init__(self, store: Store, randomness: random.Random) -> None:
        self._store = store
        self._random = randomness
        self._written: deque[tuple[str, str]] = deque()

    def record(self, about: Object, reason: str, message: str, *, component: str, warning: bool = False) -> None:
        """Something happened to an object."""
        metadata, moment = about["metadata"], timestamp(self._store.now())
        name, namespace = f"{metadata['name']}.{suffix(self._random, 16)}", metadata.get("namespace", "default")
        target = {"kind": about["kind"], "apiVersion": about["apiVersion"], "namespace": namespace}
        event = {
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": target | {key: metadata[key] for key in ("name", "uid", "resourceVersion")},
            "type": "Warning" if warning else "Normal",
            "reason": reason,
            "message": message,
            "source": {"component": component},
            "count": 1,
            "firstTimestamp": moment,
            "lastTimestamp": moment,
        }
        with contextlib.suppress(ApiError):  # a full store holds no more events; what happened has happened
            self._store.create(EVENTS, EVENTS.of(event))
            self._written.append((namespace, name))
        if len(self._written) > EVENTS_KEPT and (oldest := self._store.find(EVENTS, *self._written.popleft())):
            self._store.delete(EVENTS, oldest)
