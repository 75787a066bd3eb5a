"""`docs/troubleshooting.md` has the messages that people see, in the words of the code.

Both ways: what the page lists is said by the code, and what the code says to a caller, to the operator of an agent, or
as a warning in a log, has an entry. `…` on the page is what the code fills in.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from server import errors
from server.errors import ProxyError

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
PACKAGES = ("agent", "moorline", "operations", "server", "tunnel")

HOLE = "\x00"
"""In a text of the code: what is filled in when it is said."""

OWN_WORDS = 9
"""An entry is recognised by a piece of at least so many characters."""

OWN_PART = 0.25
"""And a text of the code is covered by an entry whose longest piece is at least this part of it."""


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def text_of(node: ast.AST) -> str:
    """A string or f-string of the code, with a hole for each value."""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(value) if is_text(value) else HOLE for value in node.values)
    assert isinstance(node, ast.Constant)
    return re.sub(r"%[sdr]", HOLE, str(node.value))


def texts_below(tree: ast.AST) -> Iterator[str]:
    """Every string in a part of a module, without docstrings."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {id(value) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for value in node.values}
    for node in ast.walk(tree):
        if is_text(node) and id(node) not in docstrings | parts:
            yield text_of(node)


def module(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text())


def code_texts() -> str:
    """All strings of the programs, one a line."""
    paths = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    return "\n".join(text for path in paths for text in texts_below(ast.parse(path.read_text())))


def messages() -> list[str]:
    """What the tables list as ours, in their first column."""
    found: list[str] = []
    for line in PAGE.splitlines():
        cell = re.match(r"\| (`.*?`)(?: \(from [^)]*\))?(?: …)? \|", line)
        if cell is not None and "(from " not in cell[0]:
            found += re.findall(r"`([^`]+)`", cell[1])
    return found


def pieces(message: str) -> list[str]:
    """The words of a message between what is filled in."""
    return [piece for part in message.split("…") if len(piece := part.strip()) > 1]


def pattern(piece: str) -> re.Pattern[str]:
    """Finds a piece in the code; what is filled in there may be nothing."""
    return re.compile(f"{HOLE}?".join(map(re.escape, piece)))


CODE = code_texts()
MESSAGES = messages()
ENTRIES = [pattern(longest) for message in MESSAGES if len(longest := max(pieces(message), key=len)) >= OWN_WORDS]


def has_entry(text: str) -> bool:
    found = (entry.search(text) for entry in ENTRIES)
    return any(match is not None and len(match[0]) >= OWN_PART * len(text) for match in found)


def without_entry(texts: list[str]) -> list[str]:
    return [text.replace(HOLE, "…") for text in texts if not has_entry(text)]


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_of_the_page_is_said_by_the_code(message: str) -> None:
    assert len(max(pieces(message), key=len)) >= OWN_WORDS, "too short to be recognised by"
    assert [piece for piece in pieces(message) if pattern(piece).search(CODE) is None] == []


def test_the_page_lists_each_message_once() -> None:
    assert len(MESSAGES) > 100
    assert sorted({message for message in MESSAGES if MESSAGES.count(message) > 1}) == []


# -- the other way round


def concrete_errors() -> list[type[ProxyError]]:
    return [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, ProxyError)][1:]


@pytest.mark.parametrize("cls", concrete_errors(), ids=lambda cls: str(cls.__name__))
def test_a_code_and_reason_of_kas_is_on_the_page(cls: type[ProxyError]) -> None:
    in_a_row = f"| {cls.status} `{cls.reason}` |"
    above_a_table = f"Code {cls.status}, reason `{cls.reason}`"

    assert in_a_row in PAGE or above_a_table in PAGE


def codes() -> dict[str, int]:
    """The code that the page gives for a message of kas, in its row or above its table."""
    found: dict[str, int] = {}
    above = 0
    for line in PAGE.splitlines():
        if line.startswith("#"):
            above = 0
        if code := re.match(r"Code (\d{3}), reason", line):
            above = int(code[1])
        if row := re.match(r"\| (`.*?`)(?: \| (\d{3}) `\w+`)? \|", line):
            for message in re.findall(r"`([^`]+)`", row[1]):
                found[message] = int(row[2] or above)
    return found


def test_a_message_has_the_code_with_which_kas_says_it() -> None:
    given = {message: code for message, code in codes().items() if code}
    names = {cls.__name__: cls.status for cls in concrete_errors()}
    said: list[tuple[str, int]] = []
    for path in sorted((ROOT / "server").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
                said += [(text, names[node.func.id]) for argument in node.args for text in texts_below(argument)]
            elif isinstance(node, ast.ClassDef) and node.name in names:
                said += [(text, names[node.name]) for text in texts_below(node)]
    wrong = []
    for message, code in given.items():
        entry = pattern(max(pieces(message), key=len))
        statuses = {status for text, status in said if len(text) >= OWN_WORDS and entry.search(text)}
        if statuses and code not in statuses:
            wrong.append((message, code, statuses))

    assert len(given) > 40
    assert wrong == []


def test_what_an_error_of_kas_says_has_an_entry() -> None:
    names = {cls.__name__ for cls in concrete_errors()}
    said: list[str] = []
    for node in ast.walk(module("server/errors.py")):
        if isinstance(node, ast.ClassDef):
            for call in ast.walk(node):
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "__init__":
                    said += [text for argument in call.args for text in texts_below(argument)]
    for path in sorted((ROOT / "server").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
                said += [text for argument in node.args for text in texts_below(argument)]

    assert len(said) > 30
    frames = {f"{HOLE}: {HOLE}", f"agent {HOLE}: {HOLE}", f"Unauthorized: {HOLE}", "Authorization header"}
    short = {text for text in said if len(text) < OWN_WORDS} | {"the agent gave no reason"}
    assert without_entry([text for text in said if text not in frames | short]) == []


def test_what_a_refused_handshake_means_has_an_entry() -> None:
    said: list[str] = []
    for node in module("tunnel/refusals.py").body:
        if isinstance(node, ast.FunctionDef) and "explain" in node.name:
            said += [text for text in texts_below(node) if " " in text and len(text) > 15]

    assert len(said) > 30
    only_in_another = {
        f"{HOLE}: {HOLE}",
        f" ({HOLE})",
        f"kas speaks {HOLE}, agentk {HOLE}",
        f"{HOLE} {HOLE} ({HOLE}): trying again {HOLE}",
        f"proxy {HOLE} {HOLE}",
        "something in front of kas",
    }
    assert without_entry([text for text in said if text not in only_in_another]) == []


def test_what_is_wrong_with_tls_has_an_entry() -> None:
    said = [text for text in texts_below(module("tunnel/transports/tls_errors.py")) if " " in text and len(text) > 10]

    assert len(said) > 15
    first_halves = {
        f"TLS handshake with {HOLE} failed: {HOLE}",
        "its certificate",
        "its client certificate",
        f"{HOLE} {HOLE}",
    }
    named = f"{HOLE} {HOLE} than {HOLE}: check the address, or set the server name"
    assert without_entry([text for text in said if text not in first_halves | {named, "plain HTTP"}]) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_warning_in_a_log_has_an_entry(package: str) -> None:
    said = [
        text_of(call.args[0])
        for path in sorted((ROOT / package).rglob("*.py"))
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in {"warning", "error", "exception"}
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "logger"
        and is_text(call.args[0])
    ]

    internal = f"{HOLE}: serving {HOLE} crashed"  # what stands in it is too little to be recognised by
    assert without_entry([text for text in said if text != internal]) == []
