"""A controller's caches through the tunnel: complete after any number of agent restarts, and without listing all again."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.testbed.bed import Bed, Route
from e2e.testbed.http import Endpoint
from e2e.testbed.informer import RESOURCES, Churn, Informer
from e2e.testbed.kubectl import Kubectl
from e2e.testbed.tunnel import Tunnel


@pytest.fixture
def log(bed: Bed) -> Path:
    return bed.directory / "logs" / f"informer-{random.randrange(10**6)}.log"


def test_an_informer_fills_by_watch_list_and_follows(
    bed: Bed, route: Route, direct: Kubectl, namespace: str, log: Path
) -> None:
    informer = Informer(bed.assets, route.kubectl.kubeconfig, log=log)
    try:
        informer.wait_synced(seconds=20)
        churn = Churn(Endpoint.of(direct.kubeconfig), namespace, per_second=50)
        with churn.running():
            time.sleep(4)
        assert churn.changes > 100
        report = informer.wait_equal(direct, seconds=10)
        for resource in RESOURCES:
            counts = report["counts"][resource]
            assert (counts["lists"], counts["watch_lists"], counts["answers"]["HTTP/2.0"]) == (0, 1, 1), counts
    finally:
        informer.process.stop()


@pytest.fixture
def restless(tunnel: Tunnel) -> Iterator[str]:
    """An agent of this test alone, which it may kill."""
    with tunnel.extra_agent("restless") as name:
        yield name


def _churn_with_restarts(
    bed: Bed, tunnel: Tunnel, agent: str, namespace: str, log: Path, *, seconds: float, restarts: int
) -> None:
    kubeconfig = tunnel.kubeconfig_for(agent)
    watcher = bed.direct.with_kubeconfig(kubeconfig)
    informer = Informer(bed.assets, kubeconfig, log=log)
    try:
        informer.wait_synced(seconds=30)
        endpoint = Endpoint.of(bed.direct.kubeconfig)
        loops = 0
        with Churn(endpoint, namespace, per_second=20).running() as churn:
            ends = time.monotonic() + seconds
            for _ in range(restarts):
                with watcher.running("get", "pods", "-A", "-w", "-o", "name") as shell_loop:
                    time.sleep(seconds / restarts / 2)
                    tunnel.kill_agent(agent)
                    shell_loop.wait(seconds=30)
                    loops += 1
                time.sleep(random.uniform(0, 1))
                tunnel.start_agent(agent)
                time.sleep(max(0.0, min(seconds / restarts / 2, ends - time.monotonic())))
        assert churn.changes > seconds * 20 * 0.8
        report = informer.wait_equal(bed.direct, seconds=60)
        (log.parent / "informer-report.json").write_text(json.dumps(report["counts"], indent=1), encoding="utf-8")
        for resource in RESOURCES:
            counts = report["counts"][resource]
            full = counts["lists"] + counts["watch_lists"]
            assert full <= 1 + restarts, counts
    finally:
        informer.process.stop()


@pytest.mark.tunnel
@pytest.mark.timeout(240)
def test_an_informer_misses_nothing_while_its_agent_is_killed_three_times(
    bed: Bed, tunnel: Tunnel, restless: str, namespace: str, log: Path
) -> None:
    _churn_with_restarts(bed, tunnel, restless, namespace, log, seconds=45, restarts=3)


@pytest.mark.tunnel
@pytest.mark.long
@pytest.mark.timeout(900)
def test_an_informer_misses_nothing_in_ten_minutes_of_churn_and_ten_restarts(
    bed: Bed, tunnel: Tunnel, restless: str, namespace: str, log: Path
) -> None:
    _churn_with_restarts(bed, tunnel, restless, namespace, log, seconds=600, restarts=10)
