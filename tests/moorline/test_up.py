"""`moorline up` as a process, on a cluster of a few lines."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest
from support.fake_cluster import fake_cluster, write_kubeconfig
from support.moorline_process import END_SECONDS, READY_SECONDS, MoorlineProcess, moorline
from support.moorline_process import running as run


def running(kubeconfig: Path, directory: Path, *arguments: str) -> AbstractContextManager[MoorlineProcess]:
    return run(moorline("up", "--kubeconfig", kubeconfig, "--dir", directory, *arguments), directory)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_ready_means_that_a_client_reaches_the_cluster_and_ctrl_c_ends_it_in_order(tmp_path: Path) -> None:
    with fake_cluster() as cluster, running(write_kubeconfig(tmp_path / "k", cluster.port), tmp_path / "up") as up:
        assert "v1.36.3" in up.wait_for(up.stdout, "ready")
        with up.client() as client:
            answer = client.get("/api/v1/namespaces/a%2Fb?x=1;y=2")
        status, seconds = up.interrupt()

        assert answer.json()["path"] == "/api/v1/namespaces/a%2Fb?x=1;y=2"
        path, fields = cluster.requests[-1]
        assert (path, fields["authorization"]) == ("/api/v1/namespaces/a%2Fb?x=1;y=2", "Bearer cluster-token")
        assert status == 0
        assert seconds < END_SECONDS
        assert up.stderr == []


def test_what_still_runs_does_not_delay_the_end(tmp_path: Path) -> None:
    with fake_cluster() as cluster, running(write_kubeconfig(tmp_path / "k", cluster.port), tmp_path / "up") as up:
        up.wait_for(up.stdout, "ready")
        with up.client() as client, client.stream("GET", "/api/v1/pods?watch=1") as watch:
            lines = watch.iter_lines()
            assert next(lines).startswith('{"type":"ADDED"')
            status, seconds = up.interrupt()
            with contextlib.suppress(httpx.HTTPError):
                assert list(lines) == []

        assert status == 0
        assert seconds < END_SECONDS


def test_a_client_that_goes_away_ends_its_request_in_the_cluster(tmp_path: Path) -> None:
    with fake_cluster() as cluster, running(write_kubeconfig(tmp_path / "k", cluster.port), tmp_path / "up") as up:
        up.wait_for(up.stdout, "ready")
        with up.client() as client, client.stream("GET", "/api/v1/pods?watch=1") as watch:
            next(watch.iter_lines())
        deadline = time.monotonic() + READY_SECONDS
        while not cluster.watches_ended and time.monotonic() < deadline:
            time.sleep(0.05)

        assert cluster.watches_ended == 1


def test_a_second_start_keeps_certificates_and_tokens(tmp_path: Path) -> None:
    kept = ("ca.pem", "kas.pem", "kas-key.pem", "agent-token", "user-token", "access.yaml")
    with fake_cluster() as cluster:
        kubeconfig = write_kubeconfig(tmp_path / "k", cluster.port)
        contents = []
        for _ in range(2):
            with running(kubeconfig, tmp_path / "up") as up:
                up.wait_for(up.stdout, "ready")
                with up.client() as client:
                    assert client.get("/version").status_code == 200
                contents.append([(tmp_path / "up" / name).read_bytes() for name in kept])
                assert up.interrupt()[0] == 0

    assert contents[0] == contents[1]


def test_it_says_what_it_waits_for_and_is_ready_once_the_cluster_is_there(tmp_path: Path) -> None:
    port = free_port()
    with running(write_kubeconfig(tmp_path / "k", port), tmp_path / "up") as up:
        waiting = up.wait_for(up.stderr, "waiting: ")
        assert "cluster's API server" in waiting
        assert up.stdout == []
        with fake_cluster(port):
            up.wait_for(up.stdout, "ready")


def test_no_secret_is_in_what_it_says(tmp_path: Path) -> None:
    with fake_cluster() as cluster:
        kubeconfig = write_kubeconfig(tmp_path / "k", cluster.port)
        with running(kubeconfig, tmp_path / "up", "--log-level=debug") as up:
            up.wait_for(up.stdout, "ready")
            with up.client() as client:
                client.get("/version")
                client.get("/version", headers={"Authorization": "Bearer pat:local:mlu_wrong"})
            up.interrupt()
            up.close()
            said = "".join(up.stdout + up.stderr)
            secrets = [(tmp_path / "up" / name).read_text().strip() for name in ("agent-token", "user-token")]

    assert "exchange" in said
    assert [secret for secret in [*secrets, "cluster-token", "mlu_wrong"] if secret in said] == []


def test_all_problems_are_told_at_once_with_status_2(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = moorline("up", "--kubeconfig", tmp_path / "none", "--dir", tmp_path / "file", "--listen", "here")
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30)

    assert ended.returncode == 2
    assert ended.stdout == ""
    told = [line.partition("configuration: ")[2].partition(":")[0] for line in ended.stderr.splitlines()]
    assert sorted(told) == ["--dir", "--kubeconfig", "--listen"]


def test_a_kubeconfig_that_leads_into_its_own_tunnel_is_refused(tmp_path: Path) -> None:
    own = write_kubeconfig(tmp_path / "kubeconfig", free_port())
    command = moorline("up", "--kubeconfig", own, "--dir", tmp_path)
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30)

    assert ended.returncode == 2
    assert f"{own} is what this command writes" in ended.stderr


def test_an_address_that_is_taken_is_told_with_status_1(tmp_path: Path) -> None:
    with fake_cluster() as cluster:
        kubeconfig = write_kubeconfig(tmp_path / "k", cluster.port)
        taken = f"--listen=127.0.0.1:{cluster.port}"
        with running(kubeconfig, tmp_path / "up", taken) as up:
            status = up.process.wait(timeout=READY_SECONDS)
            up.close()

    assert status == 1
    assert any("ddress already in use" in line for line in up.stderr), up.stderr


@pytest.mark.parametrize("command", [["--help"], ["quickstart", "--help"], ["up", "--help"], ["kubeconfig", "--help"]])
def test_help_fits_a_screen(command: list[str]) -> None:
    shown = subprocess.run(
        moorline(*command),
        capture_output=True,
        text=True,
        timeout=30,
        env={"COLUMNS": "100", "PATH": ""},
    )

    assert shown.returncode == 0
    assert len(shown.stdout.splitlines()) <= 40
