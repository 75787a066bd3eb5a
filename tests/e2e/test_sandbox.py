"""The sandbox with real clients: kubectl verb by verb, the Python client, and a client-go informer."""

from __future__ import annotations

import gc
import shutil
import time
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from e2e.controlplane.build import Assets
from e2e.testbed.informer import RESOURCES, Informer
from e2e.testbed.kubectl import Kubectl
from e2e.testbed.processes import until
from e2e.testbed.sandbox import Running, running_sandbox
from e2e.testbed.terminal import on_terminal
from kubernetes import client, config, watch
from kubernetes.client.rest import ApiException
from kubernetes.stream import stream

from sandbox import kinds


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_sandbox(tmp_path_factory.mktemp("sandbox")) as found:
        yield found


@pytest.fixture(scope="module", params=["built", "PATH"])
def kubectl(request: pytest.FixtureRequest, assets: Assets, sandbox: Running) -> Kubectl:
    """The kubectl of the bed, and the one of the machine where it has one: mostly older."""
    found = assets.kubectl if request.param == "built" else Path(shutil.which("kubectl") or assets.kubectl)
    home = sandbox.kubeconfig.parent / f"home-{request.param}"
    result = Kubectl(program=found, kubeconfig=sandbox.kubeconfig, home=home, environ={})
    result("rollout", "status", "deployment/web", "--timeout=30s")
    return result


@pytest.fixture
def namespace(kubectl: Kubectl, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace for this test alone, gone afterwards."""
    name = f"t-{time.monotonic_ns()}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--timeout=30s")


def _in(namespace: str) -> tuple[str, str]:
    return ("-n", namespace)


def test_it_says_that_it_is_a_sandbox(kubectl: Kubectl) -> None:
    assert "v1.36.0-sandbox" in kubectl("version").text
    nodes = kubectl("get", "nodes", "-o", "name").text.split()
    assert all("sandbox" in name for name in nodes)
    assert kubectl("auth", "can-i", "delete", "nodes").text == "yes\n"
    assert "sandbox-admin" in kubectl("auth", "whoami").text
    assert "ann" in kubectl("auth", "whoami", "--as=ann").text
    assert "Metrics API not available" in kubectl.attempt("top", "pods").errors


def test_everything_that_it_has_is_listed(kubectl: Kubectl) -> None:
    listed = {line.split()[0] for line in kubectl("api-resources", "--no-headers").text.splitlines()}
    assert listed == {kind.plural for kind in kinds.KINDS.values()}
    assert "pod/web-" in kubectl("get", "all").text
    errors = kubectl("get", "po,svc,deploy,rs,ep,cm,secret,events,no,ns").errors
    assert [line for line in errors.splitlines() if not line.startswith("Warning: v1 Endpoints is deprecated")] == []


@pytest.mark.parametrize("path", ["pod.spec.containers", "deployment.spec.strategy", "svc", "endpointslices.endpoints"])
def test_fields_are_explained(kubectl: Kubectl, path: str) -> None:
    assert "DESCRIPTION:" in kubectl("explain", path).text
    assert kubectl.attempt("explain", f"{path}.nothing").returncode == 1


MANIFEST = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: hello, labels: {app: hello}}
spec:
  replicas: 2
  selector: {matchLabels: {app: hello}}
  template:
    metadata: {labels: {app: hello}}
    spec:
      containers: [{name: hello, image: "hello:1", ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: hello}
spec: {selector: {app: hello}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: hello}
data: {a: "1"}
"""


@pytest.mark.parametrize("server_side", [(), ("--server-side",)])
def test_manifests_are_applied_changed_compared_and_deleted(
    kubectl: Kubectl, namespace: str, server_side: tuple[str, ...], tmp_path: Path
) -> None:
    place = (*_in(namespace), "-f", "-")
    first = kubectl("apply", *server_side, *place, stdin=MANIFEST.encode())
    assert first.text.count("serverside-applied" if server_side else "created") == 3
    assert ("one manager" in first.errors) is bool(server_side)
    kubectl("rollout", "status", "deployment/hello", *_in(namespace), "--timeout=30s")
    same = kubectl("apply", *server_side, *place, stdin=MANIFEST.encode())
    assert same.text.count("serverside-applied" if server_side else "unchanged") == 3
    changed = MANIFEST.replace("hello:1", "hello:2").replace('{a: "1"}', '{b: "1"}')
    difference = kubectl.attempt("diff", *server_side, *place, stdin=changed.encode())
    assert (difference.returncode, "hello:2" in difference.text) == (1, True)
    kubectl("apply", *server_side, *place, stdin=changed.encode())
    assert kubectl("get", "cm", "hello", *_in(namespace), "-o", "jsonpath={.data}").text == '{"b":"1"}'
    kubectl("rollout", "status", "deployment/hello", *_in(namespace), "--timeout=30s")

    def images() -> set[str]:
        shown = kubectl("get", "pods", *_in(namespace), "-o", "jsonpath={.items[*].spec.containers[*].image}").text
        return set(shown.split())

    until(lambda: images() == {"hello:2"}, seconds=20, what="the old pods are gone")
    kubectl("delete", *place, stdin=MANIFEST.encode())
    assert "No resources found" in kubectl("get", "deploy,svc,cm", *_in(namespace)).errors


def test_objects_are_made_by_kubectl_itself(kubectl: Kubectl, namespace: str) -> None:
    """These are sent as protobuf."""
    place = _in(namespace)
    kubectl("create", "configmap", "made", "--from-literal=a=ünïcödé", *place)
    assert kubectl("get", "cm", "made", *place, "-o", "jsonpath={.data.a}").text == "ünïcödé"
    kubectl("create", "secret", "generic", "made", "--from-literal=a=b", *place)
    assert kubectl("get", "secret", "made", *place, "-o", "jsonpath={.data.a}").text == "Yg=="
    kubectl("create", "serviceaccount", "made", *place)
    kubectl("create", "deployment", "made", "--image=x:1", "--port=8080", "--replicas=2", *place)
    kubectl("create", "service", "nodeport", "ported", "--tcp=80:8080", *place)
    kubectl("expose", "deployment", "made", "--port=80", "--target-port=8080", *place)
    kubectl("rollout", "status", "deployment/made", *place, "--timeout=30s")
    described = kubectl("describe", "service", "made", *place).text
    assert described.count(":8080") == 2, described


def test_objects_are_changed_in_every_way(kubectl: Kubectl, namespace: str) -> None:
    place = _in(namespace)
    kubectl("create", "configmap", "x", "--from-literal=a=1", *place)
    kubectl("label", "cm", "x", "l=1", *place)
    kubectl("annotate", "cm", "x", "n=1", *place)
    for kind, patch in {
        "json": '[{"op":"add","path":"/data/b","value":"2"}]',
        "merge": '{"data":{"c":"3"}}',
        "strategic": '{"data":{"a":null}}',
    }.items():
        kubectl("patch", "cm", "x", "--type", kind, "-p", patch, *place)
    document = kubectl("get", "cm", "x", *place, "-o", "json").json()
    assert (document["data"], document["metadata"]["labels"]) == ({"b": "2", "c": "3"}, {"l": "1"})
    kubectl("replace", "-f", "-", stdin=yaml.safe_dump({**document, "data": {"z": "1"}}).encode())
    assert kubectl("get", "cm", *place, "-l", "l=1", "-o", "jsonpath={.items[0].data}").text == '{"z":"1"}'
    stale = kubectl.attempt("replace", "-f", "-", stdin=yaml.safe_dump(document).encode())
    assert "Conflict" in stale.errors
    kubectl("delete", "cm", "-l", "l=1", *place)
    assert "NotFound" in kubectl.attempt("get", "cm", "x", *place).errors
    assert "dry run" in kubectl("create", "cm", "never", "--dry-run=server", *place).text
    assert "NotFound" in kubectl.attempt("get", "cm", "never", *place).errors


def test_a_deployment_is_scaled_rolled_out_and_back(kubectl: Kubectl, namespace: str) -> None:
    place = _in(namespace)

    def settled() -> None:
        kubectl("rollout", "status", "deployment/d", *place, "--timeout=40s")

    kubectl("create", "deployment", "d", "--image=x:1", *place)
    kubectl("scale", "deployment/d", "--replicas=3", *place)
    settled()
    kubectl("set", "image", "deployment/d", "x=x:2", *place)
    settled()
    assert len(kubectl("rollout", "history", "deployment/d", *place).text.strip().splitlines()) == 4
    kubectl("rollout", "undo", "deployment/d", *place)
    settled()
    assert kubectl("get", "deploy", "d", *place, "-o", "jsonpath={..image}").text == "x:1"
    kubectl("rollout", "restart", "deployment/d", *place)
    settled()
    kubectl("rollout", "pause", "deployment/d", *place)
    kubectl("rollout", "resume", "deployment/d", *place)
    kubectl("wait", "--for=condition=Available", "deployment/d", "--timeout=20s", *place)
    described = kubectl("describe", "deployment", "d", *place).text
    assert "ScalingReplicaSet" in described
    kubectl("delete", "deployment", "d", *place)


def test_pods_are_watched_as_they_come_and_go(kubectl: Kubectl, namespace: str) -> None:
    place = _in(namespace)
    with kubectl.running("get", "pods", "-w", *place) as seen:
        kubectl("run", "p", "--image=x:1", *place)
        seen.wait_for(r"p +0/1 +ContainerCreating")
        seen.wait_for(r"p +1/1 +Running")
        kubectl("delete", "pod", "p", *place)
        seen.wait_for(r"p +\d/1 +Terminating")
    kubectl("run", "once", "--image=x:1", "--restart=Never", *place, "--", "echo", "hi")
    kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/once", "--timeout=20s", *place)
    assert kubectl("logs", "once", *place).text == "hi\n"
    events = kubectl("events", *place).text
    assert "Pulled" in events
    assert "Scheduled" in kubectl("describe", "pod", "once", *place).text


def test_a_node_is_cordoned_and_drained(kubectl: Kubectl) -> None:
    kubectl("cordon", "sandbox-worker")
    try:
        assert "SchedulingDisabled" in kubectl("get", "node", "sandbox-worker").text
        kubectl("drain", "sandbox-worker", "--force", "--timeout=30s")
    finally:
        kubectl("uncordon", "sandbox-worker")
    kubectl("rollout", "status", "deployment/web", "--timeout=30s")


def test_lists_come_in_pages(kubectl: Kubectl) -> None:
    whole, paged = (kubectl("get", "pods", "-A", f"--chunk-size={size}", "-o", "name").text for size in (0, 1))
    assert whole == paged


def test_logs_are_followed(kubectl: Kubectl) -> None:
    assert len(kubectl("logs", "deployment/web", "--tail=1").text.splitlines()) == 1
    with kubectl.running("logs", "-f", "deployment/web", "--tail=0") as followed:
        followed.wait_for(r"^GET .*ms$")
    assert "previous terminated" in kubectl.attempt("logs", "--previous", "deployment/web").errors


def test_exec_runs_commands_with_input_and_exit_codes(kubectl: Kubectl) -> None:
    assert kubectl("exec", "deploy/web", "--", "echo", "hello").text == "hello\n"
    failed = kubectl.attempt("exec", "deploy/web", "--", "sh", "-c", "nothing; exit 7")
    assert (failed.returncode, "nothing: not found" in failed.errors) == (7, True)
    assert kubectl("exec", "-i", "deploy/web", "--", "cat", stdin=b"a\nb").text == "a\nb"
    much = "".join(f"{number:0500}\n" for number in range(2000))
    assert kubectl("exec", "-i", "deploy/web", "--", "cat", stdin=much.encode()).text == much


def test_exec_on_a_terminal(kubectl: Kubectl) -> None:
    command = [str(kubectl.program), "exec", "-it", "deploy/web", "--", "sh"]
    with on_terminal(command, kubectl.full_environ(), rows=33, columns=111) as terminal:
        terminal.wait_for(r"sandbox:/# ")
        terminal.type("whoamii\x7f\r")
        terminal.wait_for(r"\nroot\r\nsandbox:/# ")
        terminal.type("sleep 100\r")
        terminal.type("\x03")
        terminal.wait_for(r"\^C\r\nsandbox:/# ")
        terminal.type("exit 3\r")
        assert terminal.wait() == 3


def test_attach_to_a_shell(kubectl: Kubectl, namespace: str) -> None:
    arguments = ("run", "-i", "--rm", "--restart=Never", "sh", "--image=x:1", *_in(namespace), "--", "sh")
    result = kubectl(*arguments, stdin=b"echo from inside\nexit 0\n")
    assert "from inside" in result.text


def test_port_forward_shows_a_page(kubectl: Kubectl) -> None:
    with kubectl.running("port-forward", "svc/web", ":80") as forwarding:
        port = forwarding.wait_for(r"Forwarding from 127.0.0.1:(\d+)")[1]
        for _ in range(3):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as page:
                assert b"Hello from the sandbox" in page.read()
    with kubectl.running("port-forward", "deploy/web", ":81") as forwarding:
        port = forwarding.wait_for(r"Forwarding from 127.0.0.1:(\d+)")[1]
        with pytest.raises(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10).close()
        forwarding.wait_for("nothing listens there", stream="stderr")


@pytest.fixture
def core(sandbox: Running) -> Iterator[Any]:
    configuration = client.Configuration()
    config.load_kube_config(str(sandbox.kubeconfig), client_configuration=configuration)
    with client.ApiClient(configuration) as api:
        yield client.CoreV1Api(api)
    with warnings.catch_warnings():  # the package leaves sockets to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def test_the_python_client_lists_watches_writes_and_executes(core: Any) -> None:
    pods = until(
        lambda: [pod for pod in core.list_namespaced_pod("demo").items if pod.status.phase == "Running"],
        seconds=20,
        what="pods run",
    )
    web = next(pod.metadata.name for pod in pods if pod.metadata.name.startswith("web-"))
    core.create_namespaced_config_map(
        "demo", client.V1ConfigMap(metadata=client.V1ObjectMeta(name="py"), data={"a": "1"})
    )
    core.patch_namespaced_config_map("py", "demo", {"data": {"b": "2"}})
    assert core.read_namespaced_config_map("py", "demo").data == {"a": "1", "b": "2"}
    events = watch.Watch().stream(core.list_namespaced_config_map, "demo", timeout_seconds=3)
    names = set()
    for event in events:
        names.add((event["type"], event["object"].metadata.name))
        if event["object"].metadata.name == "py" and event["type"] == "ADDED":
            core.delete_namespaced_config_map("py", "demo")
    assert {("ADDED", "py"), ("DELETED", "py")} <= names
    with pytest.raises(ApiException, match="NotFound"):
        core.read_namespaced_config_map("py", "demo")
    command = ["sh", "-c", "echo out; exit 5"]
    running = stream(
        core.connect_get_namespaced_pod_exec,
        web,
        "demo",
        command=command,
        stdout=True,
        stderr=True,
        _preload_content=False,
    )
    running.run_forever(timeout=20)
    assert (running.read_stdout(), running.returncode) == ("out\n", 5)
    running.close()
    assert "make-believe server" in core.read_namespaced_pod_log(web, "demo")


def test_an_informer_syncs_by_watch_list_and_follows(assets: Assets, sandbox: Running, tmp_path: Path) -> None:
    direct = Kubectl(program=assets.kubectl, kubeconfig=sandbox.kubeconfig, home=tmp_path, environ={})
    informer = Informer(assets, sandbox.kubeconfig, log=tmp_path / "informer.log")
    try:
        informer.wait_synced(seconds=20)
        for replicas in (8, 2, 5):
            direct("scale", "deployment/web", f"--replicas={replicas}")
            direct("rollout", "status", "deployment/web", "--timeout=30s")
        report = informer.wait_equal(direct, seconds=15)
        for resource in RESOURCES:
            counts = report["counts"][resource]
            assert (counts["lists"], counts["watch_lists"]) == (0, 1), counts
        assert report["events"]["pods"]["deleted"] >= 6
    finally:
        informer.process.stop()
        direct("scale", "deployment/web", "--replicas=3")
