"""What a request to a kube-apiserver asks for: Kubernetes' own RequestInfo, and what a read-only role may do.

The path is decoded once, as kube-apiserver does, because it routes on the decoded path: a classifier on raw bytes would
take ``/services/x/pro%78y/`` for a plain read. What is forwarded is always the raw target. The rules of classification
are those of apiserver's ``pkg/endpoints/request/requestinfo.go``; where decoding leaves any doubt,
`RequestInfo.is_dubious` is True and restricted roles are refused. Pure.
"""

from __future__ import annotations

import dataclasses
import re
from urllib.parse import unquote_to_bytes

from tunnel.messages import RequestHead

_VERBS = {
    b"GET": "get",
    b"HEAD": "get",
    b"POST": "create",
    b"PUT": "update",
    b"PATCH": "patch",
    b"DELETE": "delete",
}
_is_plain = re.compile(rb"(?:/[!-$&-\-0-~][!-$&-.0-~]*+)++").fullmatch
"""A path without escapes whose segments are neither empty nor begin with a dot: everybody reads it alike."""

_NAMESPACE_SUBRESOURCES = frozenset({"status", "finalize"})
_CONNECT_SUBRESOURCES = frozenset({"exec", "attach", "portforward", "proxy"})
_READABLE_SUBRESOURCES = frozenset({"", "status", "scale", "log", "resize", "ephemeralcontainers", "approval"})
"""Subresources that have nothing but an object behind GET. A name that is not here is refused to read-only roles: an
aggregated API may do anything behind it."""
_READABLE_GROUPS = frozenset({"custom.metrics.k8s.io"})
"""Groups whose subresources are names that somebody chose (of metrics), and which can only be read."""
_SELF_REVIEWS = frozenset(
    {
        ("authorization.k8s.io", "selfsubjectaccessreviews"),
        ("authorization.k8s.io", "selfsubjectrulesreviews"),
        ("authentication.k8s.io", "selfsubjectreviews"),
    }
)


@dataclasses.dataclass(slots=True)
class RequestInfo:
    """What a request asks for. Empty strings where a part is absent."""

    path: str
    """The path decoded once; undecodable bytes are replaced."""
    verb: str
    """get, list, watch, create, update, patch, delete, deletecollection, proxy; the method in lower case otherwise."""
    is_resource: bool = False
    api_group: str = ""
    api_version: str = ""
    namespace: str = ""
    resource: str = ""
    subresource: str = ""
    name: str = ""
    is_upgrade: bool = False
    is_watch: bool = False
    """A GET that answers with a stream of events (and not with a WebSocket of them)."""
    is_long_running: bool = False
    """The response may take as long as it likes: no deadline on the body, and none on the head."""
    is_dubious: bool = False
    """Others may read the path differently: an encoded slash, ``.``, ``..``, an empty segment, NUL, invalid UTF-8."""
    is_read_only: bool = False
    """A read-only role may do this."""

    @property
    def is_proxied(self) -> bool:
        """Whether a service, pod or node behind the API server answers, and not the API server itself."""
        return self.subresource == "proxy" or self.verb == "proxy"

    @property
    def verb_class(self) -> str:
        """One of watch, connect, read, write: for limits, logs and metrics."""
        if self.is_upgrade or self.subresource in _CONNECT_SUBRESOURCES or self.verb == "proxy":
            return "connect"
        if self.is_watch or self.verb == "watch":
            return "watch"
        return "read" if self.verb in ("get", "list") else "write"


def request_info(head: RequestHead, target: bytes) -> RequestInfo:
    """Classify a request to the origin ``kubernetes``. ``target`` is the raw target without our prefix."""
    raw_path, _, query = target.partition(b"?")
    path, is_dubious = _decode(raw_path)
    method = head.method
    is_upgrade = head.protocol is not None
    info = _resource_of(path, _VERBS.get(method) or method.decode("ascii", "replace").lower())
    if info is None:
        verb = method.decode("ascii", "replace").lower()
        info = RequestInfo(path, "get" if verb == "head" else verb)
    elif not info.name:
        if info.verb == "get":
            info.verb = "watch" if _true(query, b"watch") else "list"
        elif info.verb == "delete":
            info.verb = "deletecollection"
    verb, subresource = info.verb, info.subresource
    info.is_upgrade = is_upgrade
    info.is_watch = verb == "watch" and method == b"GET" and not is_upgrade
    follows = subresource == "log" and _true(query, b"follow")
    info.is_long_running = verb in ("watch", "proxy") or subresource in _CONNECT_SUBRESOURCES or follows or is_upgrade
    info.is_dubious = is_dubious
    info.is_read_only = not is_dubious and not is_upgrade and _is_read_only(method, info)
    return info


def opaque_request_info(head: RequestHead, target: bytes) -> RequestInfo:
    """Classify a request to an origin that is no kube-apiserver: only GET and HEAD without upgrade count as reading."""
    path, is_dubious = _decode(target.partition(b"?")[0])
    is_upgrade = head.protocol is not None
    is_read = head.method in (b"GET", b"HEAD")
    return RequestInfo(
        path=path,
        verb="get" if is_read else head.method.decode("ascii", "replace").lower(),
        is_upgrade=is_upgrade,
        is_long_running=is_upgrade,
        is_dubious=is_dubious,
        is_read_only=is_read and not is_upgrade and not is_dubious,
    )


def _decode(raw_path: bytes) -> tuple[str, bool]:
    """The path decoded once, and whether somebody might read it differently."""
    if _is_plain(raw_path):
        return raw_path.decode("ascii"), False
    decoded = unquote_to_bytes(raw_path) if b"%" in raw_path else raw_path
    path = decoded.decode("utf-8", "replace")
    if raw_path == b"/":
        return path, False
    segments = decoded.split(b"/")
    is_dubious = (
        segments[0] != b""
        or len(segments) < 2
        or raw_path.count(b"/") != len(segments) - 1
        or any(segment in (b"", b".", b"..") for segment in segments[1:])
        or b"\x00" in decoded
        or (not decoded.isascii() and "\N{REPLACEMENT CHARACTER}" in path)
        or not _escapes_are_sound(raw_path)
    )
    return path, is_dubious


def _escapes_are_sound(raw_path: bytes) -> bool:
    parts = raw_path.split(b"%")
    return all(len(part) >= 2 and part[:2].isalnum() and _is_hexadecimal(part[:2]) for part in parts[1:])


def _is_hexadecimal(digits: bytes) -> bool:
    return all(digit in b"0123456789abcdefABCDEF" for digit in digits)


def _resource_of(path: str, verb: str) -> RequestInfo | None:
    """Take a path apart as kube-apiserver does; None where it names no resource."""
    parts = path.strip("/").split("/")
    if len(parts) < 3 or parts[0] not in ("api", "apis"):
        return None
    found = RequestInfo(path, verb, True)
    if parts[0] == "apis":
        if len(parts) < 4:
            return None
        found.api_group = parts[1]
        parts = parts[2:]
    else:
        parts = parts[1:]
    found.api_version, *parts = parts
    if parts[0] in ("proxy", "watch"):  # the forms of Kubernetes 1.0, still served
        if len(parts) < 2:
            return None
        found.verb, *parts = parts
    if parts[0] == "namespaces" and len(parts) > 1:
        found.namespace = parts[1]
        if len(parts) > 2 and parts[2] not in _NAMESPACE_SUBRESOURCES:
            parts = parts[2:]
    if len(parts) > 2 and found.verb != "proxy":
        found.subresource = parts[2]
    if len(parts) > 1:
        found.name = parts[1]
    found.resource = parts[0]
    return found


def _is_read_only(method: bytes, found: RequestInfo) -> bool:
    if method in (b"GET", b"HEAD"):
        if not found.is_resource:
            return True
        is_readable = found.subresource in _READABLE_SUBRESOURCES or found.api_group in _READABLE_GROUPS
        return found.verb != "proxy" and found.subresource not in _CONNECT_SUBRESOURCES and is_readable
    is_review = (found.api_group, found.resource) in _SELF_REVIEWS
    return is_review and found.verb == "create" and not (found.name or found.subresource or found.namespace)


def _true(query: bytes, name: bytes) -> bool:
    """Whether a query parameter is true as kube-apiserver reads it.

    The first value counts; absent, "false" (in any case) and "0" are false, and everything else is true, the empty
    value too (apimachinery ``Convert_Slice_string_To_bool``). Pairs that Go's ``url.ParseQuery`` drops do not count.
    """
    if not query or (name not in query and b"%" not in query):
        return False
    for pair in query.split(b"&"):
        key, _, value = pair.partition(b"=")
        if b";" in pair or not (_escapes_are_sound(key) and _escapes_are_sound(value)):
            continue
        if unquote_to_bytes(key.replace(b"+", b" ")) == name:
            return unquote_to_bytes(value).lower() not in (b"false", b"0")
    return False
