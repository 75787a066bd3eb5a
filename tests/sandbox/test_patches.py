"""The four ways to patch."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from sandbox import patches
from sandbox.status import ApiError

POD: Any = {
    "spec": {
        "containers": [{"name": "a", "image": "a:1", "ports": [{"containerPort": 80}]}, {"name": "b", "image": "b:1"}],
        "tolerations": [{"key": "x"}],
    },
    "metadata": {"labels": {"k": "v"}, "finalizers": ["one", "two"]},
}


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [  # RFC 7396, appendix A
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_a_merge_patch_is_that_of_the_rfc(target: Any, patch: Any, result: Any) -> None:
    assert patches.merge(target, patch) == result


@pytest.mark.parametrize(
    ("patch", "path", "result"),
    [
        ({"spec": {"containers": [{"name": "b", "image": "b:2"}]}}, "spec.containers.1.image", "b:2"),
        ({"spec": {"containers": [{"name": "b", "image": "b:2"}]}}, "spec.containers.0.image", "a:1"),
        ({"spec": {"containers": [{"name": "c", "image": "c:1"}]}}, "spec.containers.2.name", "c"),
        ({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}}, "spec.containers.0.name", "b"),
        ({"spec": {"containers": [{"$patch": "replace"}, {"name": "z"}]}}, "spec.containers", [{"name": "z"}]),
        ({"spec": {"tolerations": [{"key": "y"}]}}, "spec.tolerations", [{"key": "y"}]),
        ({"metadata": {"labels": {"k": None, "n": "w"}}}, "metadata.labels", {"n": "w"}),
        ({"metadata": {"labels": {"$patch": "replace", "n": "w"}}}, "metadata.labels", {"n": "w"}),
        ({"metadata": {"finalizers": ["three"]}}, "metadata.finalizers", ["one", "two", "three"]),
        ({"metadata": {"$deleteFromPrimitiveList/finalizers": ["one"]}}, "metadata.finalizers", ["two"]),
        ({"metadata": {"$retainKeys": ["labels"]}}, "metadata", {"labels": {"k": "v"}}),
        ({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}}, "spec.containers.0.name", "a"),
    ],
)
def test_a_strategic_merge_patch_knows_the_keys_of_lists(patch: Any, path: str, result: Any) -> None:
    before = copy.deepcopy(POD)
    value: Any = patches.strategic_merge(POD, patch)
    for part in path.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    assert value == result
    assert before == POD


def test_a_directive_that_is_none_is_refused() -> None:
    with pytest.raises(ApiError, match="cannot explode"):
        patches.strategic_merge(POD, {"$patch": "explode"})


@pytest.mark.parametrize(
    ("operations", "result"),
    [  # RFC 6902, appendix A
        ([{"op": "add", "path": "/baz", "value": "qux"}], {"foo": ["bar", "baz"], "baz": "qux"}),
        ([{"op": "add", "path": "/foo/1", "value": "qux"}], {"foo": ["bar", "qux", "baz"]}),
        ([{"op": "add", "path": "/foo/-", "value": "qux"}], {"foo": ["bar", "baz", "qux"]}),
        ([{"op": "remove", "path": "/foo/0"}], {"foo": ["baz"]}),
        ([{"op": "replace", "path": "/foo", "value": 1}], {"foo": 1}),
        ([{"op": "replace", "path": "", "value": {"a": 1}}], {"a": 1}),
        ([{"op": "copy", "from": "/foo/0", "path": "/x"}], {"foo": ["bar", "baz"], "x": "bar"}),
        ([{"op": "move", "from": "/foo/0", "path": "/foo/1"}], {"foo": ["baz", "bar"]}),
        ([{"op": "test", "path": "/foo/0", "value": "bar"}], {"foo": ["bar", "baz"]}),
        ([{"op": "add", "path": "/a~1b~0c", "value": 1}], {"foo": ["bar", "baz"], "a/b~c": 1}),
    ],
)
def test_a_json_patch_is_that_of_the_rfc(operations: Any, result: Any) -> None:
    target = {"foo": ["bar", "baz"]}
    assert patches.json_patch(target, operations) == result
    assert target == {"foo": ["bar", "baz"]}


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/foo/0", "value": "no"},
        {"op": "remove", "path": "/nothing"},
        {"op": "replace", "path": "/nothing", "value": 1},
        {"op": "add", "path": "/foo/7", "value": 1},
        {"op": "add", "path": "/foo/-1", "value": 1},
        {"op": "add", "path": "foo", "value": 1},
        {"op": "shout", "path": "/foo"},
        {"op": "add", "path": "/foo/0"},
        "remove",
    ],
)
def test_an_operation_that_cannot_be_done_is_refused(operation: Any) -> None:
    with pytest.raises(ApiError) as caught:
        patches.json_patch({"foo": ["bar"]}, [operation])
    assert caught.value.code == 422


def test_apply_takes_away_what_only_the_last_one_wanted() -> None:
    current = {"data": {"mine": "1", "gone": "1", "theirs": "1"}, "kind": "ConfigMap"}
    previous = {"data": {"mine": "1", "gone": "1"}}
    assert patches.apply(current, previous, {"data": {"mine": "2"}}) == {
        "data": {"mine": "2", "theirs": "1"},
        "kind": "ConfigMap",
    }


def test_apply_merges_lists_by_key() -> None:
    current = {"containers": [{"name": "a", "image": "1", "resources": {}}, {"name": "old"}, {"name": "injected"}]}
    previous = {"containers": [{"name": "a", "image": "1"}, {"name": "old"}]}
    wanted = {"containers": [{"name": "a", "image": "2"}, {"name": "new"}]}
    assert patches.apply(current, previous, wanted)["containers"] == [
        {"name": "a", "image": "2", "resources": {}},
        {"name": "injected"},
        {"name": "new"},
    ]
