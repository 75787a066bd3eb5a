"""kas put together: listeners, directory, registry and pipeline in one nursery, and the order in which they stop.

Stopping: agents are told to dial elsewhere, callers' connections take no new requests, what runs has the drain time to
end; then the rest is cut.
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
import socket
import ssl
from collections.abc import Callable
from functools import partial

import trio

from operations.collector import PAUSES
from operations.values import Address
from operations.watched_files import WatchedFiles
from server.access_log import AccessLog, Observers
from server.addressing import Addressing
from server.agents import AgentGate
from server.authorization import RememberedAnswers
from server.cluster import ClusterQuestions
from server.config import KasConfig, TlsConfig
from server.directory import FileDirectory
from server.exchange import Pipeline
from server.forwarding import Forwarder, ForwardingTimes
from server.leases import Leases
from server.listeners import Front
from server.metrics import ExchangeMetrics, collector_lines, render, tunnel_lines
from server.operations_listener import OperationsListener
from server.registry import Registry
from server.revocations import Revocations
from tunnel.h2.config import FRONT_RESPONDER, TUNNEL_REQUESTER
from tunnel.h2.windows import WindowBudget
from tunnel.http1.limits import Http1Limits
from tunnel.listening import listen, serve
from tunnel.liveness import ConnectionTimes
from tunnel.transports.base import PATIENT_WRITE_SECONDS
from tunnel.transports.tls_contexts import ReloadableServerContext

logger = logging.getLogger(__name__)

CUT_SECONDS = 2.0
"""After the drain time: how long closing may take."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KasAddresses:
    """Where a running kas listens: host and port of each listener."""

    agents: Address
    proxy: Address
    operations: Address


class Kas:
    """One kas. Configuration and files are read by the constructor; nothing runs before `run`."""

    def __init__(self, config: KasConfig) -> None:
        """Raises `ConfigurationError`, `FileProblem`, `OSError` or `ssl.SSLError` for files that cannot be used."""
        self.kas_id = config.id or f"{socket.gethostname()}-{secrets.token_hex(4)}"
        self._config = config
        self._files = WatchedFiles()
        self._revocations = Revocations()
        self._directory = FileDirectory(config.access.file, self._files, ended=self._revoke)
        self._agent_tls = self._watch_tls("agents", config.agents.tls, ("http/1.1",))
        self._proxy_tls = self._watch_tls("proxy", config.proxy.tls, ("h2", "http/1.1"))
        self._drain_requested = trio.Event()
        self._is_ready = False

    def _revoke(self, credential_ids: frozenset[str]) -> None:
        ended = self._revocations.revoke(credential_ids)
        logger.info("revoked credentials took effect", extra={"count": len(credential_ids), "ended": ended})

    def _watch_tls(self, name: str, tls: TlsConfig | None, alpn: tuple[str, ...]) -> ReloadableServerContext | None:
        if tls is None:
            return None
        context = ReloadableServerContext(
            certificate_file=tls.certificate_file,
            key_file=tls.key_file,
            client_ca_file=tls.client_ca_file,
            alpn=alpn,
        )
        paths = [path for path in (tls.certificate_file, tls.key_file, tls.client_ca_file) if path is not None]
        self._files.watch(f"{name}.tls", paths, load=context.reload, apply=lambda _: None)
        return context

    def drain(self) -> None:
        """Stop in order: `run` returns once what runs has ended, or the drain time is over. Synchronous, idempotent."""
        self._drain_requested.set()

    async def run(self, *, task_status: trio.TaskStatus[KasAddresses] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until `drain` is called and has taken effect; ``started`` gives the addresses.

        Raises `OSError` where an address cannot be bound. Cancelled, everything is cut at once.
        """
        config = self._config
        sockets = [
            await listen(address.host or None, address.port)
            for address in (config.agents.address, config.proxy.address, config.operations.address)
        ]
        registry = Registry(self.kas_id)
        budget = WindowBudget(config.memory.buffered_bytes)
        metrics = ExchangeMetrics()
        gate = self._make_gate(registry, budget)
        forwarder = Forwarder(
            registry,
            ForwardingTimes(
                head=config.timeouts.upstream_head,
                wait_for_agent=config.timeouts.wait_for_agent,
            ),
        )
        pipeline = self._make_pipeline(registry, forwarder, metrics)
        front = self._make_front(pipeline, budget)
        operations = OperationsListener(
            {
                b"/livez": lambda: (200, b"ok\n"),
                b"/readyz": lambda: (200, b"ok\n") if self._is_ready else (503, b"draining\n"),
                b"/metrics": lambda: (200, render([metrics.lines(), tunnel_lines(registry), collector_lines(PAUSES)])),
            }
        )
        listeners = [
            partial(
                serve,
                sockets[0],
                gate.serve,
                name="agent listener",
                tls=_context_of(self._agent_tls),
                max_connections=config.agents.max_connections,
            ),
            partial(
                serve,
                sockets[1],
                front.serve,
                name="proxy listener",
                tls=_context_of(self._proxy_tls),
                max_connections=config.proxy.max_connections,
                write_progress_seconds=PATIENT_WRITE_SECONDS,
            ),
            partial(serve, sockets[2], operations.serve, name="operations listener", max_connections=256),
        ]
        async with trio.open_nursery() as everything:
            everything.start_soon(self._files.run)
            everything.start_soon(self._directory.run)
            everything.start_soon(forwarder.run)
            async with trio.open_nursery() as accepting:
                for listener in listeners:
                    await accepting.start(listener)
                self._is_ready = True
                addresses = KasAddresses(
                    agents=_address_of(sockets[0]), proxy=_address_of(sockets[1]), operations=_address_of(sockets[2])
                )
                logger.info(
                    "kas is ready",
                    extra={
                        "kas_id": self.kas_id,
                        "agents": str(addresses.agents),
                        "proxy": str(addresses.proxy),
                        "operations": str(addresses.operations),
                    },
                )
                task_status.started(addresses)
                await self._drain_requested.wait()
                await self._drain(registry, gate, front)
                accepting.cancel_scope.cancel()
            everything.cancel_scope.cancel()
        logger.info("kas has ended", extra={"kas_id": self.kas_id})

    async def _drain(self, registry: Registry, gate: AgentGate, front: Front) -> None:
        seconds = self._config.timeouts.drain
        logger.info("kas drains", extra={"seconds": seconds, "connections": front.open_connections})
        self._is_ready = False
        gate.is_draining = True
        front.drain()
        for tunnel in registry:
            tunnel.connection.drain(b"drain")
        with trio.move_on_after(seconds) as scope:
            await front.wait_closed()
        if scope.cancelled_caught:
            logger.warning(
                "the drain time is over: what still runs is cut", extra={"connections": front.open_connections}
            )
        with trio.move_on_after(CUT_SECONDS):
            for tunnel in registry:
                tunnel.connection.close(debug=b"drain")
                await tunnel.connection.wait_ended()
            await front.wait_closed()  # callers are told: a watch between two events ends cleanly

    def _make_gate(self, registry: Registry, budget: WindowBudget) -> AgentGate:
        timeouts = self._config.timeouts
        return AgentGate(
            kas_id=self.kas_id,
            directory=self._directory,
            registry=registry,
            revocations=self._revocations,
            engine=TUNNEL_REQUESTER,
            budget=budget,
            times=ConnectionTimes(ping_interval=timeouts.ping_interval, ping_deadline=timeouts.ping),
            tunnel_age=timeouts.tunnel_age,
        )

    def _make_pipeline(self, registry: Registry, forwarder: Forwarder, metrics: ExchangeMetrics) -> Pipeline:
        config = self._config
        return Pipeline(
            directory=self._directory,
            addressing=Addressing(path_prefix=config.proxy.path_prefix, domain=config.proxy.domain),
            forwarder=forwarder,
            revocations=self._revocations,
            leases=Leases(
                at_a_time=config.access.exchanges_per_credential,
                starts_per_second=config.access.starts_per_second,
                clock=trio.current_time,
            ),
            observers=Observers([AccessLog(), metrics]),
            ask_cluster=RememberedAnswers(ClusterQuestions(registry).ask, clock=trio.current_time),
        )

    def _make_front(self, pipeline: Pipeline, budget: WindowBudget) -> Front:
        limits, timeouts = self._config.proxy.limits, self._config.timeouts
        return Front(
            pipeline.handle,
            begin=pipeline.begin,
            engine=dataclasses.replace(
                FRONT_RESPONDER,
                max_header_list_bytes=limits.head_bytes,
                max_header_lines=limits.head_lines,
                max_concurrent_streams=limits.streams_per_connection,
            ),
            budget=budget,
            times=ConnectionTimes(
                ping_interval=timeouts.ping_interval,
                ping_deadline=timeouts.ping,
                idle=timeouts.idle,
                stranger=limits.strangers_time,
                stranger_answers=limits.strangers_answers,
            ),
            http1=Http1Limits(
                request_head_bytes=limits.head_bytes,
                request_head_lines=limits.head_lines,
                target_bytes=limits.target_bytes,
                idle_seconds=timeouts.idle,
                unauthenticated_answers=limits.strangers_answers,
                unauthenticated_seconds=limits.strangers_time,
            ),
        )


def _context_of(tls: ReloadableServerContext | None) -> Callable[[], ssl.SSLContext] | None:
    return None if tls is None else lambda: tls.context


def _address_of(sockets: list[socket.socket]) -> Address:
    host, port = sockets[0].getsockname()[:2]
    return Address(host, port)
