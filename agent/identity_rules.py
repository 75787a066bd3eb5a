"""What the agent checks of every request that kas sends, and the identity fields that it makes itself. Pure.

kas has checked all of this. The agent repeats it because it holds the cluster's credentials and kas may be hostile: on
what passes here, nothing decides but the agent's own configuration and the cluster's RBAC. A request that asks for
impersonation without naming a user would run with the agent's whole power, so it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from tunnel.errors import RemoteProtocolError
from tunnel.fields import NameKinds, normalised
from tunnel.identity import Identity, decode_identity
from tunnel.messages import Fields, RequestHead

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET = re.compile(rb"/[^\x00-\x20\x7f]*")
_NOT_IN_VALUES = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_NOT_IN_EXTRA_KEYS = re.compile(rb"[^!#$&'*+.^_`|~0-9A-Za-z-]")

_UPGRADES = frozenset({b"websocket", b"spdy/3.1"})
_CONNECTION_FIELDS = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"host"}
)
_CREDENTIALS = frozenset({b"authorization", b"proxy-authorization"})
_BEARER_SUBPROTOCOL = b"base64url.bearer.authorization.k8s.io."

_IS_DROPPED = 1
_IS_CHECKED = 2
"""`_check_field` has something to say about fields of this name."""

_SELF_REVIEWS = frozenset(
    b"/apis/" + group + b"/" + version + b"/" + resource
    for group, versions, resources in (
        (b"authorization.k8s.io", (b"v1",), (b"selfsubjectaccessreviews", b"selfsubjectrulesreviews")),
        (b"authentication.k8s.io", (b"v1", b"v1beta1", b"v1alpha1"), (b"selfsubjectreviews",)),
    )
    for version in versions
    for resource in resources
)
"""What a read-only role may create: questions about itself."""


class RequestRefused(Exception):
    """A request that the agent does not send on.

    ``status`` and ``word`` are answered, ``word`` in the field ``moorline-error``; the text is for the operator.
    """

    def __init__(self, message: str, *, status: int, word: str) -> None:
        super().__init__(message)
        self.status = status
        self.word = word


def check_request(request: RequestHead, modes: Collection[str]) -> Identity:
    """Check a request of any origin and return its identity block.

    ``modes`` are the access modes of this agent's own configuration. Raises `RequestRefused`.
    """
    if _TOKEN.fullmatch(request.method) is None:
        raise _bad_request("the method is not a token")
    if _TARGET.fullmatch(request.target) is None:
        raise _bad_request("the target does not begin with '/', or contains white space or control bytes")
    if request.protocol is not None and request.protocol.lower() not in _UPGRADES:
        raise _bad_request("the upgrade token is neither websocket nor SPDY/3.1")
    if _KINDS.of_all(request.fields) & _IS_CHECKED:
        for name, value in request.fields:
            _check_field(name, value)
    identity = _decode(request.fields)
    _check_identity(identity, modes)
    if identity.role == "read-only":
        _check_read_only(request)
    return identity


def request_fields(request: RequestHead, identity: Identity) -> Fields:
    """The field lines for the kube-apiserver: the caller's in their order, then those of impersonation.

    ``request`` has passed `check_request`.
    """
    kinds_of = _KINDS
    fields = [field for field in request.fields if not kinds_of[field[0]] & _IS_DROPPED]
    if identity.mode == "impersonate":
        fields += impersonation_fields(identity)
    return fields


def impersonation_fields(identity: Identity) -> Fields:
    """``impersonate-user``, ``-uid``, ``-group`` and ``-extra-…`` for an identity of mode "impersonate".

    Raises `RequestRefused` where the identity cannot be expressed without becoming another one.
    """
    extra = tuple(identity.extra.items()) if identity.extra else ()
    key = (identity.user, identity.uid, identity.groups, extra)
    fields = _remembered_fields.get(key)
    if fields is None:
        fields = _make_impersonation_fields(identity)
        if len(fields) <= _REMEMBERED_LINES:
            if len(_remembered_fields) >= _REMEMBERED_IDENTITIES:
                _remembered_fields.clear()
            _remembered_fields[key] = fields
    return fields


_REMEMBERED_IDENTITIES = 1_024
_REMEMBERED_LINES = 32
_remembered_fields: dict[tuple[object, ...], Fields] = {}
# The same few callers come again and again. What is remembered is never changed.


def _make_impersonation_fields(identity: Identity) -> Fields:
    if not identity.user:
        raise _refused("the identity block asks for impersonation and names no user")
    fields: Fields = [(b"impersonate-user", _value(identity.user, "user"))]
    if identity.uid:
        fields.append((b"impersonate-uid", _value(identity.uid, "uid")))
    for group in identity.groups:
        if not group:
            raise _refused("the identity block names an empty group")
        fields.append((b"impersonate-group", _value(group, "group")))
    for key, values in identity.extra.items():
        if not key:
            raise _refused("the identity block has an extra without a name")
        name = b"impersonate-extra-" + _escape_extra_key(key)
        fields += [(name, _value(value, "extra")) for value in values]
    return fields


def _kinds(name: bytes) -> int:
    normal = normalised(name)
    # x-remote-* would be believed by a server that takes the agent for its front proxy.
    kinds = _IS_DROPPED if normal.startswith((b"moorline-", b"x-remote-")) else 0
    if (
        name in _CONNECTION_FIELDS
        or normal in _CREDENTIALS
        or normal.startswith(b"impersonate-")
        or name == b"sec-websocket-protocol"
    ):
        kinds |= _IS_CHECKED
    return kinds


_KINDS = NameKinds(_kinds)


def _check_field(name: bytes, value: bytes) -> None:
    if name in _CONNECTION_FIELDS:
        raise _bad_request(f"the field {name.decode('ascii', 'replace')} does not belong into a tunnel")
    if name in _CREDENTIALS or name.startswith(b"impersonate-"):
        raise _refused(
            f"kas sent a field {name.decode('ascii', 'replace')}; identity travels in the identity block only"
        )
    if b"_" in name:
        normal = normalised(name)
        if normal in _CREDENTIALS or normal.startswith(b"impersonate-"):
            raise _refused("kas sent a field which some servers take for one of identity")
    if name == b"sec-websocket-protocol" and _BEARER_SUBPROTOCOL in value.lower():
        raise _refused("a bearer token is hidden among the WebSocket subprotocols")


def _decode(fields: Fields) -> Identity:
    try:
        return decode_identity(fields)
    except RemoteProtocolError as exc:
        raise _refused(str(exc)) from exc


def _check_identity(identity: Identity, modes: Collection[str]) -> None:
    if identity.mode not in modes:
        allowed = ", ".join(sorted(modes))
        raise _refused(f"kas asks for access mode {identity.mode!r}; this agent's access.modes allows only {allowed}")
    if identity.mode == "impersonate" and not identity.user:
        raise _refused("the identity block asks for impersonation and names no user")


def _check_read_only(request: RequestHead) -> None:
    # kas judges the decoded path as well (exec, attach, portforward, proxy); this is the part that needs no table of
    # resources, and whoever controls kas could leave the role out.
    if request.protocol is not None:
        raise _refused("the caller's role is read-only, and upgrades are not for it")
    if request.method in (b"GET", b"HEAD"):
        return
    if request.method == b"POST" and request.target.partition(b"?")[0] in _SELF_REVIEWS:
        return
    raise _refused("the caller's role is read-only")


def _value(text: str, what: str) -> bytes:
    try:
        value = text.encode()
    except UnicodeEncodeError:
        raise _refused(f"the identity block has a {what} that is not Unicode") from None
    if _NOT_IN_VALUES.search(value) is not None or value != value.strip(b" \t"):
        # The server would drop the white space, and see another name.
        raise _refused(f"the identity block has a {what} with control characters, or white space around it")
    return value


def _escape_extra_key(key: str) -> bytes:
    """Percent-encode what cannot stand in a field name, and "%" itself, as Kubernetes clients do.

    The server reads field names in lower case before it decodes them, so lower case says the same.
    """
    try:
        raw = key.encode()
    except UnicodeEncodeError:
        raise _refused("the identity block has an extra whose name is not Unicode") from None
    return _NOT_IN_EXTRA_KEYS.sub(lambda match: b"%%%02x" % match[0][0], raw.lower())


def _bad_request(message: str) -> RequestRefused:
    return RequestRefused(message, status=400, word="bad-request")


def _refused(message: str) -> RequestRefused:
    return RequestRefused(message, status=403, word="identity-refused")
