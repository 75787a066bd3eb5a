"""Floods against each listener and against the agent: bounded memory, an end, and everybody else served meanwhile.

What an engine does with each kind of frame is tested without a loop (`tests/tunnel/h2/test_floods.py`). Here the floods
come over TLS, in the three places where a stranger or a traitor can send them, beside callers who want to be served.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
from support.http2 import (
    SETTINGS_ACK,
    block,
    continuation,
    data,
    frame,
    goaway,
    headers,
    ping,
    rst_stream,
    settings,
    window_update,
)
from support.scripted_cluster import Visit
from support.scripted_peers import HostileKas, RawPeer, hostile_agent, http2_front
from support.scripted_stack import PREFIX, Access, Stack, caller_context, open_stack, until

from agent.agent import Agent
from agent.command_line import Settings, find_credentials
from agent.token import FixedToken
from server.tokens import AGENT_PREFIX, digest, new_token
from tunnel.errors import ErrorCode
from tunnel.h2.frames import END_HEADERS, END_STREAM
from tunnel.identity import FIELD_NAME, Identity, encode_identity
from tunnel.messages import Fields

MIB = 1024 * 1024
PAGES_PER_MIB = 256
HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE = 1, 2, 3, 4, 5
CALM = ErrorCode.ENHANCE_YOUR_CALM


def resident_mib() -> float:
    """What this process, flood and flooded together, keeps in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) / PAGES_PER_MIB


@contextlib.asynccontextmanager
async def others_are_served(stack: Stack, growth_mib: float = 64) -> AsyncIterator[None]:
    """While the block runs, another caller gets answers; afterwards memory is what it was, within limits."""
    answered = 0
    before = resident_mib()

    async def ask() -> None:
        nonlocal answered
        async with stack.caller("http2", user="admin") as caller:
            while True:
                with trio.fail_after(5):
                    answer = await caller.get(b"/api")
                    assert answer.status == 200
                    await answer.content()
                answered += 1
                await trio.sleep(0.002)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await until(lambda: answered > 0)
        start = answered
        yield
        after = answered
        await until(lambda: answered > after)
        nursery.cancel_scope.cancel()
    assert answered > start
    assert resident_mib() - before < growth_mib


def words(stack: Stack, path: bytes = b"/api", method: bytes = b"GET", user: str = "alice") -> Fields:
    """A request of a user as field lines."""
    return [
        (b":method", method),
        (b":scheme", b"https"),
        (b":authority", b"kas.example.com"),
        (b":path", PREFIX + path),
        (b"authorization", b"Bearer " + stack.token(user)),
    ]


def odd() -> Iterator[int]:
    return itertools.count(1, 2)


def resets(fields: Fields, count: int) -> Iterator[bytes]:
    whole = headers(1, fields)
    for stream_id in itertools.islice(itertools.count(3, 2), count):
        yield whole[:5] + struct.pack(">I", stream_id) + whole[9:] + rst_stream(stream_id)


# --- the proxy listener ----------------------------------------------------------------------------

FRONT_FLOODS = {
    "ping": lambda: (ping() for _ in range(50_000)),
    "settings": lambda: (settings() for _ in range(20_000)),
    "priority": lambda: (frame(PRIORITY, 0, 1, b"\x00\x00\x00\x03\x10") for _ in range(20_000)),
    "unknown frames": lambda: (frame(0x42, 0, 0, b"x") for _ in range(20_000)),
    "window updates": lambda: (window_update(0, 1) for _ in range(20_000)),
    "priority updates": lambda: (frame(0x10, 0, 0, b"\x00\x00\x00\x01u=0") for _ in range(20_000)),
}


@pytest.mark.parametrize("name", FRONT_FLOODS)
@pytest.mark.parametrize("read", [True, False], ids=["read", "unread"])
async def test_a_front_that_is_flooded_ends_the_connection_and_serves_others(
    stack: Stack, name: str, read: bool
) -> None:
    async with others_are_served(stack):
        async with http2_front(stack.addresses.proxy.port, caller_context("h2")) as peer:
            await peer.flood(FRONT_FLOODS[name](), read=read)
            code = await peer.go_away_code()
            assert code == CALM or (code is None and not read)
    await until(lambda: stack.kas.front.open_connections == 0)


@pytest.mark.parametrize("read", [True, False], ids=["read", "unread"])
async def test_rapid_resets_on_a_front_end_it_and_leave_no_work(stack: Stack, read: bool) -> None:
    async with others_are_served(stack):
        async with http2_front(stack.addresses.proxy.port, caller_context("h2")) as peer:
            await peer.send(headers(1, words(stack)))  # known from here on: the limits of strangers are others
            await peer.wait_frame(HEADERS, 1)
            await peer.flood(resets(words(stack), 5_000), read=read)
            code = await peer.go_away_code()
            assert code == CALM or (code is None and not read)
    await stack.settle()
    assert stack.held_bytes() == (0, 0)
    assert stack.agent._supervisor.opened == 1


async def test_rapid_resets_of_a_stranger_end_the_connection(stack: Stack) -> None:
    fields = [line for line in words(stack) if line[0] != b"authorization"]
    async with others_are_served(stack):
        async with http2_front(stack.addresses.proxy.port, caller_context("h2")) as peer:
            await peer.flood(resets(fields, 5_000))
            assert await peer.go_away_code() is not None


async def test_resets_that_kas_is_made_to_send_count_as_well(stack: Stack) -> None:
    """MadeYouReset (CVE-2025-8671): requests, each followed by a frame that is an error on its stream."""
    fields = words(stack, method=b"POST")

    def frames() -> Iterator[bytes]:
        for stream_id in itertools.islice(itertools.count(3, 2), 5_000):
            yield headers(stream_id, fields, END_HEADERS) + window_update(stream_id, 0)

    async with others_are_served(stack):
        async with http2_front(stack.addresses.proxy.port, caller_context("h2")) as peer:
            await peer.send(headers(1, words(stack)))  # known from here on: the limits of strangers are others
            await peer.wait_frame(HEADERS, 1)
            await peer.flood(frames())
            assert await peer.go_away_code() == CALM
    await stack.settle()


async def test_a_header_block_in_too_many_pieces_ends_the_connection(stack: Stack) -> None:
    def frames() -> Iterator[bytes]:
        yield frame(HEADERS, END_STREAM, 1, block(words(stack)))
        for _ in range(10_000):
            yield continuation(1, b"")

    async with others_are_served(stack):
        async with http2_front(stack.addresses.proxy.port, caller_context("h2")) as peer:
            await peer.flood(frames())
            assert await peer.go_away_code() == CALM
    assert stack.cluster.count(b"/x") == 0


async def test_a_header_block_without_end_costs_a_megabyte_at_most(stack: Stack) -> None:
    def frames() -> Iterator[bytes]:
        yield frame(HEADERS, END_STREAM, 1, block(words(stack)))
        for _ in range(4_000):
            yield continuation(1, b"\x00\x01x\x7f\x80\x7e" + b"y" * 16_000)

    async with others_are_served(stack):
        async with http2_front(stack.addresses.proxy.port, caller_context("h2")) as peer:
            await peer.flood(frames())
            assert await peer.go_away_code() in (CALM, ErrorCode.COMPRESSION_ERROR)


def _bomb(stack: Stack, references: int) -> bytes:
    """One long field goes into the table; each further byte of the block stands for all of it."""
    value = b"z" * 4_000
    literal = b"\x40\x01x\x7f" + _integer(len(value) - 127) + value
    return block(words(stack)) + literal + b"\xbe" * references


def _integer(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


async def test_a_header_bomb_is_a_431_and_a_storm_of_them_ends_the_connection(stack: Stack) -> None:
    async with others_are_served(stack):
        async with http2_front(stack.addresses.proxy.port, caller_context("h2")) as peer:
            await peer.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, _bomb(stack, 100)))
            answer = await peer.wait_frame(HEADERS, 1)
            assert b"431" in answer.payload
            storm = (
                frame(HEADERS, END_HEADERS | END_STREAM, number, _bomb(stack, 100))
                for number in itertools.islice(itertools.count(3, 2), 200)
            )
            await peer.flood(storm)
            assert await peer.go_away_code() == CALM
    assert b"z" * 100 not in b"".join(request.raw for request in stack.cluster.requests)


async def test_empty_data_frames_end_the_connection(stack: Stack) -> None:
    async def take(visit: Visit) -> None:
        await visit.wait_gone()

    stack.cluster.on(b"/sink", take)

    def frames() -> Iterator[bytes]:
        yield headers(1, words(stack, b"/sink", b"POST"), END_HEADERS)
        yield from (data(1, b"") for _ in range(20_000))

    async with others_are_served(stack):
        async with http2_front(stack.addresses.proxy.port, caller_context("h2")) as peer:
            await peer.flood(frames())
            assert await peer.go_away_code() == CALM
    await stack.settle()


async def test_a_hundred_windows_of_one_byte_cost_little_and_stop_nobody(stack: Stack) -> None:
    async def pour(visit: Visit) -> None:
        await visit.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(128):
            await visit.chunk(bytes(16_384))
        await visit.wait_gone()

    stack.cluster.on(b"/big", pour)
    async with others_are_served(stack, growth_mib=128):
        async with http2_front(stack.addresses.proxy.port, caller_context("h2"), {4: 1}) as peer:
            for stream_id in itertools.islice(odd(), 100):
                await peer.send(headers(stream_id, words(stack, b"/big")))
            await stack.cluster.wait_for(b"/big", 100)
            await trio.sleep(0.5)
            kas, agent = stack.held_bytes()
            # Twice a raised window for each stream: what was received, and what was granted.
            assert 0 < kas < 100 * MIB / 2
            assert agent < 100 * MIB / 2
    await stack.settle()
    assert stack.held_bytes() == (0, 0)


async def test_a_stranger_gets_so_many_answers_and_no_more(tmp_path: Path) -> None:
    from server.config import FrontLimits

    async with open_stack(tmp_path, kas={"proxy": {"limits": FrontLimits(strangers_answers=5)}}) as stack:
        fields = [line for line in words(stack) if line[0] != b"authorization"]
        async with http2_front(stack.addresses.proxy.port, caller_context("h2")) as peer:
            for number in itertools.islice(odd(), 20):
                with contextlib.suppress(trio.BrokenResourceError):
                    await peer.send(headers(number, fields))
            await peer.go_away_code()
            answered = {each.stream_id for each in peer.seen if each.kind == HEADERS}
            assert 5 <= len(answered) <= 20
        async with stack.raw() as raw:
            request = b"GET /agents/edge/k8s/api HTTP/1.1\r\nHost: a\r\n\r\n"
            with contextlib.suppress(trio.BrokenResourceError):
                await raw.send(request * 20)
            assert (await raw.read_all()).count(b"HTTP/1.1 401 ") == 5


@pytest.mark.long
@pytest.mark.parametrize("greeting", [b"", b"GET / HT", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
@pytest.mark.parametrize("alpn", ["http/1.1", "h2"])
async def test_who_says_nothing_is_sent_away_after_ten_seconds(stack: Stack, greeting: bytes, alpn: str) -> None:
    async with others_are_served(stack), contextlib.AsyncExitStack() as silent:
        raws = [await silent.enter_async_context(stack.raw(alpn)) for _ in range(50)]
        for raw in raws:
            await raw.send(greeting)
        with trio.fail_after(20):
            while stack.kas.front.open_connections > 1:  # noqa: ASYNC110
                await trio.sleep(0.1)


@pytest.mark.long
async def test_slowloris_is_sent_away_after_ten_seconds(stack: Stack) -> None:
    async with others_are_served(stack), stack.raw() as raw:
        with trio.fail_after(15), contextlib.suppress(trio.BrokenResourceError):
            await raw.send(b"GET / HTTP/1.1\r\nHost: a\r\n")
            while True:
                await raw.send(b"X-A: b\r\n")
                await trio.sleep(0.2)
        assert stack.cluster.count(b"/") == 0


# --- the agent listener ----------------------------------------------------------------------------


@pytest.fixture
async def traitor(tmp_path: Path) -> AsyncIterator[tuple[Stack, str]]:
    """A stack with a second agent, ``evil``, whose token the test has."""
    token = new_token(AGENT_PREFIX)

    def add_it(access: Access) -> None:
        access.agents.append({"id": "evil", "tokens": [{"sha256": digest(token)}]})
        access.add_user("victim", agent="*")

    async with open_stack(tmp_path, prepare=add_it) as stack:
        yield stack, token


EVIL = b"/agents/evil/k8s"

AGENT_FLOODS = {
    "ping": lambda: (ping() for _ in range(100_000)),
    "settings": lambda: (settings() for _ in range(20_000)),
    "priority": lambda: (frame(PRIORITY, 0, 1, b"\x00\x00\x00\x03\x10") for _ in range(50_000)),
    "unknown frames": lambda: (frame(0x42, 0, 0, b"x") for _ in range(50_000)),
    "data on no stream": lambda: (data(1, b"") for _ in range(50_000)),
    "resets of no stream": lambda: (rst_stream(1) for _ in range(50_000)),
    "push promises": lambda: (frame(PUSH_PROMISE, END_HEADERS, 1, b"\x00\x00\x00\x02") for _ in range(100)),
    "requests": lambda: (headers(number, [(b":status", b"200")]) for number in range(2, 1_000, 2)),
    "a table that was not offered": lambda: [b"\x00\x00\x03\x01\x05\x00\x00\x00\x01\x3f\xe1\x1f"],
}


@pytest.mark.parametrize("name", AGENT_FLOODS)
@pytest.mark.parametrize("read", [True, False], ids=["read", "unread"])
async def test_an_agent_that_floods_loses_its_tunnel_and_nobody_else_does(
    traitor: tuple[Stack, str], name: str, read: bool
) -> None:
    stack, token = traitor
    async with others_are_served(stack):
        async with hostile_agent(stack.addresses.agents.port, token) as peer:
            await until(lambda: stack.kas.registry.find("evil") is not None)
            await peer.flood(AGENT_FLOODS[name](), read=read)
            await until(lambda: stack.kas.registry.find("evil") is None)
    assert stack.kas.registry.tunnels_of("evil") == []
    assert stack.kas.registry.find("edge") is not None


@contextlib.asynccontextmanager
async def _asked(stack: Stack, token: str, values: dict[int, int] | None = None) -> AsyncIterator[RawPeer]:
    """A hostile agent on whose tunnel somebody has asked something (stream 1)."""
    async with hostile_agent(stack.addresses.agents.port, token, values) as peer:
        await until(lambda: stack.kas.registry.find("evil") is not None)
        async with stack.caller("http2", user="victim", prefix=EVIL) as caller:
            await caller.request(b"POST", b"/api", body=None)
            await peer.wait_frame(HEADERS, 1)
            yield peer


RESPONSE_FLOODS = {
    "continuation": lambda: itertools.chain(
        [frame(HEADERS, 0, 1, block([(b":status", b"200")]))], (continuation(1, b"") for _ in range(10_000))
    ),
    "interim": lambda: (headers(1, [(b":status", b"103")], END_HEADERS) for _ in range(10_000)),
    "empty data": lambda: itertools.chain(
        [headers(1, [(b":status", b"200")], END_HEADERS)], (data(1, b"") for _ in range(50_000))
    ),
    "data beyond the window": lambda: itertools.chain(
        [headers(1, [(b":status", b"200")], END_HEADERS)], (data(1, bytes(16_384)) for _ in range(200))
    ),
}


@pytest.mark.parametrize("name", RESPONSE_FLOODS)
async def test_an_answer_that_is_a_flood_harms_its_own_agent_only(traitor: tuple[Stack, str], name: str) -> None:
    stack, token = traitor
    async with others_are_served(stack):
        async with _asked(stack, token) as peer:
            await peer.flood(RESPONSE_FLOODS[name]())
            kas, _ = stack.held_bytes()
            assert kas < 4 * MIB
    await until(lambda: stack.kas.registry.find("evil") is None)
    assert stack.held_bytes() == (0, 0)


async def test_an_agent_that_takes_no_byte_costs_its_caller_and_nobody_else(traitor: tuple[Stack, str]) -> None:
    stack, token = traitor
    async with others_are_served(stack):
        async with hostile_agent(stack.addresses.agents.port, token, {4: 0}):
            await until(lambda: stack.kas.registry.find("evil") is not None)
            async with stack.caller("http2", user="victim", prefix=EVIL) as caller:
                uploads = [await caller.request(b"POST", b"/api", body=None) for _ in range(50)]
                with trio.move_on_after(0.3):
                    async with trio.open_nursery() as nursery:
                        for upload in uploads:
                            nursery.start_soon(upload.send, bytes(MIB // 2))
                kas, _ = stack.held_bytes()
                assert kas < 50 * MIB
                (tunnel,) = stack.kas.registry.tunnels_of("evil")
                assert tunnel.connection.statistics().unsent_bytes < 50 * MIB


async def test_an_agent_that_announces_its_going_over_and_over_is_one_that_goes(traitor: tuple[Stack, str]) -> None:
    stack, token = traitor
    async with others_are_served(stack):
        async with hostile_agent(stack.addresses.agents.port, token) as peer:
            await until(lambda: stack.kas.registry.find("evil") is not None)
            await peer.flood(goaway(0, 0, b"x" * 1_000) for _ in range(20_000))
            await until(lambda: stack.kas.registry.find("evil") is None)
    assert stack.kas.registry.find("edge") is not None


# --- the agent -------------------------------------------------------------------------------------


def _request_of_kas(method: bytes = b"GET", path: bytes = b"/api") -> Fields:
    identity = Identity(mode="impersonate", user="alice", request_id="r")
    return [
        (b":method", method),
        (b":scheme", b"http"),
        (b":authority", b"kubernetes"),
        (b":path", path),
        (FIELD_NAME, encode_identity(identity)),
    ]


def _long_block(fields: Fields) -> bytes:
    """A block of literals whose values may be long."""
    encoded = b""
    for name, value in fields:
        length = bytes([len(value)]) if len(value) < 127 else b"\x7f" + _integer(len(value) - 127)
        encoded += b"\x00" + bytes([len(name)]) + name + length + value
    return encoded


def _agent_resets(count: int) -> Iterator[bytes]:
    encoded = _long_block(_request_of_kas())
    for stream_id in itertools.islice(odd(), count):
        yield frame(HEADERS, END_HEADERS | END_STREAM, stream_id, encoded) + rst_stream(stream_id)


KAS_FLOODS = {
    "ping": lambda: (ping() for _ in range(100_000)),
    "settings": lambda: (settings() for _ in range(20_000)),
    "priority": lambda: (frame(PRIORITY, 0, 1, b"\x00\x00\x00\x03\x10") for _ in range(50_000)),
    "unknown frames": lambda: (frame(0x42, 0, 0, b"x") for _ in range(50_000)),
    "continuation": lambda: itertools.chain(
        [frame(HEADERS, END_STREAM, 1, _long_block(_request_of_kas()))], (continuation(1, b"") for _ in range(10_000))
    ),
    "empty data": lambda: itertools.chain(
        [frame(HEADERS, END_HEADERS, 1, _long_block(_request_of_kas(b"POST", b"/sink")))],
        (data(1, b"") for _ in range(50_000)),
    ),
    "malformed requests": lambda: (
        frame(HEADERS, END_HEADERS | END_STREAM, number, block([(b":method", b"GET"), (b"Bad", b"x")]))
        for number in itertools.islice(odd(), 60_000)
    ),
}


@contextlib.asynccontextmanager
async def _agent_of(stack: Stack, hostile: HostileKas) -> AsyncIterator[Agent]:
    """A second agent, on the same cluster, that serves a hostile kas."""
    config = stack.agent_config
    agent = Agent(
        Settings(
            config=dataclasses.replace(
                config, kas=dataclasses.replace(config.kas, address=f"https://127.0.0.1:{hostile.port}")
            ),
            token=FixedToken(new_token(AGENT_PREFIX), "a test"),
            credentials=find_credentials(config.kubernetes, {}),
        )
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.run)
        yield agent
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", KAS_FLOODS)
@pytest.mark.parametrize("read", [True, False], ids=["read", "unread"])
async def test_a_kas_that_floods_loses_the_tunnel_and_the_agent_dials_again(
    stack: Stack, name: str, read: bool
) -> None:
    async def sink(visit: Visit) -> None:
        await visit.wait_gone()

    ended = trio.Event()

    async def script(peer: RawPeer) -> None:
        if hostile.tunnels > 1:
            await peer.go_away_code()
            return
        await peer.flood(KAS_FLOODS[name](), read=read)
        await peer.go_away_code()
        ended.set()

    stack.cluster.on(b"/sink", sink)
    hostile = HostileKas(script)
    async with others_are_served(stack), trio.open_nursery() as nursery:
        await nursery.start(hostile.run)
        async with _agent_of(stack, hostile) as agent:
            with trio.fail_after(10):
                await ended.wait()
                await until(lambda: hostile.tunnels > 1)
                await until(lambda: agent._supervisor.current is not None)
            assert agent._budget.used_bytes < 2 * MIB
            await until(lambda: not agent._pool._busy)
        nursery.cancel_scope.cancel()


async def test_a_kas_that_sends_beyond_a_window_loses_that_stream_and_nothing_is_kept(stack: Stack) -> None:
    codes: list[int] = []

    async def sink(visit: Visit) -> None:
        await trio.sleep_forever()

    async def script(peer: RawPeer) -> None:
        await peer.send(frame(HEADERS, END_HEADERS, 1, _long_block(_request_of_kas(b"POST", b"/sink"))))
        for _ in range(200):
            await peer.send(data(1, bytes(16_384)))
        reset = await peer.wait_frame(RST_STREAM, 1)
        codes.append(int.from_bytes(reset.payload, "big"))
        await peer.send(frame(HEADERS, END_HEADERS | END_STREAM, 3, _long_block(_request_of_kas())))
        await peer.wait_frame(HEADERS, 3)
        codes.append(0)
        await peer.go_away_code()

    stack.cluster.on(b"/sink", sink)
    hostile = HostileKas(script)
    async with trio.open_nursery() as nursery:
        await nursery.start(hostile.run)
        async with _agent_of(stack, hostile) as agent:
            await until(lambda: len(codes) == 2)
            await until(lambda: not agent._pool._busy)
            assert agent._budget.used_bytes < MIB
        nursery.cancel_scope.cancel()
    assert codes == [ErrorCode.FLOW_CONTROL_ERROR, 0]


async def test_a_kas_that_uses_a_table_which_it_was_not_offered_loses_the_tunnel(stack: Stack) -> None:
    codes: list[int | None] = []

    async def script(peer: RawPeer) -> None:
        await peer.wait_frame(SETTINGS)
        await peer.send(SETTINGS_ACK, frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x3f\xe1\x1f"))
        codes.append(await peer.go_away_code())

    hostile = HostileKas(script)
    async with trio.open_nursery() as nursery:
        await nursery.start(hostile.run)
        async with _agent_of(stack, hostile):
            await until(lambda: bool(codes))
        nursery.cancel_scope.cancel()
    assert codes[0] == ErrorCode.COMPRESSION_ERROR


async def test_rapid_resets_of_a_kas_never_pile_up_work_at_the_agent(stack: Stack) -> None:
    most = 0
    done = trio.Event()

    async def hold(visit: Visit) -> None:
        nonlocal most
        most = max(most, stack.cluster.open_connections)
        await visit.wait_gone()

    async def script(peer: RawPeer) -> None:
        await peer.flood(_agent_resets(5_000))
        done.set()
        await peer.go_away_code()

    stack.cluster.on(b"/api", hold)
    hostile = HostileKas(script)
    async with trio.open_nursery() as nursery:
        await nursery.start(hostile.run)
        async with _agent_of(stack, hostile) as agent:
            with trio.fail_after(30):
                await done.wait()
            await until(lambda: not agent._pool._busy)
            assert agent._budget.used_bytes == 0
            assert most < 200
        nursery.cancel_scope.cancel()


@pytest.mark.long
async def test_a_hundred_thousand_resets_of_a_kas_end_the_tunnel(stack: Stack) -> None:
    codes: list[int | None] = []

    async def script(peer: RawPeer) -> None:
        await peer.flood(_agent_resets(100_000))
        codes.append(await peer.go_away_code())

    hostile = HostileKas(script)
    async with others_are_served(stack), trio.open_nursery() as nursery:
        await nursery.start(hostile.run)
        async with _agent_of(stack, hostile):
            with trio.fail_after(100):
                while not codes:  # noqa: ASYNC110
                    await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    assert codes[0] in (CALM, None)


async def test_what_a_kas_may_not_say_is_refused_by_the_agent_and_never_reaches_the_cluster(stack: Stack) -> None:
    """The checks of kas, made again: no identity, two, a mode that is not allowed, fields of identity, credentials."""
    good = _request_of_kas()
    block_of = encode_identity
    wrong: dict[str, Fields] = {
        "none": good[:-1],
        "two": [*good, good[-1]],
        "malformed": [*good[:-1], (FIELD_NAME, b"!!!")],
        "nobody": [*good[:-1], (FIELD_NAME, block_of(Identity(mode="impersonate", user="", request_id="r")))],
        "impersonate-user": [*good, (b"impersonate-user", b"root")],
        "impersonate_user": [*good, (b"impersonate_user", b"root")],
        "authorization": [*good, (b"authorization", b"Bearer x")],
        "proxy-authorization": [*good, (b"proxy-authorization", b"Basic x")],
        "subprotocol": [*good, (b"sec-websocket-protocol", b"base64url.bearer.authorization.k8s.io.eA")],
        "origin": [
            (b":authority", b"169.254.169.254") if name == b":authority" else (name, value) for name, value in good
        ],
    }
    answers: dict[int, bytes] = {}
    done = trio.Event()

    async def script(peer: RawPeer) -> None:
        for stream_id, fields in zip(odd(), wrong.values(), strict=False):
            await peer.send(frame(HEADERS, END_HEADERS | END_STREAM, stream_id, _long_block(fields)))
            answers[stream_id] = (await peer.wait_frame(HEADERS, stream_id)).payload
        done.set()
        await peer.go_away_code()

    hostile = HostileKas(script)
    async with trio.open_nursery() as nursery:
        await nursery.start(hostile.run)
        async with _agent_of(stack, hostile):
            with trio.fail_after(10):
                await done.wait()
        nursery.cancel_scope.cancel()
    assert all(b"moorline-error" in payload for payload in answers.values())
    assert len(answers) == len(wrong)
    assert stack.cluster.requests == []
