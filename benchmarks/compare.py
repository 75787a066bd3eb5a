"""Whether two runs agree: ``python -m benchmarks.compare A.json B.json``.

For each ratio of both runs it says whether the intervals have a value in common. Exit status 1 where one does not.
Of many ratios that are the same, a few in a thousand disagree by chance.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.results import COLUMNS, Results, read


def compare(first: Results, second: Results) -> tuple[str, int]:
    """A table in Markdown, and how many ratios disagree."""
    ratios, others = first.ratios(), second.ratios()
    lines = ["| row | candidate | what | first run | second run | |", "|---|---|---|---|---|---|"]
    agreeing = disagreeing = 0
    for key, ratio in ratios.items():
        other = others.get(key)
        if other is None:
            continue
        agree = ratio.agrees_with(other)
        agreeing += agree is True
        disagreeing += agree is False
        said = {True: "agree", False: "**differ**", None: "one round: no interval"}[agree]
        title, candidate, name = key
        lines.append(f"| {title} | {candidate} | {COLUMNS[name]} | {ratio} | {other} | {said} |")
    missing = sorted({key[0] for key in set(ratios) ^ set(others)})
    lines += ["", f"{agreeing} of {agreeing + disagreeing} ratios agree."]
    lines += [f"Only in one of the runs: {title}." for title in missing]
    return "\n".join(lines), disagreeing


def main() -> int:
    """Print the table; the exit status says whether all agree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("first", type=Path, metavar="A.json")
    parser.add_argument("second", type=Path, metavar="B.json")
    arguments = parser.parse_args()
    text, disagreeing = compare(read(arguments.first), read(arguments.second))
    print(text)
    return 1 if disagreeing else 0


if __name__ == "__main__":
    raise SystemExit(main())
