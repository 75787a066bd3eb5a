"""What Moorline is meant to reach, and whether a run says that it does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from benchmarks import scenarios
from benchmarks.intervals import Estimate, estimate
from benchmarks.results import Results

C64 = "1 KiB, 64 connections"
C1 = "1 KiB, 1 connection"
HTTP2 = "1 KiB, TLS front, HTTP/2, 8 connections of 8 streams"
DOWNLOAD = "download of random bytes"
UPLOAD = "upload of random bytes"
BESIDE = "small requests beside two downloads"
SILENT_2 = scenarios.silent(10_000, "HTTP/2")
SILENT_1 = scenarios.silent(10_000, "HTTP/1.1 with TLS")
WITH_WATCHES, DOWNLOAD_WITH_WATCHES = scenarios.BESIDE_WATCHES
BOTH_ENDS = "moorline, TLS at both ends"
MB = 1.048576
"""Megabytes in a mebibyte."""


@dataclasses.dataclass(frozen=True)
class Aim:
    """A number of a candidate, or its ratio to another one's, and two bounds of which either may be open."""

    what: str
    row: str
    candidate: str
    column: str
    first: float | None
    then: float | None
    to: str = ""
    """The candidate of the ratio; empty for the number itself."""
    is_floor: bool = False
    unit: str = ""
    scale: float = 1.0

    def measured(self, results: Results) -> Estimate | None:
        """None where the run has no such row."""
        row = results.rows.get(self.row)
        if row is None:
            return None
        if self.to:
            return row.ratio(self.candidate, self.to, self.column)
        values = [value * self.scale for value in row.values(self.candidate, self.column)]
        return estimate(values) if values else None

    def verdict(self, found: Estimate) -> str:
        """Which bounds are met; where the interval reaches over a bound, it says so."""
        said = [
            self._against(found, name, bound) for name, bound in (("first", self.first), ("then", self.then)) if bound
        ]
        return "; ".join(said) or "reported"

    def _against(self, found: Estimate, name: str, bound: float) -> str:
        holds: Callable[[float], bool] = (
            (lambda value: value >= bound) if self.is_floor else (lambda value: value <= bound)
        )
        said = f"{name} {'met' if holds(found.value) else '**missed**'}"
        ends = [end for end in (found.low, found.high) if end is not None]
        return f"{said} (within noise)" if len({holds(end) for end in ends}) > 1 else said

    def bound(self, value: float | None) -> str:
        """As the table shows it."""
        return "" if value is None else f"{'≥' if self.is_floor else '≤'} {value:g}{self.unit}"


def _ratio(what: str, row: str, column: str, first: float | None, then: float | None, *, is_floor: bool = False) -> Aim:
    return Aim(what, row, "moorline", column, first, then, "reference", is_floor)


AIMS = (
    _ratio("CPU per request, 64 connections", C64, "cpu", 0.7, 0.55),
    Aim("the same with an HTTP/2 front", HTTP2, "moorline, TLS front", "cpu", 0.9, 0.7, "reference"),
    _ratio("p50, one connection", C1, "p50_ms", 0.9, 0.75),
    _ratio("p99, 64 connections", C64, "p99_ms", 0.8, 0.6),
    _ratio("download, MB/s", DOWNLOAD, "MBps", 1.2, 1.6, is_floor=True),
    _ratio("download, CPU per GiB", DOWNLOAD, "cpu", 0.8, 0.6),
    _ratio("upload, MB/s", UPLOAD, "MBps", None, 1.2, is_floor=True),
    _ratio("upload, CPU per GiB", UPLOAD, "cpu", None, 0.8),
    _ratio("small requests beside two downloads, p50", BESIDE, "p50_ms", 1.0, 0.8),
    _ratio("small requests beside two downloads, p99", BESIDE, "p99_ms", 1.0, 0.8),
    Aim(
        "WebSocket tunnel to TLS tunnel, download, MB/s",
        *(DOWNLOAD, "moorline, WebSocket", "MBps", 0.4, 0.7, "moorline"),
        is_floor=True,
    ),
    Aim("kas, memory per silent watch, HTTP/2 front", SILENT_2, BOTH_ENDS, "server_KiB", 10, 8, unit=" KiB"),
    Aim("kas, the same, HTTP/1.1 front with TLS", SILENT_1, BOTH_ENDS, "server_KiB", 30, 26, unit=" KiB"),
    Aim("agentk, memory per silent watch, upstream with TLS", SILENT_2, BOTH_ENDS, "agent_KiB", 48, 12, unit=" KiB"),
    Aim(
        "kas, longest pause of the collector, 10,000 watches",
        SILENT_2,
        BOTH_ENDS,
        "server_pause_ms",
        None,
        None,
        unit=" ms",
    ),
    Aim("agentk, the same", SILENT_2, BOTH_ENDS, "agent_pause_ms", None, None, unit=" ms"),
    *(
        Aim(
            f"beside 10,000 watches to without: {what}",
            row,
            f"{BOTH_ENDS}, beside watches",
            column,
            None,
            bound,
            BOTH_ENDS,
            floor,
        )
        for what, row, column, bound, floor in (
            ("CPU per request, HTTP/2", WITH_WATCHES, "cpu", 1.2, False),
            ("p50", WITH_WATCHES, "p50_ms", 1.2, False),
            ("p99", WITH_WATCHES, "p99_ms", 1.2, False),
            ("download, MB/s", DOWNLOAD_WITH_WATCHES, "MBps", 0.83, True),
            ("download, CPU per GiB", DOWNLOAD_WITH_WATCHES, "cpu", 1.2, False),
        )
    ),
    Aim(
        "small requests beside a download over 10 Mbit/s, p99",
        scenarios.SLOW,
        "moorline, slow link",
        "p99_ms",
        500,
        250,
        unit=" ms",
    ),
    Aim("kas, memory before any load", scenarios.IDLE, "moorline", "server_MiB", 60, None, unit=" MB", scale=MB),
    Aim("agentk, memory before any load", scenarios.IDLE, "moorline", "agent_MiB", 45, None, unit=" MB", scale=MB),
)


def table(results: Results) -> str:
    """Every aim of which the run says something, in Markdown."""
    lines = ["| aim | first | then | measured | |", "|---|---|---|---|---|"]
    for aim in AIMS:
        found = aim.measured(results)
        if found is not None:
            bounds = f"{aim.bound(aim.first)} | {aim.bound(aim.then)}"
            lines.append(f"| {aim.what} | {bounds} | {found}{aim.unit} | {aim.verdict(found)} |")
    return "**Aims** (ratios to the reference where nothing else is said)\n\n" + "\n".join(lines) + "\n"
