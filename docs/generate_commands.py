"""Write `docs/commands.md` from the parsers of kas, agentk and moorline.

python docs/generate_commands.py          # writes the file
python docs/generate_commands.py --check  # exits with 1 where it is not up to date
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from agent.command_line import command_parser as agentk_parser
from moorline.__main__ import parser as moorline_parser
from operations.command_line import CommandParser, actions, subcommands, walk
from server.__main__ import command_parser as kas_parser

TARGET = Path(__file__).with_name("commands.md")

INTRODUCTION = """\
# Commands

<!-- Written by docs/generate_commands.py from the parsers of the commands. Do not edit. -->

`kas` and `agentk` are the two long-running programs; `moorline` is for people. `--help` of each command says what is
said here, with an example.

## Exit status

The same for all of them:

| status | meaning |
|---|---|
| 0 | done; a long-running program ended in order |
| 1 | it ran and failed: the last line on stderr says why. `moorline doctor`: a step failed |
| 2 | it never started: arguments, configuration, or packages that are not its own. Every problem is a line on stderr |
| 130 | Ctrl-C where there was nothing to end in order. `kas`, `agentk` and `moorline up` drain, and end with 0 |
| 141 | whoever read stdout has stopped, as in `… \\| head` |

Answers go to stdout, everything else to stderr. Colours are for terminals only, and not with `NO_COLOR` set or `TERM=dumb`.
An argument that looks like a token is not repeated in an error.

`--version` tells version and commit; `-dirty` behind it means that the sources differed from the commit. It is a file
that is written when a wheel or an sdist is built. A checkout that is used as it is asks git. Where neither is at hand,
there is the version alone.

## Completion

=== "bash"

    ```sh
    echo 'eval "$(moorline completion bash)"' >> ~/.bashrc
    ```

=== "zsh"

    ```sh
    echo 'autoload -Uz compinit && compinit' >> ~/.zshrc    # unless it is there already
    echo 'eval "$(moorline completion zsh)"' >> ~/.zshrc
    ```

=== "fish"

    ```sh
    mkdir -p ~/.config/fish/conf.d
    echo 'moorline completion fish | source' > ~/.config/fish/conf.d/moorline.fish
    ```

Each completes all three commands, with their subcommands, options, choices and files. The script is made of what is
installed, so it never needs to be renewed.
"""


def main() -> int:
    """Write or check the file; the exit status."""
    text = render()
    if "--check" in sys.argv[1:]:
        if TARGET.is_file() and TARGET.read_text() == text:
            return 0
        print(f"{TARGET} is not up to date: run python docs/generate_commands.py", file=sys.stderr)
        return 1
    TARGET.write_text(text)
    return 0


def render() -> str:
    """The whole page."""
    parsers = [parser for root in (kas_parser(), agentk_parser(), moorline_parser()) for parser in walk(root)]
    return "\n".join([INTRODUCTION, *(line for parser in parsers for line in section(parser))])


def section(parser: argparse.ArgumentParser) -> Iterator[str]:
    """One command."""
    assert isinstance(parser, CommandParser)
    depth = "##" if " " not in parser.prog else "###"
    yield f"{depth} {parser.prog}\n\n{parser.description}\n"
    yield f"```sh\n{parser.example}\n```\n"
    names = [choice for action in actions(parser) for choice in subcommands(action)]
    if names:
        yield "| command | what it does |\n|---|---|"
        yield "".join(f"| `{parser.prog} {name}` | {text} |\n" for name, text in names)
    options = [action for action in actions(parser) if action.dest != "help" and not subcommands(action)]
    if options:
        yield "| argument | what it says |\n|---|---|"
        yield "".join(f"| {_shown(action)} | {_help(parser, action)} |\n" for action in options)


def _shown(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{'`, `'.join(map(str, action.choices or [action.dest]))}`"
    if action.nargs == 0:
        return f"`{action.option_strings[0]}`"
    value = "\\|".join(map(str, action.choices)) if action.choices is not None else str(action.metavar or action.dest)
    return f"`{action.option_strings[0]} {value}`" + (", required" if action.required else "")


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    return text.replace("|", "\\|").replace("~", "\\~")


if __name__ == "__main__":
    sys.exit(main())
