"""The bytecodes of single stages: a regression that no clock would see on a busy machine."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import micro
from benchmarks.stages import Stage

ROOT = Path(__file__).parents[2]
HERE_IS_INSTALLED = f"import sys; sys.path.append({str(ROOT)!r})"


@pytest.mark.slow
def test_no_stage_of_a_request_runs_more_bytecodes_than_the_baseline_says():
    version, _ = micro.baseline()
    if version != micro.PYTHON:
        pytest.skip(f"the baseline is for Python {version}: each minor version has bytecodes of its own")
    # In a process of its own, where nobody measures coverage.
    code = f"{HERE_IS_INSTALLED}; from benchmarks.micro import check; sys.exit(check())"
    checked = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_the_count_is_the_same_each_time_and_grows_with_the_work():
    def stage(length):
        return Stage("sum", lambda number: sum([number for _ in range(length)]), list)

    assert micro.bytecodes(stage(10)) == micro.bytecodes(stage(10))
    assert micro.bytecodes(stage(11)) > micro.bytecodes(stage(10))


def test_a_stage_that_has_become_dearer_is_named():
    recorded = {"parse": 100.0, "encode": 100.0, "gone": 1.0}
    said = micro.regressions({"parse": 104.0, "encode": 102.9, "new": 5.0}, recorded)
    assert said == [
        "parse: 104 bytecodes, 4.0% more than the baseline's 100",
        "new: 5 bytecodes, and nothing in the baseline",
        "gone: in the baseline, and no stage any more",
    ]
