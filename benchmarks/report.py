"""Results: medians and ratios of interleaved rounds, as a table for people and as a file for the next comparison."""

from __future__ import annotations

import dataclasses
import json
import platform
import statistics
import subprocess
from importlib.metadata import version
from pathlib import Path

from benchmarks.scenarios import Numbers

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"

COLUMNS = {
    "rps": "requests/s",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "MBps": "MB/s",
    "cpu": "CPU s",
    "cpu_server": "of it server",
    "cpu_agent": "of it agent",
    "cpu_per_second": "CPU s/s",
    "server_KiB": "server KiB each",
    "agent_KiB": "agent KiB each",
    "server_MiB": "server MiB",
    "agent_MiB": "agent MiB",
}


@dataclasses.dataclass
class Row:
    """All rounds of one scenario: by candidate, the numbers of each."""

    title: str
    rounds: dict[str, list[Numbers]]
    references: dict[str, str]

    def median(self, candidate: str, name: str) -> float:
        """Over the rounds."""
        return statistics.median(numbers[name] for numbers in self.rounds[candidate])

    def ratio(self, candidate: str, name: str) -> tuple[float, float] | None:
        """The median of the ratios to the reference of the same round, and half of what lies between their quartiles."""
        reference = self.rounds.get(self.references.get(candidate, ""))
        if reference is None or name not in reference[0] or not all(numbers[name] for numbers in reference):
            return None
        ratios = [own[name] / other[name] for own, other in zip(self.rounds[candidate], reference, strict=True)]
        if len(ratios) < 3:
            return statistics.median(ratios), 0.0
        low, _, high = statistics.quantiles(ratios, n=4)
        return statistics.median(ratios), (high - low) / 2

    def table(self) -> str:
        """In Markdown. A ratio stands in brackets behind its number."""
        names = [name for name in COLUMNS if name in next(reversed(self.rounds.values()))[0]]
        lines = [f"| | {' | '.join(COLUMNS[name] for name in names)} |", "|---" * (len(names) + 1) + "|"]
        for candidate, rounds in self.rounds.items():
            cells = [self._cell(candidate, name) if name in rounds[0] else "" for name in names]
            lines.append(f"| {candidate} | {' | '.join(cells)} |")
        return f"**{self.title}**\n\n" + "\n".join(lines) + "\n"

    def _cell(self, candidate: str, name: str) -> str:
        text = f"{self.median(candidate, name):.3g}"
        ratio = self.ratio(candidate, name)
        return text if ratio is None else f"{text} ({ratio[0]:.2f} ± {ratio[1]:.2f})"


def circumstances() -> dict[str, str]:
    """What the numbers depend on."""
    return {
        "commit": _output("git", "rev-parse", "--short", "HEAD") + (" and changes" if _output(*_STATUS) else ""),
        "date": _output("date", "-u", "+%Y-%m-%d %H:%M UTC"),
        "python": platform.python_version(),
        "trio": version("trio"),
        "go": _output("go", "env", "GOVERSION"),
        "machine": f"{_processor()}, {platform.machine()}, Linux {platform.release()}",
        "load before": Path("/proc/loadavg").read_text().split()[0],
    }


_STATUS = ("git", "status", "--porcelain", "--", "tunnel", "agent", "server", "operations")


def _output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{len(models)} × {models[0]}" if models else "unknown"


def write(rows: list[Row], facts: dict[str, str], path: Path) -> None:
    """Everything that was measured, as JSON."""
    path.parent.mkdir(exist_ok=True)
    document = {"circumstances": facts, "rows": [{"title": row.title, "rounds": row.rounds} for row in rows]}
    path.write_text(json.dumps(document, indent=1) + "\n")


def publish(rows: list[Row], facts: dict[str, str]) -> None:
    """Put the tables into the page."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    said = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    tables = "\n".join(row.table() for row in rows)
    PAGE.write_text(f"{before}{BEGIN}\n\n{said}\n\n{tables}\n{END}{after}")
