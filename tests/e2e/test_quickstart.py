"""`moorline quickstart` with a real kubectl: every command that it prints, typed as it is printed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from e2e.controlplane.build import Assets
from e2e.testbed.bed import Bed
from e2e.testbed.kubectl import Kubectl, Running
from e2e.testbed.terminal import Terminal, on_terminal
from support.moorline_process import MoorlineProcess, moorline, printed_commands, running


@dataclass
class Person:
    """Somebody in another terminal, who types what is printed."""

    environment: dict[str, str]
    preparation: list[str]

    def command(self, typed: str) -> list[str]:
        return ["sh", "-c", "\n".join([*self.preparation, typed])]

    def type(self, typed: str) -> str:
        ended = subprocess.run(
            self.command(typed), env=self.environment, capture_output=True, text=True, timeout=90, check=False
        )
        assert ended.returncode == 0, ended
        return ended.stdout

    @contextmanager
    def watching(self, typed: str) -> Iterator[Running]:
        """A command that does not end by itself."""
        # The shell becomes the last command, so that this is what is killed at the end.
        program = Kubectl(
            program=Path("/bin/sh"),
            kubeconfig=Path("unused"),
            home=Path(self.environment["HOME"]),
            environ=self.environment,
        )
        script = "\n".join([*self.preparation, f"exec {typed}"])
        with program.running("-c", script) as found:
            yield found

    @contextmanager
    def at_terminal(self, typed: str) -> Iterator[Terminal]:
        with on_terminal(self.command(typed), self.environment, rows=24, columns=80) as terminal:
            yield terminal


@dataclass
class Quickstart:
    process: MoorlineProcess
    person: Person
    things: list[str]


@contextmanager
def quickstart(path: str, directory: Path, *arguments: str | Path) -> Iterator[Quickstart]:
    """It runs with this PATH, and has printed everything."""
    home = directory / "home"
    home.mkdir()
    environment = {"HOME": str(home), "PATH": path, "TERM": "xterm"}
    folder = directory / "quick start"
    command = moorline("quickstart", "--dir", folder, *arguments)
    with running(command, folder, environment=environment) as process:
        process.wait_for(process.stdout, "ready", seconds=60)
        number = process.stdout.index(process.wait_for(process.stdout, "   5.", seconds=60))
        process.wait_until(lambda: len(process.stdout) > number + 1)
        preparation, things = printed_commands(process.stdout)
        yield Quickstart(process, Person(environment, preparation), things)


@pytest.fixture
def path_with_kubectl(assets: Assets) -> str:
    return f"{assets.kubectl.parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture
def path_with_curl_only(tmp_path: Path) -> str:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("sh", "curl"):
        (programs / name).symlink_to(str(shutil.which(name)))
    return str(programs)


def test_the_commands_for_the_sandbox_work_as_printed(path_with_kubectl: str, tmp_path: Path) -> None:
    with quickstart(path_with_kubectl, tmp_path) as started:
        person = started.person
        listing, deploying, following, shell, forwarding = started.things
        lines = started.process.stdout
        shown = lines[lines.index("$ kubectl get nodes\n") + 1 :][:3]

        assert shown[0].split() == ["NAME", "STATUS", "ROLES", "AGE", "VERSION"]
        assert all("sandbox" in line.split()[0] and line.split()[1] == "Ready" for line in shown[1:])
        assert "demo" in {line.split()[0] for line in person.type(listing).splitlines()[1:]}
        deployed = person.type(deploying)
        assert "deployment.apps/hello created" in deployed
        assert "successfully rolled out" in deployed
        with person.watching(following) as log:
            log.wait_for("^GET /", seconds=30)
        with person.at_terminal(shell) as terminal:
            terminal.wait_for(r"# $")
            terminal.type("hostname\r")
            terminal.wait_for(r"\bhello-\w+-\w+")
            terminal.type("exit\r")
            assert terminal.wait() == 0
        with person.watching(forwarding) as forward:
            (port,) = forward.wait_for(r"Forwarding from 127\.0\.0\.1:(\d+)", seconds=30).groups()
            page = httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).raise_for_status().text
            assert re.search(r"Pod hello-\w+-\w+", page)
        assert "unchanged" in person.type(deploying), "a second time as well"
        assert started.process.stderr == []


def test_ctrl_c_ends_what_kubectl_has_open(path_with_kubectl: str, tmp_path: Path) -> None:
    with quickstart(path_with_kubectl, tmp_path) as started:
        _, deploying, following, shell, _ = started.things
        started.person.type(deploying)
        with started.person.watching(following) as log, started.person.at_terminal(shell) as terminal:
            log.wait_for("^GET /", seconds=30)
            terminal.wait_for(r"# $")
            status, _ = started.process.interrupt()
            log.wait(seconds=30)
            terminal.wait(seconds=30)

        assert status == 0
        assert started.process.session() == []


def create_event(direct: Kubectl, namespace: str) -> None:
    """The kubelet of the bed reports none."""
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "seen", "namespace": namespace},
        "involvedObject": {"kind": "Pod", "name": "seen", "namespace": namespace},
        "type": "Normal",
        "reason": "Seen",
        "message": "somebody looked",
    }
    direct("create", "-f", "-", stdin=json.dumps(event).encode())


@pytest.mark.own_cluster
def test_the_commands_for_a_cluster_of_ones_own_work_as_printed_and_change_nothing(
    path_with_kubectl: str, bed: Bed, direct: Kubectl, tmp_path: Path
) -> None:
    with quickstart(path_with_kubectl, tmp_path, "--kubeconfig", bed.cluster.kubeconfig) as started:
        person = started.person
        listing, happening, kinds, permissions, applying = started.things
        lines = started.process.stdout
        node = direct("get", "nodes", "-o", "jsonpath={.items[0].metadata.name}").text

        assert lines[lines.index("$ kubectl get nodes\n") + 2].split()[0] == node
        with bed.namespace("e2e-quickstart-") as name:
            with person.watching(happening) as events:
                bed.run_pod(name, "seen", ["sleep", "infinity"])
                create_event(direct, name)
                events.wait_for(rf"^{name}\s.*pod/seen", seconds=60)
            assert re.search(rf"^{name}\s+seen\s", person.type(listing), re.MULTILINE)
        assert re.search(r"^deployments\s", person.type(kinds), re.MULTILINE)
        assert "*.*" in person.type(permissions)
        assert "deployment.apps/hello created (server dry run)" in person.type(applying)
        assert "NotFound" in direct.attempt("get", "deployment", "hello").errors


def test_the_same_with_curl(path_with_curl_only: str, bed: Bed, direct: Kubectl, tmp_path: Path) -> None:
    with quickstart(path_with_curl_only, tmp_path, "--kubeconfig", bed.cluster.kubeconfig) as started:
        person = started.person
        listing, happening, kinds, groups, applying = started.things
        lines = started.process.stdout
        node = direct("get", "nodes", "-o", "jsonpath={.items[0].metadata.name}").text

        assert lines[lines.index("GET /api/v1/nodes\n") + 2].split()[0] == node
        assert json.loads(person.type(listing))["kind"] == "PodList"
        with bed.namespace("e2e-quickstart-") as name:
            create_event(direct, name)
            assert re.search(rf'"namespace": ?"{name}"', person.type(happening))
        assert "configmaps" in {kind["name"] for kind in json.loads(person.type(kinds))["resources"]}
        assert "apps" in {group["name"] for group in json.loads(person.type(groups))["groups"]}
        assert json.loads(person.type(applying))["metadata"]["name"] == "hello"
        assert "NotFound" in direct.attempt("get", "pod", "hello").errors
