"""argparse as all our commands use it, and how they end.

Help fits a screen and shows an example; what is misspelt gets a suggestion; no argument that may be a secret is repeated;
whoever stops reading (``| head``) or presses Ctrl-C sees no traceback.
"""

from __future__ import annotations

import argparse
import difflib
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from operations.exit_codes import BAD_CONFIGURATION, FAILURE, INTERRUPTED, OK, READER_GONE
from operations.values import redact

MAX_COLUMNS = 100

EXIT_STATUS = "exit status: 0 done, 1 failed, 2 bad usage or configuration, 130 Ctrl-C"


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=_columns())

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        # The epilog has its lines as they are to be; a description is one paragraph.
        return super()._fill_text(text, width, indent) if "\n" in text else textwrap.fill(text, width)


class VersionAction(argparse.Action):
    """``--version``, which asks for the commit only when it is used."""

    def __init__(self, option_strings: Sequence[str], dest: str, **_: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help="show version and commit")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print and exit."""
        from operations.version import version_line

        print(version_line(parser.prog))  # noqa: T201 - the answer
        parser.exit()


class CommandParser(argparse.ArgumentParser):
    """A parser of a command or a subcommand."""

    def __init__(
        self, *, example: str = "", description: str = "", exit_status: str = EXIT_STATUS, **others: Any
    ) -> None:
        """``example`` is a command line, or several; ``exit_status`` the last line of the help."""
        others = {"allow_abbrev": False, "formatter_class": _Formatter, **others}
        super().__init__(description=description, **others)
        self.example = example
        examples = "".join(f"  {line}\n" for line in example.splitlines())
        self.epilog = (f"example:\n{examples}\n" if example else "") + exit_status

    def parse(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """Read the arguments (of the process) or end it with status 2. No argument that may be a secret is shown."""
        known, strangers = self.parse_known_args(arguments)
        if strangers:
            self.error("; ".join(self.explain_stranger(stranger) for stranger in strangers))
        return known

    def explain_stranger(self, argument: str) -> str:
        """What to say of an argument that means nothing here."""
        flag = argument.partition("=")[0]
        near = difflib.get_close_matches(flag, self._all_flags(), n=1) if flag.startswith("--") else []
        return f"{redact(argument)}: there is no such argument" + (f" (did you mean {near[0]}?)" if near else "")

    def error(self, message: str) -> NoReturn:
        """Print one line on stderr and exit with status 2."""
        self.exit(BAD_CONFIGURATION, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def _all_flags(self) -> list[str]:
        return [flag for parser in walk(self) for action in actions(parser) for flag in action.option_strings]

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse's own drops errors, so that whoever writes help into a full disk gets status 0.
        if message:
            (file or sys.stderr).write(message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        raise argparse.ArgumentError(action, f"{redact(str(value))!r} is none of {', '.join(choices)}{hint}")


def actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The arguments of a parser; argparse itself shows them in its help only."""
    return parser._actions  # noqa: SLF001


def walk(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its subcommands, in the order in which they were added."""
    yield parser
    for action in actions(parser):
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for child in action.choices.values():
                yield from walk(child)


def subcommands(action: argparse.Action) -> list[tuple[str, str]]:
    """Names and short texts of what can stand here, where the argument is a subcommand."""
    if not isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
        return []
    return [(choice.dest, choice.help or "") for choice in action._choices_actions]  # noqa: SLF001


def run_command(main: Callable[[], int]) -> int:
    """Run a command's main function; returns the status with which the process should exit.

    Ctrl-C is status 130, and a reader of stdout that has gone 141, both in silence and as shells report them.
    """
    try:
        try:
            status = main()
        except SystemExit as exc:
            status = _status(exc)
        sys.stdout.flush()
    except (BrokenPipeError, KeyboardInterrupt) as exc:
        return _status_of_interruption(exc)
    except BaseExceptionGroup as group:
        # In a nursery, either of the two comes in a group.
        interruption, other = group.split((BrokenPipeError, KeyboardInterrupt))
        if interruption is None or other is not None:
            raise
        return _status_of_interruption(interruption)
    return status


def _status_of_interruption(exc: BaseException) -> int:
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    if isinstance(exc, KeyboardInterrupt):
        return INTERRUPTED
    # What is still buffered would fail again when the interpreter ends.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
    return READER_GONE


def _status(exc: SystemExit) -> int:
    if exc.code is None:
        return OK
    if isinstance(exc.code, int):
        return exc.code
    print(exc.code, file=sys.stderr)  # noqa: T201
    return FAILURE


def _columns() -> int:
    return min(shutil.get_terminal_size().columns, MAX_COLUMNS) - 2
