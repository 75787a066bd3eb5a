"""The byte stream behind a 101 keeps Trio's contract for half-closeable streams."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from support.http1 import MemoryTransport, memory_transport_pair

from tunnel.errors import ErrorCode
from tunnel.http1.upgraded import UpgradedStream


async def make_pair() -> tuple[UpgradedStream, UpgradedStream]:
    one, other = memory_transport_pair(capacity_bytes=10_000)
    return UpgradedStream(one), UpgradedStream(other)


async def make_clogged_pair() -> tuple[UpgradedStream, UpgradedStream]:
    one, other = await make_pair()
    for stream in (one, other):
        with trio.move_on_after(0.01):
            while True:
                await stream.send_all(b"x" * 4_000)
    return one, other


async def test_it_is_a_half_closeable_stream() -> None:
    await trio.testing.check_half_closeable_stream(make_pair, make_clogged_pair)


def wrapped(initial: bytes = b"") -> tuple[UpgradedStream, MemoryTransport]:
    one, other = memory_transport_pair()
    return UpgradedStream(one, initial), other


async def test_what_was_read_too_early_comes_first() -> None:
    stream, peer = wrapped(b"early")
    await peer.send_all(b"late")
    await peer.send_eof()
    assert await stream.receive_some(2) == b"ea"
    assert await stream.receive_some(100) == b"rly"
    assert await stream.receive_some(3) == b"lat"
    assert await stream.receive_some() == b"e"
    assert [await stream.receive_some() for _ in range(3)] == [b"", b"", b""]


async def test_an_end_without_a_vouched_close_is_a_failure() -> None:
    stream, peer = wrapped()
    peer.peer.vouches = False
    await peer.send_all(b"some")
    await peer.send_eof()
    assert await stream.receive_some() == b"some"
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some()


async def test_a_reset_is_seen_by_the_other_side_and_a_second_end_changes_nothing() -> None:
    stream, peer = wrapped()
    stream.reset(ErrorCode.CANCEL)
    assert stream.closed
    with pytest.raises(trio.BrokenResourceError):
        await peer.receive_some()
    await stream.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await stream.send_all(b"x")

    stream, peer = wrapped()
    await stream.aclose()
    stream.reset(ErrorCode.CANCEL)
    assert await peer.receive_some() == b""


async def test_closing_what_the_other_side_has_broken_is_silent() -> None:
    stream, peer = wrapped()
    peer.peer.fails_to_close = True
    peer.abort()
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_all(b"x")
    await stream.aclose()
    await stream.aclose()


async def test_one_task_each_may_send_and_receive(nursery: trio.Nursery) -> None:
    stream, _peer = await make_clogged_pair()
    nursery.start_soon(stream.send_all, b"x")
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(trio.BusyResourceError):
        await stream.send_eof()
    with pytest.raises(trio.BusyResourceError):
        await stream.wait_send_all_might_not_block()
    nursery.cancel_scope.cancel()
