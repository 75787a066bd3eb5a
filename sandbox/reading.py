"""List and watch: the objects of a kind that a caller selects, at once or as they change.

A watch reads the history of the store from where it is; a caller who is too slow for the history is told with a 410 and
lists again.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator

import trio

from sandbox import selectors
from sandbox.calls import Call
from sandbox.documents import encode
from sandbox.kinds import Kind, Object
from sandbox.status import ApiError, bad_request
from sandbox.store import Change, Store
from sandbox.views import View

BOOKMARK_SECONDS = 60.0
WATCH_SECONDS = 1800.0
"""How long a watch lasts at least, where the caller does not say; up to twice as long."""


class Selection:
    """What a caller selects of a kind, by namespace, labels and fields."""

    def __init__(self, call: Call, kind: Kind, namespace: str, name: str = "") -> None:
        self.kind = kind
        self.namespace = namespace
        self._predicates = [
            selectors.label_selector(call.query.get("labelSelector", "")),
            selectors.field_selector(call.query.get("fieldSelector", "")),
        ]
        self._name = name

    def of(self, store: Store) -> list[Object]:
        """The objects that are selected now."""
        return [document for document in store.objects(self.kind, self.namespace) if self.selects(document)]

    def selects(self, document: Object | None) -> bool:
        """Whether an object belongs to it."""
        if document is None or self.namespace not in ("", document["metadata"].get("namespace")):
            return False
        if self._name not in ("", document["metadata"]["name"]):
            return False
        return all(predicate(document) for predicate in self._predicates)

    def event(self, change: Change) -> tuple[str, Object] | None:
        """What a change is to somebody who sees the selected objects only."""
        was, now = self.selects(change.previous), self.selects(change.current)
        if change.type == "DELETED" or not now:
            return ("DELETED", change.current) if was else None
        return ("MODIFIED" if was else "ADDED"), change.current


async def answer_list(call: Call, store: Store, selection: Selection) -> None:
    """Answer a list, or a page of it. Pages that follow show what there is by then, under the first one's version."""
    documents, revision = selection.of(store), str(store.revision)
    if token := call.query.get("continue"):
        try:
            revision, *after = json.loads(base64.urlsafe_b64decode(token))
            place = tuple(map(str, after))
            store.changes(selection.kind, int(revision))
        except (ValueError, TypeError) as error:
            raise bad_request("continue is not a token of this server") from error
        documents = [document for document in documents if _key(document) > place]
    metadata: Object = {"resourceVersion": revision}
    limit = call.number("limit") or len(documents)
    if len(documents) > limit:
        metadata["continue"] = base64.urlsafe_b64encode(encode([revision, *_key(documents[limit - 1])])).decode()
        metadata["remainingItemCount"] = len(documents) - limit
    view = View(selection.kind, call.form(), call.query.get("includeObject", ""), store.now())
    await call.answer(view.many(documents[:limit], metadata))


async def answer_watch(call: Call, store: Store, selection: Selection, randomness: random.Random) -> None:
    """Answer a watch: the present objects where they are asked for, and every change from there on."""
    since = call.query.get("resourceVersion", "")
    if since and not since.isdecimal():
        raise bad_request(f"resourceVersion: {since} is not one")
    with_initial = call.is_set("sendInitialEvents") if "sendInitialEvents" in call.query else since in ("", "0")
    revision = store.revision if with_initial or since in ("", "0") else int(since)
    initial = [("ADDED", document) for document in selection.of(store)] if with_initial else []
    form, seconds = call.form(), call.number("timeoutSeconds") or WATCH_SECONDS * (1 + randomness.random())
    has_columns = False

    def lines(events: Iterator[tuple[str, Object]]) -> bytes:
        nonlocal has_columns
        view = View(selection.kind, form, call.query.get("includeObject", ""), store.now())
        pieces = []
        for kind, document in events:
            shown = view.bookmark(document) if kind == "BOOKMARK" else view.one(document, with_columns=not has_columns)
            has_columns = has_columns or kind != "BOOKMARK"
            pieces.append(encode({"type": kind, "object": shown}) + b"\n")
        return b"".join(pieces)

    def bookmark(*, ends_initial: bool = False) -> bytes:
        metadata: Object = {"resourceVersion": str(revision), "creationTimestamp": None}
        if ends_initial:
            metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
        return lines(iter([("BOOKMARK", metadata)]))

    await call.begin("application/json")
    writer, with_bookmarks = call.downstream.writer, call.is_set("allowWatchBookmarks")
    first = lines(iter(initial))
    if call.is_set("sendInitialEvents") and with_bookmarks:
        first += bookmark(ends_initial=True)
    if first:
        await writer.send(first)
    with trio.move_on_after(seconds):
        while True:
            try:
                changes = store.changes(selection.kind, revision)
            except ApiError as error:
                await writer.send(encode({"type": "ERROR", "object": error.document()}) + b"\n")
                break
            revision = max(revision, changes[-1].revision if changes else store.revision)
            if data := lines(filter(None, map(selection.event, changes))):
                await writer.send(data)
            with trio.move_on_after(BOOKMARK_SECONDS) as waiting:
                await store.wait_beyond(revision)
            if waiting.cancelled_caught and with_bookmarks:
                await writer.send(bookmark())
    await writer.finish()


def _key(document: Object) -> tuple[str, str]:
    return document["metadata"].get("namespace", ""), document["metadata"]["name"]
