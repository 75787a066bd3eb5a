from __future__ import annotations

import contextlib
import socket

import pytest
import trio
import trio.testing
from support.transport_pairs import (
    clogged_stream_maker,
    closing,
    receive_exactly,
    receive_to_end,
    socket_pair,
    stream_maker,
    tcp_pair,
)

from tunnel.errors import PeerUnresponsive
from tunnel.transports import tcp
from tunnel.transports.tcp import TcpTransport, format_address

BULK = bytes(range(256)) * 16_384  # 4 MiB: more than both kernel buffers hold


@pytest.mark.slow
async def test_it_behaves_as_trio_demands_of_a_half_closeable_stream(monkeypatch):
    monkeypatch.setattr(tcp, "CLOSE_SECONDS", 0.05)
    await trio.testing.check_half_closeable_stream(stream_maker(tcp_pair), clogged_stream_maker(tcp_pair))


async def test_a_large_write_arrives_whole_while_the_other_direction_is_busy_too():
    one, other = await tcp_pair()
    async with closing(one, other), trio.open_nursery() as nursery:
        nursery.start_soon(one.send_all, BULK)
        nursery.start_soon(other.send_all, BULK[::-1])

        async def check_other_direction() -> None:
            assert await receive_exactly(one, len(BULK)) == BULK[::-1]

        nursery.start_soon(check_other_direction)
        assert await receive_exactly(other, len(BULK)) == BULK


async def test_cancelling_a_receive_loses_nothing():
    one, other = await tcp_pair()
    async with closing(one, other):
        with trio.move_on_after(0.01) as scope:
            await other.receive_some()
        assert scope.cancelled_caught
        await one.send_all(b"kept")
        with trio.CancelScope() as cancelled:
            cancelled.cancel()
            await other.receive_some()
        assert await other.receive_some() == b"kept"


async def test_receive_nowait_tells_nothing_yet_from_the_end():
    one, other = await tcp_pair()
    async with closing(one, other):
        assert other.receive_nowait() is None
        await one.send_all(b"x")
        await trio.sleep(0.01)
        assert other.receive_nowait() == b"x"
        assert not other.clean_eof
        await one.send_eof()
        await trio.sleep(0.01)
        assert other.receive_nowait() == b""
        assert other.clean_eof


async def test_unread_bytes_come_first_and_in_order():
    one, other = await tcp_pair()
    async with closing(one, other):
        await one.send_all(b"3")
        other.unread(b"2")
        other.unread(b"1")
        assert await other.receive_some() == b"12"
        assert await other.receive_some() == b"3"


async def test_half_close_lets_data_flow_back():
    one, other = await tcp_pair()
    async with closing(one, other):
        await one.send_eof()
        await one.send_eof()
        assert await other.receive_some() == b""
        await other.send_all(b"still here")
        assert await one.receive_some() == b"still here"
        with pytest.raises(trio.ClosedResourceError):
            await one.send_all(b"x")


async def test_half_closing_a_connection_that_is_gone_says_so():
    one, other = await tcp_pair()
    async with closing(one):
        other.abort()
        await trio.sleep(0.01)
        with pytest.raises(trio.BrokenResourceError, match="closing the half towards"):
            await one.send_eof()


async def test_a_write_that_moves_nothing_within_its_deadline_breaks_the_connection():
    client, server = await socket_pair()
    one = TcpTransport(client, write_progress_seconds=0.1)
    with server:
        async with closing(one):
            with pytest.raises(trio.BrokenResourceError, match=r"took no byte for 0\.1 s") as caught:
                await one.send_all(bytes(64_000_000))
            assert isinstance(caught.value.__cause__, PeerUnresponsive)
            with pytest.raises(trio.BrokenResourceError):
                await one.wait_writable()


async def test_waiting_for_room_ends_at_the_same_deadline():
    client, server = await socket_pair()
    one = TcpTransport(client, write_progress_seconds=0.1)
    with server:
        async with closing(one):
            with trio.move_on_after(0.05):
                await one.send_all(bytes(64_000_000))
            one._broken = False  # it was clogged on purpose
            with pytest.raises(trio.BrokenResourceError, match="took no byte"):
                await one.wait_writable()


async def test_a_write_that_takes_longer_than_its_deadline_goes_on_while_bytes_move(monkeypatch):
    # A slow uplink, as the kernel would tell of it: two deadlines pass while bytes still move, then no more do.
    reports = [300_000, 200_000, 100_000, 100_000]
    monkeypatch.setattr(tcp, "_unacknowledged_bytes", lambda _: reports.pop(0))
    client, server = await socket_pair()
    one = TcpTransport(client, write_progress_seconds=0.05)
    with server:
        async with closing(one):
            started = trio.current_time()
            with pytest.raises(trio.BrokenResourceError, match="took no byte"):
                await one.send_all(bytes(64_000_000))
            assert trio.current_time() - started >= 0.15
            assert not reports


async def test_the_kernel_tells_how_much_was_not_acknowledged():
    one, other = await tcp_pair()
    async with closing(one, other):
        assert tcp._unacknowledged_bytes(one._sock) == 0
        with trio.move_on_after(0.05):
            await one.send_all(bytes(64_000_000))
        before = tcp._unacknowledged_bytes(one._sock)
        assert before > 0
        for _ in range(100):
            if not other.receive_nowait():
                break
            await trio.sleep(0.001)
        assert tcp._unacknowledged_bytes(one._sock) < before


async def test_the_kernel_holds_little_that_it_has_not_sent():
    one, other = await tcp_pair()
    async with closing(one, other):
        taken = 0
        with trio.move_on_after(0.2):
            while True:
                await one.wait_writable()
                taken += one.send_nowait(bytes(65_536))
        wide_open = await fill_without_limit()
        assert taken < wide_open


async def fill_without_limit() -> int:
    client, server = await socket_pair()
    taken = 0
    with client, server, trio.move_on_after(0.2):
        while True:
            taken += await client.send(bytes(65_536))
    return taken


async def test_after_a_cancelled_write_only_abort_is_left():
    one, other = await tcp_pair()
    async with closing(one, other):
        with trio.move_on_after(0.05) as scope:
            await one.send_all(bytes(64_000_000))
        assert scope.cancelled_caught
        with pytest.raises(trio.BrokenResourceError, match="cancelled"):
            await one.send_all(b"x")
        await one.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await receive_to_end(other)


async def test_abort_wakes_both_waiting_tasks():
    one, other = await tcp_pair()
    async with closing(other), trio.open_nursery() as nursery:

        async def expect_closed(method, *args) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await method(*args)

        nursery.start_soon(expect_closed, one.receive_some)
        nursery.start_soon(expect_closed, one.send_all, bytes(64_000_000))
        await trio.sleep(0.05)
        one.abort()
        one.abort()


async def test_abort_is_seen_as_a_failure_and_not_as_an_end():
    one, other = await tcp_pair()
    async with closing(other):
        await one.send_all(b"half of it")
        assert await other.receive_some() == b"half of it"
        one.abort()
        with pytest.raises(trio.BrokenResourceError):
            await other.receive_some()


async def test_a_reset_that_the_writer_learnt_of_does_not_look_like_an_end_to_the_reader():
    one, other = await tcp_pair()
    async with closing(other):
        one.abort()
        await trio.sleep(0.02)
        with pytest.raises(trio.BrokenResourceError):
            await other.send_all(b"x")
        with pytest.raises(trio.BrokenResourceError):
            await other.receive_some()


async def test_an_orderly_close_does_not_cost_the_other_side_our_last_words():
    one, other = await tcp_pair()
    async with closing(other):
        await other.send_all(b"unread")
        await trio.sleep(0.01)
        async with trio.open_nursery() as nursery:
            await one.send_all(b"last words")
            nursery.start_soon(one.aclose)
            await trio.sleep(0.02)
            assert await receive_to_end(other) == b"last words"
            other.abort()


async def test_an_orderly_close_waits_for_a_silent_peer_only_so_long(monkeypatch):
    monkeypatch.setattr(tcp, "CLOSE_SECONDS", 0.05)
    one, other = await tcp_pair()
    async with closing(other):
        with trio.fail_after(1):
            await one.aclose()
            await one.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await one.receive_some()


async def test_a_cancelled_close_still_closes():
    one, other = await tcp_pair()
    async with closing(other):
        with trio.move_on_after(0.02) as scope:
            await one.aclose()
        assert scope.cancelled_caught
        with pytest.raises(trio.ClosedResourceError):
            one.receive_nowait()


async def test_a_socket_that_died_before_it_was_taken_over_fails_at_the_first_read():
    client, server = await socket_pair()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    await trio.sleep(0.02)
    transport = TcpTransport(server)
    async with closing(transport):
        assert transport.info.peer == ""
        with pytest.raises(trio.BrokenResourceError):
            await transport.receive_some()
        with contextlib.suppress(trio.BrokenResourceError):
            await transport.aclose()


async def test_the_peer_is_named_with_its_port():
    one, other = await tcp_pair()
    async with closing(one, other):
        host, _, port = one.info.peer.partition(":")
        assert (host, port.isdigit(), one.info.kind) == ("127.0.0.1", True, "tcp")
    assert format_address("::1", 443) == "[::1]:443"
