"""Configuration: a YAML or TOML file, then the environment, then flags, into frozen dataclasses.

Every problem is reported at once, with the path of the key and what is allowed there. A configuration class is a
frozen, slotted, keyword-only dataclass; its defaults are the documentation. Two conventions add to the types:

* ``metadata={"key": "as"}`` on a field gives the key another name in the file;
* a method ``problems(self) -> Iterator[tuple[str, str]]`` yields (key relative to this section, text) for rules that
  span several keys. Where single keys are wrong, it is asked about the section without them.

Nothing is global: the caller passes the environment, and settings travel by constructor.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import cattrs
from cattrs.errors import ForbiddenExtraKeysError

from operations.exit_codes import BAD_CONFIGURATION
from operations.structuring import Problem, make_converter, problems_of
from operations.values import InvalidValue, shown

T = TypeVar("T")


class ConfigurationError(ValueError):
    """Configuration that cannot be used. ``problems`` holds one line for each thing that is wrong."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = list(problems)


@dataclasses.dataclass(frozen=True, slots=True)
class Override:
    """A value from elsewhere than the file. ``path`` is dotted; ``source`` is how the operator would call it."""

    path: str
    value: Any = dataclasses.field(repr=False)
    source: str


def load_configuration(
    cls: type[T],
    path: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    prefix: str = "",
    overrides: Sequence[Override] = (),
) -> T:
    """Read the file (none: defaults), lay ``<prefix>__SECTION__KEY`` and then ``overrides`` over it, and structure it.

    Raises `ConfigurationError` with all problems. Blocks on file I/O; call it before the loop runs or in a thread.
    """
    raw = read_mapping(path) if path is not None else {}
    return structure(
        cls,
        raw,
        overrides=[*environment_overrides(environment or {}, prefix), *overrides],
        source=str(path) if path is not None else "",
    )


def structure(cls: type[T], raw: Mapping[str, Any], *, overrides: Sequence[Override] = (), source: str = "") -> T:
    """Make a configuration object of plain data. ``source`` (a file name) goes before the paths in problems."""
    merged = _copy(raw)
    problems: list[Problem] = []
    strangers: list[str] = []
    sources: dict[str, str] = {}
    for override in overrides:
        problem = _apply(cls, merged, override)
        if problem is not None:
            strangers.append(f"{problem.path}: {problem.text}")
        else:
            sources[override.path] = override.source
    converter = make_converter()
    result: T | None = None
    try:
        result = converter.structure(merged, cls)
    except (cattrs.BaseValidationError, ForbiddenExtraKeysError, ValueError, TypeError, KeyError) as exc:
        problems += problems_of(exc)
    sound = _without(merged, [problem.path for problem in problems])
    problems += _cross_field_problems(converter, cls, sound, "")
    if problems or strangers or result is None:
        raise ConfigurationError([*strangers, *(_line(problem, sources, source) for problem in problems)])
    return result


def read_mapping(path: Path) -> dict[str, Any]:
    """The top-level mapping of a YAML or (``.toml``) TOML file. Raises `ConfigurationError`."""
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise ConfigurationError([f"{path}: cannot be read: {exc.strerror or type(exc).__name__}"]) from None
    return parse_mapping(content, str(path))


def parse_mapping(content: bytes, name: str) -> dict[str, Any]:
    """The top-level mapping of YAML or TOML text; ``name`` is the file's. Raises `ConfigurationError`."""
    try:
        text = content.decode("utf-8")
        raw = _parse_toml(text) if name.endswith(".toml") else _parse_yaml(text)
    except ValueError as exc:
        raise ConfigurationError([f"{name}: {exc}"]) from None
    if raw is None:
        raise ConfigurationError([f"{name}: is empty"])
    if not isinstance(raw, dict):
        raise ConfigurationError([f"{name}: expected a mapping of keys to values at the top, got {shown(raw)}"])
    return raw


def environment_overrides(environment: Mapping[str, str], prefix: str) -> list[Override]:
    """The variables ``<prefix>__SECTION__KEY`` as overrides, in a fixed order."""
    if not prefix:
        return []
    start = f"{prefix}__"
    return [
        Override(path=name.removeprefix(start).lower().replace("__", "."), value=environment[name], source=name)
        for name in sorted(environment)
        if name.startswith(start)
    ]


def exit_with_configuration_error(program: str, error: ConfigurationError) -> NoReturn:
    """Print one line per problem on stderr and exit with status 2, without a traceback."""
    for problem in error.problems:
        print(f"{program}: configuration: {problem}", file=sys.stderr)  # noqa: T201 - before logging is set up
    raise SystemExit(BAD_CONFIGURATION)


def _parse_toml(text: str) -> Any:
    import tomllib

    return tomllib.loads(text)  # its errors are ValueErrors which give line and column


def _parse_yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.load(text, Loader=_unique_key_loader())  # noqa: S506 - a subclass of the safe loader
    except yaml.MarkedYAMLError as exc:
        where = f"line {exc.problem_mark.line + 1}: " if exc.problem_mark is not None else ""
        raise InvalidValue(f"{where}not valid YAML: {exc.problem}") from None
    except yaml.YAMLError:
        raise InvalidValue("not valid YAML: it has characters that YAML does not allow") from None
    except RecursionError:
        raise InvalidValue("not usable: it is nested too deeply") from None


def _unique_key_loader() -> Any:
    import yaml

    # A key given twice is a mistake of which the second half would win in silence.
    class UniqueKeyLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                    if key.value in seen:
                        raise yaml.constructor.ConstructorError(
                            None, None, f"the key {shown(key.value)} is there twice", key.start_mark
                        )
                    seen.add(key.value)
            mapping: dict[Any, Any] = super().construct_mapping(node, deep)
            return mapping

    return UniqueKeyLoader


def _copy(raw: Any) -> Any:
    return {key: _copy(value) for key, value in raw.items()} if isinstance(raw, Mapping) else raw


def _without(raw: Any, paths: Sequence[str]) -> Any:
    """The data without the keys that have a problem already, so that the rules of their sections can still be asked."""
    copy = _copy(raw)
    for path in paths:
        keys = path.split("[")[0].split(".")
        target = copy
        for key in keys[:-1]:
            target = target.get(key) if isinstance(target, dict) else None
        if isinstance(target, dict):
            target.pop(keys[-1], None)
    return copy


def _apply(cls: type, merged: dict[str, Any], override: Override) -> Problem | None:
    """Put one override in its place; a problem where there is no such key."""
    keys = override.path.split(".")
    target: Any = merged
    section: Any = cls
    for depth, key in enumerate(keys):
        fields = _fields(section)
        if key not in fields:
            return Problem(override.source, f"no such setting: {_suggestion(key, list(fields))}")
        section = fields[key]
        if depth < len(keys) - 1:
            if target.get(key) is None:
                target[key] = {}
            target = target[key]
            if not isinstance(target, dict):
                return None  # the file's value is of the wrong kind, and that is reported already
    target[keys[-1]] = _from_text(section, override.value)
    return None


def _from_text(wanted: Any, value: Any) -> Any:
    """Text from the environment, for keys that hold more than one value: YAML flow style, or separated by commas."""
    if not isinstance(value, str) or _is_scalar(wanted):
        return value
    stripped = value.strip()
    if stripped.startswith(("[", "{")):
        try:
            return _parse_yaml(stripped)
        except ValueError:
            return value
    return [part.strip() for part in stripped.split(",") if part.strip()]


def _is_scalar(wanted: Any) -> bool:
    origin = typing.get_origin(wanted)
    if origin in (typing.Union, types.UnionType):
        return all(_is_scalar(argument) for argument in typing.get_args(wanted))
    if origin is typing.Annotated:
        return _is_scalar(typing.get_args(wanted)[0])
    return origin not in (list, tuple, dict, frozenset, Mapping, Sequence)


def _fields(section: Any) -> dict[str, Any]:
    """The keys of a configuration section and their types; nothing where it is no section."""
    section = _section_class(section)
    if section is None:
        return {}
    hints = typing.get_type_hints(section, include_extras=True)
    return {field.metadata.get("key", field.name): hints[field.name] for field in dataclasses.fields(section)}


def _section_class(wanted: Any) -> Any:
    if typing.get_origin(wanted) in (typing.Union, types.UnionType):
        candidates = [argument for argument in typing.get_args(wanted) if dataclasses.is_dataclass(argument)]
        return candidates[0] if len(candidates) == 1 else None
    return wanted if dataclasses.is_dataclass(wanted) else None


def _cross_field_problems(converter: cattrs.Converter, cls: Any, raw: Any, path: str) -> Iterator[Problem]:
    """What the sections' own rules say, for every section that is sound by itself."""
    if not isinstance(raw, Mapping):
        return
    if hasattr(cls, "problems"):
        try:
            section = converter.structure(raw, cls)
        except (cattrs.BaseValidationError, ForbiddenExtraKeysError, ValueError, TypeError, KeyError):
            section = None
        if section is not None:
            for key, text in section.problems():
                yield Problem(f"{path}.{key}".strip("."), text)
    for key, wanted in _fields(cls).items():
        nested = _section_class(wanted)
        if nested is not None and not (nested is not wanted and raw.get(key) is None):
            yield from _cross_field_problems(converter, nested, raw.get(key) or {}, f"{path}.{key}".strip("."))


def _suggestion(key: str, allowed: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, allowed, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"{key}{hint}; allowed: {', '.join(allowed) or 'nothing'}"


def _line(problem: Problem, sources: Mapping[str, str], source: str) -> str:
    origin = next((name for path, name in sources.items() if problem.path.split("[")[0] == path), "")
    if origin:
        return f"{problem.path} (from {origin}): {problem.text}"
    return ": ".join(part for part in (source, problem.path, problem.text) if part)
