"""The first command of the README, on a machine with an empty home and little else, from a clean clone.

It installs with pip, as a stranger's machine would: from wherever pip is configured to find packages.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from e2e.controlplane.build import Assets
from support.moorline_process import MoorlineProcess, running

ROOT = Path(__file__).parents[2]
INSTALL_SECONDS = 400


def first_command() -> str:
    """What the README tells a stranger to type first."""
    match = re.search(r"^```sh\n(.*?)\n```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert match is not None
    (command,) = match.group(1).splitlines()
    return command


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of this checkout, with what has not been committed yet."""
    target = tmp_path_factory.mktemp("stranger") / "moorline"
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listing.stdout.splitlines():
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    return target


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an empty home, and the few programs that there are."""
    directory = tmp_path_factory.mktemp("machine")
    (directory / "home").mkdir()
    programs = directory / "programs"
    programs.mkdir()
    for name in ("sh", "cat", "dirname", "git", "curl"):
        program = shutil.which(name)
        assert program is not None, f"{name} is not installed"
        (programs / name).symlink_to(program)
    # Not a link: a virtual environment that is made with Python looks for the rest of it beside the program.
    python = programs / "python3"
    python.write_text(f'#!/bin/sh\nexec "{Path(sys.base_prefix) / "bin" / "python3"}" "$@"\n')
    python.chmod(0o755)
    return directory


@contextmanager
def typed(command: str, clone: Path, machine: Path, *more_programs: Path) -> Iterator[MoorlineProcess]:
    """The command runs in the clone, started as a shell at a terminal would start it."""
    settings = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    path = os.pathsep.join(map(str, [machine / "programs", *more_programs]))
    environment = {**settings, "HOME": str(machine / "home"), "PATH": path}
    words = shlex.split(command)
    with running(words, clone / "moorline-quickstart", environment=environment, cwd=clone) as process:
        process.wait_for(process.stdout, "ready", seconds=INSTALL_SECONDS)
        yield process


@pytest.mark.timeout(INSTALL_SECONDS + 60)
def test_the_first_command_shows_the_nodes_through_the_tunnel(clone: Path, machine: Path, assets: Assets) -> None:
    """Without kubectl, and then with it: a second start with what the first one has made."""
    kubectl = machine / "kubectl"
    kubectl.mkdir()
    (kubectl / "kubectl").symlink_to(assets.kubectl)
    for more, shown in (((), "GET /api/v1/nodes"), ((kubectl,), "$ kubectl get nodes")):
        with typed(first_command(), clone, machine, *more) as process:
            header = process.stdout.index(process.wait_for(process.stdout, "NAME "))
            last = process.stdout.index(process.wait_for(process.stdout, "   5."))
            assert process.stdout[header - 1] == f"{shown}\n"
            assert all("sandbox" in line for line in process.stdout[header + 1 : header + 3])
            assert last > header
            with process.client() as client:
                assert client.get("/version").json()["gitVersion"].endswith("-sandbox")
            status, _ = process.interrupt()
            assert (status, process.session()) == (0, [])
