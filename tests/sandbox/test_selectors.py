"""Selectors."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.selectors import matches_labels, parse, selects_fields, selects_labels
from sandbox.status import ApiError

POD: dict[str, Any] = {
    "metadata": {"name": "p", "labels": {"app": "web", "tier": "front", "example.com/x": "1"}},
    "status": {"phase": "Running"},
    "spec": {"unschedulable": True},
}


@pytest.mark.parametrize(
    ("selector", "selects"),
    [
        ("", True),
        ("app=web", True),
        ("app==web,tier=front", True),
        ("app=web,tier=back", False),
        ("app!=web", False),
        ("none!=web", True),
        ("app", True),
        ("none", False),
        ("!none", True),
        ("! app", False),
        ("app in (web, db)", True),
        ("app in (db)", False),
        ("app notin (db),tier in (front)", True),
        ("none notin (db)", True),
        ("example.com/x=1", True),
        ("app=", False),
    ],
)
def test_label_selectors(selector: str, selects: bool) -> None:
    assert selects_labels(parse(selector), POD["metadata"]["labels"]) is selects


@pytest.mark.parametrize(
    ("selector", "selects"),
    [
        ("metadata.name=p", True),
        ("metadata.name!=p", False),
        ("status.phase==Running,metadata.name=p", True),
        ("spec.nodeName=", True),
        ("spec.unschedulable=true", True),
        ("metadata.name.deeper=p", False),
    ],
)
def test_field_selectors(selector: str, selects: bool) -> None:
    assert selects_fields(parse(selector), POD) is selects


@pytest.mark.parametrize("selector", ["app in web", "=a", "a=b c", "a,,b", "a=b="])
def test_what_is_no_selector_is_refused(selector: str) -> None:
    with pytest.raises(ApiError, match="unable to parse"):
        parse(selector)


@pytest.mark.parametrize(
    ("expression", "selects"),
    [
        ({"key": "app", "operator": "In", "values": ["web"]}, True),
        ({"key": "app", "operator": "NotIn", "values": ["web"]}, False),
        ({"key": "app", "operator": "Exists"}, True),
        ({"key": "app", "operator": "DoesNotExist"}, False),
        ({"key": "app", "operator": "Almost"}, False),
    ],
)
def test_expressions_of_a_label_selector(expression: dict[str, object], selects: bool) -> None:
    assert matches_labels({"matchExpressions": [expression]}, {"app": "web"}) is selects


def test_an_empty_selector_selects_nothing_here() -> None:
    assert not matches_labels({}, {"app": "web"})
    assert not matches_labels(None, {"app": "web"})
    assert matches_labels({"matchLabels": {"app": "web"}}, {"app": "web", "more": "1"})
    assert not matches_labels({"matchLabels": {"app": "web"}}, None)
