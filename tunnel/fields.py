"""Rules about header fields that hold on every hop: which lines stay behind, and which a caller may not set.

The order matters: first `strip_hop_by_hop`, then `impersonation_fields` and `remove_client_identity`, and only then are
fields of our own added. Otherwise ``Connection: impersonate-user`` would take away what we add.

Names are compared in lower case with ``_`` as ``-``, since servers behind us may treat both alike. Lines keep their
order and number. No function changes its argument; one that has nothing to do returns the argument itself.
"""

from __future__ import annotations

import base64
import binascii
import functools
import operator
import re
from collections.abc import Callable, Iterator

from tunnel.messages import Fields

_HOP_BY_HOP = frozenset(
    [b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"http2-settings"]
)
_HOP_BY_HOP_PREFIX = b"proxy-"
_NAMING_NOTHING = ((b"connection", b"keep-alive"), (b"connection", b"close"))

_IDENTITY = frozenset([b"authorization", b"cookie", b"forwarded", b"x-real-ip", b"proxy-authorization"])
_IDENTITY_PREFIXES = (b"x-remote-", b"x-forwarded-", b"impersonate-", b"moorline-")
_IMPERSONATE_PREFIX = b"impersonate-"
_OUR_PREFIX = b"moorline-"

_NEVER_IN_TRAILERS = (
    _HOP_BY_HOP
    | _IDENTITY
    | frozenset(
        b"accept-encoding age authentication-info cache-control content-encoding content-length content-range "
        b"content-type date expect expires host location max-forwards pragma range retry-after "
        b"sec-websocket-protocol set-cookie vary warning www-authenticate".split()
    )
)

_WEBSOCKET_PROTOCOL = b"sec-websocket-protocol"
_BEARER_PROTOCOL = b"base64url.bearer.authorization.k8s.io."
_BASE64URL = re.compile(rb"[A-Za-z0-9_-]+")


def normalised(name: bytes) -> bytes:
    """The name as rules compare it: lower case, ``_`` as ``-``."""
    return name.lower().replace(b"_", b"-")


# What the rules below say of a name.
_IS_HOP_BY_HOP = 1
_IS_IDENTITY = 2
_IS_IMPERSONATION = 4
_IS_OURS = 8
_IS_WEBSOCKET_PROTOCOL = 16
_IS_ACCEPT_ENCODING = 32
_IS_CONNECTION_OR_TE = 64

_KNOWN_NAMES_LIMIT = 2_048
_KNOWN_NAME_BYTES = 64
_USUAL_NAMES = (
    b"accept accept-encoding accept-language accept-ranges access-control-allow-origin age allow audit-id "
    b"cache-control content-disposition content-encoding content-language content-length content-location "
    b"content-range content-type date etag expect expires host if-match if-modified-since if-none-match if-range "
    b"if-unmodified-since kubectl-command kubectl-session last-modified link location origin pragma range referer "
    b"retry-after sec-websocket-accept sec-websocket-extensions sec-websocket-key sec-websocket-version server "
    b"strict-transport-security traceparent tracestate user-agent vary via warning x-content-type-options "
    b"x-kubernetes-pf-flowschema-uid x-kubernetes-pf-prioritylevel-uid x-request-id x-stream-protocol-version".split()
)


_name_of = operator.itemgetter(0)


class NameKinds(dict[bytes, int]):
    """What some rules say of a field name, as bits: computed once, so that each rule costs one look-up for each line.

    Names are remembered up to a limit, values never. The usual names are there from the start, so that nobody can
    crowd them out.
    """

    __slots__ = ("_compute",)

    def __init__(self, compute: Callable[[bytes], int]) -> None:
        super().__init__({name: compute(name) for name in _USUAL_NAMES})
        self._compute = compute

    def of_all(self, fields: Fields) -> int:
        """The bits of all lines together. No bytecode runs for a name that is known."""
        return functools.reduce(operator.or_, map(self.__getitem__, map(_name_of, fields)), 0)

    def __missing__(self, name: bytes) -> int:
        kinds = self._compute(name)
        if len(name) <= _KNOWN_NAME_BYTES and len(self) < _KNOWN_NAMES_LIMIT:
            self[name] = kinds
        return kinds


def _kinds(name: bytes) -> int:
    text = normalised(name)
    kinds = 0
    if text in _HOP_BY_HOP or text.startswith(_HOP_BY_HOP_PREFIX):
        kinds |= _IS_HOP_BY_HOP
    if text in _IDENTITY or text.startswith(_IDENTITY_PREFIXES):
        kinds |= _IS_IDENTITY
    if text in (b"connection", b"te"):
        kinds |= _IS_CONNECTION_OR_TE
    if text.startswith(_IMPERSONATE_PREFIX):
        kinds |= _IS_IMPERSONATION
    if text.startswith(_OUR_PREFIX):
        kinds |= _IS_OURS
    if text == _WEBSOCKET_PROTOCOL:
        kinds |= _IS_WEBSOCKET_PROTOCOL
    if text == b"accept-encoding":
        kinds |= _IS_ACCEPT_ENCODING
    return kinds


_KINDS = NameKinds(_kinds)


def names_of(fields: Fields) -> Iterator[bytes]:
    """The names of all lines, in order."""
    return map(_name_of, fields)


def _without(fields: Fields, unwanted: int) -> Fields:
    """The lines whose names have none of the bits; the argument itself where all are such."""
    kinds_of = _KINDS
    if not kinds_of.of_all(fields) & unwanted:
        return fields
    return [line for line in fields if not kinds_of[line[0]] & unwanted]


def _has(fields: Fields, wanted: int) -> bool:
    """Whether a line's name has one of the bits."""
    return bool(_KINDS.of_all(fields) & wanted)


def list_members(fields: Fields, name: bytes) -> list[bytes]:
    """The members of a comma-separated list field, over all its lines, in order, without empty ones (RFC 9110 §5.6.1).

    ``name`` is in lower case and without ``_``. Quoted strings are not understood: for lists of tokens only.
    """
    members: list[bytes] = []
    for field_name, value in fields:
        if field_name == name or (len(field_name) == len(name) and normalised(field_name) == name):
            members += [stripped for member in value.split(b",") if (stripped := member.strip(b" \t"))]
    return members


def strip_hop_by_hop(fields: Fields) -> Fields:
    """Without the lines that belong to one connection (RFC 9110 §7.6.1); requests and responses alike.

    Removes ``Connection`` and every field that it names, ``Keep-Alive``, ``Proxy-*``, ``Trailer``,
    ``Transfer-Encoding``, ``Upgrade`` and ``HTTP2-Settings``. ``TE`` is reduced to ``te: trailers`` where it said so.
    """
    if not _KINDS.of_all(fields) & _IS_HOP_BY_HOP:
        return fields
    kept, speaking = _sort_out_hop_by_hop(fields)
    if not speaking or (len(speaking) == 1 and speaking[0] in _NAMING_NOTHING):
        return kept
    named = {normalised(member) for member in list_members(speaking, b"connection")}
    wants_trailers = te_trailers(speaking)
    kept = []
    for line in fields:
        name = normalised(line[0])
        if name == b"te":
            if wants_trailers:
                kept.append((b"te", b"trailers"))
                wants_trailers = False
        elif not (name in named or name in _HOP_BY_HOP or name.startswith(_HOP_BY_HOP_PREFIX)):
            kept.append(line)
    return kept


def _sort_out_hop_by_hop(fields: Fields) -> tuple[Fields, Fields]:
    """The lines that may stay by their own names, and ``Connection`` and ``TE``, which say more."""
    kinds_of = _KINDS
    kept: Fields = []
    speaking: Fields = []
    for line in fields:
        kinds = kinds_of[line[0]]
        if not kinds & _IS_HOP_BY_HOP:
            kept.append(line)
        elif kinds & _IS_CONNECTION_OR_TE:
            speaking.append(line)
    return kept, speaking


def request_to_pass_on(fields: Fields) -> Fields:
    """A caller's lines as they may be sent on: `strip_hop_by_hop`, then `remove_client_identity`."""
    return _to_pass_on(fields, _IS_IDENTITY)


def response_to_pass_on(fields: Fields) -> Fields:
    """An upstream's lines as they may be passed back: `strip_hop_by_hop`, then `remove_ours`."""
    return _to_pass_on(fields, _IS_OURS)


def _to_pass_on(fields: Fields, unwanted: int) -> Fields:
    kinds_of = _KINDS
    kinds = kinds_of.of_all(fields)
    if not kinds & (_IS_HOP_BY_HOP | unwanted):
        return fields
    if kinds & _IS_CONNECTION_OR_TE:  # which say more than their names do
        return _without(strip_hop_by_hop(fields), unwanted)
    unwanted |= _IS_HOP_BY_HOP
    return [line for line in fields if not kinds_of[line[0]] & unwanted]


def te_trailers(fields: Fields) -> bool:
    """Whether the sender takes trailers: ``TE`` has the member ``trailers``."""
    return any(member.lower() == b"trailers" for member in list_members(fields, b"te"))


def remove_client_identity(fields: Fields) -> Fields:
    """Without the lines by which a caller could claim to be somebody.

    Credentials (``Authorization``, ``Cookie``, ``Proxy-Authorization``), ``Impersonate-*``, ``X-Remote-*``,
    ``X-Forwarded-*``, ``Forwarded``, ``X-Real-Ip`` and our own ``moorline-*``. Ask `impersonation_fields` first:
    a caller who sent such a line is to be refused, not silently served as somebody else.
    """
    return _without(fields, _IS_IDENTITY)


def remove_ours(fields: Fields) -> Fields:
    """Without ``moorline-*``: what stands in such a line was said by us or by nobody."""
    return _without(fields, _IS_OURS)


def impersonation_fields(fields: Fields) -> Fields:
    """The lines whose names compare as ``impersonate-*``, as they came."""
    if not _has(fields, _IS_IMPERSONATION):
        return []
    return [line for line in fields if normalised(line[0]).startswith(_IMPERSONATE_PREFIX)]


def speaks_of_identity(fields: Fields) -> bool:
    """Whether `impersonation_fields` or `take_websocket_bearer` may find something."""
    return _has(fields, _IS_IMPERSONATION | _IS_WEBSOCKET_PROTOCOL)


def take_websocket_bearer(fields: Fields) -> tuple[Fields, bytes | None]:
    """The lines without a token that was sent as a WebSocket subprotocol, and that token, decoded.

    Browsers, which cannot set ``Authorization`` there, send ``base64url.bearer.authorization.k8s.io.<token>`` in
    ``Sec-WebSocket-Protocol``. Other subprotocols stay; a line that is left empty goes. The token is None where there
    is none, where it is no base64url, and where there are several: then nobody can say which one counts.
    """
    if not _has(fields, _IS_WEBSOCKET_PROTOCOL):
        return fields, None
    tokens: list[bytes] = []
    kept: Fields = []
    for line in fields:
        name, value = line
        if normalised(name) != _WEBSOCKET_PROTOCOL or _BEARER_PROTOCOL not in value.lower():
            kept.append(line)
            continue
        others: list[bytes] = []
        for member in value.split(b","):
            member = member.strip(b" \t")
            if member.lower().startswith(_BEARER_PROTOCOL):
                tokens.append(member[len(_BEARER_PROTOCOL) :])
            elif member:
                others.append(member)
        if others:
            kept.append((name, b", ".join(others)))
    if not tokens:
        return fields, None
    return kept, _decode_token(tokens[0]) if len(tokens) == 1 else None


def _decode_token(encoded: bytes) -> bytes | None:
    if not _BASE64URL.fullmatch(encoded):
        return None
    try:
        return base64.urlsafe_b64decode(encoded + b"=" * (-len(encoded) % 4))
    except binascii.Error:
        return None


def drop_gzip_from_accept_encoding(fields: Fields) -> Fields:
    """Without ``gzip`` among the accepted codings; ``identity`` where nothing else was accepted.

    For watches: inside a gzip stream nobody could see where an event ends.
    """
    if not _has(fields, _IS_ACCEPT_ENCODING):
        return fields
    changed: Fields = []
    for line in fields:
        if normalised(line[0]) == b"accept-encoding" and b"gzip" in line[1].lower():
            members = [member.strip(b" \t") for member in line[1].split(b",")]
            others = [member for member in members if member and not _is_gzip(member)]
            line = (line[0], b", ".join(others) or b"identity")
        changed.append(line)
    return changed


def _is_gzip(member: bytes) -> bool:
    return member.partition(b";")[0].rstrip(b" \t").lower() in (b"gzip", b"x-gzip")


def allowed_trailers(fields: Fields) -> Fields:
    """The trailer lines that may travel on: none about framing, routing, authentication, identity or the content's
    meaning (RFC 9110 §6.5.1), and no pseudo-field."""
    kept: Fields = []
    for line in fields:
        name = normalised(line[0])
        if not (name in _NEVER_IN_TRAILERS or name.startswith((b":", _HOP_BY_HOP_PREFIX, *_IDENTITY_PREFIXES))):
            kept.append(line)
    return kept
