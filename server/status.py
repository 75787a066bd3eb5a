"""Failures as ``v1 Status`` objects, in JSON or in the protobuf encoding of Kubernetes.

JSON unless the caller accepts protobuf and nothing else. The protobuf form is written by hand: four bytes of magic, a
``runtime.Unknown`` and in it a ``meta/v1 Status``, the only message that kas ever makes (apimachinery,
``runtime/serializer/protobuf`` and ``meta/v1/generated.proto``). Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from server.errors import ProxyError, reason_of
from tunnel.messages import Fields, ResponseHead

REQUEST_ID_FIELD = b"moorline-request-id"
FAILED_HOP_FIELD = b"moorline-failed-hop"

_JSON = b"application/json"
_PROTOBUF = b"application/vnd.kubernetes.protobuf"
_PROTOBUF_MAGIC = b"k8s\x00"
_COMMON: Fields = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]


def render(
    error: ProxyError, *, request_id: str, accept: Iterable[bytes] = (), method: bytes = b"GET"
) -> tuple[ResponseHead, bytes]:
    """The head and the body of the answer. ``accept`` holds the values of the caller's Accept lines.

    An answer to HEAD has the length of the body that GET would have got, and no body.
    """
    message = f"{error.message} [failed hop: {error.hop}, request id: {request_id}]"
    causes = [("FailedHop", error.hop), ("RequestId", request_id)]
    name, kind = (error.agent_id, "agent") if error.agent_id else ("", "")
    if accepts_only_protobuf(accept):
        media_type = _PROTOBUF
        body = encode_protobuf_status(error.status, error.reason, message, name=name, kind=kind, causes=causes)
    else:
        media_type = _JSON
        body = encode_json_status(error.status, error.reason, message, name=name, kind=kind, causes=causes)
    fields: Fields = [
        (b"content-type", media_type),
        (b"content-length", b"%d" % len(body)),
        (REQUEST_ID_FIELD, request_id.encode()),
        (FAILED_HOP_FIELD, error.hop.encode()),
        *_COMMON,
        *error.fields,
    ]
    has_no_body = method == b"HEAD"
    head = ResponseHead(error.status, fields, content_length=len(body), ended=has_no_body)
    return head, b"" if has_no_body else body


def render_plain_refusal(status: int, message: str) -> tuple[Fields, bytes]:
    """Fields and body for a message that could not be parsed, so that there is neither a request id nor an Accept."""
    body = encode_json_status(status, reason_of(status), message)
    fields: Fields = [
        (b"content-type", _JSON),
        (b"content-length", b"%d" % len(body)),
        (FAILED_HOP_FIELD, b"kas"),
        *_COMMON,
    ]
    return fields, body


def encode_json_status(
    code: int, reason: str, message: str, *, name: str = "", kind: str = "", causes: Iterable[tuple[str, str]] = ()
) -> bytes:
    """A ``v1 Status`` in JSON."""
    status: dict[str, object] = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
    }
    details: dict[str, object] = {"name": name, "kind": kind} if name else {}
    if listed := [{"reason": cause, "message": text} for cause, text in causes]:
        details["causes"] = listed
    if details:
        status["details"] = details
    status["code"] = code
    return json.dumps(status, separators=(",", ":")).encode() + b"\n"


def encode_protobuf_status(
    code: int, reason: str, message: str, *, name: str = "", kind: str = "", causes: Iterable[tuple[str, str]] = ()
) -> bytes:
    """A ``v1 Status`` in the protobuf envelope of Kubernetes."""
    list_meta = _text(1, "") + _text(2, "") + _text(3, "")
    status = _message(1, list_meta) + _text(2, "Failure") + _text(3, message) + _text(4, reason)
    encoded_causes = b"".join(_message(4, _text(1, cause) + _text(2, text) + _text(3, "")) for cause, text in causes)
    if name or encoded_causes:
        details = _text(1, name) + _text(2, "") + _text(3, kind) + encoded_causes + _number(5, 0) + _text(6, "")
        status += _message(5, details)
    status += _number(6, code)
    type_meta = _text(1, "v1") + _text(2, "Status")
    unknown = _message(1, type_meta) + _message(2, status) + _text(3, "") + _text(4, "")
    return _PROTOBUF_MAGIC + unknown


def accepts_only_protobuf(accept: Iterable[bytes]) -> bool:
    """Whether Accept names the protobuf encoding and no range into which JSON falls."""
    takes_protobuf = False
    for value in accept:
        for member in value.split(b","):
            media_range, _, parameters = member.partition(b";")
            media_range = media_range.strip().lower()
            if not media_range or _has_zero_quality(parameters):
                continue
            if media_range != _PROTOBUF:
                return False
            takes_protobuf = True
    return takes_protobuf


def _has_zero_quality(parameters: bytes) -> bool:
    for parameter in parameters.split(b";"):
        name, _, value = parameter.strip().partition(b"=")
        if name.strip().lower() == b"q":
            return value.strip().strip(b"0.") == b""
    return False


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _number(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number)


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode())
