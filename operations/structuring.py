"""How plain data becomes typed values, and how what went wrong is told: the one module that imports cattrs' converters.

Strict on purpose: a number is not a boolean, a number is not text, and a key nobody knows is a problem.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import typing
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import cattrs
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError
from cattrs.gen import make_dict_structure_fn, override

from operations.values import (
    Address,
    ByteCount,
    InvalidValue,
    Seconds,
    SecretFile,
    format_byte_count,
    format_seconds,
    parse_address,
    parse_byte_count,
    parse_moment,
    parse_path,
    parse_seconds,
    shown,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: the dotted path of the key, and what is allowed there."""

    path: str
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Range:
    """For ``Annotated[Seconds, Range(...)]``: the least and the greatest value allowed."""

    minimum: float
    maximum: float = float("inf")


def make_converter() -> cattrs.Converter:
    """A converter for configuration; it collects every problem instead of stopping at the first."""
    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
    for wanted, parse in _PARSERS.items():
        converter.register_structure_hook(wanted, _hook(parse))
    converter.register_structure_hook_func(_is(Seconds), _hook(parse_seconds))
    converter.register_structure_hook_func(_is(ByteCount), _hook(parse_byte_count))
    converter.register_structure_hook_func(_is_literal, _one_of_literal)
    converter.register_structure_hook_func(
        lambda wanted: isinstance(wanted, type) and issubclass(wanted, Enum), _one_of_enum
    )
    converter.register_structure_hook_factory(dataclasses.is_dataclass, lambda wanted: _section(converter, wanted))
    converter.register_structure_hook_factory(_is_sequence, lambda wanted: _sequence(converter, wanted))
    converter.register_structure_hook_factory(_is_mapping, lambda wanted: _mapping(converter, wanted))
    return converter


def problems_of(error: BaseException) -> Iterator[Problem]:
    """Everything that cattrs found, flattened to paths and texts."""
    yield from _walk(error, "")


def _walk(error: BaseException, path: str) -> Iterator[Problem]:
    if isinstance(error, ClassValidationError):
        with_notes, rest = error.group_exceptions()
        for nested, note in with_notes:
            yield from _walk(nested, f"{path}.{_key(error.cl, note.name)}".strip("."))
        for nested in rest:
            yield from _walk(nested, path)
    elif isinstance(error, IterableValidationError):
        items, rest = error.group_exceptions()
        for nested, item in items:
            yield from _walk(nested, f"{path}[{item.index}]")
        for nested in rest:
            yield from _walk(nested, path)
    elif isinstance(error, ForbiddenExtraKeysError):
        allowed = [_key(error.cl, field.name) for field in dataclasses.fields(error.cl)]
        for key in sorted(map(str, error.extra_fields)):
            near = difflib.get_close_matches(key, allowed, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            yield Problem(f"{path}.{key}".strip("."), f"unknown key{hint}; allowed here: {', '.join(allowed)}")
    elif isinstance(error, KeyError):
        yield Problem(path, "is required")
    else:
        yield Problem(path, str(error))


def _key(cls: Any, name: str) -> str:
    for field in dataclasses.fields(cls):
        if field.name == name:
            return str(field.metadata.get("key", name))
    return name


def _section(converter: cattrs.Converter, cls: Any) -> Any:
    hints = typing.get_type_hints(cls, include_extras=True)
    overrides = {field.name: _override(converter, field, hints[field.name]) for field in dataclasses.fields(cls)}
    make: Any = make_dict_structure_fn
    structure = make(
        cls,
        converter,
        _cattrs_forbid_extra_keys=True,
        _cattrs_detailed_validation=True,
        _cattrs_use_linecache=False,
        **overrides,
    )

    def structure_section(value: Any, _: Any) -> Any:
        if isinstance(value, cls):
            return value
        if value is None:  # a heading in YAML under which every key is commented out
            value = {}
        if not isinstance(value, dict):
            raise InvalidValue(f"expected a section with keys ({', '.join(_keys(cls))}), got {shown(value)}")
        return structure(value, cls)

    return structure_section


def _override(converter: cattrs.Converter, field: dataclasses.Field[Any], wanted: Any) -> Any:
    rename = field.metadata.get("key")
    if _has_range(wanted):  # cattrs reads the hints of dataclasses without their annotations
        return override(rename=rename, struct_hook=_ranged(converter, wanted))
    return override(rename=rename)


def _keys(cls: Any) -> list[str]:
    return [_key(cls, field.name) for field in dataclasses.fields(cls)]


def _sequence(converter: cattrs.Converter, wanted: Any) -> Any:
    item = typing.get_args(wanted)[0]
    make = frozenset if typing.get_origin(wanted) is frozenset else tuple

    def structure_sequence(value: Any, _: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            raise InvalidValue(f"expected a list, got {shown(value)}")
        return make(_collect(converter, list(enumerate(value)), item, wanted))

    return structure_sequence


def _mapping(converter: cattrs.Converter, wanted: Any) -> Any:
    item = typing.get_args(wanted)[1]

    def structure_mapping(value: Any, _: Any) -> Any:
        if not isinstance(value, dict):
            raise InvalidValue(f"expected a mapping of names to values, got {shown(value)}")
        keys = [key for key in value if not isinstance(key, str)]
        if keys:
            raise InvalidValue(f"expected text as key, got {shown(keys[0])}; put it in quotes")
        return dict(zip(value, _collect(converter, list(value.items()), item, wanted), strict=True))

    return structure_mapping


def _collect(converter: cattrs.Converter, items: Sequence[tuple[Any, Any]], item: Any, wanted: Any) -> list[Any]:
    results: list[Any] = []
    errors: list[Exception] = []
    for index, value in items:
        try:
            results.append(converter.structure(value, item))
        except Exception as exc:  # noqa: BLE001 - collected, and reported with all the others
            exc.__notes__ = [*getattr(exc, "__notes__", []), _note(index)]
            errors.append(exc)
    if errors:
        raise IterableValidationError("items", errors, wanted)
    return results


def _note(index: Any) -> Any:
    return cattrs.errors.IterableValidationNote(f"item {index}", index, Any)


def _is_sequence(wanted: Any) -> bool:
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is tuple:
        return len(arguments) == 2 and arguments[1] is Ellipsis
    return origin in (list, frozenset) or (
        isinstance(origin, type) and issubclass(origin, Sequence) and origin is not str
    )


def _is_mapping(wanted: Any) -> bool:
    origin = typing.get_origin(wanted)
    return isinstance(origin, type) and issubclass(origin, typing.Mapping)


def _hook(parse: Any) -> Any:
    return lambda value, _: parse(value)


def _is(wanted: Any) -> Any:
    return lambda candidate: candidate is wanted


def _is_literal(wanted: Any) -> bool:
    origin: Any = typing.get_origin(wanted)
    return origin is typing.Literal


def _has_range(wanted: Any) -> bool:
    return typing.get_origin(wanted) is typing.Annotated and any(
        isinstance(argument, Range) for argument in typing.get_args(wanted)
    )


def _ranged(converter: cattrs.Converter, wanted: Any) -> Any:
    inner, *annotations = typing.get_args(wanted)
    limits = next(annotation for annotation in annotations if isinstance(annotation, Range))
    show = _shower(inner)

    def structure_in_range(value: Any, _: Any) -> Any:
        number = converter.structure(value, inner)
        if not limits.minimum <= number <= limits.maximum:
            upper = f" and at most {show(limits.maximum)}" if limits.maximum != float("inf") else ""
            raise InvalidValue(f"must be at least {show(limits.minimum)}{upper}, got {shown(value)}")
        return number

    return structure_in_range


def _shower(inner: Any) -> Callable[[float], str]:
    if inner is Seconds:
        return format_seconds
    if inner is ByteCount:
        return lambda count: format_byte_count(int(count))
    return lambda number: f"{number:g}"


def _one_of_literal(value: Any, wanted: Any) -> Any:
    return _one_of(value, {argument: argument for argument in typing.get_args(wanted)})


def _one_of_enum(value: Any, wanted: Any) -> Any:
    return _one_of(value, {member.value: member for member in wanted})


def _one_of(value: Any, allowed: dict[Any, Any]) -> Any:
    try:
        return allowed[value]
    except (KeyError, TypeError):
        raise InvalidValue(f"expected one of {', '.join(map(str, allowed))}, got {shown(value)}") from None


def _parse_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    hint = "; put it in quotes" if isinstance(value, (int, float, datetime.date)) else ""
    raise InvalidValue(f"expected text, got {shown(value)}{hint}")


def _parse_boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    raise InvalidValue(f"expected true or false, got {shown(value)}")


def _parse_whole_number(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            return int(value.strip())
        except ValueError:
            pass
    raise InvalidValue(f"expected a whole number, got {shown(value)}")


def _parse_number(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        try:
            return float(value.strip())
        except ValueError:
            pass
    raise InvalidValue(f"expected a number, got {shown(value)}")


_PARSERS: dict[Any, Any] = {
    str: _parse_text,
    bool: _parse_boolean,
    int: _parse_whole_number,
    float: _parse_number,
    Path: parse_path,
    Address: parse_address,
    SecretFile: lambda value: SecretFile(parse_path(value)),
    datetime.datetime: parse_moment,
}
