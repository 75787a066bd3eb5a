"""What the tests share: the cluster, the ways into it, and the pods and namespaces made in it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from e2e.controlplane.build import Assets
from e2e.testbed.cluster import Cluster
from e2e.testbed.kubectl import Kubectl
from e2e.testbed.names import ADMIN, READER

if TYPE_CHECKING:
    from e2e.testbed.tunnel import Tunnel


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One way into the cluster."""

    name: str
    kubectl: Kubectl


@dataclass(slots=True, kw_only=True)
class Bed:
    """The cluster and everything in front of it."""

    assets: Assets
    directory: Path
    cluster: Cluster
    direct: Kubectl
    tunnel: Tunnel | None = None
    _routes: dict[str, Route] = field(default_factory=dict)

    def route(self, name: str) -> Route:
        """The way into the cluster of this name; straight to it where there is no tunnel."""
        if name not in self._routes:
            if self.tunnel is None:
                kubeconfig = self.directory / f"{name}.kubeconfig"
                kubeconfig.write_bytes(self.direct.kubeconfig.read_bytes())
            else:
                kubeconfig = self.tunnel.kubeconfig(name)
            self._routes[name] = Route(name=name, kubectl=self.direct.with_kubeconfig(kubeconfig))
        return self._routes[name]

    def prepare_cluster(self) -> None:
        """Bind the users of the tests to roles."""
        api = "rbac.authorization.k8s.io"
        self.apply(
            {
                "apiVersion": f"{api}/v1",
                "kind": "ClusterRoleBinding",
                "metadata": {"name": "e2e-admins"},
                "roleRef": {"apiGroup": api, "kind": "ClusterRole", "name": "cluster-admin"},
                "subjects": [
                    {"apiGroup": api, "kind": "User", "name": ADMIN},
                    {"apiGroup": api, "kind": "Group", "name": "e2e:agents"},
                ],
            },
            {
                "apiVersion": f"{api}/v1",
                "kind": "ClusterRole",
                "metadata": {"name": READER},
                "rules": [{"apiGroups": [""], "resources": ["pods", "configmaps"], "verbs": ["get", "list", "watch"]}],
            },
        )

    def apply(self, *objects: dict[str, Any], namespace: str | None = None) -> None:
        """Create or update objects, directly."""
        where = ["-n", namespace] if namespace else []
        self.direct("apply", "-f", "-", *where, stdin=yaml.safe_dump_all(objects).encode())

    @contextmanager
    def namespace(self, prefix: str) -> Iterator[str]:
        """A new namespace, which goes away (without waiting for it) at the end of the block.

        Where the cluster has no controllers, it gets the one configmap that they put into each.
        """
        name = f"{prefix}{secrets.token_hex(4)}"
        self.direct("create", "namespace", name)
        if not self.has_controllers:
            self.direct("create", "configmap", "kube-root-ca.crt", "-n", name)
        try:
            yield name
        finally:
            self.direct("delete", "namespace", name, "--wait=false")

    @property
    def has_controllers(self) -> bool:
        """Whether a kube-controller-manager runs; envtest's programs come without."""
        return self.cluster.own is None or self.assets.kube_controller_manager is not None

    def pod_manifest(self, name: str, command: Sequence[str], **container: Any) -> dict[str, Any]:
        """A pod of one container."""
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {
                "automountServiceAccountToken": False,
                "terminationGracePeriodSeconds": 0,
                "restartPolicy": "Never",
                "containers": [
                    {"name": "main", "image": self.cluster.image, "command": list(command), **container},
                ],
            },
        }

    def run_pod(self, namespace: str, name: str, command: Sequence[str], **container: Any) -> None:
        """Run a pod and return when it is ready."""
        self.apply(self.pod_manifest(name, command, **container), namespace=namespace)
        self.direct("wait", "-n", namespace, "--for=condition=Ready", f"pod/{name}", "--timeout=60s")
