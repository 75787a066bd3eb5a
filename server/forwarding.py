"""Sending an admitted exchange through a tunnel: what the agent gets to see, and what each failure means.

What was handed to an agent is not sent again, with one exception: a request that the agent has provably not processed
(refused stream, stream above the last id of its GOAWAY) and of which no byte of a body was taken moves once to another
tunnel.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import trio

from server.addressing import KUBERNETES, Address
from server.errors import (
    AgentNotConnected,
    AgentRejected,
    ProxyError,
    TunnelLost,
    TunnelSaturated,
    UpstreamAnswerUnusable,
    UpstreamTimeout,
)
from server.failures import AgentReport, agent_report, error_for
from server.registry import Registry, Tunnel
from server.status import REQUEST_ID_FIELD
from server.verbs import RequestInfo
from server.watches import framer_for
from tunnel.deadlines import Deadlines, Wait
from tunnel.errors import ConnectionEnded, RemoteProtocolError, StreamLimitReached, StreamRefused
from tunnel.fields import drop_gzip_from_accept_encoding, names_of, request_to_pass_on, response_to_pass_on
from tunnel.identity import FIELD_NAME, Identity, encode_identity
from tunnel.messages import BodyReader, Downstream, Fields, RequestHead, ResponseHead, field_value
from tunnel.progress import Progress, UpgradeUnanswered, UpstreamFailed, UpstreamSilent
from tunnel.relay import Boundary, relay
from tunnel.streams import RequestStream

AGENT_REPORT_FIELD = b"moorline-error"
AGENT_REPORT_BYTES = 2_048
"""How much of an agent's own error text is shown."""

AGENT_REPORT_SECONDS = 2.0

MAX_TRIES = 2

WATCH_WAIT_SECONDS = 10.0
"""A watch waits at least this long for an agent that is known but not connected. client-go takes up a watch that ended
cleanly at once, where it was; met with a 503, it lists everything again, and every informer does so at every restart of
an agent [measured]."""


class UpgradeAbandoned(Exception):
    """An upgrade was handed over and nobody knows what became of it: close the caller's connection, answer nothing."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ForwardingTimes:
    """Durations in seconds."""

    head: float
    """For the response head of requests that are not long-running."""
    wait_for_agent: float
    """How long a request waits for an agent that is known but not connected."""


class Forwarding:
    """One exchange on its way through a tunnel; the `RelayPolicy` of its relay."""

    __slots__ = ("_address", "_info", "_request_id", "head", "head_deadlines", "head_wait", "on_head", "progress")

    continue_seconds = math.inf

    def __init__(
        self,
        request: RequestHead,
        address: Address,
        info: RequestInfo,
        identity: Identity,
        fields: Fields,
        progress: Progress,
        on_head: Callable[[int], None] | None = None,
    ) -> None:
        """``fields`` are the caller's without its credential."""
        self.head = upstream_head(request, address, info, identity, fields)
        self.progress = progress
        self.head_deadlines: Deadlines | None = None
        self.head_wait: Wait | None = None
        self._address = address
        self._info = info
        self._request_id = identity.request_id
        self.on_head = on_head
        """Hears the status of the final head."""

    @property
    def agent_id(self) -> str:
        """Which agent it is for."""
        return self._address.agent_id

    @property
    def is_watch(self) -> bool:
        """Whether its answer is a stream of events."""
        return self._info.is_watch

    @property
    def is_long_running(self) -> bool:
        """Whether its response may take as long as it likes."""
        return self._info.is_long_running

    def filter_head(self, head: ResponseHead) -> ResponseHead:
        """The head as the caller gets it."""
        filtered = downstream_head(head, self._address, self._request_id)
        if self.on_head is not None and (head.status >= 200 or head.status == 101):
            self.on_head(head.status)
        return filtered

    def forget_request(self) -> None:
        """The response has begun, so that the request will not be sent again: keep none of its lines for as long as that
        lasts."""
        self.head.fields = []

    def passes_unseen(self, head: ResponseHead) -> bool:
        """Whether `inspect` has nothing to say, and `filter_head` nothing to refuse."""
        status = head.status
        return not 300 <= status < 400 and status != 401 and AGENT_REPORT_FIELD not in names_of(head.fields)

    async def inspect(self, head: ResponseHead, body: BodyReader) -> None:
        """Raise `ProxyError` where the agent itself answered, or the cluster does not know the agent."""
        word = field_value(head.fields, AGENT_REPORT_FIELD)
        if word is not None:
            raise error_for(await _read_report(word, head.status, body), self._address.agent_id)
        if head.status == 401 and self._address.origin == KUBERNETES and not self._info.is_proxied:
            # The only credentials in such a request are the agent's: a 401 would have the caller renew its own.
            raise AgentRejected(self._address.agent_id)

    def boundary_for(self, head: ResponseHead) -> Boundary | None:
        """The framer of a watch."""
        if not self._info.is_watch or head.status != 200:
            return None
        return framer_for(field_value(head.fields, b"content-type"), field_value(head.fields, b"content-encoding"))


class Forwarder:
    """Sends exchanges through the tunnels of a registry. `run` keeps the deadlines of their heads."""

    def __init__(self, registry: Registry, times: ForwardingTimes) -> None:
        self._registry = registry
        self._wait_for_agent = times.wait_for_agent
        self._deadlines = Deadlines(times.head)

    async def run(self) -> None:
        """Give up exchanges whose response head does not come in time, for as long as kas runs."""
        await self._deadlines.run()

    def begin(
        self, forwarding: Forwarding, tunnel: Tunnel, expire: Callable[[], None], now: float
    ) -> RequestStream | None:
        """Send the head of an exchange without waiting; None where that cannot be done now.

        ``expire`` is called where no response head comes in time; `forward` ends that wait, or `end_wait`.
        """
        upstream = tunnel.connection.open_nowait(forwarding.head)
        if upstream is not None and not forwarding.is_long_running:
            forwarding.head_deadlines = self._deadlines
            forwarding.head_wait = self._deadlines.start(expire, now)
        return upstream

    def end_wait(self, forwarding: Forwarding) -> None:
        """The response head of an exchange that was begun is here, or not wanted any more. Idempotent."""
        if forwarding.head_wait is not None:
            self._deadlines.end(forwarding.head_wait)
            forwarding.head_wait = None

    def find(self, agent_id: str) -> Tunnel | None:
        """A tunnel for an exchange that is to begin without waiting."""
        return self._registry.find(agent_id)

    async def forward(
        self, downstream: Downstream, forwarding: Forwarding, *, queue: str, begun: Begun | None = None
    ) -> None:
        """Relay the exchange to its end; ``queue`` names whose turn it is at a limit of streams.

        ``begun`` is where `begin` has sent it already. Raises `ProxyError` while the response has not started,
        `UpgradeAbandoned`, `UpstreamFailed` after it had, or `DownstreamGone` (`tunnel.progress`).
        """
        if not forwarding.is_long_running:
            forwarding.head_deadlines = self._deadlines
        seconds = max(self._wait_for_agent, WATCH_WAIT_SECONDS) if forwarding.is_watch else self._wait_for_agent
        refused: list[Tunnel] = []
        while True:
            tunnel, upstream = await self._locate(forwarding.agent_id, refused, seconds, begun)
            try:
                if upstream is None:
                    upstream = await self._open(tunnel, forwarding, queue)
                await self._relay(downstream, tunnel.agent_id, upstream, forwarding)
                return
            except _NotProcessed as exc:
                begun = forwarding.head_wait = None
                refused.append(tunnel)
                if len(refused) >= MAX_TRIES or forwarding.progress.request_taken:
                    raise TunnelSaturated(forwarding.agent_id) from exc

    async def _locate(
        self, agent_id: str, refused: list[Tunnel], seconds: float, begun: Begun | None
    ) -> tuple[Tunnel, RequestStream | None]:
        if begun is not None:
            return begun
        tunnel = self._registry.find(agent_id, excluding=refused)
        if tunnel is None and not refused:
            tunnel = await self._registry.wait_for_tunnel(agent_id, seconds)
        if tunnel is None:
            if refused:
                raise TunnelSaturated(agent_id)
            raise AgentNotConnected(agent_id, waited_seconds=seconds)
        return tunnel, None

    async def _open(self, tunnel: Tunnel, forwarding: Forwarding, queue: str) -> RequestStream:
        agent_id, connection = tunnel.agent_id, tunnel.connection
        if forwarding.head.protocol is not None and not connection.peer_allows_upgrades:
            raise UpstreamAnswerUnusable(
                agent_id, "this agent takes no upgrades (exec, attach, port-forward)", hop="agent"
            )
        try:
            return await connection.open(forwarding.head, queue=queue)
        except StreamLimitReached:
            raise TunnelSaturated(agent_id) from None
        except ConnectionEnded as exc:
            raise _NotProcessed from exc

    async def _relay(
        self, downstream: Downstream, agent_id: str, upstream: RequestStream, forwarding: Forwarding
    ) -> None:
        try:
            await relay(downstream, upstream, forwarding, forwarding.progress)
        except UpstreamFailed as exc:
            if forwarding.progress.response_started:
                raise
            if isinstance(exc.__cause__, StreamRefused):
                raise _NotProcessed from exc
            if isinstance(exc, UpgradeUnanswered):
                raise UpgradeAbandoned(str(exc)) from exc
            if isinstance(exc, UpstreamSilent):
                raise UpstreamTimeout(agent_id, self._deadlines.seconds) from exc
            raise _failure(agent_id, exc) from exc


Begun = tuple[Tunnel, RequestStream]
"""The tunnel through which an exchange was sent, and its stream."""


class _NotProcessed(Exception):
    """The agent has not seen the request."""


async def _read_report(word: bytes, status: int, body: BodyReader) -> AgentReport:
    text = b""
    with trio.move_on_after(AGENT_REPORT_SECONDS):
        while len(text) < AGENT_REPORT_BYTES:
            data = await body.receive()
            if not data:
                break
            text += data
    return agent_report(word, status, text[:AGENT_REPORT_BYTES])


def _failure(agent_id: str, exc: UpstreamFailed) -> ProxyError:
    cause = exc.__cause__
    if isinstance(cause, ConnectionEnded):
        return TunnelLost(agent_id)
    if isinstance(cause, RemoteProtocolError):
        return UpstreamAnswerUnusable(agent_id, str(cause), hop="agent")
    if cause is None:
        return UpstreamAnswerUnusable(agent_id, str(exc))
    return UpstreamAnswerUnusable(
        agent_id,
        "the cluster's answer broke off before its head was complete; the request may have been carried out, "
        "so look before you repeat it",
    )


def upstream_head(
    request: RequestHead, address: Address, info: RequestInfo, identity: Identity, fields: Fields
) -> RequestHead:
    """The head that the agent gets: raw target, cleaned field lines, one identity block.

    The order matters: what the caller's Connection field names goes first, then every identity field of the caller's,
    and ours is added last, so that nothing a caller sends can remove or double it.
    """
    kept = request_to_pass_on(fields)
    if info.is_watch:
        kept = drop_gzip_from_accept_encoding(kept)
    kept = [*kept, (FIELD_NAME, encode_identity(identity))]
    return RequestHead(
        request.method,
        address.target,
        address.origin,
        kept,
        request.protocol,
        request.content_length,
        request.ended,
    )


def downstream_head(head: ResponseHead, address: Address, request_id: str) -> ResponseHead:
    """The head that the caller gets. Raises `UpstreamAnswerUnusable` for a redirect to another host."""
    fields = response_to_pass_on(head.fields)
    if 300 <= head.status < 400 and head.status != 304:
        fields = [
            (name, _rewritten_location(value, address)) if name == b"location" else (name, value)
            for name, value in fields
        ]
    if head.status >= 200 or head.status == 101:
        fields = [*fields, (REQUEST_ID_FIELD, request_id.encode())]
    return ResponseHead(head.status, fields, head.content_length, head.ended)


def _rewritten_location(value: bytes, address: Address) -> bytes:
    """A path comes back here under our prefix; another host would get the caller's credentials (CVE-2022-3172)."""
    # As browsers read it, which take a backslash for "/" and drop tabs.
    seen = value.replace(b"\t", b"").replace(b"\\", b"/")
    if seen.startswith(b"//") or b":" in seen.partition(b"/")[0].partition(b"?")[0]:
        raise UpstreamAnswerUnusable(address.agent_id, "the upstream redirects to another host, which is not followed")
    return address.prefix + value if value.startswith(b"/") else value
