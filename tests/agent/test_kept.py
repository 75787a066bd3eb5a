"""Connections that are kept: who listens, who claims, and what a direct exchange on one gets to hear."""

from __future__ import annotations

import contextlib

import pytest
import trio
from support.agent import ScriptedApiServer, UpstreamConnection, pool_for, well_behaved
from support.http1 import MemoryTransport, memory_transport_pair
from trio.testing import wait_all_tasks_blocked

from agent.credentials import Access
from agent.kept import KeptConnection
from agent.pool import ConnectionPool, PooledExchange, PoolLimits
from tunnel.errors import ConnectionEnded, ErrorCode
from tunnel.http1.client import Http1Client
from tunnel.messages import RequestHead

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def get(target: bytes = b"/api", **changes: object) -> RequestHead:
    return RequestHead(b"GET", target, b"", [(b"accept", b"*/*")], **{"ended": True, **changes})  # type: ignore[arg-type]


class Listening:
    """An `agent.kept.Listener` that notes what it hears; it stays, or has a task take over."""

    def __init__(self, *, stays: bool = True) -> None:
        self.heard: list[bytes] = []
        self._stays = stays

    def received(self, data: bytes) -> bool:
        self.heard.append(data)
        return self._stays


class Kept:
    """A kept connection on a transport in memory."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.transport, self.server = memory_transport_pair()
        self.client = Http1Client(self.transport)
        self.lost: list[KeptConnection] = []
        self.connection = KeptConnection(self.client, Access([], None), since=0.0, lost=self._note_lost)
        self.over = trio.Event()
        nursery.start_soon(self._run)

    def _note_lost(self, kept: KeptConnection) -> None:
        self.lost.append(kept)
        kept.abort()

    async def _run(self) -> None:
        await self.connection.run()
        self.over.set()


@pytest.mark.parametrize("end", ["eof", "abort", "bytes"])
async def test_an_idle_connection_that_ends_or_speaks_is_lost(nursery: trio.Nursery, end: str) -> None:
    kept = Kept(nursery)
    await wait_all_tasks_blocked()
    if end == "eof":
        await kept.server.send_eof()
    elif end == "abort":
        kept.server.abort()
    else:
        await kept.server.send_all(OK)
    await kept.over.wait()
    assert kept.lost == [kept.connection]
    assert kept.transport.aborted


async def test_who_listens_hears_everything_while_it_stays(nursery: trio.Nursery) -> None:
    kept = Kept(nursery)
    kept.connection.listener = listening = Listening()
    for number in range(2):
        await kept.server.send_all(b"%d" % number)
        await wait_all_tasks_blocked()
    assert listening.heard == [b"0", b"1"]
    kept.connection.abort()
    await kept.over.wait()
    assert kept.lost == []


async def test_nobody_listens_any_more_once_a_task_takes_over(nursery: trio.Nursery) -> None:
    kept = Kept(nursery)
    kept.connection.listener = listening = Listening(stays=False)
    await kept.server.send_all(b"0")
    await kept.over.wait()
    await kept.server.send_all(b"1")
    await wait_all_tasks_blocked()
    assert listening.heard == [b"0"]
    assert await kept.client.receive_some() == b"1"


async def test_claiming_leaves_every_later_byte_to_who_claims(nursery: trio.Nursery) -> None:
    kept = Kept(nursery)
    await wait_all_tasks_blocked()
    client = kept.connection.claim()
    await kept.server.send_all(b"mine")
    assert await client.receive_some() == b"mine"
    await kept.over.wait()
    assert kept.lost == []


async def test_a_connection_that_is_claimed_before_anybody_listens_is_not_read() -> None:
    async with trio.open_nursery() as nursery:
        kept = Kept(nursery)
        client = kept.connection.claim()
        await kept.server.send_all(b"mine")
        await kept.over.wait()
        assert await client.receive_some() == b"mine"
    assert kept.lost == []


class LateTransport(MemoryTransport):
    """Gives bytes out only when a test says so, and cannot be cancelled in between, as a TLS read under way may be."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = trio.Event()

    async def receive_some(self) -> bytes:
        with trio.CancelScope(shield=True):
            await self.go_on.wait()
        data = self.receive_nowait()
        assert data is not None
        return data


@pytest.mark.parametrize("content", [OK, b""])
async def test_bytes_that_were_read_before_a_claim_make_the_connection_unusable(
    nursery: trio.Nursery, content: bytes
) -> None:
    kept = Kept(nursery)
    late, server = LateTransport(), MemoryTransport()
    late.peer, server.peer = server, late
    kept.connection.client = client = Http1Client(late)
    await wait_all_tasks_blocked()
    if content:
        await server.send_all(content)
    else:
        await server.send_eof()
    kept.connection.claim()
    late.go_on.set()
    await kept.over.wait()
    assert client.reusable == (not content)  # an end is seen again by whoever reads next
    assert kept.lost == []


# In the pool


class Held:
    """A request that was begun, as `agent.direct` does it."""

    def __init__(self, pool: ConnectionPool) -> None:
        begun = pool.begin(get())
        assert begun is not None
        self.pool = pool
        self.kept, self.head = begun
        self.heard = b""
        self.over = trio.Event()
        self.kept.listener = self

    def received(self, data: bytes) -> bool:
        self.heard += data
        whole = self.kept.client.take_whole(self.heard, b"GET")
        if whole is not None:
            self.pool.keep(self.kept)
        else:
            self.kept.listener = None
        self.over.set()
        return whole is not None

    def take_up(self) -> PooledExchange:
        """Go on in a task."""
        exchange = self.pool.take_up(self.kept, self.head, self.heard)
        self.kept.listener = None
        self.kept.claim()
        return exchange


async def fetch(pool: ConnectionPool) -> bytes:
    exchange = await pool.open(get())
    try:
        await exchange.receive_head()
        return await read_all(exchange)
    finally:
        exchange.reset(ErrorCode.CANCEL)


async def read_all(exchange: PooledExchange) -> bytes:
    content = b""
    while data := await exchange.body.receive():
        content += data
    return content


async def test_a_request_begins_only_on_an_idle_connection() -> None:
    upstream = ScriptedApiServer()
    async with pool_for(upstream) as pool:
        assert pool.begin(get()) is None
        await fetch(pool)
        first = Held(pool)
        assert pool.begin(get()) is None
        assert (pool.statistics().busy, pool.statistics().idle) == (1, 0)
        await first.over.wait()
        assert (pool.statistics().busy, pool.statistics().idle) == (0, 1)
        assert first.heard.endswith(b"ok")
        second = Held(pool)
        assert second.kept is first.kept
        await second.over.wait()
        assert upstream.accepted == 1
        assert [request.values(b"authorization") for request in upstream.requests] == [[b"Bearer agent-token"]] * 3


async def test_a_request_begins_on_a_connection_on_which_nobody_listens_yet() -> None:
    async with pool_for(ScriptedApiServer()) as pool:
        exchange = await pool.open(get())
        await exchange.receive_head()
        await read_all(exchange)
        exchange.reset(ErrorCode.CANCEL)
        held = Held(pool)  # before the pool has had its turn
        await held.over.wait()
        assert held.heard.endswith(b"ok")


async def test_where_credentials_have_to_be_asked_for_nothing_begins() -> None:
    async with pool_for(ScriptedApiServer()) as pool:
        await fetch(pool)
        pool._credentials.known = lambda: None  # type: ignore[method-assign]
        assert pool.begin(get()) is None
        assert pool.statistics().idle == 1


async def test_a_head_that_cannot_be_sent_leaves_the_connection_idle() -> None:
    upstream = ScriptedApiServer()
    async with pool_for(upstream) as pool:
        await fetch(pool)
        assert pool.begin(get(b"/a b\r\n")) is None
        assert pool.statistics().idle == 1
        await fetch(pool)
        assert upstream.accepted == 1


async def test_a_task_that_claims_gets_the_connection_that_nobody_uses() -> None:
    upstream = ScriptedApiServer()
    async with pool_for(upstream) as pool:
        await fetch(pool)
        held = Held(pool)
        assert await fetch(pool) == b"ok"  # on a second one
        assert upstream.accepted == 2
        await held.over.wait()
        assert await fetch(pool) == b"ok"
        assert upstream.accepted == 2


@pytest.mark.parametrize("taken", ["nothing", "a part", "the end"])
async def test_a_task_takes_up_what_was_begun(taken: str) -> None:
    go_on = trio.Event()

    async def script(connection: UpstreamConnection) -> None:
        await connection.read_request()
        await connection.answer(b"ok")
        await connection.read_request()
        if taken == "a part":
            await connection.stream.send_all(OK[:-1])
        await go_on.wait()
        await connection.stream.send_all(OK[-1:] if taken == "a part" else OK)
        await connection.read_request()
        await connection.answer(b"third")

    upstream = ScriptedApiServer(script)
    async with pool_for(upstream) as pool:
        await fetch(pool)
        held = Held(pool)
        if taken == "a part":
            await held.over.wait()
            assert held.heard == OK[:-1]
        else:
            await wait_all_tasks_blocked()
        if taken == "the end":
            go_on.set()
            held.kept.listener = None
        exchange = held.take_up()
        assert (pool.statistics().busy, pool.statistics().idle) == (1, 0)
        go_on.set()
        assert (await exchange.receive_head()).status == 200
        assert await read_all(exchange) == b"ok"
        exchange.reset(ErrorCode.CANCEL)
        assert (pool.statistics().busy, pool.statistics().idle) == (0, 1)
        assert await fetch(pool) == b"third"
        assert upstream.accepted == 1


async def test_a_request_that_is_given_up_closes_its_connection() -> None:
    closed = trio.Event()

    async def script(connection: UpstreamConnection) -> None:
        await connection.read_request()
        await connection.answer()
        with contextlib.suppress(trio.BrokenResourceError):
            while await connection.read_request():
                pass
        closed.set()

    async with pool_for(ScriptedApiServer(script)) as pool:
        await fetch(pool)
        held = Held(pool)
        pool.drop(held.kept)
        pool.drop(held.kept)
        await closed.wait()
        assert (pool.statistics().busy, pool.statistics().idle) == (0, 0)
        assert held.heard == b""


async def test_a_connection_that_is_given_up_after_it_was_kept_is_not_idle() -> None:
    async with pool_for(ScriptedApiServer()) as pool:
        await fetch(pool)
        held = Held(pool)
        await held.over.wait()
        assert pool.statistics().idle == 1
        pool.drop(held.kept)
        assert pool.statistics().idle == 0
        assert pool.begin(get()) is None


@pytest.mark.parametrize("close", [False, True])
async def test_an_answer_that_is_the_last_closes_the_connection(close: bool) -> None:
    async def script(connection: UpstreamConnection) -> None:
        await connection.read_request()
        await connection.answer()
        await connection.read_request()
        await connection.stream.send_all(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") if close else OK)
        await connection.read_request()

    async with pool_for(ScriptedApiServer(script)) as pool:
        await fetch(pool)
        held = Held(pool)
        await held.over.wait()
        assert pool.statistics().idle == (not close)


async def test_connections_that_are_idle_for_too_long_are_closed_while_somebody_listens(
    autojump_clock: trio.testing.MockClock,
) -> None:
    closed = trio.Event()

    async def dial(_: Access) -> MemoryTransport:
        near, far = memory_transport_pair()
        nursery.start_soon(serve, far)
        return near

    async def serve(far: MemoryTransport) -> None:
        for _ in range(2):
            assert (await far.receive_some()).startswith(b"GET ")
            await far.send_all(OK)
        assert await far.receive_some() == b""
        closed.set()

    async with pool_for(ScriptedApiServer()) as other, trio.open_nursery() as nursery:
        pool = ConnectionPool(other._credentials, dial=dial, limits=PoolLimits(idle_seconds=45))  # type: ignore[arg-type]
        await nursery.start(pool.run)
        await fetch(pool)
        await trio.sleep(40)
        pool._idle[0].client.sender.transport.nowait_bytes = 1_000  # type: ignore[attr-defined]
        held = Held(pool)
        await held.over.wait()
        kept_at = trio.current_time()
        await trio.sleep(40)
        assert not closed.is_set()  # it counts from the last answer
        await closed.wait()
        assert trio.current_time() - kept_at == pytest.approx(45)
        assert pool.statistics().idle == 0
        nursery.cancel_scope.cancel()


async def test_more_idle_connections_than_allowed_are_closed() -> None:
    upstream = ScriptedApiServer()
    async with pool_for(upstream, limits=PoolLimits(idle_connections=2)) as pool:
        exchanges = [await pool.open(get()) for _ in range(3)]
        for exchange in exchanges:
            await exchange.receive_head()
            await read_all(exchange)
            exchange.reset(ErrorCode.CANCEL)
        assert pool.statistics().idle == 2
        held = [Held(pool), Held(pool)]
        for each in held:
            await each.over.wait()
        assert pool.statistics().idle == 2


async def test_a_pool_that_has_ended_begins_nothing() -> None:
    async with pool_for(ScriptedApiServer()) as pool:
        await fetch(pool)
        held = Held(pool)
    assert pool.begin(get()) is None
    pool.keep(held.kept)
    assert pool.statistics().idle == 0
    with pytest.raises(ConnectionEnded):
        await held.kept.client.receive_some()


async def test_bytes_that_nobody_asked_for_are_no_answer() -> None:
    """They have arrived, and the task that listens has not had its turn."""

    async def script(connection: UpstreamConnection) -> None:
        await connection.read_request()
        await connection.answer()
        await connection.stream.send_all(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        sent.set()
        await connection.read_request()

    sent = trio.Event()
    async with pool_for(ScriptedApiServer(script, well_behaved)) as pool:
        exchange = await pool.open(get())
        await exchange.receive_head()
        assert await read_all(exchange) == b"ok"
        await sent.wait()
        exchange.reset(ErrorCode.CANCEL)
        assert pool.begin(get()) is None
        assert await fetch(pool) == b"ok"
