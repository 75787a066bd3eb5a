"""Where kas and agentk spend their time under load: the functions that py-spy saw most often at the end of a stack.

``python -m benchmarks.profile [--seconds S] [--lines N]``: 64 callers, the plain front, TLS on the tunnel. Time that a
process waits for work is left out. Needs the right to trace one's own processes (root, or ptrace_scope 0).
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.candidates import Candidate
from benchmarks.loads import load_command
from benchmarks.stand import Stand, check_programs

_LINE_NUMBER = re.compile(r":\d+\)$")
_SAMPLES_PER_SECOND = 400


def seen(raw: str) -> Counter[str]:
    """Samples by function, from py-spy's raw format: a stack, and how often it was seen."""
    found: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        function = _LINE_NUMBER.sub(")", stack.rpartition(";")[2])
        if "get_events" not in function:
            found[function] += int(count)
    return found


def report(process: str, found: Counter[str], lines: int) -> str:
    """The dearest functions with their shares, as a table in Markdown."""
    total = found.total()
    rows = [f"| {count / total:.1%} | `{function}` |" for function, count in found.most_common(lines)]
    return "\n".join([f"**{process}** ({total} samples)\n", "| share | function |", "|---|---|", *rows, ""])


def _program() -> str:
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        raise SystemExit("the profile needs py-spy: run it by `nox -s bench -- profile`, or `pip install py-spy`")
    return program


def profile(program: str, stand: Stand, candidate: Candidate, seconds: int) -> dict[str, Counter[str]]:
    """Samples of kas and agentk, taken at the same time."""
    load = [*load_command(stand, candidate, "/small"), "-u", "-c", "64", "-d", str(seconds + 5)]
    running = subprocess.Popen(load, stdout=subprocess.DEVNULL)
    try:
        time.sleep(1)
        outputs = {name: stand.folder / f"{name}.raw" for name in ("kas", "agentk")}
        samplers = []
        for pid, output in zip(candidate.pids, outputs.values(), strict=True):
            command = [program, "record", "-d", str(seconds), "-r", str(_SAMPLES_PER_SECOND), "-f", "raw"]
            command += ["--nonblocking", "-p", str(pid), "-o", str(output)]
            samplers.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        for sampler in samplers:
            said, _ = sampler.communicate(timeout=seconds + 60)
            if sampler.returncode:
                raise SystemExit(f"py-spy has failed: {said.strip()[-500:]}")
        return {name: seen(output.read_text()) for name, output in outputs.items()}
    finally:
        running.kill()
        running.wait()


def main() -> None:
    """Profile and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--lines", type=int, default=10)
    arguments = parser.parse_args()
    check_programs()
    program = _program()
    with tempfile.TemporaryDirectory(prefix="moorline-bench-") as folder:
        stand = Stand(Path(folder))
        stand.build()
        with stand.running(["moorline"]) as candidates:
            found = profile(program, stand, candidates["moorline"], arguments.seconds)
    for process, samples in found.items():
        print(report(process, samples, arguments.lines))


if __name__ == "__main__":
    main()
