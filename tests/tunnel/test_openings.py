"""Waiting for a stream: in turn, bounded, and given up on every way out."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tunnel.openings import Openings
from tunnel.wakeup import Wakeup


async def test_queues_take_turns_and_each_is_first_come_first_served() -> None:
    openings = Openings()
    order: list[str] = []

    async def request(queue: str, name: str) -> None:
        assert await openings.wait(queue)
        order.append(name)

    async with trio.open_nursery() as nursery:
        for queue, name in [("greedy", "g1"), ("greedy", "g2"), ("greedy", "g3"), ("modest", "m1")]:
            nursery.start_soon(request, queue, name)
            await wait_all_tasks_blocked()
        for _ in range(4):
            openings.admit()
            await wait_all_tasks_blocked()

    assert order == ["g1", "m1", "g2", "g3"]
    assert not openings


async def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    openings = Openings()

    with trio.move_on_after(0):
        await openings.wait("a")

    assert not openings
    openings.admit()


async def test_a_turn_granted_to_a_cancelled_request_goes_to_the_next() -> None:
    openings = Openings()
    granted: list[bool] = []

    async with trio.open_nursery() as nursery:

        async def second() -> None:
            granted.append(await openings.wait("b"))

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:

                async def first() -> None:
                    await openings.wait("a")

                inner.start_soon(first)
                await wait_all_tasks_blocked()
                nursery.start_soon(second)
                await wait_all_tasks_blocked()
                scope.cancel()
        openings.admit()

    assert granted == [True]


async def test_wake_all_ends_every_wait_without_a_turn() -> None:
    openings = Openings()
    granted: list[bool] = []

    async def request() -> None:
        granted.append(await openings.wait("a"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(request)
        nursery.start_soon(request)
        await wait_all_tasks_blocked()
        openings.wake_all()

    assert granted == [False, False]
    assert not openings


async def test_a_call_that_nobody_waits_for_is_kept_once() -> None:
    wakeup = Wakeup()
    wakeup.call()
    wakeup.call()

    await wakeup.wait()
    with trio.move_on_after(0.01) as scope:
        await wakeup.wait()

    assert scope.cancelled_caught


async def test_a_second_waiter_is_a_bug() -> None:
    wakeup = Wakeup()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wakeup.wait)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await wakeup.wait()
        wakeup.call()
