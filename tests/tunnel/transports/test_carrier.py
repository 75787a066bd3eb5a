from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tunnel.transports.base import TransportInfo
from tunnel.transports.carrier import REPLIES_BYTES, Outlet


class FakeCarrier:
    """Takes ``room`` bytes and then none until more is given; receives what it is fed."""

    def __init__(self, room: int = 0) -> None:
        self.info = TransportInfo(kind="tcp", peer="fake")
        self.room = room
        self.sent = bytearray()
        self.waiting = 0
        self.fed: list[bytes] = []
        self.failure: Exception | None = None
        self._changed = trio.Event()

    def give(self, room: int) -> None:
        self.room += room
        self._wake()

    def feed(self, data: bytes) -> None:
        self.fed.append(data)
        self._wake()

    def fail(self, failure: Exception) -> None:
        self.failure = failure
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def send_nowait(self, data: memoryview) -> int:
        if self.failure is not None:
            raise self.failure
        taken = min(self.room, len(data))
        self.room -= taken
        self.sent += data[:taken]
        return taken

    async def wait_writable(self) -> None:
        assert self.waiting == 0, "two tasks wait for the same socket"
        self.waiting += 1
        try:
            while not self.room and self.failure is None:
                await self._changed.wait()
        finally:
            self.waiting -= 1

    async def receive_some(self) -> bytes:
        while not self.fed:
            if self.failure is not None:
                raise self.failure
            await self._changed.wait()
        return self.fed.pop(0)

    def unread(self, data: bytes) -> None:
        self.fed.insert(0, data)


class Source:
    """What an upper transport has produced."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = data

    def take(self, count: int) -> bytes:
        taken, self.data = self.data[:count], self.data[count:]
        return taken

    def pending(self) -> int:
        return len(self.data)


def make(data: bytes = b"", room: int = 0) -> tuple[Outlet, FakeCarrier, Source]:
    carrier, source = FakeCarrier(room), Source(data)
    return Outlet(carrier, source.take, source.pending), carrier, source


async def test_what_does_not_fit_leaves_later_and_in_order():
    outlet, carrier, source = make(b"12345", room=3)
    assert not outlet.push()
    source.data += b"678"
    assert outlet.backlog_bytes == 5
    carrier.give(100)
    assert outlet.push()
    assert bytes(carrier.sent) == b"12345678"


async def test_two_tasks_drain_at_the_same_time_and_one_waits_for_the_socket(nursery):
    outlet, carrier, _ = make(b"12345")
    nursery.start_soon(outlet.drain)
    nursery.start_soon(outlet.drain)
    await wait_all_tasks_blocked()
    for _ in range(5):
        assert carrier.waiting == 1
        carrier.give(1)
        await wait_all_tasks_blocked()
    assert bytes(carrier.sent) == b"12345"


async def test_a_cancelled_drain_loses_nothing_and_wakes_the_other_task(nursery):
    outlet, carrier, _ = make(b"12345", room=2)
    first = trio.CancelScope()

    async def drain_for_a_while() -> None:
        with first:
            await outlet.drain()

    nursery.start_soon(drain_for_a_while)
    await wait_all_tasks_blocked()
    nursery.start_soon(outlet.drain)
    await wait_all_tasks_blocked()
    first.cancel()
    await wait_all_tasks_blocked()
    assert carrier.waiting == 1
    carrier.give(100)
    await wait_all_tasks_blocked()
    assert bytes(carrier.sent) == b"12345"


async def test_a_reading_task_hands_down_what_nobody_else_does(nursery):
    outlet, carrier, _ = make(b"answer")
    received = []

    async def read() -> None:
        received.append(await outlet.receive_some())

    nursery.start_soon(read)
    await wait_all_tasks_blocked()
    carrier.give(100)
    await wait_all_tasks_blocked()
    assert bytes(carrier.sent) == b"answer"
    assert not received
    carrier.feed(b"data")
    await wait_all_tasks_blocked()
    assert received == [b"data"]


async def test_a_writing_task_may_join_while_the_reading_task_waits_for_room(nursery):
    outlet, carrier, source = make(b"answer")
    nursery.start_soon(outlet.receive_some)
    await wait_all_tasks_blocked()
    source.data += b" and data"
    nursery.start_soon(outlet.drain)
    await wait_all_tasks_blocked()
    carrier.give(100)
    await wait_all_tasks_blocked()
    assert bytes(carrier.sent) == b"answer and data"
    carrier.feed(b"")


async def test_what_was_received_survives_a_cancellation_at_the_same_moment():
    outlet, carrier, _ = make(b"answer")
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def feed_and_cancel() -> None:
                await wait_all_tasks_blocked()
                carrier.feed(b"data")
                scope.cancel()

            nursery.start_soon(feed_and_cancel)
            await outlet.receive_some()
    assert scope.cancelled_caught
    carrier.give(100)
    assert await outlet.receive_some() == b"data"


async def test_reading_stops_while_too_much_is_owed(nursery):
    outlet, carrier, source = make()
    source.data = bytes(REPLIES_BYTES + 1)
    outlet.owe(len(source.data))
    carrier.feed(b"more")
    received = []

    async def read() -> None:
        received.append(await outlet.receive_some())

    nursery.start_soon(read)
    await wait_all_tasks_blocked()
    assert not received
    assert not outlet.may_receive
    carrier.give(1)
    await wait_all_tasks_blocked()
    assert not received
    carrier.give(REPLIES_BYTES)
    await wait_all_tasks_blocked()
    assert received == [b"more"]


@pytest.mark.parametrize("failure", [trio.BrokenResourceError, trio.ClosedResourceError])
async def test_a_failure_below_comes_out_as_it_is_and_not_in_a_group(failure):
    outlet, carrier, _ = make(b"answer")

    async def fail() -> None:
        await wait_all_tasks_blocked()
        carrier.fail(failure("gone"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail)
        with pytest.raises(failure, match="gone"):
            await outlet.receive_some()
