"""`moorline completion`: scripts by which shells complete our commands, made of the commands' own parsers."""

from __future__ import annotations

import argparse

import shtab

from agent.command_line import command_parser as agentk_parser
from moorline.__main__ import parser as moorline_parser
from operations.command_line import actions, subcommands, walk
from operations.exit_codes import OK
from server.__main__ import command_parser as kas_parser

_CHOICES = {
    "LEVEL": ["debug", "info", "warning", "error"],
    "FORMAT": ["auto", "console", "json"],
    "MODE": ["impersonate", "agent"],
}
"""What the configuration checks, and argparse does not."""

_FILES = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY}
"""What is completed from the file system, by the name that help shows for the argument."""


def run_completion(options: argparse.Namespace) -> int:
    """Print the script for a shell; the exit status."""
    print("\n".join(script(parser, options.shell) for parser in (kas_parser(), agentk_parser(), moorline_parser())))
    return OK


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion of one command with its subcommands."""
    for one in walk(parser):
        for action in actions(one):
            if action.metavar in _FILES:
                action.complete = _FILES[str(action.metavar)]  # type: ignore[attr-defined]
            elif action.metavar in _CHOICES:
                action.choices = _CHOICES[str(action.metavar)]
            for name, summary in subcommands(action):
                # Beside a name in a list there is room for the short text only.
                action.choices[name].description = summary  # type: ignore[index]
    text: str = shtab.complete(parser, shell=shell)
    return text
