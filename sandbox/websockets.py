"""The server's end of a WebSocket (RFC 6455) on an upgraded HTTP/1.1 connection."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import trio
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Message, Ping
from wsproto.utilities import LocalProtocolError, RemoteProtocolError, generate_accept_token

from sandbox.calls import Call
from sandbox.status import bad_request
from tunnel.http1.upgraded import UpgradedStream
from tunnel.messages import ResponseHead

MESSAGE_BYTES = 1_048_576
CLOSE_SECONDS = 2.0


class WebSocket:
    """Binary messages. Made by `accepted` only."""

    def __init__(self, stream: UpgradedStream, outgoing: trio.MemorySendChannel[bytes]) -> None:
        self._stream = stream
        self._outgoing = outgoing
        self._connection = Connection(ConnectionType.SERVER)
        self._message = bytearray()
        self._is_closed = False

    async def send(self, data: bytes) -> None:
        """Send a message. Cancelled, it was not sent."""
        await self._outgoing.send(self._connection.send(BytesMessage(data)))

    async def receive(self) -> bytes | None:
        """The next message; None once the other side has no more, or broke the protocol. Cancelling loses nothing."""
        try:
            while not self._is_closed:
                for event in self._connection.events():
                    if isinstance(event, Message):
                        self._message += event.data.encode() if isinstance(event.data, str) else event.data
                        self._is_closed = len(self._message) > MESSAGE_BYTES
                        if event.message_finished:
                            message, self._message = bytes(self._message), bytearray()
                            return message
                    elif isinstance(event, Ping | CloseConnection):
                        self._is_closed = isinstance(event, CloseConnection)
                        with contextlib.suppress(LocalProtocolError):  # this side may have closed already
                            await self._outgoing.send(self._connection.send(event.response()))
                if not self._is_closed:
                    self._connection.receive_data(await self._stream.receive_some() or None)
        except (trio.BrokenResourceError, trio.ClosedResourceError, RemoteProtocolError):
            self._is_closed = True
        return None

    async def close(self) -> None:
        """Say goodbye, and wait a moment for the answer."""
        with contextlib.suppress(LocalProtocolError), trio.move_on_after(CLOSE_SECONDS):
            await self._outgoing.send(self._connection.send(CloseConnection(code=1000)))
            while await self.receive() is not None:
                pass


@contextlib.asynccontextmanager
async def accepted(call: Call, protocols: tuple[str, ...]) -> AsyncIterator[WebSocket]:
    """Accept the upgrade with the first protocol of ours that is offered. Raises `ApiError` where there is none."""
    offered = [part.strip() for line in call.field_lines(b"sec-websocket-protocol") for part in line.split(",")]
    protocol = next((name for name in protocols if name in offered), None)
    key = call.field(b"sec-websocket-key")
    if call.downstream.request.protocol != b"websocket" or not key or protocol is None:
        raise bad_request(f"the sandbox wants a WebSocket here, with one of these protocols: {', '.join(protocols)}")
    accept = (b"sec-websocket-accept", generate_accept_token(key.encode()))
    fields = [accept, (b"sec-websocket-protocol", protocol.encode())]
    stream = await call.downstream.accept_upgrade(ResponseHead(101, fields))
    outgoing, leaving = trio.open_memory_channel[bytes](16)
    socket = WebSocket(stream, outgoing)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_write, stream, leaving)
            async with outgoing:
                yield socket
                await socket.close()
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the other side has left in the middle
    await stream.aclose()


async def _write(stream: UpgradedStream, leaving: trio.MemoryReceiveChannel[bytes]) -> None:
    """The only task that writes: what is handed over here leaves whole."""
    async with leaving:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in leaving:
                await stream.send_all(data)
