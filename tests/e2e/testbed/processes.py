"""Real processes of the test bed: started with their output in a file, awaited by deadline, ended by pid.

Nothing here knows what it starts. A process that the test run leaves behind (it was killed) ends with it; more exactly, with the
thread that started it, so processes are started from the main thread only.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

_PR_SET_PDEATHSIG = 1
_T = TypeVar("_T")
_libc = ctypes.CDLL(None)


class BedError(Exception):
    """Something of the test bed did not come up; the message holds the end of its log."""


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def until(condition: Callable[[], _T | None], *, seconds: float, what: str, interval: float = 0.05) -> _T:
    """Call ``condition`` until it answers something true, and return that; raise BedError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        if answer := condition():
            return answer
        if time.monotonic() > deadline:
            raise BedError(f"not within {seconds:g} s: {what}")
        time.sleep(interval)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now, for programs which cannot choose one themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """One running program. Its output goes to ``log``, appended, so that a restart keeps what was said before."""

    def __init__(
        self, name: str, command: Sequence[str | Path], *, log: Path, environ: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log_start = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environ) if environ is not None else None,
                preexec_fn=_die_with_parent,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """The exit status once it has ended; None while it runs."""
        return self._popen.poll()

    def output(self) -> str:
        """What this process (not an earlier one with the same log) has said so far."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def wait_for_line(self, pattern: str, *, seconds: float) -> re.Match[str]:
        """The first match of ``pattern`` in the output; BedError when the process ends before, or after ``seconds``."""

        def look() -> re.Match[str] | None:
            ended = self.returncode is not None
            match = re.search(pattern, self.output(), re.MULTILINE)
            if match is None and ended:
                raise BedError(
                    f"{self.name} ended with status {self.returncode} before it said {pattern!r}{self.tail()}"
                )
            return match

        try:
            return until(look, seconds=seconds, what=f"{self.name} says {pattern!r}")
        except BedError as error:
            raise BedError(f"{error}{self.tail()}") from None

    def tail(self, lines: int = 20) -> str:
        """The end of the log, as an appendix to a message."""
        return f"\n--- end of {self.log}\n" + "\n".join(self.output().splitlines()[-lines:])

    def signal(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def wait(self, *, seconds: float) -> int:
        """Wait for the end; BedError when it takes longer."""
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise BedError(f"{self.name} (pid {self.pid}) did not end within {seconds:g} s{self.tail()}") from None

    def kill(self) -> None:
        """SIGKILL, and the end of it."""
        self._popen.kill()
        self._popen.wait(10)

    def stop(self, *, seconds: float = 10) -> int:
        """SIGTERM, and SIGKILL after ``seconds``; returns the exit status."""
        if self.returncode is None:
            self._popen.terminate()
            try:
                self._popen.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()
        return self._popen.wait(10)


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    fields = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def open_descriptors(pid: int) -> int:
    """How many file descriptors a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
