"""The object store: versions, conflicts, history."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest
import trio

import sandbox.store
from sandbox.kinds import CONFIG_MAPS, DEPLOYMENTS, Object
from sandbox.status import ApiError
from sandbox.store import Store


@pytest.fixture
def store() -> Store:
    return Store(now=lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), randomness=random.Random(1))


def config_map(name: str = "a", **contents: object) -> Object:
    return CONFIG_MAPS.of({"metadata": {"name": name, "namespace": "n"}, **contents})


def test_a_new_object_gets_a_version_a_uid_and_a_time(store: Store) -> None:
    made = store.create(CONFIG_MAPS, config_map())
    assert made["metadata"]["resourceVersion"] == str(store.revision)
    assert made["metadata"]["creationTimestamp"] == "2026-01-02T03:04:05Z"
    assert made["metadata"]["uid"] in store.uids
    assert "generation" not in made["metadata"]


def test_there_is_one_object_of_a_name(store: Store) -> None:
    store.create(CONFIG_MAPS, config_map())
    with pytest.raises(ApiError, match='configmaps "a" already exists'):
        store.create(CONFIG_MAPS, config_map())


def test_what_was_handed_out_does_not_change(store: Store) -> None:
    made = store.create(CONFIG_MAPS, config_map(data={"x": "1"}))
    store.patch(CONFIG_MAPS, made, {"data": {"x": "2"}})
    assert made["data"] == {"x": "1"}
    assert store.get(CONFIG_MAPS, "n", "a")["data"] == {"x": "2"}


def test_an_old_version_cannot_be_replaced(store: Store) -> None:
    old = store.create(CONFIG_MAPS, config_map())
    store.replace(CONFIG_MAPS, {**old, "data": {"x": "1"}})
    with pytest.raises(ApiError, match="the object has been modified") as caught:
        store.replace(CONFIG_MAPS, {**old, "data": {"x": "2"}})
    assert caught.value.code == 409


def test_nothing_changes_where_documents_are_equal(store: Store) -> None:
    made = store.create(CONFIG_MAPS, config_map(data={"x": "1"}))
    assert store.replace(CONFIG_MAPS, config_map(data={"x": "1"})) is made
    assert store.changes(CONFIG_MAPS, int(made["metadata"]["resourceVersion"])) == []


def test_the_generation_counts_changes_of_the_spec_only(store: Store) -> None:
    document = DEPLOYMENTS.of({"metadata": {"name": "d", "namespace": "n"}, "spec": {"replicas": 1}})
    made = store.create(DEPLOYMENTS, document)
    assert store.patch(DEPLOYMENTS, made, {"status": {"replicas": 1}})["metadata"]["generation"] == 1
    assert store.patch(DEPLOYMENTS, made, {"spec": {"replicas": 2}})["metadata"]["generation"] == 2


def test_an_object_with_finalizers_goes_when_the_last_is_removed(store: Store) -> None:
    document = config_map()
    document["metadata"]["finalizers"] = ["somebody/waits"]
    made = store.create(CONFIG_MAPS, document)
    going = store.delete(CONFIG_MAPS, made)
    assert going["metadata"]["deletionTimestamp"]
    assert store.find(CONFIG_MAPS, "n", "a") == going
    store.patch(CONFIG_MAPS, going, {"metadata": {"finalizers": None}})
    assert store.find(CONFIG_MAPS, "n", "a") is None
    assert store.uids == set()


def test_changes_are_told_in_order_with_what_was_before(store: Store) -> None:
    begin = store.revision
    made = store.create(CONFIG_MAPS, config_map(data={"x": "1"}))
    changed = store.patch(CONFIG_MAPS, made, {"data": {"x": "2"}})
    store.delete(CONFIG_MAPS, changed)
    changes = store.changes(CONFIG_MAPS, begin)
    assert [(change.type, change.previous and change.previous["data"]["x"]) for change in changes] == [
        ("ADDED", None),
        ("MODIFIED", "1"),
        ("DELETED", "2"),
    ]
    revisions = [change.revision for change in changes]
    assert revisions == sorted(revisions)
    assert changes[-1].current["metadata"]["resourceVersion"] == str(store.revision)


def test_a_history_that_is_too_short_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.store, "HISTORY", 3)
    begin = store.revision
    for number in range(4):
        store.create(CONFIG_MAPS, config_map(f"a{number}"))
    assert len(store.changes(CONFIG_MAPS, begin + 1)) == 3
    with pytest.raises(ApiError, match="too old resource version") as caught:
        store.changes(CONFIG_MAPS, begin)
    assert (caught.value.code, caught.value.reason) == (410, "Expired")


def test_a_version_of_the_future_is_not_known_either(store: Store) -> None:
    with pytest.raises(ApiError, match="too old resource version"):
        store.changes(CONFIG_MAPS, store.revision + 1)


def test_a_full_store_takes_no_more(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.store, "OBJECTS", 1)
    store.create(CONFIG_MAPS, config_map("a"))
    with pytest.raises(ApiError, match="takes no more"):
        store.create(CONFIG_MAPS, config_map("b"))


async def test_who_waits_for_a_change_wakes_with_it(store: Store, autojump_clock: object) -> None:
    revision = store.revision
    with trio.move_on_after(5) as scope:
        await store.wait_beyond(revision)
    assert scope.cancelled_caught

    async def change() -> None:
        await trio.sleep(1)
        store.create(CONFIG_MAPS, config_map())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        began = trio.current_time()
        await store.wait_beyond(revision)
        assert trio.current_time() - began == pytest.approx(1)
