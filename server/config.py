"""The configuration of kas. The defaults and the text below each field are its documentation.

`KAS__SECTION__KEY` in the environment overrides a key of the file, flags override both. ``kas.example.yaml`` beside
this module has every key with its default.
"""

# ruff: noqa: RUF009 - the calls in defaults make frozen values and plain numbers

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from operations.logs import LogConfig
from operations.structuring import Range
from operations.values import NEVER, Address, ByteCount, Seconds

ENVIRONMENT_PREFIX = "KAS"

_DOMAIN = re.compile(r"(?=.{1,190}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_PATH_PREFIX = re.compile(r"/(?:[A-Za-z0-9._~-]+/)*[A-Za-z0-9._~-]*")
_KAS_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """TLS of a listener. The files are read again when they change."""

    certificate_file: Path
    """The certificate chain in PEM, the server's own certificate first."""
    key_file: Path
    """The private key in PEM, without a passphrase."""
    client_ca_file: Path | None = None
    """Where it is given, clients must present a certificate that one of these authorities signed."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AgentListenerConfig:
    """Where agents dial in."""

    address: Address = Address("127.0.0.1", 8150)
    """Host and port."""
    tls: TlsConfig | None = None
    """Required, unless the address is a loopback one or `plaintext` is set."""
    plaintext: bool = False
    """Listen without TLS on an address that others reach: only where something in front ends TLS."""
    max_connections: Annotated[int, Range(1)] = 10_000
    """Connections at the same time, those in their handshake included; further ones wait in the kernel's queue."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FrontLimits:
    """What callers may send. A larger request is refused with the status that HTTP has for it."""

    head_bytes: Annotated[ByteCount, Range(8192, 1_048_576)] = ByteCount(65_536)
    """The request head, target included (431)."""
    head_lines: Annotated[int, Range(32, 10_000)] = 200
    """Field lines in a request head (431)."""
    target_bytes: Annotated[ByteCount, Range(1024, 1_048_576)] = ByteCount(32_768)
    """The request target (414)."""
    streams_per_connection: Annotated[int, Range(1, 10_000)] = 250
    """HTTP/2 requests at the same time on one connection; Go clients open another one at the limit."""
    strangers_answers: Annotated[int, Range(1)] = 100
    """Answers after which a connection closes that never presented a working credential."""
    strangers_time: Annotated[Seconds, Range(1)] = Seconds(30.0)
    """Age at which a connection closes that never presented a working credential."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProxyConfig:
    """Where kubectl and other clients of clusters come in."""

    address: Address = Address("127.0.0.1", 8154)
    """Host and port."""
    tls: TlsConfig | None = None
    """Required, unless the address is a loopback one or `plaintext` is set."""
    plaintext: bool = False
    """Listen without TLS on an address that others reach: only where something in front ends TLS."""
    path_prefix: str = "/k8s-proxy/"
    """The path of clusters whose agent is named in the token, `Authorization: Bearer pat:<agent>:<token>`."""
    domain: str = ""
    """Where it is given, `<agent>.k8s.<domain>` addresses a cluster by host name; the certificate has to cover it."""
    max_connections: Annotated[int, Range(1)] = 10_000
    """Connections at the same time; further ones wait in the kernel's queue."""
    limits: FrontLimits = dataclasses.field(default_factory=FrontLimits)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Shapes that a type alone does not express."""
        if not _PATH_PREFIX.fullmatch(self.path_prefix) or "/../" in f"{self.path_prefix}/":
            yield "path_prefix", "expected a path such as /k8s-proxy/, of letters, digits, '-', '.', '_' and '~'"
        elif self.path_prefix.rstrip("/").split("/")[1:2] == ["agents"]:
            yield "path_prefix", "must not begin with /agents/, which addresses agents by path"
        if self.domain and not _DOMAIN.fullmatch(self.domain):
            yield "domain", "expected a domain name in lower case such as example.com, without a wildcard"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OperationsConfig:
    """Health and metrics. Whoever reaches this sees names of agents, and no credentials are asked for."""

    address: Address = Address("127.0.0.1", 8151)
    """Host and port."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AccessConfig:
    """Who may come in."""

    file: Path = Path("/etc/moorline/access.yaml")
    """Agents, users, hashes of their tokens, and grants. It is read again when it changes."""
    exchanges_per_credential: Annotated[int, Range(1)] = 2_000
    """Requests, watches and sessions of one token at the same time (429 above)."""
    starts_per_second: Annotated[int, Range(1)] = 1_000
    """Requests that one token may start per second over ten seconds (429 above), so that none can storm an agent."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TimeoutsConfig:
    """How long kas waits, and for what."""

    upstream_head: Annotated[Seconds, Range(1)] = Seconds(90.0)
    """For the head of a response, except to watches, followed logs and upgrades. kube-apiserver itself gives up after
    60 seconds, and its answer says more."""
    wait_for_agent: Annotated[Seconds, Range(0, 60)] = Seconds(0.0)
    """For an agent that is not connected to come back, before the answer is 503."""
    stream_slot: Annotated[Seconds, Range(0, 60)] = Seconds(1.0)
    """For a place among the streams of an agent that is at its limit, before the answer is 503."""
    handshake: Annotated[Seconds, Range(1, 60)] = Seconds(10.0)
    """For TLS, and for an agent to introduce itself."""
    drain: Annotated[Seconds, Range(0)] = Seconds(60.0)
    """On SIGTERM: for what runs to end by itself. Then it is cut. Whoever stops kas has to wait longer than this."""
    ping_interval: Annotated[Seconds, Range(1, 3600)] = Seconds(15.0)
    """Between PINGs on tunnels and HTTP/2 connections."""
    ping: Annotated[Seconds, Range(1, 3600)] = Seconds(15.0)
    """For any sign of life after a PING, before the connection counts as dead."""
    idle: Annotated[Seconds, Range(1)] = Seconds(75.0)
    """For the next request on a connection of a caller that has none open."""
    tunnel_age: Annotated[Seconds, Range(60)] = NEVER
    """Age at which an agent is asked to dial again, so that tunnels spread over the instances behind a load balancer.
    What runs on the old tunnel stays there until it ends."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MemoryConfig:
    """What kas may hold for others."""

    buffered_bytes: Annotated[ByteCount, Range(16_777_216)] = ByteCount(268_435_456)
    """Bytes in flight through kas, received and granted. Over it no window grows; at twice as much, the streams that
    stall longest are reset."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KasConfig:
    """The configuration of kas."""

    id: str = ""
    """The name of this instance; default: the host's name and a random part."""
    agents: AgentListenerConfig = dataclasses.field(default_factory=AgentListenerConfig)
    proxy: ProxyConfig = dataclasses.field(default_factory=ProxyConfig)
    operations: OperationsConfig = dataclasses.field(default_factory=OperationsConfig)
    access: AccessConfig = dataclasses.field(default_factory=AccessConfig)
    timeouts: TimeoutsConfig = dataclasses.field(default_factory=TimeoutsConfig)
    memory: MemoryConfig = dataclasses.field(default_factory=MemoryConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Rules between sections."""
        if self.id and not _KAS_ID.fullmatch(self.id):
            yield "id", "expected at most 64 letters, digits, '-', '.' and '_'"
        listeners: dict[str, AgentListenerConfig | ProxyConfig] = {"agents": self.agents, "proxy": self.proxy}
        for name, listener in listeners.items():
            if listener.tls is None and not listener.plaintext and not listener.address.is_loopback:
                way_out = (
                    f"give certificate_file and key_file, or set {name}.plaintext where something in front ends TLS"
                )
                yield f"{name}.tls", f"tokens would cross {listener.address} in clear text: {way_out}"
            if listener.tls is not None and listener.plaintext:
                yield f"{name}.plaintext", f"contradicts {name}.tls; remove one of them"
        taken: dict[Address, str] = {}
        for name, address in (
            ("agents", self.agents.address),
            ("proxy", self.proxy.address),
            ("operations", self.operations.address),
        ):
            if address.port and taken.setdefault(address, name) != name:
                yield f"{name}.address", f"{address} is taken by {taken[address]}.address"
