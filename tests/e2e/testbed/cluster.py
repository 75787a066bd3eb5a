"""The cluster below the tests: a control plane of our own on loopback, or one that E2E_KUBECONFIG names.

Our own is etcd, kube-apiserver and (where there is one) kube-controller-manager, with a kubelet that runs local
processes. Everything that talks to the cluster directly does it through ``Cluster.kubeconfig``.
"""

from __future__ import annotations

import base64
import json
import secrets
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import trustme
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from e2e.controlplane.build import Assets
from e2e.testbed.processes import Process, free_port, until

SERVICE_RANGE = "10.96.0.0/24"
CONTROLLERS = (
    "serviceaccount-controller,serviceaccount-token-controller,root-ca-certificate-publisher-controller,"
    "namespace-controller,garbage-collector-controller,deployment-controller,replicaset-controller,"
    "endpointslice-controller,resourcequota-controller,job-controller,clusterrole-aggregation-controller"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """How to reach a cluster directly, and what is special about it."""

    kubeconfig: Path
    server: str
    ca_pem: bytes
    image: str
    own: ControlPlane | None


@dataclass(slots=True)
class Pki:
    """The certificates of the bed, all from one CA."""

    directory: Path
    ca: trustme.CA = field(default_factory=trustme.CA)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.ca.cert_pem.write_to_path(str(self.directory / "ca.crt"))

    @property
    def ca_file(self) -> Path:
        return self.directory / "ca.crt"

    def issue(
        self, name: str, *identities: str, common_name: str | None = None, organization: str | None = None
    ) -> None:
        """Write ``name``.crt and ``name``.key for these host names, addresses, or (client) identities."""
        leaf = self.ca.issue_cert(*identities, common_name=common_name, organization_name=organization)
        leaf.cert_chain_pems[0].write_to_path(str(self.directory / f"{name}.crt"))
        leaf.private_key_pem.write_to_path(str(self.directory / f"{name}.key"))

    def context(self) -> ssl.SSLContext:
        """A client context that trusts only this CA."""
        return ssl.create_default_context(cafile=str(self.ca_file))


def kubeconfig(
    path: Path, *, server: str, ca_pem: bytes | None, token: str | None = None, tls_name: str | None = None
) -> Path:
    """Write a kubeconfig with one context and return its path."""
    cluster: dict[str, object] = {"server": server}
    if ca_pem is not None:
        cluster["certificate-authority-data"] = base64.b64encode(ca_pem).decode()
    if tls_name is not None:
        cluster["tls-server-name"] = tls_name
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "e2e",
        "clusters": [{"name": "e2e", "cluster": cluster}],
        "users": [{"name": "e2e", "user": {"token": token} if token else {}}],
        "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "e2e", "namespace": "default"}}],
    }
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    path.chmod(0o600)
    return path


class ControlPlane:
    """etcd, kube-apiserver, kube-controller-manager and the kubelet, as processes on 127.0.0.1."""

    def __init__(self, assets: Assets, directory: Path) -> None:
        self._assets = assets
        self._directory = directory
        self.logs = directory / "logs"
        self.pki = Pki(directory / "pki")
        self.port = free_port()
        self.server = f"https://127.0.0.1:{self.port}"
        self.admin_token = f"admin-{secrets.token_hex(16)}"
        self.agent_token = f"agent-{secrets.token_hex(16)}"
        self.processes: dict[str, Process] = {}
        self._etcd_url = f"http://127.0.0.1:{free_port()}"

    @property
    def tokens(self) -> list[str]:
        """Every secret of the control plane, for the search of the logs."""
        return [self.admin_token, self.agent_token]

    @property
    def kubelet_directory(self) -> Path:
        return self._directory / "kubelet"

    def start(self) -> Cluster:
        """Start everything and return when the kube-apiserver and the Node are ready."""
        self._write_credentials()
        self._start_etcd()
        self.start_apiserver()
        admin = kubeconfig(
            self._directory / "admin.kubeconfig",
            server=self.server,
            ca_pem=self.pki.ca_file.read_bytes(),
            token=self.admin_token,
        )
        self.agent_kubeconfig_at(self.port)
        if self._assets.kube_controller_manager is not None:
            self._start_controller_manager(admin)
        self._start_kubelet(admin)
        return Cluster(
            kubeconfig=admin, server=self.server, ca_pem=self.pki.ca_file.read_bytes(), image="local/process", own=self
        )

    @property
    def agent_kubeconfig(self) -> Path:
        """The kubeconfig of the agent: a user of its own, with the rights of its ClusterRoleBinding."""
        return self._directory / "agent.kubeconfig"

    def agent_kubeconfig_at(self, port: int) -> Path:
        """The agent's kubeconfig, for the kube-apiserver or for what stands in front of it at this port."""
        path = self.agent_kubeconfig
        if port != self.port:
            path = path.with_name(f"agent-{port}.kubeconfig")
        return kubeconfig(
            path, server=f"https://127.0.0.1:{port}", ca_pem=self.pki.ca_file.read_bytes(), token=self.agent_token
        )

    def stop(self) -> None:
        """End all processes, the last started first."""
        for name in reversed(list(self.processes)):
            self.processes.pop(name).stop()

    def _write_credentials(self) -> None:
        self.pki.issue("apiserver", "127.0.0.1", "localhost", "kubernetes", "kubernetes.default.svc")
        self.pki.issue("kubelet", "127.0.0.1")
        self.pki.issue("kubelet-client", "kube-apiserver.client.invalid", common_name="kube-apiserver")
        key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        (self.pki.directory / "service-accounts.key").write_bytes(key)
        rows = [
            f"{self.admin_token},e2e-admin,e2e-admin,system:masters",
            f"{self.agent_token},e2e-agent,e2e-agent,e2e:agents",
        ]
        (self._directory / "tokens.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")

    def _start_etcd(self) -> None:
        assert self._assets.etcd is not None
        peer = f"http://127.0.0.1:{free_port()}"
        self.processes["etcd"] = Process(
            "etcd",
            [
                self._assets.etcd,
                f"--data-dir={self._directory / 'etcd'}",
                f"--listen-client-urls={self._etcd_url}",
                f"--advertise-client-urls={self._etcd_url}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
                "--unsafe-no-fsync",
                "--log-level=warn",
            ],
            log=self.logs / "etcd.log",
        )

    def start_apiserver(self) -> None:
        """Start kube-apiserver (again, after ``stop_apiserver``) on its port, and wait until it is ready."""
        assert self._assets.kube_apiserver is not None
        pki = self.pki.directory
        command: list[str | Path] = [
            self._assets.kube_apiserver,
            f"--etcd-servers={self._etcd_url}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self.port}",
            f"--tls-cert-file={pki / 'apiserver.crt'}",
            f"--tls-private-key-file={pki / 'apiserver.key'}",
            f"--service-account-key-file={pki / 'service-accounts.key'}",
            f"--service-account-signing-key-file={pki / 'service-accounts.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            f"--token-auth-file={self._directory / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--kubelet-preferred-address-types=InternalIP",
            f"--kubelet-certificate-authority={self.pki.ca_file}",
            f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
            f"--kubelet-client-key={pki / 'kubelet-client.key'}",
            "--endpoint-reconciler-type=none",
            "--shutdown-delay-duration=0s",
        ]
        if self._assets.kube_controller_manager is None:
            command.append("--disable-admission-plugins=ServiceAccount")  # nobody makes the accounts
        apiserver = Process("kube-apiserver", command, log=self.logs / "kube-apiserver.log")
        self.processes["kube-apiserver"] = apiserver
        context = self.pki.context()

        def ready() -> bool:
            if apiserver.returncode is not None:
                raise RuntimeError(f"kube-apiserver ended with status {apiserver.returncode}{apiserver.tail()}")
            request = urllib.request.Request(
                f"{self.server}/readyz", headers={"Authorization": f"Bearer {self.admin_token}"}
            )
            try:
                with urllib.request.urlopen(request, timeout=2, context=context) as answer:
                    return bool(answer.status == 200)
            except (urllib.error.URLError, OSError):
                return False

        until(ready, seconds=60, what=f"kube-apiserver is ready, see {apiserver.log}")

    def kill_apiserver(self) -> None:
        """End kube-apiserver at once, as a crash would; its port answers nobody until it is started again."""
        self.processes.pop("kube-apiserver").kill()

    def _start_controller_manager(self, admin: Path) -> None:
        assert self._assets.kube_controller_manager is not None
        self.processes["kube-controller-manager"] = Process(
            "kube-controller-manager",
            [
                self._assets.kube_controller_manager,
                f"--kubeconfig={admin}",
                "--leader-elect=false",
                "--secure-port=0",
                f"--controllers={CONTROLLERS}",
                f"--service-account-private-key-file={self.pki.directory / 'service-accounts.key'}",
                f"--root-ca-file={self.pki.ca_file}",
                "--use-service-account-credentials=false",
                "--concurrent-namespace-syncs=20",
            ],
            log=self.logs / "kube-controller-manager.log",
        )

    def _start_kubelet(self, admin: Path) -> None:
        assert self._assets.kubelet is not None
        self.kubelet_directory.mkdir(parents=True, exist_ok=True)
        kubelet = Process(
            "kubelet",
            [
                self._assets.kubelet,
                f"-kubeconfig={admin}",
                f"-directory={self.kubelet_directory}",
                f"-cert={self.pki.directory / 'kubelet.crt'}",
                f"-key={self.pki.directory / 'kubelet.key'}",
                f"-client-ca={self.pki.ca_file}",
            ],
            log=self.logs / "kubelet.log",
        )
        self.processes["kubelet"] = kubelet
        kubelet.wait_for_line(r"ready: node", seconds=30)

    def starts(self) -> list[dict[str, object]]:
        """Every command that the kubelet has started so far, in order."""
        lines = (self.kubelet_directory / "starts.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


def external(path: Path, *, image: str) -> Cluster:
    """The cluster of a kubeconfig, which stays as it is: only namespaces of the tests are made in it."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    current = next(c["context"] for c in document["contexts"] if c["name"] == document["current-context"])
    cluster = next(c["cluster"] for c in document["clusters"] if c["name"] == current["cluster"])
    if data := cluster.get("certificate-authority-data"):
        ca_pem = base64.b64decode(data)
    elif name := cluster.get("certificate-authority"):
        ca_pem = (path.parent / name).read_bytes()
    else:
        ca_pem = b""
    return Cluster(kubeconfig=path, server=cluster["server"], ca_pem=ca_pem, image=image, own=None)
