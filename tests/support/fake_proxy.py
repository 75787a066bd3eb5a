"""A scripted HTTP proxy that understands CONNECT, on a real socket."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncIterator

import trio

from tunnel.transports.tcp import TcpTransport
from tunnel.transports.tls import TlsTransport


class FakeProxy:
    """Answers CONNECT with ``answer``, or, where that is None, connects to ``target`` whatever host was asked for."""

    def __init__(
        self, *, target: int | None = None, answer: bytes | None = None, credentials: str | None = None
    ) -> None:
        self.port = 0
        self.received: list[bytes] = []
        """The heads that it was sent."""
        self._target = target
        self._answer = answer
        self._credentials = credentials
        self.tls = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[FakeProxy]:
        with trio.socket.socket() as listener:
            await listener.bind(("127.0.0.1", 0))
            listener.listen()
            self.port = listener.getsockname()[1]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._accept, listener, nursery)
                yield self
                nursery.cancel_scope.cancel()

    async def _accept(self, listener: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        while True:
            sock, _ = await listener.accept()
            nursery.start_soon(self._serve, TcpTransport(sock))

    async def _serve(self, transport) -> None:
        try:
            if self.tls is not None:
                transport = TlsTransport(transport, self.tls, server_side=True)
                await transport.handshake()
            await self._answer_connect(transport)
        except* trio.BrokenResourceError:
            pass
        finally:
            transport.abort()

    async def _answer_connect(self, transport) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await transport.receive_some()
        self.received.append(head)
        if self._credentials is not None:
            expected = b"Basic " + base64.b64encode(self._credentials.encode())
            if b"\r\nProxy-Authorization: " + expected + b"\r\n" not in head:
                await transport.send_all(
                    b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\nno"
                )
                await transport.aclose()
                return
        if self._answer is not None:
            await transport.send_all(self._answer)
            await transport.aclose()
            return
        onward = await trio.open_tcp_stream("127.0.0.1", self._target)
        await transport.send_all(b"HTTP/1.1 200 Connection established\r\nVia: fake\r\n\r\n")
        async with onward, trio.open_nursery() as nursery:
            nursery.start_soon(self._copy_back, onward, transport)
            while data := await transport.receive_some():
                await onward.send_all(data)
            nursery.cancel_scope.cancel()

    async def _copy_back(self, onward: trio.SocketStream, transport) -> None:
        async for data in onward:
            await transport.send_all(data)
