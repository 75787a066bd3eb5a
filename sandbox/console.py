"""Standard input, output and error of a make-believe command, with or without a terminal.

With a terminal, lines are edited here: typed characters are echoed, backspace, Ctrl-C and Ctrl-D work. There is no history
and no cursor movement.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Awaitable, Callable

import trio

INPUT_BYTES = 65_536
"""Input that may wait to be read; whoever brings more waits."""

_ESCAPES = re.compile(rb"\x1b(?:\[[0-9;]*[A-Za-z~]|.)?")
Output = Callable[[bytes], Awaitable[None]]


class Console:
    """The three streams of one command."""

    def __init__(self, output: Output, error: Output | None = None, *, is_terminal: bool = False) -> None:
        self.is_terminal = is_terminal
        self.running: trio.CancelScope | None = None
        """What Ctrl-C ends."""
        self._output = output
        self._error = error or output
        self._lines: deque[bytes] = deque()
        self._line = b""
        self._is_at_end = False
        self._changed = trio.lowlevel.ParkingLot()

    async def write(self, text: str) -> None:
        """To standard output."""
        await self._output(self._encoded(text))

    async def write_error(self, text: str) -> None:
        """To standard error."""
        await self._error(self._encoded(text))

    async def read_line(self) -> bytes:
        """The next line of the input with its end; what is left at the end of the input, then ``b""``."""
        while not self._lines:
            if self._is_at_end:
                line, self._line = self._line, b""
                return line
            await self._changed.park()
        self._changed.unpark_all()
        return self._lines.popleft()

    def close_input(self) -> None:
        """Nothing more comes."""
        self._is_at_end = True
        self._changed.unpark_all()

    async def feed(self, data: bytes) -> None:
        """Take input as it comes."""
        if self.is_terminal:
            await self._edit(_ESCAPES.sub(b"", data))
        else:
            *lines, self._line = (self._line + data).split(b"\n")
            self._lines.extend(line + b"\n" for line in lines)
            if len(self._line) > INPUT_BYTES:
                self._lines.append(self._line)
                self._line = b""
        self._changed.unpark_all()
        while sum(map(len, self._lines)) > INPUT_BYTES:
            await self._changed.park()

    async def _edit(self, data: bytes) -> None:
        echo = b""
        for byte in data:
            if byte in b"\r\n":
                self._lines.append(self._line + b"\n")
                self._line = b""
                echo += b"\r\n"
            elif byte in b"\x7f\b":
                echo += b"\b \b" if self._line else b""
                self._line = self._line[:-1]
            elif byte == 3:
                echo += b"^C\r\n"
                self._line = b""
                self._lines.clear()
                if self.running is not None:
                    self.running.cancel()
                else:
                    self._lines.append(b"\n")
            elif byte == 4:
                self._is_at_end = self._is_at_end or not self._line
            elif (byte >= 32 or byte == 9) and len(self._line) < 4096:
                self._line += bytes([byte])
                echo += bytes([byte])
        if echo:
            await self._output(echo)

    def _encoded(self, text: str) -> bytes:
        return (text.replace("\n", "\r\n") if self.is_terminal else text).encode()
