"""The file directory: who is recognised, and what ends when the file changes or a token expires."""

from __future__ import annotations

import logging
import time

import pytest
import trio
import yaml

from operations.configuration import ConfigurationError
from operations.watched_files import FileProblem, WatchedFiles
from server.directory import FileDirectory
from server.tokens import AGENT_PREFIX, USER_PREFIX, digest, new_token

ALICE, ALICE_2, BOB, EDGE = (
    new_token(USER_PREFIX),
    new_token(USER_PREFIX),
    new_token(USER_PREFIX),
    new_token(AGENT_PREFIX),
)


def token(value, name="default", **more):
    return {"name": name, "sha256": digest(value), **more}


def document():
    return {
        "agents": [{"id": "edge-1", "tokens": [token(EDGE)]}, {"id": "edge-2"}],
        "users": [
            {
                "name": "alice",
                "tokens": [token(ALICE, "laptop"), token(ALICE_2, "phone")],
                "agents": [{"agent": "edge-1", "role": "full"}],
            },
            {"name": "bob", "tokens": [token(BOB)], "agents": [{"agent": "*", "role": "read-only"}]},
        ],
    }


class Fixture:
    def __init__(self, path, nursery):
        self.path = path
        self.ended: list[frozenset[str]] = []
        self.now = time.time()
        self.files = WatchedFiles(interval_seconds=0.02)
        self.write(document())
        self.directory = FileDirectory(path, self.files, ended=self.ended.append, wall_clock=lambda: self.now)
        nursery.start_soon(self.files.run)
        nursery.start_soon(self.directory.run)

    def write(self, content):
        self.path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))

    async def change(self, content):
        changed = self.directory._changed
        self.write(content)
        with trio.fail_after(5):
            await changed.wait()

    async def users(self):
        found = [await self.directory.authenticate_user(value) for value in (ALICE, ALICE_2, BOB)]
        return [caller.user if caller is not None else None for caller in found]


@pytest.fixture
def world(tmp_path, nursery):
    return Fixture(tmp_path / "access.yaml", nursery)


def names(ended):
    return {credential.rpartition("/")[0] for credential in ended}


async def test_each_token_works_only_for_its_kind(world):
    assert await world.users() == ["alice", "alice", "bob"]
    assert (await world.directory.authenticate_agent(EDGE)).agent_id == "edge-1"
    assert await world.directory.authenticate_agent(ALICE) is None
    assert await world.directory.authenticate_user(EDGE) is None
    for value in (
        "",
        "mlu_",
        "x",
        ALICE + "x",
        ALICE[:-1],
        new_token(USER_PREFIX),
        digest(ALICE),
        "mlu_" + digest(ALICE),
    ):
        assert await world.directory.authenticate_user(value) is None


async def test_agents_are_known_whether_they_have_a_token_or_not(world):
    assert await world.directory.has_agent("edge-1")
    assert await world.directory.has_agent("edge-2")
    assert not await world.directory.has_agent("edge-3")


async def test_nothing_ends_at_start(world):
    assert world.ended == []


async def test_a_token_that_is_removed_ends_and_only_that(world):
    content = document()
    del content["users"][0]["tokens"][0]

    await world.change(content)

    assert [names(ended) for ended in world.ended] == [{"user/alice/laptop"}]
    assert await world.users() == [None, "alice", "bob"]


async def test_a_token_that_is_replaced_under_its_name_ends(world):
    content = document()
    successor = new_token(USER_PREFIX)
    content["users"][0]["tokens"][0] = token(successor, "laptop")
    before = (await world.directory.authenticate_user(ALICE)).credential_id

    await world.change(content)

    assert world.ended == [frozenset({before})]
    assert (await world.directory.authenticate_user(successor)).credential_id != before


async def test_a_user_or_agent_that_is_removed_ends_with_all_tokens(world):
    content = document()
    del content["users"][0]
    del content["agents"][0]

    await world.change(content)

    assert [names(ended) for ended in world.ended] == [
        {"user/alice/laptop", "user/alice/phone", "agent/edge-1/default"}
    ]
    assert not await world.directory.has_agent("edge-1")
    assert await world.directory.authenticate_agent(EDGE) is None


@pytest.mark.parametrize(
    "grants",
    [
        [],
        [{"agent": "edge-1", "role": "read-only"}],
        [{"agent": "edge-1", "as": {"user": "someone-else"}}],
        [{"agent": "edge-1", "mode": "agent"}],
        [{"agent": "edge-2"}, {"agent": "edge-1"}],
    ],
)
async def test_a_user_whose_rights_change_has_what_runs_ended(world, grants):
    content = document()
    content["users"][0]["agents"] = grants

    await world.change(content)

    assert [names(ended) for ended in world.ended] == [{"user/alice/laptop", "user/alice/phone"}]
    assert await world.users() == ["alice", "alice", "bob"]


async def test_rights_and_tokens_that_are_added_end_nothing(world):
    content = document()
    content["users"][0]["agents"].append({"agent": "edge-2"})
    content["users"][0]["tokens"].append(token(new_token(USER_PREFIX), "tablet"))
    content["users"].append({"name": "carol"})
    content["agents"].append({"id": "edge-3"})

    await world.change(content)

    assert world.ended == []
    assert await world.directory.has_agent("edge-3")


@pytest.mark.parametrize(
    "content", ["", "users: [", "# nobody\n", "users: {}\n", "users: [{name: alice, tokens: [{}]}]\n"]
)
async def test_a_file_that_cannot_be_used_revokes_nobody(world, content, caplog):
    caplog.set_level(logging.ERROR)
    world.write(content)
    with trio.fail_after(5):
        while not caplog.records:  # noqa: ASYNC110 - real files change in real time
            await trio.sleep(0.01)

    assert world.ended == []
    assert await world.users() == ["alice", "alice", "bob"]


async def test_the_first_version_must_be_usable(tmp_path):
    path = tmp_path / "access.yaml"
    with pytest.raises(FileProblem):
        FileDirectory(path, WatchedFiles(), ended=lambda _: None)
    path.write_text("users: [{}]\n")
    with pytest.raises(ConfigurationError, match=r"users\[0\]\.name: is required"):
        FileDirectory(path, WatchedFiles(), ended=lambda _: None)


async def test_an_expired_token_does_not_work(world):
    content = document()
    content["users"][0]["tokens"][0]["expires"] = "2001-01-01"
    content["agents"][0]["tokens"][0]["expires"] = "2001-01-01"

    await world.change(content)

    assert await world.users() == [None, "alice", "bob"]
    assert await world.directory.authenticate_agent(EDGE) is None


async def test_a_token_that_is_given_an_end_in_the_past_ends_what_runs(world):
    content = document()
    content["users"][0]["tokens"][0]["expires"] = "2001-01-01"

    await world.change(content)

    assert [names(ended) for ended in world.ended] == [{"user/alice/laptop"}]


async def test_what_runs_under_a_token_ends_when_it_expires(tmp_path, autojump_clock, nursery):
    start, zero = 1_800_000_000.0, trio.current_time()
    path = tmp_path / "access.yaml"
    content = document()
    content["users"][0]["tokens"][0]["expires"] = "2027-01-15T08:05:00Z"  # 300 s after the start
    content["agents"][0]["tokens"][0]["expires"] = "2027-01-15T09:00:00Z"
    path.write_text(yaml.safe_dump(content))
    ended = []
    directory = FileDirectory(
        path,
        WatchedFiles(),
        ended=lambda credentials: ended.append((trio.current_time() - zero, names(credentials))),
        wall_clock=lambda: start + trio.current_time() - zero,
    )
    await nursery.start(directory.run)

    await trio.sleep(4000)

    assert ended == [
        (pytest.approx(300, abs=0.1), {"user/alice/laptop"}),
        (pytest.approx(3600, abs=0.1), {"agent/edge-1/default"}),
    ]


async def test_a_grant_that_fits_no_agent_is_said(tmp_path, caplog):
    path = tmp_path / "access.yaml"
    content = document()
    content["users"][0]["agents"][0]["agent"] = "egde-1"
    path.write_text(yaml.safe_dump(content))

    FileDirectory(path, WatchedFiles(), ended=lambda _: None)

    (record,) = caplog.records
    assert (record.user, record.agent) == ("alice", "egde-1")


async def test_no_secret_is_in_the_repr_of_what_is_passed_on(world):
    caller = await world.directory.authenticate_user(ALICE)
    entry = await world.directory.authenticate_agent(EDGE)

    for shown in (repr(caller), repr(entry)):
        assert "ml" + "u_" not in shown
        assert digest(ALICE) not in shown
        assert digest(EDGE) not in shown
