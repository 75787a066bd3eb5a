"""kas and agentk as they are, in one nursery with a scripted kube-apiserver and callers who see every byte.

    async with open_stack(folder) as stack:
        stack.cluster.on(b"/api/v1/pods", script)
        async with stack.caller("http2") as caller:
            answer = await caller.get(b"/api/v1/pods")

Both listeners have TLS. The agent can be killed and started again, and can be put behind a line that stops carrying.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import trio
import trustme
import yaml
from support.scripted_callers import Caller, RawCaller, connect, http1_caller, http2_caller
from support.scripted_cluster import ScriptedCluster

import agent.config
import server.config
from agent.agent import Agent
from agent.command_line import Settings, find_credentials
from agent.token import FixedToken
from operations.values import Address, Seconds
from server.agents import AgentGate
from server.exchange import Pipeline
from server.forwarding import Forwarder
from server.kas import Kas, KasAddresses
from server.listeners import Front
from server.metrics import ExchangeMetrics
from server.registry import Registry
from server.tokens import AGENT_PREFIX, USER_PREFIX, digest, new_token
from tunnel.connection import Connection
from tunnel.h2.windows import WindowBudget
from tunnel.transports.tls_contexts import client_context

Version = Literal["http1", "http2"]
VERSIONS: tuple[Version, ...] = ("http1", "http2")
LOOPBACK = Address("127.0.0.1", 0)
AGENT_ID = "edge"
PREFIX = b"/agents/edge/k8s"
START_SECONDS = 15.0
CLUSTER_TOKEN = "cluster-token-" + "c" * 20


class ObservedKas(Kas):
    """kas, with a view into what `run` keeps to itself."""

    registry: Registry
    budget: WindowBudget
    front: Front
    pipeline: Pipeline
    metrics: ExchangeMetrics

    def _make_pipeline(self, registry: Registry, forwarder: Forwarder, metrics: ExchangeMetrics) -> Pipeline:
        self.metrics = metrics
        return super()._make_pipeline(registry, forwarder, metrics)

    def _make_gate(self, registry: Registry, budget: WindowBudget) -> AgentGate:
        self.registry = registry
        self.budget = budget
        return super()._make_gate(registry, budget)

    def _make_front(self, pipeline: Pipeline, budget: WindowBudget) -> Front:
        self.pipeline = pipeline
        self.front = super()._make_front(pipeline, budget)
        return self.front


class Line:
    """What lies between agentk and kas: carries bytes, until it is told to stop, or to break."""

    def __init__(self, target: Callable[[], int]) -> None:
        self.port = 0
        self.accepted = 0
        self.is_frozen = False
        self._target = target
        self._scopes: set[trio.CancelScope] = set()
        self._thaw = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._serve, listeners)

    def freeze(self) -> None:
        """From now on nothing comes through on the connections that are here, and nobody is told."""
        self.is_frozen = True

    def let_new_ones_through(self) -> None:
        """Connections from now on carry again; those that were frozen stay so."""
        self.is_frozen = False
        self._thaw = trio.Event()

    def cut(self) -> None:
        """Break every connection."""
        for scope in list(self._scopes):
            scope.cancel()

    async def _serve(self, near: trio.SocketStream) -> None:
        self.accepted += 1
        number = self.accepted
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                    far = await trio.open_tcp_stream("127.0.0.1", self._target())
                    async with far, trio.open_nursery() as nursery:
                        nursery.start_soon(self._carry, near, far, number, nursery.cancel_scope)
                        nursery.start_soon(self._carry, far, near, number, nursery.cancel_scope)
            finally:
                self._scopes.discard(scope)

    async def _carry(
        self, source: trio.SocketStream, sink: trio.SocketStream, number: int, both: trio.CancelScope
    ) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(262_144):
                if self.is_frozen:
                    await trio.sleep_forever()
                await sink.send_all(data)
        if self.is_frozen:
            await trio.sleep_forever()
        both.cancel()


class Access:
    """The access file, and the tokens whose hashes are in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.agent_token = new_token(AGENT_PREFIX)
        self.tokens: dict[str, str] = {}
        self.agents: list[dict[str, Any]] = [{"id": AGENT_ID, "tokens": [{"sha256": digest(self.agent_token)}]}]
        self.users: list[dict[str, Any]] = []
        self.add_user("alice", **{"as": {"groups": ["developers"], "uid": "17", "extra": {"team": ["red"]}}})
        self.add_user("admin", mode="agent")
        self.add_user("viewer", role="read-only")
        self.write()

    def add_user(self, name: str, *, agent: str = AGENT_ID, expires: str | None = None, **grant: Any) -> str:
        """Another user; returns the token. Call `write` afterwards."""
        token = self.tokens[name] = new_token(USER_PREFIX)
        record: dict[str, Any] = {"sha256": digest(token)}
        if expires is not None:
            record["expires"] = expires
        self.users.append({"name": name, "tokens": [record], "agents": [{"agent": agent, **grant}]})
        return token

    def remove_user(self, name: str) -> None:
        self.users = [user for user in self.users if user["name"] != name]

    def write(self) -> None:
        """Put the file in place in one step, as an operator's editor does."""
        new = self.path.with_suffix(".new")
        new.write_text(yaml.safe_dump({"agents": self.agents, "users": self.users}))
        new.replace(self.path)


@functools.cache
def authority() -> trustme.CA:
    """One authority for the whole run."""
    return trustme.CA()


@functools.cache
def _certificate() -> trustme.LeafCert:
    return authority().issue_cert("127.0.0.1", "localhost", "kas.example.com")


def authority_pem() -> str:
    return authority().cert_pem.bytes().decode()


def cluster_context() -> ssl.SSLContext:
    """TLS for a scripted kube-apiserver."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _certificate().configure_cert(context)
    return context


@functools.cache
def caller_context(*alpn: str) -> ssl.SSLContext:
    return client_context(ca_data=authority_pem(), system_cas=False, alpn=alpn)


@dataclasses.dataclass
class Stack:
    """Everything that runs."""

    folder: Path
    cluster: ScriptedCluster
    access: Access
    kas: ObservedKas
    addresses: KasAddresses
    line: Line | None
    agent_config: agent.config.AgentConfig
    _nursery: trio.Nursery
    _cluster_scope: trio.CancelScope
    _agent_scope: trio.CancelScope | None = None
    _agent_gone: trio.Event | None = None
    agent: Agent = dataclasses.field(init=False)

    async def stop_cluster(self) -> None:
        """The kube-apiserver is no more: its connections are closed, and its port refuses."""
        self._cluster_scope.cancel()
        await until(lambda: self.cluster.open_connections == 0)

    # --- agentk ------------------------------------------------------------------------------------

    async def start_agent(self) -> None:
        """Start agentk, and return once kas has its tunnel."""
        self.agent = Agent(
            Settings(
                config=self.agent_config,
                token=FixedToken(self.access.agent_token, "a test"),
                credentials=find_credentials(self.agent_config.kubernetes, {}),
            )
        )
        with trio.fail_after(START_SECONDS):
            await self._nursery.start(self._run_agent)
            await self.wait_connected()

    async def _run_agent(self, *, task_status: trio.TaskStatus[None]) -> None:
        gone = self._agent_gone = trio.Event()
        try:
            with trio.CancelScope() as self._agent_scope:
                await self.agent.run(task_status=task_status)
        finally:
            gone.set()

    async def wait_connected(self) -> None:
        """Return once kas has a tunnel of the agent that takes requests."""
        with trio.fail_after(START_SECONDS):
            assert await self.kas.registry.wait_for_tunnel(AGENT_ID, START_SECONDS) is not None

    async def wait_redialled(self, lost: Connection) -> None:
        """Return once both ends have a tunnel again, and it is another one."""
        await until(lambda: [each.connection for each in self.kas.registry.tunnels_of(AGENT_ID)] not in ([], [lost]))
        await until(lambda: self.agent._supervisor.current is not None)

    async def kill_agent(self) -> None:
        """End agentk as SIGKILL would: connections are closed, and nothing is said on them."""
        assert self._agent_scope is not None
        assert self._agent_gone is not None
        self._agent_scope.cancel()
        await self._agent_gone.wait()

    @property
    def tunnel(self) -> Connection:
        """kas's end of the tunnel."""
        (found,) = self.kas.registry.tunnels_of(AGENT_ID)
        return found.connection

    @property
    def agent_end(self) -> Connection:
        """The agent's end of the tunnel."""
        current = self.agent._supervisor.current
        assert current is not None
        assert isinstance(current.connection, Connection)
        return current.connection

    # --- callers -----------------------------------------------------------------------------------

    def token(self, user: str = "alice") -> bytes:
        return self.access.tokens[user].encode()

    @contextlib.asynccontextmanager
    async def caller(
        self,
        version: Version = "http1",
        *,
        user: str = "alice",
        prefix: bytes = PREFIX,
        window_bytes: int = 65_535,
    ) -> AsyncIterator[Caller]:
        """A connection of a user to the proxy listener."""
        port = self.addresses.proxy.port
        if version == "http1":
            async with http1_caller(port, caller_context(), prefix, self.token(user)) as one:
                yield one
        else:
            async with http2_caller(port, caller_context("h2"), prefix, self.token(user), window_bytes) as two:
                yield two

    @contextlib.asynccontextmanager
    async def raw(self, *alpn: str) -> AsyncIterator[RawCaller]:
        """A TLS connection to the proxy listener on which a test writes bytes."""
        raw = await connect(self.addresses.proxy.port, caller_context(*alpn))
        try:
            yield raw
        finally:
            raw.abort()

    def head(self, method: bytes, path: bytes, *lines: bytes, user: str = "alice", prefix: bytes = PREFIX) -> bytes:
        """An HTTP/1.1 request head as bytes."""
        fields = b"".join(line + b"\r\n" for line in lines)
        return b"%b %b%b HTTP/1.1\r\nHost: kas.example.com\r\nAuthorization: Bearer %b\r\n%b\r\n" % (
            method,
            prefix,
            path,
            self.token(user),
            fields,
        )

    # --- what is left ------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Return once no exchange is under way on either end of the tunnel."""
        await until(lambda: self.tunnel.open_streams == 0 and self.agent_end.open_streams == 0)
        await until(lambda: not self.agent._pool._busy)

    def held_bytes(self) -> tuple[int, int]:
        """What kas and agentk hold for others, by their own account."""
        return self.kas.budget.used_bytes, self.agent._budget.used_bytes


async def _run_within(
    scope: trio.CancelScope, run: Callable[..., Awaitable[None]], *, task_status: trio.TaskStatus[None]
) -> None:
    with scope:
        await run(task_status=task_status)


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Return once it is true. For what nobody announces; everything else is waited for."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - nobody announces it
            await trio.sleep(0.005)


def open_files() -> int:
    """File descriptors of this process."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def open_tasks() -> int:
    """Tasks of this loop."""
    return trio.lowlevel.current_statistics().tasks_living


def _write_kubeconfig(path: Path, cluster: ScriptedCluster, *, tls: bool) -> None:
    server_url = f"{'https' if tls else 'http'}://127.0.0.1:{cluster.port}"
    entry: dict[str, Any] = {"server": server_url}
    if tls:
        authority_file = path.with_name("cluster-ca.pem")
        authority_file.write_text(authority_pem())
        entry["certificate-authority"] = str(authority_file)
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "scripted",
        "clusters": [{"name": "scripted", "cluster": entry}],
        "users": [{"name": "scripted", "user": {"token": CLUSTER_TOKEN}}],
        "contexts": [{"name": "scripted", "context": {"cluster": "scripted", "user": "scripted"}}],
    }
    path.write_text(yaml.safe_dump(document))


def _kas_config(folder: Path, access_file: Path, **changes: Any) -> server.config.KasConfig:
    certificate, key = folder / "kas.pem", folder / "kas.key"
    leaf = _certificate()
    certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    key.write_bytes(leaf.private_key_pem.bytes())
    tls = server.config.TlsConfig(certificate_file=certificate, key_file=key)
    proxy = changes.pop("proxy", {})
    timeouts = server.config.TimeoutsConfig(**{"drain": Seconds(0.5), **changes.pop("timeouts", {})})
    return server.config.KasConfig(
        id="kas-scripted",
        agents=server.config.AgentListenerConfig(address=LOOPBACK, tls=tls),
        proxy=server.config.ProxyConfig(address=LOOPBACK, tls=tls, domain="example.com", **proxy),
        operations=server.config.OperationsConfig(address=LOOPBACK),
        access=server.config.AccessConfig(file=access_file, **changes.pop("access", {})),
        timeouts=timeouts,
        **changes,
    )


@contextlib.asynccontextmanager
async def open_stack(
    folder: Path,
    *,
    kas: dict[str, Any] | None = None,
    agent_timeouts: dict[str, float] | None = None,
    agent_limits: dict[str, int] | None = None,
    scheme: Literal["https", "wss"] = "https",
    cluster_tls: bool = False,
    with_line: bool = False,
    with_agent: bool = True,
    prepare: Callable[[Access], None] | None = None,
) -> AsyncIterator[Stack]:
    """Everything running for the length of the block, on ports of its own. ``prepare`` may add to the access file."""
    cluster = ScriptedCluster(tls=cluster_context() if cluster_tls else None)
    access = Access(folder / "access.yaml")
    if prepare is not None:
        prepare(access)
        access.write()
    observed = ObservedKas(_kas_config(folder, access.path, **(kas or {})))
    async with trio.open_nursery() as nursery:
        cluster_scope = trio.CancelScope()
        await nursery.start(_run_within, cluster_scope, cluster.run)
        kubeconfig = folder / "kubeconfig"
        _write_kubeconfig(kubeconfig, cluster, tls=cluster_tls)
        addresses: KasAddresses = await nursery.start(observed.run)
        line = Line(lambda: addresses.agents.port) if with_line else None
        if line is not None:
            await nursery.start(line.run)
        authority_file = folder / "ca.pem"
        authority_file.write_text(authority_pem())
        port = line.port if line is not None else addresses.agents.port
        config = agent.config.AgentConfig(
            kas=agent.config.KasConfig(address=f"{scheme}://127.0.0.1:{port}", ca_file=authority_file),
            kubernetes=agent.config.KubernetesConfig(kubeconfig=kubeconfig),
            access=agent.config.AccessConfig(modes=("impersonate", "agent")),
            replica="replica-1",
            health=agent.config.HealthConfig(address=LOOPBACK),
            limits=agent.config.LimitsConfig(**(agent_limits or {})),
            timeouts=agent.config.TimeoutsConfig(
                **{"reconnect": Seconds(0.3), **{k: Seconds(v) for k, v in (agent_timeouts or {}).items()}}
            ),
        )
        stack = Stack(folder, cluster, access, observed, addresses, line, config, nursery, cluster_scope)
        if with_agent:
            await stack.start_agent()
        yield stack
        nursery.cancel_scope.cancel()
