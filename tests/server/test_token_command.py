"""The token command: the file stays sound, the token is shown once, and nothing of it is in the file."""

from __future__ import annotations

import datetime
import fcntl
import re
from pathlib import Path

import pytest
import trio

from operations.command_line import CommandParser
from operations.configuration import ConfigurationError
from server.access_file import load_access_file
from server.token_command import add_token_command, grant, mint_agent_token, mint_user_token, revoke, run_token_command
from server.tokens import digest


@pytest.fixture
def file(tmp_path):
    return tmp_path / "access.yaml"


def kas(*arguments):
    parser = CommandParser(prog="kas")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--access-file")
    add_token_command(parser.add_subparsers(dest="command"))
    return run_token_command(parser.parse(arguments))


def test_a_token_is_added_with_its_owner_and_shown_once(file, capsys):
    assert (
        kas("token", "create", "--access-file", str(file), "--user", "alice", "--name", "laptop", "--grant", "edge-*")
        == 0
    )
    printed = capsys.readouterr().out

    (user,) = load_access_file(file).users
    assert (user.name, user.tokens[0].name, user.agents[0].agent) == ("alice", "laptop", "edge-*")
    assert re.fullmatch(r"mlu_[0-9A-Za-z]{43}\n", printed)
    assert user.tokens[0].sha256 == digest(printed.strip())
    assert printed.strip() not in file.read_text()


def test_an_agent_gets_a_token_of_its_own_kind(file, capsys):
    assert kas("--access-file", str(file), "token", "create", "--agent", "edge-1") == 0

    (agent,) = load_access_file(file).agents
    assert agent.tokens[0].sha256 == digest(capsys.readouterr().out.strip())


def test_a_new_file_can_be_read_by_its_owner_only_and_an_old_one_keeps_its_mode(file):
    mint_user_token(file, "alice")
    assert file.stat().st_mode & 0o777 == 0o600

    file.chmod(0o640)
    mint_user_token(file, "bob")
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_symlink_stays_one(file, tmp_path):
    real = tmp_path / "real.yaml"
    real.write_text("users: []  # nobody\n")
    file.symlink_to(real)

    mint_user_token(file, "alice")

    assert file.is_symlink()
    assert "# nobody" in real.read_text()
    assert load_access_file(real).users[0].name == "alice"


def test_comments_survive_all_commands(file):
    file.write_text("# ours\nagents:\n  - id: edge-1 # cellar\n\n# people\nusers:\n  - name: alice # first\n")

    mint_agent_token(file, "edge-1")
    mint_user_token(file, "alice", name="a")
    mint_user_token(file, "alice", name="b")
    grant(file, "alice", "edge-1", role="read-only", groups=["viewers"])
    grant(file, "alice", "*")
    assert revoke(file, "users", "alice", "a")

    text = file.read_text()
    for comment in ("# ours", "# cellar", "# people", "# first"):
        assert comment in text
    (alice,) = load_access_file(file).users
    assert [token.name for token in alice.tokens] == ["b"]
    assert [(given.agent, given.role, given.identity.groups) for given in alice.agents] == [
        ("edge-1", "read-only", ("viewers",)),
        ("*", "full", ()),
    ]


def test_a_grant_that_is_there_is_left_alone(file):
    assert grant(file, "alice", "edge-1", role="read-only")
    before = file.read_text()

    assert not grant(file, "alice", "edge-1", role="full")
    assert file.read_text() == before


def test_a_token_of_the_same_name_is_refused_and_nothing_is_written(file, capsys):
    mint_user_token(file, "alice", name="laptop")
    before = file.read_text()

    with pytest.raises(SystemExit) as caught:
        kas("token", "create", "--access-file", str(file), "--user", "alice", "--name", "laptop")

    assert caught.value.code == 2
    assert "laptop is there already" in capsys.readouterr().err
    assert file.read_text() == before
    assert [path.name for path in file.parent.iterdir() if path.name.endswith(".yaml")] == ["access.yaml"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--agent", "Edge_1"], "expected a DNS label"),
        (["--user", "alice", "--expires", "soon"], "--expires: expected a duration such as 90d"),
        (["--user", "alice", "--expires", "2001-01-01"], "is not in the future"),
        (["--user", "alice", "--grant", "Edge"], "expected an agent id"),
        (["--user", "alice", "--grant", "*", "--mode", "agent", "--group", "x"], "has no effect with mode agent"),
    ],
)
def test_what_cannot_be_is_refused_with_exit_status_2(file, capsys, arguments, problem):
    with pytest.raises(SystemExit) as caught:
        kas("token", "create", "--access-file", str(file), *arguments)

    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert problem in printed.err
    assert printed.out == ""
    assert not file.exists()


def test_an_agents_token_has_no_grants(file, capsys):
    assert kas("token", "create", "--access-file", str(file), "--agent", "edge-1", "--grant", "x") == 1
    assert "--grant is for users" in capsys.readouterr().err


def test_a_file_with_problems_is_not_changed(file):
    file.write_text("users: [{nam: alice}]\n")

    with pytest.raises(ConfigurationError, match="unknown key"):
        mint_user_token(file, "bob")

    assert file.read_text() == "users: [{nam: alice}]\n"


@pytest.mark.parametrize("content", ["", "\n", "# nobody yet\n"])
def test_a_file_that_says_nothing_yet_can_be_begun(file, content):
    file.write_text(content)

    mint_user_token(file, "alice")

    assert load_access_file(file).users[0].name == "alice"
    assert file.read_text().startswith(content.strip())


@pytest.mark.parametrize("text", ["90d", "2099-01-01", "2099-01-01T00:00:00+02:00"])
def test_a_token_can_be_given_an_end(file, text):
    kas("token", "create", "--access-file", str(file), "--user", "alice", "--expires", text)

    expires = load_access_file(file).users[0].tokens[0].expires
    days = (expires - datetime.datetime.now(datetime.UTC)).total_seconds() / 86_400
    assert days > 20_000 or days == pytest.approx(90, abs=0.1)


def test_tokens_are_listed_without_anything_secret(file, capsys):
    token = mint_user_token(file, "alice", name="laptop", expires=datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
    mint_agent_token(file, "edge-1")

    assert kas("token", "list", "--access-file", str(file)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["KIND", "OWNER", "NAME", "SHA256", "EXPIRES"]
    assert lines[1].split()[:3] == ["agent", "edge-1", "default"]
    assert lines[2].split() == ["user", "alice", "laptop", digest(token)[:12], "2020-01-01T00:00:00Z", "(expired)"]

    kas("token", "list", "--access-file", str(file), "--user", "edge-1")
    assert len(capsys.readouterr().out.splitlines()) == 1
    kas("token", "list", "--access-file", str(file), "--agent", "edge-1")
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_token_is_revoked_by_its_name(file, capsys):
    mint_user_token(file, "alice", name="a")
    mint_user_token(file, "alice", name="b")

    assert kas("token", "revoke", "--access-file", str(file), "--user", "alice", "--name", "a") == 0
    assert [token.name for token in load_access_file(file).users[0].tokens] == ["b"]
    assert kas("token", "revoke", "--access-file", str(file), "--user", "alice", "--name", "a") == 1
    assert "has no token a" in capsys.readouterr().err
    assert not revoke(file, "agents", "nobody", "a")


def test_the_access_file_can_be_found_through_the_configuration_of_kas(file, tmp_path, monkeypatch):
    config = tmp_path / "kas.yaml"
    config.write_text(f"access: {{file: {file}}}\n")

    assert kas("token", "create", "--config", str(config), "--user", "alice") == 0
    assert kas("--config", str(config), "token", "create", "--user", "bob") == 0
    monkeypatch.setenv("KAS__ACCESS__FILE", str(file))
    assert kas("token", "create", "--user", "carol") == 0

    assert [user.name for user in load_access_file(file).users] == ["alice", "bob", "carol"]


def test_a_file_that_cannot_be_written_is_one_line(tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("")

    assert kas("token", "create", "--access-file", str(blocked / "access.yaml"), "--user", "alice") == 1
    assert capsys.readouterr().err.count("\n") == 1


async def test_commands_at_the_same_time_wait_for_each_other(file):
    mint_user_token(file, "alice", name="first")
    done = trio.Event()

    async def mint():
        await trio.to_thread.run_sync(lambda: mint_user_token(file, "alice", name="second"))
        done.set()

    with trio.fail_after(10), file.with_name(".access.yaml.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mint)
            await trio.sleep(0.2)
            assert not done.is_set()
            file.write_text(file.read_text().replace("first", "changed-meanwhile"))
            fcntl.flock(lock, fcntl.LOCK_UN)

    (alice,) = load_access_file(file).users
    assert [token.name for token in alice.tokens] == ["changed-meanwhile", "second"]
