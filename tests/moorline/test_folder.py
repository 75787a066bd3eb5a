"""The folder of `moorline up`."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import trio

from moorline.folder import AGENT_ID, USER, prepare_folder
from operations.configuration import ConfigurationError
from operations.watched_files import WatchedFiles
from server.access_file import load_access_file
from server.directory import FileDirectory


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


async def test_kas_knows_the_agent_and_the_user_of_the_folder(tmp_path: Path) -> None:
    folder = prepare_folder(tmp_path / "up", "127.0.0.1")
    directory = FileDirectory(folder.access_file, WatchedFiles(), ended=lambda _: None)
    agent = await directory.authenticate_agent(folder.agent_token_file.read_text().strip())
    caller = await directory.authenticate_user(folder.user_token)

    assert agent is not None
    assert agent.agent_id == AGENT_ID
    assert caller is not None
    assert caller.user == USER
    assert [(grant.agent, grant.mode) for grant in caller.grants] == [(AGENT_ID, "agent")]
    await trio.lowlevel.checkpoint()


def test_nobody_else_can_read_what_is_secret(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "up", "127.0.0.1")

    assert stat.S_IMODE((tmp_path / "up").stat().st_mode) == 0o700
    for name in ("agent-token", "user-token", "access.yaml", "kas-key.pem"):
        assert stat.S_IMODE((tmp_path / "up" / name).stat().st_mode) == 0o600


def test_a_second_start_changes_nothing(tmp_path: Path) -> None:
    prepare_folder(tmp_path, "127.0.0.1")
    before = contents(tmp_path)
    prepare_folder(tmp_path, "127.0.0.1")

    assert contents(tmp_path) == before


def test_users_that_were_added_by_hand_stay(tmp_path: Path) -> None:
    folder = prepare_folder(tmp_path, "127.0.0.1")
    text = folder.access_file.read_text() + "- name: guest\n"
    folder.access_file.write_text(text)
    prepare_folder(tmp_path, "127.0.0.1")

    assert folder.access_file.read_text() == text
    assert [user.name for user in load_access_file(folder.access_file).users] == [USER, "guest"]


def test_an_access_file_that_does_not_know_the_tokens_is_not_overwritten(tmp_path: Path) -> None:
    folder = prepare_folder(tmp_path, "127.0.0.1")
    folder.agent_token_file.unlink()
    before = folder.access_file.read_text()

    with pytest.raises(ConfigurationError, match=r"access\.yaml.*remove the file"):
        prepare_folder(tmp_path, "127.0.0.1")
    assert folder.access_file.read_text() == before


def test_an_access_file_that_cannot_be_read_is_not_overwritten(tmp_path: Path) -> None:
    folder = prepare_folder(tmp_path, "127.0.0.1")
    folder.access_file.write_text("users: {")

    with pytest.raises(ConfigurationError, match="not valid YAML"):
        prepare_folder(tmp_path, "127.0.0.1")
    assert folder.access_file.read_text() == "users: {"


def test_no_token_is_in_a_repr(tmp_path: Path) -> None:
    folder = prepare_folder(tmp_path, "127.0.0.1")

    assert folder.user_token not in repr(folder)
