"""What must pass before a change lands: `nox` runs all of it, and so does `.ci/run`.

The sessions that check this checkout (lint, types, architecture, tests, e2e) share one virtual environment in
`.nox/shared`, into which the project is installed as a wheel: tests run against what users get, not against the
checkout, and the minutes of installing the same tools five times are saved. The documentation and the built
distributions get environments of their own, because there it matters what is *not* installed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
nox.options.sessions = ["lint", "types", "architecture", "docs", "build", "tests", "e2e"]
nox.options.error_on_missing_interpreters = True
nox.options.default_venv_backend = "virtualenv"

ROOT = Path(__file__).parent
SHARED = ROOT / ".nox" / "shared"
PACKAGES = ["tunnel", "agent", "server", "bff", "sandbox", "moorline", "operations"]
CHECKED = [*PACKAGES, "tests", "docs", "benchmarks", "noxfile.py", "hatch_build.py"]
COMMANDS = ["kas", "agentk", "moorline"]
BENCHMARK_COMMANDS = ["compare", "micro", "profile"]

PURE_MODULES = [
    "tunnel/h2/*.py",
    "tunnel/http1/heads.py",
    "tunnel/http1/framing.py",
    "tunnel/fields.py",
    "tunnel/heads.py",
    "tunnel/liveness.py",
    "tunnel/messages.py",
    "tunnel/errors.py",
    "tunnel/identity.py",
    "tunnel/handshake.py",
    "tunnel/refusals.py",
    "tunnel/dial_address.py",
    "tunnel/proxy_settings.py",
]
"""The modules without I/O, whose every branch a test must take."""

project = nox.project.load_toml(ROOT / "pyproject.toml")
_prepared: set[str] = set()


def shared(session: nox.Session, *, with_project: bool) -> Path:
    """Make the shared environment ready, and return the folder of its programs.

    What it holds is known by a hash of the dependency lists, so that it is built anew when they change. The project
    itself is installed again in every run of nox, since its sources are what changed.
    """
    programs = SHARED / "bin"
    wanted = [*project["project"]["dependencies"], *nox.project.dependency_groups(project, "dev")]
    stamp = SHARED / "holds"
    digest = hashlib.sha256("\n".join([sys.version, *wanted]).encode()).hexdigest()
    if "tools" not in _prepared:
        if not stamp.is_file() or stamp.read_text() != digest:
            shutil.rmtree(SHARED, ignore_errors=True)
            session.run(sys.executable, "-m", "venv", str(SHARED), external=True)
            pip(session, programs, "install", "--upgrade", "pip")
            pip(session, programs, "install", *wanted)
            stamp.write_text(digest)
        _prepared.add("tools")
    if with_project and "project" not in _prepared:
        pip(session, programs, "install", "--no-deps", "--force-reinstall", str(ROOT))
        _prepared.add("project")
    return programs


def pip(session: nox.Session, programs: Path, *arguments: str) -> None:
    """Run pip in an environment, quietly and with time to spare for slow networks."""
    session.run(str(programs / "python"), "-m", "pip", "--quiet", *arguments, external=True)


def tool(session: nox.Session, programs: Path, name: str, *arguments: str, **environment: str) -> None:
    """Run a program of the shared environment from the root of the checkout."""
    # Programs that tests start (kas, agentk, moorline) are found where the project is installed.
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    session.run(str(programs / name), *arguments, external=True, env={"PATH": path, **environment})


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Style: ruff, and flake8-async for what Trio wants."""
    programs = shared(session, with_project=False)
    tool(session, programs, "ruff", "check", ".")
    tool(session, programs, "ruff", "format", "--check", ".")
    tool(session, programs, "flake8", "--jobs=2", *CHECKED)


@nox.session(name="format", venv_backend="none", default=False)
def format_(session: nox.Session) -> None:
    """Rewrite the sources as `lint` wants them."""
    programs = shared(session, with_project=False)
    tool(session, programs, "ruff", "check", "--fix", ".")
    tool(session, programs, "ruff", "format", ".")


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """mypy: the packages strictly, the tests as `tests/mypy.ini` says."""
    programs = shared(session, with_project=False)
    tool(session, programs, "mypy")
    tool(session, programs, "mypy", "--config-file", "tests/mypy.ini")


@nox.session(venv_backend="none")
def architecture(session: nox.Session) -> None:
    """Who may import whom."""
    programs = shared(session, with_project=False)
    tool(session, programs, "lint-imports", PYTHONPATH=str(ROOT))


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Unit tests and Hypothesis against the installed package, with every branch of the pure modules taken.

    Arguments go to pytest; then coverage is not judged.
    """
    programs = shared(session, with_project=True)
    if session.posargs:
        tool(session, programs, "pytest", *session.posargs, PYTHONSAFEPATH="1")
        return
    data = SHARED / "coverage"
    # `coverage run` takes the place of `python -m`, and would put the checkout in front of what is installed.
    isolated = {"PYTHONSAFEPATH": "1", "COVERAGE_FILE": str(data)}
    tool(session, programs, "coverage", "erase", **isolated)
    tool(session, programs, "coverage", "run", str(programs / "pytest"), "--durations=10", **isolated)
    tool(session, programs, "coverage", "report", "--skip-covered", **isolated)
    pure = ",".join(f"*/{pattern}" for pattern in PURE_MODULES)
    tool(session, programs, "coverage", "report", f"--include={pure}", "--fail-under=100", "--show-missing", **isolated)


@nox.session(venv_backend="none")
def e2e(session: nox.Session) -> None:
    """kubectl and other clients against a real kube-apiserver, through kas and agentk."""
    programs = shared(session, with_project=True)
    if not session.posargs:
        # What `./try --real` runs.
        tool(session, programs, "python", "tests/try_it.py", "--once")
    arguments = session.posargs or ["tests/e2e"]
    tool(session, programs, "pytest", "--durations=20", *arguments, PYTHONSAFEPATH="1")


@nox.session(venv_backend="none", default=False)
def long(session: nox.Session) -> None:
    """Long churn and large floods, run by hand and reported."""
    programs = shared(session, with_project=True)
    arguments = session.posargs or ["tests", "tests/e2e"]
    tool(session, programs, "pytest", "-m", "long", "--timeout=3600", *arguments, PYTHONSAFEPATH="1")


@nox.session(venv_backend="none", default=False)
def bench(session: nox.Session) -> None:
    """Moorline against a direct connection and a Go tunnel of the same design: minutes; `-- quick`: the main rows.

    `-- compare A.json B.json` says whether two runs agree, `-- micro` counts bytecodes and times single stages,
    `-- profile` shows where the time of a request goes.
    """
    # The programs that are measured ask for their version, which only an installed project has; they are the checkout's.
    programs = shared(session, with_project=True)
    arguments = list(session.posargs)
    module = "benchmarks"
    if arguments and arguments[0] in BENCHMARK_COMMANDS:
        module = f"benchmarks.{arguments.pop(0)}"
    tool(session, programs, "python", "-m", module, *arguments)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, built strictly in an environment without the project."""
    session.install("-q", *nox.project.dependency_groups(project, "docs"))
    session.run("mkdocs", "build", "--strict", "--site-dir", str(ROOT / "site"))


@nox.session
def build(session: nox.Session) -> None:
    """The distributions: the wheel that comes from the sdist is the wheel of the checkout, installs alone, and runs."""
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.install("-q", "build")
    session.run("python", "-m", "build", "--outdir", str(dist), str(ROOT))
    session.run("python", "-m", "build", "--wheel", "--outdir", str(dist / "checkout"), str(ROOT))
    (wheel,) = dist.glob("*.whl")
    (sdist,) = dist.glob("*.tar.gz")
    (direct,) = (dist / "checkout").glob("*.whl")
    if wheel_names(wheel) != wheel_names(direct):
        session.error(f"the sdist lacks something: {sorted(wheel_names(wheel) ^ wheel_names(direct))}")
    assert_contents(session, wheel_names(wheel), sdist_names(sdist))

    clean = ROOT / ".nox" / "clean"
    session.run(sys.executable, "-m", "venv", "--clear", str(clean), external=True)
    pip(session, clean / "bin", "install", str(wheel))
    pip(session, clean / "bin", "check")
    # From the checkout, whose folders have the names of the packages: each command must find its own all the same.
    for command in COMMANDS:
        session.run(str(clean / "bin" / command), "--version", external=True)
        session.run(str(clean / "bin" / command), "--help", external=True, silent=True)


def wheel_names(path: Path) -> set[str]:
    """The files of a wheel."""
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def sdist_names(path: Path) -> set[str]:
    """The files of an sdist, without its top folder."""
    with tarfile.open(path) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def assert_contents(session: nox.Session, wheel: set[str], sdist: set[str]) -> None:
    """The wheel holds the packages and its metadata; the sdist holds every tracked file; and neither anything else.

    A new file counts as tracked: what git ignores is what must not get in.
    """
    listing = session.run("git", "ls-files", "-co", "--exclude-standard", external=True, silent=True)
    tracked = {name for name in str(listing).splitlines() if (ROOT / name).is_file()}
    sources = {name for name in tracked if name.split("/")[0] in PACKAGES}
    metadata = {name for name in wheel if name.split("/")[0].endswith(".dist-info")}
    commit = {"operations/commit.txt"}  # made by hatch_build.py
    problems = {
        "missing in the wheel": (sources | commit) - wheel,
        "not ours in the wheel": wheel - sources - metadata - commit,
        "missing in the sdist": (tracked | commit) - sdist,
        "not ours in the sdist": sdist - tracked - commit - {"PKG-INFO"},
    }
    for what, names in problems.items():
        if names:
            session.error(f"{what}: {', '.join(sorted(names))}")
