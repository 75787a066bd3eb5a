"""Liveness, readiness and metrics over HTTP/1.1, for probes and people; no TLS, no credentials, nothing secret.

- ``/livez``: the event loop runs, and the agent has not been without a tunnel for very long, trying.
- ``/readyz``: a tunnel takes requests, and the kube-apiserver answers the agent.
- ``/metrics``: Prometheus' text format, made from the counters of this moment.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Awaitable, Callable

import trio

from agent.cluster_facts import Reachability
from operations.values import Address, format_seconds
from tunnel.errors import RemoteProtocolError
from tunnel.http1.limits import Http1Limits
from tunnel.http1.server import Http1Server
from tunnel.listening import listen, serve
from tunnel.messages import Downstream, Fields, ResponseHead
from tunnel.transports.base import Transport

logger = logging.getLogger(__name__)

LIMITS = Http1Limits(request_head_bytes=8_192, request_head_lines=50, idle_seconds=30.0)

MAX_CONNECTIONS = 32

_TEXT: Fields = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Connectedness:
    """What the supervisor knows of tunnels at this moment."""

    is_connected: bool
    """A tunnel takes requests."""
    disconnected_seconds: float
    """For how long there has been none."""
    is_draining: bool
    last_failure: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer to a probe."""

    status: int
    text: str


def liveness(state: Connectedness, *, allowed_seconds: float) -> Verdict:
    """Whether a restart may help."""
    if state.is_connected or state.is_draining or state.disconnected_seconds < allowed_seconds:
        return Verdict(status=200, text="ok")
    why = f": {state.last_failure}" if state.last_failure else ""
    return Verdict(status=503, text=f"no tunnel to kas for {format_seconds(int(state.disconnected_seconds))}{why}")


def readiness(state: Connectedness, upstream: Reachability) -> Verdict:
    """Whether a request of kas would be served now, and if not, everything that stands against it."""
    reasons = []
    if state.is_draining:
        reasons.append("the agent is draining")
    elif not state.is_connected:
        reasons.append(f"no tunnel to kas: {state.last_failure or 'not connected yet'}")
    if not upstream.is_ready:
        reasons.append(upstream.reason)
    return Verdict(status=503 if reasons else 200, text="\n".join(reasons) or "ok")


class HealthListener:
    """Serves the three paths."""

    def __init__(
        self,
        address: Address,
        *,
        disconnected_seconds: float,
        connectedness: Callable[[], Connectedness],
        reachability: Callable[[], Awaitable[Reachability]],
        metrics: Callable[[], str],
    ) -> None:
        self._address = address
        self._disconnected_seconds = disconnected_seconds
        self._connectedness = connectedness
        self._reachability = reachability
        self._metrics = metrics
        self._room = trio.Semaphore(MAX_CONNECTIONS)

    async def run(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen and serve until cancelled; ``started(port)``. Raises `OSError` where the address cannot be had."""
        listeners = await listen(self._address.host or None, self._address.port)
        port: int = listeners[0].getsockname()[1]
        logger.info("health listener", extra={"address": str(Address(self._address.host, port))})
        task_status.started(port)
        await serve(listeners, self._serve, name="health listener")

    async def _serve(self, transport: Transport) -> None:
        try:
            self._room.acquire_nowait()
        except trio.WouldBlock:
            transport.abort()
            return
        try:
            await Http1Server(transport, self._answer, limits=LIMITS, render_error=_render_error).run()
        finally:
            self._room.release()

    async def _answer(self, downstream: Downstream) -> None:
        request = downstream.request
        path = request.target.partition(b"?")[0]
        if request.method not in (b"GET", b"HEAD"):
            raise RemoteProtocolError("only GET and HEAD are answered here", status=405)
        if path == b"/livez":
            verdict = liveness(self._connectedness(), allowed_seconds=self._disconnected_seconds)
        elif path == b"/readyz":
            verdict = readiness(self._connectedness(), await self._reachability())
        elif path == b"/metrics":
            verdict = Verdict(status=200, text=self._metrics().rstrip("\n"))
        else:
            verdict = Verdict(status=404, text="there are /livez, /readyz and /metrics")
        body = verdict.text.encode("utf-8", "replace") + b"\n"
        head = ResponseHead(verdict.status, [*_TEXT, (b"content-length", b"%d" % len(body))], len(body))
        await downstream.send_response(head, b"" if request.method == b"HEAD" else body, end=True)


def _render_error(_: int, text: str) -> tuple[Fields, bytes]:
    return list(_TEXT), text.encode("utf-8", "replace") + b"\n"
