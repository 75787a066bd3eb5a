"""Credentials from a program: the exec plugins of a kubeconfig (``client.authentication.k8s.io``).

The program runs without a terminal, with a deadline, one at a time, and again only when what it printed has expired or
was rejected. What it printed is kept in memory and appears in no message.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import json
import logging
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

import trio

from agent.kubeconfig import Cluster, ExecPlugin

logger = logging.getLogger(__name__)

PLUGIN_SECONDS = 30.0
"""A plugin that takes longer has failed."""

RETRY_SECONDS = 5.0
"""After a failure the plugin does not run again for this long: each request would start a process otherwise."""

OUTPUT_BYTES = 1_048_576


class CredentialsUnavailable(Exception):
    """The agent has no credentials for the kube-apiserver at the moment. The text names no secret."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PluginCredential:
    """What a plugin printed."""

    token: str = dataclasses.field(default="", repr=False)
    certificate: bytes | None = dataclasses.field(default=None, repr=False)
    key: bytes | None = dataclasses.field(default=None, repr=False)
    expires_at: float | None = None
    """Seconds since the epoch; None: until it is rejected."""


class PluginRunner:
    """Runs one plugin when needed and remembers its answer."""

    def __init__(
        self,
        plugin: ExecPlugin,
        cluster: Cluster,
        authority: bytes | None,
        *,
        environment: Mapping[str, str],
        wall_clock: Callable[[], float],
    ) -> None:
        self._plugin = plugin
        self._environment = {
            **environment,
            **dict(plugin.environment),
            "KUBERNETES_EXEC_INFO": exec_info(plugin, cluster, authority),
        }
        self._wall_clock = wall_clock
        self._credential: PluginCredential | None = None
        self._failure: CredentialsUnavailable | None = None
        self._not_before = 0.0
        self._lock = trio.Lock()

    async def credential(self) -> PluginCredential:
        """The credential that holds now; runs the plugin where there is none.

        Raises `CredentialsUnavailable`. Cancelled, the plugin is killed and the next caller starts it again.
        """
        if (known := self._valid()) is not None:
            return known
        async with self._lock:
            if (known := self._valid()) is not None:
                return known
            if self._failure is not None and trio.current_time() < self._not_before:
                raise self._failure
            try:
                self._credential = await self._run()
            except CredentialsUnavailable as exc:
                self._failure = exc
                self._not_before = trio.current_time() + RETRY_SECONDS
                logger.warning("the credentials plugin failed", extra={"error": str(exc)})
                raise
            self._failure = None
            return self._credential

    def rejected(self) -> None:
        """The kube-apiserver did not accept the credential: ask the plugin again, soon but not for every request."""
        if self._credential is not None and trio.current_time() >= self._not_before:
            self._credential = None
            self._not_before = trio.current_time() + RETRY_SECONDS

    def _valid(self) -> PluginCredential | None:
        known = self._credential
        if known is None or (known.expires_at is not None and self._wall_clock() >= known.expires_at):
            return None
        return known

    async def _run(self) -> PluginCredential:
        plugin = self._plugin
        try:
            with trio.fail_after(PLUGIN_SECONDS):
                # The output is bounded by the deadline only; it is a program of the operator's choice.
                process = await trio.run_process(
                    [plugin.command, *plugin.arguments],
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                )
        except trio.TooSlowError:
            raise CredentialsUnavailable(f"{plugin.command} did not end within {PLUGIN_SECONDS:g} s") from None
        except OSError as exc:
            hint = f" ({plugin.install_hint.strip()})" if plugin.install_hint else ""
            raise CredentialsUnavailable(f"{plugin.command} cannot be run: {exc.strerror}{hint}") from exc
        if process.returncode != 0:
            said = process.stderr.decode("utf-8", "replace").strip().splitlines()
            last = f": {said[-1][:300]}" if said else ""
            raise CredentialsUnavailable(f"{plugin.command} ended with status {process.returncode}{last}")
        return parse_credential(process.stdout, plugin)


def exec_info(plugin: ExecPlugin, cluster: Cluster, authority: bytes | None) -> str:
    """The value of ``KUBERNETES_EXEC_INFO``."""
    spec: dict[str, Any] = {"interactive": False}
    if plugin.provide_cluster_info:
        described: dict[str, Any] = {"server": str(cluster.address), "config": cluster.extension}
        if cluster.tls_server_name:
            described["tls-server-name"] = cluster.tls_server_name
        if cluster.skip_tls_verify:
            described["insecure-skip-tls-verify"] = True
        if authority is not None:
            described["certificate-authority-data"] = base64.b64encode(authority).decode()
        if cluster.proxy_url:
            described["proxy-url"] = cluster.proxy_url
        spec["cluster"] = described
    return json.dumps({"kind": "ExecCredential", "apiVersion": plugin.api_version, "spec": spec})


def parse_credential(output: bytes, plugin: ExecPlugin) -> PluginCredential:
    """The credential in a plugin's output. Raises `CredentialsUnavailable`."""
    if len(output) > OUTPUT_BYTES:
        raise CredentialsUnavailable(f"{plugin.command} printed {len(output)} bytes, at most {OUTPUT_BYTES}")
    try:
        document = json.loads(output)
    except (ValueError, RecursionError):
        raise CredentialsUnavailable(f"{plugin.command} printed something that is not JSON") from None
    if not isinstance(document, dict) or document.get("kind") != "ExecCredential":
        raise CredentialsUnavailable(f"{plugin.command} printed no ExecCredential")
    if document.get("apiVersion") != plugin.api_version:
        raise CredentialsUnavailable(
            f"{plugin.command} printed apiVersion {str(document.get('apiVersion'))[:60]!r}, "
            f"and the kubeconfig says {plugin.api_version!r}"
        )
    status = document.get("status")
    values = {
        key: status.get(key) or "" if isinstance(status, dict) else ""
        for key in ("token", "clientCertificateData", "clientKeyData", "expirationTimestamp")
    }
    if not all(isinstance(value, str) for value in values.values()):
        raise CredentialsUnavailable(f"{plugin.command} printed a status with values that are not text")
    certificate, key = values["clientCertificateData"], values["clientKeyData"]
    if bool(certificate) != bool(key) or not (values["token"] or certificate):
        raise CredentialsUnavailable(f"{plugin.command} printed neither a token nor a certificate with its key")
    return PluginCredential(
        token=values["token"],
        certificate=certificate.encode() or None,
        key=key.encode() or None,
        expires_at=_moment(values["expirationTimestamp"], plugin),
    )


def _moment(text: str, plugin: ExecPlugin) -> float | None:
    if not text:
        return None
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise CredentialsUnavailable(f"{plugin.command} printed an expirationTimestamp that is no time") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return moment.timestamp()
