"""The four ways to patch an object. Pure: nothing that is given is altered.

Lists are merged by key where the kinds of this package have such a key; the keys are looked up by the name of the list
alone. Server-side apply knows one manager and detects no conflicts.
"""

from __future__ import annotations

import copy
from typing import Any

from sandbox.status import ApiError, bad_request

_MERGE_KEYS = {
    "addresses": ("type",),
    "conditions": ("type",),
    "containers": ("name",),
    "env": ("name",),
    "ephemeralContainers": ("name",),
    "hostAliases": ("ip",),
    "imagePullSecrets": ("name",),
    "initContainers": ("name",),
    "ownerReferences": ("uid",),
    "ports": ("containerPort", "port"),
    "secrets": ("name",),
    "topologySpreadConstraints": ("topologyKey",),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
}
_ORDER, _PRIMITIVES = "$setElementOrder/", "$deleteFromPrimitiveList/"


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
    if (directive := patch.get("$patch")) == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    if directive not in (None, "merge"):
        raise bad_request(f"a strategic merge patch cannot {directive} here")
    result = dict(target) if isinstance(target, dict) else {}
    if (retained := patch.get("$retainKeys")) is not None:
        result = {key: value for key, value in result.items() if key in retained}
    for key, value in patch.items():
        if key.startswith(_PRIMITIVES):
            name = key.removeprefix(_PRIMITIVES)
            result[name] = [item for item in result.get(name) or [] if item not in value]
        elif key.startswith("$"):
            continue
        elif value is None:
            result.pop(key, None)
        elif isinstance(value, list):
            result[key] = _merge_lists(key, result.get(key) or [], value)
        else:
            result[key] = strategic_merge(result.get(key), value)
    for key, order in patch.items():
        if key.startswith(_ORDER) and (name := key.removeprefix(_ORDER)) in result:
            result[name] = _in_order(name, result[name], order)
    return result


def apply(current: Any, previous: Any, wanted: Any, name: str = "") -> Any:
    """Server-side apply: ``current`` with what ``wanted`` says, and without what only ``previous`` said."""
    if isinstance(wanted, dict):
        current, previous = (value if isinstance(value, dict) else {} for value in (current, previous))
        result = {key: value for key, value in current.items() if key in wanted or key not in previous}
        return result | {
            key: apply(current.get(key), previous.get(key), value, key)
            for key, value in wanted.items()
            if value is not None
        }
    merge_key = _merge_key(name, wanted) if isinstance(wanted, list) else None
    if merge_key is None:
        return wanted
    held, before = ({item.get(merge_key): item for item in items or []} for items in (current, previous))
    named = {item[merge_key]: item for item in wanted}
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
    name, path = operation["op"], operation["path"]
    if name == "test":
        if _take(document, path, remove=False) != operation["value"]:
            raise ValueError(path)
    elif name in ("add", "replace"):
        if name == "replace":
            _take(document, path, remove=path != "")
        _put(document, path, operation["value"])
    elif name == "remove":
        _take(document, path, remove=True)
    elif name in ("move", "copy"):
        _put(document, path, copy.deepcopy(_take(document, operation["from"], remove=name == "move")))
    else:
        raise ValueError(name)


def _parent(document: list[Any], path: str) -> tuple[Any, str]:
    if path and not path.startswith("/"):
        raise ValueError(path)
    parts = ["0", *(part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:])]
    parent: Any = document
    for part in parts[:-1]:
        parent = parent[_index(part)] if isinstance(parent, list) else parent[part]
    return parent, parts[-1]


def _index(part: str) -> int:
    if not part.isdecimal():
        raise ValueError(part)
    return int(part)


def _take(document: list[Any], path: str, *, remove: bool) -> Any:
    parent, last = _parent(document, path)
    key: Any = _index(last) if isinstance(parent, list) else last
    return parent.pop(key) if remove else parent[key]


def _put(document: list[Any], path: str, value: Any) -> None:
    parent, last = _parent(document, path)
    if isinstance(parent, dict):
        parent[last] = value
    elif parent is document:
        document[0] = value
    elif last == "-":
        parent.append(value)
    elif _index(last) > len(parent):
        raise IndexError(last)
    else:
        parent.insert(_index(last), value)


def _merge_key(name: str, items: list[Any]) -> str | None:
    """The key by which these items are told apart; None where the list is replaced as a whole."""
    for key in _MERGE_KEYS.get(name, ()):
        if items and all(isinstance(item, dict) and key in item for item in items):
            return key
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


def _in_order(name: str, items: list[Any], order: list[Any]) -> list[Any]:
    """The items in the order asked for; those that it does not name come last."""
    key = _merge_key(name, items)

    def identity(item: Any) -> Any:
        return item.get(key) if isinstance(item, dict) else item

    places = {identity(item): place for place, item in enumerate(order)}
    return sorted(items, key=lambda item: places.get(identity(item), len(places)))
