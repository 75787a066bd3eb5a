"""Requests through a real tunnel to a kube-apiserver that misbehaves: what the kas end of the tunnel gets to see."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import AsyncIterator

import pytest
import trio
from support.agent import ScriptedApiServer, UpstreamConnection, pool_for, well_behaved
from support.tunnels import open_tunnel
from trio.testing import wait_all_tasks_blocked

from agent.dispatch import ApiServerOrigin, Dispatcher, filter_response_head
from agent.own_api import OwnApi
from agent.pool import ConnectionPool
from agent.upstream import UpstreamFailure
from tunnel.connection import Connection
from tunnel.errors import ErrorCode, StreamReset
from tunnel.identity import FIELD_NAME, Identity, encode_identity
from tunnel.messages import Fields, RequestHead, ResponseHead, field_value
from tunnel.streams import RequestStream

ALICE = Identity(mode="impersonate", user="alice", groups=("dev",), request_id="r-1")


@dataclasses.dataclass
class Bench:
    kas: Connection
    pool: ConnectionPool
    dispatcher: Dispatcher

    async def open(
        self,
        method: bytes = b"GET",
        target: bytes = b"/api",
        fields: Fields | None = None,
        *,
        identity: Identity | None = ALICE,
        authority: bytes = b"kubernetes",
        protocol: bytes | None = None,
        ended: bool = True,
        length: int | None = None,
    ) -> RequestStream:
        lines = list(fields or [])
        if identity is not None:
            lines.append((FIELD_NAME, encode_identity(identity)))
        if length is not None:
            lines.append((b"content-length", b"%d" % length))
        return await self.kas.open(RequestHead(method, target, authority, lines, protocol, length, ended))

    async def fetch(self, *args: object, **kwargs: object) -> tuple[ResponseHead, bytes]:
        stream = await self.open(*args, **kwargs)  # type: ignore[arg-type]
        try:
            head = await stream.receive_head()
            return head, await read_all(stream)
        finally:
            stream.reset(ErrorCode.CANCEL)


async def read_all(stream: RequestStream) -> bytes:
    content = b""
    while data := await stream.receive():
        content += data
    return content


@contextlib.asynccontextmanager
async def bench(upstream: ScriptedApiServer, *, head_seconds: float = 30.0) -> AsyncIterator[Bench]:
    async with pool_for(upstream) as pool:
        api_server = ApiServerOrigin(pool, head_seconds=head_seconds)
        origins = {b"kubernetes": api_server, b"agentk": OwnApi(lambda: {"replica": "r"})}
        dispatcher = Dispatcher(origins, modes=["impersonate"])
        async with trio.open_nursery() as nursery, open_tunnel(dispatcher.handle, begin=dispatcher.begin) as tunnel:
            await nursery.start(api_server.run)
            yield Bench(tunnel.requester, pool, dispatcher)
            nursery.cancel_scope.cancel()


async def send_for_ever(stream: RequestStream) -> None:
    while True:
        await stream.send(b"x" * 65536)


def word(head: ResponseHead) -> bytes | None:
    return field_value(head.fields, b"moorline-error")


async def test_a_request_arrives_as_the_user_with_the_agents_credentials():
    upstream = ScriptedApiServer()
    async with bench(upstream) as kas:
        head, body = await kas.fetch(b"GET", b"/a%2Fb//c?x=1;y&x", [(b"accept", b"*/*")])

    (request,) = upstream.requests

    assert (head.status, body) == (200, b"ok")
    assert request.target == b"/a%2Fb//c?x=1;y&x"
    assert [(name.lower(), value) for name, value in request.fields if name != b"Host"] == [
        (b"accept", b"*/*"),
        (b"impersonate-user", b"alice"),
        (b"impersonate-group", b"dev"),
        (b"authorization", b"Bearer agent-token"),
    ]


async def test_an_upload_without_a_length_is_chunked_and_one_with_a_length_is_not():
    upstream = ScriptedApiServer()
    async with bench(upstream) as kas:
        for length in (None, 10):
            stream = await kas.open(b"POST", b"/api", ended=False, length=length)
            await stream.send(b"01234")
            await stream.send(b"56789")
            await stream.finish()
            assert (await stream.receive_head()).status == 200
            await read_all(stream)

    assert [request.body for request in upstream.requests] == [b"0123456789"] * 2
    assert upstream.requests[0].values(b"transfer-encoding") == [b"chunked"]
    assert upstream.requests[1].values(b"content-length") == [b"10"]
    assert upstream.accepted == 1


async def test_an_early_413_arrives_while_the_body_is_still_being_sent():
    async def too_large(connection: UpstreamConnection) -> None:
        await connection.read_head()
        await connection.answer(b"too large", b"413 Request Entity Too Large", b"Connection: close\r\n")
        await trio.sleep_forever()

    async with bench(ScriptedApiServer(too_large, well_behaved)) as kas:
        stream = await kas.open(b"POST", b"/api", ended=False, length=100_000_000)
        await stream.send(b"x" * 1000)
        assert (await stream.receive_head()).status == 413
        assert await read_all(stream) == b"too large"
        with pytest.raises(StreamReset) as caught:
            await send_for_ever(stream)
        assert caught.value.code == ErrorCode.NO_ERROR
        assert (await kas.fetch())[0].status == 200
        assert kas.pool.statistics().busy == 0


async def test_expect_holds_the_body_back_until_100_comes():
    async def says_continue(connection: UpstreamConnection) -> None:
        request = await connection.read_head()
        assert request is not None
        assert request.values(b"expect") == [b"100-continue"]
        await connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await connection.read_body(request) == b"body"
        await connection.answer()

    async with bench(ScriptedApiServer(says_continue)) as kas:
        stream = await kas.open(b"POST", b"/api", [(b"expect", b"100-continue")], ended=False, length=4)
        assert (await stream.receive_head()).status == 100
        await stream.send(b"body")
        await stream.finish()
        assert (await stream.receive_head()).status == 200


async def test_expect_does_not_hang_on_an_upstream_that_never_says_100():
    async def ignores_expect(connection: UpstreamConnection) -> None:
        assert await connection.read_request() is not None
        await connection.answer()

    async with bench(ScriptedApiServer(ignores_expect)) as kas:
        stream = await kas.open(b"POST", b"/api", [(b"expect", b"100-continue")], ended=False, length=4)
        with trio.fail_after(5):
            assert (await stream.receive_head()).status == 100
            await stream.send(b"body")
            await stream.finish()
            assert (await stream.receive_head()).status == 200


async def test_an_upgrade_carries_bytes_both_ways_the_glued_ones_first():
    async def upgrades(connection: UpstreamConnection) -> None:
        request = await connection.read_head()
        assert request is not None
        assert (request.method, request.values(b"upgrade")) == (b"GET", [b"websocket"])
        assert request.values(b"content-length") == []
        await connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: abc=\r\n\r\nglued"
        )
        assert await connection.read_exactly(4) == b"ping"
        await connection.send(b"pong")
        await connection.stream.send_eof()
        assert await connection.read_exactly(3) == b"bye"

    async with bench(ScriptedApiServer(upgrades)) as kas:
        stream = await kas.open(target=b"/exec", fields=[(b"sec-websocket-key", b"k")], protocol=b"websocket")
        head = await stream.receive_head()
        assert head.status == 101
        assert field_value(head.fields, b"sec-websocket-accept") == b"abc="
        bytes_stream = stream.take_stream()
        received = b""
        while len(received) < 5:
            received += await bytes_stream.receive_some()
        assert received == b"glued"
        await bytes_stream.send_all(b"ping")
        assert await bytes_stream.receive_some() == b"pong"
        assert await bytes_stream.receive_some() == b""
        await bytes_stream.send_all(b"bye")
        await bytes_stream.aclose()


@pytest.mark.parametrize("status", [b"400 Bad Request", b"403 Forbidden", b"404 Not Found", b"500 Oops"])
async def test_an_upgrade_that_is_refused_is_relayed_with_its_status_and_body(status):
    async def refuses(connection: UpstreamConnection) -> None:
        await connection.read_head()
        await connection.answer(b"no such container", status)
        assert await connection.read_head() is None  # closed, and not left open as a raw tunnel

    upstream = ScriptedApiServer(refuses)
    async with bench(upstream) as kas:
        head, body = await kas.fetch(b"POST", b"/exec", protocol=b"SPDY/3.1")

        assert (b"%d" % head.status, body) == (status[:3], b"no such container")
        assert word(head) is None
        assert kas.pool.statistics().idle == 0


async def test_a_200_in_answer_to_an_upgrade_is_a_502():
    upstream = ScriptedApiServer(well_behaved)
    async with bench(upstream) as kas:
        head, _ = await kas.fetch(target=b"/exec", protocol=b"websocket")

        assert (head.status, word(head)) == (502, b"upstream-unreachable")


async def test_an_upgrade_that_is_never_answered_is_reset_and_sent_once():
    """kubectl repeats the command after any HTTP status."""

    async def dies(connection: UpstreamConnection) -> None:
        await connection.read_head()
        connection.kill()

    upstream = ScriptedApiServer(dies)
    async with bench(upstream) as kas:
        with pytest.raises(StreamReset):
            await kas.fetch(target=b"/exec", protocol=b"websocket")

    assert upstream.accepted == 1


@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_a_connection_that_dies_before_a_response_is_a_502_that_says_so(method):
    async def dies(connection: UpstreamConnection) -> None:
        await connection.read_request()
        connection.kill()

    upstream = ScriptedApiServer(dies)
    async with bench(upstream) as kas:
        head, body = await kas.fetch(method)

    assert (head.status, word(head)) == (502, b"upstream-unreachable")
    assert b"kube-apiserver" in body
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nxyz\r\n",
    ],
    ids=["length", "chunked", "a broken chunk"],
)
async def test_a_body_that_is_cut_off_is_a_reset_and_never_a_clean_end(answer):
    async def truncates(connection: UpstreamConnection) -> None:
        await connection.read_request()
        await connection.send(answer)

    async with bench(ScriptedApiServer(truncates)) as kas:
        stream = await kas.open()
        assert (await stream.receive_head()).status == 200
        with pytest.raises(StreamReset):
            await read_all(stream)
        assert kas.pool.statistics().idle == 0


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"]
)
async def test_an_answer_that_is_no_http_is_a_502(answer):
    async def nonsense(connection: UpstreamConnection) -> None:
        await connection.read_request()
        await connection.send(answer + b"\r\n" * 2)

    async with bench(ScriptedApiServer(nonsense)) as kas:
        head, _ = await kas.fetch()

        assert (head.status, word(head)) == (502, b"upstream-unreachable")


async def silent(connection: UpstreamConnection) -> None:
    await connection.read_request()
    assert await connection.read_head() is None  # until the agent gives up


async def test_an_ordinary_request_that_is_not_answered_in_time_is_a_504_and_given_up():
    async with bench(ScriptedApiServer(silent), head_seconds=0.2) as kas:
        head, body = await kas.fetch()

        assert (head.status, word(head)) == (504, b"upstream-timeout")
        assert b"0.2 s" in body
        assert kas.pool.statistics().busy == 0


@pytest.mark.parametrize("target", [b"/api/v1/pods?watch=true", b"/api/v1/namespaces/d/pods/p/log?follow=1"])
async def test_a_watch_may_be_silent_for_as_long_as_it_likes(target):
    async with bench(ScriptedApiServer(silent), head_seconds=0.05) as kas:
        stream = await kas.open(target=target)
        with trio.move_on_after(0.5) as patience:
            await stream.receive_head()

        assert patience.cancelled_caught
        stream.reset(ErrorCode.CANCEL)


async def test_a_caller_who_gives_up_closes_the_upstream_connection():
    closed = trio.Event()

    async def watch(connection: UpstreamConnection) -> None:
        await connection.read_request()
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nevent\r\n")
        with contextlib.suppress(trio.BrokenResourceError):
            await connection.read_head()
        closed.set()

    async with bench(ScriptedApiServer(watch)) as kas:
        stream = await kas.open(target=b"/api/v1/pods?watch=1")
        await stream.receive_head()
        assert await stream.receive() == b"event"
        stream.reset(ErrorCode.CANCEL)
        with trio.fail_after(5):
            await closed.wait()
        assert kas.pool.statistics().busy == 0


async def test_an_unreachable_kube_apiserver_is_logged_when_it_goes_and_when_it_comes_back(caplog):
    caplog.set_level(logging.INFO, logger="agent.dispatch")
    upstream = ScriptedApiServer()
    async with bench(upstream) as kas:
        dial = kas.pool._dial

        async def refuse(_: object) -> None:
            raise ConnectionRefusedError(111, "Connection refused")

        kas.pool._dial = refuse  # type: ignore[assignment]
        for _ in range(3):
            head, body = await kas.fetch()
            assert (head.status, word(head)) == (502, b"upstream-unreachable")
            assert b"Connection refused" in body
        kas.pool._dial = dial
        await kas.fetch()
        await kas.fetch()

    assert [record.message for record in caplog.records] == [
        "the kube-apiserver does not answer",
        "the kube-apiserver answers again",
    ]


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"identity": None}, 403, b"identity-refused"),
        ({"identity": Identity(mode="agent", user="alice")}, 403, b"identity-refused"),
        ({"identity": Identity(mode="impersonate")}, 403, b"identity-refused"),
        ({"fields": [(b"impersonate-user", b"root")]}, 403, b"identity-refused"),
        ({"fields": [(b"authorization", b"Bearer x")]}, 403, b"identity-refused"),
        ({"authority": b"prometheus.monitoring:9090"}, 404, b"unknown-origin"),
        ({"authority": b"agentk", "identity": None}, 403, b"identity-refused"),
        ({"authority": b"agentk", "target": b"/v2"}, 404, b"not-found"),
        ({"authority": b"agentk", "target": b"/v1/info", "method": b"POST"}, 405, b"bad-request"),
    ],
)
async def test_what_the_agent_refuses_is_never_sent_on(changes, status, reason, caplog):
    upstream = ScriptedApiServer()
    async with bench(upstream) as kas:
        head, body = await kas.fetch(**changes)

    assert (head.status, word(head)) == (status, reason)
    assert 0 < len(body) <= 512
    assert upstream.requests == []


async def test_a_storm_of_refusals_is_one_line(caplog):
    async with bench(ScriptedApiServer()) as kas:
        for _ in range(20):
            await kas.fetch(identity=None)

        assert kas.dispatcher.refused == 20
        assert len(caplog.records) == 1


async def test_the_agent_says_who_it_is():
    async with bench(ScriptedApiServer()) as kas:
        head, body = await kas.fetch(target=b"/v1/info", authority=b"agentk")
        assert head.status == 200
        assert json.loads(body) == {"replica": "r"}
        head, body = await kas.fetch(b"HEAD", b"/v1/info", authority=b"agentk")

        assert (head.status, body) == (200, b"")


def test_an_upstream_cannot_speak_as_the_agent():
    head = ResponseHead(
        200,
        [
            (b"connection", b"close, x-secret"),
            (b"x-secret", b"1"),
            (b"moorline-error", b"busy"),
            (b"Moorline_Error", b"busy"),
            (b"warning", b"a"),
            (b"warning", b"b"),
            (b"content-length", b"3"),
        ],
        3,
    )

    assert filter_response_head(head) == ResponseHead(
        200, [(b"warning", b"a"), (b"warning", b"b"), (b"content-length", b"3")], 3
    )


def test_an_ordinary_head_is_not_copied():
    head = ResponseHead(200, [(b"content-type", b"x"), (b"etag", b"y")])

    assert filter_response_head(head) is head


async def test_that_the_cluster_answers_again_is_noticed_where_requests_begin_without_a_task(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="agent.dispatch")
    async with bench(ScriptedApiServer()) as one:
        first, second = [await one.open() for _ in range(2)]
        for stream in (first, second):
            await stream.receive_head()
            await read_all(stream)
        await wait_all_tasks_blocked()
        origin = one.dispatcher._origins[b"kubernetes"]
        assert isinstance(origin, ApiServerOrigin)
        origin._note(UpstreamFailure("gone"))
        for _ in range(2):
            head, body = await one.fetch()
            assert (head.status, body) == (200, b"ok")
    assert [record.message for record in caplog.records] == [
        "the kube-apiserver does not answer",
        "the kube-apiserver answers again",
    ]


async def test_the_own_api_and_unknown_origins_begin_nothing() -> None:
    async with bench(ScriptedApiServer()) as one:
        for authority, status in ((b"agentk", 200), (b"elsewhere", 404)):
            head, _ = await one.fetch(target=b"/v1/info", authority=authority)
            assert head.status == status


async def test_a_second_request_with_a_wrong_identity_is_refused_as_the_first() -> None:
    async with bench(ScriptedApiServer()) as one:
        assert (await one.fetch())[0].status == 200
        head, _ = await one.fetch(identity=None)
        assert head.status >= 400
        assert one.dispatcher.refused == 1


@pytest.mark.parametrize("method", [b"POST", b"DELETE"])
async def test_what_must_not_be_repeated_does_not_begin_directly(method: bytes) -> None:
    async with bench(ScriptedApiServer()) as one:
        assert (await one.fetch())[0].status == 200
        reused = one.pool.statistics().reused
        assert (await one.fetch(method))[0].status == 200
        assert one.pool.statistics().reused == reused + 1
        assert one.pool.statistics().busy == 0
