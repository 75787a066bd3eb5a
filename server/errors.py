"""What kas answers by itself: each failure knows its HTTP status, its Kubernetes reason and the hop that failed.

ProxyError
├── BadRequest 400                the request cannot be understood
├── Unauthenticated 401           no credential, or not one of ours
├── Forbidden 403                 the caller may not do this
│   └── AgentForbidden 403        unknown agent or not allowed: one text for both
├── NoSuchRoute 404               no cluster lies behind this address
├── MethodNotAllowed 405          CONNECT
├── FieldsTooLarge 431            a header section above the limit
├── TooManyExchanges 429          over a limit of this caller
├── InternalFailure 500           a bug of ours
├── TunnelLost 502                the tunnel ended before the cluster had answered
├── UpstreamUnreachable 502       the agent could not reach what is behind it
├── AgentRejected 502             the cluster does not accept the agent's own credentials
├── UpstreamAnswerUnusable 502    what came back is no answer that can be passed on
├── AgentNotConnected 503         known, but no tunnel
├── TunnelSaturated 503           the agent takes no further streams now
└── UpstreamTimeout 504           no response head in time

Texts are for whoever reads kubectl's output: what failed, for which agent, and what to do. None of them carries a
secret or an invitation to retry. Pure.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from operations.values import format_seconds
from tunnel.messages import Field

Hop = Literal["kas", "tunnel", "agent", "upstream"]
"""Where an exchange failed, in the order in which a request passes."""


class ProxyError(Exception):
    """Abstract: an exchange that kas ends with an answer of its own.

    ``message`` is for the caller, ``hop`` says where it failed, ``agent_id`` for which agent (empty: none in sight),
    ``fields`` are response field lines that belong to this answer.
    """

    status: ClassVar[int] = 500
    reason: ClassVar[str] = "InternalError"

    def __init__(self, message: str, *, hop: Hop = "kas", agent_id: str = "", fields: tuple[Field, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hop: Hop = hop
        self.agent_id = agent_id
        self.fields = fields


class BadRequest(ProxyError):
    """The request cannot be understood."""

    status = 400
    reason = "BadRequest"


class Unauthenticated(ProxyError):
    """There is no credential, or it is not one that works here."""

    status = 401
    reason = "Unauthorized"

    def __init__(self, message: str) -> None:
        super().__init__(f"Unauthorized: {message}", fields=((b"www-authenticate", b'Bearer realm="kas"'),))


class Forbidden(ProxyError):
    """The caller is known and may not do this."""

    status = 403
    reason = "Forbidden"


class AgentForbidden(Forbidden):
    """The agent does not exist, or the caller may not use it: nobody can tell which from the answer."""

    def __init__(self, agent_id: str, user: str) -> None:
        super().__init__(
            f'agent "{agent_id}" does not exist or user "{user}" may not use it; '
            "ask who runs kas for access, or check the agent's name",
            agent_id=agent_id,
        )


class NoSuchRoute(ProxyError):
    """No cluster lies behind this address."""

    status = 404
    reason = "NotFound"


class MethodNotAllowed(ProxyError):
    """A method that only makes sense on the way to another kind of proxy."""

    status = 405
    reason = "MethodNotAllowed"


class FieldsTooLarge(ProxyError):
    """The header section is larger than the limit."""

    status = 431
    reason = "RequestHeaderFieldsTooLarge"


class TooManyExchanges(ProxyError):
    """The caller is over a limit of its own."""

    status = 429
    reason = "TooManyRequests"

    def __init__(self, agent_id: str, limit: int, *, of: str = "requests at the same time") -> None:
        super().__init__(
            f"agent {agent_id}: this credential has reached its limit of {limit} {of}; nothing was sent. End some, or "
            "ask who runs kas to raise the limit",
            agent_id=agent_id,
        )


class InternalFailure(ProxyError):
    """A bug of ours; the log has the traceback under the request id."""

    def __init__(self, agent_id: str = "") -> None:
        about = f"agent {agent_id}: " if agent_id else ""
        super().__init__(
            f"{about}kas failed to handle this request; its log says why under the request id", agent_id=agent_id
        )


class TunnelLost(ProxyError):
    """The tunnel ended before the cluster had answered."""

    status = 502
    reason = "BadGateway"

    def __init__(self, agent_id: str) -> None:
        super().__init__(
            f"agent {agent_id}: the tunnel was lost before the cluster answered; the request may have been carried "
            "out, so look before you repeat it",
            hop="tunnel",
            agent_id=agent_id,
        )


class UpstreamUnreachable(ProxyError):
    """The agent could not reach what is behind it."""

    status = 502
    reason = "BadGateway"

    def __init__(self, agent_id: str, detail: str = "") -> None:
        said = f": {detail}" if detail else ""
        super().__init__(
            f"agent {agent_id}: no answer from the cluster's API server{said}; the agent's log has the cause",
            hop="upstream",
            agent_id=agent_id,
        )


class AgentRejected(ProxyError):
    """The cluster's API server does not accept the agent's own credentials."""

    status = 502
    reason = "BadGateway"

    def __init__(self, agent_id: str) -> None:
        super().__init__(
            f"agent {agent_id}: the cluster's API server does not accept the agent's own credentials (401); check the "
            "service account or kubeconfig with which agentk runs. Your credentials for kas are fine",
            hop="agent",
            agent_id=agent_id,
        )


class UpstreamAnswerUnusable(ProxyError):
    """What came back through the tunnel is no answer that can be passed on. ``what`` goes after the agent's name."""

    status = 502
    reason = "BadGateway"

    def __init__(self, agent_id: str, what: str, *, hop: Hop = "upstream") -> None:
        super().__init__(f"agent {agent_id}: {what}", hop=hop, agent_id=agent_id)


class AgentNotConnected(ProxyError):
    """The agent is known, and no replica of it has a tunnel to kas."""

    status = 503
    reason = "ServiceUnavailable"

    def __init__(self, agent_id: str, *, waited_seconds: float = 0.0) -> None:
        after = f" (waited {format_seconds(waited_seconds)})" if waited_seconds else ""
        super().__init__(
            f"agent {agent_id} is not connected{after}; nothing was sent. Check that agentk runs in that cluster and "
            "that its log says it reached kas",
            agent_id=agent_id,
        )


class TunnelSaturated(ProxyError):
    """The agent takes no further streams now."""

    status = 503
    reason = "ServiceUnavailable"

    def __init__(self, agent_id: str) -> None:
        super().__init__(
            f"agent {agent_id} handles as many requests as it takes at a time; nothing was sent",
            hop="tunnel",
            agent_id=agent_id,
        )


class UpstreamTimeout(ProxyError):
    """No response head in time: not within kas's own ``seconds``, or not as long as the agent waits (``detail``)."""

    status = 504
    reason = "Timeout"

    def __init__(self, agent_id: str, seconds: float = 0.0, *, detail: str = "") -> None:
        waited = detail or f"the cluster did not answer within {format_seconds(seconds)}"
        super().__init__(
            f"agent {agent_id}: {waited}; the request may have been carried out, so look before you repeat it",
            hop="upstream",
            agent_id=agent_id,
        )


_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    408: "Timeout",
    413: "RequestEntityTooLarge",
    414: "RequestURITooLong",
    426: "UpgradeRequired",
    429: "TooManyRequests",
    431: "RequestHeaderFieldsTooLarge",
    500: "InternalError",
    502: "BadGateway",
    503: "ServiceUnavailable",
    504: "Timeout",
}


def reason_of(status: int) -> str:
    """The Kubernetes reason for a status; "Unknown" where Kubernetes has no word for it."""
    return _REASONS.get(status, "Unknown")
