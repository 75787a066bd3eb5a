"""The proxy listener against the HTTP/2 conformance cases of h2spec."""

from __future__ import annotations

import re
import subprocess

import pytest
from e2e.controlplane.build import Assets
from e2e.testbed.kubectl import Kubectl
from e2e.testbed.tunnel import Tunnel

pytestmark = pytest.mark.tunnel


@pytest.mark.timeout(400)
def test_the_proxy_listener_passes_all_cases_of_h2spec(assets: Assets, tunnel: Tunnel, through: Kubectl) -> None:
    command = [assets.h2spec, "-S", "-t", "-k", "-h", "127.0.0.1", "-p", str(tunnel.proxy_port), "-P", "/", "-o", "3"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=390, check=False)
    summary = re.search(r"(\d+) tests, (\d+) passed, (\d+) skipped, (\d+) failed", done.stdout)
    assert summary is not None, done.stdout[-2000:] + done.stderr[-2000:]
    failures = done.stdout.partition("Failures:")[2]
    assert summary.groups() == ("146", "146", "0", "0"), failures[-6000:] or done.stdout[-6000:]
    assert through("version").returncode == 0


@pytest.mark.parametrize("arguments", [(), ("-m", "30")])
def test_nghttp_is_served(tunnel: Tunnel, arguments: tuple[str, ...]) -> None:
    url = f"https://127.0.0.1:{tunnel.proxy_port}/agents/tcp/k8s/version"
    command = ["nghttp", "-v", "-H", f"authorization: Bearer {tunnel.admin_token}", *arguments, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"gitVersion"') == (30 if "30" in arguments else 1)
    assert "PROTOCOL_ERROR" not in done.stdout


def test_h2load_meets_no_error(tunnel: Tunnel) -> None:
    url = f"https://127.0.0.1:{tunnel.proxy_port}/agents/tcp/k8s/api/v1/namespaces/default"
    command = ["h2load", "-n", "1000", "-c", "4", "-m", "50", "-H", f"authorization: Bearer {tunnel.admin_token}", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "1000 total, 1000 started, 1000 done, 1000 succeeded, 0 failed, 0 errored, 0 timeout" in done.stdout, (
        done.stdout
    )
    assert "status codes: 1000 2xx, 0 3xx, 0 4xx, 0 5xx" in done.stdout
