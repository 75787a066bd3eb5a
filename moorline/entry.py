"""The entry points of all commands: make sure that the packages are ours, then hand over.

The names of the packages are common words. Were somebody else's package of such a name first on the path, even the
module that checks could be missing; so this one, whose name is ours alone, goes first and imports nothing before.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

_BAD_INSTALLATION = 2


def kas() -> NoReturn:
    """The command `kas`."""
    _check("kas")
    from server.__main__ import main

    main()
    sys.exit()


def agentk() -> NoReturn:
    """The command `agentk`."""
    _check("agentk")
    from agent.__main__ import main

    sys.exit(main())


def moorline() -> NoReturn:
    """The command `moorline`."""
    _check("moorline")
    from moorline.__main__ import main

    sys.exit(main())


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
