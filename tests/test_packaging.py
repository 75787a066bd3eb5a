"""What is shipped: our names belong to us alone, and what is tested is what is installed."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import urllib.parse
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ["agent", "bff", "moorline", "operations", "sandbox", "server", "tunnel"]
COMMANDS = ["agentk", "kas", "moorline"]


def distribution() -> importlib.metadata.Distribution:
    return importlib.metadata.distribution("moorline")


def source_folder() -> Path:
    """Where the installed distribution has its packages: site-packages, or the checkout where it is editable."""
    direct_url = json.loads(distribution().read_text("direct_url.json") or "{}")
    if direct_url.get("dir_info", {}).get("editable"):
        return Path(urllib.parse.unquote(urllib.parse.urlsplit(direct_url["url"]).path))
    return Path(sysconfig.get_path("purelib"))


@pytest.mark.parametrize("package", PACKAGES)
def test_no_other_distribution_installs_a_package_of_this_name(package: str) -> None:
    others = {
        other.metadata["Name"]
        for other in importlib.metadata.distributions()
        for file in other.files or ()
        if file.parts[0] in (package, f"{package}.py") and other.metadata["Name"] != "moorline"
    }

    assert set() == others


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_tested_is_what_is_installed(package: str) -> None:
    module = importlib.import_module(package)

    assert str(source_folder() / package / "__init__.py") == module.__file__


def test_the_packages_are_listed_one_by_one() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())

    assert PACKAGES == sorted(settings["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])


def test_every_command_of_the_project_is_a_function_of_ours() -> None:
    scripts = {entry.name: entry for entry in distribution().entry_points if entry.group == "console_scripts"}

    assert COMMANDS == sorted(scripts)
    for entry in scripts.values():
        assert callable(entry.load())


def tracked() -> set[str]:
    """What git has or would take: a new file counts, what it ignores does not."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in listing.splitlines() if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist and a wheel of what is in the checkout."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-P", "-m", "hatchling", "build", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return folder


def test_the_wheel_holds_the_packages_and_nothing_else(distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    version = distribution().version
    metadata = {
        f"moorline-{version}.dist-info/{name}"
        for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
    }

    sources = {name for name in tracked() if name.partition("/")[0] in PACKAGES}
    assert metadata | sources | {"operations/commit.txt"} == names


def test_the_sdist_holds_every_tracked_file_and_nothing_else(distributions: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    assert tracked() | {"PKG-INFO", "operations/commit.txt"} == names


def head_commit() -> str:
    """What is checked out."""
    command = ["git", "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def test_both_distributions_know_the_commit(distributions: Path) -> None:
    (wheel,), (sdist,) = distributions.glob("*.whl"), distributions.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as zipped, tarfile.open(sdist) as tarred:
        (name,) = [name for name in tarred.getnames() if name.endswith("/operations/commit.txt")]
        found = [zipped.read("operations/commit.txt"), tarred.extractfile(name).read()]

    assert [content.decode().strip().removesuffix("-dirty") for content in found] == [head_commit()] * 2


def build_wheel(source: Path, target: Path, **environment: str) -> zipfile.ZipFile:
    build = [sys.executable, "-P", "-m", "hatchling", "build", "--target", "wheel", "--directory", str(target)]
    subprocess.run(build, cwd=source, check=True, capture_output=True, env={**os.environ, **environment})
    (wheel,) = target.glob("*.whl")
    return zipfile.ZipFile(wheel)


def test_a_wheel_of_the_sdist_knows_the_commit_without_git(distributions: Path, tmp_path: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as tarred:
        tarred.extractall(tmp_path, filter="data")
    (source,) = tmp_path.glob("moorline-*")
    with build_wheel(source, tmp_path / "dist", PATH="/nonexistent") as wheel:
        found = wheel.read("operations/commit.txt").decode().strip()

    assert found.removesuffix("-dirty") == head_commit()


def test_sources_that_are_no_repository_are_not_given_the_commit_of_one_around_them(
    distributions: Path, tmp_path: Path
) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as tarred:
        tarred.extractall(tmp_path, filter="data")
    (source,) = tmp_path.glob("moorline-*")
    (source / "operations" / "commit.txt").unlink()
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    identity = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.com"]
    subprocess.run(["git", *identity, "commit", "-q", "--allow-empty", "-m", "Another"], cwd=tmp_path, check=True)
    with build_wheel(source, tmp_path / "dist") as wheel:
        assert "operations/commit.txt" not in wheel.namelist()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_tells_its_version(command: str) -> None:
    program = Path(sys.executable).with_name(command)
    run = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30)

    assert (0, "") == (run.returncode, run.stderr)
    assert run.stdout.removesuffix("-dirty)\n").removesuffix(")\n") == (
        f"{command} {distribution().version} (commit {head_commit()}"
    )


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("foreign", ["tunnel", "operations"])
def test_a_command_refuses_to_run_with_packages_that_are_not_its_own(
    command: str, foreign: str, tmp_path: Path
) -> None:
    (tmp_path / foreign).mkdir()
    (tmp_path / foreign / "__init__.py").write_text('"""Somebody else\'s package of the same name."""\n')
    program = Path(sys.executable).with_name(command)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, env=environment)

    assert 2 == run.returncode
    assert str(tmp_path / foreign) in run.stderr, run.stderr
    assert str(source_folder()) in run.stderr, run.stderr
    assert "Traceback" not in run.stderr
