"""The server end where requests may begin without a task: what a client sees, and what an exchange is told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from support.http1 import GET, OK, OK_CLOSE, Front, answer_ok, read_until

from tunnel.errors import ConnectionEnded, ErrorCode
from tunnel.http1.downstream import Http1Downstream
from tunnel.http1.limits import DEFAULT_LIMITS, Http1Limits
from tunnel.messages import ResponseHead

PLAIN = ResponseHead(200, [(b"content-type", b"text/plain")])
POST_5 = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"
EXEC = b"GET /exec HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"


class Exchange:
    """A `tunnel.direct.DirectExchange` that does what a test says, and counts what it is told."""

    def __init__(self, downstream: Http1Downstream) -> None:
        self.downstream = downstream
        self.abandoned = 0
        downstream.direct = self

    def answer(self, data: bytes = b"ok", head: ResponseHead = PLAIN) -> bool:
        """Answer at once; False, and handed over, where a part of the answer has to wait."""
        if self.downstream.respond_nowait(head, data):
            self.downstream.end_direct()
            return True
        self.downstream.hand_over()
        return False

    def response_complete(self) -> None:
        raise AssertionError("the server calls it never")

    def need_task(self) -> None:
        self.downstream.hand_over()

    def abandon(self) -> None:
        self.abandoned += 1
        self.downstream.direct = None


class DirectFront(Front):
    """A front whose requests begin directly, and a transport that takes writes without waiting."""

    def __init__(
        self,
        nursery: trio.Nursery,
        handler: Callable[[Http1Downstream], Awaitable[None]] = answer_ok,
        *,
        limits: Http1Limits = DEFAULT_LIMITS,
        initial: bytes = b"",
        at_once: Callable[[Exchange], object] = lambda exchange: None,
    ) -> None:
        self.begun: list[Exchange] = []
        self.at_once = at_once
        self.declines = False
        super().__init__(nursery, self._take_up, limits=limits, initial=initial, begin=self._begin)
        self._serve = handler
        self.transport.nowait_bytes = 1_000_000
        self.handed_over: list[Exchange] = []

    def _begin(self, downstream: Http1Downstream) -> bool:
        if self.declines:
            return False
        exchange = Exchange(downstream)
        self.begun.append(exchange)
        self.at_once(exchange)
        return True

    async def _take_up(self, downstream: Http1Downstream) -> None:
        if isinstance(downstream.direct, Exchange):
            self.handed_over.append(downstream.direct)
            downstream.direct = None
        await self._serve(downstream)

    async def begin_one(self, request: bytes = GET) -> Exchange:
        """Send a request; what has begun for it."""
        before = len(self.begun)
        await self.client.send_all(request)
        await trio.testing.wait_all_tasks_blocked()
        assert len(self.begun) == before + 1
        return self.begun[-1]

    async def closed(self) -> bytes:
        """What was sent until the server had closed the connection in order."""
        content = b""
        while data := await self.client.receive_some():
            content += data
        await self.over.wait()
        assert not self.transport.aborted
        return content

    async def aborted(self) -> None:
        """Return once the server has broken the connection off."""
        await self.over.wait()
        assert self.transport.aborted


def answer(exchange: Exchange) -> None:
    exchange.answer()


def tasks_of_connection() -> int:
    return trio.lowlevel.current_statistics().tasks_living


# Requests and answers


async def test_requests_are_answered_one_after_the_other_without_a_task(nursery: trio.Nursery) -> None:
    front = DirectFront(nursery, at_once=answer)
    await trio.testing.wait_all_tasks_blocked()
    tasks = tasks_of_connection()
    for _ in range(3):
        assert await front.ask(GET, b"ok") == OK
        assert tasks_of_connection() == tasks
    assert front.seen == []
    assert front.transport.writes == [OK] * 3
    await front.client.aclose()
    await front.over.wait()
    assert front.transport.closed


async def test_an_answer_that_comes_later_leaves_the_connection_to_the_next_request(nursery: trio.Nursery) -> None:
    front = DirectFront(nursery)
    for _ in range(2):
        exchange = await front.begin_one()
        exchange.answer()
        assert await read_until(front.client, b"ok") == OK
    assert front.seen == []
    assert [each.abandoned for each in front.begun] == [0, 0]


async def test_a_request_that_does_not_begin_directly_is_handled(nursery: trio.Nursery) -> None:
    front = DirectFront(nursery)
    front.declines = True
    assert await front.ask(GET, b"ok") == OK
    front.declines = False
    exchange = await front.begin_one()  # also with two tasks
    exchange.answer()
    assert await read_until(front.client, b"ok") == OK
    assert len(front.seen) == 1


@pytest.mark.parametrize("request_wire", [POST_5 + b"hello", POST_5, EXEC])
async def test_a_request_with_a_body_or_for_an_upgrade_is_handled(nursery: trio.Nursery, request_wire: bytes) -> None:
    front = DirectFront(nursery)
    assert b"200 OK" in await front.ask(request_wire, b"ok")
    assert front.begun == []
    assert len(front.seen) == 1


async def test_requests_in_one_read_are_answered_in_order(nursery: trio.Nursery) -> None:
    front = DirectFront(nursery, at_once=answer)
    await front.client.send_all(GET + GET)
    assert await read_until(front.client, b"ok" + OK) == OK + OK
    assert await front.ask(GET, b"ok") == OK


async def test_what_was_read_before_is_served_first(nursery: trio.Nursery) -> None:
    front = DirectFront(nursery, initial=GET[:9])
    assert await front.ask(GET[9:], b"ok") == OK


@pytest.mark.parametrize(
    "pieces", [(GET[:-1], GET[-1:]), (GET[:-4], GET[-4:]), tuple(GET[at : at + 1] for at in range(len(GET)))]
)
async def test_a_head_may_come_in_pieces(nursery: trio.Nursery, pieces: tuple[bytes, ...]) -> None:
    front = DirectFront(nursery, at_once=answer)
    assert await front.ask(GET, b"ok") == OK
    for piece in pieces:
        await front.client.send_all(piece)
        await trio.testing.wait_all_tasks_blocked()
    assert await read_until(front.client, b"ok") == OK
    assert await front.ask(GET, b"ok") == OK


@pytest.mark.parametrize("first", [True, False])
async def test_an_empty_line_before_a_request_is_ignored(nursery: trio.Nursery, first: bool) -> None:
    front = DirectFront(nursery, at_once=answer)
    if not first:
        assert await front.ask(GET, b"ok") == OK
    assert await front.ask(b"\r\n" + GET, b"ok") == OK
    await front.client.send_all(b"\r\n")
    await trio.testing.wait_all_tasks_blocked()
    assert await front.ask(GET, b"ok") == OK


@pytest.mark.parametrize(
    "wire",
    [
        b"nonsense\r\n\r\n",
        b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
    ],
)
@pytest.mark.parametrize("first", [True, False])
async def test_a_head_that_is_none_gets_the_answer_that_a_task_gives(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, wire: bytes, first: bool
) -> None:
    front, plain = DirectFront(nursery, at_once=answer), Front(nursery, answer_ok)
    answers = []
    for each in (front, plain):
        if not first:
            assert await each.ask(GET, b"ok") == OK
        answers.append(await each.ask_last(wire) if wire != b"\r\n\r\n" else await each.ask_last(wire + b"x\r\n\r\n"))
    assert answers[0] == answers[1]
    assert answers[0].startswith(b"HTTP/1.1 ")
    assert len(front.begun) == (0 if first else 1)


async def test_the_limit_of_a_head_is_the_same(nursery: trio.Nursery) -> None:
    limits = Http1Limits(request_head_bytes=200)
    answers = []
    for each in (DirectFront(nursery, at_once=answer, limits=limits), Front(nursery, answer_ok, limits=limits)):
        lines = b"GET / HTTP/1.1\r\nHost: a\r\nX: "
        for size in range(190, 212):
            wire = lines + b"x" * (size - len(lines) - 4) + b"\r\n\r\n"
            await each.client.send_all(wire)
            await trio.testing.wait_all_tasks_blocked()
            got = each.client.receive_nowait()
            assert got is not None
            if not got.startswith(OK[:15]):
                answers.append((size, got[:12]))
                break
    assert answers[0] == answers[1]
    assert answers[0][1] == b"HTTP/1.1 431"


@pytest.mark.parametrize(
    ("request_wire", "head", "data", "wire"),
    [
        (b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", ResponseHead(200, [], 3), b"", b"Content-Length: 3\r\n\r\n"),
        (GET, ResponseHead(204, []), b"", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (GET, ResponseHead(200, [], ended=True), b"", b"Content-Length: 0\r\n\r\n"),
        (GET, ResponseHead(200, []), b"abc", b"Content-Length: 3\r\n\r\nabc"),
    ],
)
async def test_how_an_answer_is_framed(
    nursery: trio.Nursery, request_wire: bytes, head: ResponseHead, data: bytes, wire: bytes
) -> None:
    front = DirectFront(nursery, at_once=lambda exchange: exchange.answer(data, head))
    for _ in range(2):
        assert (await front.ask(request_wire, wire)).endswith(wire)
    assert front.seen == []


@pytest.mark.parametrize("two_tasks", [False, True])
@pytest.mark.parametrize(
    "request_wire",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: a\r\n\r\n",
    ],
)
async def test_the_connection_ends_in_order_where_the_client_wants_no_more(
    nursery: trio.Nursery, request_wire: bytes, two_tasks: bool
) -> None:
    front = DirectFront(nursery)
    if two_tasks:
        await make_two_tasks(front)
    exchange = await front.begin_one(request_wire)
    exchange.answer()
    assert await front.closed() == OK_CLOSE
    assert exchange.abandoned == 0
    assert len(front.seen) == two_tasks


async def test_an_old_client_that_asks_for_it_keeps_its_connection(nursery: trio.Nursery) -> None:
    front = DirectFront(nursery, at_once=answer)
    for _ in range(2):
        got = await front.ask(b"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n", b"ok")
        assert b"Connection: keep-alive\r\n" in got
    assert front.seen == []


async def make_two_tasks(front: DirectFront) -> None:
    """Let a request need a task: from now on, the connection has two."""
    front.declines = True
    assert await front.ask(GET, b"ok") == OK
    front.declines = False


# Bytes that come too early


@pytest.mark.parametrize("two_tasks", [False, True])
async def test_bytes_of_the_next_requests_wait_for_the_answer(nursery: trio.Nursery, two_tasks: bool) -> None:
    front = DirectFront(nursery)
    if two_tasks:
        await make_two_tasks(front)
    exchange = await front.begin_one()
    await front.client.send_all(GET[:7])
    await trio.testing.wait_all_tasks_blocked()
    await front.client.send_all(GET[7:] + GET)
    await trio.testing.wait_all_tasks_blocked()
    assert len(front.begun) == 1
    exchange.answer()
    assert await read_until(front.client, b"ok" + OK + OK) == OK * 3
    again = await front.begin_one()
    again.answer()
    assert await read_until(front.client, b"ok") == OK


async def test_early_bytes_are_bounded(nursery: trio.Nursery) -> None:
    front = DirectFront(nursery, limits=Http1Limits(request_head_bytes=1_000))
    exchange = await front.begin_one()
    exchange.downstream.authenticated()
    for _ in range(200):
        await front.client.send_all(GET)
    await trio.testing.wait_all_tasks_blocked()
    assert front.transport.received_bytes <= 1_000 + 3 * len(GET)
    exchange.answer()
    assert await read_until(front.client, b"ok" + OK * 200) == OK * 201


# Handing over


async def test_an_exchange_is_handed_over_at_once(nursery: trio.Nursery) -> None:
    front = DirectFront(nursery, at_once=Exchange.need_task)
    for number in range(1, 3):
        assert await front.ask(GET, b"ok") == OK
        assert front.handed_over == front.begun
        assert len(front.begun) == number
    assert [each.abandoned for each in front.begun] == [0, 0]


async def test_an_exchange_is_handed_over_later(nursery: trio.Nursery) -> None:
    front = DirectFront(nursery)
    for _ in range(2):  # with one task, and with two
        exchange = await front.begin_one()
        exchange.need_task()
        assert await read_until(front.client, b"ok") == OK
        assert exchange.abandoned == 0
    assert front.handed_over == front.begun
    exchange = await front.begin_one()
    exchange.answer()
    assert await read_until(front.client, b"ok") == OK


@pytest.mark.parametrize("taken", [0, 1, len(OK) - 1])
@pytest.mark.parametrize("two_tasks", [False, True])
async def test_the_rest_of_an_answer_that_finds_no_room_is_flushed(
    nursery: trio.Nursery, taken: int, two_tasks: bool
) -> None:
    front = DirectFront(nursery, Http1Downstream.flush)
    if two_tasks:
        front._serve = answer_ok
        await make_two_tasks(front)
        front._serve = Http1Downstream.flush
    front.transport.nowait_bytes = taken
    exchange = await front.begin_one()
    assert not exchange.answer()
    assert not exchange.downstream.finished
    assert await read_until(front.client, b"ok") == OK
    await trio.testing.wait_all_tasks_blocked()
    assert exchange.downstream.finished
    front.transport.nowait_bytes = 1_000
    again = await front.begin_one()
    assert again.answer()
    assert await read_until(front.client, b"ok") == OK


async def test_what_the_transport_holds_back_is_flushed(nursery: trio.Nursery) -> None:
    front = DirectFront(nursery, Http1Downstream.flush)
    exchange = await front.begin_one()
    front.transport.is_flushed = False
    assert not exchange.answer()
    assert await read_until(front.client, b"ok") == OK
    await trio.testing.wait_all_tasks_blocked()
    assert exchange.downstream.finished
    assert front.transport.is_flushed


async def test_a_client_that_goes_away_in_the_middle_of_an_answer_cancels_the_task(nursery: trio.Nursery) -> None:
    cancelled = trio.Event()

    async def handler(downstream: Http1Downstream) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    front = DirectFront(nursery, handler)
    front.transport.nowait_bytes = 5
    exchange = await front.begin_one()
    exchange.answer()
    await trio.testing.wait_all_tasks_blocked()
    front.client.abort()
    await cancelled.wait()
    await front.aborted()
    assert exchange.abandoned == 0  # a task has it


# Ends


@pytest.mark.parametrize("two_tasks", [False, True])
@pytest.mark.parametrize("end", ["eof", "abort"])
async def test_a_client_that_goes_away_has_its_exchange_abandoned(
    nursery: trio.Nursery, end: str, two_tasks: bool
) -> None:
    front = DirectFront(nursery)
    if two_tasks:
        await make_two_tasks(front)
    exchange = await front.begin_one()
    if end == "eof":
        await front.client.send_eof()
    else:
        front.client.abort()
    await front.aborted()
    assert exchange.abandoned == 1
    assert len(front.seen) == two_tasks


@pytest.mark.parametrize("two_tasks", [False, True])
async def test_a_client_that_goes_away_between_requests_ends_the_connection_in_order(
    nursery: trio.Nursery, two_tasks: bool
) -> None:
    front = DirectFront(nursery, at_once=answer)
    if two_tasks:
        await make_two_tasks(front)
    assert await front.ask(GET, b"ok") == OK
    await front.client.send_eof()
    await front.over.wait()
    assert not front.transport.aborted
    assert front.begun[0].abandoned == 0


@pytest.mark.parametrize("two_tasks", [False, True])
async def test_a_cancelled_exchange_is_abandoned_and_ends_the_connection(
    nursery: trio.Nursery, two_tasks: bool
) -> None:
    front = DirectFront(nursery)
    if two_tasks:
        await make_two_tasks(front)
    exchange = await front.begin_one()
    exchange.downstream.cancel()
    await front.aborted()
    assert exchange.abandoned == 1
    assert len(front.seen) == two_tasks


async def test_an_exchange_that_is_cancelled_as_it_begins_ends_the_connection(nursery: trio.Nursery) -> None:
    front = DirectFront(nursery, at_once=lambda exchange: exchange.downstream.cancel())
    exchange = await front.begin_one()
    await front.aborted()
    assert exchange.abandoned == 1


@pytest.mark.parametrize("two_tasks", [False, True])
async def test_an_exchange_that_is_cancelled_after_it_was_handed_over_ends_once(
    nursery: trio.Nursery, two_tasks: bool
) -> None:
    ended = []

    async def handler(downstream: Http1Downstream) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(downstream)

    front = DirectFront(nursery, answer_ok)
    if two_tasks:
        await make_two_tasks(front)
    front._serve = handler
    exchange = await front.begin_one()
    exchange.need_task()
    exchange.downstream.cancel()
    await front.aborted()
    assert exchange.abandoned + len(ended) == 1


@pytest.mark.parametrize("two_tasks", [False, True])
async def test_who_cancels_the_connection_has_its_exchange_abandoned(nursery: trio.Nursery, two_tasks: bool) -> None:
    front = DirectFront(nursery)
    if two_tasks:
        await make_two_tasks(front)
    exchange = await front.begin_one()
    front.scope.cancel()
    await front.aborted()
    assert exchange.abandoned == 1


@pytest.mark.parametrize("two_tasks", [False, True])
async def test_an_exchange_that_is_reset_ends_the_connection_and_is_not_begun_again(
    nursery: trio.Nursery, two_tasks: bool
) -> None:
    front = DirectFront(nursery)
    if two_tasks:
        await make_two_tasks(front)
    exchange = await front.begin_one()
    exchange.downstream.reset(ErrorCode.INTERNAL_ERROR)
    exchange.downstream.end_direct()
    await front.aborted()
    assert exchange.abandoned == 0
    assert len(front.seen) == two_tasks


@pytest.mark.parametrize("two_tasks", [False, True])
async def test_an_answer_to_a_client_that_is_gone_begins_nothing_again(nursery: trio.Nursery, two_tasks: bool) -> None:
    front = DirectFront(nursery)
    if two_tasks:
        await make_two_tasks(front)
    exchange = await front.begin_one()
    front.client.abort()
    with pytest.raises(ConnectionEnded):
        exchange.downstream.respond_nowait(PLAIN, b"ok")
    exchange.downstream.direct = None
    exchange.downstream.reset(ErrorCode.INTERNAL_ERROR)
    exchange.downstream.end_direct()
    await front.aborted()
    assert len(front.seen) == two_tasks


async def test_nothing_is_left_behind(autojump_clock: trio.testing.MockClock) -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    async with trio.open_nursery() as nursery:
        front = DirectFront(nursery, at_once=answer)
        await front.ask(GET, b"ok")
        await make_two_tasks(front)
        await front.client.aclose()
    assert trio.lowlevel.current_statistics().tasks_living == before
    assert front.server._downstream is None


# Draining


async def test_a_connection_that_is_told_to_drain_before_it_runs_takes_its_request(nursery: trio.Nursery) -> None:
    front = DirectFront(nursery)
    front.server.drain()
    await front.client.send_all(GET)
    assert await front.closed() in (b"", OK_CLOSE)
    assert front.begun == []


@pytest.mark.parametrize("two_tasks", [False, True])
@pytest.mark.parametrize("used", [False, True])
async def test_draining_closes_an_idle_connection_at_once(nursery: trio.Nursery, two_tasks: bool, used: bool) -> None:
    front = DirectFront(nursery, at_once=answer)
    if two_tasks:
        await make_two_tasks(front)
    if used:
        assert await front.ask(GET, b"ok") == OK
    await trio.testing.wait_all_tasks_blocked()
    front.server.drain()
    assert await front.closed() == b""


@pytest.mark.parametrize("two_tasks", [False, True])
async def test_draining_lets_an_exchange_end_and_says_close(nursery: trio.Nursery, two_tasks: bool) -> None:
    front = DirectFront(nursery)
    if two_tasks:
        await make_two_tasks(front)
    exchange = await front.begin_one()
    front.server.drain()
    await trio.testing.wait_all_tasks_blocked()
    exchange.answer()
    assert await front.closed() == OK_CLOSE
    assert exchange.abandoned == 0


async def test_draining_lets_an_exchange_be_handed_over(nursery: trio.Nursery) -> None:
    front = DirectFront(nursery)
    exchange = await front.begin_one()
    front.server.drain()
    exchange.need_task()
    assert await front.closed() == OK_CLOSE


async def test_draining_waits_for_a_head_that_has_begun(nursery: trio.Nursery) -> None:
    front = DirectFront(nursery)
    await front.client.send_all(GET[:9])
    await trio.testing.wait_all_tasks_blocked()
    front.server.drain()
    await trio.testing.wait_all_tasks_blocked()
    await front.client.send_all(GET[9:])
    assert await front.closed() == OK_CLOSE


# Deadlines, with one task and with two


async def test_who_says_nothing_is_closed_at_the_first_deadline(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    front = DirectFront(nursery, limits=Http1Limits(first_request_seconds=7))
    started = trio.current_time()
    assert await front.closed() == b""
    assert trio.current_time() - started == pytest.approx(7)


async def test_a_first_head_that_does_not_end_is_refused(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    front = DirectFront(nursery, limits=Http1Limits(first_request_seconds=7))
    started = trio.current_time()
    await trio.sleep(3)
    await front.client.send_all(GET[:9])
    await front.client.receive_some()
    assert trio.current_time() - started == pytest.approx(7)
    assert front.transport.sent.startswith(b"HTTP/1.1 408 ")
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("two_tasks", [False, True])
async def test_an_exchange_may_take_longer_than_any_deadline_of_the_connection(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, two_tasks: bool
) -> None:
    front = DirectFront(nursery, limits=Http1Limits(first_request_seconds=7, idle_seconds=20))
    if two_tasks:
        await make_two_tasks(front)
    for _ in range(2):
        exchange = await front.begin_one()
        exchange.downstream.authenticated()
        await trio.sleep(100)
        exchange.answer()
        assert await read_until(front.client, b"ok") == OK
    answered = trio.current_time()
    assert await front.closed() == b""
    assert trio.current_time() - answered == pytest.approx(20)
    assert [each.abandoned for each in front.begun] == [0, 0]


@pytest.mark.parametrize("two_tasks", [False, True])
async def test_the_idle_deadline_counts_from_the_last_answer(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, two_tasks: bool
) -> None:
    def answer_known(exchange: Exchange) -> None:
        exchange.downstream.authenticated()
        exchange.answer()

    front = DirectFront(nursery, at_once=answer_known, limits=Http1Limits(idle_seconds=20))
    if two_tasks:
        await make_two_tasks(front)
    for _ in range(3):
        await trio.sleep(4)
        assert await front.ask(GET, b"ok") == OK
    answered = trio.current_time()
    assert await front.closed() == b""
    assert trio.current_time() - answered == pytest.approx(20)


async def test_a_stranger_has_less_time(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> None:
    front = DirectFront(nursery, at_once=answer, limits=Http1Limits(idle_seconds=100, unauthenticated_seconds=30))
    started = trio.current_time()
    await trio.sleep(5)
    assert await front.ask(GET, b"ok") == OK
    assert await front.closed() == b""
    assert trio.current_time() - started == pytest.approx(30)


async def test_a_stranger_gets_few_answers(nursery: trio.Nursery) -> None:
    front = DirectFront(nursery, at_once=answer, limits=Http1Limits(unauthenticated_answers=3))
    for _ in range(2):
        assert await front.ask(GET, b"ok") == OK
    await front.client.send_all(GET)
    assert await front.closed() == OK_CLOSE
