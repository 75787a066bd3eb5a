"""What kubectl prints about the same objects, from a real control plane and from the sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from e2e.testbed.bed import Bed
from e2e.testbed.http import Endpoint
from e2e.testbed.kubectl import Kubectl, assert_same
from e2e.testbed.sandbox import running_sandbox

from sandbox import kinds

MASKS = (
    (r"\b10\.\d+\.\d+\.\d+\b", "ADDRESS"),
    (r":3\d{4}/TCP", ":NODEPORT/TCP"),
    (r"e2e-same-[0-9a-f]+", "NAMESPACE"),
    (r" +\n", "\n"),
)
MANIFEST = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: hello, labels: {app: hello}}
spec:
  replicas: 0
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
kind: Service
metadata: {name: ported}
spec: {type: NodePort, selector: {app: hello}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: hello, labels: {app: hello}}
data: {a: "1"}
---
apiVersion: v1
kind: Secret
metadata: {name: hello}
stringData: {b: "2"}
"""


@dataclass
class Both:
    """kubectl at either cluster, in a namespace of the same name."""

    real: Kubectl
    make_believe: Kubectl
    namespace: str

    def compare(self, *arguments: str, stdin: str | None = None, masks: tuple[tuple[str, str], ...] = ()) -> str:
        """Run the same command at both, which must print the same; gives the sandbox's output and errors."""
        data = None if stdin is None else stdin.encode()
        real, make_believe = (
            kubectl.attempt("-n", self.namespace, *arguments, stdin=data) for kubectl in (self.real, self.make_believe)
        )
        assert_same(real, make_believe, *MASKS, *masks)
        return make_believe.text + make_believe.errors


@pytest.fixture(scope="module")
def both(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Both clusters with the same objects in them. Nothing in them needs a controller."""
    directory: Path = tmp_path_factory.mktemp("sandbox")
    with running_sandbox(directory) as sandbox, bed.namespace("e2e-same-") as namespace:
        make_believe = bed.direct.with_kubeconfig(sandbox.kubeconfig)
        make_believe("create", "namespace", namespace)
        for kubectl in (bed.direct, make_believe):
            kubectl("apply", "-n", namespace, "-f", "-", stdin=MANIFEST.encode())
            pod = {**bed.pod_manifest("shell", ["sleep", "1000000"]), "kind": "Pod"}
            kubectl("apply", "-n", namespace, "-f", "-", stdin=yaml.safe_dump(pod).encode())
            kubectl("wait", "-n", namespace, "--for=condition=Ready", "pod/shell", "--timeout=60s")
        yield Both(bed.direct, make_believe, namespace)


def test_tables_have_the_columns_of_a_real_cluster(both: Both) -> None:
    """Of every kind, the ones that only `-o wide` shows included."""
    columns: list[dict[str, Any]] = []
    for kubectl in (both.real, both.make_believe):
        endpoint = Endpoint.of(kubectl.kubeconfig)
        headers = {
            "Authorization": f"Bearer {endpoint.token}",
            "Accept": "application/json;as=Table;v=v1;g=meta.k8s.io",
        }
        found = {}
        with httpx.Client(headers=headers, verify=endpoint.context(), timeout=20) as http:
            for kind in kinds.STORED:
                prefix = f"/apis/{kind.api_version}" if kind.group else "/api/v1"
                table = http.get(f"{endpoint.base}{prefix}/{kind.plural}").raise_for_status().json()
                names = ("name", "type", "format", "priority")
                found[kind.plural] = [tuple(item[name] for name in names) for item in table["columnDefinitions"]]
        columns.append(found)
    assert columns[0] == columns[1]


@pytest.mark.parametrize(
    "arguments",
    [
        "get deployment/hello -o wide",
        "get service/hello -o wide",
        "get service/ported -o wide",
        "get configmap/hello",
        "get secret/hello",
        "get pod/shell",
        "get pods --show-labels",
        "get deploy,svc,secret -o name",
        "get deploy,svc,cm -l app=hello -o name",
        "get deploy,svc -o custom-columns=NAME:.metadata.name,TYPE:.spec.type,REPLICAS:.spec.replicas",
        "get cm/hello -o jsonpath={.data}",
        "get pods --field-selector status.phase=Running -o name",
        "describe configmap hello",
        "describe secret hello",
    ],
)
def test_what_kubectl_shows(both: Both, arguments: str) -> None:
    assert both.compare(*arguments.split())


@pytest.mark.parametrize(
    ("arguments", "stdin", "reason"),
    [
        ("get configmap nothing", None, "NotFound"),
        ("get nothing", None, "the server doesn't have a resource type"),
        ("delete service nothing", None, "NotFound"),
        ("logs nothing", None, "NotFound"),
        ("exec nothing -- true", None, "NotFound"),
        ("logs shell -c nothing", None, "container nothing is not valid for pod shell"),
        ("scale deployment/nothing --replicas=1", None, "not found"),
        ("create configmap hello", None, "already exists"),
        ("create configmap Not_a_name", None, "a lowercase RFC 1123 subdomain"),
        ("patch configmap hello --type=json -p [{}]", None, ""),
        (
            "create -f -",
            '{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"ports": [{"targetPort": 80}]}}',
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        ("create -f -", '{"apiVersion": "v1", "kind": "Nothing", "metadata": {"name": "a"}}', "no matches for kind"),
        (
            "replace -f -",
            '{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "hello", "resourceVersion": "1"}}',
            "the object has been modified",
        ),
        (
            "create -f -",
            '{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [{"name": "c"}]}}',
            "spec.containers[0].image: Required value",
        ),
    ],
)
def test_what_kubectl_says_when_something_is_wrong(both: Both, arguments: str, stdin: str | None, reason: str) -> None:
    seen = both.compare(*arguments.split(), stdin=stdin, masks=((r"(?s)(error in our request).*", r"\1"),))
    assert reason in seen


@pytest.mark.parametrize(
    "path", ["deployment.spec.replicas", "deployment.spec.strategy", "configmap.data", "svc.spec.ports", "pod.status"]
)
def test_what_kubectl_explains(both: Both, path: str) -> None:
    """The words are the sandbox's own; the group, the kind and the type of the field are those of Kubernetes."""
    seen = both.compare("explain", path, masks=((r"(?s)\nDESCRIPTION:.*", ""),))
    assert "DESCRIPTION:\n" in seen
    both.compare("explain", f"{path}.nothing")


def test_what_kubectl_says_when_it_changes_something(both: Both) -> None:
    """In this order, in both."""
    for arguments, stdin in (
        ("apply -f -", MANIFEST),
        ("apply -f -", MANIFEST.replace('a: "1"', 'a: "3"')),
        ("diff -f -", MANIFEST.replace('a: "1"', 'a: "3"')),
        ("label cm/hello x=y", None),
        ("label cm/hello x=z", None),
        ("annotate cm/hello x=y", None),
        ('patch cm/hello --type=merge -p {"data":{"c":"4"}}', None),
        ('patch cm/hello --type=merge -p {"data":{"c":"4"}}', None),
        ("scale deployment/hello --replicas=0", None),
        ("set image deployment/hello hello=hello:2", None),
        ("rollout history deployment/hello --revision=9", None),
        ("create configmap other --from-literal=a=b", None),
        ("delete cm/other", None),
    ):
        both.compare(*arguments.split(), stdin=stdin)
