"""kubectl's commands say the same through the tunnel as directly."""

from __future__ import annotations

import json
import re
import shlex
import time

import pytest
import yaml
from e2e.testbed.bed import Bed, Route
from e2e.testbed.kubectl import Kubectl, assert_same
from e2e.testbed.names import ADMIN

KLOG = (r"^[EWIF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ ", "KLOG ")
SERVER = (r"https://[^\s\"'/?]+(/k8s-proxy|/agents/[a-z0-9-]+/k8s)?(?=[\s/?\"',]|$)", "SERVER")

READS = [
    "version",
    "version -o json",
    "cluster-info",
    "api-resources",
    "api-resources -o wide --sort-by=name",
    "api-versions",
    "explain pods.spec.containers",
    "explain deployments --recursive",
    "explain nosuchthing",
    "get namespaces -l kubernetes.io/metadata.name=default -o yaml",
    "get nodes -o wide",
    "get nodes -o json",
    "get clusterroles",
    "get clusterroles -o json",
    "get clusterroles --chunk-size=7 -o name",
    "get clusterroles --server-print=false",
    "get clusterrole cluster-admin edit view -o yaml",
    "get all -A -l nothing=has-this-label",
    "get services,endpointslices -n default",
    "get --raw /version",
    "get --raw /api/v1/namespaces/default?pretty=true",
    "get --raw /apis",
    "get --raw /openapi/v3",
    "get --raw /openapi/v2",
    "get --raw /readyz?verbose",
    "get --raw /no/such/path",
    "get --raw /api/v1/namespaces?limit=1;foo=2",
    "describe node",
    "describe clusterrole cluster-admin",
    "get pod nosuch",
    "get nosuchresource",
    "get pods --field-selector=nonsense=1",
    "logs nosuch",
    "exec nosuch -- true",
    "delete pod nosuch",
    "top nodes",
    "top pods -A",
    "auth can-i --list --as=nobody",
    "auth can-i create pods",
    "auth can-i create pods --as=nobody",
    "auth can-i delete nodes --as=nobody --as-group=e2e:agents",
    "auth whoami --as=jane --as-group=devs --as-group=ops --as-uid=42",
    "get secrets --as=nobody",
    "get pods --request-timeout=5s",
    "events -A --types=Warning",
]


@pytest.mark.parametrize("line", READS)
def test_a_reading_command_says_the_same(direct: Kubectl, through: Kubectl, line: str) -> None:
    arguments = shlex.split(line)
    assert_same(direct.attempt(*arguments), through.attempt(*arguments), SERVER, KLOG)


def test_all_addresses_and_transports_lead_to_the_same_cluster(direct: Kubectl, route: Route) -> None:
    for line in ("get nodes -o json", "explain pods.spec", "api-resources", "get --raw /version"):
        arguments = shlex.split(line)
        assert_same(direct.attempt(*arguments), route.kubectl.attempt(*arguments), SERVER)


def test_http1_serves_kubectl_as_well_as_http2(direct: Kubectl, through: Kubectl) -> None:
    plain = through.with_environ(DISABLE_HTTP2="true")
    for line in ("get nodes -o json", "explain pods.spec", "api-resources", "get clusterroles --chunk-size=7 -o name"):
        arguments = shlex.split(line)
        expected = direct.with_environ(DISABLE_HTTP2="true").attempt(*arguments)
        assert_same(expected, plain.attempt(*arguments), SERVER, KLOG)


DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web", "labels": {"app": "web"}, "annotations": {"note": "ünïcödé ☂"}},
    "spec": {
        "replicas": 0,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "main", "image": "one", "ports": [{"containerPort": 80}]}]},
        },
    },
}
CONFIG = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"a": "1", "b": "2"}}
MANIFEST = yaml.safe_dump_all([DEPLOYMENT, CONFIG])

CHANGES = [
    ("apply -f -", MANIFEST),
    ("apply -f -", MANIFEST.replace("image: one", "image: two")),
    ("diff -f -", MANIFEST.replace("image: one", "image: three")),
    ("apply --server-side -f -", MANIFEST),
    ("apply --server-side --force-conflicts -f -", MANIFEST),
    ("apply --server-side --field-manager=other -f -", MANIFEST.replace("a: '1'", "a: '3'")),
    ("apply --server-side --field-manager=other --force-conflicts -f -", MANIFEST.replace("a: '1'", "a: '3'")),
    ("apply --server-side --dry-run=server -f -", MANIFEST.replace("a: '1'", "a: '4'")),
    ("patch deployment web --type=json -p [{\"op\":\"replace\",\"path\":\"/spec/paused\",\"value\":true}]", None),
    ("patch deployment web --type=json -p [{\"op\":\"test\",\"path\":\"/spec/paused\",\"value\":1}]", None),
    ("patch deployment web --type=merge -p {\"metadata\":{\"labels\":{\"tier\":\"front\"}}}", None),
    (
        "patch deployment web --type=strategic -p "
        '{\\"spec\\":{\\"template\\":{\\"spec\\":{\\"containers\\":[{\\"name\\":\\"main\\",\\"image\\":\\"four\\"}]}}}}',
        None,
    ),
    ("patch deployment web --subresource=scale --type=merge -p {\\\"spec\\\":{\\\"replicas\\\":0}}", None),
    ("set image deployment/web main=five", None),
    ("scale deployment web --replicas=0", None),
    ("annotate deployment web when=now", None),
    ("label deployment web app=other", None),
    ("label deployment web app=other --overwrite", None),
    ("replace -f -", yaml.safe_dump(CONFIG | {"data": {"c": "3"}})),
    ("create -f -", yaml.safe_dump(CONFIG)),
    ("create -f -", yaml.safe_dump(CONFIG | {"metadata": {"name": "Bad_Name"}})),
    ("create -f -", yaml.safe_dump(CONFIG | {"data": {"n": 5}})),
    ("create quota small --hard=pods=2,services=1", None),
    ("create secret generic creds --from-literal=password=x", None),
    ("create job once --image=one --dry-run=server -o yaml", None),
    ("rollout restart deployment web", None),
    ("rollout history deployment web", None),
    ("rollout resume deployment web", None),
    ("get deployments,configmaps,secrets,quota -o name", None),
    ("delete configmap settings", None),
    ("delete configmap settings", None),
    ("delete deployment web --cascade=foreground", None),
    ("get deployments", None),
]


def _object(kubectl: Kubectl, namespace: str) -> list[object]:
    """What exists in the namespace, without what differs from one creation to the next."""
    listed = kubectl("get", "deployments,configmaps,secrets,quota", "-n", namespace, "-o", "json").text
    varying = r'"(uid|resourceVersion|creationTimestamp|time|lastTransitionTime|lastUpdateTime|kubectl.kubernetes.io/[a-zA-Z]*|selfLink)": "(\\.|[^"\\])*"'
    items: list[object] = json.loads(re.sub(varying, r'"\1": ""', listed).replace(namespace, "NAMESPACE"))["items"]
    return [item for item in items if "kube-root-ca.crt" not in str(item)]


@pytest.mark.timeout(240)
def test_commands_that_change_do_the_same(direct: Kubectl, through: Kubectl, twins: tuple[str, str]) -> None:
    masks = [(name, "NAMESPACE") for name in twins] + [
        (r'(uid|resourceVersion|creationTimestamp|controller-uid): .*', r"\1"),
        (r"/tmp/\S+", "FILE"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ \+\d+", "TIME"),
        (r"\+\+\+ .*|--- .*", "DIFF"),
        KLOG,
    ]
    for line, manifest in CHANGES:
        stdin = None if manifest is None else manifest.encode()
        arguments = shlex.split(line)
        results = [
            kubectl.attempt(*arguments, "-n", namespace, stdin=stdin)
            for kubectl, namespace in zip((direct, through), twins, strict=True)
        ]
        assert_same(*results, *masks)
    assert _object(direct, twins[0]) == _object(through, twins[1])


def test_a_running_watch_shows_each_change_at_once(direct: Kubectl, through: Kubectl, namespace: str) -> None:
    command = ("get", "configmaps", "-n", namespace, "-w", "-o", "jsonpath={.metadata.name}={.data.n}{'\\n'}")
    with through.running(*command) as watch:
        watch.wait_for("kube-root-ca.crt=$", seconds=20)
        direct("create", "configmap", "counter", "-n", namespace, "--from-literal=n=0")
        watch.wait_for("^counter=0$", seconds=5)
        for number in range(1, 6):
            patch = json.dumps({"data": {"n": str(number)}})
            direct("patch", "configmap", "counter", "-n", namespace, "--type=merge", "-p", patch)
            changed = time.monotonic()
            watch.wait_for(f"^counter={number}$", seconds=5)
            assert time.monotonic() - changed < 1
        lines = [line for line in watch.stdout.splitlines() if line.startswith("counter")]
        assert lines == [f"counter={number}" for number in range(6)]


def test_a_quiet_watch_has_its_head_at_once(through: Kubectl, namespace: str, bed: Bed) -> None:
    with through.running("get", "pods", "-n", namespace, "-w", "-v=8") as watch:
        watch.wait_for(r"watch=true[\s\S]*(Response Status|\"Response\").*200", seconds=10, stream="stderr")


def test_a_watch_ends_when_its_time_is_over(through: Kubectl, namespace: str) -> None:
    began = time.monotonic()
    path = f"/api/v1/namespaces/{namespace}/pods?watch=true&timeoutSeconds=2"
    assert through("get", "--raw", path).stdout == b""
    assert 1.5 < time.monotonic() - began < 6


def test_wait_returns_when_the_condition_comes_true(through: Kubectl, bed: Bed, namespace: str) -> None:
    signal = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "signal"}, "data": {"go": "no"}}
    with through.running("wait", "-n", namespace, "--for=create", "configmap/signal", "--timeout=30s") as waiting:
        bed.apply(signal, namespace=namespace)
        assert waiting.wait(seconds=10) == 0
    command = ("wait", "-n", namespace, "--for=jsonpath={.data.go}=yes", "configmap/signal", "--timeout=30s")
    with through.running(*command) as waiting:
        time.sleep(0.5)
        assert waiting.popen.poll() is None
        bed.direct("patch", "configmap", "signal", "-n", namespace, "-p", '{"data":{"go":"yes"}}')
        assert waiting.wait(seconds=5) == 0
        assert "condition met" in waiting.stdout


def test_wait_gives_up_at_its_own_deadline(direct: Kubectl, through: Kubectl) -> None:
    command = ("wait", "namespace/default", "--for=condition=Never", "--timeout=1s")
    assert_same(direct.attempt(*command), through.attempt(*command))


def test_request_timeout_ends_a_watch_the_same_way(direct: Kubectl, through: Kubectl, namespace: str) -> None:
    command = ("get", "pods", "-n", namespace, "-w", "--request-timeout=2s")
    results = []
    for kubectl in (direct, through):
        began = time.monotonic()
        results.append(kubectl.attempt(*command))
        assert time.monotonic() - began < 6
    assert_same(*results, SERVER, KLOG)


@pytest.mark.tunnel
def test_impersonation_is_what_the_cluster_sees(through: Kubectl) -> None:
    who = through("auth", "whoami", "-o", "json").json()["status"]["userInfo"]
    assert who["username"] == ADMIN


@pytest.mark.parametrize("kind", ["pods", "namespaces"])
def test_edit_changes_what_the_editor_wrote(through: Kubectl, direct: Kubectl, namespace: str, kind: str) -> None:
    if kind == "pods":
        direct("create", "configmap", "edited", "-n", namespace, "--from-literal=a=before")
        target = ("configmap/edited",)
    else:
        target = ("namespace", namespace)
        direct("annotate", "namespace", namespace, "a=before")
    editor = through.with_environ(KUBE_EDITOR="sed -i s/before/after/")
    result = editor("edit", *target, "-n", namespace)
    assert "edited" in result.text
    assert "after" in direct("get", *target, "-n", namespace, "-o", "yaml").text
