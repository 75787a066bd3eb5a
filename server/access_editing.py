"""Changing the access file without losing what people wrote into it: comments, order and style stay.

The text is edited at the marks that the YAML parser gives, and the result is parsed again. Where it does not say
exactly what it should (anchors, unusual layouts), the whole file is written anew from its data, and the caller is told
that comments were lost. Pure: text in, text out.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import yaml

Path = tuple[str | int, ...]
"""Keys and indexes from the top of the document."""

EMPTY_FILE = "# Who may come in: see the documentation on access. kas reads this file again when it changes.\n"


@dataclasses.dataclass(frozen=True, slots=True)
class Edited:
    """The new text, and whether comments and layout survived."""

    text: str
    layout_kept: bool


def append(text: str, path: Path, item: dict[str, Any]) -> Edited:
    """Add an item to the end of the list at ``path``; the list is made where there is none."""

    def change(data: Any) -> None:
        parent = _descend(data, path[:-1])
        if parent.get(path[-1]) is None:
            parent[path[-1]] = []
        parent[path[-1]].append(item)

    return _edit(text, change, lambda: _append_text(text, path, item))


def remove(text: str, path: Path) -> Edited:
    """Take an item out of a list; ``path`` ends with its index."""

    def change(data: Any) -> None:
        del _descend(data, path[:-1])[path[-1]]

    return _edit(text, change, lambda: _remove_text(text, path))


def _edit(text: str, change: Callable[[Any], None], edit: Callable[[], str]) -> Edited:
    wanted = copy.deepcopy(yaml.safe_load(text)) or {}
    change(wanted)
    try:
        edited = edit()
        if yaml.safe_load(edited) == wanted:
            return Edited(edited, layout_kept=True)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError):
        pass  # a layout that is not understood: written anew below
    return Edited(_dump(wanted), layout_kept=False)


def _descend(data: Any, path: Path) -> Any:
    for key in path:
        data = data[key]
    return data


def _append_text(text: str, path: Path, item: dict[str, Any]) -> str:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is None:
        return f"{text.rstrip()}\n{path[-1]}:\n{_block_item(item, 2)}".lstrip("\n")
    parent = _find(root, path[:-1])
    key, sequence = _entry(parent, path[-1])
    if key is None or sequence is None:
        return _append_key(text, parent, str(path[-1]), item)
    if isinstance(sequence, yaml.SequenceNode) and sequence.value:
        last = _end(sequence.value[-1])
        if sequence.flow_style:
            return f"{text[:last]}, {_flow(item)}{text[last:]}"
        line_end = _line_end(text, last)
        return f"{text[:line_end]}\n{_block_item(item, sequence.start_mark.column)}{text[line_end + 1 :]}"
    if parent.flow_style:
        return f"{text[: sequence.start_mark.index]}[{_flow(item)}]{text[sequence.end_mark.index :]}"
    # An empty list or nothing: becomes a block below its key.
    colon = text.index(":", key.end_mark.index) + 1
    behind = sequence.end_mark.index if sequence.start_mark.index != sequence.end_mark.index else colon
    line_end = _line_end(text, behind)
    rest = text[behind:line_end].rstrip()
    return f"{text[:colon]}{rest}\n{_block_item(item, key.start_mark.column + 2)}{text[line_end + 1 :]}"


def _append_key(text: str, parent: yaml.MappingNode, key: str, item: dict[str, Any]) -> str:
    """A key that is not there yet, behind the last one of its mapping."""
    last = _end(parent)
    if parent.flow_style:
        inside = last - 1
        comma = ", " if parent.value else ""
        return f"{text[:inside].rstrip()}{comma}{key}: [{_flow(item)}]{text[inside:]}"
    line_end = _line_end(text, last)
    column = parent.start_mark.column
    return f"{text[:line_end]}\n{' ' * column}{key}:\n{_block_item(item, column + 2)}{text[line_end + 1 :]}"


def _remove_text(text: str, path: Path) -> str:
    sequence = _find(yaml.compose(text, Loader=yaml.SafeLoader), path[:-1])
    index = path[-1]
    assert isinstance(index, int)
    items = sequence.value
    item = items[index]
    if sequence.flow_style:
        if index + 1 < len(items):
            return text[: item.start_mark.index] + text[items[index + 1].start_mark.index :]
        start = _end(items[index - 1]) if index else item.start_mark.index
        return text[:start] + text[_end(item) :]
    if len(items) == 1:
        return f"{text[: sequence.start_mark.index]}[]{text[_end(item) :]}"
    line_start = text.rindex("\n", 0, item.start_mark.index) + 1 if "\n" in text[: item.start_mark.index] else 0
    return text[:line_start] + text[_line_end(text, _end(item)) + 1 :]


def _find(node: Any, path: Path) -> Any:
    for key in path:
        node = node.value[key] if isinstance(key, int) else _entry(node, key)[1]
    return node


def _entry(mapping: Any, wanted: str | int) -> tuple[Any, Any]:
    for key, value in mapping.value:
        if key.value == wanted:
            return key, value
    return None, None


def _end(node: Any) -> int:
    """Behind the last character of a node. The marks of block collections also take in the comments behind them."""
    if isinstance(node, yaml.ScalarNode) or node.flow_style or not node.value:
        return int(node.end_mark.index)
    last = node.value[-1]
    if isinstance(node, yaml.SequenceNode):
        return _end(last)
    key, value = last
    if isinstance(value, yaml.ScalarNode) and value.start_mark.index == value.end_mark.index:
        return int(key.end_mark.index) + 1  # a key without a value: behind its colon
    return _end(value)


def _line_end(text: str, position: int) -> int:
    found = text.find("\n", position)
    return found if found >= 0 else len(text)


def _block_item(item: dict[str, Any], column: int) -> str:
    dumped = yaml.safe_dump(item, sort_keys=False, default_flow_style=None, width=10_000, allow_unicode=True)
    # A flat mapping comes out as one line in braces, which is how tokens read best.
    first, *others = dumped.splitlines()
    indent = " " * column
    return "".join([f"{indent}- {first}\n", *(f"{indent}  {line}\n" for line in others)])


def _flow(item: dict[str, Any]) -> str:
    dumped: str = yaml.safe_dump(item, sort_keys=False, default_flow_style=True, width=10_000, allow_unicode=True)
    return dumped.strip()


def _dump(data: dict[str, Any]) -> str:
    body = yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
    return EMPTY_FILE + body
