"""The pool against a kube-apiserver that misbehaves on purpose: what is reused, what is repeated, what never is."""

from __future__ import annotations

import ssl

import pytest
import trio
from support.agent import FixedCredentials, ScriptedApiServer, UpstreamConnection, pool_for, well_behaved
from support.http1 import MemoryTransport, memory_transport_pair

from agent.address import ApiServerAddress
from agent.credentials import Access
from agent.exec_plugin import CredentialsUnavailable
from agent.pool import ConnectionPool, PooledExchange, PoolLimits
from agent.upstream import UpstreamBusy, UpstreamTimeout, UpstreamUnreachable
from tunnel.errors import ConnectionEnded, ErrorCode, HandshakeError, TunnelError
from tunnel.messages import RequestHead


def get(target: bytes = b"/api", method: bytes = b"GET") -> RequestHead:
    return RequestHead(method, target, b"", [(b"accept", b"*/*")], ended=True)


def post(length: int | None = None) -> RequestHead:
    return RequestHead(b"POST", b"/api", b"", [], content_length=length)


async def read_all(exchange: PooledExchange) -> bytes:
    content = b""
    while data := await exchange.body.receive():
        content += data
    return content


async def fetch(pool: ConnectionPool, request: RequestHead | None = None, body: bytes = b"") -> tuple[int, bytes]:
    exchange = await pool.open(request or get())
    try:
        if body:
            await exchange.writer.send(body)
            await exchange.writer.finish()
        head = await exchange.receive_head()
        return head.status, await read_all(exchange)
    finally:
        exchange.reset(ErrorCode.CANCEL)


async def test_a_second_request_goes_over_the_same_connection():
    upstream = ScriptedApiServer()
    async with pool_for(upstream) as pool:
        for _ in range(3):
            assert await fetch(pool) == (200, b"ok")

        assert upstream.accepted == 1
        assert pool.statistics().reused == 2


async def test_host_and_credentials_are_the_agents_and_the_prefix_goes_before_the_target():
    upstream = ScriptedApiServer()
    async with pool_for(upstream, prefix=b"/k8s/clusters/c1") as pool:
        await fetch(pool, get(b"/a%2Fb//c/../d?x=1;y=2&x=3"))

    (request,) = upstream.requests

    assert request.target == b"/k8s/clusters/c1/a%2Fb//c/../d?x=1;y=2&x=3"
    assert request.values(b"host") == [b"127.0.0.1:%d" % upstream.port]
    assert request.values(b"authorization") == [b"Bearer agent-token"]


async def test_requests_at_the_same_time_have_a_connection_each_and_the_last_used_is_the_next():
    upstream = ScriptedApiServer()
    async with pool_for(upstream) as pool:
        first, second = await pool.open(get()), await pool.open(get())
        for exchange in (first, second):
            await exchange.receive_head()
            await read_all(exchange)
        first_client, second_client = first._client, second._client
        first.reset(ErrorCode.CANCEL)
        second.reset(ErrorCode.CANCEL)
        third = await pool.open(get())

        assert upstream.accepted == 2
        assert third._client is second_client
        assert third._client is not first_client

        third.reset(ErrorCode.CANCEL)


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 50\r\nETag: x\r\n\r\n"],
    ids=["204", "304"],
)
async def test_answers_without_a_body_leave_the_connection_reusable(answer):
    async def script(connection: UpstreamConnection) -> None:
        while await connection.read_request():
            await connection.send(answer)

    upstream = ScriptedApiServer(script)
    async with pool_for(upstream) as pool:
        for _ in range(3):
            _, body = await fetch(pool)
            assert body == b""

        assert upstream.accepted == 1


async def test_the_answer_to_head_has_a_length_and_no_body_and_the_next_answer_is_not_taken_for_it():
    async def script(connection: UpstreamConnection) -> None:
        while request := await connection.read_request():
            if request.method == b"HEAD":
                await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            else:
                await connection.answer(b"a body")

    upstream = ScriptedApiServer(script)
    async with pool_for(upstream) as pool:
        assert await fetch(pool, get(method=b"HEAD")) == (200, b"")
        assert await fetch(pool) == (200, b"a body")
        assert upstream.accepted == 1


async def test_a_connection_that_was_closed_while_idle_is_not_used():
    closed = trio.Event()

    async def answers_once(connection: UpstreamConnection) -> None:
        await connection.read_request()
        await connection.answer()
        await connection.stream.aclose()
        closed.set()

    upstream = ScriptedApiServer(answers_once, well_behaved)
    async with pool_for(upstream) as pool:
        await fetch(pool)
        await closed.wait()
        assert await fetch(pool, post(2), b"hi") == (200, b"ok")

    assert [request.method for request in upstream.requests] == [b"GET", b"POST"]
    assert pool.statistics().repeated == 0


SMUGGLED = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nsmuggle"


@pytest.mark.parametrize("at_once", [True, False], ids=["glued to the answer", "after the answer"])
async def test_a_connection_with_unexpected_bytes_is_not_used_again(at_once):
    answered = trio.Event()

    async def sends_two_answers(connection: UpstreamConnection) -> None:
        await connection.read_request()
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        await connection.send(answer + SMUGGLED if at_once else answer)
        if not at_once:
            await answered.wait()
            await connection.send(SMUGGLED)
        await connection.read_request()

    upstream = ScriptedApiServer(sends_two_answers, well_behaved)
    async with pool_for(upstream) as pool:
        assert await fetch(pool) == (200, b"ok")
        if not at_once:
            answered.set()
            await trio.lowlevel.wait_readable(pool._idle[0].client._transport._sock)
        assert await fetch(pool) == (200, b"ok")
        assert upstream.accepted == 2


async def dies_at_second_request(connection: UpstreamConnection) -> None:
    """The race: the server closes an idle connection at the moment at which a request is sent."""
    await connection.read_request()
    await connection.answer()
    await connection.read_request()
    await connection.stream.aclose()


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS"])
async def test_a_safe_request_is_sent_once_more_when_a_reused_connection_ends_before_an_answer(method):
    upstream = ScriptedApiServer(dies_at_second_request, well_behaved)
    async with pool_for(upstream) as pool:
        await fetch(pool)
        status, _ = await fetch(pool, get(b"/second", method))

    assert status == 200
    assert [request.target for request in upstream.requests] == [b"/api", b"/second", b"/second"]
    assert pool.statistics().repeated == 1


@pytest.mark.parametrize("request_head", [post(2), post(0), get(method=b"DELETE"), get(method=b"PUT")])
async def test_what_may_change_something_is_never_sent_twice(request_head):
    request_head.ended = request_head.ended or request_head.content_length == 0
    upstream = ScriptedApiServer(dies_at_second_request, well_behaved)
    async with pool_for(upstream) as pool:
        await fetch(pool)
        with pytest.raises(ConnectionEnded):
            await fetch(pool, request_head, b"hi" if request_head.content_length else b"")

        assert len(upstream.requests) == 2
        assert upstream.accepted == 1


async def test_a_get_with_a_body_is_never_sent_twice():
    upstream = ScriptedApiServer(dies_at_second_request, well_behaved)
    async with pool_for(upstream) as pool:
        await fetch(pool)
        with pytest.raises(ConnectionEnded):
            await fetch(pool, RequestHead(b"GET", b"/", b"", [], content_length=2), b"hi")

    assert len(upstream.requests) == 2


async def test_a_fresh_connection_that_ends_before_an_answer_is_not_tried_again():
    async def dies(connection: UpstreamConnection) -> None:
        await connection.read_request()
        connection.kill()

    upstream = ScriptedApiServer(dies)
    async with pool_for(upstream) as pool:
        with pytest.raises(ConnectionEnded):
            await fetch(pool)

    assert upstream.accepted == 1


async def test_a_safe_request_is_repeated_once_and_not_twice():
    async def dies_at_once(connection: UpstreamConnection) -> None:
        await connection.read_request()

    upstream = ScriptedApiServer(dies_at_second_request, dies_at_once)
    async with pool_for(upstream) as pool:
        await fetch(pool)
        with pytest.raises(ConnectionEnded):
            await fetch(pool)

    assert upstream.accepted == 2


async def test_a_request_is_not_repeated_once_a_byte_of_the_response_was_here():
    async def half_a_head(connection: UpstreamConnection) -> None:
        await connection.read_request()
        await connection.answer()
        await connection.read_request()
        await connection.send(b"HTTP/1.1 200 O")

    upstream = ScriptedApiServer(half_a_head, well_behaved)
    async with pool_for(upstream) as pool:
        await fetch(pool)
        with pytest.raises(ConnectionEnded):
            await fetch(pool)

    assert upstream.accepted == 1


async def test_a_response_that_is_given_up_closes_its_connection():
    async def endless(connection: UpstreamConnection) -> None:
        await connection.read_request()
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        assert await connection.read_head() is None

    upstream = ScriptedApiServer(endless)
    async with pool_for(upstream) as pool:
        exchange = await pool.open(get())
        await exchange.receive_head()
        assert await exchange.body.receive() == b"abc"
        exchange.reset(ErrorCode.CANCEL)
        exchange.reset(ErrorCode.CANCEL)

        assert pool.statistics().busy == 0
        assert pool.statistics().idle == 0


async def test_a_body_that_is_cut_short_is_an_error_and_the_connection_is_closed():
    async def truncates(connection: UpstreamConnection) -> None:
        await connection.read_request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")

    upstream = ScriptedApiServer(truncates)
    async with pool_for(upstream) as pool:
        with pytest.raises(TunnelError):
            await fetch(pool)

        assert pool.statistics().idle == 0


async def test_an_upgrade_has_a_connection_of_its_own_which_never_comes_back():
    async def upgrades(connection: UpstreamConnection) -> None:
        request = await connection.read_head()
        assert request is not None
        assert request.values(b"upgrade") == [b"SPDY/3.1"]
        assert request.values(b"content-length") == [b"0"]
        assert request.values(b"transfer-encoding") == []
        await connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\nglued"
        )
        await connection.send(await connection.read_exactly(4))

    upstream = ScriptedApiServer(well_behaved, upgrades, well_behaved)
    async with pool_for(upstream) as pool:
        await fetch(pool)
        exchange = await pool.open(RequestHead(b"POST", b"/exec", b"", [], b"SPDY/3.1", ended=True))
        assert (await exchange.receive_head()).status == 101
        stream = exchange.take_stream()
        assert await stream.receive_some() == b"glued"
        await stream.send_all(b"echo")
        assert await stream.receive_some() == b"echo"
        await stream.aclose()
        exchange.reset(ErrorCode.CANCEL)

        assert pool.statistics().idle == 1
        await fetch(pool)
        assert upstream.accepted == 2


async def test_a_401_makes_the_agent_look_for_newer_credentials():
    async def refuses(connection: UpstreamConnection) -> None:
        while await connection.read_request():
            await connection.answer(status=b"401 Unauthorized")

    upstream = ScriptedApiServer(refuses)
    async with pool_for(upstream) as pool:
        assert (await fetch(pool))[0] == 401
        assert pool._credentials.rejections == 1


DEFAULTS = PoolLimits()


class MemoryUpstream:
    """Answers on transports in memory, for tests that move the clock."""

    def __init__(self) -> None:
        self.ends: list[MemoryTransport] = []
        self.failure: Exception | None = None
        self.stalls = False
        self.delay = 0.0

    async def dial(self, _: Access) -> MemoryTransport:
        await trio.sleep(self.delay)
        if self.stalls:
            await trio.sleep_forever()
        if self.failure is not None:
            raise self.failure
        near, far = memory_transport_pair()
        self.ends.append(far)
        return near

    async def answer(self, number: int = -1) -> None:
        await self.ends[number].send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def memory_pool(upstream: MemoryUpstream, limits: PoolLimits = DEFAULTS) -> tuple[ConnectionPool, FixedCredentials]:
    credentials = FixedCredentials(ApiServerAddress(scheme="https", host="api.test", port=443))
    return ConnectionPool(credentials, dial=upstream.dial, limits=limits), credentials


async def exchange_once(pool: ConnectionPool, upstream: MemoryUpstream) -> None:
    exchange = await pool.open(get())
    await upstream.answer()
    await exchange.receive_head()
    exchange.reset(ErrorCode.CANCEL)


async def test_idle_connections_are_closed_after_45_seconds_and_not_before(autojump_clock, nursery):
    upstream = MemoryUpstream()
    pool, _ = memory_pool(upstream)
    await nursery.start(pool.run)
    await exchange_once(pool, upstream)
    await trio.sleep(44)
    assert pool.statistics().idle == 1
    await trio.sleep(2)

    assert pool.statistics().idle == 0
    assert await upstream.ends[0].receive_some() != b""  # the request
    assert await upstream.ends[0].receive_some() == b""  # an end in order, not an abort


async def test_only_so_many_connections_stay_idle(autojump_clock, nursery):
    upstream = MemoryUpstream()
    pool, _ = memory_pool(upstream, PoolLimits(idle_connections=2))
    await nursery.start(pool.run)
    exchanges = [await pool.open(get()) for _ in range(4)]
    for number, exchange in enumerate(exchanges):
        await upstream.answer(number)
        await exchange.receive_head()
    for exchange in exchanges:
        exchange.reset(ErrorCode.CANCEL)

    assert pool.statistics().idle == 2
    assert pool.statistics().busy == 0


async def test_a_new_ca_or_client_certificate_means_new_connections(autojump_clock):
    upstream = MemoryUpstream()
    pool, credentials = memory_pool(upstream)
    await exchange_once(pool, upstream)
    credentials.set_token(b"rotated")
    await exchange_once(pool, upstream)
    assert len(upstream.ends) == 1  # a new token needs no new connection
    credentials.set_token(b"rotated", ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    await exchange_once(pool, upstream)

    assert len(upstream.ends) == 2


async def test_a_connection_that_is_not_accepted_in_time_is_a_timeout(autojump_clock):
    upstream = MemoryUpstream()
    upstream.stalls = True
    pool, _ = memory_pool(upstream)
    before = trio.current_time()
    with pytest.raises(UpstreamTimeout, match="10 s"):
        await pool.open(get())

    assert trio.current_time() - before == pytest.approx(10)
    assert pool.statistics().failed_dials == 1


async def test_dials_at_the_same_time_are_bounded(autojump_clock, nursery):
    upstream = MemoryUpstream()
    upstream.stalls = True
    pool, _ = memory_pool(upstream, PoolLimits(concurrent_dials=2))
    results: list[str] = []

    async def attempt() -> None:
        try:
            await pool.open(get())
        except UpstreamTimeout:
            results.append("timeout")

    for _ in range(5):
        nursery.start_soon(attempt)
    await trio.testing.wait_all_tasks_blocked()
    assert pool._dials.borrowed_tokens == 2
    await trio.sleep(11)

    assert results == ["timeout"] * 5
    assert pool._dials.borrowed_tokens == 0


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (ConnectionRefusedError(111, "Connection refused"), UpstreamUnreachable),
        (OSError(24, "Too many open files"), UpstreamBusy),
        (HandshakeError("the certificate has expired"), UpstreamUnreachable),
    ],
)
async def test_a_failed_dial_says_what_failed_and_where(failure, expected):
    upstream = MemoryUpstream()
    upstream.failure = failure
    pool, _ = memory_pool(upstream)
    with pytest.raises(expected) as caught:
        await pool.open(get())

    assert "https://api.test" in str(caught.value)
    assert (failure.strerror if isinstance(failure, OSError) else str(failure)) in str(caught.value)


async def test_without_credentials_nothing_is_sent():
    upstream = MemoryUpstream()
    pool, credentials = memory_pool(upstream)
    credentials.failure = CredentialsUnavailable("the plugin is not installed")
    with pytest.raises(UpstreamUnreachable, match="no credentials"):
        await pool.open(get())

    assert upstream.ends == []


async def test_a_request_that_is_given_up_while_it_is_sent_once_more_does_not_go_on(autojump_clock, nursery):
    """The deadline for its head has passed; nobody would end the second try."""
    upstream = MemoryUpstream()
    pool, _ = memory_pool(upstream)
    await exchange_once(pool, upstream)
    exchange = await pool.open(get())
    upstream.delay = 5.0
    upstream.ends[0].abort()
    results: list[type[Exception]] = []

    async def wait_for_head() -> None:
        try:
            await exchange.receive_head()
        except ConnectionEnded as exc:
            results.append(type(exc))

    nursery.start_soon(wait_for_head)
    await trio.sleep(1)
    exchange.reset(ErrorCode.CANCEL)
    await trio.sleep(10)

    assert results == [ConnectionEnded]
    assert len(upstream.ends) == 2
    assert upstream.ends[1].unread_bytes == 0
    assert pool.statistics().busy == 0


async def test_cancelled_while_sending_the_connection_is_closed(autojump_clock):
    near, far = memory_transport_pair(capacity_bytes=1)

    async def dial(_: Access) -> MemoryTransport:
        return near

    credentials = FixedCredentials(ApiServerAddress(scheme="https", host="api.test", port=443))
    pool = ConnectionPool(credentials, dial=dial)
    with trio.move_on_after(1):
        await pool.open(get())

    assert near.aborted
    assert pool.statistics().busy == 0
    assert far.unread_bytes > 0
