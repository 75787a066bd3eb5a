"""`./try` says in plain words what it lacks. That it works is tested in `tests/e2e/test_first_command.py`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TRY = Path(__file__).parents[1] / "try"


def attempt(programs: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a copy of it that has no environment yet."""
    checkout = programs.parent / "checkout"
    checkout.mkdir()
    shutil.copy(TRY, checkout)
    return subprocess.run(
        ["/bin/sh", checkout / "try"],
        env={"PATH": str(programs), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A PATH without any Python."""
    directory = tmp_path / "programs"
    directory.mkdir()
    for name in ("sh", "cat", "dirname"):
        program = shutil.which(name)
        assert program is not None
        (directory / name).symlink_to(program)
    return directory


def write_python(path: Path, lacks: str) -> None:
    """A Python that misbehaves: it fails where its arguments hold one of these words."""
    path.write_text(f'#!/bin/sh\ncase "$*" in {lacks}) exit 1;; esac\nexec "{sys.executable}" "$@"\n')
    path.chmod(0o755)


@pytest.mark.parametrize("name", ["", "python3"])
def test_no_python_that_is_new_enough(programs: Path, name: str) -> None:
    if name:
        write_python(programs / name, "*version_info*")
    ended = attempt(programs)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("try: no Python >= 3.11 found;")
    assert len(ended.stderr.splitlines()) == 1


def test_a_python_that_was_named_is_the_only_one_that_is_tried(programs: Path) -> None:
    write_python(programs / "python3", "nothing")
    ended = attempt(programs, PYTHON="/nowhere/python3")

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("try: no Python >= 3.11 found;")


@pytest.mark.parametrize(
    ("lacks", "sentence"),
    [
        ("*venv*", "has no module venv"),
        ("*ensurepip*|*pip*", "has neither ensurepip nor pip"),
    ],
)
def test_a_python_without_what_makes_environments(programs: Path, lacks: str, sentence: str) -> None:
    write_python(programs / "python3", lacks)
    ended = attempt(programs)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert sentence in ended.stderr
    assert "apt install python3-venv" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_pip_that_fails_is_not_hidden(programs: Path) -> None:
    """There is nothing to install in this checkout."""
    write_python(programs / "python3", "*ensurepip*")
    ended = attempt(programs, PIP_NO_INDEX="1", HOME=str(programs))

    assert ended.returncode == 2
    assert "try: pip could not install" in ended.stderr.splitlines()[-1]
