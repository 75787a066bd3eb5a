"""Things to try once the tunnel is up: commands that work as they are printed. Pure.

In the sandbox they create and change what they like. In a cluster that is somebody's own they only read, or ask the
kube-apiserver what it would do. Each thing is one paragraph: what it shows, and a command that can be copied.
"""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

DEPLOYMENT = """\
# Two copies of a make-believe web server, for the sandbox of `moorline quickstart`.
apiVersion: apps/v1
kind: Deployment
metadata:
  name: hello
  labels: {app: hello}
spec:
  replicas: 2
  selector:
    matchLabels: {app: hello}
  template:
    metadata:
      labels: {app: hello}
    spec:
      containers:
        - name: hello
          image: sandbox/hello:1.0
          ports:
            - containerPort: 8080
"""

POD = """\
# A make-believe web server, for the sandbox of `moorline quickstart`.
apiVersion: v1
kind: Pod
metadata:
  name: hello
  labels: {app: hello}
spec:
  containers:
    - name: hello
      image: sandbox/hello:1.0
"""

POLL_SECONDS = 5
"""How long a watch lasts that is to end by itself."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Absolute paths of what the commands use, and where they go."""

    kubeconfig: Path
    authority: Path
    """The certificate to trust."""
    authorization: Path
    """A header line with the token, for curl, whose arguments everybody on the machine can read."""
    deployment: Path
    pod: Path
    server: str
    """The URL of the cluster, as in the kubeconfig."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FirstSteps:
    """What to type first, and then five things."""

    preparation: tuple[str, ...]
    things: tuple[tuple[str, str], ...]
    """What it shows, and the command."""

    def lines(self) -> list[str]:
        """All of it, to be printed; commands are indented by six spaces. Few enough to stay on a small screen."""
        printed = [f"      {command}" for command in self.preparation]
        for number, (what, command) in enumerate(self.things, 1):
            printed += [f"   {number}. {what}", f"      {command}"]
        return printed


def with_kubectl(files: Files, *, is_sandbox: bool) -> FirstSteps:
    """For those who have kubectl."""
    manifest = _quoted(files.deployment)
    if is_sandbox:
        things = (
            ("everything that runs", "kubectl get pods -A"),
            ("deploy, and wait", f"kubectl apply -f {manifest} && kubectl rollout status deployment/hello"),
            ("follow its log (Ctrl-C ends it)", "kubectl logs -f deployment/hello"),
            ("a shell in it (help lists commands, exit leaves)", "kubectl exec -it deployment/hello -- sh"),
            ("its web page, at the address that is shown", "kubectl port-forward deployment/hello :8080"),
        )
    else:
        things = (
            ("everything that runs", "kubectl get pods -A"),
            ("what happens, as it happens (Ctrl-C ends it)", "kubectl get events -A --watch"),
            ("which kinds there are", "kubectl api-resources"),
            ("what you may do", "kubectl auth can-i --list"),
            ("what would be deployed; nothing is", f"kubectl apply --dry-run=server -f {manifest}"),
        )
    return FirstSteps(preparation=(f"export KUBECONFIG={_quoted(files.kubeconfig)}",), things=things)


def with_curl(files: Files, *, is_sandbox: bool) -> FirstSteps:
    """For those who have not."""
    pods = "/api/v1/namespaces/default/pods"
    apply = f"-X PATCH -H 'Content-Type: application/apply-patch+yaml' --data-binary @{_quoted(files.pod)}"
    watch = f"watch=true&timeoutSeconds={POLL_SECONDS}"
    if is_sandbox:
        things = (
            ("everything that runs, as JSON", "ask /api/v1/pods"),
            ("start a pod", f'ask "{pods}/hello?fieldManager=curl" {apply}'),
            (f"what becomes of it, for {POLL_SECONDS} seconds", f'ask "{pods}?{watch}"'),
            ("follow its log (Ctrl-C ends it)", f'ask "{pods}/hello/log?follow=true"'),
            ("remove it", f"ask {pods}/hello -X DELETE"),
        )
    else:
        things = (
            ("everything that runs, as JSON", "ask /api/v1/pods"),
            (f"what happens, for {POLL_SECONDS} seconds", f'ask "/api/v1/events?{watch}"'),
            ("the kinds in the core of the API", "ask /api/v1"),
            ("and the groups of all others", "ask /apis"),
            ("what would be started; nothing is", f'ask "{pods}/hello?fieldManager=curl&dryRun=All" {apply}'),
        )
    # A proxy for the way out has no business between two ends on this machine.
    curl = f"curl -sS -N -w '\\n' --noproxy '*' --cacert {_quoted(files.authority)} -H @{_quoted(files.authorization)}"
    function = f'ask() {{ target=$1; shift; {curl} "$@" "{files.server}$target"; }}'
    return FirstSteps(preparation=(function,), things=things)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
