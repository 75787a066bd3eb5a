"""Requests on an HTTP/2 connection that begin and end without a task, in both roles."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio
from support.http2 import (
    END_HEADERS,
    END_STREAM,
    PREFACE,
    REQUEST,
    RESPONSE,
    SETTINGS_ACK,
    data,
    goaway,
    headers,
    ping,
    rst_stream,
    settings,
)
from support.transport_pairs import tcp_pair
from support.tunnels import TunnelPair, get, open_tunnel, post
from trio.testing import wait_all_tasks_blocked

from tunnel.connection import Connection
from tunnel.direct import DIRECT_BYTES
from tunnel.errors import ConnectionEnded, ErrorCode, RemoteProtocolError, StreamRefused, StreamReset
from tunnel.h2.config import TUNNEL_REQUESTER, TUNNEL_RESPONDER, EngineConfig
from tunnel.h2.engine import Role
from tunnel.messages import BodyReader, RequestHead, ResponseHead
from tunnel.streams import RequestStream, ServedStream
from tunnel.transports.base import Transport
from tunnel.transports.tcp import TcpTransport

HEAD = ResponseHead(200, [(b"content-type", b"text/plain")])


async def read_all(body: BodyReader) -> bytes:
    content = b""
    while part := await body.receive():
        content += part
    return content


async def answer_ok(stream: ServedStream) -> None:
    await stream.send_response(HEAD, b"from a task", end=True)


class Served:
    """A direct exchange on a `ServedStream`, which counts what it is told."""

    def __init__(self, stream: ServedStream) -> None:
        self.stream = stream
        self.abandoned = 0
        stream.begin_direct(self)

    def answer(self, content: bytes = b"hello", head: ResponseHead = HEAD) -> None:
        assert self.stream.respond_nowait(head, content)
        self.stream.end_direct()

    def need_task(self) -> None:
        self.stream.hand_over()

    def response_arrived(self) -> None:
        raise AssertionError("a connection that serves calls it never")

    def response_failed(self) -> None:
        raise AssertionError("a connection that serves calls it never")

    def abandon(self) -> None:
        self.abandoned += 1
        self.stream.direct = None


class Serving:
    """Begins every request directly, or none, and takes up what is handed over."""

    def __init__(self, at_once: Callable[[Served], object] = lambda exchange: None) -> None:
        self.at_once = at_once
        self.begun: list[Served] = []
        self.handled: list[ServedStream] = []
        self.handed_over: list[Served] = []
        self.declines = False
        self.serve: Callable[[ServedStream], Awaitable[None]] = answer_ok

    def begin(self, stream: ServedStream) -> bool:
        if self.declines:
            return False
        exchange = Served(stream)
        self.begun.append(exchange)
        self.at_once(exchange)
        return True

    async def handle(self, stream: ServedStream) -> None:
        self.handled.append(stream)
        if isinstance(stream.direct, Served):
            self.handed_over.append(stream.direct)
            stream.direct = None
        await self.serve(stream)


async def begin_one(pair: TunnelPair, serving: Serving) -> tuple[RequestStream, Served]:
    before = len(serving.begun)
    stream = await pair.requester.open(get())
    await wait_all_tasks_blocked()
    assert len(serving.begun) == before + 1
    return stream, serving.begun[-1]


async def nothing_left(pair: TunnelPair) -> None:
    await wait_all_tasks_blocked()
    assert (pair.requester.open_streams, pair.responder.open_streams) == (0, 0)
    assert pair.responder._engine.statistics().open_streams == 0
    assert pair.requester._engine.statistics().open_streams == 0


# A connection that serves


async def test_requests_are_answered_without_a_task() -> None:
    serving = Serving(Served.answer)
    async with open_tunnel(serving.handle, begin=serving.begin) as pair:
        for _ in range(3):
            stream = await pair.requester.open(get())
            assert (await stream.receive_head()).status == 200
            assert await read_all(stream) == b"hello"
        await nothing_left(pair)
    assert serving.handled == []
    assert [each.abandoned for each in serving.begun] == [0, 0, 0]


async def test_answers_that_come_later_may_come_in_any_order() -> None:
    serving = Serving()
    async with open_tunnel(serving.handle, begin=serving.begin) as pair:
        streams = [await pair.requester.open(get()) for _ in range(3)]
        await wait_all_tasks_blocked()
        for number in (1, 2, 0):
            serving.begun[number].answer(b"%d" % number)
            await streams[number].receive_head()
            assert await read_all(streams[number]) == b"%d" % number
        await nothing_left(pair)


@pytest.mark.parametrize(
    ("head", "content"),
    [(ResponseHead(204, [], ended=True), b""), (HEAD, b""), (HEAD, b"x" * DIRECT_BYTES), (HEAD, b"x" * 3_000_000)],
)
async def test_answers_of_every_size_arrive_whole(head: ResponseHead, content: bytes) -> None:
    serving = Serving(lambda exchange: exchange.answer(content, head))
    async with open_tunnel(serving.handle, begin=serving.begin) as pair:
        stream = await pair.requester.open(get())
        assert (await stream.receive_head()).status == head.status
        assert await read_all(stream) == content
        await nothing_left(pair)


async def test_a_request_that_does_not_begin_directly_is_handled() -> None:
    serving = Serving(Served.answer)
    serving.declines = True
    async with open_tunnel(serving.handle, begin=serving.begin) as pair:
        for _ in range(2):  # a new task, and one that rests
            stream = await pair.requester.open(get())
            await stream.receive_head()
            assert await read_all(stream) == b"from a task"
        await nothing_left(pair)
    assert len(serving.handled) == 2


@pytest.mark.parametrize("resting", [False, True])
@pytest.mark.parametrize("at_once", [False, True])
async def test_an_exchange_is_handed_over_to_a_task(resting: bool, at_once: bool) -> None:
    serving = Serving()
    async with open_tunnel(serving.handle, begin=serving.begin) as pair:
        if resting:
            serving.declines = True
            await read_all_of(await pair.requester.open(get()))
            serving.declines = False
        if at_once:
            serving.at_once = Served.need_task
        stream = await pair.requester.open(get())
        await wait_all_tasks_blocked()
        if not at_once:
            serving.begun[0].need_task()
        assert await read_all_of(stream) == b"from a task"
        await nothing_left(pair)
    assert serving.handed_over == serving.begun
    assert len(serving.handled) == 1 + resting
    assert serving.begun[0].abandoned == 0


async def read_all_of(stream: RequestStream) -> bytes:
    await stream.receive_head()
    return await read_all(stream)


async def test_what_is_under_way_without_a_task_counts_against_the_limit_of_streams() -> None:
    config = dataclasses.replace(TUNNEL_RESPONDER, max_concurrent_streams=2)
    serving = Serving()
    async with open_tunnel(serving.handle, begin=serving.begin, responder_config=config) as pair:
        streams = [await pair.requester.open(get()) for _ in range(2)]
        await wait_all_tasks_blocked()
        assert not pair.requester.can_open_nowait
        assert pair.requester.open_nowait(get()) is None
        serving.begun[0].answer()
        assert await read_all_of(streams[0]) == b"hello"
        third = pair.requester.open_nowait(get())
        assert third is not None
        await wait_all_tasks_blocked()
        for exchange in serving.begun[1:]:
            exchange.answer()
        assert await read_all_of(third) == b"hello"
        await nothing_left(pair)


async def test_nothing_is_opened_without_waiting_in_front_of_those_who_wait() -> None:
    config = dataclasses.replace(TUNNEL_RESPONDER, max_concurrent_streams=1)
    serving = Serving()
    opened: list[RequestStream] = []
    async with open_tunnel(serving.handle, begin=serving.begin, responder_config=config) as pair:

        async def wait_in_turn() -> None:
            opened.append(await pair.requester.open(get()))

        async with trio.open_nursery() as nursery:
            await pair.requester.open(get())
            nursery.start_soon(wait_in_turn)
            await wait_all_tasks_blocked()
            assert pair.requester.open_nowait(get()) is None
            serving.begun[0].answer()
            await wait_all_tasks_blocked()
        assert len(opened) == 1
        pair.requester.drain()
        assert pair.requester.open_nowait(get()) is None


async def test_a_reset_by_the_peer_abandons_the_exchange() -> None:
    serving = Serving()
    async with open_tunnel(serving.handle, begin=serving.begin) as pair:
        stream, exchange = await begin_one(pair, serving)
        stream.reset(ErrorCode.CANCEL)
        await nothing_left(pair)
        assert exchange.abandoned == 1
        assert pair.responder.is_usable
    assert exchange.abandoned == 1
    assert serving.handled == []


async def test_a_reset_by_the_peer_after_the_hand_over_cancels_the_task() -> None:
    cancelled = trio.Event()

    async def serve(stream: ServedStream) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    serving = Serving()
    serving.serve = serve
    async with open_tunnel(serving.handle, begin=serving.begin) as pair:
        stream, exchange = await begin_one(pair, serving)
        exchange.need_task()
        await wait_all_tasks_blocked()
        stream.reset(ErrorCode.CANCEL)
        await cancelled.wait()
        await nothing_left(pair)
    assert exchange.abandoned == 0


@pytest.mark.parametrize("resting", [False, True])
async def test_a_reset_before_a_task_has_taken_it_up_abandons_the_exchange(resting: bool) -> None:
    serving = Serving()
    async with open_tunnel(serving.handle, begin=serving.begin) as pair:
        if resting:
            serving.declines = True
            await read_all_of(await pair.requester.open(get()))
            serving.declines = False
        _, exchange = await begin_one(pair, serving)
        exchange.need_task()
        exchange.stream.cancel()
        await nothing_left(pair)
        assert exchange.abandoned == 1
        assert serving.handed_over == []
        serving.at_once = Served.answer
        assert await read_all_of(await pair.requester.open(get())) == b"hello"


async def test_cancelling_resets_the_stream_and_abandons_the_exchange() -> None:
    serving = Serving()
    async with open_tunnel(serving.handle, begin=serving.begin) as pair:
        stream, exchange = await begin_one(pair, serving)
        exchange.stream.cancel()
        with pytest.raises(StreamReset):
            await stream.receive_head()
        assert exchange.abandoned == 1
        exchange.stream.cancel()
        assert exchange.abandoned == 1
        await nothing_left(pair)


async def test_an_exchange_that_ends_without_an_answer_resets_its_stream() -> None:
    serving = Serving()
    async with open_tunnel(serving.handle, begin=serving.begin) as pair:
        stream, exchange = await begin_one(pair, serving)
        exchange.stream.end_direct()
        with pytest.raises(StreamReset):
            await stream.receive_head()
        await nothing_left(pair)


async def test_an_answer_may_be_given_in_parts() -> None:
    serving = Serving()
    async with open_tunnel(serving.handle, begin=serving.begin) as pair:
        stream, exchange = await begin_one(pair, serving)
        assert exchange.stream.start_nowait(HEAD, b"")
        assert (await stream.receive_head()).status == 200
        for part in (b"one", b"two"):
            assert exchange.stream.write_nowait(part)
            assert await stream.receive() == part
        assert exchange.stream.finish_nowait([(b"checksum", b"1")])
        exchange.stream.end_direct()
        assert await stream.receive() == b""
        assert stream.trailers == [(b"checksum", b"1")]
        await nothing_left(pair)
    assert serving.handled == []


async def test_an_answer_for_which_there_is_no_room_is_gone_on_with_by_a_task() -> None:
    parts = [bytes([number]) * 60_000 for number in range(40)]
    flushed = trio.Event()

    async def serve(stream: ServedStream) -> None:
        await stream.flush()
        flushed.set()
        for part in parts[written:]:
            await stream.send(part)
        await stream.finish()

    serving = Serving()
    serving.serve = serve
    async with open_tunnel(serving.handle, begin=serving.begin) as pair:
        stream, exchange = await begin_one(pair, serving)
        assert exchange.stream.start_nowait(HEAD, b"")
        written = 1
        while exchange.stream.write_nowait(parts[written - 1]):
            await wait_all_tasks_blocked()  # let what there is a window for leave
            written += 1
        assert written < len(parts)
        exchange.need_task()
        await wait_all_tasks_blocked()
        assert serving.handed_over == [exchange]
        assert not flushed.is_set()
        assert await read_all_of(stream) == b"".join(parts)
        assert flushed.is_set()
        await nothing_left(pair)


async def test_a_reset_between_two_parts_abandons_the_exchange() -> None:
    serving = Serving()
    async with open_tunnel(serving.handle, begin=serving.begin) as pair:
        stream, exchange = await begin_one(pair, serving)
        exchange.stream.start_nowait(HEAD, b"part")
        await stream.receive_head()
        stream.reset(ErrorCode.CANCEL)
        await nothing_left(pair)
        assert exchange.abandoned == 1
        for write in (exchange.stream.finish_nowait, lambda: exchange.stream.write_nowait(b"more")):
            with pytest.raises(StreamReset):
                write()


async def test_an_answer_in_parts_that_is_left_unfinished_is_reset() -> None:
    serving = Serving()
    async with open_tunnel(serving.handle, begin=serving.begin) as pair:
        stream, exchange = await begin_one(pair, serving)
        exchange.stream.start_nowait(HEAD, b"part")
        exchange.stream.end_direct()
        await stream.receive_head()
        with pytest.raises(StreamReset):
            while await stream.receive():
                pass
        await nothing_left(pair)


@pytest.mark.parametrize("handed_over", [False, True])
async def test_a_lost_connection_abandons_what_is_under_way(handed_over: bool) -> None:
    async def serve(stream: ServedStream) -> None:
        await trio.sleep_forever()

    serving = Serving()
    serving.serve = serve
    async with open_tunnel(serving.handle, begin=serving.begin) as pair:
        for _ in range(2):
            await begin_one(pair, serving)
        if handed_over:
            serving.begun[0].need_task()  # nobody has taken it up by then
        pair.responder.abort()
        with trio.fail_after(5):
            await pair.responder.wait_ended()
        await wait_all_tasks_blocked()
        assert pair.responder.open_streams == 0
        for exchange in serving.begun:
            assert exchange.abandoned + serving.handed_over.count(exchange) == 1
            with pytest.raises((ConnectionEnded, StreamReset)):
                exchange.stream.respond_nowait(HEAD, b"")


async def test_a_drain_waits_for_what_is_under_way_without_a_task() -> None:
    serving = Serving()
    async with open_tunnel(serving.handle, begin=serving.begin) as pair:
        stream, exchange = await begin_one(pair, serving)
        pair.responder.drain()
        await wait_all_tasks_blocked()
        assert not pair.responder_end
        exchange.answer()
        assert await read_all_of(stream) == b"hello"
        with trio.fail_after(5):
            await pair.responder.wait_ended()


@contextlib.asynccontextmanager
async def raw_peer(
    role: Role, serving: Serving | None = None, config: EngineConfig | None = None
) -> AsyncIterator[tuple[Connection, Transport]]:
    """A connection in this role, and the transport on which a test writes its peer's frames."""
    near, far = await tcp_pair()
    connection = Connection(
        near,
        role=role,
        config=config or (TUNNEL_RESPONDER if role is Role.RESPONDER else TUNNEL_REQUESTER),
        handler=serving.handle if serving is not None else None,
        begin=serving.begin if serving is not None else None,
    )

    async def run() -> None:
        with contextlib.suppress(ConnectionEnded):
            await connection.run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await far.send_all((PREFACE if role is Role.RESPONDER else b"") + settings() + SETTINGS_ACK)
        await wait_all_tasks_blocked()
        yield connection, far
        nursery.cancel_scope.cancel()
    far.abort()


async def test_a_request_that_is_reset_in_the_same_read_begins_nothing() -> None:
    serving = Serving()
    async with raw_peer(Role.RESPONDER, serving) as (connection, peer):
        await peer.send_all(headers(1, REQUEST) + rst_stream(1) + headers(3, REQUEST))
        await wait_all_tasks_blocked()
        assert [each.stream.stream_id for each in serving.begun] == [3]
        assert serving.handled == []
        assert connection.open_streams == 1


@pytest.mark.parametrize("body", [b"", b"abc"])
async def test_a_request_whose_body_comes_in_the_same_read_is_handled_with_it(body: bytes) -> None:
    received: list[bytes] = []

    async def serve(stream: ServedStream) -> None:
        received.append(await read_all(stream))
        await stream.send_response(HEAD, end=True)

    serving = Serving(Served.answer)
    serving.serve = serve
    async with raw_peer(Role.RESPONDER, serving) as (connection, peer):
        await peer.send_all(headers(1, REQUEST, END_HEADERS) + data(1, body, END_STREAM))
        await wait_all_tasks_blocked()
        assert serving.begun == []
        assert received == [body]
        assert connection.open_streams == 0


@pytest.mark.parametrize("request_head", [post(), post(length=3), get(protocol=b"spdy/3.1")])
async def test_a_request_with_a_body_or_for_an_upgrade_is_handled(request_head: RequestHead) -> None:
    serving = Serving(Served.answer)
    async with open_tunnel(serving.handle, begin=serving.begin) as pair:
        await pair.requester.open(request_head)
        await wait_all_tasks_blocked()
        assert serving.begun == []
        assert len(serving.handled) == 1


async def test_a_head_that_is_too_large_is_handled() -> None:
    serving = Serving()
    responder = dataclasses.replace(TUNNEL_RESPONDER, max_header_list_bytes=1_000)
    async with open_tunnel(serving.handle, begin=serving.begin, responder_config=responder) as pair:
        request = get()
        request.fields += [(b"x", b"x" * 400)] * 5
        assert await read_all_of(await pair.requester.open(request)) == b"from a task"
        assert [each.head_too_large for each in serving.handled] == [True]
        assert serving.begun == []


# A connection that asks


class Asked:
    """A direct exchange on a `RequestStream`, as `server.direct` does it: each part as it comes, the last one ends it."""

    def __init__(self, stream: RequestStream) -> None:
        self.stream = stream
        self.calls: list[str] = []
        self.head: ResponseHead | None = None
        self.parts: list[bytes] = []
        self.limit = math.inf
        """After so many parts there is no room for more."""
        stream.direct = self

    @property
    def content(self) -> bytes:
        return b"".join(self.parts)

    def response_arrived(self) -> None:
        if self.head is None:
            self.head = self.stream.peek_head()
            if self.head is None:
                return self._need_task("task")
            self.parts.append(self.stream.take_start())
        while len(self.parts) < self.limit and (data := self.stream.receive_nowait()):
            self.parts.append(data)
        if len(self.parts) >= self.limit:
            return self._need_task("full")
        if self.stream.at_end:
            self.calls.append("end")
            self.stream.part()
        else:
            self.calls.append("part")
        return None

    def response_failed(self) -> None:
        self._need_task("failed")

    def _need_task(self, why: str) -> None:
        self.calls.append(why)
        self.stream.direct = None

    def abandon(self) -> None:
        raise AssertionError("a stream that asks calls it never")


@contextlib.asynccontextmanager
async def asking(config: EngineConfig | None = None) -> AsyncIterator[tuple[Connection, Transport, Asked]]:
    """A request that is under way directly, and the transport on which a test answers it."""
    async with raw_peer(Role.REQUESTER, config=config) as (connection, peer):
        stream = connection.open_nowait(get())
        assert stream is not None
        asked = Asked(stream)
        await wait_all_tasks_blocked()
        yield connection, peer, asked


async def test_a_response_in_one_read_is_one_part() -> None:
    async with asking() as (connection, peer, asked):
        await peer.send_all(headers(1, RESPONSE, END_HEADERS) + data(1, b"hel") + data(1, b"lo", END_STREAM))
        await wait_all_tasks_blocked()
        assert asked.calls == ["end"]
        assert asked.head is not None
        assert (asked.head.status, asked.parts) == (200, [b"hello"])
        assert connection.open_streams == 0
        assert connection.statistics().engine.held_bytes == 0
        assert asked.stream.h2.owner is None


async def test_a_response_without_a_body_is_complete() -> None:
    async with asking() as (connection, peer, asked):
        await peer.send_all(headers(1, RESPONSE))
        await wait_all_tasks_blocked()
        assert asked.calls == ["end"]
        assert asked.head is not None
        assert asked.head.ended
        assert (asked.content, connection.open_streams) == (b"", 0)


async def test_each_part_of_a_response_is_told_as_it_comes() -> None:
    async with asking() as (connection, peer, asked):
        await peer.send_all(headers(1, RESPONSE, END_HEADERS))
        await wait_all_tasks_blocked()
        assert (asked.calls, asked.parts) == (["part"], [b""])
        for number, part in enumerate([b"hel", b"lo", b"!"], 2):
            await peer.send_all(data(1, part))
            await wait_all_tasks_blocked()
            assert (asked.calls, asked.parts[-1]) == (["part"] * number, part)
        assert connection.statistics().engine.held_bytes == 0
        assert connection.open_streams == 1
        await peer.send_all(data(1, b"", END_STREAM))
        await wait_all_tasks_blocked()
        assert (asked.calls, asked.content) == (["part"] * 4 + ["end"], b"hello!")
        assert connection.open_streams == 0


async def test_parts_of_several_responses_in_one_read_are_told_to_each() -> None:
    async with asking() as (connection, peer, asked):
        second = connection.open_nowait(get())
        assert second is not None
        other = Asked(second)
        await wait_all_tasks_blocked()
        await peer.send_all(
            headers(1, RESPONSE, END_HEADERS)
            + headers(3, RESPONSE, END_HEADERS)
            + data(1, b"a")
            + data(3, b"x")
            + data(1, b"b")
            + data(3, b"y", END_STREAM)
        )
        await wait_all_tasks_blocked()
        assert (asked.content, other.content) == (b"ab", b"xy")
        assert (set(asked.calls), other.calls[-1]) == ({"part"}, "end")
        assert connection.open_streams == 1


async def test_what_a_task_takes_up_follows_what_was_passed_on() -> None:
    async with asking() as (connection, peer, asked):
        asked.limit = 2
        await peer.send_all(headers(1, RESPONSE, END_HEADERS) + data(1, b"hel"))
        await wait_all_tasks_blocked()
        await peer.send_all(data(1, b"lo") + data(1, b", "))
        await wait_all_tasks_blocked()
        assert asked.calls[-1] == "full"
        await peer.send_all(data(1, b"you", END_STREAM))
        await wait_all_tasks_blocked()
        assert asked.calls[-1] == "full"  # nothing more is told
        assert asked.content + await read_all(asked.stream) == b"hello, you"
        assert connection.open_streams == 0
        assert connection.statistics().engine.held_bytes == 0


async def test_trailers_are_there_with_the_end() -> None:
    async with asking() as (connection, peer, asked):
        await peer.send_all(headers(1, RESPONSE, END_HEADERS) + data(1, b"x") + headers(1, [(b"checksum", b"1")]))
        await wait_all_tasks_blocked()
        assert (asked.calls, asked.content) == (["end"], b"x")
        assert asked.stream.trailers == [(b"checksum", b"1")]
        assert connection.open_streams == 0


@pytest.mark.parametrize("alone", [False, True])
async def test_interim_heads_are_a_tasks(alone: bool) -> None:
    async with asking() as (_, peer, asked):
        await peer.send_all(headers(1, [(b":status", b"103")], END_HEADERS))
        if alone:
            await wait_all_tasks_blocked()
            assert asked.calls == ["task"]
        await peer.send_all(headers(1, RESPONSE))
        await wait_all_tasks_blocked()
        assert asked.calls == ["task"]
        assert asked.head is None
        assert [(await asked.stream.receive_head()).status for _ in range(2)] == [103, 200]


@pytest.mark.parametrize("excess", [0, 1])
async def test_a_large_response_in_one_read_arrives_in_order(excess: int) -> None:
    pieces = [bytes([number]) * 16_384 for number in range(3 * DIRECT_BYTES // 16_384)] + [b"y"] * excess
    wire = headers(1, RESPONSE, END_HEADERS) + b"".join(data(1, piece) for piece in pieces) + data(1, b"", END_STREAM)
    config = dataclasses.replace(TUNNEL_REQUESTER, initial_window_bytes=4 * DIRECT_BYTES)
    async with asking(config) as (connection, peer, asked):
        # What the kernel hands over in two reads is told in parts for that alone.
        assert isinstance(connection._transport, TcpTransport)
        connection._transport.unread(wire)
        await peer.send_all(ping())
        await wait_all_tasks_blocked()
        assert asked.calls == ["end"]
        assert asked.content == b"".join(pieces)
        assert connection.statistics().engine.held_bytes == 0


FAILURES = [
    (rst_stream(1, ErrorCode.INTERNAL_ERROR), StreamReset),
    (rst_stream(1, ErrorCode.REFUSED_STREAM), StreamRefused),
    (goaway(0), StreamRefused),
    (headers(1, RESPONSE, END_HEADERS) + data(1, b"x") + rst_stream(1), StreamReset),
    (b"\0\0\1" + b"\0" * 6 + b"x", ConnectionEnded),
    (b"", ConnectionEnded),
]


@pytest.mark.parametrize(("wire", "failure"), FAILURES)
async def test_a_failure_is_a_tasks(wire: bytes, failure: type[Exception]) -> None:
    async with asking() as (connection, peer, asked):
        if wire:
            await peer.send_all(wire)
        else:
            peer.abort()
        await wait_all_tasks_blocked()
        assert asked.calls == ["failed"]
        with pytest.raises(failure):
            await asked.stream.receive_head()
            await read_all(asked.stream)
        assert connection.open_streams == 0


@pytest.mark.parametrize(
    ("wire", "failure"),
    [
        (rst_stream(1, ErrorCode.INTERNAL_ERROR), StreamReset),
        (data(1, b"lo") + rst_stream(1), StreamReset),
        (b"\0\0\1" + b"\0" * 6 + b"x", ConnectionEnded),
        (b"", ConnectionEnded),
    ],
)
async def test_a_failure_between_two_parts_is_a_tasks(wire: bytes, failure: type[Exception]) -> None:
    async with asking() as (connection, peer, asked):
        await peer.send_all(headers(1, RESPONSE, END_HEADERS) + data(1, b"hel"))
        await wait_all_tasks_blocked()
        if wire:
            await peer.send_all(wire)
        else:
            peer.abort()
        await wait_all_tasks_blocked()
        assert asked.calls == ["part", "part", "failed"][-len(asked.calls) :]
        assert asked.content == b"hel"
        if wire.startswith(data(1, b"lo")):
            assert await asked.stream.receive() == b"lo"  # it is the task's to pass on
        with pytest.raises(failure):
            await asked.stream.receive()
        assert connection.open_streams == 0


async def test_a_response_head_that_is_too_large_is_a_tasks() -> None:
    config = dataclasses.replace(TUNNEL_REQUESTER, max_header_list_bytes=1_000)
    async with asking(config) as (connection, peer, asked):
        await peer.send_all(headers(1, RESPONSE + [(b"x%d" % number, b"x" * 120) for number in range(10)]))
        await wait_all_tasks_blocked()
        assert asked.calls == ["failed"]
        with pytest.raises(RemoteProtocolError):
            await asked.stream.receive_head()
        assert connection.open_streams == 0


async def test_both_ends_directly() -> None:
    serving = Serving(Served.answer)
    async with open_tunnel(serving.handle, begin=serving.begin) as pair:
        for _ in range(100):
            stream = pair.requester.open_nowait(get())
            assert stream is not None
            asked = Asked(stream)
            await wait_all_tasks_blocked()
            assert (asked.calls, asked.content) == (["end"], b"hello")
        await nothing_left(pair)
    assert serving.handled == []


async def test_a_request_with_a_body_may_be_opened_without_waiting() -> None:
    async def echo(stream: ServedStream) -> None:
        await stream.send_response(HEAD, await read_all(stream), end=True)

    async with open_tunnel(echo) as pair:
        stream = pair.requester.open_nowait(post())
        assert stream is not None
        await stream.send(b"abc")
        await stream.finish()
        assert await read_all_of(stream) == b"abc"
