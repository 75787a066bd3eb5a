"""What import-linter has no words for: where a third-party library may be imported, and how our modules are named."""

from __future__ import annotations

import ast
import importlib
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = ["tunnel", "agent", "server", "bff", "sandbox", "moorline", "operations"]

HOMES = {
    "hpack": {"tunnel": 1},
    "wsproto": {"tunnel": 2, "sandbox": 1},  # in the tunnel: its connection, and its frames
    "cattrs": {"operations": 2},  # what it is told, and what it says
    "yaml": {"operations": 1, "agent": 1, "server": 1, "moorline": 1, "sandbox": 1},
    "shtab": {"moorline": 1},
    "cryptography": {"moorline": 2},  # what is made, and what a server presents
}
"""In how many modules of a package a library may be imported; Trio is the ground we stand on and not listed."""

LIMIT_LINES = 550
"""A file has one reason to exist and about 400 lines; above this, somebody has to split it."""


def modules(package: str) -> Iterator[Path]:
    (folder,) = importlib.import_module(package).__path__
    return Path(folder).rglob("*.py")


def imports(path: Path) -> set[str]:
    """The top-level names that a module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes(), path)):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_each_third_party_library_has_one_home_in_a_package(package: str) -> None:
    users: dict[str, list[str]] = defaultdict(list)
    for path in modules(package):
        for name in imports(path) - set(sys.stdlib_module_names) - set(PACKAGES) - {"trio", "outcome"}:
            users[name].append(path.name)
    too_many = {
        name: sorted(paths) for name, paths in users.items() if len(paths) > HOMES.get(name, {}).get(package, 0)
    }

    assert {} == too_many


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_is_too_long_to_be_read_at_once(package: str) -> None:
    lengths = {path.name: len(path.read_bytes().splitlines()) for path in modules(package)}

    assert {} == {name: lines for name, lines in lengths.items() if lines > LIMIT_LINES}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_says_what_it_is(package: str) -> None:
    silent = [path.name for path in modules(package) if not ast.get_docstring(ast.parse(path.read_bytes()))]

    assert [] == silent


def test_the_programs_do_not_import_what_only_tests_need() -> None:
    test_only = {"h2", "h11", "httpx", "hyperframe", "hypothesis", "kubernetes", "pytest", "trustme", "trio_websocket"}
    used = {name for package in PACKAGES for path in modules(package) for name in imports(path)}

    assert set() == used & test_only
