"""The agent as a whole: what serves requests, what keeps the tunnel up, and what tells its state.

`Agent.run` is one nursery that can stand beside others: agentk runs it under signal handlers, `moorline up` beside a
kas.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import random
import secrets
import socket
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import trio

from agent.backoff import Backoff, BackoffTimes
from agent.cluster_facts import ClusterFacts
from agent.command_line import Settings
from agent.dialling import KasDialer, Replica
from agent.dispatch import ApiServerOrigin, Dispatcher, Origin, answer_failure
from agent.health import Connectedness, HealthListener
from agent.metrics import render_metrics
from agent.own_api import OwnApi
from agent.pool import ConnectionPool, PoolLimits
from agent.supervisor import Supervisor, Tunnel
from agent.upstream_transport import dialer_for, proxy_for
from operations.version import version
from tunnel.connection import Connection
from tunnel.h2.config import TUNNEL_RESPONDER, EngineConfig
from tunnel.h2.engine import Role
from tunnel.h2.windows import WindowBudget
from tunnel.handshake import VERSIONS, Welcome
from tunnel.liveness import ConnectionTimes
from tunnel.streams import ServedStream
from tunnel.transports.base import Transport

logger = logging.getLogger(__name__)

RETIRE_STREAM_ID = 2**30
"""Stream ids are used up at 2^31; from here on another tunnel takes over (docs/protocol.md, Draining)."""

NO_ENVIRONMENT: Mapping[str, str] = MappingProxyType({})

OWN_FILES = 128
"""File descriptors that are not connections to the kube-apiserver; each request needs one of those."""


class Agent:
    """One agent. Makes everything, starts nothing."""

    def __init__(
        self, settings: Settings, *, environment: Mapping[str, str] = NO_ENVIRONMENT, open_files: int = sys.maxsize
    ) -> None:
        """``environment`` names proxies and the Pod, ``open_files`` is the limit on file descriptors.

        Raises `ValueError` for a proxy that cannot be one.
        """
        config = settings.config
        self._config = config
        self._credentials = credentials = settings.credentials
        proxy = proxy_for(credentials, environment) if not settings.is_in_cluster else None
        self._pool = ConnectionPool(
            credentials,
            dial=dialer_for(credentials, proxy),
            limits=PoolLimits(
                idle_seconds=config.timeouts.upstream_idle,
                idle_connections=config.limits.idle_connections,
                connect_seconds=config.timeouts.upstream_connect,
            ),
        )
        self._facts = ClusterFacts(self._pool)
        self._api_server = ApiServerOrigin(self._pool, head_seconds=config.timeouts.upstream_head)
        origins: dict[bytes, Origin] = {b"kubernetes": self._api_server, b"agentk": OwnApi(self.describe)}
        self._dispatcher = Dispatcher(origins, modes=config.access.modes)
        self._replica = Replica(
            version=version(),
            name=config.replica or environment.get("POD_NAME") or socket.gethostname(),
            process=secrets.token_hex(8),
            origins=tuple(origin.decode() for origin in origins),
        )
        self._dialer = KasDialer(
            config.kas,
            settings.token,
            self._replica,
            cluster_uid=lambda: self._facts.uid,
            environment=environment,
        )
        self._supervisor = Supervisor(
            self._dial,
            self._connect,
            Backoff(BackoffTimes(last_ceiling=config.timeouts.reconnect), draw=random.uniform),
            kas=str(self._dialer.address),
            token_source=settings.token.source,
        )
        self._engine = engine_config(config.limits.concurrent_requests, open_files)
        self._budget = WindowBudget(config.limits.buffered_bytes)
        self._times = ConnectionTimes(ping_interval=config.timeouts.ping_interval, ping_deadline=config.timeouts.ping)
        self._started_at = 0.0
        self._deadline = trio.CancelScope()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:  # noqa: ASYNC128 - the supervisor reports it
        """Serve until `drain` has done its work or this is cancelled; ``started()`` with the first tunnel.

        Raises `OSError` where the health listener's address cannot be had. What kas and the cluster do raises nothing.
        """
        self._started_at = trio.current_time()
        health = HealthListener(
            self._config.health.address,
            disconnected_seconds=self._config.health.disconnected,
            connectedness=self._connectedness,
            reachability=self._facts.reachability,
            metrics=lambda: render_metrics(self._supervisor, self._pool, self._dispatcher),
        )
        logger.info(
            "agentk starts",
            extra={
                "version": self._replica.version,
                "kas": str(self._dialer.address),
                "replica": self._replica.name,
                "cluster": str(self._credentials.address),
                "credentials": self._credentials.description,
                "access_modes": ", ".join(self._config.access.modes),
            },
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(self._pool.run)
            await nursery.start(self._api_server.run)
            await nursery.start(health.run)
            with self._deadline:
                await self._supervisor.run(task_status=task_status)
            nursery.cancel_scope.cancel()
        if self._deadline.cancelled_caught:
            logger.warning("the drain took too long; what still ran was cut")

    def drain(self) -> None:
        """Take nothing new, let what runs end for at most ``timeouts.drain``, then end. Synchronous; `run` returns."""
        if self._supervisor.is_draining:
            return
        logger.info(
            "draining", extra={"open_streams": self._open_streams(), "grace_seconds": self._config.timeouts.drain}
        )
        self._deadline.deadline = trio.current_time() + self._config.timeouts.drain
        self._supervisor.drain()

    def describe(self) -> dict[str, Any]:
        """What ``GET /v1/info`` answers."""
        return {
            "agent_version": self._replica.version,
            "protocol_versions": list(VERSIONS),
            "replica": self._replica.name,
            "process": self._replica.process,
            "cluster_uid": self._facts.uid,
            "kubernetes_version": self._facts.kubernetes_version,
            "origins": list(self._replica.origins),
            "access_modes": list(self._config.access.modes),
            "uptime_seconds": round(trio.current_time() - self._started_at, 1),
            "open_streams": self._open_streams(),
            "tunnels": [
                {"kas": tunnel.welcome.kas_id, "tunnel": tunnel.welcome.tunnel_id, "leaving": bool(tunnel.leaving)}
                for tunnel in self._supervisor.tunnels
            ],
        }

    def _open_streams(self) -> int:
        return sum(tunnel.connection.open_streams for tunnel in self._supervisor.tunnels)

    def _connectedness(self) -> Connectedness:
        since = self._supervisor.disconnected_since
        return Connectedness(
            is_connected=self._supervisor.current is not None,
            disconnected_seconds=0.0 if since is None else trio.current_time() - since,
            is_draining=self._supervisor.is_draining,
            last_failure=self._supervisor.last_failure,
        )

    async def _dial(self, holds: tuple[str, ...], replaces: str | None) -> tuple[Transport, Welcome]:
        await self._facts.read_uid()
        return await self._dialer.dial(holds, replaces)

    def _connect(self, transport: Transport, tunnel: Tunnel) -> Connection:
        async def handle(stream: ServedStream) -> None:
            if stream.stream_id >= RETIRE_STREAM_ID:
                self._supervisor.retire(tunnel, "its stream ids are nearly used up")
            if stream.head_too_large:
                await answer_failure(stream, 431, "bad-request", "the head of the request is larger than agents accept")
            else:
                await self._dispatcher.handle(stream)

        def begin(stream: ServedStream) -> bool:
            return stream.stream_id < RETIRE_STREAM_ID and self._dispatcher.begin(stream)

        return Connection(
            transport,
            role=Role.RESPONDER,
            config=self._engine,
            handler=handle,
            begin=begin,
            budget=self._budget,
            times=self._times,
            on_going_away=functools.partial(self._supervisor.on_leaving, tunnel),
            name=f"tunnel {tunnel.welcome.tunnel_id} to {tunnel.welcome.kas_id}",
        )


def engine_config(concurrent_requests: int, open_files: int) -> EngineConfig:
    """The engine's limits: as many requests as configured, or as file descriptors allow."""
    allowed = min(concurrent_requests, max(open_files - OWN_FILES, 1))
    if allowed < concurrent_requests:
        logger.warning(
            "the limit on open files allows fewer requests at a time than configured",
            extra={"open_files": open_files, "concurrent_requests": allowed, "configured": concurrent_requests},
        )
    return dataclasses.replace(TUNNEL_RESPONDER, max_concurrent_streams=allowed)
