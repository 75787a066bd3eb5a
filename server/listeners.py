"""The proxy listener: one accepted connection becomes HTTP/1.1 or HTTP/2 requests for the pipeline.

ALPN decides; a client that offers none speaks HTTP/1.1 (kubectl's exec and port-forward do so).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from server.status import render_plain_refusal
from tunnel.connection import Connection
from tunnel.errors import ConnectionEnded
from tunnel.h2.engine import EngineConfig, Role
from tunnel.h2.windows import WindowBudget
from tunnel.http1.limits import Http1Limits
from tunnel.http1.server import Http1Server
from tunnel.liveness import ConnectionTimes
from tunnel.messages import Downstream
from tunnel.transports.base import Transport

logger = logging.getLogger(__name__)

Begin = Callable[[Downstream, str], bool]
"""Begins an exchange directly, where that is possible now (`tunnel.direct`)."""

Handler = Callable[[Downstream, str], Awaitable[None]]
"""Serves one request; the text is the peer's address and port."""


class Front:
    """Serves the connections of callers."""

    def __init__(
        self,
        handler: Handler,
        *,
        begin: Begin,
        engine: EngineConfig,
        budget: WindowBudget,
        times: ConnectionTimes,
        http1: Http1Limits,
    ) -> None:
        self._handler = handler
        self._begin = begin
        self._engine = engine
        self._budget = budget
        self._times = times
        self._http1 = http1
        self._connections: set[Connection | Http1Server] = set()
        self._closed = trio.Event()
        self._is_draining = False

    def serve(self, transport: Transport) -> Awaitable[None]:
        """Serve one connection to its end, once awaited. Raises nothing that its peer can cause."""
        return self._serve_http2(transport) if transport.info.alpn == "h2" else self._serve_http1(transport)

    def drain(self) -> None:
        """Take no new requests on the connections that are here; what runs ends in its own time."""
        self._is_draining = True
        for connection in list(self._connections):
            connection.drain()

    async def wait_closed(self) -> None:
        """Return once the last connection of a caller has closed."""
        while self._connections:
            self._closed = trio.Event()
            await self._closed.wait()

    @property
    def open_connections(self) -> int:
        """How many connections of callers are open."""
        return len(self._connections)

    def _forget(self, connection: Connection | Http1Server) -> None:
        self._connections.discard(connection)
        self._closed.set()

    async def _serve_http2(self, transport: Transport) -> None:
        connection = Connection(
            transport,
            role=Role.RESPONDER,
            config=self._engine,
            handler=partial(_serve, self._handler, transport.info.peer),
            begin=partial(_begin, self._begin, transport.info.peer),
            budget=self._budget,
            times=self._times,
            name=f"front {transport.info.peer}",
        )
        self._connections.add(connection)
        try:
            if self._is_draining:
                connection.drain()
            await connection.run()
        except ConnectionEnded as exc:
            logger.debug("a caller's HTTP/2 connection ended", extra={"peer": transport.info.peer, "error": str(exc)})
        finally:
            self._forget(connection)

    async def _serve_http1(self, transport: Transport) -> None:
        server = Http1Server(
            transport,
            partial(_serve, self._handler, transport.info.peer),
            begin=partial(_begin, self._begin, transport.info.peer),
            limits=self._http1,
            render_error=render_plain_refusal,
        )
        self._connections.add(server)
        try:
            if self._is_draining:
                server.drain()
            await server.run()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            logger.debug("a caller's HTTP/1.1 connection broke", extra={"peer": transport.info.peer, "error": str(exc)})
        finally:
            self._forget(server)


def _begin(begin: Begin, peer: str, downstream: Downstream) -> bool:
    return begin(downstream, peer)


async def _serve(handler: Handler, peer: str, downstream: Downstream) -> None:
    await handler(downstream, peer)
