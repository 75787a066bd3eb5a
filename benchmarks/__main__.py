"""``python -m benchmarks``: every row, all candidates of a row in turn, pass after pass; minutes.

``quick`` takes the rows that matter most, in under a minute. ``--publish`` puts the tables into docs/performance.md.
``--only TEXT`` takes the rows whose title has the text. Loopback only; everything that is started is ended.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import aims
from benchmarks.link import unavailable
from benchmarks.page import publish
from benchmarks.results import DEFAULT_FILE, Results, circumstances
from benchmarks.scenarios import REFERENCES, SCENARIOS, SLOW, Round, Scenario
from benchmarks.stand import Stand, check_programs

QUICK_SECONDS = 52.0
FEWEST_PASSES = 3


def scheduled(scenarios: list[Scenario], passes: int, *, quick: bool) -> Iterator[list[Scenario]]:
    """What each pass measures: a scenario of fewer rounds than there are passes is in passes that lie far apart."""
    for number in range(passes):
        chosen = []
        for scenario in scenarios:
            rounds = min(passes, scenario.quick_rounds if quick else scenario.rounds)
            if rounds and (number * rounds) % passes < rounds:
                chosen.append(scenario)
        yield chosen


def measure(results: Results, stand: Stand, chosen: list[Scenario], passes: int, *, ends_at: float | None) -> None:
    """All passes. Each has new processes, so that a run says what is true of more than one of them.

    A quick run, which is one that has an end, has not; it leaves out passes for which no time is left, but for the
    first three.
    """
    quick = ends_at is not None
    plan = list(scheduled(chosen, passes, quick=quick))
    needed = {name: None for scenarios in plan for scenario in scenarios for name in scenario.needs}
    if ends_at is not None:
        with stand.running(needed) as candidates:
            for turn, scenarios in enumerate(plan):
                began = time.monotonic()
                _one_pass(results, Round(stand, candidates, turn, quick), scenarios)
                now = time.monotonic()
                if turn + 1 >= FEWEST_PASSES and now + (now - began) > ends_at:
                    break
        return
    for turn, scenarios in enumerate(plan):
        with stand.running(needed) as candidates:
            _one_pass(results, Round(stand, candidates, turn, quick), scenarios)


def _one_pass(results: Results, run: Round, scenarios: list[Scenario]) -> None:
    for scenario in scenarios:
        started = time.monotonic()
        for title, candidate, numbers in scenario.measure(run):
            results.add(title, candidate, numbers)
        seconds = time.monotonic() - started
        print(f"round {run.turn + 1}: {scenario.rows[0]} ({seconds:.1f} s)", file=sys.stderr, flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("length", nargs="?", choices=("quick", "full"), default="full")
    parser.add_argument("--only", default="", metavar="TEXT")
    parser.add_argument("--passes", type=int, metavar="N", help="how many rounds at most; 7, or 5 in a quick run")
    parser.add_argument("--publish", action="store_true")
    parser.add_argument("--results", type=Path, default=DEFAULT_FILE)
    arguments = parser.parse_args()
    check_programs()
    quick = arguments.length == "quick"
    passes = arguments.passes or (5 if quick else 7)
    chosen = [scenario for scenario in SCENARIOS if any(arguments.only in row for row in scenario.rows)]
    if unavailable():
        print(f"left out: {SLOW} ({unavailable()})", file=sys.stderr)
        chosen = [scenario for scenario in chosen if SLOW not in scenario.rows]
    results = Results(circumstances(), REFERENCES)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="moorline-bench-") as folder:
        stand = Stand(Path(folder))
        stand.build()
        measure(results, stand, chosen, passes, ends_at=started + QUICK_SECONDS if quick else None)
    results.circumstances["took"] = f"{time.monotonic() - started:.0f} s"
    results.write(arguments.results)
    for title in results.rows:
        print(results.table(title))
    print(aims.table(results))
    if arguments.publish:
        publish(results)


if __name__ == "__main__":
    main()
