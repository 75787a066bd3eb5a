"""Keeps a tunnel up: dials kas, waits between attempts, dials elsewhere when kas goes away, drains at the end.

One tunnel takes requests at a time. When kas says that it will open nothing more (it drains, or the tunnel is old), the
next one is dialled at once with ``Moorline-Replaces``, and the old one stays until its streams have ended. So there may
be several, bounded by `MAX_TUNNELS`.

A change of state is one line in the log: connected, not connected and why, going away. An attempt that fails like the
one before is a line at debug level only. What is spoken on a tunnel is not this module's business.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio

from agent.backoff import Backoff
from tunnel.errors import ConnectionEnded, HandshakeError
from tunnel.handshake import Welcome
from tunnel.transports.base import Transport
from tunnel.wakeup import Wakeup

logger = logging.getLogger(__name__)

STABLE_SECONDS = 30.0
"""A tunnel that kas gives up sooner than this is not replaced at once, but after a wait like one that was lost."""

MAX_TUNNELS = 4
"""The one that takes requests, and older ones that still carry watches and sessions. The oldest gives way."""

SETTINGS_SECONDS = 10.0
"""For kas's SETTINGS after the handshake."""

ALREADY_CONNECTED_SECONDS = 30.0
REFUSED_SECONDS = 10.0
"""The shortest wait after a refusal that only a person can lift: a token, an address, a version."""

REMINDER_SECONDS = 300.0
"""While the same failure goes on, it is logged this often."""

_NEEDS_A_PERSON = frozenset({401, 403, 404, 426})


class TunnelConnection(Protocol):
    """What this module needs of `tunnel.connection.Connection`."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Drive it; ``started()`` when kas's SETTINGS are here. Raises `ConnectionEnded`."""
        ...

    def close(self, *, debug: bytes = b"") -> None:
        """Say GOAWAY and end."""
        ...

    def drain(self, debug: bytes = b"drain") -> None:
        """Take nothing new, let what runs end, then close."""
        ...

    @property
    def open_streams(self) -> int:
        """Requests that have not ended."""
        ...

    @property
    def round_trip_seconds(self) -> float | None:
        """The last measured round trip."""
        ...


@dataclasses.dataclass(slots=True, eq=False)
class Tunnel:
    """One tunnel."""

    welcome: Welcome
    opened_at: float
    """On the clock of `trio.current_time`."""
    replaces: str = ""
    """The id of the tunnel that it took over from."""
    leaving: str = ""
    """Why no more requests will come on it; "" while they may."""
    connection: TunnelConnection = dataclasses.field(init=False, repr=False)


Dial = Callable[[tuple[str, ...], str | None], Awaitable[tuple[Transport, Welcome]]]
"""``dial(holds, replaces)``: one attempt. Raises `HandshakeError`."""

Connect = Callable[[Transport, Tunnel], TunnelConnection]
"""``connect(transport, tunnel)``: the connection on a transport, not yet running. When kas goes away it is to call
`Supervisor.on_leaving` with the tunnel and the reason."""


class Supervisor:
    """The tunnels of one agent."""

    def __init__(self, dial: Dial, connect: Connect, backoff: Backoff, *, kas: str, token_source: str) -> None:
        """``kas`` and ``token_source`` are for the log: what is dialled, and which file to look at."""
        self._dial = dial
        self._connect = connect
        self._backoff = backoff
        self._kas = kas
        self._token_source = token_source
        self._tunnels: list[Tunnel] = []
        self._changed = Wakeup()
        self._draining = False
        self._dialling = trio.CancelScope()
        self._is_unstable = False
        self._complaint = ""
        self._complained_at = 0.0
        self.disconnected_since: float | None = None
        """Since when there is no tunnel that takes requests (`trio.current_time`); None while there is one."""
        self.last_failure = ""
        """Why the last attempt failed; "" while connected."""
        self.opened = 0
        self.failed = 0

    @property
    def tunnels(self) -> tuple[Tunnel, ...]:
        """Those that are up, the oldest first."""
        return tuple(self._tunnels)

    @property
    def current(self) -> Tunnel | None:
        """The tunnel that takes requests."""
        for tunnel in reversed(self._tunnels):
            if not tunnel.leaving:
                return tunnel
        return None

    @property
    def is_draining(self) -> bool:
        """Whether `drain` was called."""
        return self._draining

    def drain(self) -> None:
        """Dial no more, take nothing new, let what runs end. `run` then returns; its caller limits how long."""
        if not self._draining:
            self._draining = True
            self._dialling.cancel()
            for tunnel in self._tunnels:
                tunnel.connection.drain()
            self._changed.call()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a tunnel up until `drain`, and return when the last one has ended; ``started()`` with the first."""
        self.disconnected_since = trio.current_time()
        async with trio.open_nursery() as nursery:
            while not self.is_draining:
                if self.current is not None:
                    await self._changed.wait()
                    continue
                with trio.CancelScope() as self._dialling:
                    if self._is_unstable:
                        await self._wait_after_end()
                    try:
                        tunnel = await self._dial_once()
                        with trio.fail_after(SETTINGS_SECONDS):
                            await nursery.start(self._hold, tunnel)
                    except HandshakeError as exc:
                        await self._wait_to_retry(exc)
                    except trio.TooSlowError:
                        text = f"{self._kas}: no HTTP/2 SETTINGS within {SETTINGS_SECONDS:g} s"
                        await self._wait_to_retry(HandshakeError(text, reason="timeout"))
                    except ConnectionEnded as exc:
                        text = f"{self._kas}: the connection ended before it was registered: {exc}"
                        await self._wait_to_retry(HandshakeError(text, reason="ended"))
                    else:
                        self._on_opened(tunnel)
                        if self.opened == 1:
                            task_status.started()

    async def _dial_once(self) -> Tunnel:
        holds = tuple(dict.fromkeys(tunnel.welcome.kas_id for tunnel in self._tunnels))
        replaces = self._tunnels[-1].welcome.tunnel_id if self._tunnels else None
        transport, welcome = await self._dial(holds, replaces)
        tunnel = Tunnel(welcome, trio.current_time(), replaces or "")
        tunnel.connection = self._connect(transport, tunnel)
        return tunnel

    def _on_opened(self, tunnel: Tunnel) -> None:
        self.opened += 1
        self.last_failure = self._complaint = ""
        self._backoff.succeeded()
        welcome = tunnel.welcome
        facts = {"kas": self._kas, "agent_id": welcome.agent_id, "kas_id": welcome.kas_id}
        if tunnel.replaces:
            facts["replaces"] = tunnel.replaces
        logger.info("connected to kas", extra={**facts, "tunnel_id": welcome.tunnel_id})
        older = [old for old in self._tunnels if old is not tunnel]
        for old in older:
            old.connection.drain(b"replaced")
        for old in older[: max(len(self._tunnels) - MAX_TUNNELS, 0)]:
            logger.warning(
                "too many old tunnels are still in use; the oldest is closed",
                extra={"tunnel_id": old.welcome.tunnel_id, "open_streams": old.connection.open_streams},
            )
            old.connection.close(debug=b"replaced")

    async def _hold(self, tunnel: Tunnel, *, task_status: trio.TaskStatus[None]) -> None:  # noqa: ASYNC128 - the connection reports it
        """Run one tunnel to its end. Before it has started, failures are the caller's; after that they stay here."""
        registration = _Registration(self, tunnel, task_status)
        reason = "closed"
        try:
            await tunnel.connection.run(task_status=registration)
        except ConnectionEnded as exc:
            if not registration.is_done:
                raise
            reason = str(exc)
        except Exception as exc:
            # A bug in one connection costs that tunnel. The agent dials again.
            logger.exception("a tunnel crashed", extra={"tunnel_id": tunnel.welcome.tunnel_id})
            reason = "it crashed"
            if not registration.is_done:
                raise ConnectionEnded(reason, local=True) from exc
        finally:
            if registration.is_done:
                self._on_ended(tunnel)
        self._report_end(tunnel, reason)

    def add(self, tunnel: Tunnel) -> None:
        """The connection of this tunnel has started."""
        self._tunnels.append(tunnel)
        self.disconnected_since = None

    def _on_ended(self, tunnel: Tunnel) -> None:
        was_current = tunnel is self.current
        self._tunnels.remove(tunnel)
        self._backoff.lasted(trio.current_time() - tunnel.opened_at)
        if was_current:
            # kas is gone without a word: everybody else lost it in the same moment, so nobody dials at once.
            self._is_unstable = True
            self.disconnected_since = trio.current_time()
        self._changed.call()

    def _report_end(self, tunnel: Tunnel, reason: str) -> None:
        facts: dict[str, Any] = {
            "kas_id": tunnel.welcome.kas_id,
            "tunnel_id": tunnel.welcome.tunnel_id,
            "reason": reason,
            "after_seconds": round(trio.current_time() - tunnel.opened_at, 1),
        }
        if tunnel.leaving or self.is_draining:
            logger.info("the tunnel has ended", extra=facts)
            return
        self.last_failure = reason
        logger.warning("the tunnel to kas was lost; dialling again", extra=facts)

    def retire(self, tunnel: Tunnel, reason: str) -> None:
        """Dial another tunnel which takes over from this one, and let what runs here end."""
        if tunnel.leaving or self.is_draining:
            return
        tunnel.leaving = reason
        now = trio.current_time()
        if now - tunnel.opened_at < STABLE_SECONDS:
            self._is_unstable = True
        if self.current is None:
            self.disconnected_since = now
        logger.info(
            "the tunnel takes no more requests; dialling another",
            extra={
                "kas_id": tunnel.welcome.kas_id,
                "tunnel_id": tunnel.welcome.tunnel_id,
                "reason": reason,
                "open_streams": tunnel.connection.open_streams,
            },
        )
        self._changed.call()

    def on_leaving(self, tunnel: Tunnel, reason: str) -> None:
        """kas opens nothing more on this tunnel."""
        self.retire(tunnel, reason or "kas gave no reason")
        tunnel.connection.drain(b"drain")

    async def _wait_after_end(self) -> None:
        self._is_unstable = False
        await trio.sleep(self._backoff.next_wait())

    async def _wait_to_retry(self, failure: HandshakeError) -> None:
        self.failed += 1
        self.last_failure = str(failure)
        at_least = 0.0
        if failure.status == 409:
            at_least = ALREADY_CONNECTED_SECONDS
        elif failure.status in _NEEDS_A_PERSON:
            at_least = REFUSED_SECONDS
        wait = self._backoff.next_wait(asked=failure.retry_after, at_least=at_least)
        self._complain(failure, wait)
        await trio.sleep(wait)

    def _complain(self, failure: HandshakeError, wait: float) -> None:
        facts: dict[str, Any] = {"kas": self._kas, "error": str(failure), "next_try_seconds": round(wait, 1)}
        if failure.status == 401:
            facts["check"] = self._token_source
        now = trio.current_time()
        kind = f"{failure.status} {failure.reason}"
        if kind == self._complaint and now - self._complained_at < REMINDER_SECONDS:
            logger.debug("still not connected to kas", extra=facts)
            return
        if kind == self._complaint:
            facts["attempts"] = self._backoff.failures
        self._complaint, self._complained_at = kind, now
        logger.warning("not connected to kas", extra=facts)


class _Registration(trio.TaskStatus[None]):
    """Notes the moment at which a connection has started, before anybody else runs."""

    def __init__(self, supervisor: Supervisor, tunnel: Tunnel, task_status: trio.TaskStatus[None]) -> None:
        self._supervisor = supervisor
        self._tunnel = tunnel
        self._task_status = task_status
        self.is_done = False

    def started(self, value: None = None) -> None:
        """Called by `TunnelConnection.run`."""
        self.is_done = True
        self._supervisor.add(self._tunnel)
        self._task_status.started()
