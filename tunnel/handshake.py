"""The handshake of a tunnel: one HTTP/1.1 request and its answer, after which HTTP/2 begins. Pure.

The agent asks with `Hello`, kas answers with `Welcome` or refuses. Both come in two forms: an upgrade to
``moorline/1``, and a WebSocket with the subprotocol ``moorline.v1`` for where only WebSockets pass. What a refusal
means to whoever runs the agent is told by `tunnel.refusals`; who may connect is the caller's business.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import enum
import hashlib
import json
import math
import re
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from tunnel.errors import HandshakeError, LocalProtocolError, RemoteProtocolError
from tunnel.fields import list_members, normalised
from tunnel.http1.heads import encode_request_head, encode_response_head, parse_request_head
from tunnel.http1.limits import Http1Limits
from tunnel.messages import Fields, RequestHead, ResponseHead, field_value, field_values

VERSIONS: Final = (1,)
"""The versions of the tunnel protocol that are spoken here."""

TUNNEL_PATH: Final = "/agent/v1/tunnel"
UPGRADE_TOKEN: Final = b"moorline/1"
SUBPROTOCOL: Final = b"moorline.v1"

HEAD_BYTES: Final = 16_384
"""A head of the handshake may be this large, either way."""

HANDSHAKE_LIMITS: Final = Http1Limits(
    request_head_bytes=HEAD_BYTES,
    request_head_lines=100,
    target_bytes=2_048,
    response_head_bytes=HEAD_BYTES,
    response_head_lines=100,
)

_WEBSOCKET: Final = b"websocket"
_WEBSOCKET_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
_LIST_MEMBERS: Final = 64
_TOKEN68: Final = re.compile(rb"[A-Za-z0-9._~+/-]{1,512}=*")
_WORD: Final = re.compile(r"[!-+\--~]{1,253}")  # visible ASCII without the comma
_NUMBER: Final = re.compile(rb"[1-9][0-9]{0,4}")
_OURS: Final = b"moorline-"
_SET_BY_US: Final = frozenset(
    b"authorization connection content-length host keep-alive te transfer-encoding upgrade sec-websocket-key "
    b"sec-websocket-protocol sec-websocket-version sec-websocket-extensions".split()
)


class Form(enum.Enum):
    """What the request asks to be upgraded to."""

    UPGRADE = enum.auto()
    """``Upgrade: moorline/1``: the bytes behind the 101 are HTTP/2."""
    WEBSOCKET = enum.auto()
    """HTTP/2 travels in binary messages."""


@dataclasses.dataclass(slots=True, frozen=True, kw_only=True)
class Hello:
    """What an agent says of itself."""

    token: str = dataclasses.field(repr=False)
    agent_version: str
    replica: str
    """The name of this running copy (in a cluster, the name of its Pod)."""
    process: str
    """Random for each start."""
    versions: tuple[int, ...] = VERSIONS
    cluster: str = ""
    """The UID of the namespace ``kube-system``; empty where the agent may not read it."""
    origins: tuple[str, ...] = ("kubernetes", "agentk")
    holds: tuple[str, ...] = ()
    """The ids of the kas instances to which this process has tunnels."""
    replaces: str | None = None
    """The id of the tunnel that this one replaces."""


@dataclasses.dataclass(slots=True, frozen=True, kw_only=True)
class Welcome:
    """What kas answers to an agent that it takes."""

    kas_id: str
    tunnel_id: str
    agent_id: str
    version: int = VERSIONS[-1]


class HelloRequest(NamedTuple):
    """A `Hello` as it arrived."""

    hello: Hello
    form: Form
    websocket_key: bytes
    """``Sec-WebSocket-Key``; empty with `Form.UPGRADE`."""


def common_version(theirs: Collection[int]) -> int | None:
    """The newest version that both sides speak."""
    return max((version for version in theirs if version in VERSIONS), default=None)


def encode_hello(
    hello: Hello,
    *,
    form: Form,
    authority: str,
    path_prefix: str = "",
    websocket_key: bytes = b"",
    extra_headers: Sequence[tuple[str, str]] = (),
) -> bytes:
    """The request of the dialer. ``websocket_key`` is 16 random bytes in base64.

    Raises `LocalProtocolError` for an extra header that this request sets itself or that HTTP cannot carry.
    """
    fields: Fields = [(b"authorization", b"Bearer " + hello.token.encode("ascii", "replace"))]
    if not any(name.lower() == "user-agent" for name, _ in extra_headers):
        fields.append((b"user-agent", b"agentk/" + hello.agent_version.encode("ascii", "replace")))
    fields += [
        (name, value.encode("ascii", "replace"))
        for name, value in (
            (b"moorline-versions", ", ".join(map(str, hello.versions))),
            (b"moorline-agent-version", hello.agent_version),
            (b"moorline-replica", hello.replica),
            (b"moorline-process", hello.process),
            (b"moorline-cluster", hello.cluster),
            (b"moorline-origins", ", ".join(hello.origins)),
            (b"moorline-holds", ", ".join(hello.holds)),
            (b"moorline-replaces", hello.replaces or ""),
        )
        if value
    ]
    if form is Form.WEBSOCKET:
        fields += [
            (b"sec-websocket-version", b"13"),
            (b"sec-websocket-key", websocket_key),
            (b"sec-websocket-protocol", SUBPROTOCOL),
        ]
    for name, value in extra_headers:
        field_name = name.encode("ascii", "replace").lower()
        if field_name in _SET_BY_US or normalised(field_name).startswith(_OURS):
            raise LocalProtocolError(f"the extra header {name} is one that the handshake sets itself")
        fields.append((field_name, value.strip().encode("latin-1", "replace")))
    head = RequestHead(
        method=b"GET",
        target=tunnel_target(path_prefix),
        authority=authority.encode("ascii"),
        fields=fields,
        protocol=UPGRADE_TOKEN if form is Form.UPGRADE else _WEBSOCKET,
        ended=True,
    )
    return encode_request_head(head, authority=head.authority)


def tunnel_target(path_prefix: str) -> bytes:
    """The request target below a prefix, which may name the whole path already."""
    prefix = path_prefix.rstrip("/")
    path = prefix if prefix.endswith(TUNNEL_PATH) else prefix + TUNNEL_PATH
    return path.encode("ascii")


def decode_hello(block: bytes) -> HelloRequest:
    """Parse and check the head of a request (each line with its CRLF, without the empty line).

    Raises `HandshakeError` with the status to answer: 400, 401, 404, 405, 414, 426, 431, 505.
    """
    try:
        head = parse_request_head(block, limits=HANDSHAKE_LIMITS, upgrades=frozenset([UPGRADE_TOKEN, _WEBSOCKET]))
    except RemoteProtocolError as error:
        if error.status == 405:
            raise _wrong_method() from error
        raise HandshakeError(str(error), status=error.status, reason="bad-request") from error
    path = head.target.partition(b"?")[0]
    if not path.rstrip(b"/").endswith(TUNNEL_PATH.encode()):
        raise HandshakeError(f"agents connect to {TUNNEL_PATH} here", status=404, reason="not-found")
    if head.method != b"GET":
        raise _wrong_method()
    websocket_key = _check_upgrade(head)
    hello = _read_hello(head.fields)
    if common_version(hello.versions) is None:
        raise HandshakeError(
            f"this kas speaks version {_listed(VERSIONS)} of the tunnel protocol, the agent {_listed(hello.versions)}",
            status=426,
            reason="no-common-version",
        )
    form = Form.UPGRADE if head.protocol == UPGRADE_TOKEN else Form.WEBSOCKET
    return HelloRequest(hello, form, websocket_key)


def encode_welcome(welcome: Welcome, request: HelloRequest, *, date: str = "") -> bytes:
    """The 101 of the acceptor. ``date`` is the value of ``Date``, by which the other side can check its clock."""
    fields: Fields = [
        (b"moorline-version", b"%d" % welcome.version),
        (b"moorline-kas", welcome.kas_id.encode("ascii")),
        (b"moorline-tunnel", welcome.tunnel_id.encode("ascii")),
        (b"moorline-agent", welcome.agent_id.encode("ascii")),
    ]
    token = UPGRADE_TOKEN
    if request.form is Form.WEBSOCKET:
        token = _WEBSOCKET
        fields.append((b"sec-websocket-accept", websocket_accept(request.websocket_key)))
        fields.append((b"sec-websocket-protocol", SUBPROTOCOL))
    if date:
        fields.append((b"date", date.encode("ascii")))
    return encode_response_head(101, fields, framing=b"Connection: Upgrade\r\nUpgrade: %b\r\n" % token)


def encode_refusal(error: HandshakeError, *, date: str = "") -> bytes:
    """The whole answer that refuses: a status, ``{"error", "message"}``, and which versions are spoken here."""
    body = json.dumps({"error": error.reason, "message": str(error)}).encode() + b"\n"
    fields: Fields = [
        (b"content-type", b"application/json"),
        (b"moorline-versions", _listed(VERSIONS).encode()),
    ]
    connection = b"close"
    if date:
        fields.append((b"date", date.encode("ascii")))
    if error.retry_after is not None:
        fields.append((b"retry-after", b"%d" % math.ceil(error.retry_after)))
    if error.status == 401:
        fields.append((b"www-authenticate", b"Bearer"))
    elif error.status == 405:
        fields.append((b"allow", b"GET"))
    elif error.status == 426:
        connection = b"close, Upgrade\r\nUpgrade: " + UPGRADE_TOKEN
        fields.append((b"sec-websocket-version", b"13"))
    framing = b"Content-Length: %d\r\nConnection: %b\r\n" % (len(body), connection)
    return encode_response_head(error.status or 500, fields, framing=framing) + body


def decode_welcome(
    head: ResponseHead, *, hello: Hello, form: Form, address: str, websocket_key: bytes = b""
) -> Welcome:
    """Check a 101. Raises `HandshakeError` where whoever answered at ``address`` is no kas."""
    try:
        return _read_welcome(head, hello, form, websocket_key)
    except HandshakeError as error:
        raise HandshakeError(f"{address}: {error}", status=error.status, reason=error.reason) from None


def _read_welcome(head: ResponseHead, hello: Hello, form: Form, websocket_key: bytes) -> Welcome:
    token = field_value(head.fields, b"upgrade") or b""
    wanted = UPGRADE_TOKEN if form is Form.UPGRADE else _WEBSOCKET
    if token.lower() != wanted:
        raise _no_kas(f"it upgraded to {token.decode('latin-1')!r} and not to {wanted.decode()!r}")
    if form is Form.WEBSOCKET:
        if field_value(head.fields, b"sec-websocket-accept") != websocket_accept(websocket_key):
            raise _no_kas("its Sec-WebSocket-Accept does not belong to our key")
        if field_value(head.fields, b"sec-websocket-protocol") != SUBPROTOCOL:
            raise _no_kas(f"it did not choose the WebSocket subprotocol {SUBPROTOCOL.decode()!r}")
        if field_value(head.fields, b"sec-websocket-extensions"):
            raise _no_kas("it chose a WebSocket extension that was not offered")
    version = field_value(head.fields, b"moorline-version") or b""
    if not _NUMBER.fullmatch(version) or int(version) not in hello.versions:
        raise _no_kas(f"its Moorline-Version is {version.decode('latin-1')!r}")
    return Welcome(
        version=int(version),
        kas_id=_answered_word(head.fields, b"moorline-kas"),
        tunnel_id=_answered_word(head.fields, b"moorline-tunnel"),
        agent_id=_answered_word(head.fields, b"moorline-agent"),
    )


def websocket_accept(key: bytes) -> bytes:
    """``Sec-WebSocket-Accept`` for a key, RFC 6455 §4.2.2."""
    return base64.b64encode(hashlib.sha1(key + _WEBSOCKET_GUID, usedforsecurity=False).digest())


def _wrong_method() -> HandshakeError:
    return HandshakeError("a tunnel is opened with GET", status=405, reason="method-not-allowed")


def _check_upgrade(head: RequestHead) -> bytes:
    """The WebSocket key of a proper upgrade (empty for our own token)."""
    if head.protocol is None:
        raise HandshakeError(
            f"this is where agents open tunnels: the request must ask for an upgrade to {UPGRADE_TOKEN.decode()} or to "
            "a WebSocket; where an agent sent it, something on the way removed that",
            status=426,
            reason="upgrade-required",
        )
    if head.protocol == UPGRADE_TOKEN:
        return b""
    if field_value(head.fields, b"sec-websocket-version") != b"13":
        raise HandshakeError("only version 13 of WebSocket is spoken here", status=426, reason="websocket-version")
    if SUBPROTOCOL not in list_members(head.fields, b"sec-websocket-protocol"):
        raise _bad_request(f"the WebSocket subprotocol must be {SUBPROTOCOL.decode()}")
    key = _single(head.fields, b"sec-websocket-key")
    try:
        is_key = len(base64.b64decode(key, validate=True)) == 16
    except binascii.Error:
        is_key = False
    if not is_key:
        raise _bad_request("Sec-WebSocket-Key is malformed")
    return key


def _read_hello(fields: Fields) -> Hello:
    token = _read_token(fields)
    versions = list_members(fields, b"moorline-versions")
    if not versions or len(versions) > _LIST_MEMBERS or not all(map(_NUMBER.fullmatch, versions)):
        raise _bad_request("Moorline-Versions is missing or malformed")
    return Hello(
        token=token,
        versions=tuple(int(version) for version in versions),
        agent_version=_word(fields, b"moorline-agent-version", required=True),
        replica=_word(fields, b"moorline-replica", required=True),
        process=_word(fields, b"moorline-process", required=True),
        cluster=_word(fields, b"moorline-cluster"),
        origins=_words(fields, b"moorline-origins"),
        holds=_words(fields, b"moorline-holds"),
        replaces=_word(fields, b"moorline-replaces") or None,
    )


def _read_token(fields: Fields) -> str:
    scheme, _, token = _single(fields, b"authorization").partition(b" ")
    token = token.strip()
    if scheme.lower() != b"bearer" or not _TOKEN68.fullmatch(token):
        raise HandshakeError(
            "the request carries no agent token (Authorization: Bearer …)", status=401, reason="unauthorized"
        )
    return token.decode("ascii")


def _single(fields: Fields, name: bytes) -> bytes:
    values = field_values(fields, name)
    if len(values) > 1:
        raise _bad_request(f"{name.decode().title()} was sent more than once")
    return values[0] if values else b""


def _word(fields: Fields, name: bytes, *, required: bool = False) -> str:
    value = _single(fields, name).decode("latin-1")
    if _WORD.fullmatch(value) or not (value or required):
        return value
    raise _bad_request(f"{name.decode().title()} is {'malformed' if value else 'missing'}")


def _words(fields: Fields, name: bytes) -> tuple[str, ...]:
    words = tuple(member.decode("latin-1") for member in list_members(fields, name))
    if len(words) > _LIST_MEMBERS or not all(map(_WORD.fullmatch, words)):
        raise _bad_request(f"{name.decode().title()} is malformed or has more than {_LIST_MEMBERS} members")
    return words


def _answered_word(fields: Fields, name: bytes) -> str:
    value = (field_value(fields, name) or b"").decode("latin-1")
    if not _WORD.fullmatch(value):
        raise _no_kas(f"its {name.decode().title()} is {value[:80]!r}")
    return value


def _bad_request(message: str) -> HandshakeError:
    return HandshakeError(message, status=400, reason="bad-request")


def _no_kas(message: str) -> HandshakeError:
    return HandshakeError(f"something answered 101 that is no kas: {message}", status=101, reason="not-a-kas")


def _listed(versions: Collection[int]) -> str:
    return ", ".join(map(str, versions))
