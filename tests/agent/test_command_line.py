"""Flags, file, environment, token, kubeconfig: everything that is wrong is told at once, and no secret in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.command_line import find_context, read_settings
from agent.config import AgentConfig, KubernetesConfig
from agent.token import FixedToken, TokenFile, find_token
from operations.configuration import ConfigurationError
from operations.values import InvalidValue

KUBECONFIG = """
current-context: c
contexts: [{name: c, context: {cluster: k, user: u}}, {name: d, context: {cluster: k, user: u}}]
clusters: [{name: k, cluster: {server: "http://127.0.0.1:1"}}]
users: [{name: u, user: {token: secret}}]
"""


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    path = tmp_path / "kubeconfig"
    path.write_text(KUBECONFIG)
    return path


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("mla_secret\n")
    return path


def problems(arguments: list[str], environment: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        read_settings(arguments, environment if environment is not None else {"HOME": "/nowhere"})
    return caught.value.problems


def test_address_token_and_kubeconfig_are_enough(kubeconfig, token_file):
    settings = read_settings(
        ["--kas-address", "wss://kas.test", "--token-file", str(token_file), "--kubeconfig", str(kubeconfig)], {}
    )

    assert settings.config.access.modes == ("impersonate",)
    assert settings.config.timeouts.drain == 30
    assert settings.token.read() == "mla_secret"
    assert str(settings.credentials.address) == "http://127.0.0.1:1"
    assert "secret" not in repr(settings)


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path, kubeconfig, token_file):
    file = tmp_path / "agentk.yaml"
    file.write_text("kas: {address: 'wss://file', headers: ['A: 1']}\nreplica: file\nlog: {level: debug}\n")
    environment = {"AGENTK__KAS__ADDRESS": "wss://environment", "AGENTK__REPLICA": "environment"}
    settings = read_settings(
        [
            *("--config", str(file), "--replica", "flag", "--kubeconfig", str(kubeconfig)),
            *("--token-file", str(token_file), "--kas-header", "X-A: 1", "--kas-header", "X-B: 2"),
            *("--access-mode", "agent", "--access-mode", "impersonate"),
        ],
        environment,
    )

    assert settings.config.kas.address == "wss://environment"
    assert settings.config.replica == "flag"
    assert settings.config.log.level == "debug"
    assert settings.config.kas.headers == ("X-A: 1", "X-B: 2")
    assert settings.config.access.modes == ("agent", "impersonate")


def test_everything_that_is_wrong_is_told_at_once():
    found = problems(
        [
            *("--kas-address", "ws://kas", "--health-address", "x", "--log-level", "loud", "--access-mode", "root"),
            *("--nonsense", "--replica", "two words", "--kas-header", "no colon"),
        ]
    )

    assert len(found) == 7
    for flag in ("--kas-address", "--health-address", "--log-level", "--access-mode", "--nonsense", "--replica"):
        assert any(flag in problem for problem in found), flag


def test_a_missing_token_and_a_missing_cluster_are_told_together():
    found = problems(["--kas-address", "wss://kas.test"])

    assert len(found) == 2
    assert "AGENTK_TOKEN" in found[0]
    assert "there is no cluster to serve" in found[1]


def test_plaintext_must_be_asked_for(kubeconfig, token_file):
    rest = ["--token-file", str(token_file), "--kubeconfig", str(kubeconfig)]
    (problem,) = problems(["--kas-address", "http://kas.test", *rest], {})
    assert "--insecure-plaintext" in problem
    read_settings(["--kas-address", "http://kas.test", "--insecure-plaintext", *rest], {})


def test_a_token_in_the_wrong_place_on_the_command_line_is_not_shown():
    found = problems(["--kas-address", "wss://kas.test", "mla_0123456789abcdef"])

    assert not any("0123456789abcdef" in problem for problem in found)


def test_the_token_variable_is_removed_once_it_was_read():
    environment = {"AGENTK_TOKEN": " mla_x\n", "PATH": "/bin"}

    assert find_token(None, environment).read() == "mla_x"
    assert environment == {"PATH": "/bin"}


@pytest.mark.parametrize(
    ("path", "variable", "said"),
    [
        (True, "mla_x", "given twice"),
        (False, "", "is required"),
        (False, "two words", "is no token"),
        (False, "mlu_user", "the token of a user"),
    ],
)
def test_tokens_that_cannot_be_used(token_file, path, variable, said):
    with pytest.raises(InvalidValue, match=said) as caught:
        find_token(token_file if path else None, {"AGENTK_TOKEN": variable})

    assert not variable or variable not in str(caught.value)


def test_a_token_file_is_read_again(token_file):
    token = TokenFile(token_file)
    assert token.read() == "mla_secret"
    token_file.write_text("mla_rotated")

    assert token.read() == "mla_rotated"
    assert token.source == str(token_file)


@pytest.mark.parametrize("content", ["", "two words", "ümlaut"])
def test_a_token_file_without_a_token(tmp_path, content):
    path = tmp_path / "token"
    path.write_text(content)
    with pytest.raises(InvalidValue):
        find_token(path, {})


def test_a_fixed_token_is_not_in_its_repr():
    assert "mla_x" not in repr(FixedToken("mla_x", "AGENTK_TOKEN"))


def test_where_a_kubeconfig_is_looked_for(tmp_path, kubeconfig):
    home = tmp_path / "home"
    (home / ".kube").mkdir(parents=True)
    (home / ".kube" / "config").write_text(KUBECONFIG.replace("current-context: c", "current-context: d"))
    environment = {"HOME": str(home)}

    assert find_context(KubernetesConfig(), environment).name == "d"
    assert find_context(KubernetesConfig(context="c"), environment).name == "c"
    assert find_context(KubernetesConfig(), {**environment, "KUBECONFIG": f"/gone:{kubeconfig}"}).name == "c"
    assert find_context(KubernetesConfig(kubeconfig=kubeconfig, context="d"), environment).name == "d"


def test_the_defaults_are_sound_apart_from_the_address():
    assert [key for key, _ in AgentConfig().kas.problems()] == ["address"]
    assert list(AgentConfig().problems()) == []
