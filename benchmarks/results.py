"""What was measured: rows of rounds, as a file for the next comparison and as tables for people."""

from __future__ import annotations

import dataclasses
import json
import platform
import statistics
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from benchmarks.intervals import Estimate, paired
from benchmarks.loads import Numbers

ROOT = Path(__file__).parents[1]
DEFAULT_FILE = ROOT / "benchmarks" / "results" / "last.json"

COLUMNS = {
    "rps": "requests/s",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "MBps": "MB/s",
    "cpu": "CPU s",
    "cpu_server": "of it server",
    "cpu_agent": "of it agent",
    "cpu_per_second": "CPU s/s",
    "events_per_second": "events/s",
    "cpu_per_events": "CPU s for 10,000 events",
    "late_p50_ms": "events late p50 ms",
    "late_p99_ms": "p99 ms late",
    "server_KiB": "server KiB each",
    "agent_KiB": "agent KiB each",
    "server_pause_ms": "longest pause of the server's collector, ms",
    "agent_pause_ms": "of the agent's",
    "server_MiB": "server MiB",
    "agent_MiB": "agent MiB",
}


@dataclasses.dataclass
class Row:
    """All rounds of one row: by candidate, the numbers of each."""

    title: str
    rounds: dict[str, list[Numbers]] = dataclasses.field(default_factory=dict)

    def values(self, candidate: str, name: str) -> list[float]:
        """One number of a candidate in every round that has it."""
        return [numbers[name] for numbers in self.rounds.get(candidate, []) if name in numbers]

    def median(self, candidate: str, name: str) -> float | None:
        """Over the rounds; None where the candidate has no such number."""
        values = self.values(candidate, name)
        return statistics.median(values) if values else None

    def ratio(self, candidate: str, other: str, name: str) -> Estimate | None:
        """To the other candidate in the same round."""
        return paired(self.values(candidate, name), self.values(other, name))


@dataclasses.dataclass
class Results:
    """One run. ``references`` says for each candidate with which other one it is compared."""

    circumstances: dict[str, str]
    references: dict[str, str]
    rows: dict[str, Row] = dataclasses.field(default_factory=dict)

    def add(self, title: str, candidate: str, numbers: Numbers) -> None:
        """One more round of a candidate."""
        row = self.rows.setdefault(title, Row(title))
        row.rounds.setdefault(candidate, []).append(numbers)

    def ratios(self) -> dict[tuple[str, str, str], Estimate]:
        """By row, candidate and name of the number."""
        found: dict[tuple[str, str, str], Estimate] = {}
        for title, row in self.rows.items():
            for candidate in row.rounds:
                for name in COLUMNS:
                    ratio = row.ratio(candidate, self.references.get(candidate, ""), name)
                    if ratio is not None:
                        found[title, candidate, name] = ratio
        return found

    def table(self, title: str) -> str:
        """A row as a table in Markdown: medians, and ratios with their intervals in brackets."""
        row = self.rows[title]
        candidates = sorted(row.rounds, key=lambda name: (name != "direct", not name.startswith("reference"), name))
        names = [name for name in COLUMNS if any(row.values(candidate, name) for candidate in candidates)]
        lines = [f"| | {' | '.join(COLUMNS[name] for name in names)} |", "|---" * (len(names) + 1) + "|"]
        for candidate in candidates:
            cells = [self._cell(row, candidate, name) for name in names]
            lines.append(f"| {candidate} | {' | '.join(cells)} |")
        rounds = max(len(rounds) for rounds in row.rounds.values())
        return f"**{title}** ({rounds} {'round' if rounds == 1 else 'rounds'})\n\n" + "\n".join(lines) + "\n"

    def _cell(self, row: Row, candidate: str, name: str) -> str:
        median = row.median(candidate, name)
        if median is None:
            return ""
        ratio = row.ratio(candidate, self.references.get(candidate, ""), name)
        return f"{median:.3g}" if ratio is None else f"{median:.3g} ({ratio})"

    def write(self, path: Path) -> None:
        """Everything that was measured, as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = {title: row.rounds for title, row in self.rows.items()}
        document = {"circumstances": self.circumstances, "references": self.references, "rows": rows}
        path.write_text(json.dumps(document, indent=1) + "\n")


def read(path: Path) -> Results:
    """What `Results.write` wrote. Ends the process where the file is none of those."""
    try:
        document = json.loads(path.read_text())
        rows = {title: Row(title, rounds) for title, rounds in document["rows"].items()}
        return Results(document["circumstances"], document["references"], rows)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as exc:
        raise SystemExit(f"{path}: no results of a run of the benchmarks ({exc})") from None


def circumstances() -> dict[str, str]:
    """What the numbers depend on."""
    return {
        "commit": _output("git", "rev-parse", "--short", "HEAD") + (" and changes" if _output(*_STATUS) else ""),
        "date": _output("date", "-u", "+%Y-%m-%d %H:%M UTC"),
        "python": platform.python_version(),
        "trio": version("trio"),
        "go": _output("go", "env", "GOVERSION"),
        "golang.org/x/net": _x_net(),
        "machine": f"{_processor()}, {platform.machine()}, Linux {platform.release()}",
        "congestion control": Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
        "load before": Path("/proc/loadavg").read_text().split()[0],
    }


_STATUS = ("git", "status", "--porcelain", "--", "tunnel", "agent", "server", "operations", "benchmarks")


def _output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def _x_net() -> str:
    lines: Iterable[str] = (ROOT / "benchmarks" / "reference" / "go.mod").read_text().splitlines()
    return next(line.split()[-1] for line in lines if "golang.org/x/net " in line)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{len(models)} × {models[0]}" if models else "unknown"
