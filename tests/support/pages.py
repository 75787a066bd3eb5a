"""The fenced blocks of a page, and running those that are commands, as they stand there.

A comment on the line above a block of commands says how it is to be taken:

    <!-- not run: why -->              a reader runs it; no test can
    <!-- background: a line -->        it runs until it is stopped; it is up once it has said the line
    <!-- with a cluster -->            it needs a kube-apiserver, so only the end-to-end tests run it

Paths that belong to the machine (`/etc/moorline`) are put below a folder of the test. Nothing else is changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

MACHINE_FOLDERS = ("/etc/moorline",)

_MARK = re.compile(r"<!-- (?P<kind>not run|background|with a cluster)(?:: (?P<text>.*))? -->")
_FENCE = re.compile(r"```(?P<language>\w+)(?: title=\"(?P<title>[^\"]*)\")?")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fenced block."""

    heading: str
    """The last heading above it, of any level."""
    language: str
    title: str
    mark: str
    """How to take it; "" where nothing is said."""
    mark_text: str
    text: str


def blocks_of(path: Path) -> list[Block]:
    """The fenced blocks of a page that begin at the left edge, in their order."""
    found: list[Block] = []
    heading, before = "", ""
    lines = iter(path.read_text().splitlines())
    for line in lines:
        if fence := _FENCE.fullmatch(line):
            body = []
            for inner in lines:
                if inner == "```":
                    break
                body.append(inner + "\n")
            mark = _MARK.fullmatch(before)
            found.append(
                Block(
                    heading=heading,
                    language=fence["language"],
                    title=fence["title"] or "",
                    mark=mark["kind"] if mark else "",
                    mark_text=(mark["text"] or "") if mark else "",
                    text="".join(body),
                )
            )
        elif line.startswith("#"):
            heading = re.sub(r" \{#.*\}", "", line.lstrip("# "))
        before = line
    return found


class Machine:
    """A folder that stands for a machine, and the environment of those who type commands there."""

    def __init__(
        self, folder: Path, environment: Mapping[str, str], *, places: Mapping[str, Path] | None = None
    ) -> None:
        """``places`` says where single folders of the machine are, when not in ``folder``."""
        self.folder = folder
        self._places = dict(places or {})
        self._environment = {"PATH": os.environ["PATH"], "HOME": str(folder), **environment}

    def place(self, path: str) -> Path:
        """Where a path of a page is."""
        return self._places.get(path) or self.folder / path.lstrip("/")

    def write(self, block: Block) -> None:
        """Write the file that a block shows, under the name in its title."""
        path = self.place(block.title)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._placed(block.text))

    def run(self, block: Block) -> str:
        """Run a block to its end, which must be a success; what it printed on stdout."""
        done = subprocess.run(
            self._shell(block),
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"$ {block.text}[{done.returncode}]\n{done.stdout}{done.stderr}"
        return done.stdout

    @contextlib.contextmanager
    def running(self, block: Block, *, seconds: float = 20) -> Iterator[str]:
        """Run a block until the end of the ``with``; gives what it had said when it was up."""
        log = self.folder / "background.log"
        with log.open("wb") as output:
            # A group of its own, so that what the shell has started gets the signal as well.
            process = subprocess.Popen(
                self._shell(block),
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield self._await_line(process, log, block, seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)

    def _await_line(self, process: subprocess.Popen[bytes], log: Path, block: Block, seconds: float) -> str:
        deadline = time.monotonic() + seconds
        while block.mark_text not in (said := log.read_text()):
            assert process.poll() is None, f"$ {block.text}[{process.returncode}]\n{said}"
            assert time.monotonic() < deadline, f"$ {block.text} never said {block.mark_text!r}\n{said}"
            time.sleep(0.05)
        return said

    def _shell(self, block: Block) -> list[str]:
        return ["bash", "-euo", "pipefail", "-c", self._placed(block.text)]

    def _placed(self, text: str) -> str:
        for folder in MACHINE_FOLDERS:
            text = text.replace(folder, str(self.place(folder)))
        return text
