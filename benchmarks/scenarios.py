"""The rows of the table: what is asked of a candidate, and what comes of one round of it.

A round gives numbers by name. CPU time is that of both processes of the tunnel, never of the origin or the load
generator.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.stand import Candidate, Stand, authorization

Numbers = dict[str, float]
Measure = Callable[[Stand, Candidate, bool], Numbers]
"""One round for one candidate; ``quick`` asks for less of everything."""

PLAIN = ("direct", "reference", "moorline", "moorline, WebSocket")
GIB = 1 << 30
MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One row."""

    title: str
    candidates: tuple[str, ...]
    measure: Measure
    in_quick: bool = True
    rounds: int = 3


def _load(stand: Stand, candidate: Candidate, path: str, *arguments: str) -> Numbers:
    command = [str(stand.load), "-h", "127.0.0.1", "-p", str(candidate.port), "-P", candidate.path + path, *arguments]
    for name, value in authorization(candidate).items():
        command += ["-X", f"{name}: {value}"]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    numbers: Numbers = json.loads(output)
    if numbers["errs"]:
        raise RuntimeError(f"{candidate.name}: {numbers['errs']:g} of the requests failed")
    return numbers


def _spent(candidate: Candidate, work: Callable[[], Numbers], units: float) -> Numbers:
    """What the work says, and the CPU seconds of the candidate for each unit of it."""
    before = candidate.cpu_seconds()
    numbers = work()
    spent = [after - start for after, start in zip(candidate.cpu_seconds(), before, strict=True)]
    if spent:
        numbers["cpu"] = sum(spent) / units
        numbers["cpu_server"], numbers["cpu_agent"] = (one / units for one in spent)
    return numbers


def small(connections: int, *, reconnect: bool = False) -> Measure:
    """Answers of 1 KiB to requests of which none is like another."""

    def measure(stand: Stand, candidate: Candidate, quick: bool) -> Numbers:
        count = 1_500 if connections == 1 or reconnect else 4_000
        count = count if quick else 2 * count
        more = ("-R",) if reconnect else ()
        arguments = ("-u", "-c", str(connections), "-n", str(count), *more)

        def work() -> Numbers:
            found = _load(stand, candidate, "/small", *arguments)
            return {name: found[key] for name, key in (("rps", "rps"), ("p50_ms", "p50_ms"), ("p99_ms", "p99_ms"))}

        return _spent(candidate, work, count / 10_000)

    return measure


def through_tls(*arguments: str) -> Measure:
    """Answers of 1 KiB through a front with TLS, by h2load, which cannot make its headers unique."""

    def measure(stand: Stand, candidate: Candidate, quick: bool) -> Numbers:
        count = 4_000 if quick else 8_000
        log = stand.folder / "h2load.log"
        log.unlink(missing_ok=True)
        url = f"https://127.0.0.1:{candidate.port}{candidate.path}/small"
        command = ["h2load", "-n", str(count), *arguments, f"--log-file={log}", url]
        for name, value in authorization(candidate).items():
            command += ["-H", f"{name}: {value}"]

        def work() -> Numbers:
            started = time.monotonic()
            subprocess.run(command, check=True, capture_output=True, timeout=300)
            return {"rps": count / (time.monotonic() - started), **_quantiles(log, count)}

        return _spent(candidate, work, count / 10_000)

    return measure


def _quantiles(log: Path, count: int) -> Numbers:
    rows = [line.split() for line in log.read_text().splitlines()]
    if len(rows) != count or any(status != "200" for _, status, _ in rows):
        raise RuntimeError("h2load: not every request was answered with 200")
    micros = sorted(int(duration) for _, _, duration in rows)
    return {"p50_ms": micros[count // 2] / 1000, "p99_ms": micros[count * 99 // 100] / 1000}


def download(stand: Stand, candidate: Candidate, quick: bool) -> Numbers:
    """Random bytes from the origin."""
    size = 256 * MIB if quick else GIB
    arguments = ["-o", "/dev/null", "-w", "%{speed_download}", f"{candidate.url}/big?bytes={size}"]
    return _spent(candidate, lambda: {"MBps": _curl(candidate, arguments) / 1e6}, size / GIB)


def upload(stand: Stand, candidate: Candidate, quick: bool) -> Numbers:
    """Random bytes to the origin."""
    size = 128 * MIB if quick else GIB // 2
    source = stand.folder / f"upload-{size}"
    if not source.exists():
        with source.open("wb") as file, open("/dev/urandom", "rb") as random:
            for _ in range(size // MIB):
                file.write(random.read(MIB))
    arguments = ["-o", "/dev/null", "-w", "%{speed_upload}", "-H", "Expect:", "-T", str(source)]
    work = lambda: {"MBps": _curl(candidate, [*arguments, f"{candidate.url}/upload"]) / 1e6}  # noqa: E731
    return _spent(candidate, work, size / GIB)


def _curl(candidate: Candidate, arguments: list[str]) -> float:
    command = ["curl", "-sSf", *arguments]
    for name, value in authorization(candidate).items():
        command += ["-H", f"{name}: {value}"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout)


def beside_downloads(stand: Stand, candidate: Candidate, quick: bool) -> Numbers:
    """Small requests of 16 callers while two others download."""
    seconds = 2 if quick else 4
    command = [
        "curl",
        "-sS",
        "-o",
        "/dev/null",
        "--max-time",
        str(seconds + 3),
        f"{candidate.url}/big?bytes={64 * GIB}",
    ]
    for name, value in authorization(candidate).items():
        command += ["-H", f"{name}: {value}"]
    downloads = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(2)]
    try:
        time.sleep(0.3)
        found = _load(stand, candidate, "/small", "-u", "-c", "16", "-d", str(seconds))
    finally:
        for one in downloads:
            one.terminate()
            one.wait()
    return {"rps": found["rps"], "p50_ms": found["p50_ms"], "p99_ms": found["p99_ms"]}


def lists(stand: Stand, candidate: Candidate, quick: bool) -> Numbers:
    """Lists of 5,000 objects, packed by the origin."""
    count = 400 if quick else 1_000

    def work() -> Numbers:
        found = _load(stand, candidate, "/list", "-c", "4", "-n", str(count))
        return {name: found[name] for name in ("rps", "p50_ms", "p99_ms")}

    return _spent(candidate, work, count / 10_000)


def watches(count: int, interval: str = "") -> Measure:
    """Open watches: what each costs in memory, and what all together cost in CPU time each second."""

    def measure(stand: Stand, candidate: Candidate, quick: bool) -> Numbers:
        seconds = 3 if quick else 6
        time.sleep(1)
        before = candidate.resident_bytes()
        path = f"{candidate.path}/watch?watch=true" + (f"&interval={interval}" if interval else "")
        command = [str(stand.load), "-h", "127.0.0.1", "-p", str(candidate.port), "-P", path]
        command += ["-c", str(count), "-O", "-d", "60"]
        for name, value in authorization(candidate).items():
            command += ["-X", f"{name}: {value}"]
        holding = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert holding.stdout is not None
            opened = holding.stdout.readline()
            if f"n={count} errs=0" not in opened:
                raise RuntimeError(f"{candidate.name}: not every watch was opened: {opened.strip()}")
            time.sleep(1)
            start = candidate.cpu_seconds()
            time.sleep(seconds - 1)
            spent = [after - first for after, first in zip(candidate.cpu_seconds(), start, strict=True)]
            held = [after - first for after, first in zip(candidate.resident_bytes(), before, strict=True)]
        finally:
            holding.terminate()
            holding.communicate()
        numbers = {"cpu_per_second": sum(spent) / (seconds - 1)}
        if held:
            numbers["server_KiB"], numbers["agent_KiB"] = (one / count / 1024 for one in held)
        return numbers

    return measure


def resident(stand: Stand, candidate: Candidate, quick: bool) -> Numbers:
    """Memory of both processes, as they are now."""
    server, agent = candidate.resident_bytes()
    return {"server_MiB": server / MIB, "agent_MiB": agent / MIB}


_BOTH = ("reference", "moorline")
_TLS = ("reference, TLS front", "moorline, TLS front")
_ORIGIN_TLS = ("reference, origin with TLS", "moorline, origin with TLS")

SCENARIOS = (
    Scenario("memory before any load", (*_BOTH, "moorline, WebSocket"), resident, rounds=1),
    Scenario("1 KiB, 1 connection", PLAIN, small(1), rounds=5),
    Scenario("1 KiB, 16 connections", PLAIN, small(16), in_quick=False),
    Scenario("1 KiB, 64 connections", PLAIN, small(64), rounds=5),
    Scenario("1 KiB, 64 connections, origin with TLS", _ORIGIN_TLS, small(64), in_quick=False),
    Scenario("1 KiB, 16 connections, a new one for each request", PLAIN, small(16, reconnect=True), in_quick=False),
    Scenario("1 KiB, TLS front, HTTP/1.1, 64 connections", _TLS, through_tls("--h1", "-c", "64"), in_quick=False),
    Scenario("1 KiB, TLS front, HTTP/2, 8 connections of 8 streams", _TLS, through_tls("-c", "8", "-m", "8")),
    Scenario("download of random bytes", PLAIN, download),
    Scenario("upload of random bytes", PLAIN, upload),
    Scenario("small requests beside two downloads", _BOTH, beside_downloads, rounds=3),
    Scenario("lists of 5,000 objects, gzip, 4 connections", _BOTH, lists, in_quick=False),
    Scenario("1,000 open watches, silent", _BOTH, watches(1_000), in_quick=False, rounds=1),
    Scenario("1,000 open watches, an event a second each", _BOTH, watches(1_000, "1s"), in_quick=False, rounds=1),
    Scenario("10,000 open watches, silent", _BOTH, watches(10_000), in_quick=False, rounds=1),
    Scenario("memory after all of it", _BOTH, resident, rounds=1),
)
