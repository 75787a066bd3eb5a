"""What single stages of a request cost: bytecodes that run, and nanoseconds of the quickest of many rounds.

The count is the same on every machine and under any load, so that a regression of a few percent is seen; it does not
see what happens inside of C functions, for which the nanoseconds are there.

``python -m benchmarks.micro`` prints both. ``--check`` only counts, and fails where a stage runs more than three percent
more bytecodes than the baseline says. ``--record`` writes the baseline, `baseline.json`. It holds for one minor version
of Python, since each has bytecodes of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.stages import Stage, stages
from operations.logs import LogConfig, configure_logging

BASELINE = Path(__file__).with_name("baseline.json")
ROUNDS = 40
CALLS = 200
TOLERANCE = 0.03
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def nanoseconds(stage: Stage) -> float:
    """Of one call, in the quickest round."""
    best = float("inf")
    for number in range(ROUNDS):
        arguments = stage.arguments(range(number * CALLS, (number + 1) * CALLS))
        started = time.perf_counter_ns()
        for argument in arguments:
            stage.work(argument)
        best = min(best, time.perf_counter_ns() - started)
    return best / CALLS


def bytecodes(stage: Stage) -> float:
    """That run in one call, once caches are warm. Instructions of the frames that call it are not counted."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before_the_first = ROUNDS * CALLS
    for argument in stage.arguments(range(before_the_first, before_the_first + CALLS)):
        stage.work(argument)
    for argument in stage.arguments(range(before_the_first + CALLS, before_the_first + 2 * CALLS)):
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            stage.work(argument)
        finally:
            sys.settrace(before)
    return count / CALLS


@contextlib.contextmanager
def logging_to_nowhere() -> Iterator[None]:
    """The access log as in earnest, but for the last step."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with Path("/dev/null").open("w") as sink:
        configure_logging(LogConfig(format="json"), stream=sink)
        try:
            yield
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)


def counted() -> dict[str, float]:
    """The bytecodes of every stage."""
    with logging_to_nowhere():
        return {stage.name: round(bytecodes(stage), 1) for stage in stages()}


def baseline() -> tuple[str, dict[str, float]]:
    """The version of Python for which it holds, and the bytecodes of every stage."""
    document = json.loads(BASELINE.read_text())
    return document["python"], document["bytecodes"]


def regressions(found: dict[str, float], recorded: dict[str, float]) -> list[str]:
    """What is dearer than recorded, or not recorded, or recorded and gone; a sentence each."""
    said = []
    for name, count in found.items():
        before = recorded.get(name)
        if before is None:
            said.append(f"{name}: {count:.0f} bytecodes, and nothing in the baseline")
        elif count > before * (1 + TOLERANCE):
            said.append(
                f"{name}: {count:.0f} bytecodes, {count / before - 1:.1%} more than the baseline's {before:.0f}"
            )
    said += [f"{name}: in the baseline, and no stage any more" for name in recorded.keys() - found.keys()]
    return said


def record() -> None:
    """Write the baseline."""
    BASELINE.write_text(json.dumps({"python": PYTHON, "bytecodes": counted()}, indent=1) + "\n")
    print(f"written: {BASELINE}")


def check() -> int:
    """The exit status: 1 where something is dearer than the baseline says, 2 where it says nothing of this Python."""
    version, recorded = baseline()
    if version != PYTHON:
        print(f"the baseline is for Python {version}, and this is {PYTHON}", file=sys.stderr)
        return 2
    said = regressions(counted(), recorded)
    for line in said:
        print(line, file=sys.stderr)
    if said:
        print("if that is meant: nox -s bench -- micro --record", file=sys.stderr)
    return 1 if said else 0


def show() -> None:
    """Print the table."""
    version, recorded = baseline() if BASELINE.exists() else ("", {})
    print("| stage | bytecodes | to the baseline | ns |\n|---|---|---|---|")
    with logging_to_nowhere():
        for stage in stages():
            quickest, count = nanoseconds(stage), bytecodes(stage)
            before = recorded.get(stage.name) if version == PYTHON else None
            said = "" if before is None else f"{count / before - 1:+.1%}"
            print(f"| {stage.name} | {count:.0f} | {said} | {quickest:.0f} |", flush=True)


def main() -> int:
    """Print the table, or compare with the baseline, or write it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.micro", description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where a stage runs 3 %% more than the baseline says")
    parser.add_argument("--record", action="store_true", help="write the baseline")
    arguments = parser.parse_args()
    if arguments.record:
        record()
    elif arguments.check:
        return check()
    else:
        show()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
