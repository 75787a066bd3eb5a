"""The harmless shell and its console."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import trio

from sandbox import console as console_module
from sandbox.console import Console
from sandbox.shell import Shell, knows

POD: Any = {"metadata": {"name": "web-1", "namespace": "demo"}, "status": {"podIP": "10.0.0.1"}}
CONTAINER: Any = {"name": "web", "image": "web:1", "env": [{"name": "GREETING", "value": "hello"}]}


class Screen:
    """Collects what a command writes."""

    def __init__(self, *, is_terminal: bool = False) -> None:
        self.output = ""
        self.errors = ""
        self.console = Console(self._write, None if is_terminal else self._write_error, is_terminal=is_terminal)

    async def _write(self, data: bytes) -> None:
        self.output += data.decode()

    async def _write_error(self, data: bytes) -> None:
        self.errors += data.decode()

    async def run(self, *arguments: str) -> int:
        shell = Shell(POD, CONTAINER, self.console, lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
        with trio.fail_after(20):
            return await shell.run(list(arguments))


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["echo", "a", "b"], "a b\n"),
        (["/bin/echo", "-n", "a"], "a"),
        (["date"], "Fri Jan  2 03:04:05 UTC 2026\n"),
        (["hostname"], "web-1\n"),
        (["whoami"], "root\n"),
        (["cat", "/etc/hostname"], "web-1\n"),
        (["ls"], "README\netc\nrun\n"),
        (["ls", "-l", "/etc"], "hostname\nhosts\nos-release\nresolv.conf\n"),
        (["sh", "-c", "echo $GREETING ${HOSTNAME}"], "hello web-1\n"),
        (["sh", "-c", "false; echo $?"], "1\n"),
        (["sh", "-c", "true && echo yes || echo no"], "yes\n"),
        (["sh", "-c", "false && echo yes || echo no"], "no\n"),
        (["sh", "-c", "echo 'a; b' && echo \"c  d\""], "a; b\nc  d\n"),
    ],
)
async def test_commands_say_what_is_expected(arguments: list[str], output: str) -> None:
    screen = Screen()
    assert await screen.run(*arguments) == 0
    assert (screen.output, screen.errors) == (output, "")


@pytest.mark.parametrize(
    ("arguments", "code", "errors"),
    [
        (["sh", "-c", "exit 3"], 3, ""),
        (["false"], 1, ""),
        (["sh", "-c", "false; exit"], 1, ""),
        (["sh", "-c", "nothing"], 127, "sh: nothing: not found; this is the sandbox, try help\n"),
        (["cat", "/nothing"], 1, "cat: /nothing: No such file or directory\n"),
        (["ls", "/nothing"], 1, "ls: /nothing: No such file or directory\n"),
        (["sh", "-c", "echo a > b"], 2, "sh: >: the shell of the sandbox cannot do this\n"),
        (["sh", "-c", "echo 'a"], 2, "sh: No closing quotation\n"),
        (["sleep", "long"], 1, "sleep: how many seconds?\n"),
    ],
)
async def test_what_fails_says_so(arguments: list[str], code: int, errors: str) -> None:
    screen = Screen()
    assert await screen.run(*arguments) == code
    assert screen.errors == errors


def test_it_knows_what_it_can_do() -> None:
    assert knows("/bin/sh")
    assert knows("cat")
    assert knows("true")
    assert not knows("rm")


async def test_a_shell_reads_commands_from_its_input() -> None:
    screen = Screen()
    await screen.console.feed(b"echo one\necho t")
    await screen.console.feed(b"wo\nexit 4\necho never\n")
    assert await screen.run("sh") == 4
    assert screen.output == "one\ntwo\n"


async def test_the_end_of_the_input_ends_the_shell_with_the_last_status() -> None:
    screen = Screen()
    await screen.console.feed(b"false")
    screen.console.close_input()
    assert await screen.run("sh") == 1


async def test_cat_gives_back_its_input() -> None:
    screen = Screen()
    await screen.console.feed(b"a\nb")
    screen.console.close_input()
    assert await screen.run("cat") == 0
    assert screen.output == "a\nb"


async def test_a_terminal_echoes_edits_and_prompts() -> None:
    screen = Screen(is_terminal=True)
    await screen.console.feed(b"who\x1b[Aamii\x7f\r")
    await screen.console.feed(b"\x04")
    assert await screen.run("sh") == 0
    assert screen.output == "whoamii\b \b\r\nsandbox:/# root\r\nsandbox:/# "


async def test_control_c_ends_what_runs_and_drops_what_was_typed(autojump_clock: object) -> None:
    screen = Screen(is_terminal=True)

    async def type_in() -> None:
        await trio.sleep(1)
        await screen.console.feed(b"\x03")
        await trio.sleep(1)
        await screen.console.feed(b"half\x03exit\r")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(type_in)
        await screen.console.feed(b"sleep 1000\r")
        assert await screen.run("sh") == 130
    assert trio.current_time() < 10
    assert "half^C\r\n" in screen.output


async def test_control_c_drops_what_was_typed_ahead() -> None:
    screen = Screen(is_terminal=True)
    await screen.console.feed(b"exit 1\r\x03exit 2\r")
    assert await screen.run("sh") == 2


async def test_input_that_nobody_reads_waits_outside(autojump_clock: object) -> None:
    screen = Screen()
    with trio.move_on_after(1) as scope:
        for _ in range(100):
            await screen.console.feed(b"x" * 1023 + b"\n")
    assert scope.cancelled_caught
    assert sum(map(len, screen.console._lines)) <= console_module.INPUT_BYTES + 1024
