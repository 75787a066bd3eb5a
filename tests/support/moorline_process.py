"""The command `moorline` (or what starts it) as a process: its lines as they come, Ctrl-C, and what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import httpx
from support.fake_cluster import read_kubeconfig

READY_SECONDS = 20.0
END_SECONDS = 2.0


def moorline(*arguments: str | Path) -> list[str | Path]:
    """The command line of the package that is tested."""
    return [sys.executable, "-P", "-m", "moorline", *arguments]


class MoorlineProcess:
    """One running command, in a session of its own."""

    def __init__(
        self,
        command: Sequence[str | Path],
        directory: Path,
        *,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.directory = directory
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=cwd,
            start_new_session=True,
        )
        self.stdout: list[str] = []
        self.stderr: list[str] = []
        self._changed = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=pair)
            for pair in ((self.process.stdout, self.stdout), (self.process.stderr, self.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Iterator[str], lines: list[str]) -> None:
        for line in stream:
            with self._changed:
                lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, lines: list[str], beginning: str, *, seconds: float = READY_SECONDS) -> str:
        """The first line that begins so."""

        def found() -> str | None:
            return next((line for line in lines if line.startswith(beginning)), None)

        self.wait_until(lambda: found() is not None, seconds=seconds)
        line = found()
        assert line is not None
        return line

    def wait_until(self, condition: Callable[[], bool], *, seconds: float = READY_SECONDS) -> None:
        """Until a condition holds that a new line, or the end of one of the streams, may have made true."""
        with self._changed:
            assert self._changed.wait_for(condition, timeout=seconds), (self.stdout, self.stderr)

    def client(self) -> httpx.Client:
        """An ordinary client of the kubeconfig that was written."""
        server, token, authority = read_kubeconfig(self.directory / "kubeconfig")
        context = ssl.create_default_context(cadata=authority)
        return httpx.Client(
            base_url=server, headers={"Authorization": f"Bearer {token}"}, verify=context, trust_env=False
        )

    def interrupt(self) -> tuple[int, float]:
        """Ctrl-C, as a terminal sends it to all that it runs; the exit status, and how long it took."""
        began = time.monotonic()
        os.killpg(self.process.pid, signal.SIGINT)
        status = self.process.wait(timeout=READY_SECONDS)
        return status, time.monotonic() - began

    def session(self) -> list[int]:
        """The processes that it started, itself included, and that still run."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                state, _parent, _group, session = path.read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.process.pid and state != "Z":
                    found.append(int(path.parent.name))
        return found

    def close(self) -> None:
        for pid in self.session():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        for reader in self._readers:
            reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@contextlib.contextmanager
def running(
    command: Sequence[str | Path],
    directory: Path,
    *,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[MoorlineProcess]:
    """A command for the length of the block; ``directory`` is its ``--dir``."""
    process = MoorlineProcess(command, directory, environment=environment, cwd=cwd)
    try:
        yield process
    finally:
        process.close()


def listening_ports(pid: int) -> set[int]:
    """The TCP ports on which a process listens."""
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            sockets.add(str(descriptor.readlink()))
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {
        int(fields[1].rpartition(":")[2], 16)
        for fields in lines
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets
    }


def printed_commands(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """What `moorline quickstart` says is to be typed first, and then the things to try."""
    preparation: list[str] = []
    things: list[str] = []
    is_thing = False
    for line in lines:
        if line.startswith("      "):
            (things if is_thing else preparation).append(line.strip())
        elif line.strip():
            is_thing = line.strip()[0].isdigit()
    return preparation, things
