"""What people read when something is missing, and that nothing is done twice."""

from __future__ import annotations

import secrets
import signal
import time
import urllib.request
from collections.abc import Callable

import httpx
import pytest
from e2e.testbed.bed import Bed
from e2e.testbed.cluster import kubeconfig
from e2e.testbed.kubectl import Kubectl
from e2e.testbed.names import DOMAIN
from e2e.testbed.processes import free_port, open_descriptors, rss_bytes, until
from e2e.testbed.relays import ConnectProxy, Gate
from e2e.testbed.tunnel import Tunnel

pytestmark = pytest.mark.tunnel

SPDY = {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "false", "KUBECTL_PORT_FORWARD_WEBSOCKETS": "false"}


@pytest.fixture
def kubectl_for(bed: Bed, tunnel: Tunnel) -> Callable[[str], Kubectl]:
    return lambda agent: bed.direct.with_kubeconfig(tunnel.kubeconfig_for(agent))


# -- agent not connected


def test_an_agent_that_is_not_connected_is_said_so_at_once(
    bed: Bed, tunnel: Tunnel, kubectl_for: Callable[[str], Kubectl], pod: tuple[str, str]
) -> None:
    with tunnel.extra_agent("absent") as agent:
        kubectl = kubectl_for(agent)
        kubectl("get", "nodes")
        tunnel.kill_agent(agent)
        for command in (
            ("get", "nodes"),
            ("create", "configmap", "x"),
            ("exec", "-n", pod[0], pod[1], "--", "true"),
            ("logs", "-f", "-n", pod[0], pod[1]),
            ("get", "--raw", "/version"),
        ):
            began = time.monotonic()
            result = kubectl.attempt(*command)
            assert result.returncode == 1
            assert f"agent {agent} is not connected" in result.errors, str(result)
            assert "failed hop: kas" in result.errors
            assert time.monotonic() - began < 3
        cold = bed.direct.with_kubeconfig(tunnel.kubeconfig_for(agent, name=f"{agent}-cold")).attempt("get", "nodes")
        assert "ServiceUnavailable" in cold.errors
        answer = tunnel.endpoint(agent).curl("/k8s/version")
        assert (answer.status, answer.field("retry-after")) == (503, None)
        tunnel.start_agent(agent)
        assert kubectl("get", "nodes").returncode == 0


def test_an_upgrade_to_an_absent_agent_is_refused_before_and_not_closed(
    tunnel: Tunnel, kubectl_for: Callable[[str], Kubectl], pod: tuple[str, str]
) -> None:
    with tunnel.extra_agent("gone") as agent:
        kubectl = kubectl_for(agent)
        with kubectl.running("exec", "-n", pod[0], pod[1], "--", "sh", "-c", "echo ready; sleep 60") as session:
            session.wait_for("ready")
            tunnel.kill_agent(agent)
            killed = time.monotonic()
            assert session.wait(seconds=10) != 0
            assert time.monotonic() - killed < 3


# -- kube-apiserver not reachable


def test_a_kube_apiserver_that_is_down_is_a_502_that_names_agent_and_upstream(
    bed: Bed, tunnel: Tunnel, kubectl_for: Callable[[str], Kubectl], pod: tuple[str, str]
) -> None:
    dead = f"127.0.0.1:{free_port()}"
    served = kubeconfig(
        bed.directory / "dead.kubeconfig", server=f"https://{dead}", ca_pem=bed.cluster.ca_pem, token="x"
    )
    with tunnel.extra_agent("headless", kubernetes={"kubeconfig": str(served)}) as agent:
        kubectl = kubectl_for(agent)
        for path in ("/api/v1/nodes", f"/api/v1/namespaces/{pod[0]}/pods/{pod[1]}/exec?command=true&stdout=1"):
            result = kubectl.attempt("get", "--raw", path)
            assert result.returncode == 1
            assert "(BadGateway)" in result.errors, str(result)
            assert agent in result.errors
            assert "refused" in result.errors, str(result)
            assert "failed hop: upstream" in result.errors
        answer = tunnel.endpoint(agent).curl("/k8s/api", "-X", "POST", body=b"{}")
        assert (answer.status, answer.field("retry-after")) == (502, None)
        port = tunnel.agents[agent].health_port
        health = {name: httpx.get(f"http://127.0.0.1:{port}/{name}") for name in ("livez", "readyz")}
        assert health["livez"].status_code == 200
        assert health["readyz"].status_code == 503, health["readyz"].text


@pytest.mark.own_cluster
def test_a_kube_apiserver_that_restarts_costs_no_tunnel(
    bed: Bed, tunnel: Tunnel, through: Kubectl, namespace: str
) -> None:
    own = bed.cluster.own
    assert own is not None
    info = tunnel.endpoint("tcp")
    before = len(tunnel.logged("tunnel registered"))
    with through.running("get", "configmaps", "-n", namespace, "-w", "-o", "name") as watch:
        watch.wait_for("configmap/")
        own.kill_apiserver()
        try:
            watch.wait(seconds=10)
            assert "unable to decode" not in watch.stderr
            result = through.attempt("get", "--raw", "/api/v1/nodes")
            assert "(BadGateway)" in result.errors, str(result)
            assert info.curl("/agentk/v1/info").status == 200
        finally:
            own.start_apiserver()
    until(lambda: through.attempt("get", "nodes").returncode == 0, seconds=10, what="the cluster is served again")
    assert len(tunnel.logged("tunnel registered")) == before


def test_a_healthy_agent_is_ready_and_small(tunnel: Tunnel) -> None:
    with tunnel.extra_agent("idle", log={"level": "info", "format": "json"}) as agent:
        port = tunnel.agents[agent].health_port
        until(
            lambda: httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200,
            seconds=10,
            what="the agent is ready",
        )
        assert urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=5).status == 200
        process = tunnel.agents[agent].process
        assert process is not None
        assert rss_bytes(process.pid) <= 45 << 20


# -- nothing twice


@pytest.mark.own_cluster
@pytest.mark.parametrize("protocol", ["websockets", "spdy"])
@pytest.mark.parametrize("victim", ["agent", "connection"])
def test_a_command_is_never_started_twice_when_its_session_breaks_before_the_101(
    bed: Bed, tunnel: Tunnel, kubectl_for: Callable[[str], Kubectl], pod: tuple[str, str], protocol: str, victim: str
) -> None:
    own = bed.cluster.own
    assert own is not None
    marker = secrets.token_hex(8)
    gate = Gate(
        upstream_port=own.port,
        upstream=own.pki.context(),
        certificate=own.pki.directory / "apiserver.crt",
        key=own.pki.directory / "apiserver.key",
    )
    with gate.running() as port:
        path = kubeconfig(
            bed.directory / f"gate-{marker}.kubeconfig",
            server=f"https://127.0.0.1:{port}",
            ca_pem=bed.cluster.ca_pem,
            token=own.agent_token,
        )
        with tunnel.extra_agent("gated", kubernetes={"kubeconfig": str(path)}) as agent:
            kubectl = kubectl_for(agent).with_environ(**(SPDY if protocol == "spdy" else {}))
            with kubectl.running("exec", "-n", pod[0], pod[1], "--", "echo", marker) as session:
                until(gate.held.is_set, seconds=20, what="the 101 is held back")
                if victim == "agent":
                    tunnel.kill_agent(agent)
                    tunnel.start_agent(agent)
                else:
                    process = tunnel.agents[agent].process
                    assert process is not None
                    process.stop()
                    tunnel.start_agent(agent)
                assert session.wait(seconds=15) != 0
                assert "EOF" in session.stderr or "reset" in session.stderr, session.stderr
            time.sleep(1)
            assert gate.upgrades == 1
            assert [start["command"] for start in own.starts()].count(["echo", marker]) <= 1


# -- leaks


def test_cancelled_log_followers_leave_nothing_behind(tunnel: Tunnel, bed: Bed, pod: tuple[str, str]) -> None:
    process = tunnel.agents["tcp"].process
    assert process is not None
    assert tunnel.kas is not None
    endpoint = tunnel.endpoint("tcp")
    headers = {"Authorization": f"Bearer {endpoint.token}"}
    url = f"{endpoint.base}/k8s/api/v1/namespaces/{pod[0]}/pods/{pod[1]}/log?follow=true"
    with httpx.Client(headers=headers, verify=endpoint.context(), timeout=20) as client:
        client.get(f"{endpoint.base}/k8s/version")
    time.sleep(1)
    before = [open_descriptors(pid) for pid in (process.pid, tunnel.kas.pid)]
    for _ in range(20):
        with httpx.Client(headers=headers, verify=endpoint.context(), timeout=20) as client:
            followers = [client.send(client.build_request("GET", url), stream=True) for _ in range(10)]
            assert {follower.status_code for follower in followers} == {200}
            for follower in followers:
                follower.close()

    def settled() -> bool:
        now = [open_descriptors(process.pid), open_descriptors(tunnel.kas.pid if tunnel.kas else 0)]
        return all(after <= base + 5 for after, base in zip(now, before, strict=True))

    until(settled, seconds=10, what=f"descriptors are back at {before}")


# -- ways to kas


def test_a_host_name_addresses_an_agent(bed: Bed, tunnel: Tunnel, direct: Kubectl, pod: tuple[str, str]) -> None:
    proxy = ConnectProxy()
    with proxy.running() as port:
        path = kubeconfig(
            bed.directory / "host-name.kubeconfig",
            server=f"https://tcp.k8s.{DOMAIN}:{tunnel.proxy_port}",
            ca_pem=tunnel.pki.ca_file.read_bytes(),
            token=tunnel.admin_token,
        )
        kubectl = direct.with_kubeconfig(path).with_environ(HTTPS_PROXY=f"http://127.0.0.1:{port}", NO_PROXY="")
        assert kubectl("get", "nodes", "-o", "json").stdout == direct("get", "nodes", "-o", "json").stdout
        assert kubectl("exec", "-n", pod[0], pod[1], "--", "echo", "hello").text == "hello\n"
        assert kubectl.with_environ(**SPDY)("exec", "-n", pod[0], pod[1], "--", "echo", "hello").text == "hello\n"
        with kubectl.running("proxy", "--port=0") as local:
            url = "http://" + local.wait_for(r"Starting to serve on (\S+)")[1]
            assert "gitVersion" in httpx.get(f"{url}/version").json()
    assert set(proxy.asked) == {f"tcp.k8s.{DOMAIN}:{tunnel.proxy_port}"}


@pytest.mark.parametrize("scheme", ["https", "wss"])
def test_an_agent_dials_through_an_http_proxy(tunnel: Tunnel, bed: Bed, scheme: str) -> None:
    proxy = ConnectProxy(user="mole", password="s3cret-proxy")
    with proxy.running() as port:
        name = f"behind-{scheme}"
        token = tunnel.new_token(agent=name)
        tunnel.add_agent(name, address=f"{scheme}://kas.{DOMAIN}:{tunnel.agents_port}", token=token)
        environ = {"PATH": "/usr/bin", "NO_PROXY": "127.0.0.1"}
        try:
            tunnel.start_agent(name, wait=False, environ=environ | {"HTTPS_PROXY": f"http://127.0.0.1:{port}"})
            process = tunnel.agents[name].process
            assert process is not None
            process.wait_for_line("407", seconds=15)
            assert process.returncode is None
            tunnel.stop_agent(name)
            tunnel.start_agent(name, environ=environ | {"HTTPS_PROXY": f"http://mole:s3cret-proxy@127.0.0.1:{port}"})
            kubectl = bed.direct.with_kubeconfig(tunnel.kubeconfig_for(name))
            assert kubectl("get", "nodes").returncode == 0
            assert proxy.asked == [f"kas.{DOMAIN}:{tunnel.agents_port}"]
            assert not any(b"mla_" in head or b"Bearer" in head for head in proxy.heads)
            assert "s3cret-proxy" not in process.log.read_text()
        finally:
            tunnel.stop_agent(name)


def test_an_agent_behind_nginx_may_use_the_plain_upgrade(tunnel: Tunnel, kubectl_for: Callable[[str], Kubectl]) -> None:
    assert tunnel.nginx is not None
    with tunnel.extra_agent("upgraded", address=f"https://localhost:{tunnel.nginx.port}") as agent:
        assert kubectl_for(agent)("get", "nodes").returncode == 0


# -- ends in order


def test_a_drained_agent_finishes_what_runs(
    tunnel: Tunnel, kubectl_for: Callable[[str], Kubectl], pod: tuple[str, str]
) -> None:
    with tunnel.extra_agent("draining", timeouts={"drain": "20s", "reconnect": "2s"}) as agent:
        kubectl = kubectl_for(agent)
        with kubectl.running(
            "exec", "-n", pod[0], pod[1], "--", "sh", "-c", "echo ready; sleep 3; echo done"
        ) as session:
            session.wait_for("ready")
            process = tunnel.agents[agent].process
            assert process is not None
            process.signal(signal.SIGTERM)
            time.sleep(0.5)
            assert "not connected" in kubectl.attempt("get", "--raw", "/version").errors
            assert session.wait(seconds=10) == 0
            assert session.stdout == "ready\ndone\n"
            assert process.wait(seconds=5) == 0


def test_a_second_process_of_a_replica_takes_over_at_once(
    tunnel: Tunnel, kubectl_for: Callable[[str], Kubectl]
) -> None:
    with tunnel.extra_agent("twin") as agent:
        first = tunnel.agents[agent].process
        assert first is not None
        first.signal(signal.SIGSTOP)  # as a machine that froze: its connection stays open
        try:
            config = tunnel.agents[agent].config
            config.write_text(
                config.read_text().replace(f":{tunnel.agents[agent].health_port}", ":0"), encoding="utf-8"
            )
            began = time.monotonic()
            tunnel.start_agent(agent)
            assert kubectl_for(agent)("get", "nodes").returncode == 0
            assert time.monotonic() - began < 15
        finally:
            first.signal(signal.SIGCONT)
            first.stop()


def test_watches_end_cleanly_when_their_agent_is_killed(
    tunnel: Tunnel, kubectl_for: Callable[[str], Kubectl], bed: Bed, namespace: str
) -> None:
    with tunnel.extra_agent("cut") as agent:
        kubectl = kubectl_for(agent)
        with kubectl.running("get", "configmaps", "-n", namespace, "-w", "-o", "name") as watch:
            watch.wait_for("configmap/")
            time.sleep(0.5)
            tunnel.kill_agent(agent)
            watch.wait(seconds=10)
            assert "unable to decode" not in watch.stderr
            assert "stream error" not in watch.stderr, watch.stderr
