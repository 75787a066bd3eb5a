"""What a container has written, as far back as it is kept, for any number of readers."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import trio

from sandbox.store import Now

LINES = 1000
LINE_BYTES = 4096


class Log:
    """Lines with the times at which they were written."""

    def __init__(self, now: Now) -> None:
        self._now = now
        self._lines: deque[tuple[datetime, bytes]] = deque(maxlen=LINES)
        self._written = 0
        self._rest = b""
        self._is_closed = False
        self._changed = trio.lowlevel.ParkingLot()

    async def write(self, data: bytes) -> None:
        """Add output; what is no whole line waits for its end."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_BYTES:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            self._lines.append((self._now(), line[:LINE_BYTES] + b"\n"))
        self._written += len(lines)
        self._changed.unpark_all()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """The container has ended: who follows comes to the end."""
        self._is_closed = True
        self._changed.unpark_all()

    async def read(
        self, *, follow: bool, tail: int | None = None, since: datetime | None = None, timestamps: bool = False
    ) -> AsyncIterator[bytes]:
        """Pieces of the log: what is there, and with ``follow`` what comes. Who is too slow misses lines."""
        position = self._written - len(self._lines)
        if tail is not None:
            position = max(position, self._written - tail)
        while True:
            kept = len(self._lines)
            begin = max(0, position - (self._written - kept))
            lines = [self._lines[index] for index in range(begin, kept)]
            position = self._written
            shown = [
                (f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ} ".encode() if timestamps else b"") + line
                for moment, line in lines
                if since is None or moment >= since
            ]
            if shown:
                yield b"".join(shown)
            if not follow or (self._is_closed and position == self._written):
                return
            while position == self._written and not self._is_closed:
                await self._changed.park()
