"""Heads of messages as HTTP/2 field lists and back (RFC 9113 §8.3, RFC 8441). Pure.

An upgrade travels as an extended CONNECT: ``:protocol`` is the upgrade token and ``moorline-method`` the method that
the caller used. A 101 does not exist in HTTP/2: it travels as ``:status 200`` and is 101 again at the other end.
"""

from __future__ import annotations

from tunnel.errors import RemoteProtocolError
from tunnel.fields import names_of
from tunnel.messages import Field, Fields, RequestHead, ResponseHead

METHOD_FIELD = b"moorline-method"

_SCHEME: Field = (b":scheme", b"https")
_CONNECT: Field = (b":method", b"CONNECT")
_METHODS: dict[bytes, Field] = {
    method: (b":method", method) for method in (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS")
}
_STATUSES: dict[int, Field] = {status: (b":status", b"%d" % status) for status in range(100, 600)}
_LENGTH_OR_HOST = frozenset({b"content-length", b"host"})
_NOT_IN_UPGRADES = frozenset({b"content-length", b"transfer-encoding", b"connection", b"upgrade"})


def request_fields(head: RequestHead) -> Fields:
    """The field list of a request; its ``fields`` must be free of connection-specific ones."""
    if head.protocol is not None:
        fields = [
            _CONNECT,
            (b":protocol", head.protocol),
            _SCHEME,
            (b":authority", head.authority),
            (b":path", head.target),
            (METHOD_FIELD, head.method),
        ]
        fields += [field for field in head.fields if field[0] not in _NOT_IN_UPGRADES]
        return fields
    return [
        _METHODS.get(head.method) or (b":method", head.method),
        _SCHEME,
        (b":authority", head.authority),
        (b":path", head.target),
        *head.fields,
    ]


def request_head(fields: Fields, *, ended: bool) -> RequestHead:
    """The head that a validated field list stands for. Raises `RemoteProtocolError` for a malformed upgrade."""
    method = target = authority = b""
    protocol: bytes | None = None
    regular = 0
    for name, value in fields:
        if name[0] != 0x3A:  # ":"; pseudo-fields come first (RFC 9113 §8.3)
            break
        regular += 1
        if name == b":method":
            method = value
        elif name == b":path":
            target = value
        elif name == b":authority":
            authority = value
        elif name == b":protocol":
            protocol = value
    rest = fields[regular:]
    content_length: int | None = None
    if not _LENGTH_OR_HOST.isdisjoint(names_of(rest)):
        for name, value in rest:
            if name == b"content-length":
                content_length = int(value)
            elif name == b"host":
                authority = authority or value
        rest = [field for field in rest if field[0] != b"host"]
    if protocol is not None:
        method, rest = _original_method(rest)
        return RequestHead(method, target, authority, rest, protocol, None, True, (2, 0))
    return RequestHead(method, target, authority, rest, None, content_length, ended, (2, 0))


def _original_method(fields: Fields) -> tuple[bytes, Fields]:
    methods = [value for name, value in fields if name == METHOD_FIELD]
    if len(methods) != 1:
        raise RemoteProtocolError(f"{len(methods)} fields {METHOD_FIELD.decode()} in an upgrade, exactly one required")
    return methods[0], [field for field in fields if field[0] != METHOD_FIELD]


def response_fields(head: ResponseHead) -> Fields:
    """The field list of a response; 101 becomes 200."""
    status = 200 if head.status == 101 else head.status
    return [_STATUSES.get(status) or (b":status", b"%d" % status), *head.fields]


def response_head(fields: Fields, *, ended: bool) -> ResponseHead:
    """The head that a validated field list stands for."""
    status = int(fields[0][1])
    content_length: int | None = None
    for name, value in fields:
        if name == b"content-length":
            content_length = int(value)
            break
    return ResponseHead(status, fields[1:], content_length, ended)
