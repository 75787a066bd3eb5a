"""The server end: requests in, responses out, one after the other on one connection."""

from __future__ import annotations

import h11
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from support.http1 import GET, OK, OK_CLOSE, Front, answer_ok

from tunnel.errors import ConnectionEnded, ErrorCode, LocalProtocolError, StreamReset
from tunnel.http1.downstream import Http1Downstream
from tunnel.http1.limits import Http1Limits
from tunnel.messages import Fields, ResponseHead

POST_5 = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"
EXEC = b"POST /exec HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\r\n"


async def echo(downstream: Http1Downstream) -> None:
    """Answers with the request's body and trailers, as they come."""
    await downstream.send_response(ResponseHead(200, []))
    while data := await downstream.body.receive():
        await downstream.writer.send(data)
    await downstream.writer.finish(downstream.body.trailers)


async def collect(downstream: Http1Downstream) -> None:
    """Answers with the request's body once it is whole."""
    body = b""
    while data := await downstream.body.receive():
        body += data
    await downstream.send_response(ResponseHead(200, []), body, end=True)


async def test_requests_follow_each_other_and_each_small_response_is_one_write(nursery: trio.Nursery) -> None:
    front = Front(nursery, answer_ok)
    for _ in range(3):
        assert await front.ask(GET, b"ok") == OK
    assert front.transport.writes == [OK] * 3
    await front.client.aclose()
    await front.over.wait()
    assert front.transport.closed


async def test_the_bytes_of_a_request_may_come_one_by_one(nursery: trio.Nursery) -> None:
    front = Front(nursery, collect)
    front.client.split = lambda data: [data[at : at + 1] for at in range(len(data))]
    wire = b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nX: y\r\n\r\n"
    for _ in range(2):
        assert (await front.ask(wire, b"abcde")).endswith(b"Content-Length: 5\r\n\r\nabcde")
    assert front.seen[0].body.trailers == [(b"x", b"y")]


async def test_what_was_read_before_is_served_first(nursery: trio.Nursery) -> None:
    front = Front(nursery, collect, initial=POST_5 + b"he")
    assert (await front.ask(b"llo", b"hello")).endswith(b"\r\n\r\nhello")


async def test_an_empty_line_before_a_request_is_ignored(nursery: trio.Nursery) -> None:
    front = Front(nursery, answer_ok)
    assert await front.ask(b"\r\n" + GET, b"ok") == OK
    assert await front.ask(b"\r\n" + GET, b"ok") == OK


async def test_the_parts_of_a_streamed_response_leave_at_once_and_the_head_with_the_first_data(
    nursery: trio.Nursery,
) -> None:
    go_on = trio.Event()

    async def handler(downstream: Http1Downstream) -> None:
        await downstream.send_response(ResponseHead(200, []), b"first")
        await go_on.wait()
        await downstream.writer.send(b"")
        await downstream.writer.send(b"second")
        await downstream.writer.finish([(b"grpc-status", b"0"), (b"content-length", b"3")])
        await downstream.writer.finish()

    front = Front(nursery, handler)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n"
    assert await front.ask(GET, b"first\r\n") == head
    go_on.set()
    await trio.testing.wait_all_tasks_blocked()
    assert front.transport.writes == [head, b"6\r\nsecond\r\n", b"0\r\ngrpc-status: 0\r\n\r\n"]


async def test_a_head_without_data_leaves_at_once(nursery: trio.Nursery) -> None:
    async def handler(downstream: Http1Downstream) -> None:
        await downstream.send_response(ResponseHead(200, []))
        await trio.sleep_forever()

    front = Front(nursery, handler)
    assert await front.ask(GET, b"\r\n\r\n") == b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert front.seen[0].response_started
    nursery.cancel_scope.cancel()


async def test_both_bodies_stream_at_the_same_time(nursery: trio.Nursery) -> None:
    front = Front(nursery, echo)
    head = await front.ask(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", b"\r\n\r\n")
    assert b"Connection: close" in head  # nobody knows yet whether the request will be read to its end
    for piece in (b"1\r\na\r\n", b"2\r\nbc\r\n"):
        await front.client.send_all(piece)
        assert await front.client.receive_some() == piece
    await front.client.send_all(b"0\r\nx: y\r\n\r\n")
    assert await front.client.receive_some() == b"0\r\nx: y\r\n\r\n"
    await front.over.wait()


@pytest.mark.parametrize(
    ("request_line", "lines", "head", "wire"),
    [
        (b"GET / HTTP/1.1", b"", ResponseHead(200, [], 3), b"Content-Length: 3\r\n\r\nabc"),
        (b"GET / HTTP/1.1", b"", ResponseHead(200, [(b"content-length", b"3")]), b"Content-Length: 3\r\n\r\nabc"),
        (b"GET / HTTP/1.1", b"", ResponseHead(200, []), b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        (b"GET / HTTP/1.0", b"", ResponseHead(200, [], 3), b"Content-Length: 3\r\nConnection: close\r\n\r\nabc"),
        (b"GET / HTTP/1.0", b"", ResponseHead(200, []), b"Connection: close\r\n\r\nabc"),
        (b"GET / HTTP/1.0", b"Connection: keep-alive\r\n", ResponseHead(200, []), b"Connection: close\r\n\r\nabc"),
        (
            b"GET / HTTP/1.0",
            b"Connection: keep-alive\r\n",
            ResponseHead(200, [], 3),
            b"Content-Length: 3\r\nConnection: keep-alive\r\n\r\nabc",
        ),
        (
            b"GET / HTTP/1.1",
            b"Connection: close\r\n",
            ResponseHead(200, []),
            b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        ),
    ],
)
async def test_how_a_response_with_a_body_is_framed(
    nursery: trio.Nursery, request_line: bytes, lines: bytes, head: ResponseHead, wire: bytes
) -> None:
    async def handler(downstream: Http1Downstream) -> None:
        await downstream.send_response(head)
        await downstream.writer.send(b"a")
        await downstream.writer.send(b"bc")
        await downstream.writer.finish()

    async def handler_at_once(downstream: Http1Downstream) -> None:
        await downstream.send_response(head, b"abc")
        await downstream.writer.finish()

    for number, each in enumerate((handler, handler_at_once)):
        front = Front(nursery, each)
        await front.client.send_all(request_line + b"\r\nHost: a\r\n" + lines + b"\r\n")
        await trio.testing.wait_all_tasks_blocked()
        sent = (
            front.transport.sent if number else front.transport.sent.replace(b"1\r\na\r\n2\r\nbc\r\n", b"3\r\nabc\r\n")
        )
        assert sent == b"HTTP/1.1 200 OK\r\n" + wire
        assert front.transport.closed is (b"Connection: close" in wire)
        assert not front.transport.aborted
        await front.client.aclose()


@pytest.mark.parametrize(
    ("method", "head", "data", "end", "wire"),
    [
        (b"HEAD", ResponseHead(200, [], 3), b"", True, b"200 OK\r\nContent-Length: 3\r\n\r\n"),
        (b"HEAD", ResponseHead(200, [(b"content-length", b"3")], ended=True), b"", False,
         b"200 OK\r\nContent-Length: 3\r\n\r\n"),
        (b"HEAD", ResponseHead(200, []), b"", True, b"200 OK\r\n\r\n"),
        (b"HEAD", ResponseHead(200, []), b"", False, b"200 OK\r\n\r\n"),
        (b"HEAD", ResponseHead(403, []), b"abc", True, b"403 Forbidden\r\nContent-Length: 3\r\n\r\n"),
        (b"GET", ResponseHead(204, []), b"", True, b"204 No Content\r\n\r\n"),
        (b"GET", ResponseHead(204, [], 0), b"", False, b"204 No Content\r\n\r\n"),
        (b"GET", ResponseHead(304, [(b"etag", b"x")], 7), b"", True,
         b"304 Not Modified\r\nETag: x\r\nContent-Length: 7\r\n\r\n"),
        (b"GET", ResponseHead(304, []), b"", False, b"304 Not Modified\r\n\r\n"),
        (b"GET", ResponseHead(200, [], ended=True), b"", False, b"200 OK\r\nContent-Length: 0\r\n\r\n"),
        (b"GET", ResponseHead(200, [], 0), b"", False, b"200 OK\r\nContent-Length: 0\r\n\r\n"),
        (b"GET", ResponseHead(200, []), b"", True, b"200 OK\r\nContent-Length: 0\r\n\r\n"),
    ],
)  # fmt: skip
async def test_how_a_response_without_a_body_is_framed(
    nursery: trio.Nursery, method: bytes, head: ResponseHead, data: bytes, end: bool, wire: bytes
) -> None:
    async def handler(downstream: Http1Downstream) -> None:
        await downstream.send_response(head, data, end=end)
        await downstream.writer.finish()

    front = Front(nursery, handler)
    for _ in range(2):
        await front.client.send_all(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
    assert front.transport.writes == [b"HTTP/1.1 " + wire] * 2
    await front.client.aclose()


async def test_a_body_of_another_length_than_declared_aborts_the_connection(nursery: trio.Nursery) -> None:
    async def too_short(downstream: Http1Downstream) -> None:
        await downstream.send_response(ResponseHead(200, [], 3), b"ab")
        await downstream.writer.finish()

    async def too_long(downstream: Http1Downstream) -> None:
        await downstream.send_response(ResponseHead(200, [], 3), b"ab")
        await downstream.writer.send(b"cd")

    async def to_head(downstream: Http1Downstream) -> None:
        await downstream.send_response(ResponseHead(200, [], ended=True))
        await downstream.writer.send(b"x")

    for handler in (too_short, too_long, to_head):
        front = Front(nursery, handler)
        await front.client.send_all(GET)
        await front.over.wait()
        assert front.transport.aborted
        assert isinstance(front.crash, ExceptionGroup)
        assert front.crash.subgroup(LocalProtocolError) is not None


@pytest.mark.parametrize(
    ("head", "data", "end"),
    [
        (ResponseHead(204, []), b"x", True),
        (ResponseHead(304, []), b"x", False),
        (ResponseHead(200, [], 3), b"ab", True),
        (ResponseHead(200, [], 3), b"abcd", False),
        (ResponseHead(200, [(b"content-length", b"+2")]), b"ab", True),
        (ResponseHead(200, [(b"x", b"a\r\nb: c")]), b"", True),
        (ResponseHead(101, []), b"", True),
        (ResponseHead(100, []), b"", False),
    ],
)
async def test_a_response_that_cannot_be_written_is_a_bug_and_nothing_is_written(
    nursery: trio.Nursery, head: ResponseHead, data: bytes, end: bool
) -> None:
    async def handler(downstream: Http1Downstream) -> None:
        with pytest.raises(LocalProtocolError):
            await downstream.send_response(head, data, end=end)

    front = Front(nursery, handler)
    await front.client.send_all(GET)
    await front.over.wait()
    assert front.transport.sent == b""
    assert front.transport.aborted


async def test_a_downstream_is_used_in_order(nursery: trio.Nursery) -> None:
    async def handler(downstream: Http1Downstream) -> None:
        with pytest.raises(LocalProtocolError):
            _ = downstream.writer
        for status in (101, 200):
            with pytest.raises(LocalProtocolError):
                await downstream.send_interim(ResponseHead(status, []))
        with pytest.raises(LocalProtocolError):
            await downstream.accept_upgrade(ResponseHead(101, []))
        await answer_ok(downstream)
        with pytest.raises(LocalProtocolError):
            await answer_ok(downstream)
        with pytest.raises(LocalProtocolError):
            await downstream.send_interim(ResponseHead(103, []))
        with pytest.raises(LocalProtocolError):
            await downstream.writer.send(b"more")
        downstream.reset(ErrorCode.CANCEL)

    front = Front(nursery, handler)
    assert await front.ask(GET, b"ok") == OK
    assert await front.ask(GET, b"ok") == OK
    await front.client.aclose()


async def leave(downstream: Http1Downstream) -> None:
    await downstream.send_response(ResponseHead(200, []), b"partial")


async def reset(downstream: Http1Downstream) -> None:
    await leave(downstream)
    downstream.writer.reset(ErrorCode.INTERNAL_ERROR)
    with pytest.raises(StreamReset):
        await downstream.writer.send(b"x")
    with pytest.raises(StreamReset):
        await downstream.writer.finish()


async def reset_exchange(downstream: Http1Downstream) -> None:
    await leave(downstream)
    downstream.reset(ErrorCode.INTERNAL_ERROR)
    with pytest.raises(ConnectionEnded):
        await downstream.writer.finish()


async def fail_as_expected(downstream: Http1Downstream) -> None:
    await leave(downstream)
    raise StreamReset("the upstream broke off")


async def crash(downstream: Http1Downstream) -> None:
    await leave(downstream)
    raise ZeroDivisionError


@pytest.mark.parametrize("handler", [leave, reset, reset_exchange, fail_as_expected, crash])
async def test_leaving_a_response_unfinished_is_visible_to_the_client(nursery: trio.Nursery, handler) -> None:
    front = Front(nursery, handler)
    await front.client.send_all(GET + GET)
    await front.over.wait()
    assert front.transport.aborted
    assert front.transport.sent.endswith(b"7\r\npartial\r\n")
    assert len(front.seen) == 1
    assert (front.crash is not None) is (handler is crash)


async def test_leaving_without_an_answer_aborts_without_an_answer(nursery: trio.Nursery) -> None:
    async def handler(downstream: Http1Downstream) -> None:
        downstream.reset(ErrorCode.CANCEL)
        assert downstream.response_started

    front = Front(nursery, handler)
    await front.client.send_all(GET)
    await front.over.wait()
    assert (front.transport.sent, front.transport.aborted) == (b"", True)


async def test_a_cancelled_write_cannot_be_followed_by_another(nursery: trio.Nursery) -> None:
    async def handler(downstream: Http1Downstream) -> None:
        await downstream.send_response(ResponseHead(200, []))
        with trio.move_on_after(0.01):
            await downstream.writer.send(b"x" * 1_000)
        with pytest.raises(ConnectionEnded):
            await downstream.writer.finish()

    front = Front(nursery, handler, capacity_bytes=100)
    await front.client.send_all(GET)
    await front.over.wait()
    assert front.transport.aborted
    assert not front.transport.sent.endswith(b"0\r\n\r\n")


# Interim responses and Expect


async def test_no_100_leaves_unless_the_handler_sends_it(nursery: trio.Nursery) -> None:
    wire = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"

    async def handler(downstream: Http1Downstream) -> None:
        if downstream.request.target == b"/":
            await trio.testing.wait_all_tasks_blocked()
            assert front.transport.writes == []
            await downstream.send_interim(ResponseHead(100, []))
            await downstream.send_interim(ResponseHead(103, [(b"link", b"</x>")]))
        await collect(downstream)

    front = Front(nursery, handler)
    assert (
        await front.ask(wire, b"</x>\r\n\r\n")
        == b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    )
    assert await front.ask(b"hello", b"hello") == b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    await front.client.aclose()


async def test_http_1_0_gets_no_interim_response(nursery: trio.Nursery) -> None:
    async def handler(downstream: Http1Downstream) -> None:
        await downstream.send_interim(ResponseHead(100, []))
        await answer_ok(downstream)

    front = Front(nursery, handler)
    assert await front.ask_last(b"GET / HTTP/1.0\r\n\r\n") == OK_CLOSE


# Request bodies


async def test_reading_stops_at_a_bounded_buffer_and_goes_on_as_the_handler_reads(nursery: trio.Nursery) -> None:
    body = bytes(range(256)) * 4_096  # 1 MiB
    go_on = trio.Event()
    uploaded = trio.Event()

    async def handler(downstream: Http1Downstream) -> None:
        await go_on.wait()
        await collect(downstream)

    front = Front(nursery, handler, limits=Http1Limits(body_buffer_bytes=65_536), capacity_bytes=1)
    pieces = [body[at : at + 16_384] for at in range(0, len(body), 16_384)]
    front.client.split = lambda data: pieces if data == body else [data]

    async def upload() -> None:
        await front.client.send_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body))
        await front.client.send_all(body)
        uploaded.set()

    nursery.start_soon(upload)
    await trio.testing.wait_all_tasks_blocked()
    assert 65_536 <= front.transport.received_bytes < 65_536 + 2 * 16_384
    go_on.set()
    received = b""
    while not received.endswith(body):
        received += await front.client.receive_some()
    await uploaded.wait()
    await front.client.aclose()


async def test_a_body_can_be_read_without_waiting_and_says_when_it_is_at_its_end(nursery: trio.Nursery) -> None:
    sequencer = trio.testing.Sequencer()

    async def handler(downstream: Http1Downstream) -> None:
        body = downstream.body
        async with sequencer(0):
            assert (body.receive_nowait(), body.at_end) == (None, False)
        async with sequencer(2):
            assert (body.receive_nowait(), body.at_end) == (b"hel", False)
        assert await body.receive() == b"lo"
        assert (body.receive_nowait(), body.at_end) == (b"", True)
        assert await body.receive() == b""
        await answer_ok(downstream)

    front = Front(nursery, handler)
    await front.client.send_all(POST_5)
    async with sequencer(1):
        await front.client.send_all(b"h")
        await front.client.send_all(b"el")
        await trio.testing.wait_all_tasks_blocked(0.01)
    async with sequencer(3):
        pass
    assert await front.ask(b"lo", b"ok") == OK
    await front.client.aclose()


async def test_cancelling_a_receive_loses_nothing(nursery: trio.Nursery) -> None:
    async def handler(downstream: Http1Downstream) -> None:
        body = b""
        while not downstream.body.at_end:
            with trio.move_on_after(0.001):
                body += await downstream.body.receive()
        await downstream.send_response(ResponseHead(200, []), body, end=True)

    front = Front(nursery, handler)
    await front.client.send_all(POST_5)
    for byte in b"hello":
        await trio.sleep(0.003)
        await front.client.send_all(bytes([byte]))
    assert (await front.ask(b"", b"hello")).endswith(b"\r\n\r\nhello")
    await front.client.aclose()


async def test_a_body_that_has_arrived_and_was_not_read_does_not_end_the_connection(nursery: trio.Nursery) -> None:
    front = Front(nursery, answer_ok)
    assert await front.ask(POST_5 + b"hello", b"ok") == OK
    assert await front.ask(GET, b"ok") == OK
    await front.client.aclose()


async def test_pipelined_requests_are_handled_one_at_a_time_and_in_order(nursery: trio.Nursery) -> None:
    running = 0
    most = 0

    async def handler(downstream: Http1Downstream) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.sleep(0.001)
        await downstream.send_response(ResponseHead(200, []), downstream.request.target, end=True)
        running -= 1

    front = Front(nursery, handler)
    wire = (
        b"".join(b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nxy" % number for number in range(10))
        + b"GET /10 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        + GET
    )
    received = await front.ask_last(wire)
    assert [part.split(b"\r\n\r\n")[1] for part in received.split(b"HTTP/1.1 ")[1:]] == [b"/%d" % n for n in range(11)]
    assert most == 1


async def test_a_request_may_come_in_one_piece_with_the_end_of_the_one_before(nursery: trio.Nursery) -> None:
    front = Front(nursery, collect)
    await front.client.send_all(POST_5 + b"he")
    await trio.testing.wait_all_tasks_blocked()
    assert (await front.ask(b"llo" + GET, b"Content-Length: 0\r\n\r\n")).count(b"HTTP/1.1 200 OK") == 2
    await front.client.aclose()


async def test_what_is_read_ahead_is_bounded(nursery: trio.Nursery) -> None:
    async def handler(downstream: Http1Downstream) -> None:
        await trio.sleep_forever()

    front = Front(nursery, handler, capacity_bytes=1)
    front.client.split = lambda data: [data[at : at + 1_024] for at in range(0, len(data), 1_024)]
    nursery.start_soon(front.client.send_all, GET * 100_000)
    await trio.testing.wait_all_tasks_blocked()
    assert front.transport.received_bytes < 65_536 + 3 * 1_024
    nursery.cancel_scope.cancel()


# Upgrades


async def shout(downstream: Http1Downstream) -> None:
    stream = await downstream.accept_upgrade(ResponseHead(101, [(b"sec-websocket-accept", b"x"), (b"upgrade", b"no")]))
    while data := await stream.receive_some():
        await stream.send_all(data.upper())
    await stream.send_all(b"!")
    await stream.aclose()


async def test_an_upgrade_hands_over_the_bytes_that_came_too_early_and_keeps_half_close(nursery: trio.Nursery) -> None:
    front = Front(nursery, shout)
    await front.client.send_all(EXEC + b"abc")
    head = (
        b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: x\r\nConnection: Upgrade\r\n"
        b"Upgrade: SPDY/3.1\r\n\r\n"
    )
    await trio.testing.wait_all_tasks_blocked()
    assert front.transport.writes == [head, b"ABC"]
    await front.client.send_all(b"def")
    await front.client.send_eof()
    received = b""
    while data := await front.client.receive_some():
        received += data
    assert received == head + b"ABCDEF!"
    await front.over.wait()
    assert not front.transport.aborted


async def test_no_byte_around_the_101_is_lost_or_reordered_however_it_is_split(nursery: trio.Nursery) -> None:
    for size in (1, 2, 7, 50, 1_000):
        front = Front(nursery, shout)
        front.client.split = lambda data, size=size: [data[at : at + size] for at in range(0, len(data), size)]
        await front.client.send_all(EXEC + b"early")
        await front.client.send_all(b"late")
        await front.client.send_eof()
        received = b""
        while data := await front.client.receive_some():
            received += data
        assert received.partition(b"\r\n\r\n")[2] == b"EARLYLATE!"


async def test_an_upgrade_refused_is_answered_and_closed(nursery: trio.Nursery) -> None:
    async def handler(downstream: Http1Downstream) -> None:
        await downstream.send_response(ResponseHead(403, []), b"no", end=True)

    front = Front(nursery, handler)
    received = await front.ask_last(EXEC + b"smuggled" + GET)
    assert received == b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"
    assert len(front.seen) == 1


async def test_an_upgraded_stream_that_is_left_open_or_reset_is_aborted(nursery: trio.Nursery) -> None:
    async def leave_open(downstream: Http1Downstream) -> None:
        await downstream.accept_upgrade(ResponseHead(101, []))

    async def reset_stream(downstream: Http1Downstream) -> None:
        (await downstream.accept_upgrade(ResponseHead(101, []))).reset(ErrorCode.CANCEL)

    async def reset_downstream(downstream: Http1Downstream) -> None:
        await downstream.accept_upgrade(ResponseHead(101, []))
        downstream.reset(ErrorCode.CANCEL)

    for handler in (leave_open, reset_stream, reset_downstream):
        front = Front(nursery, handler)
        await front.client.send_all(EXEC)
        await front.over.wait()
        assert front.transport.aborted
        assert front.crash is None


async def test_only_a_101_accepts_an_upgrade(nursery: trio.Nursery) -> None:
    async def handler(downstream: Http1Downstream) -> None:
        with pytest.raises(LocalProtocolError):
            await downstream.accept_upgrade(ResponseHead(200, []))

    front = Front(nursery, handler)
    await front.client.send_all(EXEC)
    await front.over.wait()
    assert front.transport.sent == b""


async def test_h2c_is_an_ordinary_request(nursery: trio.Nursery) -> None:
    front = Front(nursery, answer_ok)
    lines = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n"
    wire = b"GET / HTTP/1.1\r\nHost: a\r\n" + lines
    assert await front.ask(wire, b"ok") == OK
    assert front.seen[0].request.protocol is None
    assert await front.ask(GET, b"ok") == OK
    await front.client.aclose()


# The referee

FIELDS = st.lists(st.tuples(st.sampled_from([b"x-a", b"etag", b"warning"]), st.sampled_from([b"1", b"", b"a b"])))


@given(
    st.sampled_from([b"GET", b"HEAD", b"POST"]),
    st.sampled_from([200, 201, 204, 304, 404, 500]),
    FIELDS,
    st.lists(st.binary(max_size=30), max_size=4),
    st.booleans(),
    st.binary(max_size=40),
)
async def test_h11_reads_every_response_of_ours(
    method: bytes, status: int, fields: Fields, pieces: list[bytes], declared: bool, upload: bytes
) -> None:
    bodiless = status in (204, 304) or method == b"HEAD"
    length = sum(map(len, pieces))

    async def handler(downstream: Http1Downstream) -> None:
        while await downstream.body.receive():
            pass
        await downstream.send_response(ResponseHead(status, fields, length if declared and status != 204 else None))
        if not bodiless:
            for piece in pieces:
                await downstream.writer.send(piece)
        await downstream.writer.finish()

    async with trio.open_nursery() as nursery:
        front = Front(nursery, handler)
        referee = h11.Connection(h11.CLIENT)
        for _ in range(2):
            request = h11.Request(
                method=method, target="/", headers=[("Host", "a"), ("Content-Length", str(len(upload)))]
            )
            for event in (request, h11.Data(upload), h11.EndOfMessage()):
                await front.client.send_all(referee.send(event) or b"")
            content = b""
            while not isinstance(event := referee.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    referee.receive_data(await front.client.receive_some())
                elif isinstance(event, h11.Response):
                    assert event.status_code == status
                    assert [line for line in event.headers if line[0] in (b"x-a", b"etag", b"warning")] == fields
                elif isinstance(event, h11.Data):
                    content += event.data
            assert content == (b"" if bodiless else b"".join(pieces))
            referee.start_next_cycle()
        await front.client.aclose()
