"""What a deployment does next, as arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.deployments import new_replica_set, replica_counts, template_hash


def replica_set(name: str, replicas: int, available: int, total: int | None = None) -> dict[str, Any]:
    status = {"replicas": replicas if total is None else total, "availableReplicas": available}
    return {"metadata": {"name": name}, "spec": {"replicas": replicas}, "status": status}


def deployment(replicas: int, surge: int | str = "25%", unavailable: int | str = "25%") -> dict[str, Any]:
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}
    return {"spec": {"replicas": replicas, "strategy": strategy}}


@pytest.mark.parametrize(
    ("subject", "current", "old", "counts"),
    [
        (deployment(3), replica_set("new", 0, 0), [], {"new": 3}),
        (deployment(1), replica_set("new", 3, 3), [], {"new": 1}),
        # 25 % of four: one more, one less; the old one is brought down by one at once
        (deployment(4), replica_set("new", 0, 0), [replica_set("old", 4, 4)], {"new": 1, "old": 3}),
        (deployment(4), replica_set("new", 2, 1), [replica_set("old", 3, 3)], {"new": 2, "old": 2}),
        (deployment(4, 1, 0), replica_set("new", 1, 0), [replica_set("old", 4, 4)], {"new": 1, "old": 4}),
        (deployment(4, 1, 0), replica_set("new", 1, 1), [replica_set("old", 4, 4)], {"new": 1, "old": 3}),
        # old pods that serve nobody go first, whatever the limits
        (deployment(2, 1, 0), replica_set("new", 1, 0), [replica_set("old", 2, 0)], {"new": 1, "old": 0}),
        (deployment(2, 0, 0), replica_set("new", 0, 0), [replica_set("old", 2, 2)], {"new": 0, "old": 1}),
        (
            {"spec": {"replicas": 2, "strategy": {"type": "Recreate"}}},
            replica_set("new", 0, 0),
            [replica_set("old", 2, 2)],
            {"new": 0, "old": 0},
        ),
        (
            {"spec": {"replicas": 2, "strategy": {"type": "Recreate"}}},
            replica_set("new", 0, 0),
            [replica_set("old", 0, 0, 1)],
            {"new": 0, "old": 0},
        ),
        (
            {"spec": {"replicas": 2, "strategy": {"type": "Recreate"}}},
            replica_set("new", 0, 0),
            [replica_set("old", 0, 0)],
            {"new": 2, "old": 0},
        ),
    ],
)
def test_the_next_step(subject: Any, current: Any, old: Any, counts: dict[str, int]) -> None:
    assert replica_counts(subject, current, old) == counts


@settings(deadline=None)
@given(
    st.integers(1, 12),
    st.integers(0, 12),
    st.one_of(st.integers(0, 5), st.sampled_from(["0%", "25%", "50%", "100%"])),
    st.one_of(st.integers(0, 5), st.sampled_from(["0%", "25%", "50%", "100%"])),
)
def test_a_rollout_ends_and_keeps_its_limits(
    wanted: int, before: int, surge: int | str, unavailable: int | str
) -> None:
    subject = deployment(wanted, surge, unavailable)
    counts = {"new": 0, "old": before}
    for _ in range(100):
        current, old = (replica_set(name, counts[name], counts[name]) for name in ("new", "old"))
        after = replica_counts(subject, current, [old])
        if after == counts:
            break
        if before == wanted:
            assert sum(after.values()) >= 0.99 * wanted - max(1, _number(unavailable, wanted)) - 1
            assert sum(after.values()) <= wanted + _number(surge, wanted) + 1
        counts = after
    assert counts == {"new": wanted, "old": 0}


def _number(value: int | str, total: int) -> float:
    return value if isinstance(value, int) else int(value.rstrip("%")) * total / 100


def test_equal_templates_have_equal_hashes() -> None:
    assert template_hash({"a": 1, "b": 2}) == template_hash({"b": 2, "a": 1}) != template_hash({"a": 1})


def test_a_new_replica_set_carries_the_hash_everywhere() -> None:
    spec = {
        "selector": {"matchLabels": {"app": "x"}},
        "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": []}},
    }
    owner = {"kind": "Deployment", "apiVersion": "apps/v1", "spec": spec}
    owner["metadata"] = {"name": "d", "namespace": "n", "uid": "u"}
    made = new_replica_set(owner, 3)
    label = made["metadata"]["name"].removeprefix("d-")
    labels = {"app": "x", "pod-template-hash": label}
    assert made["spec"]["selector"]["matchLabels"] == made["spec"]["template"]["metadata"]["labels"] == labels
    assert made["metadata"]["annotations"] == {"deployment.kubernetes.io/revision": "3"}
    assert made["metadata"]["ownerReferences"][0]["uid"] == "u"
    assert spec["template"] == {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": []}}
