"""What makes a head malformed (RFC 9113 §8.2, §8.3; RFC 8441 §4; RFC 9110 §5).

In two parts. `line_fault` looks at one field line by itself, so that its verdict can be remembered with the line. The
functions for heads look at how the lines stand together, and return the declared Content-Length. A text that says what
is wrong never quotes a value.
"""

from __future__ import annotations

import operator
import re
from typing import Final

from tunnel.h2.stream import NO_LENGTH
from tunnel.messages import Fields

CONNECTION_SPECIFIC: Final = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
)
"""Fields of HTTP/1.1's connections (RFC 9113 §8.2.2)."""

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_is_name = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+").fullmatch
_is_value = re.compile(rb"(?:[^\x00\r\n \t](?:[^\x00\r\n]*[^\x00\r\n \t])?)?").fullmatch
_is_content_length = re.compile(rb"[0-9]{1,18}").fullmatch

_PSEUDO_VALUES: Final = {
    b":method": re.compile(_TOKEN).fullmatch,
    b":scheme": re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*").fullmatch,
    # RFC 3986 §3.2 without userinfo, which RFC 9113 §8.3.1 forbids.
    b":authority": re.compile(rb"[A-Za-z0-9\-._~%!$&'()*+,;=:\[\]]*").fullmatch,
    b":path": re.compile(rb"/[!-~\x80-\xff]*|\*").fullmatch,
    # An upgrade token may carry a version, "SPDY/3.1" (RFC 9110 §7.8).
    b":protocol": re.compile(_TOKEN + rb"(?:/" + _TOKEN + rb")?").fullmatch,
    b":status": re.compile(rb"[1-9][0-9]{2}").fullmatch,
}

_NOTABLE: Final = frozenset(_PSEUDO_VALUES) | {b"content-length", b"host"}
"""The fields behind the pseudo-fields at which the checks of a head have to stop."""

_REQUEST_PSEUDO: Final = frozenset((b":method", b":scheme", b":authority", b":path", b":protocol"))


_name_of = operator.itemgetter(0)


class MalformedHead(Exception):
    """The head breaks a rule; the stream is reset with PROTOCOL_ERROR (RFC 9113 §8.1.1)."""


def is_field_name(name: bytes) -> bool:
    """Whether this is a regular field's name in lower case, or a known pseudo-field's."""
    return _is_name(name) is not None or name in _PSEUDO_VALUES


def line_fault(name: bytes, value: bytes) -> str | None:
    """Why a field line is malformed wherever it stands; None where it is not."""
    if name[:1] == b":":
        is_valid = _PSEUDO_VALUES.get(name)
        if is_valid is None:
            return "an unknown pseudo-field"
        return None if is_valid(value) else f"an invalid value of {name.decode()}"
    if _is_name(name) is None:
        return "a field name that is no lower-case token"
    if _is_value(value) is None:
        return f"an invalid value of the field {name.decode()}"
    if name in CONNECTION_SPECIFIC:
        return f"the connection-specific field {name.decode()}"
    if name == b"te" and value.lower() != b"trailers":
        return "te other than trailers"
    return None


def check_request(fields: Fields, *, extended_connect: bool) -> int:
    """Check a request head whose lines are valid; the declared Content-Length or `NO_LENGTH`.

    ``extended_connect``: we have announced ENABLE_CONNECT_PROTOCOL. Raises `MalformedHead`.
    """
    pseudo: dict[bytes, bytes] = {}
    count = 0
    for name, value in fields:
        if name[0] != 0x3A:
            break
        pseudo[name] = value
        count += 1
    if len(pseudo) != count:
        raise MalformedHead("a repeated pseudo-field")
    if not pseudo.keys() <= _REQUEST_PSEUDO:
        raise MalformedHead(":status in a request")
    _check_method(pseudo, extended_connect)
    length = NO_LENGTH
    if _NOTABLE.isdisjoint(map(_name_of, fields[count:])):
        return length
    host = pseudo.get(b":authority") or None
    for name, value in fields[count:] if count else fields:
        if name not in _NOTABLE:
            continue
        if name == b"host":
            if host is not None and host != value and host.lower() != value.lower():
                raise MalformedHead("host that differs from :authority or from another host")
            host = value
        else:
            length = _content_length(name, value, length)
    return length


def _check_method(pseudo: dict[bytes, bytes], extended_connect: bool) -> None:
    method = pseudo.get(b":method")
    path = pseudo.get(b":path")
    if method is None:
        raise MalformedHead("no :method")
    if method == b"CONNECT" and b":protocol" not in pseudo:
        # RFC 9110 §9.3.6 makes a tunnel to an authority: a forward proxy's business, and nobody here is one.
        raise MalformedHead("CONNECT without :protocol")
    if path is None or b":scheme" not in pseudo:
        raise MalformedHead("no :path or no :scheme")
    if b":protocol" in pseudo:
        if method != b"CONNECT" or not extended_connect:
            raise MalformedHead(":protocol where extended CONNECT is not in use")
        if not pseudo.get(b":authority"):
            raise MalformedHead("extended CONNECT without :authority")
    if path == b"*" and method != b"OPTIONS":
        raise MalformedHead(":path * with a method other than OPTIONS")


def check_response(fields: Fields) -> tuple[int, int]:
    """Check a response head whose lines are valid; its status, and the Content-Length or `NO_LENGTH`.

    Raises `MalformedHead`.
    """
    if not fields or fields[0][0] != b":status":
        raise MalformedHead("no :status in front")
    status = int(fields[0][1])
    if status == 101:
        # RFC 9113 §8.6: HTTP/2 has no 101.
        raise MalformedHead("status 101")
    length = NO_LENGTH
    if _NOTABLE.isdisjoint(map(_name_of, fields[1:])):
        return status, length
    for name, value in fields[1:]:
        if name in _NOTABLE and name != b"host":
            length = _content_length(name, value, length)
    return status, length


def _content_length(name: bytes, value: bytes, length: int) -> int:
    if name != b"content-length":
        raise MalformedHead(f"{name.decode()} out of its place")
    if length != NO_LENGTH or not _is_content_length(value):
        raise MalformedHead("content-length repeated or no number")
    return int(value)


def check_trailers(fields: Fields) -> None:
    """Check a trailer section whose lines are valid. Raises `MalformedHead`."""
    for name, _ in fields:
        if name[0] == 0x3A:
            raise MalformedHead("a pseudo-field among the trailers")
