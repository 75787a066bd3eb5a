"""The programs that make load, and what each says of it as numbers by name."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from benchmarks.candidates import Candidate
from benchmarks.stand import Place, Stand

Numbers = dict[str, float]
Front = Literal["HTTP/2", "HTTP/1.1 with TLS"]
"""Of a listener with TLS: how its callers speak."""
GIB = 1 << 30
MIB = 1 << 20
TIMES = ("rps", "p50_ms", "p99_ms")
LIMIT_SECONDS = 300


def spent(candidate: Candidate, work: Callable[[], Numbers], units: float) -> Numbers:
    """What the work says, and the CPU seconds of the candidate's processes for each unit of it."""
    before = candidate.cpu_seconds()
    numbers = work()
    seconds = [after - start for after, start in zip(candidate.cpu_seconds(), before, strict=True)]
    if seconds:
        numbers["cpu"] = sum(seconds) / units
        numbers["cpu_server"], numbers["cpu_agent"] = (one / units for one in seconds)
    return numbers


def requests(stand: Stand, candidate: Candidate, path: str, *arguments: str) -> Numbers:
    """By the C program, at the plain front."""
    output = _run(candidate, [*load_command(stand, candidate, path), *arguments])
    numbers: Numbers = json.loads(output)
    if numbers["errs"]:
        raise RuntimeError(f"{candidate.name}: {numbers['errs']:g} of the requests failed")
    return {name: numbers[name] for name in TIMES}


def load_command(stand: Stand, candidate: Candidate, path: str) -> list[str]:
    """The C program at the plain front, as this caller."""
    host, _, tail = candidate.plain.removeprefix("http://").partition("/")
    address, _, port = host.rpartition(":")
    command = [str(stand.load), "-h", address, "-p", port, "-P", f"{tail and '/'}{tail}{path}"]
    for name, value in candidate.authorization().items():
        command += ["-X", f"{name}: {value}"]
    return command


def h2load(stand: Stand, candidate: Candidate, count: int, *arguments: str) -> Numbers:
    """At the front with TLS, by a program that cannot make its headers unique."""
    log = stand.folder / "h2load.log"
    log.unlink(missing_ok=True)
    command = ["h2load", "-n", str(count), *arguments, f"--log-file={log}", f"{candidate.tls}/small"]
    for name, value in candidate.authorization().items():
        command += ["-H", f"{name}: {value}"]
    started = time.monotonic()
    _run(candidate, command)
    return {"rps": count / (time.monotonic() - started), **_quantiles(log, count)}


def _quantiles(log: Path, count: int) -> Numbers:
    rows = [line.split() for line in log.read_text().splitlines()]
    if len(rows) != count or any(status != "200" for _, status, _ in rows):
        raise RuntimeError("h2load: not every request was answered with 200")
    micros = sorted(int(duration) for _, _, duration in rows)
    return {"p50_ms": micros[count // 2] / 1000, "p99_ms": micros[count * 99 // 100] / 1000}


def download(candidate: Candidate, size: int) -> Numbers:
    """Of random bytes, by curl, which must get all of them."""
    said = "%{speed_download} %{size_download}"
    front = candidate.plain or candidate.tls
    output = _run(candidate, [*_curl(candidate), "-w", said, f"{front}/big?bytes={size}"])
    speed, received = output.split()
    if int(received) != size:
        raise RuntimeError(f"{candidate.name}: {received} of {size} bytes have come")
    return {"MBps": float(speed) / 1e6}


def upload(stand: Stand, candidate: Candidate, size: int) -> Numbers:
    """Of random bytes, by curl; the origin says how many have come."""
    source = stand.folder / f"upload-{size}"
    if not source.exists():
        with source.open("wb") as file, open("/dev/urandom", "rb") as random:
            for _ in range(size // MIB):
                file.write(random.read(MIB))
    answer = stand.folder / "upload.answer"
    command = [*_curl(candidate, answer), "-w", "%{speed_upload}", "-H", "Expect:", "-T", str(source)]
    speed = _run(candidate, [*command, f"{candidate.plain}/upload"])
    if int(answer.read_text()) != size:
        raise RuntimeError(f"{candidate.name}: {answer.read_text()} of {size} bytes have come")
    return {"MBps": float(speed) / 1e6}


def _curl(candidate: Candidate, output: Path = Path("/dev/null")) -> list[str]:
    command = ["curl", "-sSfk", "-o", str(output)]
    for name, value in candidate.authorization().items():
        command += ["-H", f"{name}: {value}"]
    return command


@contextlib.contextmanager
def downloading(candidate: Candidate, count: int) -> Iterator[None]:
    """So many downloads run for the length of the block, and must still be running at its end."""
    command = Place(candidate.namespace).inside([*_curl(candidate), f"{candidate.plain}/big?bytes={64 * GIB}"])
    running = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(count)]
    try:
        yield
        if any(one.poll() is not None for one in running):
            raise RuntimeError(f"{candidate.name}: a download has ended early")
    finally:
        for one in running:
            one.kill()
            one.wait()


def exec_session(stand: Stand, candidate: Candidate, *arguments: str) -> Numbers:
    """An upgraded connection, as of kubectl exec, at the plain front."""
    url = f"{candidate.plain}/exec"
    command = stand.command("exec", "-url", url, "-token", candidate.token, *arguments)
    numbers: Numbers = json.loads(_run(candidate, command))
    return {name: value for name, value in numbers.items() if name in ("MBps", "p50_ms", "p99_ms")}


class Watches:
    """Callers that hold watches open."""

    def __init__(self, candidate: Candidate, process: subprocess.Popen[str]) -> None:
        self._candidate, self._process = candidate, process

    def so_far(self) -> Numbers:
        """How many events have come since this was asked last, and how late. All watches must still be open."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        numbers: Numbers = json.loads(self._process.stdout.readline())
        if numbers["ended"]:
            raise RuntimeError(f"{self._candidate.name}: {numbers['ended']:g} of the watches have ended")
        return numbers


@contextlib.contextmanager
def watching(stand: Stand, candidate: Candidate, count: int, front: Front) -> Iterator[Watches]:
    """So many watches, all open when the block begins, and silent until `tell` is called."""
    more = ["-h2"] if front == "HTTP/2" else []
    url = f"{candidate.tls}/watch?watch=true"
    command = stand.command("watches", "-url", url, "-token", candidate.token, "-n", str(count), *more)
    pipe = subprocess.PIPE
    log = stand.log_file("watches")
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=errors, text=True, cwd=stand.folder, env=stand.environment()
        )
    try:
        assert process.stdout is not None
        opened = json.loads(process.stdout.readline() or "{}")
        if opened.get("opened") != count:
            raise RuntimeError(f"{candidate.name}: not every watch was opened: {opened}{log.read_text()[-500:]}")
        yield Watches(candidate, process)
    finally:
        process.kill()
        process.communicate()


def tell(origin: Candidate) -> None:
    """From now on, every watch that is open sends an event a second."""
    _run(origin, [*_curl(origin), f"{origin.plain}/tell"])


def _run(candidate: Candidate, command: list[str]) -> str:
    placed = Place(candidate.namespace).inside(command)
    done = subprocess.run(placed, check=False, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    if done.returncode:
        raise RuntimeError(f"{candidate.name}: {' '.join(command[:1])} has failed: {done.stderr.strip()[-500:]}")
    return done.stdout
