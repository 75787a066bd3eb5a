"""The relay: what reaches each side, in which order, and how every failure looks from outside."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import trio
from support.exchanges import ScriptedBody, ScriptedDownstream, ScriptedStream, ScriptedUpstream
from trio.testing import wait_all_tasks_blocked

from tunnel.deadlines import Deadlines, Wait
from tunnel.errors import ConnectionEnded, StreamReset
from tunnel.messages import BodyReader, RequestHead, ResponseHead
from tunnel.progress import DownstreamGone, Progress, UpgradeUnanswered, UpstreamFailed, UpstreamSilent
from tunnel.relay import MAX_INTERIM_HEADS, relay
from tunnel.splice import HALF_OPEN_IDLE_SECONDS


class LineBoundary:
    def __init__(self) -> None:
        self.at_boundary = True

    def feed(self, data: bytes) -> None:
        self.at_boundary = data.endswith(b"\n")


@dataclasses.dataclass
class PlainPolicy:
    """Changes nothing, and waits as long as a test says."""

    head_deadlines: Deadlines | None = None
    head_wait: Wait | None = None
    continue_seconds: float = math.inf
    boundary: LineBoundary | None = None
    refusal: bool = False

    def filter_head(self, head: ResponseHead) -> ResponseHead:
        return head

    async def inspect(self, head: ResponseHead, body: BodyReader) -> None:
        if self.refusal:
            raise UpstreamFailed(f"agent says {(await body.receive()).decode()}")

    def boundary_for(self, head: ResponseHead) -> LineBoundary | None:
        return self.boundary


OPTIONS = PlainPolicy()


def get(**changes: object) -> RequestHead:
    values: dict[str, object] = {"ended": True, **changes}
    return RequestHead(b"GET", b"/", b"kas", values.pop("fields", []), **values)  # type: ignore[arg-type]


def post(*fields: tuple[bytes, bytes]) -> RequestHead:
    return RequestHead(b"POST", b"/", b"kas", list(fields))


def ok(**changes: object) -> ResponseHead:
    return ResponseHead(200, [(b"content-type", b"text/plain")], **changes)  # type: ignore[arg-type]


def watching() -> PlainPolicy:
    return PlainPolicy(boundary=LineBoundary())


async def test_a_small_response_leaves_with_its_head_in_one_piece() -> None:
    downstream = ScriptedDownstream(get())
    upstream = ScriptedUpstream(ok(), body=ScriptedBody(b"hello", None))
    progress = Progress()

    await relay(downstream, upstream, OPTIONS, progress)

    assert (downstream.first, downstream.whole) == (b"hello", True)
    assert (progress.status, progress.response_bytes) == (200, 5)


async def test_a_head_leaves_before_the_first_byte_of_the_body() -> None:
    downstream = ScriptedDownstream(get())
    body = ScriptedBody()
    upstream = ScriptedUpstream(ok(), body=body)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, downstream, upstream, OPTIONS, Progress())
        await wait_all_tasks_blocked()

        assert downstream.head is not None
        assert not downstream.ended_cleanly

        body.put(b"late")
        body.put(None)

    assert downstream.content == b"late"
    assert downstream.ended_cleanly


async def test_trailers_follow_the_body() -> None:
    downstream = ScriptedDownstream(get())
    upstream = ScriptedUpstream(ok(), body=ScriptedBody(b"x", None, trailers=[(b"grpc-status", b"0")]))

    await relay(downstream, upstream, OPTIONS, Progress())

    assert downstream.response.finished == [(b"grpc-status", b"0")]


async def test_a_head_without_body_is_the_whole_answer() -> None:
    downstream = ScriptedDownstream(get())

    await relay(downstream, ScriptedUpstream(ok(ended=True)), OPTIONS, Progress())

    assert downstream.whole


async def test_a_request_body_goes_on_with_its_trailers() -> None:
    downstream = ScriptedDownstream(post(), ScriptedBody(b"one", b"two", None, trailers=[(b"t", b"1")]))
    upstream = ScriptedUpstream()
    progress = Progress()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, downstream, upstream, OPTIONS, progress)
        await wait_all_tasks_blocked()
        assert upstream.request.data == b"onetwo"
        assert upstream.request.finished == [(b"t", b"1")]
        upstream.put_head(ok(ended=True))

    assert progress.request_bytes == 6
    assert progress.request_taken


async def test_an_early_final_answer_arrives_while_the_body_is_still_being_sent() -> None:
    downstream = ScriptedDownstream(post(), ScriptedBody(b"part"))
    upstream = ScriptedUpstream(ResponseHead(413, []), body=ScriptedBody(b"too large", None))

    await relay(downstream, upstream, OPTIONS, Progress())

    assert downstream.head is not None
    assert downstream.head.status == 413
    assert downstream.ended_cleanly
    assert upstream.request.finished is None
    assert upstream.reset_code is not None


async def test_a_request_body_that_breaks_off_resets_the_upstream() -> None:
    downstream = ScriptedDownstream(post(), ScriptedBody(b"part", StreamReset()))
    upstream = ScriptedUpstream()

    with pytest.raises(DownstreamGone):
        await relay(downstream, upstream, OPTIONS, Progress())

    assert upstream.request.finished is None
    assert upstream.reset_code is not None


async def test_an_upstream_that_takes_no_more_of_the_body_still_answers() -> None:
    downstream = ScriptedDownstream(post(), ScriptedBody(b"part", None))
    upstream = ScriptedUpstream()
    upstream.request.fails_with = StreamReset()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, downstream, upstream, OPTIONS, Progress())
        await wait_all_tasks_blocked()
        upstream.put_head(ResponseHead(409, [], ended=True))

    assert downstream.head is not None
    assert downstream.head.status == 409


async def test_the_body_waits_for_100_continue_end_to_end() -> None:
    downstream = ScriptedDownstream(post((b"expect", b"100-Continue")), ScriptedBody(b"body", None))
    upstream = ScriptedUpstream()
    progress = Progress()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, downstream, upstream, OPTIONS, progress)
        await wait_all_tasks_blocked()
        assert not progress.request_taken

        upstream.put_head(ResponseHead(100, []))
        await wait_all_tasks_blocked()
        assert downstream.interim == [100]
        assert upstream.request.data == b"body"
        upstream.put_head(ok(ended=True))


async def test_a_refusal_instead_of_100_takes_no_byte_of_the_body() -> None:
    downstream = ScriptedDownstream(post((b"expect", b"100-continue")), ScriptedBody(b"body", None))
    progress = Progress()

    await relay(downstream, ScriptedUpstream(ResponseHead(401, [], ended=True)), OPTIONS, progress)

    assert not progress.request_taken


async def test_where_no_100_comes_the_caller_is_told_to_go_on_after_the_stated_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    downstream = ScriptedDownstream(post((b"expect", b"100-continue")), ScriptedBody(b"body", None))
    upstream = ScriptedUpstream()
    options = PlainPolicy(continue_seconds=1.0)
    started = trio.current_time()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, downstream, upstream, options, Progress())
        while not upstream.request.data:
            await trio.sleep(0.1)
        assert 1.0 <= trio.current_time() - started < 1.3
        assert downstream.interim == [100]
        upstream.put_head(ok(ended=True))


async def test_interim_heads_are_bounded() -> None:
    downstream = ScriptedDownstream(get())
    hints = [ResponseHead(103, []) for _ in range(MAX_INTERIM_HEADS + 1)]

    with pytest.raises(UpstreamFailed, match="interim"):
        await relay(downstream, ScriptedUpstream(*hints), OPTIONS, Progress())

    assert len(downstream.interim) == MAX_INTERIM_HEADS


async def test_a_failure_before_the_head_leaves_the_answer_to_the_caller_of_relay() -> None:
    downstream = ScriptedDownstream(get())
    progress = Progress()

    with pytest.raises(UpstreamFailed) as caught:
        await relay(downstream, ScriptedUpstream(ConnectionEnded("gone")), OPTIONS, progress)

    assert isinstance(caught.value.__cause__, ConnectionEnded)
    assert not downstream.response_started
    assert not progress.response_started


async def test_a_failure_after_the_head_is_visible() -> None:
    downstream = ScriptedDownstream(get())
    upstream = ScriptedUpstream(ok(), body=ScriptedBody(b"half", StreamReset()))

    with pytest.raises(UpstreamFailed):
        await relay(downstream, upstream, OPTIONS, Progress())

    assert downstream.content == b"half"
    assert downstream.reset_code is not None
    assert not downstream.ended_cleanly


async def test_a_watch_cut_between_two_events_ends_cleanly() -> None:
    downstream = ScriptedDownstream(get())
    body = ScriptedBody(b"event 1\n", b"event 2\n", ConnectionEnded("gone"))
    progress = Progress()

    await relay(downstream, ScriptedUpstream(ok(), body=body), watching(), progress)

    assert downstream.content == b"event 1\nevent 2\n"
    assert downstream.ended_cleanly
    assert progress.cut_at_boundary


async def test_a_watch_cut_inside_an_event_is_reset() -> None:
    downstream = ScriptedDownstream(get())
    body = ScriptedBody(b"event 1\n", b"eve", ConnectionEnded("gone"))

    with pytest.raises(UpstreamFailed):
        await relay(downstream, ScriptedUpstream(ok(), body=body), watching(), Progress())

    assert not downstream.ended_cleanly
    assert downstream.reset_code is not None


async def test_a_caller_that_goes_away_resets_the_upstream() -> None:
    downstream = ScriptedDownstream(get())
    downstream.response.fails_with = StreamReset()
    upstream = ScriptedUpstream(ok(), body=ScriptedBody(b"a", b"b", b"c"))

    with pytest.raises(DownstreamGone):
        await relay(downstream, upstream, OPTIONS, Progress())

    assert upstream.reset_code is not None


async def test_an_answer_that_does_not_come_in_time(autojump_clock: trio.testing.MockClock) -> None:
    deadlines = Deadlines(90)
    upstream = ScriptedUpstream()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        with pytest.raises(UpstreamSilent):
            await relay(ScriptedDownstream(get()), upstream, PlainPolicy(head_deadlines=deadlines), Progress())
        nursery.cancel_scope.cancel()

    assert trio.current_time() == pytest.approx(90, abs=1)
    assert upstream.reset_code is not None
    assert len(deadlines) == 0


async def test_an_upgrade_that_is_not_answered_in_time_gets_no_status(autojump_clock: trio.testing.MockClock) -> None:
    deadlines = Deadlines(90)
    downstream = ScriptedDownstream(upgrade())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        with pytest.raises(UpgradeUnanswered):
            await relay(downstream, ScriptedUpstream(), PlainPolicy(head_deadlines=deadlines), Progress())
        nursery.cancel_scope.cancel()

    assert downstream.head is None


async def test_a_slow_upload_does_not_run_into_the_deadline_for_the_head(
    autojump_clock: trio.testing.MockClock,
) -> None:
    deadlines = Deadlines(90)
    body = ScriptedBody()
    upstream = ScriptedUpstream()
    progress = Progress()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)

        async def upload() -> None:
            for _ in range(4):
                await trio.sleep(60)
                body.put(b"piece")
            body.put(None)
            await trio.sleep(80)
            upstream.put_head(ok(ended=True))

        nursery.start_soon(upload)
        await relay(ScriptedDownstream(post(), body), upstream, PlainPolicy(head_deadlines=deadlines), progress)
        nursery.cancel_scope.cancel()

    assert progress.status == 200


async def test_waits_of_one_duration_end_in_the_order_in_which_they_began(
    autojump_clock: trio.testing.MockClock,
) -> None:
    deadlines = Deadlines(10)
    ended: list[tuple[str, float]] = []
    started = trio.current_time()

    def note(name: str) -> None:
        ended.append((name, round(trio.current_time() - started)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        first = deadlines.start(lambda: note("first"))
        await trio.sleep(1)
        second = deadlines.start(lambda: note("second"))
        deadlines.start(lambda: note("third"))
        await trio.sleep(4)
        deadlines.renew(first)
        deadlines.end(second)
        deadlines.end(second)
        await trio.sleep(30)
        deadlines.renew(first)
        nursery.cancel_scope.cancel()

    assert ended == [("third", 11), ("first", 15)]
    assert first.expired
    assert not second.expired
    assert len(deadlines) == 0


async def test_what_inspection_refuses_is_not_relayed() -> None:
    downstream = ScriptedDownstream(get())
    options = PlainPolicy(refusal=True)

    with pytest.raises(UpstreamFailed, match="agent says no"):
        await relay(downstream, ScriptedUpstream(ok(), body=ScriptedBody(b"no", None)), options, Progress())

    assert downstream.head is None


# --- upgrades ---------------------------------------------------------------------------------------


def upgrade() -> RequestHead:
    return RequestHead(b"GET", b"/exec", b"kas", [], protocol=b"websocket", ended=True)


def upgraded_pair(near: ScriptedStream, far: ScriptedStream) -> tuple[ScriptedDownstream, ScriptedUpstream]:
    downstream = ScriptedDownstream(upgrade())
    downstream.stream = near
    upstream = ScriptedUpstream(ResponseHead(101, [(b"sec-websocket-accept", b"x")]))
    upstream.stream = far
    return downstream, upstream


async def test_upgraded_streams_carry_every_byte_and_both_ends() -> None:
    near, far = ScriptedStream(b"to the pod", None), ScriptedStream(b"from ", b"the pod", None)
    downstream, upstream = upgraded_pair(near, far)
    progress = Progress()

    await relay(downstream, upstream, OPTIONS, progress)

    assert (far.sent, near.sent) == (b"to the pod", b"from the pod")
    assert near.eof_sent
    assert far.eof_sent
    assert near.closed
    assert far.closed
    assert (near.reset_code, far.reset_code) == (None, None)
    assert progress.upgraded
    assert (progress.request_bytes, progress.response_bytes) == (10, 12)


async def test_half_close_reaches_the_other_side_at_once() -> None:
    near, far = ScriptedStream(b"stdin", None), ScriptedStream()
    downstream, upstream = upgraded_pair(near, far)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, downstream, upstream, OPTIONS, Progress())
        await wait_all_tasks_blocked()
        assert far.eof_sent
        assert not near.eof_sent
        far.incoming.put(b"stdout")
        far.incoming.put(None)

    assert near.sent == b"stdout"


@pytest.mark.parametrize("who", ["near", "far"])
async def test_a_broken_half_resets_both(who: str) -> None:
    near, far = ScriptedStream(), ScriptedStream()
    {"near": near, "far": far}[who].incoming.put(trio.BrokenResourceError("reset"))
    downstream, upstream = upgraded_pair(near, far)

    with pytest.raises(DownstreamGone if who == "near" else UpstreamFailed):
        await relay(downstream, upstream, OPTIONS, Progress())

    assert near.reset_code is not None
    assert far.reset_code is not None
    assert not far.eof_sent
    assert not near.eof_sent


async def test_cancelling_a_splice_resets_and_never_ends_cleanly() -> None:
    near, far = ScriptedStream(b"x"), ScriptedStream(b"y")
    downstream, upstream = upgraded_pair(near, far)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, downstream, upstream, OPTIONS, Progress())
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    assert not near.eof_sent
    assert not far.eof_sent
    assert near.reset_code is not None
    assert far.reset_code is not None


async def test_a_caller_silent_after_the_upstream_ended_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    near, far = ScriptedStream(), ScriptedStream(None)
    downstream, upstream = upgraded_pair(near, far)

    with pytest.raises(DownstreamGone, match="silent"):
        await relay(downstream, upstream, OPTIONS, Progress())

    assert trio.current_time() >= HALF_OPEN_IDLE_SECONDS


async def test_what_an_upstream_said_before_it_stopped_reading_arrives() -> None:
    """kubectl pings every five seconds, also a server that has just sent the last byte and closed."""
    near, far = ScriptedStream(b"ping"), ScriptedStream()
    far.fails_with = trio.BrokenResourceError("closed")
    downstream, upstream = upgraded_pair(near, far)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, downstream, upstream, OPTIONS, Progress())
        await wait_all_tasks_blocked()
        for piece in (b"still ", b"under way", None):
            far.incoming.put(piece)
            await wait_all_tasks_blocked()
        near.incoming.put(None)

    assert near.sent == b"still under way"
    assert near.eof_sent
    assert near.reset_code is None


async def test_a_caller_that_still_reads_is_not_closed_before_it_ends_its_half() -> None:
    """A close would lose what is under way to it: its next ping would reach a socket that answers with a RST."""
    near, far = ScriptedStream(b"ping"), ScriptedStream(b"the last byte", None)
    far.fails_with = trio.BrokenResourceError("closed")
    downstream, upstream = upgraded_pair(near, far)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, downstream, upstream, OPTIONS, Progress())
        await wait_all_tasks_blocked()
        near.incoming.put(b"ping")
        await wait_all_tasks_blocked()
        assert near.eof_sent
        assert near.incoming.receive_nowait() is None  # read, though nobody wants it
        assert not near.closed
        near.incoming.put(None)

    assert near.sent == b"the last byte"
    assert near.closed
    assert near.reset_code is None


async def test_a_caller_that_pings_is_heard_out_and_one_that_falls_silent_given_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = ScriptedStream(b"ping"), ScriptedStream(None)
    far.fails_with = trio.BrokenResourceError("closed")
    downstream, upstream = upgraded_pair(near, far)
    pings = 40

    async with trio.open_nursery() as nursery:

        async def ping() -> None:
            for _ in range(pings):
                await trio.sleep(5)
                near.incoming.put(b"ping")

        nursery.start_soon(ping)
        with pytest.raises(DownstreamGone, match="silent"):
            await relay(downstream, upstream, OPTIONS, Progress())

    assert trio.current_time() >= 5 * pings + HALF_OPEN_IDLE_SECONDS


async def test_an_upstream_that_neither_reads_nor_says_anything_has_failed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = ScriptedStream(b"ping"), ScriptedStream(b"said before")
    far.fails_with = trio.BrokenResourceError("closed")
    downstream, upstream = upgraded_pair(near, far)

    with pytest.raises(UpstreamFailed, match="closed"):
        await relay(downstream, upstream, OPTIONS, Progress())

    assert near.sent == b"said before"
    assert not near.eof_sent
    assert near.reset_code is not None
    assert trio.current_time() >= HALF_OPEN_IDLE_SECONDS


async def test_an_upgrade_without_an_answer_is_never_answered_with_a_status() -> None:
    downstream = ScriptedDownstream(upgrade())

    with pytest.raises(UpgradeUnanswered):
        await relay(downstream, ScriptedUpstream(StreamReset()), OPTIONS, Progress())

    assert downstream.head is None


async def test_a_refused_upgrade_is_relayed_with_its_status_and_body() -> None:
    downstream = ScriptedDownstream(upgrade())
    upstream = ScriptedUpstream(ResponseHead(403, []), body=ScriptedBody(b"no exec for you", None))

    await relay(downstream, upstream, OPTIONS, Progress())

    assert downstream.head is not None
    assert downstream.head.status == 403
    assert downstream.first == b"no exec for you"


@pytest.mark.parametrize("status", [200, 204, 302])
async def test_a_success_or_redirect_is_no_answer_to_an_upgrade(status: int) -> None:
    downstream = ScriptedDownstream(upgrade())

    with pytest.raises(UpstreamFailed):
        await relay(downstream, ScriptedUpstream(ResponseHead(status, [])), OPTIONS, Progress())

    assert downstream.head is None


async def test_a_101_to_an_ordinary_request_is_a_failure() -> None:
    downstream = ScriptedDownstream(get())

    with pytest.raises(UpstreamFailed, match="101"):
        await relay(downstream, ScriptedUpstream(ResponseHead(101, [])), OPTIONS, Progress())

    assert downstream.head is None


async def _cancel_at(number: int, make: Callable[[], tuple[ScriptedDownstream, ScriptedUpstream]]) -> bool:
    """Run a relay and cancel it at its n-th scheduling; True where it had ended before."""
    downstream, upstream = make()
    steps = 0

    class CancelAtStep(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            nonlocal steps
            if watching_for in task.name:
                steps += 1
                if steps == number:
                    scope.cancel()

    watching_for = "relayed"

    async def relayed() -> None:
        await relay(downstream, upstream, OPTIONS, Progress())

    instrument = CancelAtStep()
    trio.lowlevel.add_instrument(instrument)
    finished = False
    try:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relayed, name="relayed")
            finished = True
    finally:
        trio.lowlevel.remove_instrument(instrument)
    if scope.cancelled_caught:
        assert not downstream.ended_cleanly
        assert upstream.reset_code is not None
    return finished


async def test_cancelled_anywhere_a_response_never_ends_cleanly() -> None:
    def make() -> tuple[ScriptedDownstream, ScriptedUpstream]:
        return ScriptedDownstream(get()), ScriptedUpstream(ok(), body=ScriptedBody(b"a", b"b", b"c", None))

    number = 1
    while not await _cancel_at(number, make):
        number += 1
    assert number > 3
