"""HTTP/1.1 message heads (RFC 9112 §2-§6): bytes to `RequestHead` and `ResponseHead`, and back.

Strict by construction: a head is one regular expression applied to every line, and a head in which not every line
matched is refused. There is no lenient mode. Bodies are the business of `tunnel.http1.framing`.
"""

from __future__ import annotations

import enum
import http
import re
from typing import NamedTuple

from tunnel.errors import LocalProtocolError, RemoteProtocolError
from tunnel.fields import list_members, names_of
from tunnel.http1.limits import DEFAULT_LIMITS, Http1Limits
from tunnel.messages import Fields, RequestHead, ResponseHead

CRLF = b"\r\n"

# Possessive quantifiers: no input makes these backtrack.
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([!-~]++) HTTP/([0-9]\.[0-9])\r\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*+)?\r\n")
_FIELD_LINE = re.compile(rb"^(" + _TOKEN + rb"):[ \t]*+([\t\x20-\x7e\x80-\xff]*+)\r\n", re.MULTILINE)
_TOKEN_ONLY = re.compile(_TOKEN)
_TARGET = re.compile(rb"[!-~]++")
_AUTHORITY = re.compile(rb"[-A-Za-z0-9._~%!$&'()*+,;=:\[\]]*+")
_ABSOLUTE_FORM = re.compile(rb"https?://([^/?#]++)([^#]*+)", re.IGNORECASE)
_LENGTH = re.compile(rb"[0-9]{1,18}")
# What no head contains, wherever its lines end: control bytes, LF without CR, CR without LF.
_JUNK = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r[^\n]")
_FIELD_BYTES = bytes([9, *range(0x20, 0x7F), *range(0x80, 0x100)])

UPGRADES = frozenset([b"websocket", b"SPDY/3.1"])
"""The upgrade tokens that Kubernetes clients use, as they are sent on."""

_AT_MOST_ONCE = (b"content-length", b"host", b"transfer-encoding")
_VERSIONS = {b"1.1": (1, 1), b"1.0": (1, 0)}


class BodyKind(enum.Enum):
    """How the end of a message body is found, RFC 9112 §6.3."""

    NONE = enum.auto()
    LENGTH = enum.auto()
    CHUNKED = enum.auto()
    UNTIL_CLOSE = enum.auto()


class ResponseFraming(NamedTuple):
    """What a response head says about its body and its connection."""

    kind: BodyKind
    persistent: bool
    """Whether the connection may serve another request after this response."""


class HeadBuffer:
    """Bytes that arrived and were not yet consumed; finds the end of a head without looking at a byte twice."""

    __slots__ = ("_data", "_scanned")

    def __init__(self, data: bytes = b"") -> None:
        self._data = bytearray(data)
        self._scanned = 0

    def __len__(self) -> int:
        return len(self._data)

    def append(self, data: bytes) -> None:
        """Add bytes behind those that are there."""
        self._data += data

    def take_all(self) -> bytes:
        """Remove and return everything."""
        data = bytes(self._data)
        self._data.clear()
        self._scanned = 0
        return data

    def skip_empty_line(self) -> bool:
        """Remove one CRLF at the very beginning, which RFC 9112 §2.2 asks a server to ignore."""
        if self._data.startswith(CRLF):
            del self._data[:2]
            self._scanned = 0
            return True
        return False

    def take_head(self, limit_bytes: int) -> bytes | None:
        """Remove and return the next head with the CRLF of its last line, without the empty line; None: incomplete.

        Raises `RemoteProtocolError` with status 431 above the limit, and with 400 as soon as there are bytes that no
        head contains.
        """
        data = self._data
        end = data.find(b"\r\n\r\n", max(0, self._scanned - 3))
        if end < 0:
            junk = _JUNK.search(data, max(0, self._scanned - 1))
            if junk is not None:
                raise RemoteProtocolError(f"malformed head: byte 0x{data[junk.start()]:02x} has no place there")
            self._scanned = len(data)
        if max(end, self._scanned - 3) > limit_bytes:
            if data.find(CRLF, 0, limit_bytes) < 0:
                raise RemoteProtocolError(f"request line longer than {limit_bytes} bytes", status=414)
            raise RemoteProtocolError(f"head larger than {limit_bytes} bytes", status=431)
        if end < 0:
            return None
        block = bytes(data[: end + 2])
        del data[: end + 4]
        self._scanned = 0
        return block


def parse_request_head(
    block: bytes, *, limits: Http1Limits = DEFAULT_LIMITS, upgrades: frozenset[bytes] = UPGRADES
) -> RequestHead:
    """Parse a request head, each line of it with its CRLF, without the empty line at the end.

    The body is chunked where the head says neither ``ended`` nor a ``content_length``. ``upgrades`` are the upgrade
    tokens to understand, compared without case; a request for any other one is an ordinary request.

    Raises `RemoteProtocolError` with the status to answer: 400, 405 (CONNECT), 414, 431, 505.
    """
    match = _REQUEST_LINE.match(block)
    if match is None:
        raise RemoteProtocolError("malformed request line")
    method, target, version_text = match.groups()
    if len(target) > limits.target_bytes:
        raise RemoteProtocolError(f"request target longer than {limits.target_bytes} bytes", status=414)
    version = _VERSIONS.get(version_text)
    if version is None:
        raise RemoteProtocolError("only HTTP/1.0 and HTTP/1.1 are spoken here", status=505)
    fields, by_name = _read_fields(block, match.end(), limits.request_head_lines, status=431)
    host = by_name.get(b"host")
    if host is None:
        if version == (1, 1):
            raise RemoteProtocolError("a request without a Host field")
        authority = b""
    elif _AUTHORITY.fullmatch(host):
        authority = host
        fields.remove((b"host", host))
    else:
        raise RemoteProtocolError("malformed Host field")
    if target[0] != 0x2F or method == b"CONNECT":
        target, authority = _other_target_form(method, target, host)
    length = _content_length(by_name)
    chunked = _is_chunked(by_name, version)
    head = RequestHead(method, target, authority, fields, None, length, not (chunked or length), version)
    if chunked:
        fields[:] = [line for line in fields if line[0] != b"transfer-encoding"]
    if b"upgrade" in by_name:
        _note_upgrade(head, upgrades)
    return head


def _read_fields(block: bytes, start: int, limit_lines: int, *, status: int) -> tuple[Fields, dict[bytes, bytes]]:
    """All field lines from ``start`` on, and their values by name (the last one where a name is repeated).

    What frames and routes a message comes once at most: the rest of this module may rely on it.
    """
    count = block.count(b"\n", start)
    if count > limit_lines:
        raise RemoteProtocolError(f"more than {limit_lines} field lines", status=status)
    lines = _FIELD_LINE.findall(block, start)
    if len(lines) != count or not block.endswith(CRLF):
        # Shows no line: it may be a credential.
        is_folded = b"\n " in block or b"\n\t" in block
        raise RemoteProtocolError(f"malformed head: {'folded field line' if is_folded else 'not a field line'}")
    fields = [(name.lower(), value.rstrip()) for name, value in lines]  # SP and HTAB: no other white space got this far
    by_name = dict(fields)
    if len(by_name) != len(fields):
        for single in _AT_MOST_ONCE:
            if single in by_name and sum(name == single for name, _ in fields) > 1:
                raise RemoteProtocolError(f"more than one {single.title().decode()} field")
    return fields, by_name


def _other_target_form(method: bytes, target: bytes, host: bytes | None) -> tuple[bytes, bytes]:
    """Target and authority of a request that is not in origin-form (RFC 9112 §3.2)."""
    if method == b"CONNECT":
        raise RemoteProtocolError("CONNECT is not offered here", status=405)
    if target == b"*":
        if method != b"OPTIONS":
            raise RemoteProtocolError("the target * is for OPTIONS only")
        return target, host or b""
    match = _ABSOLUTE_FORM.fullmatch(target)
    if match is None:
        raise RemoteProtocolError("malformed request target")
    authority, rest = match.groups()
    if not _AUTHORITY.fullmatch(authority):
        raise RemoteProtocolError("malformed authority in the request target")
    if host is not None and authority.lower() != host.lower():
        raise RemoteProtocolError("the request target and the Host field name different authorities")
    if not rest:
        return b"*" if method == b"OPTIONS" else b"/", authority
    return rest if rest.startswith(b"/") else b"/" + rest, authority


def _content_length(by_name: dict[bytes, bytes]) -> int | None:
    value = by_name.get(b"content-length")
    if value is None:
        return None
    if not _LENGTH.fullmatch(value):
        raise RemoteProtocolError("malformed Content-Length")
    return int(value)


def _is_chunked(by_name: dict[bytes, bytes], version: tuple[int, int]) -> bool:
    coding = by_name.get(b"transfer-encoding")
    if coding is None:
        return False
    if coding.lower() != b"chunked":
        raise RemoteProtocolError("the only Transfer-Encoding spoken here is chunked")
    if b"content-length" in by_name:
        raise RemoteProtocolError("both Content-Length and Transfer-Encoding")
    if version != (1, 1):
        raise RemoteProtocolError("Transfer-Encoding in HTTP/1.0")
    return True


def _note_upgrade(head: RequestHead, upgrades: frozenset[bytes]) -> None:
    """Set ``head.protocol`` where one upgrade is asked for, properly, that is understood here."""
    wanted = [value.lower() for name, value in head.fields if name == b"upgrade"]
    if len(wanted) != 1 or head.http_version != (1, 1):
        return
    token = next((known for known in upgrades if known.lower() == wanted[0]), None)
    if token is None or b"upgrade" not in (member.lower() for member in list_members(head.fields, b"connection")):
        return
    if not head.ended:
        raise RemoteProtocolError("a request for an upgrade has no body")
    head.protocol = token


def persistent(fields: Fields, http_version: tuple[int, int]) -> bool:
    """Whether the sender of this head wants the connection to live on (RFC 9112 §9.3). Names are in lower case."""
    if b"connection" not in names_of(fields):
        return http_version == (1, 1)
    members = [member.lower() for member in list_members(fields, b"connection")]
    if http_version == (1, 1):
        return b"close" not in members
    return b"keep-alive" in members and b"close" not in members


def parse_response_head(
    block: bytes, request_method: bytes, *, limits: Http1Limits = DEFAULT_LIMITS
) -> tuple[ResponseHead, ResponseFraming]:
    """Parse a response head, each line of it with its CRLF, without the empty line at the end.

    The request's method matters: the response to HEAD has no body whatever its head says (RFC 9112 §6.3). A 101 is
    said to have none either; what follows it is no HTTP.

    Raises `RemoteProtocolError` with status 502.
    """
    try:
        return _parse_response_head(block, request_method, limits)
    except RemoteProtocolError as error:
        error.status = 502
        raise


def _parse_response_head(
    block: bytes, request_method: bytes, limits: Http1Limits
) -> tuple[ResponseHead, ResponseFraming]:
    match = _STATUS_LINE.match(block)
    if match is None:
        raise RemoteProtocolError("malformed status line")
    version = (1, 1) if match[1] == b"1" else (1, 0)
    status = int(match[2])
    fields, by_name = _read_fields(block, match.end(), limits.response_head_lines, status=502)
    length = _content_length(by_name)
    chunked = _is_chunked(by_name, version)
    persists = version == (1, 1) and (b"connection" not in by_name or persistent(fields, version))
    if chunked:
        fields = [line for line in fields if line[0] != b"transfer-encoding"]
    if status < 200 or status == 204:
        if length is not None:
            fields = [line for line in fields if line[0] != b"content-length"]
        return ResponseHead(status, fields, None, True), ResponseFraming(BodyKind.NONE, persists)
    if request_method == b"HEAD" or status == 304:
        return ResponseHead(status, fields, length, True), ResponseFraming(BodyKind.NONE, persists)
    if chunked:
        return ResponseHead(status, fields), ResponseFraming(BodyKind.CHUNKED, persists)
    if length is None:
        return ResponseHead(status, fields), ResponseFraming(BodyKind.UNTIL_CLOSE, False)
    kind = BodyKind.LENGTH if length else BodyKind.NONE
    return ResponseHead(status, fields, length, not length), ResponseFraming(kind, persists)


def parse_fields(block: bytes, *, limit_lines: int) -> Fields:
    """Parse field lines, each with its CRLF: a trailer section. Raises `RemoteProtocolError`."""
    return _read_fields(block, 0, limit_lines, status=400)[0]


_ODD_NAMES = {
    b"etag": b"ETag",
    b"www-authenticate": b"WWW-Authenticate",
    b"te": b"TE",
    b"traceparent": b"Traceparent",
    b"sec-websocket-accept": b"Sec-WebSocket-Accept",
    b"sec-websocket-extensions": b"Sec-WebSocket-Extensions",
    b"sec-websocket-key": b"Sec-WebSocket-Key",
    b"sec-websocket-protocol": b"Sec-WebSocket-Protocol",
    b"sec-websocket-version": b"Sec-WebSocket-Version",
}
_TITLE_CASE_NAMES = (
    b"accept accept-encoding accept-language accept-ranges age allow audit-id authorization cache-control "
    b"content-disposition content-encoding content-language content-location content-range content-type cookie date "
    b"expect expires forwarded if-match if-modified-since if-none-match if-range if-unmodified-since impersonate-group "
    b"impersonate-uid impersonate-user kubectl-command kubectl-session last-modified link location "
    b"moorline-request-id origin pragma range referer retry-after server set-cookie strict-transport-security trailer "
    b"user-agent vary via warning x-content-type-options x-forwarded-for x-forwarded-host x-forwarded-proto x-forwarded-uri "
    b"x-kubernetes-pf-flowschema-uid x-kubernetes-pf-prioritylevel-uid x-remote-user x-request-id "
    b"x-stream-protocol-version".split()
)
_WRITTEN_BY_FRAMING = (
    b"connection content-length host keep-alive proxy-connection transfer-encoding upgrade http2-settings".split()
)


# What is put before the value; empty for the fields that are made anew on each hop.
class _LineStarts(dict[bytes, bytes]):
    def __missing__(self, name: bytes) -> bytes:
        if not _TOKEN_ONLY.fullmatch(name):
            raise LocalProtocolError(f"a header name that is no token was to be sent: {name[:64]!r}")
        start = self.get(name.lower())
        return name + b": " if start is None else start


_LINE_STARTS = _LineStarts(
    {
        **{name: name.title() + b": " for name in _TITLE_CASE_NAMES},
        **{name: written + b": " for name, written in _ODD_NAMES.items()},
        **dict.fromkeys(_WRITTEN_BY_FRAMING, b""),
    }
)
_STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in http.HTTPStatus}


def encode_fields(fields: Fields | tuple[()]) -> bytes:
    """Field lines, each with its CRLF, in order; well-known names in their usual case, the others as they are.

    Leaves out what each hop makes anew: connection, content-length, host, transfer-encoding, upgrade and the like.
    Raises `LocalProtocolError` for a name that is no token or a value with a control byte.
    """
    starts = _LINE_STARTS
    lines = [start + value for name, value in fields if (start := starts[name])]
    if not lines:
        return b""
    lines.append(b"")
    block = CRLF.join(lines)
    if block.translate(None, _FIELD_BYTES) != CRLF * (len(lines) - 1):
        raise LocalProtocolError("a header value with a control byte was to be sent")
    return block


def encode_request_head(head: RequestHead, *, authority: bytes, framing: bytes = b"") -> bytes:
    """The head with its empty line. ``framing`` is the line that frames the body, with its CRLF.

    ``Connection`` and ``Upgrade`` are written where ``head.protocol`` asks for an upgrade.
    Raises `LocalProtocolError` where a part of the head would not survive the wire as it is.
    """
    if not (_TOKEN_ONLY.fullmatch(head.method) and _TARGET.fullmatch(head.target) and _AUTHORITY.fullmatch(authority)):
        raise LocalProtocolError("a method, target or authority that cannot be written in HTTP/1.1 was to be sent")
    connection = b""
    if head.protocol is not None:
        if not _TARGET.fullmatch(head.protocol):
            raise LocalProtocolError("an upgrade token that cannot be written in HTTP/1.1 was to be sent")
        connection = b"Connection: Upgrade\r\nUpgrade: %b\r\n" % head.protocol
    elif (b"te", b"trailers") in head.fields:
        connection = b"Connection: TE\r\n"  # RFC 9110 §10.1.4 demands it beside TE
    return b"%b %b HTTP/1.1\r\nHost: %b\r\n%b%b%b\r\n" % (
        head.method,
        head.target,
        authority,
        encode_fields(head.fields),
        connection,
        framing,
    )


def encode_response_head(status: int, fields: Fields, *, framing: bytes = b"") -> bytes:
    """The head with its empty line. ``framing`` holds the lines about body and connection, each with its CRLF.

    Raises `LocalProtocolError` as `encode_fields` does, and for a status that has not three digits.
    """
    line = _STATUS_LINES.get(status)
    if line is None:
        if not 100 <= status <= 999:
            raise LocalProtocolError(f"{status} is no HTTP status")
        line = b"HTTP/1.1 %d \r\n" % status
    return line + encode_fields(fields) + framing + CRLF
