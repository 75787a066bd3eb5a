"""Where kas and agentk spend their time under load: the functions that py-spy saw most often at the end of a stack.

``python -m benchmarks.profile [--seconds S] [--lines N]``. Time that a process waits for work is left out.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.stand import authorization, standing

_LINE_NUMBER = re.compile(r":\d+\)$")


def seen(raw: str) -> Counter[str]:
    """Samples by function, from py-spy's raw format: a stack, and how often it was seen."""
    found: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        function = _LINE_NUMBER.sub(")", stack.rpartition(";")[2])
        if "get_events" not in function:
            found[function] += int(count)
    return found


def main() -> None:
    """Profile and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--lines", type=int, default=25)
    arguments = parser.parse_args()
    py_spy = Path(sys.executable).with_name("py-spy")
    program = str(py_spy) if py_spy.exists() else shutil.which("py-spy")
    if program is None:
        raise SystemExit("the profile needs py-spy: pip install py-spy")
    with tempfile.TemporaryDirectory(prefix="moorline-bench-") as folder, standing(Path(folder)) as stand:
        candidate = stand.candidates["moorline"]
        load = [str(stand.load), "-h", "127.0.0.1", "-p", str(candidate.port), "-P", f"{candidate.path}/small"]
        load += ["-u", "-c", "64", "-d", str(2 * arguments.seconds + 6)]
        for name, value in authorization(candidate).items():
            load += ["-X", f"{name}: {value}"]
        running = subprocess.Popen(load, stdout=subprocess.DEVNULL)
        try:
            for process, pid in zip(("kas", "agentk"), candidate.pids, strict=True):
                output = Path(folder) / f"{process}.raw"
                command = [program, "record", "-d", str(arguments.seconds), "-r", "400", "-f", "raw", "-p", str(pid)]
                subprocess.run([*command, "-o", str(output)], check=True, capture_output=True)
                found = seen(output.read_text())
                total = found.total()
                print(f"{process}: {total} samples")
                for function, count in found.most_common(arguments.lines):
                    print(f"{count / total:7.1%}  {function}")
        finally:
            running.terminate()
            running.wait()


if __name__ == "__main__":
    main()
