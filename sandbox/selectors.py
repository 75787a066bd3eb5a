"""Label and field selectors, as query parameters and as fields of objects. Pure."""

from __future__ import annotations

import re
from typing import Any

from sandbox.kinds import Object
from sandbox.status import bad_request

Requirement = tuple[str, str, list[str]]
"""A key, an operator of a ``LabelSelector``, and the values that it compares with."""

_REQUIREMENT = re.compile(
    r"\s*(?:!\s*(?P<absent>[\w./-]+)"
    r"|(?P<key>[\w./-]+)\s*(?:(?P<operator>==|=|!=)\s*(?P<value>[\w.:/-]*)|(?P<set>in|notin)\s*\((?P<values>[^)]*)\))?)"
    r"\s*(?:,|$)"
)


def parse(text: str) -> list[Requirement]:
    """What ``a=b,c!=d,e in (f,g),h notin (i),j,!k`` requires. Raises `ApiError`."""
    found: list[Requirement] = []
    position = 0
    while position < len(text):
        match = _REQUIREMENT.match(text, position)
        if match is None:
            raise bad_request(f'unable to parse the selector "{text}"')
        position = match.end()
        if match["absent"]:
            found.append((match["absent"], "DoesNotExist", []))
        elif match["set"]:
            values = [value.strip() for value in match["values"].split(",")]
            found.append((match["key"], "In" if match["set"] == "in" else "NotIn", values))
        elif match["operator"]:
            found.append((match["key"], "NotIn" if match["operator"] == "!=" else "In", [match["value"]]))
        else:
            found.append((match["key"], "Exists", []))
    return found


def selects_labels(requirements: list[Requirement], labels: Object | None) -> bool:
    """Whether labels are as required."""
    return all(_holds(operator, (labels or {}).get(key), values) for key, operator, values in requirements)


def selects_fields(requirements: list[Requirement], document: Object) -> bool:
    """Whether fields, each at a dotted path, are as required; what is not there is an empty string."""
    return all(_holds(operator, _field(document, path), values) for path, operator, values in requirements)


def matches_labels(selector: Object | None, labels: Object | None) -> bool:
    """Whether a ``LabelSelector`` (``matchLabels``, ``matchExpressions``) selects these labels. None selects nothing."""
    if not selector:
        return False
    requirements = [(key, "In", [value]) for key, value in (selector.get("matchLabels") or {}).items()]
    expressions = selector.get("matchExpressions") or []
    requirements += [(item["key"], item["operator"], item.get("values") or []) for item in expressions]
    return selects_labels(requirements, labels)


def _holds(operator: str, value: str | None, values: list[str]) -> bool:
    match operator:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists" | "DoesNotExist":
            return (value is not None) is (operator == "Exists")
        case _:
            return False


def _field(document: Object, path: str) -> str:
    value: Any = document
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
