"""`moorline quickstart` as a process: which cluster it uses, what it prints, and how it ends.

The machine of these tests has an empty home, and on its PATH a shell and curl; kubectl has tests of its own in
`tests/e2e/test_quickstart.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.fake_cluster import fake_cluster, write_kubeconfig
from support.moorline_process import (
    READY_SECONDS,
    MoorlineProcess,
    listening_ports,
    moorline,
    printed_commands,
    running,
)

LAST_LINE = "   5."


@dataclass
class Machine:
    """A home and a PATH."""

    home: Path
    programs: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"HOME": str(self.home), "PATH": str(self.programs)}

    def quickstart(self, *arguments: str | Path, **environment: str) -> AbstractContextManager[MoorlineProcess]:
        directory = self.home / "quick start"
        command = moorline("quickstart", "--dir", directory, *arguments)
        return running(command, directory, environment={**self.environment, **environment})

    def refused(self, *arguments: str | Path, **environment: str) -> list[str]:
        """What is on stderr of a start that is refused with status 2."""
        command = moorline("quickstart", "--dir", self.home / "quick start", *arguments)
        whole = {**self.environment, **environment}
        ended = subprocess.run(command, env=whole, capture_output=True, text=True, timeout=30)
        assert (ended.returncode, ended.stdout) == (2, ""), ended
        return ended.stderr.splitlines()

    def type(self, preparation: Sequence[str], command: str) -> str:
        """What a command prints that is typed as it was printed, in a terminal of its own."""
        script = "\n".join([*preparation, command])
        ended = subprocess.run(
            ["sh", "-c", script], env=self.environment, cwd=self.home, capture_output=True, text=True, timeout=60
        )
        assert ended.returncode == 0, ended
        return ended.stdout

    @contextmanager
    def typing(self, preparation: Sequence[str], command: str) -> Iterator[Iterator[str]]:
        """The lines of a command that does not end by itself."""
        script = "\n".join([*preparation, command])
        process = subprocess.Popen(
            ["sh", "-c", script],
            env=self.environment,
            cwd=self.home,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        with process:
            try:
                yield iter(process.stdout)
            finally:
                os.killpg(process.pid, 9)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    result = Machine(tmp_path / "home", tmp_path / "programs")
    result.home.mkdir()
    result.programs.mkdir()
    for name in ("sh", "curl"):
        program = shutil.which(name)
        assert program is not None, f"{name} is not installed"
        (result.programs / name).symlink_to(program)
    return result


def lines_to_the_end(quickstart: MoorlineProcess) -> list[str]:
    """All that is printed up to the fifth thing to try."""
    quickstart.wait_for(quickstart.stdout, "ready")
    number = quickstart.stdout.index(quickstart.wait_for(quickstart.stdout, LAST_LINE))
    quickstart.wait_until(lambda: len(quickstart.stdout) > number + 1)
    return quickstart.stdout


def cluster_line(quickstart: MoorlineProcess) -> str:
    return quickstart.wait_for(quickstart.stdout, "cluster: ")


def test_without_a_cluster_the_nodes_of_the_sandbox_come_through_the_tunnel(machine: Machine) -> None:
    with machine.quickstart() as quickstart:
        lines = lines_to_the_end(quickstart)

        assert cluster_line(quickstart).startswith("cluster: a sandbox in this process")
        assert "-sandbox through the tunnel" in quickstart.wait_for(quickstart.stdout, "ready")
        header = next(number for number, line in enumerate(lines) if line.startswith("NAME "))
        assert lines[header - 1] == "GET /api/v1/nodes\n"
        rows = [line.split() for line in lines[header + 1 : header + 3]]
        assert [row[1] for row in rows] == ["Ready", "Ready"]
        assert all("sandbox" in row[0] for row in rows)
        assert quickstart.stderr == []


def test_every_command_that_it_prints_for_curl_works_as_printed(machine: Machine) -> None:
    with machine.quickstart() as quickstart:
        preparation, things = printed_commands(lines_to_the_end(quickstart))
        listing, start, watch, log, removal = things

        def first(command: str) -> Any:
            return json.loads(machine.type(preparation, command))

        assert "demo" in {pod["metadata"]["namespace"] for pod in first(listing)["items"]}
        assert first(start)["metadata"]["name"] == "hello"
        events = [json.loads(line) for line in machine.type(preparation, watch).splitlines() if line]
        assert events[-1]["object"]["status"]["phase"] == "Running"
        with machine.typing(preparation, log) as lines:
            assert "GET /" in next(line for line in lines if line.startswith("GET"))
        assert first(removal)["metadata"]["name"] == "hello"
        assert first(start)["metadata"]["name"] == "hello", "a second time as well"


def test_ctrl_c_ends_it_with_all_that_runs_and_leaves_nothing(machine: Machine) -> None:
    with machine.quickstart() as quickstart:
        preparation, (_, start, watch, log, _) = printed_commands(lines_to_the_end(quickstart))
        machine.type(preparation, start)
        machine.type(preparation, watch)
        ports = listening_ports(quickstart.process.pid)
        with machine.typing(preparation, log) as lines:
            next(lines)
            status, _ = quickstart.interrupt()

        assert status == 0
        assert quickstart.session() == []
        assert len(ports) >= 3, "callers, agents, and the sandbox"
        for port in ports:
            with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=5):
                pass


def test_ctrl_c_has_nothing_to_say_where_nothing_runs(machine: Machine) -> None:
    with machine.quickstart() as quickstart:
        lines_to_the_end(quickstart)
        status, _ = quickstart.interrupt()
        quickstart.close()

    assert (status, quickstart.stderr) == (0, [])


def test_a_kubectl_that_never_answers_is_gone_after_ctrl_c(machine: Machine) -> None:
    """A kubectl that misbehaves: it hangs, and does not care about signals."""
    kubectl = machine.programs / "kubectl"
    kubectl.write_text("#!/bin/sh\ntrap '' INT TERM\nwhile :; do :; done\n")
    kubectl.chmod(0o755)
    with machine.quickstart() as quickstart:
        quickstart.wait_for(quickstart.stdout, "$ kubectl get nodes")
        deadline = time.monotonic() + READY_SECONDS
        while len(quickstart.session()) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(quickstart.session()) == 2
        status, _ = quickstart.interrupt()

        assert status == 0
        assert quickstart.session() == []


def test_what_kubectl_complains_about_is_shown_and_ends_nothing(machine: Machine) -> None:
    """A kubectl that misbehaves: it cannot be used."""
    kubectl = machine.programs / "kubectl"
    kubectl.write_text("#!/bin/sh\necho 'error: out of order' >&2\nexit 1\n")
    kubectl.chmod(0o755)
    with machine.quickstart() as quickstart:
        preparation, things = printed_commands(lines_to_the_end(quickstart))

        quickstart.wait_for(quickstart.stderr, "error: out of order")
        assert quickstart.stderr == ["error: out of order\n"]
        assert len(preparation) == 1
        assert preparation[0].startswith("export KUBECONFIG=")
        assert all(thing.startswith("kubectl ") for thing in things)


def test_a_second_start_with_the_same_folder_works(machine: Machine) -> None:
    for _ in range(2):
        with machine.quickstart() as quickstart:
            preparation, things = printed_commands(lines_to_the_end(quickstart))
            assert json.loads(machine.type(preparation, things[0]))["kind"] == "PodList"
            assert quickstart.interrupt()[0] == 0


def test_no_token_is_printed_and_the_files_with_it_are_for_their_owner_only(machine: Machine) -> None:
    with machine.quickstart("--log-level=debug") as quickstart:
        preparation, things = printed_commands(lines_to_the_end(quickstart))
        machine.type(preparation, things[0])
        quickstart.interrupt()
        quickstart.close()
        said = "".join(quickstart.stdout + quickstart.stderr)
        secrets = [(quickstart.directory / name).read_text().strip() for name in ("agent-token", "user-token")]

    assert "exchange" in said
    assert [secret for secret in secrets if secret in said] == []
    authorization = quickstart.directory / "authorization"
    assert secrets[1] in authorization.read_text()
    assert stat.S_IMODE(authorization.stat().st_mode) == 0o600


def kubeconfig_of(cluster_port: int, machine: Machine) -> Path:
    path = machine.home / ".kube" / "config"
    path.parent.mkdir(exist_ok=True)
    return write_kubeconfig(path, cluster_port)


@pytest.mark.parametrize("way", ["home", "KUBECONFIG", "--kubeconfig"])
def test_the_cluster_of_this_machine_is_used_and_named(machine: Machine, way: str) -> None:
    with fake_cluster() as cluster:
        path = kubeconfig_of(cluster.port, machine)
        if way != "home":
            path = path.rename(machine.home / "elsewhere")
        arguments = ["--kubeconfig", path] if way == "--kubeconfig" else []
        environment = {"KUBECONFIG": str(path)} if way == "KUBECONFIG" else {}
        with machine.quickstart(*arguments, **environment) as quickstart:
            ready = quickstart.wait_for(quickstart.stdout, "ready")
            named = cluster_line(quickstart)
            _, things = printed_commands(lines_to_the_end(quickstart))

    assert "v1.36.3 through the tunnel" in ready
    assert f"http://127.0.0.1:{cluster.port}, context fake of {path}" in named
    assert "--sandbox" in named
    assert [thing for thing in things if "PATCH" in thing and "dryRun=All" not in thing] == []


def test_the_sandbox_is_used_where_it_is_asked_for(machine: Machine) -> None:
    with fake_cluster() as cluster:
        kubeconfig_of(cluster.port, machine)
        with machine.quickstart("--sandbox") as quickstart:
            assert "-sandbox" in quickstart.wait_for(quickstart.stdout, "ready")

    assert cluster.requests == []


def test_a_kubeconfig_without_a_current_context_is_no_cluster(machine: Machine) -> None:
    path = kubeconfig_of(1, machine)
    document = yaml.safe_load(path.read_text())
    del document["current-context"]
    path.write_text(yaml.safe_dump(document))
    with machine.quickstart() as quickstart:
        assert "-sandbox" in quickstart.wait_for(quickstart.stdout, "ready")
        assert f"{path} chooses no context" in cluster_line(quickstart)


def test_its_own_kubeconfig_is_no_cluster(machine: Machine) -> None:
    """Whoever copied the printed commands has it in $KUBECONFIG at the next start."""
    own = machine.home / "quick start" / "kubeconfig"
    with machine.quickstart() as quickstart:
        quickstart.wait_for(quickstart.stdout, "ready")
        quickstart.interrupt()
    with machine.quickstart(KUBECONFIG=str(own)) as quickstart:
        assert "-sandbox" in quickstart.wait_for(quickstart.stdout, "ready")
        quickstart.interrupt()

    (problem,) = machine.refused("--kubeconfig", own)
    assert f"{own} is what this command writes" in problem


def test_a_cluster_that_does_not_answer_is_waited_for_and_not_replaced(machine: Machine) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    kubeconfig_of(port, machine)
    with machine.quickstart() as quickstart:
        assert "cluster's API server" in quickstart.wait_for(quickstart.stderr, "waiting: ")
        assert "--sandbox" in cluster_line(quickstart)
        with fake_cluster(port):
            assert "v1.36.3" in quickstart.wait_for(quickstart.stdout, "ready")


def test_all_problems_are_told_at_once_with_status_2(machine: Machine) -> None:
    (machine.home / "quick start").write_text("")
    told = machine.refused("--listen", "here", KUBECONFIG=str(machine.home / "none"))

    assert [line.partition("configuration: ")[2].partition(":")[0] for line in told] == ["--listen", "--dir", "cluster"]
    assert "there is no such file" in told[2]
    assert "--sandbox" in told[2]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--sandbox", "--kubeconfig", "x"], "--sandbox: it cannot be combined"),
        (["--sandbox", "--context", "x"], "--sandbox: it cannot be combined"),
        (["--context", "x"], "there is no kubeconfig here"),
        (["--kubeconfig", "none"], "there is no such file"),
    ],
)
def test_what_contradicts_itself_is_refused(machine: Machine, arguments: list[str], problem: str) -> None:
    (told,) = machine.refused(*arguments)

    assert problem in told


def test_a_reader_that_has_gone_ends_it_in_silence(machine: Machine) -> None:
    command = moorline("quickstart", "--dir", machine.home / "quick start")
    reader, writer = os.pipe()
    try:
        process = subprocess.Popen(command, env=machine.environment, stdout=writer, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writer)
        os.close(reader)
    _, errors = process.communicate(timeout=READY_SECONDS)

    assert (process.returncode, errors) == (141, "")


def test_an_address_that_is_taken_is_told_with_status_1(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with machine.quickstart("--listen", address) as quickstart:
            status = quickstart.process.wait(timeout=20)
            quickstart.close()

    assert status == 1
    assert any("ddress already in use" in line for line in quickstart.stderr), quickstart.stderr
