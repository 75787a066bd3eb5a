"""Accepting connections: one task for each, none of which can end the listener.

Survives what the kernel may answer to accept, running out of file descriptors included. What is spoken on a connection
is the handler's business.
"""

from __future__ import annotations

import errno
import logging
import ssl
from collections.abc import Awaitable, Callable, Sequence

import trio

from tunnel.errors import HandshakeError
from tunnel.transports.base import WRITE_PROGRESS_SECONDS
from tunnel.transports.carrier import Carrier
from tunnel.transports.tcp import TcpTransport
from tunnel.transports.tls import TlsTransport

logger = logging.getLogger(__name__)

HANDSHAKES = 256
"""TLS handshakes at the same time; connections above that wait in the kernel's queue."""

MAX_CONNECTIONS = 10_000

BACKOFF_SECONDS = 0.1
BACKLOG = 1024

Handler = Callable[[Carrier], Awaitable[None]]

_OUT_OF_RESOURCES = frozenset([errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
# accept(2): what was wrong with the connection is reported by the call that would have returned it.
_CONNECTION_FAILED = frozenset(
    [
        errno.ECONNABORTED,
        errno.EPERM,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
    ]
)


async def listen(host: str | None, port: int, *, backlog: int = BACKLOG) -> list[trio.socket.SocketType]:
    """Bind to a port on every address of ``host`` (None: all interfaces). Raises `OSError`."""
    return [listener.socket for listener in await trio.open_tcp_listeners(port, host=host, backlog=backlog)]


async def serve(
    listeners: Sequence[trio.socket.SocketType],
    handler: Handler,
    *,
    name: str,
    tls: Callable[[], ssl.SSLContext] | None = None,
    handshakes: int = HANDSHAKES,
    max_connections: int = MAX_CONNECTIONS,
    write_progress_seconds: float = WRITE_PROGRESS_SECONDS,
    stop: trio.Event | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Accept connections and run ``handler`` on each, in a task of its own. Closes the listeners at the end.

    ``tls`` is asked for a context for each connection, so that a renewed certificate is used at once; the handshake is
    part of the connection's task. A handler closes its transport; one that does not is aborted when it returns. An
    exception from a handler is logged and ends its connection only.

    Above ``max_connections`` further ones wait in the kernel's queue. ``write_progress_seconds`` is the deadline of their
    writes.

    Returns after ``stop``: no connection is accepted any more, and the handlers have ended. Cancelling ends them all.
    """
    shaking_hands = trio.Semaphore(handshakes)
    room = trio.Semaphore(max_connections)

    async def accept_from(listener: trio.socket.SocketType) -> None:
        while True:
            await room.acquire()
            await shaking_hands.acquire()
            sock = await _next_connection(listener, name)
            connections.start_soon(run_connection, sock)

    async def run_connection(sock: trio.socket.SocketType) -> None:
        try:
            await _run_connection(sock, handler, name, tls, shaking_hands, write_progress_seconds)
        finally:
            room.release()

    try:
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as acceptors:
                for listener in listeners:
                    acceptors.start_soon(accept_from, listener)
                task_status.started()
                if stop is not None:
                    await stop.wait()
                    acceptors.cancel_scope.cancel()
            for listener in listeners:
                listener.close()
    finally:
        for listener in listeners:
            listener.close()


async def _next_connection(listener: trio.socket.SocketType, name: str) -> trio.socket.SocketType:
    """Accept one connection, however long it takes until that is possible."""
    exhausted = False
    while True:
        try:
            sock, _ = await listener.accept()
        except OSError as error:
            if error.errno in _CONNECTION_FAILED:
                continue
            if error.errno not in _OUT_OF_RESOURCES:
                raise
            if not exhausted:
                exhausted = True
                logger.warning("%s: cannot accept connections: %s; trying on", name, error.strerror)
            await trio.sleep(BACKOFF_SECONDS)
        else:
            return sock


async def _run_connection(
    sock: trio.socket.SocketType,
    handler: Handler,
    name: str,
    tls: Callable[[], ssl.SSLContext] | None,
    shaking_hands: trio.Semaphore,
    write_progress_seconds: float,
) -> None:
    """One connection from the cradle to the grave. Lets nothing out but cancellation."""
    transport: Carrier | None = None
    try:
        try:
            transport = TcpTransport(sock, write_progress_seconds=write_progress_seconds)
            if tls is not None:
                transport = await _shake_hands(transport, tls(), name)
        finally:
            shaking_hands.release()
        if transport is not None:
            await handler(transport)
    except Exception:  # one connection's bug must not end the listener
        peer = transport.info.peer if transport is not None else "a client"
        logger.exception("%s: serving %s crashed", name, peer)
    finally:
        if transport is not None:
            transport.abort()


async def _shake_hands(lower: Carrier, context: ssl.SSLContext, name: str) -> Carrier | None:
    transport = TlsTransport(lower, context, server_side=True)
    try:
        await transport.handshake()
    except HandshakeError as error:
        logger.info("%s: %s", name, error, extra={"peer": lower.info.peer, "reason": error.reason})
        return None
    return transport
