"""The test bed: a real cluster, kas and agentk as real processes in front of it, and kubectl on either side.

``direct`` is kubectl straight at the kube-apiserver; ``through`` is kubectl through kas, the tunnel and agentk. What a
test asserts is mostly that the two cannot be told apart. With ``--direct`` both go straight to the kube-apiserver,
to tell a fault of the bed from a fault of the tunnel; what is about the tunnel itself is then left out.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from e2e.controlplane.build import Assets, BuildError
from e2e.controlplane.build import assets as built_assets
from e2e.testbed.bed import Bed, Route
from e2e.testbed.cluster import ControlPlane, external
from e2e.testbed.kubectl import Kubectl
from e2e.testbed.tunnel import Tunnel

DEBIAN_PROGRAMS = {"nginx": "nginx-light", "curl": "curl", "nghttp": "nghttp2-client"}
ROUTES = ["tcp", "websocket", "nginx"]

_assets = pytest.StashKey[Assets]()
_directory = pytest.StashKey[Path]()
_log_sizes = pytest.StashKey[dict[Path, int]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--direct", action="store_true", help="run `through` straight at the kube-apiserver, without kas")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "tunnel: needs kas and agentk, so left out with --direct")
    config.addinivalue_line("markers", "own_cluster: needs the control plane of the test bed, not E2E_KUBECONFIG")
    config.addinivalue_line(
        "markers", "controllers: needs a kube-controller-manager, which KUBEBUILDER_ASSETS may lack"
    )
    config.addinivalue_line("markers", "last: runs after everything else")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what was not asked for, as deselected and not as skipped; put last what judges the whole run."""
    left_out: list[pytest.Item] = []
    envtest = os.environ.get("KUBEBUILDER_ASSETS")
    without_controllers = envtest is not None and not (Path(envtest) / "kube-controller-manager").exists()
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        long = item.get_closest_marker("long") is not None and "long" not in config.option.markexpr
        tunnel = item.get_closest_marker("tunnel") is not None and config.option.direct
        own = item.get_closest_marker("own_cluster") is not None and "E2E_KUBECONFIG" in os.environ
        controllers = item.get_closest_marker("controllers") is not None and without_controllers
        if long or tunnel or own or controllers:
            left_out.append(item)
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Build before the first test, so that the minutes it may take count against no test's deadline."""
    if session.config.option.collectonly or not session.items:
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        missing = [
            f"{name} (Debian: {package})" for name, package in DEBIAN_PROGRAMS.items() if shutil.which(name) is None
        ]
        if missing:
            pytest.exit(f"e2e: not installed: {', '.join(missing)}; run `apt-get install …` or .ci/run", returncode=1)
        try:
            session.config.stash[_assets] = built_assets(os.environ)
        except BuildError as error:
            pytest.exit(str(error), returncode=1)


@pytest.fixture(scope="session")
def assets(pytestconfig: pytest.Config) -> Assets:
    """The programs of the bed."""
    return pytestconfig.stash[_assets]


@pytest.fixture(scope="session")
def bed(pytestconfig: pytest.Config, assets: Assets, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """The cluster, with kas and the session's agents in front of it."""
    directory = tmp_path_factory.mktemp("e2e")
    pytestconfig.stash[_directory] = directory
    control_plane = None
    if assets.kubeconfig is None:
        control_plane = ControlPlane(assets, directory / "control-plane")
    tunnel = None
    try:
        if control_plane is not None:
            cluster = control_plane.start()
        else:
            assert assets.kubeconfig is not None
            cluster = external(assets.kubeconfig, image=os.environ.get("E2E_IMAGE", "busybox:1.37"))
        kubectl = Kubectl(
            program=assets.kubectl, kubeconfig=cluster.kubeconfig, home=directory / "direct.home", environ={}
        )
        bed = Bed(assets=assets, directory=directory, cluster=cluster, direct=kubectl)
        bed.prepare_cluster()
        if not pytestconfig.option.direct:
            tunnel = Tunnel(bed)
            tunnel.start()
            bed.tunnel = tunnel
        yield bed
    finally:
        if tunnel is not None:
            tunnel.stop()
        if control_plane is not None:
            control_plane.stop()


@pytest.fixture(scope="session")
def tunnel(bed: Bed) -> Tunnel:
    """kas and its agents."""
    assert bed.tunnel is not None, "mark this test with `tunnel`: there is none with --direct"
    return bed.tunnel


@pytest.fixture(scope="session")
def direct(bed: Bed) -> Kubectl:
    """kubectl straight at the kube-apiserver."""
    return bed.direct


@pytest.fixture(scope="session")
def through(bed: Bed) -> Kubectl:
    """kubectl through kas and agentk, over the TCP tunnel, addressed by /k8s-proxy/."""
    return bed.route("tcp").kubectl


@pytest.fixture(scope="session", params=ROUTES)
def route(request: pytest.FixtureRequest, bed: Bed) -> Route:
    """Each way through: TCP tunnel, WebSocket tunnel, and nginx in front of both listeners."""
    return bed.route(request.param)


@pytest.fixture
def namespace(bed: Bed) -> Iterator[str]:
    """A namespace for this test alone."""
    with bed.namespace("e2e-") as name:
        yield name


@pytest.fixture
def twins(bed: Bed) -> Iterator[tuple[str, str]]:
    """Two namespaces for this test alone: one to be changed directly, one through the tunnel."""
    with bed.namespace("e2e-one-") as one, bed.namespace("e2e-two-") as two:
        yield one, two


@pytest.fixture(scope="session")
def pod(bed: Bed) -> Iterator[tuple[str, str]]:
    """A namespace and the name of a pod in it that runs for ever, to exec into."""
    with bed.namespace("e2e-pod-") as name:
        bed.run_pod(name, "shell", ["sleep", "infinity"])
        yield name, "shell"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Note where each log ends before the test."""
    item.stash[_log_sizes] = {log: log.stat().st_size for log in _logs(item)}
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to a failure what the processes logged meanwhile: most of what is ours, less of what is not."""
    report = yield
    if report.failed:
        before = item.stash.get(_log_sizes, {})
        for log in _logs(item):
            with log.open("rb") as stream:
                stream.seek(before.get(log, 0))
                said = stream.read().decode(errors="replace").splitlines()
            if said:
                shown = said[-60:] if log.name.startswith(("kas", "agentk")) else said[-10:]
                report.sections.append((f"{log.name} meanwhile ({log})", "\n".join(shown)))
    return report


def _logs(item: pytest.Item) -> list[Path]:
    directory = item.config.stash.get(_directory, None)
    return sorted(directory.rglob("logs/*.log")) if directory is not None else []
