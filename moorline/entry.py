"""The entry points of all commands: make sure that the packages are ours, then hand over.

The names of the packages are common words. Were somebody else's package of such a name first on the path, even the
module that checks could be missing; so this one, whose name is ours alone, goes first and imports nothing before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

_BAD_INSTALLATION = 2
_INTERRUPTED = 130


def kas() -> NoReturn:
    """The command `kas`."""

    def main() -> int:
        from server.__main__ import main

        return main()

    _run("kas", main)


def agentk() -> NoReturn:
    """The command `agentk`."""

    def main() -> int:
        from agent.__main__ import main

        return main()

    _run("agentk", main)


def moorline() -> NoReturn:
    """The command `moorline`."""

    def main() -> int:
        from moorline.__main__ import main

        return main()

    _run("moorline", main)


def _run(program: str, main: Callable[[], int]) -> NoReturn:
    """Run ``main`` and exit; Ctrl-C during the imports is no reason for a traceback either."""
    try:
        _check(program)
        from operations.command_line import run_command
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None
    sys.exit(run_command(main))


def _check(program: str) -> None:
    """Exit with both paths where a package of another installation would be imported."""
    try:
        from operations.own_packages import check_own_packages
    except ImportError:
        # Not even the package with the check is ours.
        expected = Path(__file__).resolve().parents[1] / "operations" / "__init__.py"
        found = getattr(sys.modules.get("operations"), "__file__", None) or "nowhere"
        print(f"{program}: package operations is expected at {expected} but found at {found}", file=sys.stderr)
        raise SystemExit(_BAD_INSTALLATION) from None
    check_own_packages(program)
