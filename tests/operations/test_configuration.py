"""Configuration: all problems at once, each with its path and what is allowed."""

from __future__ import annotations

import dataclasses
import enum
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import pytest

from operations.configuration import (
    ConfigurationError,
    Override,
    exit_with_configuration_error,
    load_configuration,
    structure,
)
from operations.structuring import Range
from operations.values import Address, ByteCount, Seconds, SecretFile


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    certificate_file: Path
    key_file: Path


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    address: Address = Address("127.0.0.1", 8150)  # noqa: RUF009
    tls: Tls | None = None
    role: Literal["full", "read-only"] = "full"

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.tls is None and not self.address.is_loopback:
            yield "tls", "is needed here"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    name: str
    listener: Listener = dataclasses.field(default_factory=Listener)
    spare: Listener | None = None
    pause: Annotated[Seconds, Range(1, 60)] = Seconds(5)  # noqa: RUF009
    size: Annotated[ByteCount, Range(1024)] = ByteCount(4096)  # noqa: RUF009
    listeners: tuple[Listener, ...] = ()
    names: tuple[str, ...] = ()
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    count: int = 3
    ratio: float = 0.5
    verbose: bool = False
    colour: Colour = Colour.RED
    token_file: SecretFile | None = None
    seen_as: str = dataclasses.field(default="", metadata={"key": "as"})


def problems_of(raw, **options):
    with pytest.raises(ConfigurationError) as caught:
        structure(Config, raw, **options)
    return caught.value.problems


def test_defaults_need_nothing_but_what_is_required():
    assert structure(Config, {"name": "x"}) == Config(name="x")


def test_every_kind_of_value_is_structured():
    config = structure(
        Config,
        {
            "name": "x",
            "listener": {"address": ":1", "tls": {"certificate_file": "/c", "key_file": "/k"}, "role": "read-only"},
            "pause": "30s",
            "size": "64KiB",
            "listeners": [{"address": "[::1]:2"}],
            "headers": {"X-A": "b"},
            "count": 4,
            "ratio": 1,
            "verbose": True,
            "colour": "blue",
            "token_file": "/t",
            "as": "y",
        },
    )

    assert config == Config(
        name="x",
        listener=Listener(
            address=Address("", 1), tls=Tls(certificate_file=Path("/c"), key_file=Path("/k")), role="read-only"
        ),
        pause=Seconds(30.0),
        size=ByteCount(65_536),
        listeners=(Listener(address=Address("::1", 2)),),
        headers={"X-A": "b"},
        count=4,
        ratio=1.0,
        verbose=True,
        colour=Colour.BLUE,
        token_file=SecretFile(Path("/t")),
        seen_as="y",
    )


def test_all_problems_are_reported_at_once_with_paths_and_what_is_allowed():
    problems = problems_of(
        {
            "listener": {"adress": "x", "role": "c", "tls": {"key_file": ""}},
            "pause": "90s",
            "size": "3 quarts",
            "listeners": [{"address": 3}, {"role": "z"}, {"address": ":9"}, 7],
            "names": "a",
            "headers": {1: "x"},
            "count": 1.5,
            "ratio": "half",
            "verbose": 1,
            "colour": "green",
            "as": 5,
            "bogus": 1,
        },
        source="kas.yaml",
    )

    expected = {
        "kas.yaml: name: is required",
        "kas.yaml: listener.role: expected one of full, read-only, got 'c'",
        "kas.yaml: listener.adress: unknown key (did you mean address?); allowed here: address, tls, role",
        "kas.yaml: listener.tls.certificate_file: is required",
        "kas.yaml: listener.tls.key_file: expected the path of a file, got ''",
        "kas.yaml: pause: must be at least 1s and at most 1m, got '90s'",
        "kas.yaml: size: expected a size such as 64KiB, 3MB or a number of bytes, got '3 quarts'",
        "kas.yaml: listeners[1].role: expected one of full, read-only, got 'z'",
        "kas.yaml: listeners[3]: expected a section with keys (address, tls, role), got 7",
        "kas.yaml: names: expected a list, got 'a'",
        "kas.yaml: headers: expected text as key, got 1; put it in quotes",
        "kas.yaml: count: expected a whole number, got 1.5",
        "kas.yaml: ratio: expected a number, got 'half'",
        "kas.yaml: verbose: expected true or false, got 1",
        "kas.yaml: colour: expected one of red, blue, got 'green'",
        "kas.yaml: as: expected text, got 5; put it in quotes",
        problem_that_starts_with("kas.yaml: bogus: unknown key; allowed here: name, listener, "),
        problem_that_starts_with("kas.yaml: listeners[0].address: expected host:port such as"),
    }
    assert len(problems) == len(expected)
    assert not [problem for problem in problems if not any(problem == wanted for wanted in expected)]


class problem_that_starts_with(str):  # noqa: N801
    __slots__ = ()

    def __eq__(self, other):
        return isinstance(other, str) and other.startswith(str(self))

    __hash__ = str.__hash__


def test_rules_between_keys_are_reported_beside_mistakes_in_single_keys():
    problems = problems_of({"name": 3, "listener": {"address": ":1", "role": "c"}, "spare": {"address": ":2"}})

    assert problems == [
        "name: expected text, got 3; put it in quotes",
        "listener.role: expected one of full, read-only, got 'c'",
        "listener.tls: is needed here",
        "spare.tls: is needed here",
    ]


def test_a_section_without_keys_has_its_defaults():
    assert structure(Config, {"name": "x", "listener": None}) == Config(name="x")


def test_the_environment_goes_over_the_file_and_flags_over_both(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("name: file\ncount: 1\nratio: 0.1\n")

    config = load_configuration(
        Config,
        file,
        environment={
            "X__COUNT": "2",
            "X__RATIO": "0.2",
            "X__NAME": "123",
            "X__VERBOSE": "true",
            "X__LISTENER__ROLE": "read-only",
            "X__NAMES": "a, b",
            "X__HEADERS": "{k: v}",
            "X__AS": "z",
            "X_NAME": "not ours",
            "XX__NAME": "not ours",
        },
        prefix="X",
        overrides=[Override("ratio", 0.3, "--ratio")],
    )

    assert config == Config(
        name="123",
        count=2,
        ratio=0.3,
        verbose=True,
        listener=Listener(role="read-only"),
        names=("a", "b"),
        headers={"k": "v"},
        seen_as="z",
    )


def test_problems_name_the_variable_or_flag_from_which_a_value_came(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("name: x\n")

    with pytest.raises(ConfigurationError) as caught:
        load_configuration(
            Config,
            file,
            environment={"X__PAUSE": "soon", "X__LISTENER__ROLLE": "full"},
            prefix="X",
            overrides=[Override("count", "many", "--count")],
        )

    assert caught.value.problems == [
        "X__LISTENER__ROLLE: no such setting: rolle (did you mean role?); allowed: address, tls, role",
        "pause (from X__PAUSE): expected a duration such as 30s, 5m, 1h30m or never, got 'soon'",
        "count (from --count): expected a whole number, got 'many'",
    ]


def test_an_override_below_a_value_of_the_wrong_kind_is_one_problem():
    assert problems_of({"name": "x", "listener": 3}, overrides=[Override("listener.role", "full", "E")]) == [
        "listener: expected a section with keys (address, tls, role), got 3"
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("- a\n", "expected a mapping of keys to values at the top, got a list"),
        ("a: [1\n", "line 2: not valid YAML"),
        ("name: x\nname: y\n", "line 2: not valid YAML: the key 'name' is there twice"),
        ("a: \x07", "not valid YAML"),
        ("[" * 20_000, ""),
    ],
)
def test_files_that_say_nothing_usable(tmp_path, content, problem):
    file = tmp_path / "c.yaml"
    file.write_text(content)

    with pytest.raises(ConfigurationError) as caught:
        load_configuration(Config, file)

    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(f"{file}: {problem}")


def test_a_file_that_cannot_be_read_is_a_problem(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        load_configuration(Config, tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe4\n")
    with pytest.raises(ConfigurationError, match="latin"):
        load_configuration(Config, tmp_path / "latin.yaml")


def test_toml_by_its_suffix(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('name = "x"\n[listener]\nrole = "read-only"\n')
    assert load_configuration(Config, file) == Config(name="x", listener=Listener(role="read-only"))

    file.write_text("name = \n")
    with pytest.raises(ConfigurationError, match="line 1"):
        load_configuration(Config, file)


def test_a_token_in_the_wrong_place_is_not_repeated():
    problems = problems_of({"name": "x", "count": "mlu_canarycanarycanarycanary"})

    assert problems == ["count: expected a whole number, got 'mlu_[redacted]'"]


def test_the_command_prints_one_line_per_problem_and_exits_with_2(capsys):
    with pytest.raises(SystemExit) as caught:
        exit_with_configuration_error("kas", ConfigurationError(["a: is required", "b: is wrong"]))

    assert caught.value.code == 2
    assert capsys.readouterr().err == "kas: configuration: a: is required\nkas: configuration: b: is wrong\n"


def test_yaml_cannot_make_python_objects(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("name: !!python/object/apply:os.system ['true']\n")

    with pytest.raises(ConfigurationError, match="not valid YAML"):
        load_configuration(Config, file)


@pytest.mark.slow
def test_configuration_costs_an_idle_process_little_memory():
    script = """
import resource, trio
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
from operations.configuration import load_configuration
from operations.logs import LogConfig
load_configuration(LogConfig)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=dict(os.environ), timeout=60
    )

    assert int(result.stdout) < 8_192, "KiB"
