"""An upgraded stream is cancelled at every point at which it can be: neither side ever sees an end in order."""

from __future__ import annotations

import contextlib

import pytest
import trio
from support.tunnels import open_tunnel

from tunnel.errors import ErrorCode
from tunnel.messages import Fields, RequestHead, ResponseHead
from tunnel.progress import Progress
from tunnel.splice import splice
from tunnel.streams import ServedStream

FIELDS: Fields = []
UPGRADE = RequestHead(b"POST", b"/exec", b"kubernetes", FIELDS, protocol=b"SPDY/3.1", ended=True)
STEPS = 60
"""More than a splice of these sizes takes before it is in its steady state, in which it goes round."""


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope just before the n-th step of the tasks that run a splice."""

    def __init__(self, step: int, scope: trio.CancelScope) -> None:
        self.step = step
        self.taken = 0
        self._scope = scope
        self.watched: trio.lowlevel.Task | None = None

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.watched is None or not self._is_of_splice(task):
            return
        self.taken += 1
        if self.taken == self.step:
            self._scope.cancel()

    def _is_of_splice(self, task: trio.lowlevel.Task | None) -> bool:
        while task is not None:
            if task is self.watched:
                return True
            task = task.parent_nursery.parent_task if task.parent_nursery is not None else None
        return False


async def _end_of(stream: trio.abc.HalfCloseableStream) -> str:
    """How the stream ends for whoever reads it."""
    try:
        while await stream.receive_some():
            pass
    except trio.BrokenResourceError:
        return "reset"
    return "in order"


async def _pour(stream: trio.abc.HalfCloseableStream, size: int) -> None:
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while True:
            await stream.send_all(bytes(size))
            await trio.lowlevel.checkpoint()


async def _cancel_at(step: int, sizes: tuple[int, int], *, slow_reader: bool) -> tuple[list[str], int]:
    """Two tunnels with a splice between them, cancelled at one step: how both far ends saw it end."""
    spliced, cancelled = trio.Event(), trio.Event()
    ends: list[str] = []
    instrument: CancelAtStep | None = None

    async def serve_far(stream: ServedStream) -> None:
        far = await stream.accept_upgrade(ResponseHead(101, []))
        end = "reset"  # which also cancels this task
        try:
            async with trio.open_nursery() as nursery:
                if sizes[1]:
                    nursery.start_soon(_pour, far, sizes[1])
                if slow_reader:
                    await cancelled.wait()
                end = await _end_of(far)
                nursery.cancel_scope.cancel()
        finally:
            ends.append(end)

    async def serve_near(stream: ServedStream) -> None:
        """The splice: what agentk and kas run in the task of an exchange."""
        nonlocal instrument
        near = await stream.accept_upgrade(ResponseHead(101, []))
        upstream = await second.requester.open(UPGRADE)
        assert (await upstream.receive_head()).status == 101
        with trio.CancelScope() as scope:
            instrument = CancelAtStep(step, scope)
            trio.lowlevel.add_instrument(instrument)
            try:
                instrument.watched = trio.lowlevel.current_task()
                await splice(near, upstream.take_stream(), Progress())
            finally:
                trio.lowlevel.remove_instrument(instrument)
                cancelled.set()
        assert scope.cancelled_caught
        spliced.set()

    async with open_tunnel(serve_far) as second, open_tunnel(serve_near) as first:
        request = await first.requester.open(UPGRADE)
        assert (await request.receive_head()).status == 101
        caller = request.take_stream()
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                if sizes[0]:
                    nursery.start_soon(_pour, caller, sizes[0])
                if slow_reader:
                    await cancelled.wait()
                ends.append(await _end_of(caller))
                await spliced.wait()
                nursery.cancel_scope.cancel()
            while len(ends) < 2:  # noqa: ASYNC110 - a served stream's end is told to nobody
                await trio.sleep(0.001)
    assert instrument is not None
    return ends, instrument.taken


@pytest.mark.parametrize(
    ("sizes", "slow_reader"),
    [((10, 10), False), ((10, 0), False), ((0, 10), False), ((200_000, 200_000), False), ((200_000, 200_000), True)],
    ids=["both ways", "to the upstream", "to the caller", "full both ways", "full and stalled"],
)
async def test_a_splice_that_is_cancelled_anywhere_ends_in_resets_both_ways(
    sizes: tuple[int, int], slow_reader: bool
) -> None:
    reached = 0
    for step in range(1, STEPS):
        with trio.move_on_after(2) as patience:
            ends, taken = await _cancel_at(step, sizes, slow_reader=slow_reader)
            assert ends == ["reset", "reset"], f"cancelled at step {step}"
            assert taken >= step
            reached = step
        if patience.cancelled_caught:
            break  # stalled for good before so many steps: there is nothing further to cancel
    assert reached >= 4


async def test_a_splice_that_is_cancelled_while_it_closes_never_ends_both_halves_in_order() -> None:
    """Both sides have ended: from here on a clean end is true, and a reset is allowed."""
    for step in range(1, 40):

        async def serve_far(stream: ServedStream) -> None:
            far = await stream.accept_upgrade(ResponseHead(101, []))
            await far.send_all(b"the whole answer")
            await far.send_eof()
            await _end_of(far)

        async def serve_near(stream: ServedStream, at: int = step) -> None:
            near = await stream.accept_upgrade(ResponseHead(101, []))
            upstream = await second.requester.open(UPGRADE)
            await upstream.receive_head()
            with trio.CancelScope() as scope:
                instrument = CancelAtStep(at, scope)
                trio.lowlevel.add_instrument(instrument)
                try:
                    instrument.watched = trio.lowlevel.current_task()
                    await splice(near, upstream.take_stream(), Progress())
                finally:
                    trio.lowlevel.remove_instrument(instrument)

        async with open_tunnel(serve_far) as second, open_tunnel(serve_near) as first:
            request = await first.requester.open(UPGRADE)
            await request.receive_head()
            caller = request.take_stream()
            await caller.send_eof()
            received = b""
            with trio.fail_after(5):
                try:
                    while data := await caller.receive_some():
                        received += data
                    # Whoever sees the end in order has seen everything before it.
                    assert received == b"the whole answer", f"cancelled at step {step}"
                except trio.BrokenResourceError:
                    assert b"the whole answer".startswith(received)
            caller.reset(ErrorCode.CANCEL)
