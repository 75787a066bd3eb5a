"""agentk as a process: exit statuses, signals, and what an operator sees."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

KUBECONFIG = """
current-context: c
contexts: [{name: c, context: {cluster: k, user: u}}]
clusters: [{name: k, cluster: {server: "http://127.0.0.1:1"}}]
users: [{name: u, user: {token: canary-cluster-token}}]
"""


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    (tmp_path / "kubeconfig").write_text(KUBECONFIG)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    return [
        *(sys.executable, "-m", "agent", "--kas-address", f"wss://127.0.0.1:{port}"),
        *("--kubeconfig", str(tmp_path / "kubeconfig"), "--health-address", "127.0.0.1:0", "--log-level", "debug"),
    ]


ENVIRONMENT = {**os.environ, "AGENTK_TOKEN": "mla_canary0123456789"}


def test_bad_configuration_ends_with_2_and_one_line_for_each_problem(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "agent", "--kas-address", "ws://kas", "--nonsense"],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 2
    assert "Traceback" not in result.stderr


def test_without_a_kas_it_keeps_trying_and_ends_in_order_on_sigterm(arguments):
    with subprocess.Popen(arguments, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(json.loads(line))
            if lines[-1]["event"] == "not connected to kas":
                process.send_signal(signal.SIGTERM)
        status = process.wait(30)

    assert status == 0
    (complaint,) = [line for line in lines if line["event"] == "not connected to kas"]
    assert "Connection refused" in complaint["error"]
    assert complaint["next_try_seconds"] > 0
    assert lines[-1]["event"] == "agentk has ended"
    assert "canary" not in json.dumps(lines)


def test_an_address_in_use_is_one_line_and_status_1(arguments):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = subprocess.run(
            [*arguments, "--health-address", address],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "in use" in json.loads(result.stderr.splitlines()[-1])["error"]


def test_an_idle_agent_imports_nothing_heavy():
    """It is to stay below 45 MB; each of these costs megabytes and serves something else."""
    program = "import sys, agent.process; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    modules = {name.partition(".")[0] for name in result.stdout.split()}

    assert not modules & {"cryptography", "server", "moorline", "httpx", "h2", "asyncio", "unittest", "pytest"}
