from __future__ import annotations

import contextlib
import ssl

import pytest
import trio
import trio.testing
import trustme
from support.transport_pairs import (
    CA,
    SERVER_NAME,
    clogged_stream_maker,
    client_tls,
    closing,
    receive_exactly,
    receive_to_end,
    server_tls,
    socket_pair,
    stream_maker,
    tcp_pair,
    tls_pair,
)

from tunnel.errors import HandshakeError
from tunnel.transports import tcp, tls
from tunnel.transports.carrier import REPLIES_BYTES
from tunnel.transports.tls import TlsTransport

BULK = bytes(range(256)) * 8_192  # 2 MiB


@pytest.mark.slow
async def test_it_behaves_as_trio_demands_of_a_half_closeable_stream(monkeypatch):
    monkeypatch.setattr(tcp, "CLOSE_SECONDS", 0.05)
    monkeypatch.setattr(tls, "CLOSE_SECONDS", 0.05)
    await trio.testing.check_half_closeable_stream(stream_maker(tls_pair), clogged_stream_maker(tls_pair))


async def test_a_large_write_arrives_whole_while_the_other_direction_is_busy_too():
    one, other = await tls_pair()
    async with closing(one, other), trio.open_nursery() as nursery:
        nursery.start_soon(one.send_all, BULK)
        nursery.start_soon(other.send_all, BULK[::-1])

        async def check_other_direction() -> None:
            assert await receive_exactly(one, len(BULK)) == BULK[::-1]

        nursery.start_soon(check_other_direction)
        assert await receive_exactly(other, len(BULK)) == BULK


async def test_the_handshake_tells_what_was_agreed():
    client, server = client_tls(), server_tls()
    client.set_alpn_protocols(["h2", "http/1.1"])
    server.set_alpn_protocols(["http/1.1"])
    one, other = await tls_pair(client, server)
    async with closing(one, other):
        for transport in (one, other):
            assert transport.info.kind == "tls"
            assert transport.info.alpn == "http/1.1"
            assert transport.info.server_name == SERVER_NAME
            assert transport.info.tls_version == "TLSv1.3"
            assert transport.info.peer.startswith("127.0.0.1:")


async def test_cancelling_a_receive_loses_nothing():
    one, other = await tls_pair()
    async with closing(one, other):
        with trio.move_on_after(0.01) as scope:
            await other.receive_some()
        assert scope.cancelled_caught
        await one.send_all(b"kept")
        await trio.sleep(0.01)
        with trio.CancelScope() as cancelled:
            cancelled.cancel()
            await other.receive_some()
        assert await other.receive_some() == b"kept"


async def test_receive_nowait_tells_nothing_yet_from_the_end():
    one, other = await tls_pair()
    async with closing(one, other):
        assert other.receive_nowait() is None
        await one.send_all(b"x")
        await trio.sleep(0.01)
        assert other.receive_nowait() == b"x"
        await one.send_eof()
        await trio.sleep(0.01)
        assert not other.clean_eof
        assert other.receive_nowait() == b""
        assert other.clean_eof
        assert await other.receive_some() == b""


async def test_unread_bytes_come_before_those_that_were_received():
    one, other = await tls_pair()
    async with closing(one, other):
        await one.send_all(b"2")
        await trio.sleep(0.01)
        other.unread(b"1")
        assert await receive_exactly(other, 2) == b"12"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_half_close_lets_data_flow_back(version):
    client = client_tls()
    client.maximum_version = version
    one, other = await tls_pair(client)
    async with closing(one, other):
        await other.send_all(b"before")
        await trio.sleep(0.01)
        await one.send_eof()  # with records waiting that were not read
        assert await other.receive_some() == b""
        assert other.clean_eof
        await other.send_all(b" and after")
        assert await receive_exactly(one, 16) == b"before and after"
        await other.send_eof()
        assert await one.receive_some() == b""
        assert one.clean_eof
        with pytest.raises(trio.ClosedResourceError):
            await one.send_all(b"x")


async def test_an_end_without_close_notify_is_an_end_but_not_a_clean_one():
    below_client, below_server = await tcp_pair()
    one = TlsTransport(below_client, client_tls(), server_side=False, server_hostname=SERVER_NAME)
    other = TlsTransport(below_server, server_tls(), server_side=True)
    async with closing(one, other):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.handshake)
            nursery.start_soon(other.handshake)
        await one.send_all(b"cut off")
        await below_client.send_eof()
        assert await receive_to_end(other) == b"cut off"
        assert not other.clean_eof


async def test_closing_sends_close_notify_and_a_cancelled_write_prevents_it():
    one, other = await tls_pair()
    async with closing(one, other), trio.open_nursery() as nursery:
        nursery.start_soon(one.aclose)
        assert await receive_to_end(other) == b""
        assert other.clean_eof
        await other.aclose()

    one, other = await tls_pair()
    async with closing(one, other):
        with trio.move_on_after(0.05):
            await one.send_all(bytes(64_000_000))
        with pytest.raises(trio.BrokenResourceError):
            await one.send_all(b"x")
        await one.aclose()
        with contextlib.suppress(trio.BrokenResourceError):
            await receive_to_end(other)
        assert not other.clean_eof


async def test_closing_towards_a_peer_that_does_not_read_ends_in_time(monkeypatch):
    monkeypatch.setattr(tcp, "CLOSE_SECONDS", 0.05)
    monkeypatch.setattr(tls, "CLOSE_SECONDS", 0.05)
    one, other = await clogged_stream_maker(tls_pair)()
    async with closing(one.transport, other.transport):
        with trio.fail_after(1):
            await one.aclose()
            await one.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await one.transport.receive_some()


async def test_abort_wakes_both_waiting_tasks():
    one, other = await tls_pair()
    async with closing(one, other), trio.open_nursery() as nursery:

        async def expect_closed(method, *args) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await method(*args)

        nursery.start_soon(expect_closed, one.receive_some)
        nursery.start_soon(expect_closed, one.send_all, bytes(64_000_000))
        await trio.sleep(0.05)
        one.abort()


async def test_records_that_were_tampered_with_break_the_connection():
    below_client, below_server = await tcp_pair()
    one = TlsTransport(below_client, client_tls(), server_side=False, server_hostname=SERVER_NAME)
    other = TlsTransport(below_server, server_tls(), server_side=True)
    async with closing(one, other):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.handshake)
            nursery.start_soon(other.handshake)
        await one.send_all(b"whole")
        await below_client.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
        await trio.sleep(0.01)
        assert await other.receive_some() == b"whole"
        with pytest.raises(trio.BrokenResourceError, match="TLS with .* failed"):
            await other.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await other.send_all(b"x")


class OpenSslClient:
    """A TLS client on which a test can do what `ssl` has no function for, since it holds the traffic secrets."""


async def test_session_tickets_that_come_while_reading_are_no_data():
    server = server_tls()
    server.num_tickets = 5
    one, other = await tls_pair(server_context=server)
    async with closing(one, other):
        await other.send_all(b"after five tickets")
        assert await one.receive_some() == b"after five tickets"
