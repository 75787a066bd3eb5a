"""The Python client, which speaks HTTP/1.1 only and reads watches chunk by chunk."""

from __future__ import annotations

import gc
import secrets
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from e2e.testbed.bed import Bed, Route
from e2e.testbed.kubectl import Kubectl
from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import portforward, stream

load_kube_config: Any = config.load_kube_config
Watch: Any = watch.Watch


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """The package leaves sockets to the garbage collector; let that happen here, and not count against a later test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def core(route: Route) -> Iterator[Any]:
    configuration = client.Configuration()
    load_kube_config(str(route.kubectl.kubeconfig), client_configuration=configuration)
    with client.ApiClient(configuration) as api:
        yield client.CoreV1Api(api)


def test_the_client_reads_and_writes(core: Any, direct: Kubectl, namespace: str) -> None:
    body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name="made"), data={"a": "ünïcödé"})
    core.create_namespaced_config_map(namespace, body)
    assert direct("get", "configmap", "made", "-n", namespace, "-o", "jsonpath={.data.a}").text == "ünïcödé"
    core.patch_namespaced_config_map("made", namespace, {"data": {"b": "2"}})
    assert core.read_namespaced_config_map("made", namespace).data == {"a": "ünïcödé", "b": "2"}
    names = [item.metadata.name for item in core.list_namespaced_config_map(namespace).items]
    assert sorted(names) == ["kube-root-ca.crt", "made"]
    core.delete_namespaced_config_map("made", namespace)
    with pytest.raises(ApiException, match="NotFound"):
        core.read_namespaced_config_map("made", namespace)


def test_a_watch_yields_each_event_when_it_happens_and_ends_cleanly(core: Any, direct: Kubectl, namespace: str) -> None:
    seen: list[tuple[str, str]] = []
    created = 0.0
    events = Watch().stream(core.list_namespaced_config_map, namespace, timeout_seconds=5)
    began = time.monotonic()
    for event in events:
        seen.append((event["type"], event["object"].metadata.name))
        if len(seen) == 1:
            direct("create", "configmap", "late", "-n", namespace)
            created = time.monotonic()
        elif len(seen) == 2:
            assert time.monotonic() - created < 1
    assert seen == [("ADDED", "kube-root-ca.crt"), ("ADDED", "late")]
    assert 4 < time.monotonic() - began < 10


def test_exec_gives_output_input_and_the_exit_code(core: Any, pod: tuple[str, str]) -> None:
    command = ["sh", "-c", "read line; echo got $line; echo error >&2; exit 5"]
    running = stream(
        core.connect_get_namespaced_pod_exec,
        pod[1],
        pod[0],
        command=command,
        stdin=True,
        stdout=True,
        stderr=True,
        _preload_content=False,
    )
    running.write_stdin("word\n")
    running.run_forever(timeout=20)
    assert running.read_stdout() == "got word\n"
    assert running.read_stderr() == "error\n"
    assert running.returncode == 5
    running.close()


def test_exec_delivers_a_long_output(core: Any, pod: tuple[str, str]) -> None:
    output = stream(
        core.connect_get_namespaced_pod_exec, pod[1], pod[0], command=["seq", "1", "200000"], stdout=True, stderr=True
    )
    assert output == "".join(f"{number}\n" for number in range(1, 200001))


@pytest.mark.own_cluster
async def test_port_forward_carries_bytes_both_ways(core: Any, pod: tuple[str, str]) -> None:
    content = secrets.token_bytes(1 << 16)
    received = bytearray()

    def talk(port: int) -> None:
        forward = portforward(core.connect_get_namespaced_pod_portforward, pod[1], pod[0], ports=str(port))
        connection = forward.socket(port)
        connection.setblocking(True)
        connection.settimeout(20)
        connection.sendall(content)
        while len(received) < 1 << 16:
            received.extend(connection.recv(1 << 16))
        connection.close()

    async def echo(incoming: trio.SocketStream) -> None:
        async with incoming:
            async for data in incoming:
                await incoming.send_all(data)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, echo, listeners)
        await trio.to_thread.run_sync(talk, listeners[0].socket.getsockname()[1])
        nursery.cancel_scope.cancel()
    assert bytes(received) == content


def test_logs_are_read_and_followed(core: Any, bed: Bed, namespace: str) -> None:
    bed.run_pod(namespace, "counter", ["sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.3; done; sleep 1"])
    followed = Watch().stream(core.read_namespaced_pod_log, "counter", namespace)
    assert list(followed) == ["1", "2", "3"]
    assert core.read_namespaced_pod_log("counter", namespace, tail_lines=1) == "3\n"
