"""Label and field selectors, as query parameters and as fields of objects. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from sandbox.kinds import Object
from sandbox.status import bad_request

Matches = Callable[[Object], bool]

_REQUIREMENT = re.compile(
    r"\s*(?:(?P<absent>!)\s*(?P<without>[\w./-]+)"
    r"|(?P<key>[\w./-]+)\s*(?:(?P<operator>==|=|!=)\s*(?P<value>[\w.:/-]*)|(?P<set>in|notin)\s*\((?P<values>[^)]*)\))?)"
    r"\s*(?:,|$)"
)


def field_value(document: Object, path: str) -> str:
    """The value at a dotted path as a field selector compares it; the empty string where there is none."""
    value: Any = document
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def label_selector(text: str) -> Matches:
    """A predicate for ``a=b,c!=d,e in (f,g),h notin (i),j,!k``. Raises `ApiError`."""
    return _all([_label_requirement(match) for match in _requirements(text, "label")])


def field_selector(text: str) -> Matches:
    """A predicate for ``metadata.name=a,status.phase!=b``, whatever the field. Raises `ApiError`."""
    predicates = []
    for match in _requirements(text, "field"):
        if match["operator"] is None:
            raise bad_request(f'invalid field selector: "{text}"')
        predicates.append(_field_requirement(match["key"], match["value"], is_equal=match["operator"] != "!="))
    return _all(predicates)


def matches_labels(selector: Object | None, labels: Object | None) -> bool:
    """Whether a ``LabelSelector`` (``matchLabels``, ``matchExpressions``) selects these labels. None selects nothing."""
    if not selector:
        return False
    labels = labels or {}
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for expression in selector.get("matchExpressions") or []:
        key, values = expression["key"], expression.get("values") or []
        held = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }
        if not held.get(expression["operator"], False):
            return False
    return True


def _requirements(text: str, what: str) -> list[re.Match[str]]:
    found, position = [], 0
    while position < len(text):
        match = _REQUIREMENT.match(text, position)
        if match is None:
            raise bad_request(f'unable to parse {what} selector: "{text}"')
        found.append(match)
        position = match.end()
    return found


def _label_requirement(match: re.Match[str]) -> Matches:
    key, value, operator = match["key"], match["value"], match["operator"]

    def labels(document: Object) -> Object:
        return document["metadata"].get("labels") or {}

    if match["absent"]:
        absent = match["without"]
        return lambda document: absent not in labels(document)
    if match["set"]:
        values = {value.strip() for value in match["values"].split(",")}
        wanted = match["set"] == "in"
        return lambda document: (labels(document).get(key) in values) is wanted
    if operator is None:
        return lambda document: key in labels(document)
    return lambda document: (labels(document).get(key) == value) is (operator != "!=")


def _field_requirement(path: str, value: str, *, is_equal: bool) -> Matches:
    return lambda document: (field_value(document, path) == value) is is_equal


def _all(predicates: list[Matches]) -> Matches:
    return lambda document: all(predicate(document) for predicate in predicates)
