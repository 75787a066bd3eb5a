"""The command `moorline`: arguments, errors and exit codes. What a subcommand does is in a module of its own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from operations.command_line import CommandParser, VersionAction, run_command


def main() -> int:
    """Run the command line; the exit status."""
    options = parser().parse()
    status: int = options.run(options)
    return status


def parser() -> CommandParser:
    """The arguments of all subcommands."""
    root = CommandParser(
        prog="moorline",
        description="Kubernetes clusters through the connection that their agent opened.",
        example="moorline quickstart",
    )
    root.add_argument("--version", action=VersionAction)
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_quickstart(commands)
    _add_up(commands)
    _add_kubeconfig(commands)
    _add_doctor(commands)
    _add_completion(commands)
    return root


def _add_quickstart(commands: argparse._SubParsersAction[CommandParser]) -> None:
    command = commands.add_parser(
        "quickstart",
        help="try it: the same as 'up', with a sandbox for those who have no cluster",
        description="Run kas and agentk in one process, on the cluster of this machine's kubeconfig ($KUBECONFIG, else "
        "~/.kube/config, where it chooses a context), or else on a sandbox, a make-believe cluster. Prints a line that "
        "begins with 'ready' once kubectl works through the tunnel, and five things to try. Ctrl-C ends it.",
        example="moorline quickstart --sandbox",
    )
    command.add_argument("--sandbox", action="store_true", help="use the sandbox, whatever the machine has")
    command.add_argument("--kubeconfig", metavar="FILE", type=Path, help="the cluster, and as whom to use it")
    command.add_argument("--context", metavar="NAME", default="", help="its context (default: the current one)")
    _add_listening(command, Path("moorline-quickstart"))
    command.set_defaults(run=_run_quickstart)


def _add_up(commands: argparse._SubParsersAction[CommandParser]) -> None:
    command = commands.add_parser(
        "up",
        help="run kas and agentk together, on a kubeconfig",
        description="Run kas and agentk in one process, on a kubeconfig. Prints a line that begins with 'ready' once "
        "kubectl works through the tunnel. Ctrl-C ends it.",
        example="moorline up --kubeconfig ~/.kube/config",
    )
    command.add_argument(
        "--kubeconfig",
        metavar="FILE",
        type=Path,
        help="the cluster, and as whom to use it (default: $KUBECONFIG, else ~/.kube/config)",
    )
    command.add_argument("--context", metavar="NAME", default="", help="its context (default: the current one)")
    _add_listening(command, Path("moorline-up"))
    command.set_defaults(run=_run_up)


def _add_listening(command: argparse.ArgumentParser, directory: Path) -> None:
    command.add_argument(
        "--dir",
        metavar="DIR",
        type=Path,
        default=directory,
        help="for certificates, tokens and the resulting DIR/kubeconfig (default: %(default)s)",
    )
    command.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default="127.0.0.1:0",
        help="where kubectl comes in; port 0 is any free one (default: %(default)s)",
    )
    command.add_argument(
        "--log-level",
        choices=["debug", "info", "warning", "error"],
        default="warning",
        help="what is logged, to stderr (default: %(default)s)",
    )


def _add_kubeconfig(commands: argparse._SubParsersAction[CommandParser]) -> None:
    command = commands.add_parser(
        "kubeconfig",
        help="make a token for a user, and the kubeconfig that uses it",
        description="Make a token for a user, add its hash to kas's access file, and write a kubeconfig. The token is "
        "nowhere else: whoever has the file has the access.",
        usage="%(prog)s --agent ID --user NAME --server URL [options]",
        example="moorline kubeconfig --agent prod --user alice --server https://kas.example.com",
    )
    command.add_argument("--agent", metavar="ID", required=True, help="the agent whose cluster it is for")
    command.add_argument("--user", metavar="NAME", required=True, help="the user; added to the file where it is new")
    command.add_argument("--server", metavar="URL", required=True, help="where kubectl finds kas: https://HOST[:PORT]")
    command.add_argument(
        "--access-file",
        metavar="FILE",
        type=Path,
        default=Path("/etc/moorline/access.yaml"),
        help="(default: %(default)s)",
    )
    command.add_argument("--ca-file", metavar="FILE", type=Path, help="certificates to trust (default: the system's)")
    command.add_argument("--output", metavar="FILE", type=Path, help="write there, mode 0600 (default: stdout)")
    command.add_argument(
        "--token-name", metavar="NAME", default="", help="by which it can be revoked (default: a new one)"
    )
    command.add_argument(
        "--mode",
        choices=["impersonate", "agent"],
        default="impersonate",
        help="where the user has no access to the agent yet: how to get it (default: %(default)s)",
    )
    command.add_argument(
        "--role", choices=["full", "read-only"], default="full", help="and what for (default: %(default)s)"
    )
    command.add_argument(
        "--group", metavar="NAME", action="append", default=[], help="and with which groups; may be repeated"
    )
    command.set_defaults(run=_run_kubeconfig)


def _add_doctor(commands: argparse._SubParsersAction[CommandParser]) -> None:
    command = commands.add_parser(
        "doctor",
        help="check from here whether an agent would reach kas",
        description="Check, from where an agent would run, whether it would reach kas: each step, and what to do about the "
        "one that fails. Opens no tunnel and disturbs none.",
        usage="%(prog)s --kas-address URL [options]",
        example="moorline doctor --kas-address wss://kas.example.com --token-file token",
        exit_status="exit status: 0 nothing failed, 1 a step failed, 2 bad usage, 130 Ctrl-C",
    )
    command.add_argument("--kas-address", metavar="URL", help="wss:// or https:// address of kas")
    command.add_argument("--token-file", metavar="FILE", help="the agent's token (or the variable AGENTK_TOKEN)")
    command.add_argument("--ca-file", metavar="FILE", help="certificates to trust beside the system's")
    command.add_argument(
        "--kas-header", metavar="'N: V'", action="append", help="header for the handshake; may be repeated"
    )
    command.add_argument("--insecure-plaintext", action="store_true", help="allow ws:// and http://")
    command.add_argument("--config", metavar="FILE", type=Path, help="agentk's own configuration")
    command.add_argument(
        "--timeout", metavar="10s", default="10s", help="for each step, at most as long as agentk waits (%(default)s)"
    )
    command.set_defaults(run=_run_doctor)


def _add_completion(commands: argparse._SubParsersAction[CommandParser]) -> None:
    command = commands.add_parser(
        "completion",
        help="print completion of kas, agentk and moorline for a shell",
        description="Print the script by which a shell completes the commands kas, agentk and moorline.",
        example='eval "$(moorline completion bash)"     # in ~/.bashrc; zsh: in ~/.zshrc\n'
        "moorline completion fish | source         # in ~/.config/fish/config.fish",
    )
    command.add_argument("shell", choices=["bash", "zsh", "fish"], help="the shell")
    command.set_defaults(run=_run_completion)


def _run_quickstart(options: argparse.Namespace) -> int:
    from moorline.quickstart import run_quickstart

    return run_quickstart(options)


def _run_up(options: argparse.Namespace) -> int:
    from moorline.up import run_up

    return run_up(options)


def _run_kubeconfig(options: argparse.Namespace) -> int:
    from moorline.kubeconfig_command import run_kubeconfig

    return run_kubeconfig(options)


def _run_doctor(options: argparse.Namespace) -> int:
    from moorline.doctor.command import run_doctor

    return run_doctor(options)


def _run_completion(options: argparse.Namespace) -> int:
    from moorline.completion import run_completion

    return run_completion(options)


if __name__ == "__main__":
    sys.exit(run_command(main))
