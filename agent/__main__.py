"""The command ``agentk``."""

from __future__ import annotations

import sys

from operations.command_line import run_command
from operations.own_packages import check_own_packages


def main() -> int:
    """Run agentk; the exit status: 0 after a drain, 1 for a failure, 2 for bad configuration."""
    check_own_packages("agentk")
    # Only now: another installation's packages must not be imported before they are known to be ours.
    from agent.process import run_process

    return run_process(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(run_command(main))
