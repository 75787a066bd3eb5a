"""Who the agent is towards the kube-apiserver: TLS context and ``Authorization``, kept up to date.

A mounted service account and a kubeconfig are the same thing here: files that rotate (token, CA, client certificate),
values that do not, or a plugin. Files are looked at when a request needs them, at most once a second; that needs no
task, and an agent without traffic touches nothing. They are small and local, so they are read without a thread. A file
that has become unusable leaves what was there before, with one line in the log.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import logging
import os
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import trio

from agent.address import ApiServerAddress
from agent.exec_plugin import CredentialsUnavailable, PluginRunner
from agent.kubeconfig import Blob, Cluster, KubeconfigError, KubeContext, User
from tunnel.messages import Fields
from tunnel.transports.tls_contexts import client_context

logger = logging.getLogger(__name__)

SERVICE_ACCOUNT_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")

IN_CLUSTER = "in-cluster"
"""The description of the credentials that Kubernetes mounts into a Pod."""

LOOK_SECONDS = 1.0
"""Files are compared with what was read from them at most this often."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Access:
    """What a request needs at this moment. The same object as long as nothing has changed."""

    fields: Fields = dataclasses.field(repr=False)
    """``authorization``, or nothing where the client certificate says it all."""
    context: ssl.SSLContext | None
    """For connections that are dialled from now on; None for http."""


class Credentials(Protocol):
    """Access to one kube-apiserver."""

    address: ApiServerAddress
    server_hostname: str
    """The name that the server's certificate must have."""
    proxy_url: str | None
    description: str
    """For logs: where the credentials come from."""

    async def current(self) -> Access:
        """What holds now. Raises `CredentialsUnavailable`."""
        ...

    def known(self) -> Access | None:
        """What `current` would return, where that is known without waiting; else None."""
        ...

    def rejected(self) -> None:
        """The kube-apiserver answered 401: look for newer ones at the next request."""
        ...


def is_in_cluster(environment: Mapping[str, str], folder: Path = SERVICE_ACCOUNT_FOLDER) -> bool:
    """Whether this looks like a Pod with a service account."""
    return bool(environment.get("KUBERNETES_SERVICE_HOST")) and (folder / "token").exists()


def in_cluster_context(environment: Mapping[str, str], folder: Path = SERVICE_ACCOUNT_FOLDER) -> KubeContext:
    """The service account that Kubernetes mounts into a pod. Raises `KubeconfigError`."""
    problems = [
        f"{name}: it is not set; Kubernetes sets it in every pod"
        for name in ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT")
        if not environment.get(name)
    ]
    files = [folder / name for name in ("token", "ca.crt")]
    problems += [f"{path}: there is no such file" for path in files if not path.is_file()]
    port = environment.get("KUBERNETES_SERVICE_PORT", "")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        problems.append(f"KUBERNETES_SERVICE_PORT: {port!r} is no port")
    if problems:
        raise KubeconfigError(problems)
    address = ApiServerAddress(scheme="https", host=environment["KUBERNETES_SERVICE_HOST"], port=int(port))
    return KubeContext(
        name=IN_CLUSTER,
        cluster=Cluster(address=address, authority=Blob(path=folder / "ca.crt")),
        user=User(token_path=folder / "token"),
    )


class ContextCredentials:
    """The credentials of one context."""

    def __init__(
        self,
        context: KubeContext,
        *,
        environment: Mapping[str, str],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Reads the files. Raises `KubeconfigError` where they cannot be used."""
        cluster, user = context.cluster, context.user
        self._cluster = cluster
        self._user = user
        self.address = cluster.address
        self.server_hostname = cluster.tls_server_name or cluster.address.host
        self.proxy_url = cluster.proxy_url
        self.description = context.name
        self._authority = _Pem(cluster.authority)
        self._certificate = _Pem(user.certificate)
        self._key = _Pem(user.key)
        self._token = _Pem(Blob(path=user.token_path) if user.token_path is not None else None)
        self._look_at = 0.0
        self._presented: tuple[str, bytes | None, bytes | None] = ("", None, None)
        self._complaint = ""
        try:
            for pem in self._files:
                pem.look()
            self._access = self._make_access(None)
        except (OSError, ValueError) as exc:  # ssl.SSLError is an OSError
            raise KubeconfigError([f"context {context.name}: {exc}"]) from exc
        self._plugin: PluginRunner | None = None
        if user.plugin is not None:
            self._plugin = PluginRunner(
                user.plugin, cluster, self._authority.content, environment=environment, wall_clock=wall_clock
            )

    @property
    def _files(self) -> tuple[_Pem, ...]:
        return (self._authority, self._certificate, self._key, self._token)

    async def current(self) -> Access:
        """See `Credentials.current`. Without a plugin it never waits."""
        if self._plugin is not None:
            credential = await self._plugin.credential()
            presented = (credential.token, credential.certificate, credential.key)
            if presented != self._presented:
                try:
                    self._access = self._make_access(presented)
                except (OSError, ValueError) as exc:
                    raise CredentialsUnavailable(f"what the plugin printed cannot be used: {exc}") from exc
                self._presented = presented
        return self._latest()

    def known(self) -> Access | None:
        """See `Credentials.known`. A plugin has to be asked."""
        return self._latest() if self._plugin is None else None

    def _latest(self) -> Access:
        """The access of this moment, with what has changed in the files."""
        now = trio.current_time()
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._look()
        return self._access

    def rejected(self) -> None:
        """See `Credentials.rejected`."""
        self._look_at = 0.0
        if self._plugin is not None:
            self._plugin.rejected()

    def _look(self) -> None:
        """Take over what has changed in the files, or keep everything and say so once."""
        try:
            changed = [pem.path for pem in self._files if pem.look()]
            if not changed and not self._complaint:
                return
            self._access = self._make_access(self._presented if self._plugin is not None else None)
        except (OSError, ValueError) as exc:
            if str(exc) != self._complaint:
                self._complaint = str(exc)
                logger.warning(
                    "credentials for the kube-apiserver cannot be read again; the old ones stay in use",
                    extra={"error": str(exc)},
                )
            return
        self._complaint = ""
        logger.info("credentials for the kube-apiserver have changed", extra={"files": ", ".join(map(str, changed))})

    def _make_access(self, presented: tuple[str, bytes | None, bytes | None] | None) -> Access:
        token, certificate, key = presented or ("", self._certificate.content, self._key.content)
        return Access(self._fields(token), self._context(certificate, key))

    def _fields(self, plugin_token: str) -> Fields:
        user = self._user
        if plugin_token:
            token = plugin_token
        elif self._token.content is not None:
            token = self._token.content.decode("ascii").strip()
        else:
            token = user.token or ""
        if token:
            return [(b"authorization", b"Bearer " + _field_safe(token))]
        if user.basic is not None:
            return [(b"authorization", b"Basic " + base64.b64encode(":".join(user.basic).encode()))]
        return []

    def _context(self, certificate: bytes | None, key: bytes | None) -> ssl.SSLContext | None:
        if self._cluster.address.scheme != "https":
            return None
        authority = self._authority.content
        with contextlib.ExitStack() as files:
            return client_context(
                ca_data=authority.decode("ascii", "ignore") if authority is not None else None,
                system_cas=authority is None,
                certificate_file=files.enter_context(_as_file(certificate)) if certificate else None,
                key_file=files.enter_context(_as_file(key)) if key else None,
                alpn=("http/1.1",),
                insecure=self._cluster.skip_tls_verify,
            )


class _Pem:
    """A value, or a file that is read again when it has changed."""

    def __init__(self, blob: Blob | None) -> None:
        self.path = blob.path if blob is not None else None
        self.content = blob.data if blob is not None else None
        self._seen: tuple[int, ...] = ()

    def look(self) -> bool:
        """Whether the content has changed. Raises `OSError`, and `ValueError` where the file is empty."""
        if self.path is None:
            return False
        facts = self.path.stat()
        seen = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
        if seen == self._seen:
            return False
        content = self.path.read_bytes()
        if not content.strip():
            raise ValueError(f"{self.path} is empty")
        self._seen = seen
        changed = content != self.content
        self.content = content
        return changed


def _field_safe(token: str) -> bytes:
    value = token.encode("ascii", "replace")
    if any(byte <= 0x20 or byte >= 0x7F for byte in value) or not token.isascii():
        raise ValueError("the token contains white space, control characters or letters beyond ASCII")
    return value


@contextlib.contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """A path under which OpenSSL can read ``content``, which it takes from files only. In memory where that exists."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("pem")
        try:
            os.write(descriptor, content)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pem"
        path.touch(mode=0o600)
        path.write_bytes(content)
        yield str(path)
