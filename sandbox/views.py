"""The forms in which objects are shown: whole, as rows of a table, or as metadata alone. Pure."""

from __future__ import annotations

from datetime import datetime

from sandbox.calls import META_GROUP
from sandbox.kinds import Kind, Object
from sandbox.tables import table


class View:
    """One form. ``include`` is what goes into each row of a table: Metadata, Object or None."""

    def __init__(self, kind: Kind, form: str, include: str, now: datetime) -> None:
        self._kind = kind
        self._form = form
        self._include = include or "Metadata"
        self._now = now

    def one(self, document: Object, *, with_columns: bool = True) -> Object:
        """One object."""
        if self._form == "Table":
            result = self._table([document], with_columns=with_columns)
            result["metadata"] = {"resourceVersion": document["metadata"]["resourceVersion"]}
            return result
        return self._metadata(document) if self._form else document

    def many(self, documents: list[Object], metadata: Object) -> Object:
        """A list of objects."""
        if self._form == "Table":
            return self._table(documents) | {"metadata": metadata}
        if self._form:
            items = [self._metadata(document) for document in documents]
            name = {"kind": "PartialObjectMetadataList", "apiVersion": f"{META_GROUP}/v1"}
            return {**name, "metadata": metadata, "items": items}
        items = [{key: value for key, value in item.items() if key not in ("kind", "apiVersion")} for item in documents]
        return {**self._kind.of({}), "kind": f"{self._kind.name}List", "metadata": metadata, "items": items}

    def bookmark(self, metadata: Object) -> Object:
        """An object that says nothing but how far a watch has come."""
        document = self._kind.of({"metadata": metadata})
        if self._form == "Table":
            empty = self._table([])
            return {**empty, "columnDefinitions": [], "rows": [{"cells": [], "object": self._metadata(document)}]}
        return self._metadata(document) if self._form else document

    def _metadata(self, document: Object) -> Object:
        return {"kind": "PartialObjectMetadata", "apiVersion": f"{META_GROUP}/v1", "metadata": document["metadata"]}

    def _table(self, documents: list[Object], *, with_columns: bool = True) -> Object:
        result = table(self._kind, documents, self._now, with_columns=with_columns)
        for row, document in zip(result["rows"], documents, strict=True):
            shown = {"Object": document, "None": None}.get(self._include, self._metadata(document))
            row["object"] = shown
        return result
