"""Whether the packages that a command is about to import are its own.

Their names are common words. Another distribution, or a folder in the working directory, may hold a package of the same
name that comes first on the path; then half of one program would run with half of another.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from operations.exit_codes import BAD_CONFIGURATION

PACKAGES = ("tunnel", "agent", "server", "bff", "sandbox", "moorline", "operations")


def foreign_packages(names: Sequence[str] = PACKAGES) -> list[str]:
    """One line for each package that does not come from where this one does. Imports none of them."""
    home = Path(__file__).resolve().parent.parent
    lines = []
    for name in names:
        expected = home / name / "__init__.py"
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve() if spec is not None and spec.origin is not None else None
        if found != expected:
            where = found or (list(spec.submodule_search_locations or ()) if spec is not None else None) or "nowhere"
            lines.append(f"package {name} is expected at {expected} but found at {where}")
    return lines


def check_own_packages(program: str) -> None:
    """Exit with status 2 and both paths on stderr where a package of another installation would be imported."""
    lines = foreign_packages()
    if not lines:
        return
    for line in lines:
        print(f"{program}: {line}", file=sys.stderr)  # noqa: T201 - before logging is set up
    print(  # noqa: T201
        f"{program}: start it outside that folder, or install moorline into a virtual environment of its own",
        file=sys.stderr,
    )
    raise SystemExit(BAD_CONFIGURATION)
