"""`moorline kubeconfig`."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from moorline.kubeconfig_command import Wanted, make_kubeconfig
from operations.configuration import ConfigurationError
from operations.watched_files import WatchedFiles
from server.access_file import load_access_file
from server.directory import Caller, FileDirectory

SERVER = "https://kas.example"


@pytest.fixture
def access_file(tmp_path: Path) -> Path:
    path = tmp_path / "access.yaml"
    path.write_text(
        "# agents of the north\nagents:\n  - id: production\n  - id: staging-1\nusers:\n"
        "  - name: bob\n    agents: [{agent: 'staging-*', role: read-only}]\n"
    )
    return path


def wanted(access_file: Path, **changes: object) -> Wanted:
    settings: dict[str, object] = {
        "agent_id": "production",
        "user": "alice",
        "server": SERVER,
        "access_file": access_file,
    }
    return Wanted(**{**settings, **changes})  # type: ignore[arg-type]


async def caller(access_file: Path, bearer: str) -> Caller | None:
    token = bearer.rpartition(":")[2]
    return await FileDirectory(access_file, WatchedFiles(), ended=lambda _: None).authenticate_user(token)


async def test_the_kubeconfig_carries_a_token_that_kas_knows(access_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "alice.kubeconfig"
    make_kubeconfig(wanted(access_file, output=output, groups=["dev"]))
    document = yaml.safe_load(output.read_text())
    found = await caller(access_file, document["users"][0]["user"]["token"])

    assert document["clusters"][0]["cluster"]["server"] == f"{SERVER}/k8s-proxy"
    assert found is not None
    assert found.user == "alice"
    assert [(given.agent, given.mode, given.identity.groups) for given in found.grants] == [
        ("production", "impersonate", ("dev",))
    ]


def test_only_the_owner_can_read_the_file(access_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "alice.kubeconfig"
    make_kubeconfig(wanted(access_file, output=output))

    assert stat.S_IMODE(output.stat().st_mode) == 0o600


def test_what_people_wrote_into_the_access_file_stays(access_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_kubeconfig(wanted(access_file))

    assert access_file.read_text().startswith("# agents of the north\n")
    assert yaml.safe_load(capsys.readouterr().out)["kind"] == "Config"


def test_a_user_who_has_access_keeps_it_as_it_is(access_file: Path, tmp_path: Path) -> None:
    make_kubeconfig(wanted(access_file, user="bob", agent_id="staging-1", output=tmp_path / "k", role="full"))
    (bob,) = load_access_file(access_file).users

    assert [(given.agent, given.role) for given in bob.agents] == [("staging-*", "read-only")]
    assert [token.name for token in bob.tokens] == ["kubeconfig-1"]


def test_each_kubeconfig_has_a_token_of_its_own(access_file: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_kubeconfig(wanted(access_file, output=tmp_path / name))
    alice = next(user for user in load_access_file(access_file).users if user.name == "alice")

    assert [token.name for token in alice.tokens] == ["kubeconfig-1", "kubeconfig-2"]
    assert (tmp_path / "a").read_text() != (tmp_path / "b").read_text()


def test_all_problems_are_told_at_once_and_nothing_is_changed(access_file: Path, tmp_path: Path) -> None:
    before = access_file.read_text()
    (tmp_path / "key.pem").write_text("-----BEGIN PRIVATE KEY-----\n")
    with pytest.raises(ConfigurationError) as caught:
        make_kubeconfig(
            wanted(
                access_file,
                agent_id="prod",
                server="http://kas.example",
                ca_file=tmp_path / "key.pem",
                output=tmp_path / "nowhere" / "kubeconfig",
            )
        )

    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "--server",
        "--ca-file",
        "--output",
        "--agent",
    ]
    assert "production, staging-1" in str(caught.value)
    assert access_file.read_text() == before


def test_a_token_whose_kubeconfig_cannot_be_written_is_taken_back(access_file: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        make_kubeconfig(wanted(access_file, output=tmp_path / "taken"))
    alice = next(user for user in load_access_file(access_file).users if user.name == "alice")

    assert alice.tokens == ()


def test_the_command_tells_problems_on_stderr_with_status_2(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "moorline", "kubeconfig", "--agent=a", "--user=u", "--server=kas.example"]
    run = subprocess.run(
        [*command, f"--access-file={tmp_path}/access.yaml"], capture_output=True, text=True, timeout=30
    )

    assert run.returncode == 2
    assert run.stdout == ""
    assert [line.partition("configuration: ")[2].partition(":")[0] for line in run.stderr.splitlines()] == [
        "--server",
        "--access-file",
    ]
