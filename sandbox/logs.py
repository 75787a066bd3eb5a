"""What a container has written, as far back as it is kept, for any number of readers."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime

import trio

from sandbox.store import Now

LINES = 1000
LINE_BYTES = 4096


class Log:
    """Lines with the times at which they were written."""

    def __init__(self, now: Now) -> None:
        self.written = 0
        """How many lines there have been, those included that are not kept any more."""
        self.is_closed = False
        """Whether nothing more comes."""
        self._now = now
        self._lines: deque[tuple[datetime, bytes]] = deque(maxlen=LINES)
        self._rest = b""
        self._changed = trio.lowlevel.ParkingLot()

    async def write(self, data: bytes) -> None:
        """Add output; what is no whole line waits for its end."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_BYTES:
            lines, self._rest = [*lines, self._rest], b""
        self._lines.extend((self._now(), line[:LINE_BYTES] + b"\n") for line in lines)
        self.written += len(lines)
        self._changed.unpark_all()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """The container has ended: who follows comes to the end."""
        self.is_closed = True
        self._changed.unpark_all()

    def lines_from(self, position: int) -> list[tuple[datetime, bytes]]:
        """The lines that are kept, from a position on."""
        begin = max(0, position - self.written + len(self._lines))
        return list(self._lines)[begin:]

    async def wait_beyond(self, position: int) -> None:
        """Return once there are more lines, or will be none."""
        await trio.lowlevel.checkpoint()
        while self.written <= position and not self.is_closed:
            await self._changed.park()


class LogReader:
    """Reads a log: what is there, and with ``follow`` what comes. Who is too slow misses lines."""

    def __init__(
        self,
        log: Log,
        *,
        follow: bool,
        tail: int | None = None,
        since: datetime | None = None,
        timestamps: bool = False,
    ) -> None:
        self._log = log
        self._follow = follow
        self._since = since
        self._timestamps = timestamps
        self._position = 0 if tail is None else max(0, log.written - tail)
        self._is_over = False

    async def receive(self) -> bytes:
        """The next piece; ``b""`` at the end."""
        while not self._is_over:
            self._is_over = self._log.is_closed or not self._follow
            lines = self._log.lines_from(self._position)
            self._position = self._log.written
            if shown := b"".join(self._shown(*line) for line in lines if self._since is None or line[0] >= self._since):
                return shown
            if not self._is_over:
                await self._log.wait_beyond(self._position)
        return b""

    def _shown(self, moment: datetime, line: bytes) -> bytes:
        return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ} ".encode() + line if self._timestamps else line
