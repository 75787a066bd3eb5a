"""The client-go informer program, and changes for it to follow."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from e2e.controlplane.build import Assets
from e2e.testbed.http import Endpoint
from e2e.testbed.kubectl import Kubectl
from e2e.testbed.processes import Process, until

RESOURCES = ("pods", "configmaps")


class Informer:
    """The informer program on one kubeconfig."""

    def __init__(self, assets: Assets, kubeconfig: Path, *, log: Path) -> None:
        self.process = Process("informer", [assets.informer, f"-kubeconfig={kubeconfig}"], log=log)

    def _events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.process.output().splitlines() if line.startswith('{"event"')]

    def wait_synced(self, *, seconds: float) -> dict[str, Any]:
        """The first report, once the stores are filled."""
        events = until(self._events, seconds=seconds, what=f"the informer has synced{self.process.tail()}")
        return events[0]

    def report(self) -> dict[str, Any]:
        """What it holds and has asked for now."""
        known = len(self._events())
        self.process.signal(signal.SIGUSR1)
        return until(lambda: self._events()[known:], seconds=10, what="the informer reports")[-1]

    def wait_equal(self, direct: Kubectl, *, seconds: float) -> dict[str, Any]:
        """Wait until each store is what a direct list shows, and return that report; fails with the difference."""
        deadline = time.monotonic() + seconds
        while True:
            report = self.report()
            wanted = {resource: listed(direct, resource) for resource in RESOURCES}
            if report["store"] == wanted:
                return report
            if time.monotonic() > deadline:
                differences = {
                    resource: sorted(set(wanted[resource].items()) ^ set(report["store"][resource].items()))[:10]
                    for resource in RESOURCES
                }
                raise AssertionError(
                    f"the informer's stores differ from a direct list: {differences}{self.process.tail()}"
                )
            time.sleep(0.5)


def listed(direct: Kubectl, resource: str) -> dict[str, str]:
    """namespace/name and resource version of every object, asked directly."""
    items = direct("get", resource, "-A", "-o", "json").json()["items"]
    return {f"{i['metadata']['namespace']}/{i['metadata']['name']}": i["metadata"]["resourceVersion"] for i in items}


class Churn:
    """Changes to configmaps and pods of one namespace, at a steady rate, straight at the kube-apiserver."""

    def __init__(self, endpoint: Endpoint, namespace: str, *, per_second: float) -> None:
        self._base = f"{endpoint.base}/api/v1/namespaces/{namespace}"
        self._endpoint = endpoint
        self._interval = 1 / per_second
        self._stop = False
        self._alive: list[str] = []
        self._made = 0
        self.changes = 0

    @contextmanager
    def running(self) -> Iterator[Churn]:
        """Changes happen inside the block, in a thread of their own; what they fail with is raised at its end."""
        with ThreadPoolExecutor(1) as executor:
            future = executor.submit(self._run)
            try:
                yield self
            finally:
                self._stop = True
            future.result(timeout=30)

    def _run(self) -> None:
        headers = {"Authorization": f"Bearer {self._endpoint.token}"}
        with httpx.Client(headers=headers, verify=self._endpoint.context(), timeout=20) as client:
            due = time.monotonic()
            while not self._stop:
                self._change(client)
                self.changes += 1
                due += self._interval
                time.sleep(max(0.0, due - time.monotonic()))

    def _change(self, client: httpx.Client) -> None:
        chance = random.random()
        if not self._alive or (chance < 0.35 and len(self._alive) < 200):
            path = "configmaps" if self._made % 3 else "pods"
            name = f"{path}/churn-{self._made}"
            self._made += 1
            client.post(f"{self._base}/{path}", json=_object(name)).raise_for_status()
            self._alive.append(name)
        elif chance < 0.75:
            name = random.choice(self._alive)
            patch = {"metadata": {"labels": {"turn": str(self.changes)}}}
            headers = {"Content-Type": "application/merge-patch+json"}
            client.patch(f"{self._base}/{name}", json=patch, headers=headers).raise_for_status()
        else:
            name = self._alive.pop(random.randrange(len(self._alive)))
            client.delete(f"{self._base}/{name}", params={"gracePeriodSeconds": "0"}).raise_for_status()


def _object(name: str) -> dict[str, Any]:
    kind, _, plain = name.partition("/")
    if kind == "configmaps":
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": plain}, "data": {"x": "y" * 500}}
    spec = {
        "schedulingGates": [{"name": "e2e.moorline.test/never"}],
        "automountServiceAccountToken": False,
        "containers": [{"name": "main", "image": "none"}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": plain}, "spec": spec}
