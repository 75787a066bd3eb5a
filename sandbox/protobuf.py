"""Reading objects in protobuf, which kubectl's ``create`` and client-go's typed clients send. Pure.

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
_DEPTH = 32
_POINTERS = frozenset(
    [
        "automountServiceAccountToken",
        "gracePeriodSeconds",
        "replicas",
        "revisionHistoryLimit",
        "terminationGracePeriodSeconds",
    ]
)
"""Fields whose nought means something; elsewhere it is how protobuf says nothing."""


def decode(data: bytes) -> tuple[Object, list[str]]:
    """The document in an envelope, and the fields that were dropped. Raises `ApiError`."""
    if not data.startswith(_MAGIC):
        raise bad_request("the body of the request is not protobuf of Kubernetes")
    try:
        envelope = dict(_numbered(data[len(_MAGIC) :]))
        type_meta = dict(_numbered(envelope[1]))
        api_version, kind = type_meta[1].decode(), type_meta[2].decode()
        dropped: list[str] = []
        document = _message(envelope.get(2, b""), kind, "", dropped, _DEPTH)
    except (IndexError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise bad_request(f"the protobuf in the body of the request cannot be decoded: {error}") from error
    return {"apiVersion": api_version, "kind": kind, **document}, dropped


def _numbered(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message: numbers with an integer or bytes each."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        if tag & 7 == 0:
            value, position = _varint(data, position)
            yield tag >> 3, value
        elif tag & 7 == 2:
            length, position = _varint(data, position)
            if position + length > len(data):
                raise ValueError("a field that is longer than its message")
            yield tag >> 3, data[position : position + length]
            position += length
        else:
            raise ValueError(f"wire type {tag & 7}")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value - (1 << 64) if value >> 63 else value, position
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _message(data: bytes, type_name: str, path: str, dropped: list[str], depth: int) -> Object:
    if not depth:
        raise ValueError("messages within messages within messages")
    names = {field.number: name for name, field in fields_of(type_name).items()}
    result: Object = {}
    for number, raw in _numbered(data):
        name = names.get(number)
        field = fields_of(type_name)[name] if name else None
        if name is None or field is None or field.item == "any":
            if raw and name != "status":
                dropped.append(f"{path}{name or f'{type_name}#{number}'}")
            continue
        if field.shape == "map":
            entry = dict(_numbered(raw))
            key = entry.get(_KEY, b"").decode()
            result.setdefault(name, {})[key] = _value(entry.get(_VALUE, b""), field, f"{path}{name}.", dropped, depth)
            continue
        value = _value(raw, field, f"{path}{name}.", dropped, depth)
        if field.shape == "list":
            result.setdefault(name, []).append(value)
        elif value or name in _POINTERS:
            result[name] = value
    return result


def _value(raw: Any, field: Field, path: str, dropped: list[str], depth: int) -> Any:
    match field.item:
        case "string":
            return raw.decode()
        case "integer":
            return int(raw)
        case "boolean":
            return bool(raw)
        case "bytes":
            return base64.b64encode(raw).decode()
        case "time":
            seconds = dict(_numbered(raw)).get(1)
            return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
        case "int-or-string":
            parts = dict(_numbered(raw))
            return parts.get(3, b"").decode() if parts.get(1) else parts.get(2, 0)
        case _:
            return _message(raw, field.item, path, dropped, depth - 1)
