"""The four ways to patch an object. Pure: nothing that is given is altered.

Lists are merged by key where the kinds of this package have such a key (``merge_keys.yaml``); the keys are looked up by
the name of the list alone, and a merged list keeps its order. Server-side apply knows one manager and detects no conflicts.
"""

from __future__ import annotations

import copy
from typing import Any

from sandbox.documents import packaged
from sandbox.status import ApiError, bad_request

_PRIMITIVES = "$deleteFromPrimitiveList/"


def merge(target: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def strategic_merge(target: Any, patch: Any) -> Any:
    """A strategic merge patch. Raises `ApiError` for a directive that is not one."""
    if not isinstance(patch, dict):
        return patch
    if (directive := patch.get("$patch")) not in (None, "merge", "replace"):
        raise bad_request(f"a strategic merge patch cannot {directive} here")
    is_kept = isinstance(target, dict) and directive != "replace"
    kept = patch.get("$retainKeys", target)
    result = {key: value for key, value in target.items() if key in kept} if is_kept else {}
    for key, value in patch.items():
        if key.startswith(_PRIMITIVES):
            name = key.removeprefix(_PRIMITIVES)
            result[name] = [item for item in result.get(name) or [] if item not in value]
        elif value is None:
            result.pop(key, None)
        elif isinstance(value, list) and not key.startswith("$"):
            result[key] = _merge_lists(key, result.get(key) or [], value)
        elif not key.startswith("$"):
            result[key] = strategic_merge(result.get(key), value)
    return result


def apply(current: Any, previous: Any, wanted: Any, name: str = "") -> Any:
    """Server-side apply: ``current`` with what ``wanted`` says, and without what only ``previous`` said."""
    if isinstance(wanted, dict):
        current, previous = (value if isinstance(value, dict) else {} for value in (current, previous))
        result = {key: value for key, value in current.items() if key in wanted or key not in previous}
        said = {key: value for key, value in wanted.items() if value is not None}
        return result | {key: apply(current.get(key), previous.get(key), value, key) for key, value in said.items()}
    merge_key = _merge_key(name, wanted) if isinstance(wanted, list) else None
    if merge_key is None:
        return wanted
    held, before, named = ({item.get(merge_key): item for item in items or []} for items in (current, previous, wanted))
    kept = {key: item for key, item in held.items() if key in named or key not in before}
    return list((kept | {key: apply(held.get(key), before.get(key), item) for key, item in named.items()}).values())


def json_patch(target: Any, operations: Any) -> Any:
    """A JSON patch (RFC 6902). Raises `ApiError` where an operation cannot be done."""
    document = [copy.deepcopy(target)]  # in a list, so that the root has a parent like everything else
    if not isinstance(operations, list):
        raise bad_request("a JSON patch is a list of operations")
    for operation in operations:
        try:
            _operate(document, operation)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            message = f"the server rejected our request due to an error in our request: {operation} cannot be done here"
            raise ApiError(422, "Invalid", message) from error
    return document[0]


def _operate(document: list[Any], operation: dict[str, Any]) -> None:
    name, value = operation["op"], operation.get("value")
    if name in ("move", "copy"):
        source, key = _place(document, operation["from"])
        value = copy.deepcopy(source[key])
        if name == "move":
            del source[key]
    elif name != "remove" and "value" not in operation:
        raise ValueError("value")
    parent, key = _place(document, operation["path"])
    is_list = isinstance(parent, list) and parent is not document
    if name in ("add", "move", "copy") and is_list:
        place = len(parent) if key == "-" else key
        if place > len(parent):
            raise IndexError(place)
        parent.insert(place, value)
    elif name in ("add", "move", "copy") or (name == "replace" and _has(parent, key)):
        parent[key] = value
    elif name == "remove" and parent is not document:
        del parent[key]
    elif name != "test" or parent[key] != value:
        raise ValueError(name)


def _place(document: list[Any], path: str) -> tuple[Any, Any]:
    """What holds the value at a path, and the key or index under which it does."""
    if path and not path.startswith("/"):
        raise ValueError(path)
    parent: Any = document
    key: Any = 0
    for part in path.split("/")[1:]:
        parent = parent[key]
        if isinstance(parent, dict):
            key = part.replace("~1", "/").replace("~0", "~")
        elif isinstance(parent, list) and (part.isdecimal() or part == "-"):
            key = part if part == "-" else int(part)
        else:
            raise ValueError(path)
    return parent, key


def _has(parent: Any, key: Any) -> bool:
    return key in parent if isinstance(parent, dict) else key in range(len(parent))


def _merge_key(name: str, items: list[Any]) -> str | None:
    """The key by which these items are told apart; None where the list is replaced as a whole."""
    for key in packaged("merge_keys.yaml").get(name, ()):
        if items and all(isinstance(item, dict) and key in item for item in items):
            return str(key)
    return None


def _merge_lists(name: str, target: list[Any], patch: list[Any]) -> list[Any]:
    if any(isinstance(item, dict) and item.get("$patch") == "replace" for item in patch):
        return [item for item in patch if "$patch" not in item]
    if name == "finalizers":
        return target + [item for item in patch if item not in target]
    key = _merge_key(name, patch)
    if key is None:
        return patch
    result = {item.get(key): item for item in target}
    for item in patch:
        if item.get("$patch") == "delete":
            result.pop(item[key], None)
        else:
            result[item[key]] = strategic_merge(result.get(item[key]), item)
    return list(result.values())
