"""`moorline doctor` as it is typed: what it reads, what it refuses, and with which status it ends."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fake_cluster import fake_cluster, write_kubeconfig

from moorline.__main__ import parser
from moorline.doctor.command import read_target
from moorline.doctor.target import NO_TOKEN
from operations.configuration import ConfigurationError

PROGRAM = Path(sys.executable).with_name("moorline")


def options(*arguments: str) -> argparse.Namespace:
    return parser().parse(["doctor", *arguments])


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if "PROXY" not in name.upper()}
    return subprocess.run(
        [str(PROGRAM), "doctor", *arguments], capture_output=True, text=True, timeout=60, env={**clean, **environment}
    )


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("mla_of-an-agent\n")
    return path


def test_flags_win_over_the_environment_and_that_over_agentk_s_file(tmp_path, token_file):
    file = tmp_path / "agentk.yaml"
    file.write_text(f"kas: {{address: 'wss://file', token_file: {token_file}, headers: ['X-A: 1']}}\nreplica: r\n")
    environment = {"AGENTK__KAS__ADDRESS": "wss://environment", "HTTPS_PROXY": "http://proxy:3128"}

    from_file = read_target(options("--config", str(file)), {})
    from_environment = read_target(options("--config", str(file)), dict(environment))
    from_flag = read_target(options("--config", str(file), "--kas-address", "https://flag"), dict(environment))

    assert [str(one.address) for one in (from_file, from_environment, from_flag)] == [
        "wss://file",
        "wss://environment",
        "https://flag",
    ]
    assert from_file.headers == (("X-A", "1"),)
    assert from_file.hello.token == "mla_of-an-agent"
    assert from_file.proxies.for_address(from_file.address) is None
    assert str(from_flag.proxies.for_address(from_flag.address)) == "http://proxy:3128"
    # It is nobody's replica, and another one each time.
    assert from_file.hello.replica.startswith("doctor-")
    assert from_file.hello.replica != from_flag.hello.replica
    assert "mla_of-an-agent" not in repr(from_file)


def test_the_token_may_be_in_a_variable_which_is_removed():
    environment = {"AGENTK_TOKEN": "mla_x"}
    target = read_target(options("--kas-address", "wss://kas"), environment)

    assert (target.hello.token, target.token_source, target.token_problem) == ("mla_x", "AGENTK_TOKEN", "")
    assert environment == {}


@pytest.mark.parametrize(
    ("content", "words"),
    [("mlu_of-a-user", "the token of a user"), ("two words", "is no token"), (None, "cannot read"), ("", "is empty")],
)
def test_a_token_that_cannot_be_used_is_a_step_that_fails_and_is_not_sent(tmp_path, content, words):
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    target = read_target(options("--kas-address", "wss://kas", "--token-file", str(path)), {})

    assert target.hello.token == NO_TOKEN
    assert words in target.token_problem


def test_without_a_token_there_is_no_problem():
    target = read_target(options("--kas-address", "wss://kas"), {})

    assert (target.hello.token, target.token_source, target.token_problem) == (NO_TOKEN, "", "")


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        ([], {}, ["kas.address", "is required"]),
        (["--kas-address", "kas.example.com"], {}, ["--kas-address", "must begin with wss://"]),
        (["--kas-address", "http://kas"], {}, ["clear text", "--insecure-plaintext"]),
        (["--kas-address", "wss://kas"], {"HTTPS_PROXY": "socks5://p"}, ["HTTPS_PROXY", "http:// or https://"]),
        (["--kas-address", "wss://kas", "--kas-header", "no colon"], {}, ["kas.headers[0]", "'Name: value'"]),
        (["--kas-address", "wss://kas", "--kas-header", "Authorization: x"], {}, ["kas.headers", "Authorization"]),
        (["--kas-address", "wss://kas", "--ca-file", "/nonexistent"], {}, ["kas.ca_file", "/nonexistent"]),
        (["--kas-address", "wss://kas", "--ca-file", os.devnull], {}, ["kas.ca_file", os.devnull]),
        (["--kas-address", "wss://kas", "--config", "/nonexistent"], {}, ["/nonexistent", "cannot be read"]),
    ],
)
def test_configuration_that_cannot_be_used(arguments, environment, words):
    with pytest.raises(ConfigurationError) as caught:
        read_target(options(*arguments), environment)

    (problem,) = caught.value.problems
    assert [word for word in words if word not in problem] == []


def test_all_problems_are_told_at_once_on_stderr_with_status_2():
    done = doctor(
        *("--kas-address", "kas", "--kas-header", "x", "--ca-file", "/nonexistent", "--timeout", "1h"),
        HTTPS_PROXY="ftp://p",
    )

    assert (2, "") == (done.returncode, done.stdout)
    assert len(done.stderr.splitlines()) == 5
    assert all(line.startswith("moorline doctor: configuration: ") for line in done.stderr.splitlines())


@pytest.mark.parametrize("timeout", ["11s", "1s", "soon", "never"])
def test_a_timeout_that_is_none_or_longer_than_agentk_s(timeout):
    done = doctor("--kas-address", "wss://kas", "--timeout", timeout)

    assert (2, "") == (done.returncode, done.stdout)
    assert "--timeout" in done.stderr


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A `moorline up`: its folder, and the address of its kas for agents."""
    folder = tmp_path_factory.mktemp("up")
    with fake_cluster() as cluster:
        command = [str(PROGRAM), "up", "--kubeconfig", str(write_kubeconfig(folder / "k", cluster.port))]
        command += ["--dir", str(folder / "up"), "--log-level", "info"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            line = next(line for line in process.stderr if "kas is ready" in line)
            (address,) = [word.partition("=")[2] for word in line.split() if word.startswith("agents=")]
            yield folder / "up", address
            process.terminate()
            process.communicate(timeout=20)


def test_status_0_and_a_conclusion_where_all_is_well(running):
    folder, address = running
    done = doctor(
        *("--kas-address", f"https://{address}", "--token-file", str(folder / "agent-token")),
        *("--ca-file", str(folder / "ca.pem")),
    )

    assert (0, "") == (done.returncode, done.stderr)
    *steps, blank, conclusion = done.stdout.splitlines()
    assert [line.split()[0] for line in steps] == ["ok"] * 10
    assert blank == ""
    assert conclusion == f"All is well: agentk can open a tunnel to https://{address} from here."


def test_status_1_and_the_first_step_that_failed(running):
    folder, address = running
    done = doctor("--kas-address", f"wss://{address}", "--token-file", str(folder / "agent-token"))

    assert (1, "") == (done.returncode, done.stderr)
    assert done.stdout.splitlines()[-1] == ("agentk would not get through from here as configured: TLS failed.")


def test_without_a_token_the_conclusion_does_not_promise_a_tunnel(running):
    folder, address = running
    done = doctor("--kas-address", f"wss://{address}", "--ca-file", str(folder / "ca.pem"))

    assert (0, "") == (done.returncode, done.stderr)
    assert done.stdout.splitlines()[-1] == f"kas is reached at wss://{address}; without a token it opens no tunnel."
