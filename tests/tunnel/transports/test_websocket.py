from __future__ import annotations

import contextlib

import pytest
import trio
import trio.testing
import trio_websocket
from support.transport_pairs import (
    clogged_stream_maker,
    closing,
    receive_exactly,
    receive_to_end,
    socket_pair,
    stream_maker,
    tcp_pair,
    tls_pair,
)
from wsproto.frame_protocol import FrameProtocol

from tunnel.handshake import SUBPROTOCOL, Form, HelloRequest, Welcome, encode_welcome
from tunnel.http1.heads import HeadBuffer
from tunnel.transports import tcp, tls, websocket
from tunnel.transports.tcp import TcpTransport
from tunnel.transports.websocket import WebSocketTransport

BULK = bytes(range(256)) * 4_096  # 1 MiB


@pytest.fixture(autouse=True)
def closes_quickly(monkeypatch):
    for module in (tcp, tls, websocket):
        monkeypatch.setattr(module, "CLOSE_SECONDS", 0.1)


async def websocket_pair() -> tuple[WebSocketTransport, WebSocketTransport]:
    one, other = await tcp_pair()
    return WebSocketTransport(one, client=True), WebSocketTransport(other, client=False)


async def secure_websocket_pair() -> tuple[WebSocketTransport, WebSocketTransport]:
    one, other = await tls_pair()
    return WebSocketTransport(one, client=True), WebSocketTransport(other, client=False)


@contextlib.asynccontextmanager
async def against_a_client():
    """trio-websocket as the client, ours as the server."""
    client_socket, server_socket = await socket_pair()
    below = TcpTransport(server_socket)
    async with trio.open_nursery() as nursery, closing(below):
        connections = []

        async def connect() -> None:
            connections.append(
                await trio_websocket.wrap_client_stream(
                    nursery,
                    trio.SocketStream(client_socket),
                    "kas.test",
                    "/agent/v1/tunnel",
                    subprotocols=[SUBPROTOCOL.decode()],
                )
            )

        async with trio.open_nursery() as handshake:
            handshake.start_soon(connect)
            buffer = HeadBuffer(await below.receive_some())
            block = buffer.take_head(10_000)
            key = next(line.split(b": ")[1] for line in block.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key"))
            welcome = Welcome(kas_id="kas-1", tunnel_id="t", agent_id="a")
            await below.send_all(encode_welcome(welcome, HelloRequest(None, Form.WEBSOCKET, key)))
        with contextlib.closing(client_socket), contextlib.closing(server_socket):
            yield connections[0], WebSocketTransport(below, client=False)
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def against_a_server():
    """trio-websocket as the server, ours as the client."""
    client_socket, server_socket = await socket_pair()
    below = TcpTransport(client_socket)
    async with trio.open_nursery() as nursery, closing(below):
        connections = []

        async def accept() -> None:
            request = await trio_websocket.wrap_server_stream(nursery, trio.SocketStream(server_socket))
            connections.append(await request.accept(subprotocol=SUBPROTOCOL.decode()))

        async with trio.open_nursery() as handshake:
            handshake.start_soon(accept)
            await below.send_all(
                b"GET / HTTP/1.1\r\nHost: kas.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                b"Sec-WebSocket-Protocol: moorline.v1\r\n\r\n"
            )
            assert (await below.receive_some()).startswith(b"HTTP/1.1 101 ")
        with contextlib.closing(client_socket), contextlib.closing(server_socket):
            yield connections[0], WebSocketTransport(below, client=True)
        nursery.cancel_scope.cancel()


roles = pytest.mark.parametrize("against", [against_a_client, against_a_server])


@roles
async def test_bytes_arrive_whole_both_ways(against):
    async with against() as (peer, transport):
        assert transport.info.kind == "websocket"
        received = bytearray()

        async def peer_reads() -> None:
            while len(received) < len(BULK):
                received.extend(await peer.get_message())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.send_all, BULK)
            nursery.start_soon(peer_reads)
        assert received == BULK

        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.send_message, BULK)
            assert await receive_exactly(transport, len(BULK)) == BULK


@roles
async def test_a_ping_is_answered_though_nobody_writes(against):
    async with against() as (peer, transport), trio.open_nursery() as nursery:
        nursery.start_soon(transport.receive_some)
        with trio.fail_after(2):
            await peer.ping(b"are you there")
        nursery.cancel_scope.cancel()


@roles
async def test_text_is_refused_with_1003(against):
    async with against() as (peer, transport):
        await peer.send_message(b"binary")
        await peer.send_message("text")
        assert await transport.receive_some() == b"binary"
        with pytest.raises(trio.BrokenResourceError, match="text"):
            await transport.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await transport.send_all(b"x")
        with pytest.raises(trio_websocket.ConnectionClosed) as caught:
            await peer.get_message()
        assert caught.value.reason.code == 1003


@roles
async def test_a_close_by_the_other_side_is_a_clean_end_and_is_answered(against):
    async with against() as (peer, transport), trio.open_nursery() as nursery:
        nursery.start_soon(peer.aclose, 1001)
        with trio.fail_after(2):
            assert await receive_to_end(transport) == b""
            assert transport.clean_eof
            assert await transport.receive_some() == b""
            with pytest.raises(trio.BrokenResourceError, match="closed the WebSocket"):
                await transport.send_all(b"x")
            await transport.aclose()


@roles
async def test_closing_shakes_hands(against):
    async with against() as (peer, transport), trio.open_nursery() as nursery:
        nursery.start_soon(transport.aclose)
        with pytest.raises(trio_websocket.ConnectionClosed) as caught:
            await peer.get_message()
        assert caught.value.reason.code == 1000


@pytest.mark.slow
@pytest.mark.parametrize("make", [websocket_pair, secure_websocket_pair])
async def test_it_behaves_as_trio_demands_of_a_stream(monkeypatch, make):
    for module in (tcp, tls, websocket):
        monkeypatch.setattr(module, "CLOSE_SECONDS", 0.02)
    await trio.testing.check_two_way_stream(stream_maker(make), clogged_stream_maker(make))


@pytest.mark.parametrize("make", [websocket_pair, secure_websocket_pair])
async def test_a_large_write_arrives_whole_while_the_other_direction_is_busy_too(make):
    one, other = await make()
    async with closing(one, other), trio.open_nursery() as nursery:
        nursery.start_soon(one.send_all, BULK)
        nursery.start_soon(other.send_all, BULK[::-1])

        async def check_other_direction() -> None:
            assert await receive_exactly(one, len(BULK)) == BULK[::-1]

        nursery.start_soon(check_other_direction)
        assert await receive_exactly(other, len(BULK)) == BULK


async def test_pings_during_a_blocked_write_are_answered_behind_it_and_once():
    below, other = await tcp_pair()
    transport = WebSocketTransport(below, client=False)
    peer = FrameProtocol(True, [])
    async with closing(transport, other), trio.open_nursery() as nursery:
        nursery.start_soon(transport.send_all, bytes(8_000_000))
        await trio.sleep(0.02)
        nursery.start_soon(transport.receive_some)
        for number in range(1_000):
            await other.send_all(bytes(peer.ping(b"%d" % number)))
        await trio.sleep(0.02)
        assert transport._outlet.backlog_bytes < 300_000
        pongs = []
        received = 0
        while received < 8_000_000 or b"999" not in pongs:
            peer.receive_bytes(await other.receive_some())
            for frame in peer.received_frames():
                if frame.opcode == 10:
                    pongs.append(bytes(frame.payload))
                else:
                    received += len(frame.payload)
        assert len(pongs) < 1_000
        nursery.cancel_scope.cancel()


async def test_after_our_close_frame_the_other_side_may_go_on():
    one, other = await websocket_pair()
    async with closing(one, other):
        await other.send_all(b"on its way")
        await one.send_eof()
        await one.send_eof()
        with pytest.raises(trio.ClosedResourceError):
            await one.send_all(b"x")
        assert await receive_to_end(other) == b""
        assert await receive_to_end(one) == b"on its way"
        assert one.clean_eof


async def test_an_end_without_a_close_frame_is_not_a_clean_one():
    below, other = await tcp_pair()
    transport = WebSocketTransport(below, client=False)
    async with closing(transport, other):
        await other.send_eof()
        assert await transport.receive_some() == b""
        assert not transport.clean_eof


async def test_cancelling_at_every_moment_loses_and_repeats_nothing():
    one, other = await secure_websocket_pair()
    received = bytearray()
    async with closing(one, other), trio.open_nursery() as nursery:
        nursery.start_soon(one.send_all, BULK)
        patience = 0.0
        while len(received) < len(BULK):
            with trio.move_on_after(patience):
                received += await other.receive_some()
            patience = (patience + 0.00001) % 0.0005
    assert received == BULK


async def test_after_a_cancelled_write_there_is_no_close_frame():
    one, other = await websocket_pair()
    async with closing(one, other):
        with trio.move_on_after(0.05):
            await one.send_all(bytes(64_000_000))
        with pytest.raises(trio.BrokenResourceError, match="cancelled"):
            await one.send_all(b"x")
        await one.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await receive_to_end(other)
        assert not other.clean_eof


async def test_closing_while_another_task_reads_wakes_that_task():
    one, other = await websocket_pair()
    async with closing(one, other), trio.open_nursery() as nursery:

        async def read_to_end() -> None:
            with contextlib.suppress(trio.ClosedResourceError):
                assert await one.receive_some() == b""

        nursery.start_soon(read_to_end)
        await trio.sleep(0.01)
        with trio.fail_after(2):
            await one.aclose()


async def test_unread_bytes_come_first():
    one, other = await websocket_pair()
    async with closing(one, other):
        await one.send_all(b"2")
        await trio.sleep(0.01)
        other.unread(b"1")
        assert other.receive_nowait() == b"1"
        assert other.receive_nowait() == b"2"
        assert other.receive_nowait() is None
