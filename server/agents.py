"""Accepting agents: the handshake, the life of one tunnel, and its place in the registry.

A tunnel is registered when the agent's SETTINGS have arrived and removed when it ends, whatever ends it. Revoking the
token under which it was opened closes it.
"""

from __future__ import annotations

import logging
import math
import secrets

import trio

from server.directory import AgentEntry, Directory
from server.registry import Registry, Tunnel
from server.revocations import Revocations
from tunnel.acceptor import accept_tunnel
from tunnel.connection import Connection
from tunnel.errors import ConnectionEnded, HandshakeError
from tunnel.h2.engine import EngineConfig, Role
from tunnel.h2.windows import WindowBudget
from tunnel.handshake import Hello, Welcome
from tunnel.liveness import ConnectionTimes
from tunnel.transports.base import Transport
from tunnel.transports.carrier import Carrier

logger = logging.getLogger(__name__)

PROTOCOL_VERSION = 1


class AgentGate:
    """Serves the connections that agents open."""

    def __init__(
        self,
        *,
        kas_id: str,
        directory: Directory,
        registry: Registry,
        revocations: Revocations,
        engine: EngineConfig,
        budget: WindowBudget,
        times: ConnectionTimes,
        tunnel_age: float = math.inf,
    ) -> None:
        self._kas_id = kas_id
        self._directory = directory
        self._registry = registry
        self._revocations = revocations
        self._engine = engine
        self._budget = budget
        self._times = times
        self._tunnel_age = tunnel_age
        self.is_draining = False
        """While True, handshakes are answered with 503, so that a load balancer's next try reaches another kas."""

    async def serve(self, carrier: Carrier) -> None:
        """Serve one accepted connection to its end. Raises nothing that its peer can cause."""
        entry: AgentEntry | None = None

        async def decide(hello: Hello) -> Welcome:
            nonlocal entry
            entry = await self._authenticate(hello)
            self._registry.check(entry.agent_id, hello)
            return Welcome(
                version=PROTOCOL_VERSION,
                kas_id=self._kas_id,
                tunnel_id=secrets.token_hex(8),
                agent_id=entry.agent_id,
            )

        try:
            transport, hello, welcome = await accept_tunnel(carrier, decide=decide)
        except HandshakeError as exc:
            logger.warning(
                "an agent's handshake was refused",
                extra={"peer": carrier.info.peer, "status": exc.status, "reason": exc.reason, "error": str(exc)},
            )
            return
        except trio.BrokenResourceError as exc:
            logger.info("a connection to the agent listener ended in its handshake", extra={"error": str(exc)})
            return
        assert entry is not None
        await self._run_tunnel(transport, hello, welcome, entry)

    async def _authenticate(self, hello: Hello) -> AgentEntry:
        if self.is_draining:
            raise HandshakeError("kas is shutting down", status=503, reason="draining", retry_after=1.0)
        entry = await self._directory.authenticate_agent(hello.token)
        if entry is None:
            raise HandshakeError("the agent token is not known to this kas", status=401, reason="unauthorized")
        return entry

    async def _run_tunnel(self, transport: Transport, hello: Hello, welcome: Welcome, entry: AgentEntry) -> None:
        connection = Connection(
            transport,
            role=Role.REQUESTER,
            config=self._engine,
            budget=self._budget,
            times=self._times,
            name=f"tunnel {welcome.tunnel_id} of agent {entry.agent_id}",
        )
        tunnel = Tunnel(
            agent_id=entry.agent_id,
            tunnel_id=welcome.tunnel_id,
            hello=hello,
            connection=connection,
            credential_id=entry.credential_id,
            registered_at=trio.current_time(),
        )
        facts = {
            "agent_id": entry.agent_id,
            "replica": hello.replica,
            "tunnel_id": welcome.tunnel_id,
            "transport": transport.info.kind,
            "peer": transport.info.peer,
            "agent_version": hello.agent_version,
        }

        def revoke() -> None:
            logger.warning("the agent's token was revoked: its tunnel is closed", extra=facts)
            connection.close(debug=b"revoked")

        self._revocations.enter(entry.credential_id, revoke)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._drain_at_age, connection)
                try:
                    await connection.run(task_status=_Registration(self._registry, tunnel, facts))
                    logger.info("tunnel closed", extra=facts)
                except ConnectionEnded as exc:
                    logger.info("tunnel ended", extra={**facts, "error": str(exc)})
                nursery.cancel_scope.cancel()
        finally:
            self._registry.remove(tunnel)
            self._revocations.leave(entry.credential_id, revoke)

    async def _drain_at_age(self, connection: Connection) -> None:
        await trio.sleep(self._tunnel_age)
        connection.drain(b"age")


class _Registration(trio.TaskStatus[None]):
    """Registers a tunnel at the moment at which its connection has started."""

    def __init__(self, registry: Registry, tunnel: Tunnel, facts: dict[str, str]) -> None:
        self._registry = registry
        self._tunnel = tunnel
        self._facts = facts

    def started(self, value: None = None) -> None:
        """Called by `Connection.run` once the agent's SETTINGS are here."""
        logger.info("tunnel registered", extra=self._facts)
        self._registry.register(self._tunnel)
