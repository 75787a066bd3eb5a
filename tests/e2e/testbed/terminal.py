"""A program on a pseudo-terminal, for what kubectl does only when it has one."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from e2e.testbed.processes import BedError


class Terminal:
    """The other end of the pseudo-terminal that a program runs on."""

    def __init__(self, pid: int, descriptor: int) -> None:
        self.pid = pid
        self._descriptor = descriptor
        self._seen = b""
        self._status: int | None = None

    def resize(self, *, rows: int, columns: int) -> None:
        """Change the size, which the kernel tells the program by SIGWINCH."""
        fcntl.ioctl(self._descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def wait_for(self, pattern: str, *, seconds: float = 15) -> re.Match[str]:
        """The first match in what is on the screen so far; what precedes it counts as read."""
        deadline = time.monotonic() + seconds
        while True:
            text = self._seen.decode(errors="replace")
            if match := re.search(pattern, text):
                self._seen = text[match.end() :].encode()
                return match
            left = deadline - time.monotonic()
            if left < 0 or not self._read(left):
                raise BedError(f"no {pattern!r} on the terminal: {text!r}")

    def wait(self, *, seconds: float = 15) -> int:
        """The exit status of the program, once its terminal is closed."""
        deadline = time.monotonic() + seconds
        while self._read(max(0.0, deadline - time.monotonic())):
            pass
        while self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                raise BedError(f"the program on the terminal did not end within {seconds:g} s: {self._seen!r}")
            else:
                time.sleep(0.01)
        return self._status

    def close(self) -> None:
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._descriptor)

    def _read(self, seconds: float) -> bool:
        """Read what comes within the time; false where nothing did, or nothing will."""
        if not select.select([self._descriptor], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._descriptor, 65536)
        except OSError:  # EIO: the program has closed its side
            return False
        self._seen += data
        return bool(data)


@contextmanager
def on_terminal(command: Sequence[str], environ: Mapping[str, str], *, rows: int, columns: int) -> Iterator[Terminal]:
    """Run a program on a terminal of this size; it is killed at the end of the block if it still runs."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    pid = os.posix_spawn(
        "/usr/bin/setsid",
        ["setsid", "--ctty", *command],
        dict(environ),
        file_actions=[(os.POSIX_SPAWN_DUP2, theirs, number) for number in (0, 1, 2)],
    )
    os.close(theirs)
    terminal = Terminal(pid, ours)
    try:
        yield terminal
    finally:
        terminal.close()
