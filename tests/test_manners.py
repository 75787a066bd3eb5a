"""How all commands behave at a terminal and in a pipe: help, errors, suggestions, colours, Ctrl-C, a reader that leaves."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.command_line import command_parser as agentk_parser
from moorline.__main__ import parser as moorline_parser
from operations.command_line import actions, subcommands, walk
from server.__main__ import command_parser as kas_parser

PROGRAMS = Path(sys.executable).parent
LINES, COLUMNS = 30, 80
COMMANDS = [parser.prog.split() for root in (kas_parser(), agentk_parser(), moorline_parser()) for parser in walk(root)]


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PROGRAMS / command[0]), *command[1:]],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "COLUMNS": str(COLUMNS), **environment},
    )


def test_all_commands_are_looked_at() -> None:
    names = [" ".join(command) for command in COMMANDS]

    assert {"kas", "kas token create", "agentk", "moorline", "moorline up", "moorline doctor"} <= set(names)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_fits_a_screen_and_has_an_example_and_the_exit_statuses(command: list[str]) -> None:
    done = run(*command, "--help")
    lines = done.stdout.splitlines()

    assert (0, "") == (done.returncode, done.stderr)
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= COLUMNS
    assert "\nexample:\n  " in done.stdout
    assert lines[-1].startswith("exit status: 0 ")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_argument_says_what_it_is_for(command: list[str]) -> None:
    roots = (kas_parser(), agentk_parser(), moorline_parser())
    (parser,) = [one for root in roots for one in walk(root) if one.prog.split() == command]

    assert [action.dest for action in actions(parser) if not action.help and not subcommands(action)] == []


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_what_is_misspelt_is_told_on_stderr_with_a_suggestion(command: list[str]) -> None:
    required = {"create": ["--agent", "a"], "revoke": ["--agent", "a"], "completion": ["bash"]}
    given = required.get(command[-1], [])
    if command == ["moorline", "kubeconfig"]:
        given = ["--agent", "a", "--user", "u", "--server", "https://kas"]
    if command in (["kas"], ["moorline"], ["kas", "token"]):
        given = {"kas": ["token", "list"], "moorline": ["completion", "bash"], "token": ["list"]}[command[-1]]
    done = run(*command, *given, "--hepl", "mla_0123456789abcdef")

    assert (2, "") == (done.returncode, done.stdout)
    assert "did you mean --help?" in done.stderr
    assert "0123456789abcdef" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "suggestion"),
    [
        (["moorline", "kubeconfg"], "did you mean kubeconfig?"),
        (["moorline", "docter"], "did you mean doctor?"),
        (["kas", "tokens"], "did you mean token?"),
        (["kas", "token", "creat"], "did you mean create?"),
        (["kas", "token", "create", "--agent", "a", "--role", "read_only"], "did you mean read-only?"),
    ],
)
def test_a_misspelt_word_gets_a_suggestion(command: list[str], suggestion: str) -> None:
    done = run(*command)

    assert (2, "") == (done.returncode, done.stdout)
    assert suggestion in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "command",
    [["moorline", "--help"], ["kas", "--version"], ["agentk", "--help"], ["moorline", "completion", "bash"]],
    ids=" ".join,
)
def test_a_reader_that_has_left_is_no_reason_for_a_traceback(command: list[str]) -> None:
    readable, writable = os.pipe()
    os.close(readable)
    try:
        done = subprocess.run(
            [str(PROGRAMS / command[0]), *command[1:]], stdout=writable, stderr=subprocess.PIPE, text=True, timeout=30
        )
    finally:
        os.close(writable)

    assert (141, "") == (done.returncode, done.stderr)


def test_ctrl_c_is_status_130_and_no_traceback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        # What a shell started in the background ignores SIGINT, and so would the command.
        command = [
            *("env", "--default-signal=INT", str(PROGRAMS / "moorline")),
            *("doctor", "--kas-address", f"https://127.0.0.1:{silent.getsockname()[1]}"),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("ok       TCP"):
                    break
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=20)

    assert (130, "") == (process.returncode, errors)


# --- colours -------------------------------------------------------------------------------------


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    master, slave = pty.openpty()
    try:
        yield master, slave
    finally:
        os.close(master)
        with contextlib.suppress(OSError):
            os.close(slave)


def on_terminal(**environment: str) -> str:
    """What `moorline doctor` writes to a terminal."""
    with terminal() as (master, slave), socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"https://127.0.0.1:{unused.getsockname()[1]}"
        base = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
        process = subprocess.Popen(
            [str(PROGRAMS / "moorline"), "doctor", "--kas-address", address],
            stdout=slave,
            stderr=slave,
            env={**base, "TERM": "xterm", **environment},
        )
        os.close(slave)
        shown = b""
        deadline = time.monotonic() + 30
        with contextlib.suppress(OSError):  # the end of a terminal is EIO
            while time.monotonic() < deadline and (data := os.read(master, 65_536)):
                shown += data
        assert process.wait(timeout=10) == 1
        return shown.decode()


def test_colours_are_for_terminals_that_want_them() -> None:
    assert "\x1b[1;31mfailed" in on_terminal()
    for plain in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        shown = on_terminal(**plain)
        assert "failed   TCP" in shown
        assert "\x1b" not in shown


def test_a_pipe_gets_no_colours() -> None:
    done = run("moorline", "doctor", "--kas-address", "https://kas.invalid", TERM="xterm")

    assert done.returncode == 1
    assert "failed   DNS" in done.stdout
    assert "\x1b" not in done.stdout
