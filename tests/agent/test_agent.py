"""The whole agent between a kas and a kube-apiserver, over TLS on both sides, in one process."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import trio
import trustme
from support.agent import UpstreamConnection

from agent.address import ApiServerAddress
from agent.agent import OWN_FILES, Agent, engine_config
from agent.command_line import Settings
from agent.config import AgentConfig, HealthConfig, KasConfig, TimeoutsConfig
from agent.credentials import ContextCredentials
from agent.kubeconfig import Blob, Cluster, KubeContext, User
from agent.token import TokenFile
from operations.values import Address, Seconds
from tunnel.acceptor import accept_tunnel
from tunnel.connection import Connection
from tunnel.errors import ConnectionEnded, ErrorCode, HandshakeError
from tunnel.h2.config import TUNNEL_REQUESTER
from tunnel.h2.engine import Role
from tunnel.handshake import Hello, Welcome
from tunnel.identity import FIELD_NAME, Identity, encode_identity
from tunnel.listening import listen, serve
from tunnel.messages import RequestHead, ResponseHead, field_value
from tunnel.streams import RequestStream
from tunnel.transports.base import Transport

CA = trustme.CA()
IDENTITY = (FIELD_NAME, encode_identity(Identity(mode="impersonate", user="alice")))


def server_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CA.issue_cert("127.0.0.1").configure_cert(context)
    return context


class FakeKas:
    """Accepts agents with the token ``mla_good`` and keeps their tunnels."""

    def __init__(self) -> None:
        self.port = 0
        self.hellos: list[Hello] = []
        self.tunnels: list[Connection] = []
        self._arrived = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:  # noqa: ASYNC128 - serve reports it
        listeners = await listen("127.0.0.1", 0)
        self.port = listeners[0].getsockname()[1]
        context = server_tls()
        await serve(listeners, self._serve, name="kas", tls=lambda: context, task_status=task_status)

    async def _serve(self, transport: Transport) -> None:
        async def decide(hello: Hello) -> Welcome:
            self.hellos.append(hello)
            if hello.token != "mla_good":
                raise HandshakeError("unknown token", status=401, reason="unauthorized")
            return Welcome(kas_id="kas-0", tunnel_id=f"t{len(self.hellos)}", agent_id="production")

        with contextlib.suppress(HandshakeError, ConnectionEnded):
            transport, *_ = await accept_tunnel(transport, decide=decide)
            connection = Connection(transport, role=Role.REQUESTER, config=TUNNEL_REQUESTER, name="kas")
            async with trio.open_nursery() as nursery:
                await nursery.start(connection.run)
                self.tunnels.append(connection)
                self._arrived.set()
                self._arrived = trio.Event()

    async def tunnel(self, number: int = 0) -> Connection:
        with trio.fail_after(10):
            while len(self.tunnels) <= number:
                await self._arrived.wait()
        return self.tunnels[number]


async def api_server(stream: trio.SSLStream[trio.SocketStream]) -> None:
    connection = UpstreamConnection(stream, _Requests())  # type: ignore[arg-type]
    with contextlib.suppress(trio.BrokenResourceError):
        while request := await connection.read_request():
            if b"watch" in request.target:
                await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
                await trio.sleep_forever()
            elif request.target.startswith(b"/api/v1/namespaces/kube-system"):
                await connection.answer(b'{"metadata": {"uid": "cluster-1"}}')
            else:
                await connection.answer(request.values(b"impersonate-user")[0] if b"who" in request.target else b"{}")


class _Requests:
    def __init__(self) -> None:
        self.requests: list[object] = []


@dataclasses.dataclass
class Bench:
    kas: FakeKas
    agent: Agent
    token: Path
    nursery: trio.Nursery
    ended: trio.Event

    async def start(self) -> None:
        async def run() -> None:
            await self.agent.run()
            self.ended.set()

        self.nursery.start_soon(run)


@contextlib.asynccontextmanager
async def bench(folder: Path, *, drain: float = 5.0, token: str = "mla_good") -> AsyncIterator[Bench]:
    (folder / "ca.pem").write_bytes(CA.cert_pem.bytes())
    (folder / "token").write_text(token)
    async with trio.open_nursery() as nursery:
        kas = FakeKas()
        await nursery.start(kas.run)
        context = server_tls()
        handler = functools.partial(trio.serve_ssl_over_tcp, api_server, 0, context, host="127.0.0.1")
        listeners = await nursery.start(handler)
        port = listeners[0].transport_listener.socket.getsockname()[1]
        cluster = Cluster(
            address=ApiServerAddress(scheme="https", host="127.0.0.1", port=port),
            authority=Blob(path=folder / "ca.pem"),
        )
        config = AgentConfig(
            kas=KasConfig(address=f"wss://127.0.0.1:{kas.port}", ca_file=folder / "ca.pem"),
            health=HealthConfig(address=Address("127.0.0.1", 0)),
            timeouts=TimeoutsConfig(drain=Seconds(drain)),
            replica="r-1",
        )
        settings = Settings(
            config=config,
            token=TokenFile(folder / "token"),
            credentials=ContextCredentials(
                KubeContext(name="c", cluster=cluster, user=User(token="sa")), environment={}
            ),
        )
        yield Bench(kas, Agent(settings), folder / "token", nursery, trio.Event())
        nursery.cancel_scope.cancel()


async def ask(kas: Connection, target: bytes, authority: bytes = b"kubernetes") -> tuple[ResponseHead, bytes]:
    stream = await kas.open(RequestHead(b"GET", target, authority, [IDENTITY], ended=True))
    head = await stream.receive_head()
    content = b""
    while data := await stream.receive():
        content += data
    return head, content


async def open_watch(kas: Connection) -> RequestStream:
    stream = await kas.open(RequestHead(b"GET", b"/api?watch=1", b"kubernetes", [IDENTITY], ended=True))
    assert (await stream.receive_head()).status == 200
    assert await stream.receive() == b"x"
    return stream


async def test_it_connects_introduces_itself_and_serves(tmp_path):
    async with bench(tmp_path) as agent:
        await agent.start()
        kas = await agent.kas.tunnel()
        (hello,) = agent.kas.hellos
        assert (hello.replica, hello.cluster, hello.origins) == ("r-1", "cluster-1", ("kubernetes", "agentk"))
        assert (await ask(kas, b"/who"))[1] == b"alice"
        info = json.loads((await ask(kas, b"/v1/info", b"agentk"))[1])

    assert info["replica"] == "r-1"
    assert info["process"] == hello.process
    assert info["cluster_uid"] == "cluster-1"
    assert info["access_modes"] == ["impersonate"]
    assert info["open_streams"] == 1
    assert info["tunnels"] == [{"kas": "kas-0", "tunnel": "t1", "leaving": False}]


async def test_when_kas_drains_the_watch_stays_on_the_old_tunnel_and_the_next_one_takes_over(tmp_path):
    async with bench(tmp_path) as agent:
        await agent.start()
        first = await agent.kas.tunnel()
        watch = await open_watch(first)
        first.drain(b"age")
        second = await agent.kas.tunnel(1)
        assert agent.kas.hellos[1].replaces == "t1"
        assert agent.kas.hellos[1].holds == ("kas-0",)
        assert (await ask(second, b"/who"))[1] == b"alice"
        assert first.open_streams == 1
        watch.reset(ErrorCode.CANCEL)
        with trio.fail_after(5):
            await first.wait_ended()


async def test_drain_waits_for_what_runs_but_takes_nothing_new(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    async with bench(tmp_path) as agent:
        await agent.start()
        kas = await agent.kas.tunnel()
        watch = await open_watch(kas)
        agent.agent.drain()
        agent.agent.drain()
        with trio.fail_after(5):
            while not kas.peer_is_going_away:  # noqa: ASYNC110 - there is no event for it at this end
                await trio.sleep(0.01)
        assert watch.failure is None
        assert not agent.ended.is_set()
        watch.reset(ErrorCode.CANCEL)
        with trio.fail_after(5):
            await agent.ended.wait()

    assert [record.message for record in caplog.records].count("draining") == 1


async def test_drain_cuts_what_still_runs_after_the_grace(tmp_path, caplog):
    async with bench(tmp_path, drain=0.2) as agent:
        await agent.start()
        kas = await agent.kas.tunnel()
        watch = await open_watch(kas)
        agent.agent.drain()
        with trio.fail_after(5):
            await agent.ended.wait()
            with pytest.raises((ConnectionEnded, trio.BrokenResourceError)):
                await watch.receive()

    assert "the drain took too long" in caplog.text


async def test_a_new_token_in_the_file_is_picked_up_without_a_restart(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("agent.supervisor.REFUSED_SECONDS", 0.1)
    async with bench(tmp_path, token="mla_old") as agent:
        agent.agent._supervisor._backoff._draw = lambda low, high: low
        await agent.start()
        while not agent.kas.hellos:  # noqa: ASYNC110 - the refusal is over when the next attempt begins
            await trio.sleep(0.01)
        agent.token.write_text("mla_good")
        kas = await agent.kas.tunnel()
        assert (await ask(kas, b"/who"))[1] == b"alice"

    assert "mla_" not in caplog.text
    refusals = [record for record in caplog.records if record.message == "not connected to kas"]
    assert len(refusals) == 1
    assert refusals[0].__dict__["check"].endswith("/token")


async def test_health_is_served_with_the_agent(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    async with bench(tmp_path) as agent:
        await agent.start()
        await agent.kas.tunnel()
        (address,) = [r.__dict__["address"] for r in caplog.records if r.message == "health listener"]
        async with httpx.AsyncClient(base_url=f"http://{address}") as client:
            assert (await client.get("/livez")).status_code == 200
            assert (await client.get("/readyz")).status_code == 200
            metrics = (await client.get("/metrics")).text

    assert "moorline_agent_connected 1\n" in metrics
    assert 'moorline_agent_tunnel_round_trip_seconds{kas="kas-0"}' in metrics


async def test_a_mode_outside_of_the_configuration_is_refused(tmp_path):
    async with bench(tmp_path) as agent:
        await agent.start()
        kas = await agent.kas.tunnel()
        field = (FIELD_NAME, encode_identity(Identity(mode="agent", user="alice")))
        stream = await kas.open(RequestHead(b"GET", b"/api", b"kubernetes", [field], ended=True))
        head = await stream.receive_head()

    assert head.status == 403
    assert field_value(head.fields, b"moorline-error") == b"identity-refused"


@pytest.mark.parametrize(
    ("configured", "open_files", "expected"), [(16_384, 1_000_000, 16_384), (16_384, 1024, 1024 - OWN_FILES)]
)
def test_fewer_file_descriptors_mean_fewer_requests_at_a_time(configured, open_files, expected, caplog):
    assert engine_config(configured, open_files).max_concurrent_streams == expected
    assert bool(caplog.records) == (expected < configured)
