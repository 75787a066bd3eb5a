"""What is known of the fields of objects (``schemas.yaml``): types, numbers in protobuf, descriptions. Pure.

Types are those below, ``any``, ``int-or-string``, ``time``, ``bytes`` (base64 in JSON), or the name of a message.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from sandbox.documents import packaged
from sandbox.kinds import BY_NAME, Object

JSON_TYPES: dict[str, type] = {"string": str, "integer": int, "boolean": bool}
MESSAGES: Object = packaged("schemas.yaml")
"""Every message that is known, with its fields; the one without a name says what the message is."""


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """One field. ``shape`` is ``list``, ``map`` or nothing; ``number`` is 0 where protobuf carries it elsewhere."""

    number: int
    item: str
    shape: str = ""
    description: str = ""


@functools.cache
def fields_of(message: str) -> dict[str, Field]:
    """The fields of a message by name; none where it is not known."""
    fields = {}
    if message in BY_NAME:
        fields["apiVersion"] = Field(0, "string", "", "The version of the API that this object is written for.")
        fields["kind"] = Field(0, "string", "", "What kind of object this is.")
        fields["metadata"] = Field(1, "ObjectMeta", "", "Who the object is.")
    for name, text in MESSAGES.get(message, {}).items():
        if name:
            declaration, _, description = text.partition(" | ")
            number, item, *shape = declaration.split()
            fields[name] = Field(int(number), item, "".join(shape), description)
    return fields


def wrong_type(field: Field, value: Any, path: str = "") -> tuple[str, str] | None:
    """The path of the first value in a field that has not its type, and what is wrong; None where there is none."""
    if value is None or (not field.shape and field.item in ("any", "int-or-string")):
        return None
    expected = JSON_TYPES.get(field.item, str if field.item in ("time", "bytes") else dict)
    expected = {"list": list, "map": dict}.get(field.shape, expected)
    if type(value) is not expected:
        return path, f"Invalid value: expected {field.shape or field.item}, got {type(value).__name__}"
    if isinstance(value, list) and None in value:
        return path, "Invalid value: an item of the list is null"
    item = Field(0, field.item)
    if isinstance(value, list):
        children = [(item, child, f"{path}[{place}]") for place, child in enumerate(value)]
    elif isinstance(value, dict):
        known, other = ({}, item) if field.shape else (fields_of(field.item), Field(0, "any"))
        children = [(known.get(key, other), child, f"{path}.{key}".lstrip(".")) for key, child in value.items()]
    else:
        return None
    return next((problem for child in children if (problem := wrong_type(*child))), None)
