"""How a command ends, whatever its main function does."""

from __future__ import annotations

import subprocess
import sys

import pytest

from operations.command_line import CommandParser, run_command


def ends_with(exception: BaseException) -> int:
    def main() -> int:
        raise exception

    return run_command(main)


def test_what_main_returns_is_the_status():
    assert run_command(lambda: 7) == 7


@pytest.mark.parametrize(
    ("exception", "status"),
    [
        (SystemExit(), 0),
        (SystemExit(2), 2),
        (KeyboardInterrupt(), 130),
        (BaseExceptionGroup("a nursery", [KeyboardInterrupt()]), 130),
        (BaseExceptionGroup("two", [BaseExceptionGroup("nurseries", [KeyboardInterrupt()])]), 130),
    ],
)
def test_exits_and_interruptions_have_a_status(exception, status):
    assert ends_with(exception) == status


def test_a_text_to_exit_with_is_told_on_stderr(capsys):
    assert ends_with(SystemExit("no")) == 1
    assert capsys.readouterr() == ("", "no\n")


@pytest.mark.parametrize(
    "exception", [ValueError("a bug"), BaseExceptionGroup("a nursery", [KeyboardInterrupt(), ValueError("a bug")])]
)
def test_a_bug_is_not_hidden(exception):
    with pytest.raises(type(exception)) as caught:
        ends_with(exception)
    assert caught.value is exception


def test_a_reader_that_has_gone_is_noticed_in_a_nursery_too():
    script = (
        "import os, sys, trio\n"
        "from operations.command_line import run_command\n"
        "async def say():\n"
        "    for _ in range(100): print('x' * 1000, flush=True)\n"
        "async def both():\n"
        "    async with trio.open_nursery() as nursery: nursery.start_soon(say)\n"
        "def main():\n"
        "    trio.run(both)\n"
        "    return 0\n"
        "sys.exit(run_command(main))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        errors = process.stderr.read()

    assert (process.returncode, errors) == (141, "")


def test_an_abbreviated_flag_is_none(capsys):
    parser = CommandParser(prog="p")
    parser.add_argument("--kubeconfig")
    with pytest.raises(SystemExit) as caught:
        parser.parse(["--kube=x"])

    assert caught.value.code == 2
    assert capsys.readouterr() == (
        "",
        "p: --kube=x: there is no such argument (did you mean --kubeconfig?) (see p --help)\n",
    )
