"""Events about objects. What is repeated is counted; the oldest go when there are too many."""

from __future__ import annotations

import contextlib
import random
from collections import OrderedDict

from sandbox.admission import suffix
from sandbox.kinds import EVENTS, Object
from sandbox.status import ApiError
from sandbox.store import Store, timestamp

EVENTS_KEPT = 400


class Recorder:
    """Writes events into the store."""

    def __init__(self, store: Store, randomness: random.Random) -> None:
        self._store = store
        self._random = randomness
        self._written: OrderedDict[tuple[str, str, str], Object] = OrderedDict()

    def record(self, about: Object, reason: str, message: str, *, component: str, warning: bool = False) -> None:
        """Something happened to an object."""
        store, metadata = self._store, about["metadata"]
        key = (metadata["uid"], reason, message)
        known = self._written.pop(key, None)
        moment = timestamp(store.now())
        if known is not None and store.find(EVENTS, known["metadata"]["namespace"], known["metadata"]["name"]):
            self._written[key] = known = {**known, "count": known["count"] + 1, "lastTimestamp": moment}
            store.patch(EVENTS, known, {"count": known["count"], "lastTimestamp": moment})
            return
        namespace = metadata.get("namespace", "default")
        target = {"kind": about["kind"], "apiVersion": about["apiVersion"], "name": metadata["name"]}
        target |= {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
        event = {
            "metadata": {"name": f"{metadata['name']}.{suffix(self._random, 16)}", "namespace": namespace},
            "involvedObject": target | ({"namespace": namespace} if "namespace" in metadata else {}),
            "type": "Warning" if warning else "Normal",
            "reason": reason,
            "message": message,
            "source": {"component": component},
            "reportingComponent": component,
            "reportingInstance": "",
            "count": 1,
            "firstTimestamp": moment,
            "lastTimestamp": moment,
        }
        with contextlib.suppress(ApiError):  # a full store holds no more events; what happened has happened
            self._written[key] = store.create(EVENTS, EVENTS.of(event))
        if len(self._written) > EVENTS_KEPT:
            _, oldest = self._written.popitem(last=False)
            if found := store.find(EVENTS, oldest["metadata"]["namespace"], oldest["metadata"]["name"]):
                store.delete(EVENTS, found)
