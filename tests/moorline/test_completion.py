"""What `moorline completion` prints, in the shells themselves: a partial line and the key for completion."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAMS = Path(sys.executable).parent
SECONDS = 20.0

LINES = [
    ("moorline kubec", "kubeconfig"),
    ("moorline completion z", "completion zsh"),
    ("moorline doctor --kas-add", "doctor --kas-address"),
    ("moorline doctor --ca-file only-o", "doctor --ca-file only-one.pem"),
    ("kas token rev", "token revoke"),
    ("kas token create --role read", "token create --role read-only"),
    ("kas --log-level warn", "--log-level warning"),
    ("agentk --insecure", "--insecure-plaintext"),
    ("agentk --kubeconfig only-o", "--kubeconfig only-one.pem"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "only-one.pem").touch()
    return tmp_path


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script of each shell."""
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh", "fish"):
        command = [sys.executable, "-P", "-m", "moorline", "completion", shell]
        run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        assert run.stderr == ""
        (folder / shell).write_text(run.stdout)
    return folder


def program(shell: str) -> str:
    found = shutil.which(shell)
    assert found is not None, f"{shell} is not installed (Debian: {shell}); .ci/run installs it"
    return found


class Shell:
    """An interactive shell on a terminal of its own, in which our commands print their arguments."""

    def __init__(self, command: list[str], folder: Path) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "TERM": "dumb",
            "PS1": "$ ",
            "LC_ALL": "C.UTF-8",
        }
        self.shown = ""
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, cwd=folder, env=environment, start_new_session=True
        )
        os.close(slave)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, text: str) -> None:
        """Return once the shell has shown it."""
        deadline = time.monotonic() + SECONDS
        while text not in self.shown:
            assert time.monotonic() < deadline, f"{text!r} was not shown: {self.shown!r}"
            readable, _, _ = select.select([self._master], [], [], 0.5)
            if readable:
                self.shown += os.read(self._master, 65_536).decode(errors="replace")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)


@contextlib.contextmanager
def shell_with(script: Path, command: list[str], folder: Path, *preparation: str) -> Iterator[Shell]:
    shell = Shell(command, folder)
    try:
        functions = [f"{name}() {{ printf '<%s>' \"$*\"; echo; }}" for name in ("kas", "agentk", "moorline")]
        shell.type("\n".join([*functions, *preparation, f'eval "$(cat {script})"', "echo read''y"]) + "\n")
        shell.wait_for("ready")
        yield shell
    finally:
        shell.close()


@pytest.mark.parametrize(("line", "completed"), LINES)
def test_bash_completes(line: str, completed: str, scripts: Path, folder: Path) -> None:
    with shell_with(scripts / "bash", [program("bash"), "--norc", "--noprofile", "-i"], folder) as shell:
        shell.type(f"{line}\t\n")
        shell.wait_for(f"<{completed}>")


@pytest.mark.parametrize(("line", "completed"), LINES)
def test_zsh_completes(line: str, completed: str, scripts: Path, folder: Path) -> None:
    preparation = ["autoload -Uz compinit", "compinit -u -D"]
    with shell_with(scripts / "zsh", [program("zsh"), "-f", "-i"], folder, *preparation) as shell:
        shell.type(f"{line}\t\n")
        shell.wait_for(f"<{completed}>")


@pytest.mark.parametrize(("line", "completed"), LINES)
def test_fish_completes(line: str, completed: str, scripts: Path, folder: Path) -> None:
    question = "source $argv[1]; complete --do-complete $argv[2]"
    run = subprocess.run(
        [program("fish"), "--no-config", "-c", question, str(scripts / "fish"), line],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        cwd=folder,
        env={**os.environ, "HOME": str(folder)},
    )
    offered = [offer.partition("\t")[0] for offer in run.stdout.splitlines()]

    assert run.stderr == ""
    assert offered == [completed.rpartition(" ")[2]]


def test_an_unknown_shell_is_told_which_there_are() -> None:
    command = [sys.executable, "-P", "-m", "moorline", "completion", "tcsh"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=30)

    assert run.returncode == 2
    assert run.stdout == ""
    assert "bash, zsh, fish" in run.stderr
