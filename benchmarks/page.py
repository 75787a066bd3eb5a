"""The results of a run in docs/performance.md."""

from __future__ import annotations

from benchmarks import aims
from benchmarks.results import ROOT, Results

PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def publish(results: Results) -> None:
    """Put circumstances, aims and tables into the page, in the place of those that are there."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    said = "\n".join(f"- {name}: {value}" for name, value in results.circumstances.items())
    tables = "\n".join(results.table(title) for title in results.rows)
    PAGE.write_text(f"{before}{BEGIN}\n\n{said}\n\n{aims.table(results)}\n{tables}\n{END}{after}")
