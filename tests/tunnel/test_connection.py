"""Two connections back to back over loopback TCP: what a tunnel promises to those who use it."""

from __future__ import annotations

import hashlib
import os

import pytest
import trio
from support.transport_pairs import tcp_pair
from support.tunnels import get, open_tunnel, post
from trio.testing import check_half_closeable_stream, wait_all_tasks_blocked

from tunnel.connection import Connection
from tunnel.errors import ConnectionEnded, ErrorCode, PeerUnresponsive, StreamLimitReached, StreamRefused, StreamReset
from tunnel.h2.config import TUNNEL_REQUESTER, TUNNEL_RESPONDER
from tunnel.h2.engine import Role
from tunnel.liveness import ConnectionTimes
from tunnel.messages import BodyReader, RequestHead, ResponseHead
from tunnel.streams import ServedStream
from tunnel.transports.base import Transport
from tunnel.upgraded import UpgradedStream


async def read_all(body: BodyReader) -> bytes:
    content = b""
    while data := await body.receive():
        content += data
    return content


async def answer_ok(stream: ServedStream) -> None:
    await stream.send_response(ResponseHead(200, [(b"x-target", stream.request.target)]), b"hello", end=True)


async def echo(stream: ServedStream) -> None:
    await stream.send_response(ResponseHead(200, []))
    while data := await stream.receive():
        await stream.send(data)
    await stream.finish(stream.trailers)


async def never(stream: ServedStream) -> None:
    await trio.sleep_forever()


async def test_a_request_and_its_answer() -> None:
    async with open_tunnel(answer_ok) as pair:
        stream = await pair.requester.open(get(b"/api?x=%2F"))
        head = await stream.receive_head()

        assert (head.status, head.fields) == (200, [(b"x-target", b"/api?x=%2F")])
        assert await read_all(stream) == b"hello"
        await wait_all_tasks_blocked()
        assert pair.requester.open_streams == 0
        assert pair.responder.open_streams == 0


async def test_bodies_both_ways_with_trailers_arrive_whole() -> None:
    content = os.urandom(3_000_000)
    received = hashlib.sha256()
    async with open_tunnel(echo) as pair:
        stream = await pair.requester.open(post())
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for start in range(0, len(content), 100_000):
                    await stream.send(content[start : start + 100_000])
                await stream.finish([(b"checksum", b"1")])

            nursery.start_soon(send)
            assert (await stream.receive_head()).status == 200
            while data := await stream.receive():
                received.update(data)

        assert received.digest() == hashlib.sha256(content).digest()
        assert stream.trailers == [(b"checksum", b"1")]


async def test_a_hundred_exchanges_share_one_tunnel() -> None:
    async with open_tunnel(echo) as pair:

        async def exchange(number: int) -> None:
            content = b"%d " % number * 20_000
            stream = await pair.requester.open(post())
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    await stream.send(content)
                    await stream.finish()

                nursery.start_soon(send)
                await stream.receive_head()
                assert await read_all(stream) == content

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(exchange, number)


async def test_a_stream_that_nobody_reads_holds_up_no_other() -> None:
    async def serve(stream: ServedStream) -> None:
        await stream.send_response(ResponseHead(200, []))
        if stream.request.target == b"/flood":
            while True:
                await stream.send(b"x" * 65_536)
        await stream.send(b"quick")
        await stream.finish()

    async with open_tunnel(serve) as pair:
        flood = await pair.requester.open(get(b"/flood"))
        await flood.receive_head()
        await wait_all_tasks_blocked()
        with trio.fail_after(5):
            for _ in range(200):
                stream = await pair.requester.open(get(b"/quick"))
                await stream.receive_head()
                assert await read_all(stream) == b"quick"

        assert pair.requester.statistics().engine.held_bytes <= 65_536
        flood.reset(ErrorCode.CANCEL)


async def test_giving_up_cancels_the_handler_at_once_and_leaves_nothing() -> None:
    ended = trio.Event()

    async def serve(stream: ServedStream) -> None:
        try:
            await stream.send_response(ResponseHead(200, []))
            await trio.sleep_forever()
        finally:
            ended.set()

    async with open_tunnel(serve) as pair:
        stream = await pair.requester.open(get())
        await stream.receive_head()
        stream.reset(ErrorCode.CANCEL)
        with trio.fail_after(2):
            await ended.wait()
        await wait_all_tasks_blocked()

        assert pair.requester.open_streams == 0
        assert pair.responder.open_streams == 0
        with pytest.raises(StreamReset):
            await stream.receive()


async def test_a_handler_that_returns_without_finishing_resets() -> None:
    async def serve(stream: ServedStream) -> None:
        await stream.send_response(ResponseHead(200, []))
        await stream.send(b"half")

    async with open_tunnel(serve) as pair:
        stream = await pair.requester.open(get())
        await stream.receive_head()

        with pytest.raises(StreamReset) as caught:
            await read_all(stream)

        assert caught.value.remote


async def test_a_crashing_handler_ends_its_own_stream_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async def serve(stream: ServedStream) -> None:
        if stream.request.target == b"/crash":
            raise RuntimeError("planted")
        await answer_ok(stream)

    async with open_tunnel(serve) as pair:
        crashing = await pair.requester.open(get(b"/crash"))
        with pytest.raises(StreamReset):
            await crashing.receive_head()
        other = await pair.requester.open(get())
        assert (await other.receive_head()).status == 200

    assert "planted" in caplog.text


async def test_an_early_final_answer_arrives_whole_and_stops_the_upload() -> None:
    async def serve(stream: ServedStream) -> None:
        await stream.send_response(ResponseHead(413, []), b"too large", end=True)

    async with open_tunnel(serve) as pair:
        stream = await pair.requester.open(post(length=10**9))
        assert (await stream.receive_head()).status == 413
        assert await read_all(stream) == b"too large"
        with pytest.raises(StreamReset) as caught:
            with trio.fail_after(5):
                while True:
                    await stream.send(b"x" * 65_536)

        assert caught.value.code == ErrorCode.NO_ERROR
        await wait_all_tasks_blocked()
        assert pair.responder.open_streams == 0


async def test_interim_heads_come_before_the_final_one() -> None:
    async def serve(stream: ServedStream) -> None:
        await stream.send_interim(ResponseHead(100, []))
        await stream.send_interim(ResponseHead(103, [(b"link", b"x")]))
        await answer_ok(stream)

    async with open_tunnel(serve) as pair:
        stream = await pair.requester.open(get())

        assert [(await stream.receive_head()).status for _ in range(3)] == [100, 103, 200]


# --- upgrades ---------------------------------------------------------------------------------------


def upgrade(method: bytes = b"GET", protocol: bytes = b"websocket") -> RequestHead:
    return RequestHead(method, b"/exec", b"kubernetes", [], protocol=protocol, ended=True)


async def test_an_upgrade_travels_as_101_and_then_as_bytes() -> None:
    async def serve(stream: ServedStream) -> None:
        assert (stream.request.method, stream.request.protocol) == (b"POST", b"SPDY/3.1")
        near = await stream.accept_upgrade(ResponseHead(101, [(b"x-stream-protocol-version", b"v4")]))
        while data := await near.receive_some():
            await near.send_all(data.upper())
        await near.send_all(b"!")
        await near.aclose()

    async with open_tunnel(serve) as pair:
        stream = await pair.requester.open(upgrade(b"POST", b"SPDY/3.1"))
        head = await stream.receive_head()
        assert (head.status, head.fields) == (101, [(b"x-stream-protocol-version", b"v4")])
        far = stream.take_stream()
        await far.send_all(b"hello")
        await far.send_eof()
        content = b""
        while data := await far.receive_some():
            content += data
        await far.aclose()

        assert content == b"HELLO!"
        await wait_all_tasks_blocked()
        assert pair.requester.open_streams == 0


async def test_a_refused_upgrade_keeps_its_status_and_body() -> None:
    async def serve(stream: ServedStream) -> None:
        await stream.send_response(ResponseHead(403, []), b"no", end=True)

    async with open_tunnel(serve) as pair:
        stream = await pair.requester.open(upgrade())

        assert (await stream.receive_head()).status == 403
        assert await read_all(stream) == b"no"


async def test_a_reset_stream_never_looks_ended() -> None:
    async def serve(stream: ServedStream) -> None:
        near = await stream.accept_upgrade(ResponseHead(101, []))
        await near.send_all(b"half")
        near.reset(ErrorCode.CANCEL)

    async with open_tunnel(serve) as pair:
        stream = await pair.requester.open(upgrade())
        await stream.receive_head()
        far = stream.take_stream()

        with pytest.raises(trio.BrokenResourceError):
            while await far.receive_some():
                pass


@pytest.mark.slow
async def test_upgraded_streams_pass_trios_own_checks() -> None:
    handed_over: trio.MemorySendChannel[UpgradedStream]
    accepted: trio.MemoryReceiveChannel[UpgradedStream]
    handed_over, accepted = trio.open_memory_channel(1)

    async def serve(stream: ServedStream) -> None:
        await handed_over.send(await stream.accept_upgrade(ResponseHead(101, [])))
        await trio.sleep_forever()

    async with open_tunnel(serve) as pair:

        async def make() -> tuple[UpgradedStream, UpgradedStream]:
            stream = await pair.requester.open(upgrade())
            await stream.receive_head()
            return stream.take_stream(), await accepted.receive()

        async def make_clogged() -> tuple[UpgradedStream, UpgradedStream]:
            near, far = await make()
            for end in (near, far):
                with trio.move_on_after(0.2):
                    while True:
                        await end.send_all(b"x" * 65_536)
            return near, far

        await check_half_closeable_stream(make, make_clogged)


# --- limits -----------------------------------------------------------------------------------------


async def test_at_the_peers_limit_a_request_waits_its_turn_and_is_then_refused() -> None:
    release = trio.Event()

    async def serve(stream: ServedStream) -> None:
        await release.wait()
        await answer_ok(stream)

    from dataclasses import replace

    async with open_tunnel(serve, responder_config=replace(TUNNEL_RESPONDER, max_concurrent_streams=2)) as pair:
        first = await pair.requester.open(get())
        await pair.requester.open(get())
        with pytest.raises(StreamLimitReached):
            await pair.requester.open(get(), queue="alice")

        async with trio.open_nursery() as nursery:

            async def late() -> None:
                stream = await pair.requester.open(get(b"/late"), queue="bob")
                assert (await stream.receive_head()).status == 200

            nursery.start_soon(late)
            await wait_all_tasks_blocked()
            release.set()
        assert (await first.receive_head()).status == 200


async def test_a_cancelled_wait_for_a_stream_sends_nothing() -> None:
    from dataclasses import replace

    served = 0

    async def serve(stream: ServedStream) -> None:
        nonlocal served
        served += 1
        await trio.sleep_forever()

    async with open_tunnel(serve, responder_config=replace(TUNNEL_RESPONDER, max_concurrent_streams=1)) as pair:
        first = await pair.requester.open(get())
        with trio.move_on_after(0.05):
            await pair.requester.open(get())
        first.reset(ErrorCode.CANCEL)
        await wait_all_tasks_blocked()

        assert served == 1


async def test_ten_thousand_watches_cancelled_at_once_leave_the_tunnel_up() -> None:
    async def serve(stream: ServedStream) -> None:
        if stream.request.target == b"/watch":
            await stream.send_response(ResponseHead(200, []))
            await trio.sleep_forever()
        await answer_ok(stream)

    async with open_tunnel(serve) as pair:
        watches = [await pair.requester.open(get(b"/watch")) for _ in range(10_000)]
        for watch in watches:
            await watch.receive_head()
        for watch in watches:
            watch.reset(ErrorCode.CANCEL)
        with trio.fail_after(10):
            while pair.responder.open_streams:
                await trio.sleep(0.01)
        after = await pair.requester.open(get())

        assert (await after.receive_head()).status == 200
        assert not pair.requester_end
        assert not pair.responder_end


async def test_ten_thousand_watches_ended_at_once_leave_the_tunnel_up() -> None:
    end = trio.Event()

    async def serve(stream: ServedStream) -> None:
        await stream.send_response(ResponseHead(200, []))
        await end.wait()
        stream.reset(ErrorCode.CANCEL)

    async with open_tunnel(serve) as pair:
        watches = [await pair.requester.open(get()) for _ in range(10_000)]
        for watch in watches:
            await watch.receive_head()
        end.set()
        for watch in watches:
            with pytest.raises(StreamReset):
                await watch.receive()

        assert not pair.requester_end
        assert not pair.responder_end


# --- ends -------------------------------------------------------------------------------------------


async def test_losing_the_transport_fails_every_stream_and_cancels_every_handler() -> None:
    ended = 0

    async def serve(stream: ServedStream) -> None:
        nonlocal ended
        try:
            await stream.send_response(ResponseHead(200, []))
            await trio.sleep_forever()
        finally:
            ended += 1

    async with open_tunnel(serve) as pair:
        streams = [await pair.requester.open(get()) for _ in range(3)]
        for stream in streams:
            await stream.receive_head()
        pair.requester_transport.abort()
        await pair.requester.wait_ended()
        await pair.responder.wait_ended()
        await wait_all_tasks_blocked()

        assert ended == 3
        assert len(pair.requester_end) == 1
        assert len(pair.responder_end) == 1
        for stream in streams:
            with pytest.raises(ConnectionEnded):
                await stream.receive()
        with pytest.raises(ConnectionEnded):
            await pair.requester.open(get())


async def test_a_requester_that_drains_cuts_nothing_and_closes_behind_the_last_stream() -> None:
    finish = trio.Event()
    reasons: list[str] = []

    async def serve(stream: ServedStream) -> None:
        await stream.send_response(ResponseHead(200, []))
        await finish.wait()
        await stream.send(b"whole")
        await stream.finish()

    async with open_tunnel(serve, on_going_away=reasons.append) as pair:
        stream = await pair.requester.open(get())
        await stream.receive_head()
        pair.requester.drain(b"age")
        await wait_all_tasks_blocked()

        assert reasons == ["age"]
        assert not pair.requester.is_usable
        with pytest.raises(ConnectionEnded):
            await pair.requester.open(get())
        finish.set()
        assert await read_all(stream) == b"whole"
        with trio.fail_after(5):
            await pair.requester.wait_ended()
            await pair.responder.wait_ended()
        assert not pair.requester_end


async def test_a_responder_that_drains_serves_what_is_under_way_and_refuses_the_rest() -> None:
    finish = trio.Event()

    async def serve(stream: ServedStream) -> None:
        await stream.send_response(ResponseHead(200, []))
        await finish.wait()
        await stream.finish()

    async with open_tunnel(serve) as pair:
        stream = await pair.requester.open(get())
        await stream.receive_head()
        pair.responder.drain()
        with trio.fail_after(5):
            while pair.requester.is_usable:
                await trio.sleep(0.01)
        with pytest.raises(ConnectionEnded):
            await pair.requester.open(get())
        finish.set()
        assert await read_all(stream) == b""
        with trio.fail_after(5):
            await pair.responder.wait_ended()
        assert not pair.responder_end


async def test_a_request_above_the_last_stream_id_is_known_not_to_have_been_processed() -> None:
    async with open_tunnel(never) as pair:
        stream = await pair.requester.open(get())
        await wait_all_tasks_blocked()
        pair.responder._engine.go_away(last_stream_id=0)
        pair.responder._writer_wakeup.call()

        with pytest.raises(StreamRefused):
            await stream.receive_head()


async def test_a_peer_that_says_nothing_is_given_up() -> None:
    near, far = await tcp_pair()
    connection = Connection(
        near,
        role=Role.RESPONDER,
        config=TUNNEL_RESPONDER,
        handler=answer_ok,
        times=ConnectionTimes(ping_interval=0.1, ping_deadline=0.2),
    )
    with trio.fail_after(5), pytest.raises(PeerUnresponsive):
        await connection.run()
    far.abort()


class FreezingTransport:
    """A transport that from some moment on delivers nothing, as the socket of a stopped process does."""

    def __init__(self, below: Transport) -> None:
        self._below = below
        self.frozen = False

    def __getattr__(self, name: str) -> object:
        return getattr(self._below, name)

    async def receive_some(self) -> bytes:
        data = await self._below.receive_some()
        if self.frozen:
            await trio.sleep_forever()
        return data


async def test_a_frozen_peer_is_given_up_although_its_socket_is_open() -> None:
    near, far = await tcp_pair()
    freezing = FreezingTransport(far)
    times = ConnectionTimes(ping_interval=0.1, ping_deadline=0.3)
    requester = Connection(near, role=Role.REQUESTER, config=TUNNEL_REQUESTER, times=times)
    responder = Connection(freezing, role=Role.RESPONDER, config=TUNNEL_RESPONDER, handler=never)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(responder.run)

        async def freeze_later() -> None:
            await trio.sleep(0.6)
            freezing.frozen = True

        nursery.start_soon(freeze_later)
        started = trio.current_time()
        with trio.fail_after(5), pytest.raises(PeerUnresponsive):
            await requester.run()
        assert trio.current_time() - started > 0.6
        nursery.cancel_scope.cancel()
    assert requester.round_trip_seconds is not None


async def test_garbage_ends_the_connection_with_a_reason() -> None:
    near, far = await tcp_pair()
    connection = Connection(near, role=Role.REQUESTER, config=TUNNEL_REQUESTER, name="kas")
    async with trio.open_nursery() as nursery:

        async def talk() -> None:
            await far.send_all(b"HTTP/1.1 200 OK\r\n\r\n" * 10)
            while await far.receive_some():
                pass
            far.abort()

        nursery.start_soon(talk)
        with pytest.raises(ConnectionEnded) as caught:
            await connection.run()

    assert caught.value.local
    assert caught.value.code != ErrorCode.NO_ERROR


async def test_an_idle_front_closes_and_a_stranger_is_shown_out() -> None:
    for times in (ConnectionTimes(idle=0.2), ConnectionTimes(stranger=0.2), ConnectionTimes(stranger_answers=2)):
        async with open_tunnel(answer_ok, responder_times=times) as pair:
            with trio.fail_after(5):
                while not pair.responder._ended.is_set():
                    try:
                        stream = await pair.requester.open(get())
                        await stream.receive_head()
                    except (ConnectionEnded, StreamRefused, StreamReset):
                        pass
                    await trio.sleep(0.3)
            assert not pair.responder_end


async def test_an_authenticated_caller_is_no_stranger() -> None:
    async def serve(stream: ServedStream) -> None:
        stream.authenticated()
        await answer_ok(stream)

    async with open_tunnel(serve, responder_times=ConnectionTimes(stranger=0.2, stranger_answers=2)) as pair:
        for _ in range(4):
            stream = await pair.requester.open(get())
            assert (await stream.receive_head()).status == 200
        await trio.sleep(0.4)

        assert not pair.responder._ended.is_set()
