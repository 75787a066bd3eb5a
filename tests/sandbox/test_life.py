"""What happens by itself: pods, rollouts, restarts, endpoints, garbage; and streams to pods."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from support.sandbox import Caller, sandbox_caller

from sandbox.kinds import PODS
from sandbox.spdy import DICTIONARY
from sandbox.tables import pod_status

DEMO = "/api/v1/namespaces/demo"
APPS = "/apis/apps/v1/namespaces/demo"
MERGE = {"Content_Type": "application/merge-patch+json"}


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    async with sandbox_caller() as found:
        yield found


def is_done(deployment: Any) -> bool:
    status, wanted = deployment.get("status", {}), deployment["spec"]["replicas"]
    is_seen = status.get("observedGeneration") == deployment["metadata"]["generation"]
    counts = [status.get(f"{name}", 0) for name in ("replicas", "updatedReplicas", "availableReplicas")]
    return is_seen and counts == [wanted] * 3


async def pods_of(caller: Caller, app: str) -> list[Any]:
    found = await caller.get(f"{DEMO}/pods?labelSelector=app%3D{app}")
    return [pod for pod in found["items"] if "deletionTimestamp" not in pod["metadata"]]


async def run_pod(caller: Caller, name: str, *, policy: str = "Never", image: str = "i:1", **container: Any) -> None:
    spec = {"restartPolicy": policy, "containers": [{"name": "c", "image": image, **container}]}
    answer = await caller.ask("POST", f"{DEMO}/pods", {"metadata": {"name": name}, "spec": spec})
    assert answer.status == 201, answer.body


async def test_pods_start_step_by_step(autojump_clock: object, caller: Caller) -> None:
    watch = await caller.watch(f"{DEMO}/pods?watch=1&fieldSelector=metadata.name%3Dp")
    await run_pod(caller, "p")
    words: list[str] = []
    while not words or words[-1] != "Running":
        event = await watch.event()
        word = pod_status(event["object"])
        if not words or words[-1] != word:
            words.append(word)
    assert words == ["Pending", "ContainerCreating", "Running"]
    pod = event["object"]
    assert pod["spec"]["nodeName"].startswith("sandbox-")
    assert pod["status"]["podIP"].startswith("10.244.")
    events = await caller.get(f"{DEMO}/events?fieldSelector=involvedObject.name%3Dp")
    assert {item["reason"] for item in events["items"]} >= {"Scheduled", "Pulling", "Pulled"}


async def test_a_deployment_brings_up_its_pods_and_the_endpoints_follow(autojump_clock: object, caller: Caller) -> None:
    deployment = await caller.until(f"{APPS}/deployments/web", is_done)
    assert {item["type"]: item["status"] for item in deployment["status"]["conditions"]} == {
        "Available": "True",
        "Progressing": "True",
    }
    pods = await pods_of(caller, "web")
    endpoints = await caller.until(f"{DEMO}/endpoints/web", lambda found: len(found["subsets"][0]["addresses"]) == 3)
    assert {item["ip"] for item in endpoints["subsets"][0]["addresses"]} == {pod["status"]["podIP"] for pod in pods}
    assert endpoints["subsets"][0]["ports"][0]["port"] == 8080
    slices = await caller.get("/apis/discovery.k8s.io/v1/namespaces/demo/endpointslices")
    assert len(slices["items"][0]["endpoints"]) == 3


async def test_a_deployment_is_scaled_both_ways(autojump_clock: object, caller: Caller) -> None:
    for replicas in (5, 1, 0, 2):
        patch = {"spec": {"replicas": replicas}}
        await caller.ask("PATCH", f"{APPS}/deployments/web/scale", patch, **MERGE)
        await caller.until(f"{APPS}/deployments/web", is_done)
        assert len(await pods_of(caller, "web")) == replicas


async def test_a_rollout_replaces_pods_within_its_limits_and_can_be_undone(
    autojump_clock: object, caller: Caller
) -> None:
    before = await caller.until(f"{APPS}/deployments/web", is_done)
    watch = await caller.watch(f"{APPS}/deployments?watch=1&fieldSelector=metadata.name%3Dweb")
    patch = {"spec": {"template": {"spec": {"containers": [{"name": "web", "image": "sandbox/web:2.0"}]}}}}
    answer = await caller.ask(
        "PATCH", f"{APPS}/deployments/web", patch, Content_Type="application/strategic-merge-patch+json"
    )
    assert answer.document["metadata"]["generation"] == before["metadata"]["generation"] + 1
    while not is_done(seen := (await watch.event())["object"]) or seen["metadata"]["generation"] == 1:
        assert seen["status"].get("availableReplicas", 0) >= 3
        assert seen["status"].get("replicas", 0) <= 4
    assert {pod["spec"]["containers"][0]["image"] for pod in await pods_of(caller, "web")} == {"sandbox/web:2.0"}
    assert seen["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "2"
    sets = await caller.get(f"{APPS}/replicasets?labelSelector=app%3Dweb")
    assert sorted(item["spec"]["replicas"] for item in sets["items"]) == [0, 3]
    undo = [{"op": "replace", "path": "/spec/template", "value": before["spec"]["template"]}]
    await caller.ask("PATCH", f"{APPS}/deployments/web", undo, Content_Type="application/json-patch+json")
    after = await caller.until(f"{APPS}/deployments/web", is_done)
    assert after["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "3"
    sets = await caller.get(f"{APPS}/replicasets?labelSelector=app%3Dweb")
    assert len(sets["items"]) == 2


async def test_a_paused_deployment_waits(autojump_clock: object, caller: Caller) -> None:
    await caller.until(f"{APPS}/deployments/web", is_done)
    patch = {"spec": {"paused": True, "template": {"metadata": {"annotations": {"new": "1"}}}}}
    await caller.ask("PATCH", f"{APPS}/deployments/web", patch, **MERGE)
    await trio.sleep(10)
    assert len((await caller.get(f"{APPS}/replicasets?labelSelector=app%3Dweb"))["items"]) == 1
    await caller.ask("PATCH", f"{APPS}/deployments/web", {"spec": {"paused": False}}, **MERGE)
    await caller.until(f"{APPS}/deployments/web", is_done)
    assert len((await caller.get(f"{APPS}/replicasets?labelSelector=app%3Dweb"))["items"]) == 2


async def test_a_deleted_deployment_takes_everything_with_it(autojump_clock: object, caller: Caller) -> None:
    await caller.until(f"{APPS}/deployments/web", is_done)
    await caller.ask("DELETE", f"{APPS}/deployments/web")
    await caller.until(f"{DEMO}/pods?labelSelector=app%3Dweb", lambda found: not found["items"])
    assert (await caller.get(f"{APPS}/replicasets?labelSelector=app%3Dweb"))["items"] == []


async def test_no_orphans_are_left(autojump_clock: object, caller: Caller) -> None:
    answer = await caller.ask("DELETE", f"{APPS}/deployments/web", {"propagationPolicy": "Orphan"})
    assert (answer.status, "leaves no orphans" in answer.document["message"]) == (400, True)
    await caller.get(f"{APPS}/deployments/web")


async def test_a_namespace_goes_with_what_is_in_it(autojump_clock: object, caller: Caller) -> None:
    await caller.until(f"{APPS}/deployments/web", is_done)
    answer = await caller.ask("DELETE", "/api/v1/namespaces/demo")
    assert answer.document["status"]["phase"] == "Terminating"
    refused = await caller.ask("POST", f"{DEMO}/configmaps", {"metadata": {"name": "late"}})
    assert (refused.status, "being terminated" in refused.document["message"]) == (403, True)
    await caller.until("/api/v1/namespaces", lambda found: len(found["items"]) == 2)
    assert (await caller.get("/api/v1/pods"))["items"] == []
    assert caller.sandbox._kubelet._lives == {}


async def test_a_pod_ends_in_grace_or_at_once(autojump_clock: object, caller: Caller) -> None:
    await run_pod(caller, "p")
    await caller.until(f"{DEMO}/pods/p", lambda pod: pod_status(pod) == "Running")
    going = await caller.ask("DELETE", f"{DEMO}/pods/p")
    assert pod_status(going.document) == "Terminating"
    await trio.sleep(5)
    assert (await caller.ask("GET", f"{DEMO}/pods/p")).status == 404
    await run_pod(caller, "p")
    await caller.until(f"{DEMO}/pods/p", lambda pod: pod_status(pod) == "Running")
    await caller.ask("DELETE", f"{DEMO}/pods/p?gracePeriodSeconds=0")
    assert (await caller.ask("GET", f"{DEMO}/pods/p")).status == 404
    await run_pod(caller, "p")
    await caller.until(f"{DEMO}/pods/p", lambda pod: pod_status(pod) == "Running")


async def test_a_pod_that_goes_before_its_node_has_looked_at_it_ends_as_well(
    autojump_clock: object, caller: Caller
) -> None:
    spec = {"nodeName": "sandbox-worker", "containers": [], "terminationGracePeriodSeconds": 30}
    pod = PODS.of({"metadata": {"name": "p", "namespace": "demo"}, "spec": spec, "status": {"phase": "Pending"}})
    caller.sandbox.store.delete(PODS, caller.sandbox.store.create(PODS, pod), grace_seconds=30)
    await caller.until(f"{DEMO}/pods", lambda found: all(item["metadata"]["name"] != "p" for item in found["items"]))


@pytest.mark.parametrize("seconds", [-1, "long", 1.5])
async def test_a_pod_ends_in_no_such_time(autojump_clock: object, caller: Caller, seconds: object) -> None:
    await run_pod(caller, "p")
    await caller.until(f"{DEMO}/pods/p", lambda pod: pod_status(pod) == "Running")
    answer = await caller.ask("DELETE", f"{DEMO}/pods/p", {"gracePeriodSeconds": seconds})
    assert (answer.status, "not a number of seconds" in answer.document["message"]) == (400, True)


async def test_a_pod_that_asks_for_less_than_no_time_ends_at_once(autojump_clock: object, caller: Caller) -> None:
    spec = {"containers": [{"name": "c", "image": "i"}], "terminationGracePeriodSeconds": -5}
    await caller.ask("POST", f"{DEMO}/pods", {"metadata": {"name": "p"}, "spec": spec})
    await caller.until(f"{DEMO}/pods/p", lambda pod: pod_status(pod) == "Running")
    await caller.ask("DELETE", f"{DEMO}/pods/p")
    assert (await caller.ask("GET", f"{DEMO}/pods/p")).status == 404


async def test_a_pod_on_no_node_ends_at_once(autojump_clock: object, caller: Caller) -> None:
    for node in ("sandbox-worker", "sandbox-control-plane"):
        await caller.ask("PATCH", f"/api/v1/nodes/{node}", {"spec": {"unschedulable": True}}, **MERGE)
    await run_pod(caller, "p")
    await caller.ask("DELETE", f"{DEMO}/pods/p")
    assert (await caller.ask("GET", f"{DEMO}/pods/p")).status == 404


async def test_no_pods_on_a_node_that_takes_none(autojump_clock: object, caller: Caller) -> None:
    for node in ("sandbox-worker", "sandbox-control-plane"):
        await caller.ask("PATCH", f"/api/v1/nodes/{node}", {"spec": {"unschedulable": True}}, **MERGE)
    await run_pod(caller, "p")
    pod = await caller.until(f"{DEMO}/pods/p", lambda pod: pod.get("status", {}).get("conditions"))
    assert (pod_status(pod), pod["status"]["conditions"][0]["reason"]) == ("Pending", "Unschedulable")
    await caller.ask("PATCH", "/api/v1/nodes/sandbox-worker", {"spec": {"unschedulable": False}}, **MERGE)
    pod = await caller.until(f"{DEMO}/pods/p", lambda pod: pod_status(pod) == "Running")
    assert pod["spec"]["nodeName"] == "sandbox-worker"


@pytest.mark.parametrize(
    ("command", "word"), [(["echo", "done"], "Completed"), (["sh", "-c", "echo bad; exit 3"], "Error")]
)
async def test_a_command_runs_once_and_leaves_its_log(
    autojump_clock: object, caller: Caller, command: list[str], word: str
) -> None:
    await run_pod(caller, "p", command=command)
    pod = await caller.until(f"{DEMO}/pods/p", lambda pod: pod_status(pod) == word)
    assert pod["status"]["phase"] == {"Completed": "Succeeded", "Error": "Failed"}[word]
    assert (await caller.ask("GET", f"{DEMO}/pods/p/log")).body in (b"done\n", b"bad\n")


async def test_what_fails_is_started_again_later_and_later(autojump_clock: object, caller: Caller) -> None:
    await run_pod(caller, "p", policy="Always", command=["sh", "-c", "echo oops; exit 1"])
    pod = await caller.until(
        f"{DEMO}/pods/p", lambda pod: pod_status(pod) == "CrashLoopBackOff" and _restarts(pod) == 2
    )
    assert pod["status"]["phase"] == "Running"
    assert pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 1
    assert (await caller.ask("GET", f"{DEMO}/pods/p/log?previous=true")).body == b"oops\n"


async def test_a_moody_pod_restarts_now_and_then(autojump_clock: object, caller: Caller) -> None:
    (pod,) = (
        await caller.until(
            f"{DEMO}/pods?labelSelector=app%3Dmoody", lambda found: found["items"] and _restarts(found["items"][0])
        )
    )["items"]
    log = await caller.ask("GET", f"{DEMO}/pods/{pod['metadata']['name']}/log?previous=true&tailLines=1")
    assert log.body == b"panic: pretending to fail, as the annotation asks\n"


def _restarts(pod: Any) -> int:
    statuses = pod.get("status", {}).get("containerStatuses") or [{}]
    return int(statuses[0].get("restartCount", 0))


async def web_pod(caller: Caller) -> str:
    await caller.until(f"{APPS}/deployments/web", is_done)
    name: str = (await pods_of(caller, "web"))[0]["metadata"]["name"]
    return f"{DEMO}/pods/{name}"


async def test_logs_are_followed(autojump_clock: object, caller: Caller) -> None:
    pod = await web_pod(caller)
    _, transport, response = await caller._begin("GET", f"{pod}/log?follow=true", None, {})
    assert response.status_code == 200
    seen, began = b"", trio.current_time()
    while seen.count(b"GET ") < 10:
        seen += await transport.receive_some()
    assert trio.current_time() - began > 3
    assert seen.find(b"make-believe server") >= 0


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("log?container=nothing", "container nothing is not valid for pod"),
        ("log?previous=true", "previous terminated container"),
        ("exec", "at least one command"),
        ("exec?command=ls", "wants a WebSocket"),
        ("portforward", "SPDY/3.1+portforward.k8s.io"),
    ],
)
async def test_what_a_pod_cannot_do_is_said(autojump_clock: object, caller: Caller, query: str, message: str) -> None:
    answer = await caller.ask("GET", f"{await web_pod(caller)}/{query}")
    assert answer.status == 400
    assert message in answer.document["message"]


async def test_a_container_that_is_not_there_yet_is_waited_for_by_the_caller(
    autojump_clock: object, caller: Caller
) -> None:
    await run_pod(caller, "p")
    answer = await caller.ask("GET", f"{DEMO}/pods/p/log")
    assert "is waiting to start: ContainerCreating" in answer.document["message"]


@pytest.mark.parametrize("protocol", ["v5.channel.k8s.io", "v4.channel.k8s.io"])
async def test_exec_gives_output_errors_and_the_exit_code(
    autojump_clock: object, caller: Caller, protocol: str
) -> None:
    pod = await web_pod(caller)
    target = f"{pod}/exec?command=sh&command=-c&command=echo%20out;nothing;exit%207&stdout=1&stderr=1"
    channels = await (await caller.socket(target, protocol)).by_channel()
    assert channels[1] == b"out\n"
    assert channels[2].startswith(b"sh: nothing: not found")
    status = json.loads(channels[3])
    assert (status["status"], status["reason"]) == ("Failure", "NonZeroExitCode")
    assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "7"}]


async def test_exec_reads_its_input_up_to_the_close_signal(autojump_clock: object, caller: Caller) -> None:
    socket = await caller.socket(f"{await web_pod(caller)}/exec?command=cat&stdin=1&stdout=1")
    await socket.send(b"\0hello ")
    await socket.send(b"\0you\n")
    await socket.send(b"\xff\0")
    channels = await socket.by_channel()
    assert (channels[1], json.loads(channels[3])["status"]) == (b"hello you\n", "Success")


async def test_exec_with_a_terminal(autojump_clock: object, caller: Caller) -> None:
    socket = await caller.socket(f"{await web_pod(caller)}/exec?command=sh&stdin=1&stdout=1&tty=1")
    await socket.wait_for(b"sandbox:/# ")
    await socket.send(b'\4{"Width":100,"Height":30}')
    await socket.send(b"\0whoam\x7fmi\r")
    await socket.wait_for(b"\r\nroot\r\nsandbox:/# ")
    await socket.send(b"\0sleep 100\r")
    await socket.send(b"\0\x03")
    await socket.wait_for(b"^C\r\nsandbox:/# ")
    await socket.send(b"\0exit 2\r")
    assert json.loads((await socket.by_channel())[3])["details"]["causes"][0]["message"] == "2"


async def test_a_command_that_there_is_not_ends_with_127(autojump_clock: object, caller: Caller) -> None:
    channels = await (await caller.socket(f"{await web_pod(caller)}/exec?command=rm&command=-rf")).by_channel()
    assert b"not found" in channels[2]
    assert json.loads(channels[3])["details"]["causes"][0]["message"] == "127"


async def test_a_caller_who_leaves_takes_the_command_along(autojump_clock: object, caller: Caller) -> None:
    socket = await caller.socket(f"{await web_pod(caller)}/exec?command=sleep&command=1000")
    await trio.testing.wait_all_tasks_blocked()
    before = trio.lowlevel.current_statistics().tasks_living
    socket.transport.abort()
    await trio.testing.wait_all_tasks_blocked()
    assert trio.lowlevel.current_statistics().tasks_living < before


async def test_attach_follows_the_output_of_a_server(autojump_clock: object, caller: Caller) -> None:
    socket = await caller.socket(f"{await web_pod(caller)}/attach?stdout=1")
    assert (await socket.wait_for(b"GET ")).endswith(b"ms\n")


async def test_attach_to_a_shell_is_a_shell_and_its_end_ends_the_container(
    autojump_clock: object, caller: Caller
) -> None:
    await run_pod(caller, "p", stdin=True, command=["sh"])
    await caller.until(f"{DEMO}/pods/p", lambda pod: pod_status(pod) == "Running")
    socket = await caller.socket(f"{DEMO}/pods/p/attach?stdin=1&stdout=1")
    await socket.send(b"\0echo here\nexit 5\n")
    assert (await socket.by_channel())[1] == b"here\n"
    pod = await caller.until(f"{DEMO}/pods/p", lambda pod: pod_status(pod) == "Error")
    assert pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 5


class Forward:
    """Enough of kubectl's end of port-forwarding."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(zdict=DICTIONARY)

    def opened(self, stream_id: int, kind: str, port: int) -> bytes:
        headers = {"streamtype": kind, "port": str(port), "requestid": "0"}
        plain = struct.pack("!I", 3)
        for text in (text for pair in headers.items() for text in pair):
            plain += struct.pack("!I", len(text)) + text.encode()
        block = self._deflate.compress(plain) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        payload = struct.pack("!IIH", stream_id, 0, 0) + block
        return struct.pack("!HHI", 0x8003, 1, len(payload)) + payload

    @staticmethod
    def data_of(wire: bytes) -> dict[int, bytes]:
        result: dict[int, bytes] = {}
        while wire:
            first, second = struct.unpack_from("!II", wire)
            length = second & 0xFFFFFF
            if not first >> 31:
                mark = b"<end>" if second >> 24 else b""
                result[first] = result.get(first, b"") + wire[8 : 8 + length] + mark
            wire = wire[8 + length :]
        return result


@pytest.mark.parametrize("port", [8080, 81])
async def test_port_forward_shows_the_page_of_a_port_that_is_there(
    autojump_clock: object, caller: Caller, port: int
) -> None:
    pod = await web_pod(caller)
    socket = await caller.socket(f"{pod}/portforward", "SPDY/3.1+portforward.k8s.io")
    forward = Forward()
    await socket.send(forward.opened(1, "error", port))
    request = b"GET /here HTTP/1.1\r\nHost: a\r\n\r\n"
    frame = struct.pack("!II", 3, len(request)) + request
    await socket.send(forward.opened(3, "data", port) + frame[:20])
    await socket.send(frame[20:])
    wire = b""
    while Forward.data_of(wire).get(3, b"")[-5:] != b"<end>" or Forward.data_of(wire).get(1, b"")[-5:] != b"<end>":
        wire += await socket.receive() or pytest.fail("the socket ended")
    streams = Forward.data_of(wire)
    if port == 8080:
        assert streams[3].startswith(b"HTTP/1.1 200 OK")
        assert pod.rpartition("/")[2].encode() in streams[3]
        assert streams[1] == b"<end>"
        assert b"GET /here 200 (from outside)" in (await caller.ask("GET", f"{pod}/log")).body
    else:
        assert b"nothing listens there in the sandbox" in streams[1]
        assert streams[3] == b"<end>"


async def test_events_do_not_pile_up(autojump_clock: object, caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    from sandbox import recorder

    monkeypatch.setattr(recorder, "EVENTS_KEPT", 10)
    await caller.until(f"{APPS}/deployments/web", is_done)
    await caller.ask("PATCH", f"{APPS}/deployments/web/scale", {"spec": {"replicas": 9}}, **MERGE)
    await caller.until(f"{APPS}/deployments/web", is_done)
    assert len((await caller.get("/api/v1/events"))["items"]) <= 11


@pytest.mark.slow
async def test_there_are_not_more_pods_than_the_sandbox_can_bear(autojump_clock: object, caller: Caller) -> None:
    await caller.ask("PATCH", f"{APPS}/deployments/web/scale", {"spec": {"replicas": 100_000}}, **MERGE)
    events = (await caller.until(f"{DEMO}/events?fieldSelector=reason%3DFailedCreate", lambda found: found["items"]))[
        "items"
    ]
    assert [event["message"] for event in events] == ["the sandbox holds 300 pods and takes no more"]
    await trio.sleep(20)
    pods = (await caller.get("/api/v1/pods"))["items"]
    assert len(pods) == 300
    assert sum(pod_status(pod) == "Running" for pod in pods) == 220
    await caller.ask("PATCH", f"{APPS}/deployments/web/scale", {"spec": {"replicas": 1}}, **MERGE)
    await caller.until(f"{APPS}/deployments/web", is_done)


async def test_a_pod_that_makes_no_sense_harms_no_other(autojump_clock: object, caller: Caller) -> None:
    odd = {"metadata": {"name": "odd", "namespace": "demo"}, "spec": {"containers": 5}}
    caller.sandbox.store.create(PODS, PODS.of(odd))
    await caller.until(f"{APPS}/deployments/web", is_done)


async def test_it_listens_on_loopback() -> None:
    from sandbox.cluster import Sandbox

    async with trio.open_nursery() as nursery:
        address = await nursery.start(Sandbox(token="t").run)
        stream = await trio.open_tcp_stream(address.host, address.port)
        async with stream:
            await stream.send_all(
                b"GET /livez HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer t\r\nConnection: close\r\n\r\n"
            )
            received = b"".join([piece async for piece in stream])
        assert (address.url, received[-2:]) == (f"http://127.0.0.1:{address.port}", b"ok")
        nursery.cancel_scope.cancel()
