"""Hostile ends of tunnels: an agent that kas must survive, a kas that agentk must survive. Both speak raw frames."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

import trio
from support.http2 import Frame, ping, settings
from support.scripted_callers import CutOff, RawCaller, connect
from support.scripted_stack import authority_pem, cluster_context

from tunnel.errors import HandshakeError
from tunnel.h2.frames import PREFACE
from tunnel.transports.tcp import TcpTransport
from tunnel.transports.tls import TlsTransport
from tunnel.transports.tls_contexts import client_context


class RawPeer:
    """Frames over TLS, one by one or in floods."""

    def __init__(self, raw: RawCaller) -> None:
        self.raw = raw
        self.seen: list[Frame] = []
        self._input = b""

    async def send(self, *frames: bytes) -> None:
        await self.raw.send(b"".join(frames))

    async def next_frame(self) -> Frame | None:
        """The next frame; None once the connection has ended."""
        while (frame := self._take()) is None:
            try:
                data = await self.raw.receive()
            except CutOff:
                data = b""
            if not data:
                return None
            self._input += data
        self.seen.append(frame)
        return frame

    def _take(self) -> Frame | None:
        self._input = self._input.removeprefix(PREFACE)
        if len(self._input) < 9 or PREFACE.startswith(self._input[:9]):
            return None
        end = 9 + int.from_bytes(self._input[:3], "big")
        if len(self._input) < end:
            return None
        head, payload, self._input = self._input[:9], self._input[9:end], self._input[end:]
        return Frame(head[3], head[4], int.from_bytes(head[5:9], "big"), payload)

    async def wait_frame(self, kind: int, stream_id: int | None = None) -> Frame:
        """The next frame of a kind (on a stream); fails where the connection ends first."""
        while (frame := await self.next_frame()) is not None:
            if frame.kind == kind and stream_id in (None, frame.stream_id):
                return frame
        raise AssertionError(f"no frame of kind {kind}; seen: {self.seen[-5:]}")

    async def go_away_code(self) -> int | None:
        """Read to the end: the code of the last GOAWAY, None where there was none."""
        while await self.next_frame() is not None:
            pass
        codes = [int.from_bytes(frame.payload[4:8], "big") for frame in self.seen if frame.kind == 7]
        return codes[-1] if codes else None

    async def flood(self, frames: Iterable[bytes], *, read: bool = True) -> bool:
        """Send until everything is sent (False) or the other side ends the connection (True).

        With ``read=False`` nothing is read meanwhile, so that whatever the flood asks for has to wait over there.
        """
        ended = False

        async def keep_reading() -> None:
            while await self.next_frame() is not None:
                pass

        async with trio.open_nursery() as nursery:
            if read:
                nursery.start_soon(keep_reading)
            batch = bytearray()
            with contextlib.suppress(trio.TooSlowError):
                try:
                    for frame in frames:
                        batch += frame
                        if len(batch) >= 16_384:
                            await self.raw.send(bytes(batch))
                            batch.clear()
                    await self.raw.send(bytes(batch) + ping(b"the last"))
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    ended = True
            nursery.cancel_scope.cancel()
        return ended


def handshake(token: str, *, replica: str = "hostile", process: str = "0123456789abcdef") -> bytes:
    """What agentk asks of kas."""
    return (
        b"GET /agent/v1/tunnel HTTP/1.1\r\nHost: kas\r\nConnection: Upgrade\r\nUpgrade: moorline/1\r\n"
        b"Authorization: Bearer %b\r\nMoorline-Versions: 1\r\nMoorline-Agent-Version: 0\r\nMoorline-Replica: %b\r\n"
        b"Moorline-Process: %b\r\nMoorline-Origins: kubernetes\r\n\r\n"
        % (token.encode(), replica.encode(), process.encode())
    )


@contextlib.asynccontextmanager
async def hostile_agent(port: int, token: str, values: dict[int, int] | None = None) -> AsyncIterator[RawPeer]:
    """A tunnel whose responder is the test. Our SETTINGS are sent; kas's wait to be read."""
    raw = await connect(port, client_context(ca_data=authority_pem(), system_cas=False, alpn=("http/1.1",)))
    try:
        await raw.send(handshake(token))
        assert (await raw.read_head()).startswith(b"HTTP/1.1 101 ")
        peer = RawPeer(raw)
        await peer.send(settings(values))
        yield peer
    finally:
        raw.abort()


@contextlib.asynccontextmanager
async def http2_front(
    port: int, context: ssl.SSLContext, values: dict[int, int] | None = None
) -> AsyncIterator[RawPeer]:
    """An HTTP/2 connection to the proxy listener whose client is the test."""
    raw = await connect(port, context)
    try:
        peer = RawPeer(raw)
        await peer.send(PREFACE, settings(values))
        yield peer
    finally:
        raw.abort()


class HostileKas:
    """A listener that welcomes every agent, and hands each tunnel to a script."""

    def __init__(self, script: Callable[[RawPeer], Awaitable[None]]) -> None:
        self.port = 0
        self.tunnels = 0
        self._script = script

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._serve, listeners)

    async def _serve(self, stream: trio.SocketStream) -> None:
        transport = TlsTransport(TcpTransport(stream.socket), cluster_context(), server_side=True)
        raw = RawCaller(transport)
        try:
            await transport.handshake()
            await raw.read_head()
            self.tunnels += 1
            await raw.send(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: moorline/1\r\n"
                b"Moorline-Version: 1\r\nMoorline-Kas: hostile\r\nMoorline-Tunnel: %d\r\nMoorline-Agent: edge\r\n\r\n"
                % self.tunnels
            )
            peer = RawPeer(raw)
            await peer.send(PREFACE, settings())
            await self._script(peer)
        except (HandshakeError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the agent was faster
        finally:
            raw.abort()
