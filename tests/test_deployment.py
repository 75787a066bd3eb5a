"""What is in `deploy/` fits the code: configurations load, the image has every package, systemd takes the units.

What a real cluster says to the manifests is in `e2e/test_manifests.py`.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.config import AgentConfig
from operations.configuration import structure

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted([*DEPLOY.glob("agentk/*.yaml"), *DEPLOY.glob("variants/*.yaml")])
UNITS = {"kas": DEPLOY / "systemd" / "kas.service", "agentk": DEPLOY / "systemd" / "agentk.service"}

MOST_EXPOSED = 15
"""Of 100, as `systemd-analyze security` counts: what is left is the network, which is the purpose."""


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [document for path in MANIFESTS for document in documents(path) if document["kind"] == kind]


def deployment() -> dict[str, Any]:
    (found,) = of_kind("Deployment")
    return found


@pytest.mark.parametrize("config_map", of_kind("ConfigMap"), ids=lambda found: str(found["data"])[-40:-20])
def test_the_configuration_in_a_manifest_is_sound_and_its_paths_are_mounted(config_map: dict[str, Any]) -> None:
    config = structure(AgentConfig, yaml.safe_load(config_map["data"]["agentk.yaml"]))
    pod = deployment()["spec"]["template"]["spec"]
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}

    assert config.kas.token_file is not None
    assert volumes[mounts[str(config.kas.token_file.parent)]]["secret"]["secretName"] == "agentk-token"
    (secret,) = of_kind("Secret")
    assert [config.kas.token_file.name] == list(secret["stringData"])
    assert volumes[mounts["/etc/moorline/configuration"]]["configMap"]["name"] == config_map["metadata"]["name"]
    assert pod["containers"][0]["command"] == ["agentk", "--config", "/etc/moorline/configuration/agentk.yaml"]
    assert [config.health.address.port] == [port["containerPort"] for port in pod["containers"][0]["ports"]]
    assert not config.health.address.host, "the kubelet's probes come from outside of the Pod"
    assert pod["terminationGracePeriodSeconds"] > config.timeouts.drain
    limit = int(pod["containers"][0]["resources"]["limits"]["memory"].removesuffix("Mi")) * 1_048_576
    assert 2 * config.limits.buffered_bytes < limit


def test_the_page_counts_the_places_to_change() -> None:
    page = (ROOT / "docs" / "install.md").read_text()
    places = {path.name: path.read_text().count("CHANGE:") for path in sorted(DEPLOY.glob("agentk/*.yaml"))}

    assert sum(places.values()) == 4
    assert "**Four places to change**" in page
    assert [name for name, count in places.items() if count] == re.findall(
        r"^\| `(\d-[\w-]+\.yaml)` \|", page, re.MULTILINE
    )


# -- the image


def instructions() -> list[tuple[str, str]]:
    """The Containerfile's instructions and what follows them."""
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    found = [line.partition(" ") for line in lines if line and not line.startswith("#")]
    return [(name, rest.strip()) for name, _, rest in found]


def test_what_the_image_copies_is_enough_to_build_the_whole_distribution(tmp_path: Path) -> None:
    source, wheels = tmp_path / "src", tmp_path / "wheels"
    source.mkdir()
    for name, rest in instructions():
        if name == "COPY" and not rest.startswith("--from"):
            *sources, target = rest.split()
            for path in map(ROOT.joinpath, sources):
                if path.is_dir():
                    shutil.copytree(path, source / target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(path, source / target)
    build = [sys.executable, "-P", "-m", "hatchling", "build", "-t", "wheel", "--directory", str(wheels)]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packages = {name.partition("/")[0] for name in archive.namelist()}

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(wanted) == {name for name in packages if not name.endswith(".dist-info")}


def test_the_image_installs_as_the_installation_page_does() -> None:
    page = (ROOT / "docs" / "install.md").read_text()
    (run,) = (rest for name, rest in instructions() if name == "RUN")
    environment, install = (shlex.split(command) for command in run.split("&&"))

    assert environment == ["python", "-m", "venv", "/opt/moorline"]
    assert install == ["/opt/moorline/bin/pip", "install", "--no-cache-dir", "/src"]
    assert "python3 -m venv /opt/moorline\n" in page
    assert "/opt/moorline/bin/pip install .\n" in page


def test_the_image_runs_as_the_user_of_the_deployment_with_a_python_that_is_supported() -> None:
    found = dict(instructions())
    context = deployment()["spec"]["template"]["spec"]["securityContext"]
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    bases = {rest.split()[0] for name, rest in instructions() if name == "FROM"}

    assert found["USER"] == f"{context['runAsUser']}:{context['runAsGroup']}"
    assert "/opt/moorline/bin" in found["ENV"]
    (base,) = bases
    version = base.removeprefix("python:").removesuffix("-slim")
    assert f"Programming Language :: Python :: {version}" in settings["project"]["classifiers"]


# -- systemd


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    assert program is not None, "systemd-analyze is not installed (Debian: systemd)"
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", UNITS)
def test_systemd_understands_the_unit_and_finds_it_well_confined(name: str, tmp_path: Path) -> None:
    text = UNITS[name].read_text()
    program = Path(sys.executable).with_name(name)
    assert f"ExecStart=/opt/moorline/bin/{name} --config /etc/moorline/{name}.yaml\n" in text
    unit = tmp_path / f"{name}.service"
    unit.write_text(text.replace(f"/opt/moorline/bin/{name}", str(program)))

    verified = analyze("verify", str(unit))
    assert (verified.returncode, verified.stderr) == (0, "")
    judged = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSED}", "--no-pager", str(unit))
    assert judged.returncode == 0, judged.stdout


@pytest.mark.parametrize(("name", "drain_seconds"), [("kas", 60), ("agentk", 30)])
def test_systemd_waits_for_longer_than_a_drain_takes(name: str, drain_seconds: int) -> None:
    found = re.search(r"^TimeoutStopSec=(\d+)$", UNITS[name].read_text(), re.MULTILINE)

    assert found is not None
    assert int(found[1]) > drain_seconds
    assert f"({drain_seconds} s)" in UNITS[name].read_text()
