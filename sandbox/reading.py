"""List and watch: the objects of a kind that a caller selects, at once or as they change.

A watch reads the history of the store from where it is; a caller who is too slow for the history is told with a 410 and
lists again.
"""

from __future__ import annotations

import base64
import json
import random

import trio

from sandbox import selectors
from sandbox.calls import Call
from sandbox.documents import encode
from sandbox.kinds import Kind, Object
from sandbox.status import ApiError, bad_request
from sandbox.store import Change, Store
from sandbox.tables import View

BOOKMARK_SECONDS = 60.0
WATCH_SECONDS = 1800.0
"""How long a watch lasts at least, where the caller does not say; up to twice as long."""


class Selection:
    """What a caller selects of a kind, by namespace, labels and fields."""

    def __init__(self, call: Call, kind: Kind, namespace: str) -> None:
        self.kind = kind
        self.namespace = namespace
        self._labels = selectors.parse(call.query.get("labelSelector", ""))
        self._fields = selectors.parse(call.query.get("fieldSelector", ""))

    def of(self, store: Store) -> list[Object]:
        """The objects that are selected now."""
        return [document for document in store.objects(self.kind, self.namespace) if self.selects(document)]

    def selects(self, document: Object | None) -> bool:
        """Whether an object belongs to it."""
        if document is None or self.namespace not in ("", document["metadata"].get("namespace")):
            return False
        has_labels = selectors.selects_labels(self._labels, document["metadata"].get("labels"))
        return has_labels and selectors.selects_fields(self._fields, document)

    def event(self, change: Change) -> tuple[str, Object] | None:
        """What a change is to somebody who sees the selected objects only."""
        was, now = self.selects(change.previous), self.selects(change.current)
        if change.type == "DELETED" or not now:
            return ("DELETED", change.current) if was else None
        return ("MODIFIED" if was else "ADDED"), change.current


async def answer_list(call: Call, store: Store, selection: Selection, view: View) -> None:
    """Answer a list, or a page of it. Pages that follow show what there is by then, under the first one's version."""
    documents, revision = selection.of(store), store.revision
    if token := call.query.get("continue"):
        try:
            revision, place = json.loads(base64.urlsafe_b64decode(token))
            store.changes(selection.kind, revision)
            documents = [document for document in documents if _key(document) > place]
        except (ValueError, TypeError) as error:
            raise bad_request("continue is not a token of this server") from error
    metadata: Object = {"resourceVersion": str(revision)}
    limit = call.number("limit") or len(documents)
    if len(documents) > limit:
        metadata["continue"] = base64.urlsafe_b64encode(encode([revision, _key(documents[limit - 1])])).decode()
        metadata["remainingItemCount"] = len(documents) - limit
    await call.answer(view.many(documents[:limit], metadata))


async def answer_watch(call: Call, store: Store, selection: Selection, view: View, randomness: random.Random) -> None:
    """Answer a watch: the present objects where they are asked for, and every change from there on."""
    since = call.query.get("resourceVersion") or "0"
    if not since.isdecimal():
        raise bad_request(f"resourceVersion: {since} is not one")
    is_list, with_bookmarks = call.is_set("sendInitialEvents"), call.is_set("allowWatchBookmarks")
    with_initial = is_list or (since == "0" and "sendInitialEvents" not in call.query)
    revision = store.revision if with_initial or since == "0" else int(since)
    events = [("ADDED", document) for document in selection.of(store)] if with_initial else []
    seconds = call.number("timeoutSeconds") or WATCH_SECONDS * (1 + randomness.random())

    def lines(events: list[tuple[str, Object]]) -> bytes:
        shown = [{"type": kind, "object": view.one(document)} for kind, document in events]
        return b"".join(encode(event) + b"\n" for event in shown)

    def bookmark(annotations: Object) -> bytes:
        metadata = {"resourceVersion": str(revision), "creationTimestamp": None} | annotations
        return encode({"type": "BOOKMARK", "object": view.bookmark(metadata)}) + b"\n"

    await call.begin("application/json")
    writer, data = call.downstream.writer, lines(events)
    if is_list and with_bookmarks:
        data += bookmark({"annotations": {"k8s.io/initial-events-end": "true"}})
    with trio.move_on_after(seconds):
        while True:
            if data:
                await writer.send(data)
            with trio.move_on_after(BOOKMARK_SECONDS) as waiting:
                await store.wait_beyond(revision)
            try:
                changes = store.changes(selection.kind, revision)
            except ApiError as error:
                await writer.send(encode({"type": "ERROR", "object": error.document()}) + b"\n")
                break
            revision = max(revision, store.revision)
            data = lines(list(filter(None, map(selection.event, changes))))
            if waiting.cancelled_caught and with_bookmarks:
                data += bookmark({})
    await writer.finish()


def _key(document: Object) -> list[str]:
    return [document["metadata"].get("namespace", ""), document["metadata"]["name"]]
