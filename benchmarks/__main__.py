"""``python -m benchmarks``: every row, all candidates of a row in turn, round after round; minutes.

``quick`` takes the rows that matter most, in under a minute. ``--publish`` puts the tables into docs/performance.md.
``--only TEXT`` takes the rows whose title has the text. Loopback only; everything that is started is ended.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.report import ROOT, Row, circumstances, publish, write
from benchmarks.scenarios import SCENARIOS, Numbers, Scenario
from benchmarks.stand import Stand, standing


def measure(stand: Stand, scenario: Scenario, *, quick: bool) -> Row:
    """All rounds of one scenario, the candidates in turn within each."""
    rounds: dict[str, list[Numbers]] = {name: [] for name in scenario.candidates}
    for _ in range(min(scenario.rounds, 3) if quick else scenario.rounds):
        for name in scenario.candidates:
            rounds[name].append(scenario.measure(stand, stand.candidates[name], quick))
    return Row(scenario.title, rounds, {name: stand.candidates[name].reference for name in scenario.candidates})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("length", nargs="?", choices=("quick", "full"), default="full")
    parser.add_argument("--only", default="", metavar="TEXT")
    parser.add_argument("--publish", action="store_true")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "last.json")
    arguments = parser.parse_args()
    quick = arguments.length == "quick"
    facts = circumstances()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="moorline-bench-") as folder, standing(Path(folder)) as stand:
        for scenario in SCENARIOS:
            if arguments.only in scenario.title and (scenario.in_quick or not quick):
                rows.append(measure(stand, scenario, quick=quick))
                print(rows[-1].table(), flush=True)
    write(rows, facts, arguments.results)
    if arguments.publish:
        publish(rows, facts)


if __name__ == "__main__":
    main()
