"""The configuration of agentk. The defaults and the text below each field are its documentation.

`AGENTK__SECTION__KEY` in the environment overrides a key of the file, flags override both. The token is not part of it:
it is in a file (``kas.token_file``) or in the variable `AGENTK_TOKEN`, which is removed once it was read.
"""

# ruff: noqa: RUF009 - the calls in defaults make frozen values and plain numbers

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from operations.logs import LogConfig
from operations.structuring import Range
from operations.values import Address, ByteCount, Seconds
from tunnel.dial_address import DialAddress

ENVIRONMENT_PREFIX = "AGENTK"

Mode = Literal["impersonate", "agent"]

_REPLICA = re.compile(r"[!-+\--~]{1,253}")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[ \t]*[\x20-\x7e]*")
_WAY_OUT = "use wss:// or https://, or allow it with --insecure-plaintext"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KasConfig:
    """The kas that the agent dials."""

    address: str = ""
    """Required. `wss://kas.example.com` or `https://…`, with or without a path. `wss` is a WebSocket, for where only
    those pass; `https` is an upgrade without the framing, and cheaper."""
    token_file: Path | None = None
    """The agent's token, read again before each attempt to connect. Instead, `AGENTK_TOKEN` may hold the token."""
    ca_file: Path | None = None
    """Certificates in PEM that are trusted beside those of the system. Read again before each attempt to connect."""
    headers: tuple[str, ...] = ()
    """`Name: value`, sent with the handshake: for an ingress that asks for credentials of its own."""
    insecure_plaintext: bool = False
    """Allow `ws://` and `http://`: the token, and all that users do, can then be read on the way."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong with the values by themselves."""
        if not self.address:
            yield "address", "is required, such as wss://kas.example.com (flag --kas-address)"
            return
        try:
            address = DialAddress.parse(self.address)
        except ValueError as exc:
            yield "address", str(exc)
        else:
            if not address.is_encrypted and not self.insecure_plaintext:
                yield "address", f"{address.scheme}:// would send the token in clear text: {_WAY_OUT}"
        for index, header in enumerate(self.headers):
            if not _HEADER.fullmatch(header):
                yield f"headers[{index}]", "expected 'Name: value' in ASCII"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesConfig:
    """The kube-apiserver that the agent serves. In a Pod nothing needs to be set: its service account is mounted."""

    kubeconfig: Path | None = None
    """A kubeconfig. Default: `$KUBECONFIG`, else the service account of the Pod, else `~/.kube/config`."""
    context: str = ""
    """The context of the kubeconfig; default: its current one."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AccessConfig:
    """What kas may ask of this agent, whatever kas itself is configured to."""

    modes: tuple[Mode, ...] = ("impersonate",)
    """`impersonate`: requests run as the user that kas names, within the agent's right to impersonate.
    `agent`: they run with the agent's own rights."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """An agent without any mode would refuse everything."""
        if not self.modes:
            yield "modes", "expected at least one of impersonate, agent"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HealthConfig:
    """`/livez`, `/readyz` and `/metrics`, without TLS and without credentials."""

    address: Address = Address("127.0.0.1", 8152)
    """Host and port. In a Pod, probes of the kubelet need `:8152`."""
    disconnected: Annotated[Seconds, Range(60)] = Seconds(900.0)
    """`/livez` fails when there was no tunnel for so long, so that a restart is tried. It is long on purpose: the agent
    keeps trying by itself and reads its token again, so a restart seldom helps."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LimitsConfig:
    """What the agent takes on at a time."""

    concurrent_requests: Annotated[int, Range(16, 1_000_000)] = 16_384
    """Requests, watches and sessions at the same time on one tunnel; further ones are refused before they are read.
    Each needs a connection to the kube-apiserver, so a lower limit on open files lowers this as well."""
    idle_connections: Annotated[int, Range(0, 10_000)] = 64
    """Connections to the kube-apiserver that are kept for the next requests."""
    buffered_bytes: Annotated[ByteCount, Range(16_777_216)] = ByteCount(268_435_456)
    """Bytes in flight through the agent, received and granted. Over it no window grows; at twice as much, the streams
    that stall longest are reset."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TimeoutsConfig:
    """How long the agent waits, and for what."""

    upstream_connect: Annotated[Seconds, Range(1)] = Seconds(10.0)
    """For a connection to the kube-apiserver, TLS included."""
    upstream_head: Annotated[Seconds, Range(1)] = Seconds(90.0)
    """For the head of a response, except to watches, logs, proxied requests and upgrades. kube-apiserver itself gives
    up after 60 seconds, and its answer says more."""
    upstream_idle: Annotated[Seconds, Range(1)] = Seconds(45.0)
    """For the next request on an idle connection to the kube-apiserver."""
    reconnect: Annotated[Seconds, Range(1, 3600)] = Seconds(30.0)
    """The longest wait between two attempts to connect to kas."""
    drain: Annotated[Seconds, Range(0)] = Seconds(30.0)
    """On SIGTERM: for what runs to end by itself. Then it is cut. `terminationGracePeriodSeconds` has to be longer."""
    ping_interval: Annotated[Seconds, Range(1, 3600)] = Seconds(15.0)
    """Between PINGs on a tunnel."""
    ping: Annotated[Seconds, Range(1, 3600)] = Seconds(15.0)
    """For any sign of life after a PING, before the tunnel counts as dead and is dialled again."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """The configuration of agentk."""

    kas: KasConfig = dataclasses.field(default_factory=KasConfig)
    kubernetes: KubernetesConfig = dataclasses.field(default_factory=KubernetesConfig)
    access: AccessConfig = dataclasses.field(default_factory=AccessConfig)
    replica: str = ""
    """The name of this running copy; default: `$POD_NAME`, else the host's name. Two copies must not share one."""
    health: HealthConfig = dataclasses.field(default_factory=HealthConfig)
    limits: LimitsConfig = dataclasses.field(default_factory=LimitsConfig)
    timeouts: TimeoutsConfig = dataclasses.field(default_factory=TimeoutsConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)

    def problems(self) -> Iterator[tuple[str, str]]:
        """What concerns no section."""
        if self.replica and not _REPLICA.fullmatch(self.replica):
            yield "replica", "expected at most 253 visible ASCII characters without a comma"
