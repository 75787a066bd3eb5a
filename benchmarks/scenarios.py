"""The rows of the table: what is asked of each candidate, and in which order.

One round of a scenario gives numbers by row and candidate. CPU time is that of both processes of the tunnel, never of
the origin or the load generator. The candidates of a row take turns, in another order each round.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from benchmarks import loads
from benchmarks.candidates import Candidate
from benchmarks.link import slow_link
from benchmarks.loads import GIB, MIB, Front, Numbers
from benchmarks.stand import Stand

REFERENCES = {
    "moorline": "reference",
    "moorline, WebSocket": "moorline",
    "moorline, origin with TLS": "reference, origin with TLS",
    "moorline, TLS front": "reference",
    "moorline, TLS at both ends": "reference, TLS at both ends",
    "moorline, slow link": "reference, slow link",
    "reference, TLS at both ends, beside watches": "reference, TLS at both ends",
    "moorline, TLS at both ends, beside watches": "moorline, TLS at both ends",
}
"""With which candidate each is compared."""


@dataclasses.dataclass(frozen=True)
class Round:
    """Where and how one round is measured."""

    stand: Stand
    candidates: dict[str, Candidate]
    turn: int
    quick: bool

    def in_turn(self, names: Iterable[str]) -> list[Candidate]:
        """Each goes first in some rounds, and every second round the other way round."""
        order = list(names)
        first = self.turn // 2 % len(order)
        order = order[first:] + order[:first]
        return [self.candidates[name] for name in (reversed(order) if self.turn % 2 else order)]


Measured = tuple[str, str, Numbers]
"""Row, candidate, numbers."""


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One row, or several that come of the same work."""

    rows: tuple[str, ...]
    measure: Callable[[Round], Iterator[Measured]]
    needs: tuple[str, ...] = ()
    """Candidates that run throughout the pass."""
    rounds: int = 7
    quick_rounds: int = 0
    """How many in a quick run; none leaves the scenario out."""


def each(
    row: str,
    names: tuple[str, ...],
    one: Callable[[Round, Candidate], Numbers],
    *,
    quick: int = 0,
    quick_names: tuple[str, ...] = (),
) -> Scenario:
    """A row of which each candidate is measured by itself; in a quick run perhaps not all of them."""

    def measure(run: Round) -> Iterator[Measured]:
        for candidate in run.in_turn((quick_names or names) if run.quick else names):
            yield row, candidate.name, one(run, candidate)

    return Scenario((row,), measure, names, quick_rounds=quick)


def small(connections: int, count: int, *more: str) -> Callable[[Round, Candidate], Numbers]:
    """Answers of 1 KiB to requests of which none is like another."""

    def one(run: Round, candidate: Candidate) -> Numbers:
        number = count // 2 if run.quick else count
        arguments = ("-u", "-c", str(connections), "-n", str(number), *more)
        work = lambda: loads.requests(run.stand, candidate, "/small", *arguments)  # noqa: E731
        return loads.spent(candidate, work, number / 10_000)

    return one


def through_tls(count: int, *arguments: str) -> Callable[[Round, Candidate], Numbers]:
    """Answers of 1 KiB through a front with TLS."""

    def one(run: Round, candidate: Candidate) -> Numbers:
        number = count // 2 if run.quick else count
        return loads.spent(candidate, lambda: loads.h2load(run.stand, candidate, number, *arguments), number / 10_000)

    return one


def download(run: Round, candidate: Candidate) -> Numbers:
    """Random bytes from the origin."""
    size = 256 * MIB if run.quick else GIB
    return loads.spent(candidate, lambda: loads.download(candidate, size), size / GIB)


def upload(run: Round, candidate: Candidate) -> Numbers:
    """Random bytes to the origin."""
    size = 256 * MIB if run.quick else GIB
    return loads.spent(candidate, lambda: loads.upload(run.stand, candidate, size), size / GIB)


def beside_downloads(run: Round, candidate: Candidate) -> Numbers:
    """Small requests of 16 callers while two others download."""
    with loads.downloading(candidate, 2):
        time.sleep(0.3)
        seconds = "1" if run.quick else "2"
        return loads.requests(run.stand, candidate, "/small", "-u", "-c", "16", "-d", seconds)


def lists(run: Round, candidate: Candidate) -> Numbers:
    """Lists of 5,000 objects, packed by the origin."""
    work = lambda: loads.requests(run.stand, candidate, "/list", "-c", "4", "-n", "1000")  # noqa: E731
    return loads.spent(candidate, work, 0.1)


def exec_bytes(direction: str) -> Callable[[Round, Candidate], Numbers]:
    """Bytes through an upgraded connection, one way."""

    def one(run: Round, candidate: Candidate) -> Numbers:
        size = 256 * MIB
        arguments = (direction, str(size), "-n", "0")
        return loads.spent(candidate, lambda: loads.exec_session(run.stand, candidate, *arguments), size / GIB)

    return one


def keystrokes(run: Round, candidate: Candidate) -> Numbers:
    """One byte there and back through an upgraded connection, again and again."""
    return loads.exec_session(run.stand, candidate, "-n", "1000")


def resident(run: Round, candidate: Candidate) -> Numbers:
    """Memory of both processes, as they are now."""
    server, agent = candidate.resident_bytes()
    return {"server_MiB": server / MIB, "agent_MiB": agent / MIB}


WATCHING = ("reference, TLS at both ends", "moorline, TLS at both ends")
HELD_SECONDS = 3


def silent(count: int, front: Front) -> str:
    """The title of a row."""
    return f"{count:,} open watches, silent, {front}"


def eventful(count: int, front: Front) -> str:
    """The title of a row."""
    return f"{count:,} open watches, an event a second each, {front}"


def watches(count: int, front: Front, *, beside: bool = False) -> Scenario:
    """Open watches on new processes: memory, CPU time, the collector's pauses, and how late events come.

    ``beside`` adds requests and a download: beside the silent watches, and on new processes without any.
    """
    rows = (silent(count, front), *(BESIDE_WATCHES if beside else ()), eventful(count, front))

    def measure(run: Round) -> Iterator[Measured]:
        for name in WATCHING if run.turn % 2 else reversed(WATCHING):
            if beside:
                with run.stand.running([name]) as started:
                    yield from zip(BESIDE_WATCHES, [name] * 2, _other_work(run, started[name]), strict=True)
            with run.stand.running([name]) as started:
                candidate = started[name]
                # What a process needs once, whatever comes, is not part of what a watch costs.
                with loads.watching(run.stand, candidate, 50, front):
                    before = candidate.resident_bytes()
                with loads.watching(run.stand, candidate, count, front) as held:
                    yield rows[0], name, _silent(candidate, count, before)
                    if beside:
                        with_watches = f"{name}, beside watches"
                        yield from zip(BESIDE_WATCHES, [with_watches] * 2, _other_work(run, candidate), strict=True)
                    yield rows[-1], name, _eventful(started["direct"], candidate, held)

    return Scenario(rows, measure, rounds=3)


def _silent(candidate: Candidate, count: int, before: list[int]) -> Numbers:
    time.sleep(1)
    numbers = {"cpu_per_second": _cpu_while_held(candidate) / HELD_SECONDS}
    held = [(after - first) / count / 1024 for after, first in zip(candidate.resident_bytes(), before, strict=True)]
    numbers["server_KiB"], numbers["agent_KiB"] = held
    for name, pause in zip(("server_pause_ms", "agent_pause_ms"), candidate.longest_pauses(), strict=False):
        numbers[name] = pause * 1000
    return numbers


def _eventful(origin: Candidate, candidate: Candidate, held: loads.Watches) -> Numbers:
    loads.tell(origin)
    time.sleep(2)
    held.so_far()
    used = _cpu_while_held(candidate)
    events = held.so_far()
    if not events["count"]:
        raise RuntimeError(f"{candidate.name}: no event has come in {HELD_SECONDS} s")
    return {
        "events_per_second": events["count"] / HELD_SECONDS,
        "cpu_per_events": used / events["count"] * 10_000,
        "late_p50_ms": events["p50_ms"],
        "late_p99_ms": events["p99_ms"],
    }


def _cpu_while_held(candidate: Candidate) -> float:
    start = candidate.cpu_seconds()
    time.sleep(HELD_SECONDS)
    return sum(candidate.cpu_seconds()) - sum(start)


def _other_work(run: Round, candidate: Candidate) -> tuple[Numbers, Numbers]:
    size = GIB // 4
    rate = through_tls(5_000, "-c", "8", "-m", "8")
    rate(run, candidate)  # to warm up
    return rate(run, candidate), loads.spent(candidate, lambda: loads.download(candidate, size), size / GIB)


BESIDE_WATCHES = ("1 KiB, HTTP/2, beside 10,000 silent watches", "download beside 10,000 silent watches")


def slow(run: Round) -> Iterator[Measured]:
    """Small requests of 8 callers beside one download, over a slow link between server and agent.

    Each candidate has a link of its own, and they are measured at the same time: the links are what is busy here.
    """

    def one(name: str) -> Numbers:
        with slow_link() as (near, far), run.stand.running([name], near=near, far=far) as started:
            candidate = started[name]
            with loads.downloading(candidate, 1):
                time.sleep(2)
                return loads.requests(run.stand, candidate, "/small", "-u", "-c", "8", "-d", "10")

    names = ("reference, slow link", "moorline, slow link")
    with ThreadPoolExecutor(len(names)) as pool:
        for name, numbers in zip(names, pool.map(one, names), strict=True):
            yield SLOW, name, numbers


SLOW = "10 Mbit/s, 50 ms: small requests of 8 callers beside a download"
IDLE = "memory before any load"

_BOTH = ("reference", "moorline")
_PLAIN = ("direct", *_BOTH, "moorline, WebSocket")
_WITHOUT_WEBSOCKET = ("direct", *_BOTH)
_TUNNELS = (*_BOTH, "moorline, WebSocket")
_TLS = ("reference", "moorline, TLS front")
_ORIGIN_TLS = ("reference, origin with TLS", "moorline, origin with TLS")

SCENARIOS = (
    each(IDLE, _TUNNELS, resident, quick=1),
    each("1 KiB, 1 connection", _PLAIN, small(1, 1_500), quick=5, quick_names=_WITHOUT_WEBSOCKET),
    each("1 KiB, 16 connections", _WITHOUT_WEBSOCKET, small(16, 3_000)),
    each("1 KiB, 64 connections", _PLAIN, small(64, 5_000), quick=5, quick_names=_WITHOUT_WEBSOCKET),
    each("1 KiB, 64 connections, origin with TLS", _ORIGIN_TLS, small(64, 5_000)),
    each("1 KiB, 16 connections, a new one for each request", _WITHOUT_WEBSOCKET, small(16, 1_500, "-R")),
    each("1 KiB, TLS front, HTTP/1.1, 64 connections", _TLS, through_tls(5_000, "--h1", "-c", "64")),
    each(
        "1 KiB, TLS front, HTTP/2, 8 connections of 8 streams", _TLS, through_tls(5_000, "-c", "8", "-m", "8"), quick=5
    ),
    each("download of random bytes", _PLAIN, download, quick=5),
    each("upload of random bytes", _PLAIN, upload, quick=5, quick_names=_WITHOUT_WEBSOCKET),
    each("small requests beside two downloads", _BOTH, beside_downloads, quick=5),
    each("lists of 5,000 objects, gzip, 4 connections", _BOTH, lists),
    each("exec, output through an upgrade", _TUNNELS, exec_bytes("-receive")),
    each("exec, input through an upgrade", _TUNNELS, exec_bytes("-send")),
    each("exec, one keystroke after the other", _TUNNELS, keystrokes),
    Scenario((SLOW,), slow, rounds=6),
    watches(1_000, "HTTP/1.1 with TLS"),
    watches(10_000, "HTTP/2", beside=True),
    watches(10_000, "HTTP/1.1 with TLS"),
    each("memory after all of it", _BOTH, resident),
)
