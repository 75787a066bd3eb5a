"""Connected pairs of transports on the loopback interface, and one as a Trio stream."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Callable

import trio
import trustme

from tunnel.transports.base import Transport
from tunnel.transports.tcp import TcpTransport
from tunnel.transports.tls import ServerSideObject, TlsTransport, remember_server_name

SERVER_NAME = "kas.test"
CA = trustme.CA()
SERVER_CERTIFICATE = CA.issue_cert(SERVER_NAME, "127.0.0.1")


def server_tls(certificate: trustme.LeafCert = SERVER_CERTIFICATE) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslobject_class = ServerSideObject
    context.sni_callback = remember_server_name
    certificate.configure_cert(context)
    return context


def client_tls(ca: trustme.CA | None = CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca is not None:
        ca.configure_trust(context)
    return context


async def socket_pair() -> tuple[trio.socket.SocketType, trio.socket.SocketType]:
    """A client's and a server's end of one TCP connection."""
    with trio.socket.socket() as listener:
        client = trio.socket.socket()
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        await client.connect(listener.getsockname())
        server, _ = await listener.accept()
        return client, server


async def tcp_pair() -> tuple[TcpTransport, TcpTransport]:
    client, server = await socket_pair()
    return TcpTransport(client), TcpTransport(server)


async def tls_pair(
    client_context: ssl.SSLContext | None = None, server_context: ssl.SSLContext | None = None
) -> tuple[TlsTransport, TlsTransport]:
    below_client, below_server = await tcp_pair()
    client = TlsTransport(below_client, client_context or client_tls(), server_side=False, server_hostname=SERVER_NAME)
    server = TlsTransport(below_server, server_context or server_tls(), server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.handshake)
        nursery.start_soon(server.handshake)
    return client, server


@contextlib.asynccontextmanager
async def closing(*transports: Transport) -> AsyncIterator[None]:
    """Abort all of them at the end, so that no socket is left to the garbage collector."""
    try:
        yield
    finally:
        for transport in transports:
            transport.abort()


async def receive_exactly(transport: Transport, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        piece = await transport.receive_some()
        if not piece:
            raise AssertionError(f"ended after {len(received)} of {count} bytes")
        received += piece
    assert len(received) == count
    return bytes(received)


async def receive_to_end(transport: Transport) -> bytes:
    received = bytearray()
    while piece := await transport.receive_some():
        received += piece
    return bytes(received)


class TransportStream(trio.abc.HalfCloseableStream):
    """A transport as a Trio stream, for Trio's own checks of streams.

    The checks want two rules which the protocol leaves to whoever holds a transport: one task at a time for each half,
    and ``max_bytes``.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self._unread = b""
        self._sending = False
        self._receiving = False
        self._closed = False
        self._sent_eof = False

    @contextlib.contextmanager
    def _one_sender(self):
        if self._sending:
            raise trio.BusyResourceError("two senders")
        self._sending = True
        try:
            yield
        finally:
            self._sending = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with self._one_sender():
            await self.transport.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        with self._one_sender():
            await self.transport.wait_writable()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is not None and range(max_bytes).stop < 1:
            raise ValueError("max_bytes must be positive")
        if self._receiving:
            raise trio.BusyResourceError("two receivers")
        self._receiving = True
        try:
            if not self._unread or self._closed:
                self._unread = await self.transport.receive_some()
            else:
                await trio.lowlevel.checkpoint()
            data, self._unread = self._unread[:max_bytes], self._unread[max_bytes or len(self._unread) :]
            return data
        finally:
            self._receiving = False

    async def send_eof(self) -> None:
        with self._one_sender():
            await self.transport.send_eof()

    async def aclose(self) -> None:
        self._closed = True
        await self.transport.aclose()


def stream_maker(make_pair: Callable) -> Callable:
    async def maker() -> tuple[TransportStream, TransportStream]:
        one, other = await make_pair()
        return TransportStream(one), TransportStream(other)

    return maker


def clogged_stream_maker(make_pair: Callable) -> Callable:
    """As `stream_maker`, but neither takes anything more to send."""

    async def maker() -> tuple[TransportStream, TransportStream]:
        one, other = await make_pair()
        with trio.move_on_after(0.3):
            while True:
                while one.send_nowait(bytes(65_536)) or other.send_nowait(bytes(65_536)):
                    pass
                await trio.sleep(0.02)  # until the kernel has moved some of it to the other end
        return TransportStream(one), TransportStream(other)

    return maker
