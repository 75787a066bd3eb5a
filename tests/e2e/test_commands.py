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

CHANGES: list[tuple[int, str, str | None]] = [
    (0, "apply -f -", MANIFEST),
    (0, "apply -f -", MANIFEST.replace("image: one", "image: two")),
    (1, "diff -f -", MANIFEST.replace("image: one", "image: three")),
    (0, "apply --server-side -f -", MANIFEST),
    (0, "apply --server-side --force-conflicts -f -", MANIFEST),
    (1, "apply --server-side --field-manager=other -f -", MANIFEST.replace("a: '1'", "a: '3'")),
    (0, "apply --server-side --field-manager=other --force-conflicts -f -", MANIFEST.replace("a: '1'", "a: '3'")),
    (1, "apply --server-side --dry-run=server -f -", MANIFEST.replace("a: '1'", "a: '4'")),
    (0, """patch deployment web --type=json -p '[{"op":"replace","path":"/spec/replicas","value":0}]'""", None),
    (1, """patch deployment web --type=json -p '[{"op":"test","path":"/spec/replicas","value":1}]'""", None),
    (0, """patch deployment web --type=merge -p '{"metadata":{"labels":{"tier":"front"}}}'""", None),
    (
        0,
        """patch deployment web --type=strategic
           -p '{"spec":{"template":{"spec":{"containers":[{"name":"main","image":"four"}]}}}}'""",
        None,
    ),
    (0, """patch deployment web --subresource=scale --type=merge -p '{"spec":{"replicas":0}}'""", None),
    (1, """patch configmap settings --type=merge -p '{"data":{"a":1}}'""", None),
    (0, "set image deployment/web main=five", None),
    (0, "scale deployment web --replicas=0", None),
    (0, "annotate deployment web when=now", None),
    (1, "label deployment web app=other", None),
    (0, "label deployment web app=other --overwrite", None),
    (0, "replace -f -", yaml.safe_dump(CONFIG | {"data": {"c": "3"}})),
    (1, "create -f -", yaml.safe_dump(CONFIG)),
    (1, "create -f -", yaml.safe_dump(CONFIG | {"metadata": {"name": "Bad_Name"}})),
    (1, "create -f -", yaml.safe_dump(CONFIG | {"data": {"n": 5}})),
    (0, "create quota small --hard=pods=2,services=1", None),
    (0, "create secret generic creds --from-literal=password=x", None),
    (0, "create job once --image=one --dry-run=server -o yaml", None),
    (0, "rollout restart deployment web", None),
    (0, "rollout pause deployment web", None),
    (0, "rollout resume deployment web", None),
    (0, "get deployments,configmaps,secrets,quota -o name", None),
    (0, "delete configmap settings", None),
    (1, "delete configmap settings", None),
    (0, "delete deployment web --wait=false", None),
]
"""The exit status, the command, and what it reads from its standard input."""


def _object(kubectl: Kubectl, namespace: str) -> list[object]:
    """What exists in the namespace, without what differs from one creation to the next."""
    listed = kubectl("get", "deployments,configmaps,secrets,quota", "-n", namespace, "-o", "json").text
    names = (
        "uid|resourceVersion|creationTimestamp|time|lastTransitionTime|lastUpdateTime|kubectl.kubernetes.io/[a-zA-Z]*"
    )
    varying = rf'"({names})": "(\\.|[^"\\])*"'
    items: list[object] = json.loads(re.sub(varying, r'"\1": ""', listed).replace(namespace, "NAMESPACE"))["items"]
    return [item for item in items if "kube-root-ca.crt" not in str(item)]


@pytest.mark.timeout(240)
def test_commands_that_change_do_the_same(direct: Kubectl, through: Kubectl, twins: tuple[str, str]) -> None:
    masks = [(name, "NAMESPACE") for name in twins] + [
        (r"(uid|resourceVersion|creationTimestamp|controller-uid): .*", r"\1"),
        (r'\\"(uid|resourceVersion|creationTimestamp|time)\\":\\"[^"]*\\"', r"\1"),
        (r"/tmp/\S+", "FILE"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ \+\d+", "TIME"),
        (r"\+\+\+ .*|--- .*", "DIFF"),
        KLOG,
    ]
    for status, line, manifest in CHANGES:
        stdin = None if manifest is None else manifest.encode()
        arguments = shlex.split(line)
        expected = direct.attempt(*arguments, "-n", twins[0], stdin=stdin)
        assert expected.returncode == status, str(expected)
        assert_same(expected, through.attempt(*arguments, "-n", twins[1], stdin=stdin), *masks)
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
    assert_same(results[0], results[1], SERVER, KLOG)


@pytest.mark.tunnel
def test_impersonation_is_what_the_cluster_sees(through: Kubectl) -> None:
    who = through("auth", "whoami", "-o", "json").json()["status"]["userInfo"]
    assert who["username"] == ADMIN


def test_edit_changes_what_the_editor_wrote(through: Kubectl, direct: Kubectl, namespace: str) -> None:
    direct("create", "configmap", "edited", "-n", namespace, "--from-literal=a=before")
    editor = through.with_environ(KUBE_EDITOR="sed -i s/before/after/")
    assert "edited" in editor("edit", "configmap/edited", "-n", namespace).text
    assert direct("get", "configmap/edited", "-n", namespace, "-o", "jsonpath={.data.a}").text == "after"
