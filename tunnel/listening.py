"""Accepting connections: one task for each, none of which can end the listener.

Survives what the kernel may answer to accept, running out of file descriptors included. What is spoken on a connection
is the handler's business.
"""

from __future__ import annotations

import errno
import logging
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, Sequence

import trio

from tunnel.errors import HandshakeError
from tunnel.transports.base import WRITE_PROGRESS_SECONDS
from tunnel.transports.carrier import Carrier
from tunnel.transports.tcp import TcpTransport, address_name, set_options
from tunnel.transports.tls import TlsTransport

logger = logging.getLogger(__name__)

HANDSHAKES = 256
"""TLS handshakes at the same time; connections above that wait in the kernel's queue."""

MAX_CONNECTIONS = 10_000

ACCEPTED_AT_ONCE = 16
"""So many connections are accepted before other tasks have their turn."""

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


async def listen(host: str | None, port: int, *, backlog: int = BACKLOG) -> list[socket.socket]:
    """Bind to a port on every address of ``host`` (None: all interfaces). Raises `OSError`."""
    return [_as_listener(found.socket) for found in await trio.open_tcp_listeners(port, host=host, backlog=backlog)]


def _as_listener(sock: trio.socket.SocketType) -> socket.socket:
    """The socket by itself, with the options that connections get which are accepted from it."""
    listener = socket.socket(fileno=sock.detach())
    listener.setblocking(False)
    set_options(listener)
    return listener


async def serve(
    listeners: Sequence[socket.socket],
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

    async def accept_from(listener: socket.socket) -> None:
        accepting = _Accepting(listener, name)
        while True:
            await _take(room)
            await _take(shaking_hands)
            connections.start_soon(run_connection, *await accepting.next_connection())

    async def run_connection(sock: socket.socket, peer: str) -> None:
        try:
            transport = TcpTransport(sock, peer=peer, write_progress_seconds=write_progress_seconds)
            await _run_connection(transport, handler, name, tls, shaking_hands)
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


async def _take(semaphore: trio.Semaphore) -> None:
    """Acquire, and let other tasks run only where that has to be waited for."""
    try:
        semaphore.acquire_nowait()
    except trio.WouldBlock:
        await semaphore.acquire()


class _Accepting:
    """Accepts the connections of one listener, several in a turn of the loop."""

    def __init__(self, listener: socket.socket, name: str) -> None:
        self._listener = listener
        self._name = name
        self._accepted = ACCEPTED_AT_ONCE
        self._is_exhausted = False

    async def next_connection(self) -> tuple[socket.socket, str]:
        """One connection and its peer's name, however long it takes until there is one."""
        while True:  # noqa: ASYNC913 - it waits before each sixteenth, and where there is none
            if self._accepted >= ACCEPTED_AT_ONCE:
                self._accepted = 0
                await trio.lowlevel.wait_readable(self._listener)
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                self._accepted = ACCEPTED_AT_ONCE
            except OSError as error:
                await self._survive(error)
            else:
                self._accepted += 1
                self._is_exhausted = False
                if sys.platform != "linux":  # there, what is accepted has the listener's options already
                    set_options(sock)
                return sock, address_name(address)

    async def _survive(self, error: OSError) -> None:
        if error.errno in _CONNECTION_FAILED:
            return
        if error.errno not in _OUT_OF_RESOURCES:
            raise error
        if not self._is_exhausted:
            self._is_exhausted = True
            logger.warning("%s: cannot accept connections: %s; trying on", self._name, error.strerror)
        await trio.sleep(BACKOFF_SECONDS)


async def _run_connection(
    lower: TcpTransport,
    handler: Handler,
    name: str,
    tls: Callable[[], ssl.SSLContext] | None,
    shaking_hands: trio.Semaphore,
) -> None:
    """One connection from the cradle to the grave. Lets nothing out but cancellation."""
    transport: Carrier | None = lower
    try:
        try:
            if tls is not None:
                transport = await _shake_hands(lower, tls(), name)
        finally:
            shaking_hands.release()
        if transport is not None:
            await handler(transport)
    except Exception:  # one connection's bug must not end the listener
        logger.exception("%s: serving %s crashed", name, lower.info.peer)
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
