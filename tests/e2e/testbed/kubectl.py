"""Running kubectl, and comparing what two runs of it say."""

from __future__ import annotations

import difflib
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from e2e.testbed.processes import BedError, until

AGES = re.compile(r"(?<=\s)(\d+[dhms]){1,2}(?=\s|$)|<invalid>", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a finished command left behind."""

    command: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        return self.stdout.decode()

    @property
    def errors(self) -> str:
        return self.stderr.decode()

    def json(self) -> Any:
        return json.loads(self.stdout)

    def __str__(self) -> str:
        return f"$ kubectl {' '.join(self.command)}\n[{self.returncode}]\n{self.text[:4000]}{self.errors[:4000]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kubectl:
    """kubectl with one kubeconfig, and a discovery cache and home directory of its own."""

    program: Path
    kubeconfig: Path
    home: Path
    environ: Mapping[str, str]

    def with_environ(self, **more: str) -> Kubectl:
        """The same kubectl with more environment variables."""
        return Kubectl(
            program=self.program, kubeconfig=self.kubeconfig, home=self.home, environ={**self.environ, **more}
        )

    def with_kubeconfig(self, path: Path, *, home: Path | None = None) -> Kubectl:
        """The same kubectl with another kubeconfig, and a cache of its own or one that is shared with others."""
        home = home or path.with_suffix(".home")
        return Kubectl(program=self.program, kubeconfig=path, home=home, environ=self.environ)

    def full_environ(self) -> dict[str, str]:
        """The environment that kubectl runs in; nothing of the caller's Kubernetes set-up comes through."""
        self.home.mkdir(parents=True, exist_ok=True)
        inherited = {name: os.environ[name] for name in ("PATH", "TMPDIR", "LANG") if name in os.environ}
        own = {"HOME": str(self.home), "KUBECONFIG": str(self.kubeconfig), "KUBECACHEDIR": str(self.home / "cache")}
        return {**inherited, **own, **self.environ}

    def attempt(self, *arguments: str, stdin: bytes | None = None, seconds: float = 60) -> Result:
        """Run to the end, whatever the exit status; BedError when it takes longer than ``seconds``."""
        try:
            done = subprocess.run(
                [self.program, *arguments],
                input=stdin,
                stdin=subprocess.DEVNULL if stdin is None else None,
                capture_output=True,
                env=self.full_environ(),
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            said = (error.stdout or b"") + (error.stderr or b"")
            raise BedError(
                f"not within {seconds:g} s: kubectl {' '.join(arguments)}\n{said.decode()[-2000:]}"
            ) from None
        return Result(command=arguments, returncode=done.returncode, stdout=done.stdout, stderr=done.stderr)

    def __call__(self, *arguments: str, stdin: bytes | None = None, seconds: float = 60) -> Result:
        """Run to the end, which must be a success."""
        result = self.attempt(*arguments, stdin=stdin, seconds=seconds)
        assert result.returncode == 0, str(result)
        return result

    @contextmanager
    def running(self, *arguments: str, stdin: int | None = None) -> Iterator[Running]:
        """kubectl in the background, killed at the end of the block if it still runs."""
        popen = subprocess.Popen(
            [self.program, *arguments],
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.full_environ(),
        )
        try:
            with popen:
                try:
                    yield Running(popen, arguments)
                finally:
                    if popen.poll() is None:
                        popen.kill()
        finally:
            popen.wait(10)


class Running:
    """A kubectl that runs: its output is read as it comes, without blocking."""

    def __init__(self, popen: subprocess.Popen[bytes], command: tuple[str, ...]) -> None:
        assert popen.stdout is not None
        assert popen.stderr is not None
        self.popen = popen
        self._command = command
        self._streams: dict[str, IO[bytes]] = {"stdout": popen.stdout, "stderr": popen.stderr}
        self._read: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        for stream in self._streams.values():
            os.set_blocking(stream.fileno(), False)

    def _drain(self, name: str) -> bytearray:
        while True:
            try:
                data = os.read(self._streams[name].fileno(), 1 << 16)
            except BlockingIOError:
                break
            if not data:
                break
            self._read[name] += data
        return self._read[name]

    @property
    def stdout(self) -> str:
        return self._drain("stdout").decode(errors="replace")

    @property
    def stderr(self) -> str:
        return self._drain("stderr").decode(errors="replace")

    def wait_for(self, pattern: str, *, seconds: float = 10, stream: str = "stdout") -> re.Match[str]:
        """The first match of ``pattern`` in what it printed; BedError after ``seconds``."""

        def look() -> re.Match[str] | None:
            return re.search(pattern, self._drain(stream).decode(errors="replace"), re.MULTILINE)

        try:
            return until(look, seconds=seconds, what=f"{pattern!r} on {stream}", interval=0.01)
        except BedError as error:
            raise BedError(f"{error} of kubectl {' '.join(self._command)}\n{self.stdout}\n{self.stderr}") from None

    def wait(self, *, seconds: float) -> int:
        """The exit status; what is printed meanwhile is read, so that it never waits for us."""

        def has_ended() -> bool:
            self._drain("stdout")
            self._drain("stderr")
            return self.popen.poll() is not None

        until(has_ended, seconds=seconds, what=f"the end of kubectl {' '.join(self._command)}", interval=0.01)
        has_ended()
        return self.popen.wait()


def assert_same(direct: Result, through: Result, *masks: tuple[str, str]) -> None:
    """Both runs ended with the same status, and printed the same, once ages and the given patterns are masked."""
    expected, got = (_masked(result, masks) for result in (direct, through))
    if expected != got:
        difference = "\n".join(difflib.unified_diff(expected[:2000], got[:2000], "direct", "through", lineterm="", n=1))
        raise AssertionError(f"$ kubectl {' '.join(through.command)}\n{difference[:6000]}")


def _masked(result: Result, masks: tuple[tuple[str, str], ...]) -> list[str]:
    texts = []
    for text in (result.stdout.decode(errors="backslashreplace"), result.errors):
        masked = AGES.sub("AGE", text)
        for pattern, replacement in masks:
            masked = re.sub(pattern, replacement, masked)
        texts.append(re.sub(r"[ \t]+", " ", masked) if masked != text else masked)
    return [f"status {result.returncode}", *texts[0].splitlines(), "-- stderr", *texts[1].splitlines()]
