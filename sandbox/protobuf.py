"""Reading objects in protobuf, which kubectl's ``create`` and client-go's typed clients send whatever is answered. Pure.

The fields of ``schemas.yaml`` are understood; others are dropped, and named to whoever asked. Answers are always JSON.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from sandbox.kinds import Object
from sandbox.schemas import Field, fields_of
from sandbox.status import bad_request

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\x00"
_KEY, _VALUE = 1, 2  # of an entry of a map
_POINTERS = ("automountServiceAccountToken", "gracePeriodSeconds", "replicas", "terminationGracePeriodSeconds")
"""Fields whose nought means something; elsewhere it is how protobuf says nothing."""


def decode(data: bytes) -> tuple[Object, list[str]]:
    """The document in an envelope, and the fields that were dropped. Raises `ApiError`."""
    if not data.startswith(_MAGIC):
        raise bad_request("the body of the request is not protobuf of Kubernetes")
    dropped: list[str] = []
    try:
        envelope = dict(_fields(data[len(_MAGIC) :]))
        type_meta = dict(_fields(envelope[1]))
        api_version, kind = type_meta[1].decode(), type_meta[2].decode()
        document = _message(envelope.get(2, b""), kind, dropped)
    except (IndexError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise bad_request(f"the protobuf in the body of the request cannot be decoded: {error}") from error
    return {"apiVersion": api_version, "kind": kind, **document}, dropped


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message: numbers with an integer or bytes each."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        value, position = _varint(data, position)
        if tag & 7 == 0:
            yield tag >> 3, value
        elif tag & 7 == 2 and 0 <= value <= len(data) - position:
            yield tag >> 3, data[position : position + value]
            position += value
        else:
            raise ValueError(f"a field of wire type {tag & 7} that does not fit")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position + shift // 7]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value - (1 << 64) if value >> 63 else value, position + shift // 7 + 1
    raise ValueError("a number of more than 64 bits")


def _message(data: bytes, message: str, dropped: list[str]) -> Object:
    known = {field.number: (name, field) for name, field in fields_of(message).items() if field.item != "any"}
    result: Object = {}
    for number, raw in _fields(data):
        name, field = known.get(number, ("", Field(0, "any")))
        if not name or name == "status":
            dropped += [f"field {number} of {message}"] if raw and not name else []
        elif field.shape == "map":
            entry = dict(_fields(raw))
            key = entry.get(_KEY, b"").decode()
            result.setdefault(name, {})[key] = _value(entry.get(_VALUE, b""), field, dropped)
        elif field.shape == "list":
            result.setdefault(name, []).append(_value(raw, field, dropped))
        elif (value := _value(raw, field, dropped)) or name in _POINTERS:
            result[name] = value
    return result


def _value(raw: Any, field: Field, dropped: list[str]) -> Any:
    match field.item:
        case "string":
            return raw.decode()
        case "integer" | "boolean":
            return raw if field.item == "integer" else bool(raw)
        case "bytes":
            return base64.b64encode(raw).decode()
        case "time":
            seconds = dict(_fields(raw)).get(1)
            return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
        case "int-or-string":
            parts = dict(_fields(raw))
            return parts.get(3, b"").decode() if parts.get(1) else parts.get(2, 0)
        case _:
            return _message(raw, field.item, dropped)
