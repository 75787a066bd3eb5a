"""Answers that are passed on piece by piece without a task: watches first of all, and what may happen to one."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from support.direct_exchanges import access_lines, nothing_left, outcome, warm
from support.scripted_callers import CutOff, Http2Caller
from support.scripted_cluster import Visit
from support.scripted_stack import PREFIX, VERSIONS, Stack, Version, open_stack, until

from agent.pool import ConnectionPool
from operations.values import Seconds
from tunnel.errors import ErrorCode
from tunnel.streams import ServedStream

PODS = b"/api/v1/pods"
WATCH = PODS + b"?watch=1"
POD = PODS + b"/web"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
DIRECTLY = {"kas begun": 1, "agent begun": 1}
"""An exchange that is under way, and no task has it."""


def event(number: int, padding: int = 0) -> bytes:
    return b'{"type":"ADDED","object":{"number":%d,"data":"%b"}}\n' % (number, b"x" * padding)


class Watch:
    """A watch at the cluster, of which a test says what comes next."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[bytes | None](1_000)
        self.gone = trio.Event()
        """The agent has closed the connection."""
        self.visit: Visit | None = None

    def bring(self, data: bytes) -> None:
        """These bytes, in a chunk of their own."""
        self._send.send_nowait(b"%x\r\n%b\r\n" % (len(data), data))

    def bring_raw(self, data: bytes) -> None:
        self._send.send_nowait(data)

    def end(self) -> None:
        """The end of the body, in order."""
        self.bring_raw(b"0\r\n\r\n")
        self.leave()

    def leave(self) -> None:
        """Nothing more comes of this one; the connection may carry the next request."""
        self._send.send_nowait(None)

    async def __call__(self, visit: Visit) -> None:
        self.visit = visit
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, visit)
            with contextlib.suppress(trio.BrokenResourceError):
                await visit.send(HEAD)
                while (data := await self._receive.receive()) is not None:
                    await visit.send(data)
                nursery.cancel_scope.cancel()

    async def _listen(self, visit: Visit) -> None:
        with contextlib.suppress(trio.ClosedResourceError):  # this end was faster
            await visit.wait_gone()
        self.gone.set()

    async def wait_gone(self) -> None:
        with trio.fail_after(5):
            await self.gone.wait()


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> Version:
    return request.param


async def test_events_pass_one_by_one_without_a_task(
    stack: Stack, version: Version, ways: Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watch()
    caplog.set_level(logging.INFO, logger="kas.access")
    async with stack.caller(version) as caller:
        await warm(stack, caller, ways)
        caplog.clear()
        stack.cluster.on(PODS, watch)
        answer = await caller.get(WATCH)
        total = 0
        for number in range(50):
            watch.bring(event(number))
            assert await answer.read(len(event(number))) == event(number)
            assert ways == DIRECTLY
            total += len(event(number))
        watch.end()
        assert await answer.content() == b""
        assert ways == {**DIRECTLY, "kas ended": 1}
        await nothing_left(stack)
        (line,) = access_lines(caplog)
        assert (line["status"], line["outcome"], line["ended_by"]) == (200, "completed", "upstream")
        assert line["response_bytes"] == total
        # Everybody's connection is as good as before.
        await (await caller.get(b"/api")).content()
        assert {request.connection for request in stack.cluster.requests} == {1}


async def test_an_exchange_for_which_a_connection_is_dialled_goes_on_directly(
    stack: Stack, version: Version, ways: Counter[str]
) -> None:
    busy, watch = Watch(), Watch()
    stack.cluster.on(POD, busy)
    stack.cluster.on(PODS, watch)
    async with stack.caller(version) as caller, stack.caller(version) as other:
        await warm(stack, other, ways)
        before = stack.agent._pool.statistics()
        waiting = await other.get(POD)
        ways.clear()
        answer = await caller.get(WATCH)
        watch.bring(event(1))
        assert await answer.read(len(event(1))) == event(1)
        assert ways == DIRECTLY
        watch.end()
        assert await answer.content() == b""
        assert ways == {**DIRECTLY, "kas ended": 1}
        assert [request.connection for request in stack.cluster.requests] == [1, 2]
        after = stack.agent._pool.statistics()
        assert (after.dialled - before.dialled, after.reused - before.reused) == (1, 1)
        busy.end()
        assert await waiting.content() == b""
        await nothing_left(stack)


@pytest.mark.parametrize("end", ["", "revoked", "cancelled"])
async def test_a_caller_that_does_not_read_gets_everything_in_order_from_a_task(
    tmp_path: Path, version: Version, ways: Counter[str], caplog: pytest.LogCaptureFixture, end: str
) -> None:
    watch = Watch()
    sent = [event(number, 100_000) for number in range(250)]
    caplog.set_level(logging.INFO, logger="kas.access")
    async with open_stack(tmp_path) as stack, stack.caller(version) as caller:
        await warm(stack, caller, ways)
        caplog.clear()
        stack.cluster.on(PODS, watch)
        answer = await caller.get(WATCH)
        for each in sent:
            watch.bring(each)
        await until(lambda: ways["kas handed over"] == ways["agent handed over"] == 1)
        if end == "revoked":
            stack.access.remove_user("alice")
            stack.access.write()
        elif end == "cancelled":
            await answer.cancel()
        else:
            assert await answer.read(sum(map(len, sent))) == b"".join(sent)
            watch.bring(event(1_000))
            assert await answer.read(len(event(1_000))) == event(1_000)
            watch.end()
            assert await answer.content() == b""
            await nothing_left(stack)
            (line,) = access_lines(caplog)
            assert (line["outcome"], line["ended_by"]) == ("completed", "upstream")
            assert line["response_bytes"] == sum(map(len, sent)) + len(event(1_000))
            await (await caller.get(b"/api")).content()
            assert {request.connection for request in stack.cluster.requests} == {1}
            return
        await watch.wait_gone()
        await nothing_left(stack)
        (line,) = access_lines(caplog)
        if end == "revoked":
            assert (line["status"], line["outcome"], line["ended_by"]) == (200, "reset", "revocation")
            assert sent[0].startswith((await answer.until_cut())[:100])
        else:
            assert (line["status"], line["ended_by"]) == (200, "caller")


@pytest.mark.parametrize("how", ["cluster", "tunnel", "agent"])
@pytest.mark.parametrize("is_whole", [True, False], ids=["between", "inside"])
async def test_a_watch_that_is_cut_ends_cleanly_only_between_two_events(
    stack: Stack, version: Version, ways: Counter[str], caplog: pytest.LogCaptureFixture, how: str, is_whole: bool
) -> None:
    watch = Watch()
    pieces = [event(1), event(2) if is_whole else event(2)[:-5]]
    caplog.set_level(logging.INFO, logger="kas.access")
    async with stack.caller(version) as caller:
        await warm(stack, caller, ways)
        caplog.clear()
        stack.cluster.on(PODS, watch)
        answer = await caller.get(WATCH)
        for piece in pieces:
            watch.bring(piece)
            assert await answer.read(len(piece)) == piece
        assert ways == DIRECTLY
        old = stack.tunnel
        if how == "cluster":
            assert watch.visit is not None
            watch.visit.kill()
        elif how == "tunnel":
            stack.tunnel.abort()
        else:
            stack.agent_end.abort()
        if is_whole:
            assert await answer.piece() == b""
        else:
            assert await answer.until_cut() == b""
        assert ways["kas handed over"] == 1
        if how != "cluster":
            await watch.wait_gone()
            await stack.wait_redialled(old)
        await nothing_left(stack)
        await until(lambda: len(access_lines(caplog)) == 1)
    (line,) = access_lines(caplog)
    assert line["outcome"] == ("cut between events" if is_whole else "reset")
    assert line["response_bytes"] == sum(map(len, pieces))


async def test_a_caller_that_leaves_closes_the_watch_at_the_cluster(
    stack: Stack, version: Version, ways: Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watch()
    caplog.set_level(logging.INFO, logger="kas.access")
    async with stack.caller(version) as caller:
        await warm(stack, caller, ways)
        caplog.clear()
        stack.cluster.on(PODS, watch)
        answer = await caller.get(WATCH)
        watch.bring(event(1))
        await answer.read(len(event(1)))
        await answer.cancel()
        await watch.wait_gone()
        await nothing_left(stack)
        assert ways == {**DIRECTLY, "kas ended": 1}
        assert stack.agent._pool.statistics().idle == 0
    (line,) = access_lines(caplog)
    assert (line["status"], line["outcome"], line["ended_by"]) == (200, "cancelled", "caller")
    assert line["response_bytes"] == len(event(1))


async def test_a_revoked_token_ends_a_watch(
    stack: Stack, version: Version, ways: Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watch()
    caplog.set_level(logging.INFO, logger="kas.access")
    async with stack.caller(version) as caller:
        await warm(stack, caller, ways)
        caplog.clear()
        stack.cluster.on(PODS, watch)
        answer = await caller.get(WATCH)
        watch.bring(event(1))
        await answer.read(len(event(1)))
        stack.access.remove_user("alice")
        stack.access.write()
        assert await answer.until_cut() == b""
        await watch.wait_gone()
        await nothing_left(stack)
    assert ways == {**DIRECTLY, "kas ended": 1}
    (line,) = access_lines(caplog)
    assert (line["status"], line["outcome"], line["ended_by"]) == (200, "reset", "revocation")


async def test_a_watch_goes_on_while_kas_drains_and_its_connection_ends_with_it(
    tmp_path: Path, version: Version, ways: Counter[str]
) -> None:
    watch = Watch()
    kas = {"timeouts": {"drain": Seconds(30.0)}}
    async with open_stack(tmp_path, kas=kas) as stack, stack.caller(version) as caller:
        await warm(stack, caller, ways)
        stack.cluster.on(PODS, watch)
        answer = await caller.get(WATCH)
        stack.kas.drain()
        await until(lambda: not stack.tunnel.is_usable)
        for number in range(3):
            watch.bring(event(number))
            assert await answer.read(len(event(number))) == event(number)
        watch.end()
        assert await answer.content() == b""
        assert ways == {**DIRECTLY, "kas ended": 1}
        await until(lambda: stack.kas.front.open_connections == 0)


async def test_a_drain_that_takes_too_long_cuts_a_watch_between_events_cleanly(
    tmp_path: Path, version: Version, ways: Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watch()
    caplog.set_level(logging.INFO, logger="kas.access")
    async with open_stack(tmp_path, kas={"timeouts": {"drain": Seconds(0.2)}}) as stack:
        async with stack.caller(version) as caller:
            await warm(stack, caller, ways)
            caplog.clear()
            stack.cluster.on(PODS, watch)
            answer = await caller.get(WATCH)
            watch.bring(event(1))
            await answer.read(len(event(1)))
            stack.kas.drain()
            assert await answer.piece() == b""
            await until(lambda: len(access_lines(caplog)) == 1)
    (line,) = access_lines(caplog)
    assert (line["outcome"], line["ended_by"]) == ("cut between events", "tunnel")


# What is no watch


async def test_chunks_in_any_pieces_arrive_as_one_body(stack: Stack, version: Version, ways: Counter[str]) -> None:
    wire = b"5\r\nhello\r\n1\r\n,\r\n6;x=y\r\n world\r\n0\r\nX-Sum: 7\r\n\r\n"
    watch = Watch()
    async with stack.caller(version) as caller:
        await warm(stack, caller, ways)
        stack.cluster.on(POD, watch)
        answer = await caller.get(POD)
        for position in range(len(wire)):
            watch.bring_raw(wire[position : position + 1])
            await trio.sleep(0.002)  # so that most bytes are read by themselves
        assert await answer.content() == b"hello, world"
        assert answer.trailers == [(b"x-sum", b"7")]
        assert ways == {**DIRECTLY, "kas ended": 1}
        watch.leave()
        await (await caller.get(b"/api")).content()
        assert {request.connection for request in stack.cluster.requests} == {1}
        await nothing_left(stack)


@pytest.mark.parametrize("how", ["nonsense", "close", "kill"])
async def test_an_error_in_the_middle_is_seen_by_the_caller(
    stack: Stack, version: Version, ways: Counter[str], caplog: pytest.LogCaptureFixture, how: str
) -> None:
    watch = Watch()
    caplog.set_level(logging.INFO, logger="kas.access")
    async with stack.caller(version) as caller:
        await warm(stack, caller, ways)
        caplog.clear()
        stack.cluster.on(POD, watch)
        answer = await caller.get(POD)
        watch.bring(b"hello")
        assert await answer.read(5) == b"hello"
        assert watch.visit is not None
        if how == "nonsense":
            watch.bring_raw(b"3\r\nabc\r\nzz\r\n")
        elif how == "close":
            await watch.visit.close()
        else:
            watch.visit.kill()
        assert b"abc".startswith(await answer.until_cut())
        assert ways["kas handed over"] == ways["agent handed over"] == 1
        await nothing_left(stack)
        assert stack.agent._pool.statistics().idle == 0
    (line,) = access_lines(caplog)
    assert (line["status"], line["outcome"]) == (200, "reset")


async def test_a_body_that_ends_with_its_connection_may_come_in_pieces(
    stack: Stack, version: Version, ways: Counter[str]
) -> None:
    go_on = trio.Event()

    async def script(visit: Visit) -> None:
        await visit.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil ")
        await go_on.wait()
        await visit.send(b"the end")
        await visit.close()

    async with stack.caller(version) as caller:
        await warm(stack, caller, ways)
        stack.cluster.on(POD, script)
        answer = await caller.get(POD)
        assert await answer.read(6) == b"until "
        go_on.set()
        assert await answer.content() == b"the end"
        assert ways == {**DIRECTLY, "kas ended": 1}
        await nothing_left(stack)
        assert stack.agent._pool.statistics().idle == 0


async def test_a_body_with_a_length_that_is_cut_is_reset(stack: Stack, version: Version, ways: Counter[str]) -> None:
    go_on = trio.Event()

    async def script(visit: Visit) -> None:
        await visit.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        await go_on.wait()
        await visit.close()

    async with stack.caller(version) as caller:
        await warm(stack, caller, ways)
        stack.cluster.on(POD, script)
        answer = await caller.get(POD)
        assert await answer.read(5) == b"hello"
        go_on.set()
        with pytest.raises(CutOff):
            await answer.content()
        await nothing_left(stack)


@pytest.mark.parametrize("method", [b"GET", b"POST", b"PUT"])
async def test_a_body_in_the_same_write_as_its_head_is_relayed(stack: Stack, ways: Counter[str], method: bytes) -> None:
    async def echo(visit: Visit) -> None:
        body, _ = await visit.read_body()
        await visit.answer(body)

    stack.cluster.on(POD, echo)
    async with stack.caller("http2") as caller:
        assert isinstance(caller, Http2Caller)
        await warm(stack, caller, ways)
        for length in ([(b"content-length", b"3")], []):
            lines = [
                (b":method", method),
                (b":scheme", b"https"),
                (b":authority", b"kas.example.com"),
                (b":path", PREFIX + POD),
                (b"authorization", b"Bearer " + stack.token()),
                *length,
            ]
            assert await outcome(await caller.send_fields(lines, body=b"abc")) == (200, b"abc")
        assert ways["kas begun"] == 0
        await nothing_left(stack)


async def test_nothing_is_begun_for_a_caller_that_left_while_a_connection_was_dialled(
    stack: Stack, ways: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reset comes in the same turn of the loop as the connection."""
    dial: Callable[[ConnectionPool], object] = ConnectionPool.dial
    streams: list[ServedStream] = []

    async def dial_and_leave(pool: ConnectionPool) -> None:
        await dial(pool)  # type: ignore[misc]
        for stream in list(stack.agent_end._streams):
            assert isinstance(stream, ServedStream)
            streams.append(stream)
            stream.on_reset(ErrorCode.CANCEL, True, False)

    monkeypatch.setattr(ConnectionPool, "dial", dial_and_leave)
    stack.cluster.on(PODS, Watch())
    async with stack.caller("http2") as caller:
        idle = stack.agent._pool._idle
        while idle:
            stack.agent._pool.drop(idle[-1])
        answer = await caller.request(b"GET", WATCH)
        await until(lambda: bool(streams))
        await until(lambda: not streams[0].direct and stack.agent_end.open_streams == 0)
        assert stack.cluster.count(PODS) == 0
        await answer.cancel()
