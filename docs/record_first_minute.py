"""Record the first minute: `./try` in a clean clone, what it prints typed in a second terminal, drawn as an SVG.

    python docs/record_first_minute.py [OUTPUT]

Everything that is shown has been printed by the commands, on pseudo-terminals; only the folder of the clone is given a
name that does not change, and long waits are cut short. Needs git, and kubectl on the PATH.
"""

from __future__ import annotations

import dataclasses
import html
import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHOWN_FOLDER = "/home/me/moorline"
LONGEST_PAUSE = 0.6
"""Waiting is not worth watching; longer pauses become this one."""

COLUMNS = 116
ROWS = 60
CHARACTER, LINE, MARGIN, BAR = 7.25, 17, 14, 26
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
COLOURS = {"typed": "#f0f3f6", "ready": "#7ee787", "plain": "#b6c2cf"}


@dataclasses.dataclass
class Line:
    """One line on a screen."""

    text: str
    at: float
    """Seconds since the recording began."""
    is_typed: bool = False


class Recording:
    """The lines of one terminal."""

    def __init__(self, title: str, began: float) -> None:
        self.title = title
        self.lines: list[Line] = []
        self._began = began

    def type(self, text: str) -> None:
        self.lines.append(Line(f"$ {text}", time.monotonic() - self._began, is_typed=True))

    def show(self, text: str) -> None:
        self.lines.append(Line(text, time.monotonic() - self._began))


class Program:
    """A program on a pseudo-terminal of its own."""

    def __init__(self, command: Sequence[str], recording: Recording, cwd: Path, environment: dict[str, str]) -> None:
        self._recording = recording
        self._ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (ROWS, COLUMNS))
        self._process = subprocess.Popen(
            ["setsid", "--ctty", *command], stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=environment
        )
        os.close(theirs)
        self._rest = ""

    def read_until(self, text: str, *, seconds: float = 300) -> None:
        """Record lines up to one that holds ``text``, which may be a prompt."""
        deadline = time.monotonic() + seconds
        while True:
            line, separator, rest = self._rest.partition("\n")
            if separator:
                self._rest = rest
                self._recording.show(line.rstrip("\r"))
                if text and text in line:
                    return
            elif text and text in self._rest:
                return
            elif not self._read(deadline):
                if text:
                    raise SystemExit(f"{text!r} did not come: {self._rest!r}")
                return

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def end(self) -> None:
        """Ctrl-C."""
        self.type("\x03")
        self.read_until("")
        self._process.wait(10)
        os.close(self._ours)

    def wait(self) -> None:
        """Until it ends by itself."""
        self.read_until("")
        self._process.wait(10)
        os.close(self._ours)

    def _read(self, deadline: float) -> bool:
        if not select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return False
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # the program has closed its side
            return False
        self._rest += data.decode(errors="replace")
        return bool(data)


def record(clone: Path) -> list[Recording]:
    """Both terminals."""
    environment = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"}
    environment |= {"HOME": str(clone.parent), "TERM": "xterm"}
    began = time.monotonic()
    first, second = Recording("a clean clone", began), Recording("another terminal", began)
    first.type("./try")
    quickstart = Program(["./try"], first, clone, environment)
    quickstart.read_until(":8080")

    environment["KUBECONFIG"] = str(clone / "moorline-quickstart" / "kubeconfig")
    second.type(f"export KUBECONFIG={environment['KUBECONFIG']}")
    for typed in things_to_try(first):
        time.sleep(0.6)
        second.type(typed)
        program = Program(["sh", "-c", typed], second, clone, environment)
        if "logs -f" in typed:
            program.read_until("GET /")
            program.read_until("GET /")
            program.end()
        elif "exec -it" in typed:
            program.read_until("/# ")
            program.type("hostname\r")
            program.read_until("hello-")
            program.read_until("/# ")
            program.type("exit\r")
            program.wait()
        elif "port-forward" in typed:
            program.read_until("Forwarding from")
            port = second.lines[-1].text.split()[2].rpartition(":")[2]
            program.read_until("", seconds=0.5)
            second.type(f"curl http://127.0.0.1:{port}")
            curl = ["curl", "-sS", "--noproxy", "*", f"http://127.0.0.1:{port}"]
            Program(curl, second, clone, environment).wait()
            program.end()
        else:
            program.wait()
    quickstart.end()
    for recording in (first, second):
        for line in recording.lines:
            line.text = line.text.replace(str(clone), SHOWN_FOLDER)
    return [first, second]


def things_to_try(recording: Recording) -> list[str]:
    """The commands that `moorline quickstart` has printed."""
    return [line.text.strip() for line in recording.lines if line.text.startswith("      kubectl ")]


def cut_pauses(recordings: list[Recording]) -> None:
    """Make long pauses short, in both terminals alike."""
    shift = previous = 0.0
    for line in sorted((line for recording in recordings for line in recording.lines), key=lambda line: line.at):
        shift += max(0.0, line.at - shift - previous - LONGEST_PAUSE)
        line.at -= shift
        previous = line.at


def draw(recordings: list[Recording]) -> str:
    """The SVG: lines appear as they came; where nothing moves, all of them are there."""
    width = int(COLUMNS * CHARACTER + 2 * MARGIN)
    parts: list[str] = []
    top = 0
    for recording in recordings:
        height = BAR + len(recording.lines) * LINE + MARGIN
        parts.append(f'<rect y="{top}" width="{width}" height="{height}" rx="8" fill="#0d1117"/>')
        parts.append(f'<text class="bar" x="{width / 2:g}" y="{top + 17}">{html.escape(recording.title)}</text>')
        for number, line in enumerate(recording.lines):
            kind = "typed" if line.is_typed else "ready" if line.text.startswith("ready") else "plain"
            y = top + BAR + (number + 1) * LINE - 4
            if line.text:
                text = html.escape(line.text)
                parts.append(f'<text class="{kind}" x="{MARGIN}" y="{y}" style="--at:{line.at:.2f}s">{text}</text>')
        top += height + MARGIN
    styles = "".join(f".{kind}{{fill:{colour}}}" for kind, colour in COLOURS.items())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top - MARGIN}" width="{width}" xml:space="preserve">\n'
        "<!-- Made by docs/record_first_minute.py. -->\n"
        f"<style>text{{font:12px {FONT};white-space:pre}}{styles}"
        ".bar{fill:#7d8590;text-anchor:middle}"
        "@media(prefers-reduced-motion:no-preference){text:not(.bar){animation:come .05s var(--at) backwards}}"
        "@keyframes come{from{opacity:0}}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def main() -> None:
    """Record and write."""
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "first-minute.svg"
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name) / "moorline"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        recordings = record(clone)
    cut_pauses(recordings)
    output.write_text(draw(recordings), encoding="utf-8")


if __name__ == "__main__":
    # Children of a recording that fails end with their terminals.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main()
