"""Which tunnels are here: registered when the agent's SETTINGS have arrived, removed when the tunnel ends.

Decisions only, no I/O: who may connect, who replaces whom, which tunnel takes a request. One kas, one registry; which
other kas holds an agent is not this module's business.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterator

import trio

from tunnel.connection import Connection
from tunnel.errors import HandshakeError
from tunnel.handshake import Hello

logger = logging.getLogger(__name__)

MAX_TUNNELS_PER_AGENT = 64
"""Replicas of one agent; a bound, not a recommendation."""

TAKEOVER_WINDOW_SECONDS = 60.0
MAX_TAKEOVERS = 3
"""More takeovers than this within the window mean that two installations share a name or a token."""

ALREADY_CONNECTED_WAIT_SECONDS = 30.0


@dataclasses.dataclass(slots=True, eq=False, kw_only=True)
class Tunnel:
    """One tunnel of one replica, and what its handshake said."""

    agent_id: str
    tunnel_id: str
    hello: Hello
    connection: Connection
    credential_id: str
    registered_at: float
    """Seconds of the process's clock (`trio.current_time`)."""

    @property
    def is_usable(self) -> bool:
        """Whether a request may be opened on it."""
        return self.connection.is_usable

    def __repr__(self) -> str:
        return (
            f"<Tunnel {self.tunnel_id} of {self.agent_id}/{self.hello.replica}, {self.connection.open_streams} streams>"
        )


@dataclasses.dataclass(slots=True)
class _Agent:
    tunnels: list[Tunnel] = dataclasses.field(default_factory=list)
    takeovers: dict[str, deque[float]] = dataclasses.field(default_factory=dict)
    arrived: trio.Event = dataclasses.field(default_factory=trio.Event)
    waiting: int = 0


class Registry:
    """Tunnels by agent id."""

    def __init__(self, kas_id: str, *, clock: Callable[[], float] = trio.current_time) -> None:
        self._kas_id = kas_id
        self._clock = clock
        self._agents: dict[str, _Agent] = {}

    def __iter__(self) -> Iterator[Tunnel]:
        for agent in list(self._agents.values()):
            yield from agent.tunnels

    def check(self, agent_id: str, hello: Hello) -> None:
        """Raise `HandshakeError` (409, 503) where this handshake must be refused (wire contract §1)."""
        agent = self._agents.get(agent_id)
        tunnels = agent.tunnels if agent is not None else []
        same_process = [tunnel for tunnel in tunnels if tunnel.hello.process == hello.process]
        if self._kas_id in hello.holds and not any(tunnel.tunnel_id == hello.replaces for tunnel in same_process):
            raise HandshakeError(
                "this kas already has a tunnel of this process",
                status=409,
                reason="already-connected",
                retry_after=ALREADY_CONNECTED_WAIT_SECONDS,
            )
        if agent is None:
            return
        if len(tunnels) >= MAX_TUNNELS_PER_AGENT and not self._replaced_by(agent, hello):
            raise HandshakeError(
                f"agent {agent_id} has {len(tunnels)} tunnels here, and no more are accepted",
                status=503,
                reason="too-many-tunnels",
                retry_after=ALREADY_CONNECTED_WAIT_SECONDS,
            )
        self._check_takeovers(agent, agent_id, hello)

    def _check_takeovers(self, agent: _Agent, agent_id: str, hello: Hello) -> None:
        others = [t for t in agent.tunnels if t.hello.replica == hello.replica and t.hello.process != hello.process]
        times = agent.takeovers.get(hello.replica)
        if not others or times is None:
            return
        while times and self._clock() - times[0] > TAKEOVER_WINDOW_SECONDS:
            times.popleft()
        if len(times) >= MAX_TAKEOVERS:
            logger.error(
                "two agents share this name or token: processes take the tunnel from each other; the later one is refused",
                extra={"agent_id": agent_id, "replica": hello.replica},
            )
            raise HandshakeError(
                f"another process of agent {agent_id} calls itself {hello.replica!r} as well: "
                "two agents share this name or token",
                status=409,
                reason="shared-name",
                retry_after=ALREADY_CONNECTED_WAIT_SECONDS,
            )

    def _replaced_by(self, agent: _Agent, hello: Hello) -> list[Tunnel]:
        return [
            tunnel
            for tunnel in agent.tunnels
            if tunnel.hello.process == hello.process or tunnel.hello.replica == hello.replica
        ]

    def register(self, tunnel: Tunnel) -> None:
        """Let requests use this tunnel, and end or drain the one that it replaces. Waits for nobody."""
        agent = self._agents.setdefault(tunnel.agent_id, _Agent())
        for old in self._replaced_by(agent, tunnel.hello):
            agent.tunnels.remove(old)
            if old.hello.process == tunnel.hello.process and tunnel.hello.replaces == old.tunnel_id:
                # Asked for by the agent: what runs on the old one ends in its own time.
                old.connection.drain(b"replaced")
                continue
            if old.hello.process != tunnel.hello.process:
                times = agent.takeovers.setdefault(tunnel.hello.replica, deque(maxlen=MAX_TAKEOVERS + 1))
                times.append(self._clock())
            logger.info(
                "a new tunnel of the same replica replaces the old one",
                extra={"agent_id": tunnel.agent_id, "replica": old.hello.replica, "tunnel_id": old.tunnel_id},
            )
            old.connection.abort()
        agent.tunnels.append(tunnel)
        agent.arrived.set()
        agent.arrived = trio.Event()

    def remove(self, tunnel: Tunnel) -> None:
        """Forget a tunnel that has ended; the second time does nothing."""
        agent = self._agents.get(tunnel.agent_id)
        if agent is None:
            return
        if tunnel in agent.tunnels:
            agent.tunnels.remove(tunnel)
        self._tidy(tunnel.agent_id, agent)

    def _tidy(self, agent_id: str, agent: _Agent) -> None:
        if not agent.tunnels and not agent.waiting and not self._recent_takeovers(agent):
            self._agents.pop(agent_id, None)

    def _recent_takeovers(self, agent: _Agent) -> bool:
        now = self._clock()
        return any(times and now - times[-1] <= TAKEOVER_WINDOW_SECONDS for times in agent.takeovers.values())

    def find(self, agent_id: str, *, excluding: Collection[Tunnel] = ()) -> Tunnel | None:
        """The usable tunnel with the fewest streams, the newest among equals; None where there is none."""
        agent = self._agents.get(agent_id)
        if agent is None:
            return None
        best: Tunnel | None = None
        for tunnel in reversed(agent.tunnels):
            if not tunnel.is_usable or tunnel in excluding:
                continue
            if best is None or tunnel.connection.open_streams < best.connection.open_streams:
                best = tunnel
        return best

    async def wait_for_tunnel(self, agent_id: str, seconds: float) -> Tunnel | None:
        """`find`, waiting up to so many seconds for the agent to connect. Cancelling leaves nothing behind."""
        tunnel = self.find(agent_id)
        if tunnel is not None or seconds <= 0:
            return tunnel
        agent = self._agents.setdefault(agent_id, _Agent())
        agent.waiting += 1
        try:
            with trio.move_on_after(seconds):
                while (tunnel := self.find(agent_id)) is None:
                    await agent.arrived.wait()
        finally:
            agent.waiting -= 1
            self._tidy(agent_id, agent)
        return tunnel

    def tunnels_of(self, agent_id: str) -> list[Tunnel]:
        """All tunnels of one agent, oldest first."""
        agent = self._agents.get(agent_id)
        return list(agent.tunnels) if agent is not None else []
