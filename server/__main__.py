"""The command ``kas``: reads flags and configuration, serves, and administers tokens.

The only place of this package that reads the command line and the environment.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path

from operations.command_line import CommandParser, VersionAction, run_command
from operations.configuration import ConfigurationError, Override, exit_with_configuration_error, load_configuration
from operations.exit_codes import FAILURE, OK
from operations.own_packages import check_own_packages

PROGRAM = "kas"


def main() -> int:
    """Run kas; the exit status: 0 after an orderly stop, 1 for a failure, 2 for bad flags or configuration."""
    check_own_packages(PROGRAM)
    arguments = command_parser().parse()
    if arguments.command == "token":
        from server.token_command import run_token_command

        return run_token_command(arguments)
    return _serve(arguments)


def command_parser() -> CommandParser:
    """The flags and subcommands of kas."""
    parser = CommandParser(
        prog=PROGRAM,
        description="Accepts the tunnels of agents, and requests for the clusters behind them. Each key of the "
        "configuration can be set as KAS__SECTION__KEY; flags win over the environment, that over the file. SIGTERM drains.",
        example="kas --config /etc/moorline/kas.yaml",
    )
    parser.add_argument("--version", action=VersionAction)
    parser.add_argument("--config", metavar="FILE", type=Path, help="configuration in YAML or TOML")
    parser.add_argument("--access-file", metavar="FILE", help="agents, users and grants (access.file)")
    parser.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error (log.level)")
    parser.add_argument("--log-format", metavar="FORMAT", help="auto, console or json (log.format)")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    from server.token_command import add_token_command

    add_token_command(commands)
    return parser


def _serve(arguments: argparse.Namespace) -> int:
    from operations.logs import configure_logging
    from server.config import ENVIRONMENT_PREFIX, KasConfig

    overrides = [
        Override(path=path, value=value, source=flag)
        for path, value, flag in (
            ("access.file", arguments.access_file, "--access-file"),
            ("log.level", arguments.log_level, "--log-level"),
            ("log.format", arguments.log_format, "--log-format"),
        )
        if value is not None
    ]
    try:
        config = load_configuration(
            KasConfig, arguments.config, environment=os.environ, prefix=ENVIRONMENT_PREFIX, overrides=overrides
        )
    except ConfigurationError as exc:
        exit_with_configuration_error(PROGRAM, exc)
    configure_logging(config.log)
    from operations.resource_limits import raise_open_file_limit

    raise_open_file_limit()
    return _run(config)


def _run(config: object) -> int:
    import trio

    from operations.collector import spare_the_collector
    from operations.signals import handle_signals
    from operations.watched_files import FileProblem
    from server.config import KasConfig
    from server.kas import Kas

    assert isinstance(config, KasConfig)

    async def serve(kas: Kas) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(handle_signals, drain=kas.drain, stop=nursery.cancel_scope.cancel))
            await kas.run()
            nursery.cancel_scope.cancel()

    try:
        kas = Kas(config)
    except ConfigurationError as exc:
        exit_with_configuration_error(PROGRAM, exc)
    except (FileProblem, OSError) as exc:  # ssl.SSLError is an OSError
        exit_with_configuration_error(PROGRAM, ConfigurationError([str(exc)]))
    status = OK
    spare_the_collector()
    try:
        trio.run(serve, kas)
    except* OSError as group:
        for error in group.exceptions:
            print(f"{PROGRAM}: {error}", file=sys.stderr)  # noqa: T201
        status = FAILURE
    return status


if __name__ == "__main__":
    sys.exit(run_command(main))
