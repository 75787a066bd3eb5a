"""How a connection of the server ends: the client goes, a deadline passes, a drain, an early answer, a stranger."""

from __future__ import annotations

import math

import pytest
import trio
import trio.testing
from support.http1 import GET, OK, OK_CLOSE, Front, answer_ok, read_to_eof

from tunnel.errors import ConnectionEnded, ErrorCode, RemoteProtocolError, StreamReset
from tunnel.http1.downstream import Http1Downstream
from tunnel.http1.limits import Http1Limits
from tunnel.messages import ResponseHead

EXEC = b"GET /exec HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
POST_5 = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"


class Patient:
    """A handler that waits for ever, and notes that it was cancelled."""

    def __init__(self) -> None:
        self.cancelled = False

    async def wait(self) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            self.cancelled = True
            raise

    async def before_the_head(self, downstream: Http1Downstream) -> None:
        await self.wait()

    async def in_the_body(self, downstream: Http1Downstream) -> None:
        await downstream.send_response(ResponseHead(200, []), b"first")
        await self.wait()

    async def while_receiving(self, downstream: Http1Downstream) -> None:
        try:
            while await downstream.body.receive():
                pass
        except trio.Cancelled:
            self.cancelled = True
            raise

    async def while_sending(self, downstream: Http1Downstream) -> None:
        await downstream.send_response(ResponseHead(200, []))
        try:
            await downstream.writer.send(b"x" * 100_000)
        except (trio.Cancelled, ConnectionEnded):
            self.cancelled = True
            raise


WAITS = ["before_the_head", "in_the_body", "while_receiving", "while_sending"]


@pytest.mark.parametrize("how", ["eof", "close", "abort"])
@pytest.mark.parametrize("where", WAITS)
async def test_a_client_that_goes_away_cancels_the_handler_at_once(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, how: str, where: str
) -> None:
    patient = Patient()
    front = Front(nursery, getattr(patient, where), capacity_bytes=1_000)
    await front.client.send_all(POST_5 + b"he" if where == "while_receiving" else GET)
    await trio.testing.wait_all_tasks_blocked()
    assert not patient.cancelled
    if how == "eof":
        await front.client.send_eof()
    elif how == "close":
        await front.client.aclose()
    else:
        front.client.abort()
    await front.over.wait()
    assert patient.cancelled
    assert trio.current_time() == pytest.approx(0, abs=0.1)
    assert front.transport.aborted


async def test_a_client_that_goes_away_before_the_answer_to_an_upgrade_cancels_the_handler(
    nursery: trio.Nursery,
) -> None:
    patient = Patient()
    front = Front(nursery, patient.before_the_head)
    await front.client.send_all(EXEC)
    await trio.testing.wait_all_tasks_blocked()
    await front.client.send_eof()
    await front.over.wait()
    assert patient.cancelled


async def test_half_a_body_never_looks_whole(nursery: trio.Nursery) -> None:
    outcome: list[object] = []

    async def handler(downstream: Http1Downstream) -> None:
        with trio.CancelScope(shield=True):
            try:
                while data := await downstream.body.receive():
                    outcome.append(data)
                outcome.append("whole")
            except StreamReset as error:
                outcome.append(type(error))

    for wire in (
        POST_5 + b"hell",
        CHUNKED + b"4\r\nhell\r\n0\r\n",
    ):
        front = Front(nursery, handler)
        await front.client.send_all(wire)
        await trio.testing.wait_all_tasks_blocked()
        await front.client.send_eof()
        await front.over.wait()
        assert outcome == [b"hell", StreamReset]
        outcome.clear()


async def test_a_client_that_has_gone_before_its_request_was_read_keeps_no_handler(nursery: trio.Nursery) -> None:
    for _ in range(20):  # the two tasks of the server run in any order
        patient = Patient()
        front = Front(nursery, patient.before_the_head)
        await front.client.send_all(GET)
        await front.client.send_eof()
        await front.over.wait()
        assert patient.cancelled or not front.seen


async def test_work_after_the_response_is_not_cancelled_by_the_client_leaving(nursery: trio.Nursery) -> None:
    done = trio.Event()

    async def handler(downstream: Http1Downstream) -> None:
        await answer_ok(downstream)
        await trio.sleep(0.01)
        done.set()

    front = Front(nursery, handler)
    assert await front.ask(GET, b"ok") == OK
    await front.client.aclose()
    await done.wait()
    await front.over.wait()
    assert not front.transport.aborted


async def test_cancelling_the_server_aborts_and_leaves_nothing_behind(nursery: trio.Nursery) -> None:
    for where in WAITS:
        patient = Patient()
        async with trio.open_nursery() as inner:
            front = Front(inner, getattr(patient, where), capacity_bytes=1_000)
            await front.client.send_all(POST_5 if where == "while_receiving" else GET)
            await trio.testing.wait_all_tasks_blocked()
            inner.cancel_scope.cancel()
        assert patient.cancelled
        assert front.transport.aborted


@pytest.mark.parametrize("steps", range(30))
async def test_a_response_that_is_cancelled_anywhere_never_looks_whole(steps: int) -> None:
    async def handler(downstream: Http1Downstream) -> None:
        assert await downstream.body.receive() == b"hello"
        await downstream.send_interim(ResponseHead(103, []))
        await downstream.send_response(ResponseHead(200, []), b"first")
        await downstream.writer.send(b"second")
        await downstream.writer.finish()

    async with trio.open_nursery() as nursery:
        front = Front(nursery, handler, capacity_bytes=1)

        async def swallow() -> None:
            await front.client.send_all(POST_5 + b"hello")
            while True:
                await front.client.receive_some()

        nursery.start_soon(swallow)
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert front.transport.aborted
    if front.transport.sent.endswith(b"0\r\n\r\n"):
        assert front.transport.sent.endswith(b"5\r\nfirst\r\n6\r\nsecond\r\n0\r\n\r\n")


# Deadlines


def exact_limits() -> Http1Limits:
    return Http1Limits(unauthenticated_seconds=math.inf, unauthenticated_answers=1_000_000)


async def ended_at(front: Front) -> float:
    await front.over.wait()
    return trio.current_time()


async def test_a_connection_without_a_request_ends_after_ten_seconds(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    front = Front(nursery, answer_ok)
    assert await ended_at(front) == pytest.approx(10)
    assert front.transport.sent == b""
    assert not front.transport.aborted


async def test_the_first_head_must_be_whole_after_ten_seconds(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    front = Front(nursery, answer_ok)
    for byte in GET[:9]:
        await front.client.send_all(bytes([byte]))
        await trio.sleep(1)
    answer = await read_to_eof(front.client)
    assert trio.current_time() == pytest.approx(10)
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b"Connection: close\r\n" in answer
    assert front.seen == []


async def test_a_later_head_must_be_whole_ten_seconds_after_its_first_byte(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    front = Front(nursery, answer_ok, limits=exact_limits())
    await front.ask(GET, b"ok")
    await trio.sleep(60)
    await front.client.send_all(b"G")
    await trio.sleep(8)
    await front.client.send_all(b"E")
    assert (await read_to_eof(front.client)).startswith(b"HTTP/1.1 408 ")
    assert trio.current_time() == pytest.approx(70)


async def test_an_idle_connection_is_closed_silently_and_each_request_starts_the_time_anew(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    front = Front(nursery, answer_ok, limits=exact_limits())
    for _ in range(5):
        await front.ask(GET, b"ok")
        await trio.sleep(74)
    await front.ask(GET, b"ok")
    assert await read_to_eof(front.client) == b""
    assert trio.current_time() == pytest.approx(5 * 74 + 75)


async def test_a_handler_and_a_body_may_take_as_long_as_they_like(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    async def handler(downstream: Http1Downstream) -> None:
        await trio.sleep(40_000)
        assert await downstream.body.receive() == b"hello"
        await trio.sleep(40_000)
        await answer_ok(downstream)

    front = Front(nursery, handler, limits=exact_limits())
    await front.client.send_all(POST_5)
    await trio.sleep(60_000)
    assert await front.ask(b"hello", b"ok") == OK
    await front.client.aclose()


# Strangers


async def test_a_stranger_gets_a_hundred_answers(nursery: trio.Nursery) -> None:
    front = Front(nursery, answer_ok)
    for _ in range(99):
        assert await front.ask(GET, b"ok") == OK
    assert await front.ask_last(GET) == OK_CLOSE


async def test_a_stranger_gets_thirty_seconds(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> None:
    front = Front(nursery, answer_ok)
    assert await front.ask(GET, b"ok") == OK
    assert await read_to_eof(front.client) == b""
    assert trio.current_time() == pytest.approx(30)

    front = Front(nursery, answer_ok)
    assert await front.ask(GET, b"ok") == OK
    await trio.sleep(29.9)
    await front.client.send_all(GET[:5])
    await trio.sleep(0.2)
    assert await front.ask_last(GET[5:]) == OK_CLOSE


async def test_one_authenticated_exchange_lifts_the_limits(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    async def handler(downstream: Http1Downstream) -> None:
        if downstream.request.target == b"/known":
            downstream.authenticated()
        await answer_ok(downstream)

    front = Front(nursery, handler)
    await front.ask(GET.replace(b"/ ", b"/known "), b"ok")
    for _ in range(200):
        assert await front.ask(GET, b"ok") == OK
    await trio.sleep(70)
    assert await front.ask(GET, b"ok") == OK
    nursery.cancel_scope.cancel()


# Draining


async def test_a_drain_closes_an_idle_connection_at_once(nursery: trio.Nursery) -> None:
    front = Front(nursery, answer_ok)
    await front.ask(GET, b"ok")
    front.server.drain()
    assert await read_to_eof(front.client) == b""
    assert not front.transport.aborted


async def test_a_drain_before_the_start_serves_what_is_there_and_nothing_else(nursery: trio.Nursery) -> None:
    front = Front(nursery, answer_ok)
    front.server.drain()
    assert await read_to_eof(front.client) == b""
    front = Front(nursery, answer_ok, initial=GET)
    front.server.drain()
    assert await read_to_eof(front.client) == OK_CLOSE


async def test_a_drain_lets_the_exchange_finish_and_says_close(nursery: trio.Nursery) -> None:
    go_on = trio.Event()

    async def handler(downstream: Http1Downstream) -> None:
        await go_on.wait()
        await answer_ok(downstream)

    front = Front(nursery, handler)
    await front.client.send_all(GET + GET)
    await trio.testing.wait_all_tasks_blocked()
    front.server.drain()
    go_on.set()
    assert await read_to_eof(front.client) == OK_CLOSE
    assert len(front.seen) == 1


async def test_a_drain_in_the_middle_of_a_response_closes_after_it(nursery: trio.Nursery) -> None:
    go_on = trio.Event()

    async def handler(downstream: Http1Downstream) -> None:
        await downstream.send_response(ResponseHead(200, []))
        await go_on.wait()
        await downstream.writer.finish()

    front = Front(nursery, handler)
    await front.ask(GET + GET, b"chunked\r\n\r\n")
    front.server.drain()
    go_on.set()
    assert await read_to_eof(front.client) == b"0\r\n\r\n"
    assert len(front.seen) == 1


async def test_a_drain_waits_for_a_head_that_has_begun_to_arrive(nursery: trio.Nursery) -> None:
    front = Front(nursery, answer_ok)
    await front.client.send_all(GET[:7])
    await trio.testing.wait_all_tasks_blocked()
    front.server.drain()
    await trio.testing.wait_all_tasks_blocked()
    assert await front.ask_last(GET[7:]) == OK_CLOSE


async def test_a_drain_never_says_close_on_a_101_and_leaves_the_stream_alone(nursery: trio.Nursery) -> None:
    go_on = trio.Event()

    async def handler(downstream: Http1Downstream) -> None:
        await go_on.wait()
        stream = await downstream.accept_upgrade(ResponseHead(101, []))
        await stream.send_all(await stream.receive_some())
        await stream.aclose()

    front = Front(nursery, handler)
    await front.client.send_all(EXEC)
    await trio.testing.wait_all_tasks_blocked()
    front.server.drain()
    go_on.set()
    head = await front.ask(b"", b"\r\n\r\n")
    assert b"close" not in head
    front.server.drain()
    assert await front.ask_last(b"abc") == b"abc"


# Answers before the end of the request


@pytest.mark.parametrize("expects", [b"", b"Expect: 100-continue\r\n"])
async def test_an_answer_before_the_end_of_the_body_says_close_and_lingers(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, expects: bytes
) -> None:
    async def handler(downstream: Http1Downstream) -> None:
        await downstream.send_response(ResponseHead(413, []), b"too large", end=True)

    front = Front(nursery, handler, capacity_bytes=100_000)
    await front.client.send_all(b"POST / HTTP/1.1\r\nHost: a\r\n" + expects + b"Content-Length: 1000000\r\n\r\n")
    answer = await read_to_eof(front.client)
    assert answer == b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\nConnection: close\r\n\r\ntoo large" or (
        answer == b"HTTP/1.1 413 Request Entity Too Large\r\nContent-Length: 9\r\nConnection: close\r\n\r\ntoo large"
    )
    for _ in range(9):
        await front.client.send_all(b"x" * 100_000)  # taken and thrown away
    assert not front.transport.closed
    await front.client.aclose()
    await front.over.wait()
    assert not front.transport.aborted


async def test_lingering_is_bounded_in_time_and_in_bytes(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    front = Front(nursery, answer_ok)
    await front.client.send_all(POST_5)
    await front.over.wait()
    assert trio.current_time() == pytest.approx(2)
    assert not front.transport.aborted

    front = Front(nursery, answer_ok, limits=Http1Limits(linger_bytes=1_000))
    await front.client.send_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
    assert await read_to_eof(front.client) == OK_CLOSE
    await front.client.send_all(b"x" * 1_001)
    await front.over.wait()
    assert trio.current_time() == pytest.approx(2)


async def test_a_client_that_is_gone_does_not_make_the_end_of_an_answer_fail(nursery: trio.Nursery) -> None:
    async def handler(downstream: Http1Downstream) -> None:
        await answer_ok(downstream)
        front.client.abort()

    front = Front(nursery, handler)
    await front.client.send_all(POST_5)
    await front.over.wait()
    assert front.crash is None


async def test_a_close_that_finds_the_client_gone_is_silent(nursery: trio.Nursery) -> None:
    front = Front(nursery, answer_ok)
    front.transport.fails_to_close = True
    await front.ask(GET, b"ok")
    front.server.drain()
    await front.over.wait()
    assert front.crash is None
    assert front.transport.closed


# Failures of the request that the handler meets


async def test_a_malformed_body_is_refused_for_a_handler_that_does_not_care(nursery: trio.Nursery) -> None:
    async def handler(downstream: Http1Downstream) -> None:
        while await downstream.body.receive():
            pass
        await answer_ok(downstream)

    front = Front(nursery, handler)
    answer = await front.ask_last(CHUNKED + b"2\r\nabX\r\n" + GET)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n")
    assert len(front.seen) == 1


async def test_a_handler_may_answer_a_malformed_body_itself(nursery: trio.Nursery) -> None:
    async def handler(downstream: Http1Downstream) -> None:
        with pytest.raises(RemoteProtocolError):
            await downstream.body.receive()
        with pytest.raises(RemoteProtocolError):
            downstream.body.receive_nowait()
        assert not downstream.body.at_end
        await answer_ok(downstream)

    front = Front(nursery, handler)
    answer = await front.ask_last(CHUNKED + b"zz\r\n" + GET)
    assert answer == OK_CLOSE


async def test_a_malformed_body_after_the_head_of_the_response_aborts(nursery: trio.Nursery) -> None:
    async def handler(downstream: Http1Downstream) -> None:
        await downstream.send_response(ResponseHead(200, []))
        while await downstream.body.receive():
            pass

    front = Front(nursery, handler)
    await front.client.send_all(CHUNKED + b"zz\r\n")
    await front.over.wait()
    assert front.transport.aborted
    assert front.crash is None


async def test_a_refusal_that_cannot_be_delivered_is_dropped(nursery: trio.Nursery) -> None:
    front = Front(nursery, answer_ok)
    await front.client.send_all(b"nonsense\r\n\r\n")
    front.client.abort()
    await front.over.wait()
    assert front.crash is None
    assert front.transport.closed


async def test_the_trailers_of_a_request_can_be_replaced(nursery: trio.Nursery) -> None:
    async def handler(downstream: Http1Downstream) -> None:
        assert await downstream.body.receive() == b""
        downstream.body.trailers = [(b"x", b"z")]
        assert downstream.body.trailers == [(b"x", b"z")]
        downstream.reset(ErrorCode.CANCEL)

    front = Front(nursery, handler)
    await front.client.send_all(GET)
    await front.over.wait()
