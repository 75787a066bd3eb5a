"""Which version this is, and of which commit.

The commit is a file beside this module, written when a distribution is built (`hatch_build.py`). In a checkout that is
used as it is, git knows it.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
from pathlib import Path

DIGITS = 12
GIT_SECONDS = 5.0
COMMIT_FILE = Path(__file__).with_name("commit.txt")


def version() -> str:
    """The version of this installation."""
    return importlib.metadata.version("moorline")


def version_line(program: str) -> str:
    """What ``--version`` prints: program, version, and the commit where it is known."""
    commit = installed_commit()
    return f"{program} {version()}" + (f" (commit {commit})" if commit else "")


def installed_commit(commit_file: Path = COMMIT_FILE) -> str:
    """The commit of which this is an installation; empty where nobody knows."""
    try:
        return commit_file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return commit_of(commit_file.parent.parent)


def commit_of(checkout: Path) -> str:
    """The commit that is checked out in this very folder, ``-dirty`` behind it where files differ from it.

    Empty where the folder is no checkout, or git is missing or does not want to. A repository around the folder does not
    count: it is somebody else's.
    """
    if not (checkout / ".git").exists():
        return ""
    # Another repository may be named there, as in a hook of git.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    describe = ["git", "describe", "--always", "--dirty", "--exclude=*", f"--abbrev={DIGITS}"]
    try:
        found = subprocess.run(  # noqa: S603 - fixed arguments
            describe, cwd=checkout, env=environment, capture_output=True, text=True, timeout=GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""
