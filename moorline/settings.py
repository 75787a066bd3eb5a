"""The configurations of kas and agentk when `moorline up` runs them together. Pure."""

from __future__ import annotations

from pathlib import Path

from agent.config import AccessConfig as AgentAccessConfig
from agent.config import AgentConfig, HealthConfig, KubernetesConfig
from agent.config import KasConfig as DialConfig
from agent.config import TimeoutsConfig as AgentTimeoutsConfig
from moorline.folder import AGENT_ID, Folder
from moorline.kubeconfig import Address as KubectlAddress
from moorline.kubeconfig import address_of
from operations.values import Address, Seconds
from server.config import (
    AccessConfig,
    AgentListenerConfig,
    KasConfig,
    OperationsConfig,
    ProxyConfig,
    TimeoutsConfig,
    TlsConfig,
)

DRAIN_SECONDS = Seconds(0.5)
"""For what runs to end by itself after Ctrl-C."""

WAIT_FOR_AGENT_SECONDS = Seconds(10.0)

_LOOPBACK = Address("127.0.0.1", 0)
_EVERY_INTERFACE = ("", "0.0.0.0", "::")  # noqa: S104 - compared, not bound


def kas_config(folder: Folder, listen: Address) -> KasConfig:
    """kas: callers where they were told, agents and operations on any free port of the loopback interface."""
    tls = TlsConfig(certificate_file=folder.certificates.certificate, key_file=folder.certificates.private_key)
    return KasConfig(
        id="moorline-up",
        agents=AgentListenerConfig(address=_LOOPBACK, tls=tls),
        proxy=ProxyConfig(address=listen, tls=tls, domain="localhost"),
        operations=OperationsConfig(address=_LOOPBACK),
        access=AccessConfig(file=folder.access_file),
        # The agent is about to connect, and whoever asks too early would rather wait than fail.
        timeouts=TimeoutsConfig(drain=DRAIN_SECONDS, wait_for_agent=WAIT_FOR_AGENT_SECONDS),
    )


def agent_config(
    kubeconfig: Path | None, context: str, *, kas: Address = _LOOPBACK, authority: Path | None = None
) -> AgentConfig:
    """agentk: dials the kas of this process, and allows both modes, since its user owns the kubeconfig anyway."""
    return AgentConfig(
        kas=DialConfig(address=f"https://{kas}", ca_file=authority),
        kubernetes=KubernetesConfig(kubeconfig=kubeconfig, context=context),
        access=AgentAccessConfig(modes=("agent", "impersonate")),
        replica="moorline-up",
        health=HealthConfig(address=_LOOPBACK),
        timeouts=AgentTimeoutsConfig(drain=DRAIN_SECONDS),
    )


def kubectl_address(proxy: Address, token: str) -> KubectlAddress:
    """Where a kubectl on this machine finds the proxy listener."""
    host = "127.0.0.1" if proxy.host in _EVERY_INTERFACE else proxy.host
    return address_of(AGENT_ID, token, f"https://{Address(host, proxy.port)}")
