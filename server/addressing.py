"""Where a request is to go: which agent, which origin behind it, and the raw target that the origin is to see.

Forms (``docs`` shows each with its kubeconfig):

* ``<prefix>/…`` (default ``/k8s-proxy/…``): the agent is named in the credential,
  ``Authorization: Bearer pat:<agent>:<token>``;
* ``/agents/<agent>/k8s/…`` and ``/agents/<agent>/agentk/…`` (the agent itself);
* host name ``<agent>.k8s.<domain>``, where a domain is configured: the whole target goes to the cluster.

The prefix is taken off the raw bytes on a segment boundary, and nothing else is changed. A path that would match only
once it is decoded is refused, since then this and the next server would disagree about what it means. Pure.
"""

from __future__ import annotations

import dataclasses
import re
from urllib.parse import unquote_to_bytes

from server.errors import BadRequest, Forbidden, MethodNotAllowed, NoSuchRoute, Unauthenticated
from tunnel.fields import take_websocket_bearer
from tunnel.messages import Fields, RequestHead

KUBERNETES = b"kubernetes"
AGENTK = b"agentk"

AGENT_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
"""An agent id is a DNS label (RFC 1123 §2.1), in lower case."""

_ORIGINS = {b"k8s": KUBERNETES, b"agentk": AGENTK}
_AGENT_PATH = re.compile(rb"/agents/([^/]+)/(k8s|agentk)(?=/|\Z)")
_CREDENTIAL_BYTES = 4096
_PLAIN_BEARER = re.compile(rb"Bearer ([0-9A-Za-z_]{1,256})")
"""What nearly every caller sends; everything else is taken apart step by step."""


@dataclasses.dataclass(slots=True)
class Credentials:
    """What the caller presented. Nothing here has been checked against anything."""

    token: str = dataclasses.field(repr=False)
    agent_id: str | None
    """The agent named in a credential of the form ``pat:<agent>:<token>``."""
    fields: Fields = dataclasses.field(repr=False)
    """The request's field lines without a token that was sent as a WebSocket subprotocol."""


@dataclasses.dataclass(slots=True)
class Address:
    """Where a request is to go."""

    agent_id: str
    """A DNS label; whether there is such an agent is not known here."""
    origin: bytes
    """The origin behind the tunnel: ``kubernetes`` or ``agentk``."""
    target: bytes
    """Path and query for the origin, byte for byte as received, without `prefix`."""
    prefix: bytes
    """What to put before a path of the origin so that it comes back here (``Location``); empty with a host name."""


def credentials_of(fields: Fields) -> Credentials:
    """The bearer credential of a request. Raises `Unauthenticated` where there is none that can be read."""
    return _credentials_of(fields, *take_websocket_bearer(fields))


def header_credentials_of(fields: Fields) -> Credentials:
    """`credentials_of` for lines that are known to hold no WebSocket subprotocol."""
    return _credentials_of(fields, fields, None)


def _credentials_of(fields: Fields, kept: Fields, subprotocol_token: bytes | None) -> Credentials:
    values = [value for name, value in fields if name == b"authorization"]
    if len(values) > 1:
        raise Unauthenticated(f"Authorization header: expecting a single header, got {len(values)}")
    if values:
        match = _PLAIN_BEARER.fullmatch(values[0])
        if match is not None:
            return Credentials(match[1].decode("ascii"), None, kept)
        scheme, _, credential = values[0].strip().partition(b" ")
        if scheme.lower() != b"bearer":
            raise Unauthenticated("Authorization header: expecting Bearer token")
        return _parse_credential(credential.strip(), "Authorization header", kept)
    if subprotocol_token is not None:
        return _parse_credential(subprotocol_token, "WebSocket subprotocol", kept)
    if kept is not fields:
        raise Unauthenticated("WebSocket subprotocol: expecting exactly one base64url token")
    raise Unauthenticated("no valid credentials provided; send Authorization: Bearer <token>")


def _parse_credential(credential: bytes, where: str, fields: Fields) -> Credentials:
    if not credential:
        raise Unauthenticated(f"{where}: empty token")
    if len(credential) > _CREDENTIAL_BYTES or not credential.isascii() or b" " in credential:
        raise Unauthenticated(f"{where}: invalid value")
    text = credential.decode("ascii")
    if ":" not in text:
        return Credentials(token=text, agent_id=None, fields=fields)
    kind, _, rest = text.partition(":")
    if kind != "pat":
        raise Unauthenticated(f"{where}: unknown token type; expecting pat:<agent>:<token> or <token>")
    agent_id, _, token = rest.partition(":")
    if not AGENT_ID.fullmatch(agent_id):
        raise Unauthenticated(f"{where}: failed to parse: expecting pat:<agent>:<token>")
    if not token:
        raise Unauthenticated(f"{where}: empty token")
    return Credentials(token=token, agent_id=agent_id, fields=fields)


class Addressing:
    """The address forms of one kas."""

    def __init__(self, *, path_prefix: str = "/k8s-proxy/", domain: str = "") -> None:
        self._prefix = path_prefix.rstrip("/").encode("ascii")
        self._host_suffix = f".k8s.{domain.strip('.').lower()}".encode("ascii") if domain else None

    def address_of(self, head: RequestHead, credentials: Credentials) -> Address:
        """Where the request is to go.

        Raises `BadRequest`, `MethodNotAllowed`, `NoSuchRoute`, or `Forbidden` where address and credential name
        different agents. Call it once the credential has been found good: its answers tell what addresses there are.
        """
        if head.method == b"CONNECT" and head.protocol is None:
            raise MethodNotAllowed("CONNECT is not supported: kas is addressed like a server, not like a forward proxy")
        if not head.target.startswith(b"/"):
            raise BadRequest("the request target must be a path; asterisk-form and authority-form lead nowhere here")
        address = self._by_host(head) or self._by_path(head.target, credentials)
        if credentials.agent_id is not None and credentials.agent_id != address.agent_id:
            raise Forbidden(
                f'the credential is for agent "{credentials.agent_id}" and the address for agent "{address.agent_id}"; '
                "use one that is for this agent",
                agent_id=address.agent_id,
            )
        return address

    def _by_host(self, head: RequestHead) -> Address | None:
        if self._host_suffix is None:
            return None
        host, colon, port = head.authority.rpartition(b":")
        if not (colon and port.isdigit()):
            host = head.authority
        host = host.lower().removesuffix(b".")
        if not host.endswith(self._host_suffix):
            return None
        agent_id = _agent_id(host[: -len(self._host_suffix)])
        return Address(agent_id, KUBERNETES, head.target, b"")

    def _by_path(self, target: bytes, credentials: Credentials) -> Address:
        raw_path = target.partition(b"?")[0]
        match = _AGENT_PATH.match(raw_path)
        if match is not None:
            agent_id = _agent_id(match[1])
            return Address(agent_id, _ORIGINS[match[2]], _without(target, match[0]), match[0])
        if self._has_prefix(raw_path):
            if credentials.agent_id is None:
                raise BadRequest(
                    "this address takes the agent from the credential: send Authorization: Bearer "
                    f"pat:<agent>:<token> to {self._prefix.decode()}/, or use the address /agents/<agent>/k8s/"
                )
            return Address(credentials.agent_id, KUBERNETES, _without(target, self._prefix), self._prefix)
        decoded = unquote_to_bytes(raw_path)
        if decoded != raw_path and (self._has_prefix(decoded) or _AGENT_PATH.match(decoded)):
            raise BadRequest("the part of the path that addresses the agent must not be percent-encoded")
        raise NoSuchRoute(
            f"no cluster is at this address; use {self._prefix.decode()}/ with Authorization: Bearer "
            "pat:<agent>:<token>, or /agents/<agent>/k8s/"
        )

    def _has_prefix(self, path: bytes) -> bool:
        return path.startswith(self._prefix) and path[len(self._prefix) : len(self._prefix) + 1] in (b"/", b"")


def _without(target: bytes, prefix: bytes) -> bytes:
    rest = target[len(prefix) :]
    return rest if rest.startswith(b"/") else b"/" + rest


def _agent_id(label: bytes) -> str:
    text = label.decode("ascii", "backslashreplace")
    if not AGENT_ID.fullmatch(text):
        encoded = "; it must not be percent-encoded" if b"%" in label else ""
        raise BadRequest(f"the agent in this address is not a DNS label in lower case{encoded}")
    return text
