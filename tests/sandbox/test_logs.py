"""Logs of containers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import trio

from sandbox.logs import LINE_BYTES, LINES, Log, LogReader

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


async def read(log: Log, *, tail: int | None = None, since: datetime | None = None, timestamps: bool = False) -> bytes:
    reader, result = LogReader(log, follow=False, tail=tail, since=since, timestamps=timestamps), b""
    while piece := await reader.receive():
        result += piece
    return result


async def test_lines_are_kept_whole_and_the_oldest_go() -> None:
    log = Log(lambda: NOW)
    await log.write(b"one\ntw")
    await log.write(b"o\nthree")
    assert await read(log) == b"one\ntwo\n"
    for number in range(LINES):
        await log.write(b"\n%d\n" % number)
    assert (await read(log)).count(b"\n") == LINES
    assert await read(log, tail=1) == b"%d\n" % (LINES - 1)
    assert await read(log, tail=0) == b""


async def test_a_line_without_end_is_cut() -> None:
    log = Log(lambda: NOW)
    await log.write(b"x" * (LINE_BYTES + 5))
    assert await read(log) == b"x" * LINE_BYTES + b"\n"


async def test_times_are_shown_and_selected() -> None:
    moments = iter([NOW, NOW + timedelta(seconds=10)])
    log = Log(lambda: next(moments))
    await log.write(b"one\n")
    await log.write(b"two\n")
    assert await read(log, since=NOW + timedelta(seconds=1)) == b"two\n"
    assert await read(log, tail=2, timestamps=True) == (
        b"2026-01-02T03:04:05.000000Z one\n2026-01-02T03:04:15.000000Z two\n"
    )


async def test_who_follows_gets_what_comes_until_the_end(autojump_clock: object) -> None:
    log, seen = Log(lambda: NOW), []

    async def follow() -> None:
        reader = LogReader(log, follow=True, tail=1)
        while piece := await reader.receive():
            seen.append((trio.current_time(), piece))

    await log.write(b"zero\none\n")
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        await trio.sleep(1)
        await log.write(b"two\n")
        await trio.sleep(1)
        await log.write(b"three\n")
        log.close()
    assert [piece for _, piece in seen] == [b"one\n", b"two\n", b"three\n"]
    assert [moment - began for moment, _ in seen] == pytest.approx([0, 1, 2])
