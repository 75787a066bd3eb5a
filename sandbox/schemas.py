"""What is known of the fields of objects (``schemas.yaml``): types, numbers in protobuf, descriptions. Pure.

Types are those below, ``any``, ``int-or-string``, ``time``, ``bytes`` (base64 in JSON), or the name of a message.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

from sandbox.documents import packaged
from sandbox.kinds import KINDS, Kind, Object

JSON_TYPES: dict[str, type] = {"string": str, "integer": int, "boolean": bool}


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """One field. ``shape`` is ``list``, ``map`` or nothing; ``number`` is 0 where protobuf carries it elsewhere."""

    number: int
    item: str
    shape: str
    description: str


@functools.cache
def fields_of(type_name: str) -> dict[str, Field]:
    """The fields of a type by name; none where it is not known."""
    fields = {}
    if any(kind.name == type_name for kind in KINDS.values()):
        fields["apiVersion"] = Field(0, "string", "", "The version of the API that this object is written for.")
        fields["kind"] = Field(0, "string", "", "What kind of object this is.")
        fields["metadata"] = Field(1, "ObjectMeta", "", "Who the object is.")
    for name, text in packaged("schemas.yaml").get(type_name, {}).items():
        if name:
            declaration, _, description = text.partition(" | ")
            number, item, *shape = declaration.split()
            fields[name] = Field(int(number), item, "".join(shape), description)
    return fields


def about(type_name: str) -> str:
    """What a type is."""
    text: str = packaged("schemas.yaml")[type_name][""]
    return text


def type_names() -> Iterable[str]:
    """Every message that is known."""
    names: Object = packaged("schemas.yaml")
    return names.keys()


def wrong_type(kind: Kind, document: Object) -> tuple[str, str] | None:
    """The first field whose value has not its type, and what is wrong; None where there is none."""
    return _wrong(Field(0, kind.name, "", ""), document, "")


def _wrong(field: Field, value: Any, path: str) -> tuple[str, str] | None:
    if value is None or (not field.shape and field.item in ("any", "int-or-string")):
        return None
    inner = dataclasses.replace(field, shape="")
    children: list[tuple[Field, Any, str]] = []
    expected: type = JSON_TYPES.get(field.item, str if field.item in ("time", "bytes") else dict)
    if field.shape:
        expected = list if field.shape == "list" else dict
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        return path, f"Invalid value: expected {field.shape or field.item}, got {type(value).__name__}"
    if isinstance(value, list):
        if None in value:
            return path, "Invalid value: an item of the list is null"
        children = [(inner, child, f"{path}[{place}]") for place, child in enumerate(value)]
    elif isinstance(value, dict):
        known = {} if field.shape else fields_of(field.item)
        unknown = inner if field.shape else Field(0, "any", "", "")
        children = [(known.get(key, unknown), child, f"{path}.{key}".lstrip(".")) for key, child in value.items()]
    return next((problem for child in children if (problem := _wrong(*child))), None)
