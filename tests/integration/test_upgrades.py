"""exec, attach and port-forward, down to the bytes: started once, refused and closed, and no byte lost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable

import pytest
import trio
from support.scripted_callers import CutOff, RawCaller
from support.scripted_cluster import Visit
from support.scripted_stack import Stack

EXEC = b"/api/v1/namespaces/default/pods/one/exec"
TARGET = EXEC + b"?command=sh&stdin=true"

WEBSOCKET = (
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    b"Sec-WebSocket-Protocol: v5.channel.k8s.io",
)
SPDY = (
    b"Connection: Upgrade",
    b"Upgrade: SPDY/3.1",
    b"Content-Length: 0",
    *(b"X-Stream-Protocol-Version: " + name for name in (b"v5", b"v4", b"v3", b"v2", b"v1")),
)
KINDS = {"websocket": (b"GET", WEBSOCKET, b"websocket"), "spdy": (b"POST", SPDY, b"SPDY/3.1")}

kinds = pytest.mark.parametrize("kind", KINDS)


def request(stack: Stack, kind: str, *, user: str = "alice") -> bytes:
    method, lines, _ = KINDS[kind]
    return stack.head(method, TARGET, *lines, user=user)


def switching(kind: str) -> bytes:
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %b\r\nX-Kept: yes\r\n\r\n"
        % KINDS[kind][2]
    )


def accepting(kind: str, then: Callable[[Visit], Awaitable[None]]) -> Callable[[Visit], Awaitable[None]]:
    async def play(visit: Visit) -> None:
        await visit.send(switching(kind))
        await then(visit)

    return play


async def begin(stack: Stack, raw: RawCaller, kind: str) -> None:
    """Send the request and read the 101."""
    await raw.send(request(stack, kind))
    head = await raw.read_head()
    assert head.startswith(b"HTTP/1.1 101 ")


# --- between the request and its 101 ---------------------------------------------------------------


@kinds
async def test_an_agent_killed_before_the_101_leaves_one_start_and_a_closed_connection(stack: Stack, kind: str) -> None:
    async def play(visit: Visit) -> None:
        await visit.wait_gone()

    stack.cluster.on(EXEC, play)
    async with stack.raw() as raw:
        await raw.send(request(stack, kind))
        await stack.cluster.wait_for(EXEC)
        await stack.kill_agent()
        # A status, whichever it is, would make kubectl run the command again.
        assert await raw.read_all() == b""
    await stack.start_agent()
    await trio.sleep(0.05)
    assert stack.cluster.count(EXEC) == 1


async def _kill(visit: Visit) -> None:
    visit.kill()


async def _close(visit: Visit) -> None:
    await visit.close()


async def _close_inside_head(visit: Visit) -> None:
    await visit.send(b"HTTP/1.1 101 Switching Proto")
    await visit.close()


async def _nonsense(visit: Visit) -> None:
    await visit.send(b"\x00\x01\x02\x03\r\n\r\n")


async def _another_protocol(visit: Visit) -> None:
    await visit.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")


async def _no_protocol(visit: Visit) -> None:
    await visit.send(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")


@kinds
@pytest.mark.parametrize("failure", [_kill, _close, _close_inside_head, _nonsense, _another_protocol, _no_protocol])
async def test_an_upgrade_whose_answer_is_lost_is_started_once_and_closed_without_a_status(
    stack: Stack, kind: str, failure: Callable[[Visit], Awaitable[None]]
) -> None:
    stack.cluster.on(EXEC, failure)
    async with stack.raw() as raw:
        # There is an idle connection, which an upgrade must not use, let alone move from.
        await raw.send(stack.head(b"GET", b"/api"))
        await raw.read_head()
        await raw.read(2)
        await raw.send(request(stack, kind))
        assert await raw.read_all() == b""
    assert stack.cluster.count(EXEC) == 1
    assert len({visit.connection for visit in stack.cluster.requests}) == 2


@kinds
async def test_an_upgrade_that_finds_no_agent_is_told_so(stack: Stack, kind: str) -> None:
    await stack.kill_agent()
    async with stack.raw() as raw:
        await raw.send(request(stack, kind))
        head = await raw.read_head()
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after" not in head.lower()
        assert json.loads(await raw.read_all())["reason"] == "ServiceUnavailable"
    assert stack.cluster.count(EXEC) == 0


# --- refused ---------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize(
    "status", [b"400 Bad Request", b"403 Forbidden", b"404 Not Found", b"500 Internal Server Error"]
)
async def test_a_refused_upgrade_is_relayed_and_then_both_sides_are_closed(
    stack: Stack, kind: str, status: bytes
) -> None:
    echoed: list[bytes] = []

    async def play(visit: Visit) -> None:
        await visit.answer(b'{"kind":"Status"}', status, b"Content-Type: application/json\r\n")
        # What an attacker hopes for (CVE-2018-1002105): a raw pipe behind the refusal.
        while data := await visit.receive():
            echoed.append(data)
            await visit.send(data)

    stack.cluster.on(EXEC, play)
    async with stack.raw() as raw:
        await raw.send(request(stack, kind) + b"GET /secret HTTP/1.1\r\nHost: a\r\n\r\n")
        head = await raw.read_head()
        assert head.startswith(b"HTTP/1.1 " + status[:3])
        assert b"content-type: application/json" in head.lower()
        with trio.fail_after(3):
            assert await raw.read_all() == b'{"kind":"Status"}'
    await stack.cluster.wait_connections(1)
    assert echoed == []
    assert stack.cluster.count(EXEC) == 1
    assert stack.cluster.count(b"/secret") == 0


@kinds
@pytest.mark.parametrize("status", [b"200 OK", b"204 No Content", b"302 Found", b"304 Not Modified"])
async def test_an_answer_that_neither_upgrades_nor_refuses_is_a_502(stack: Stack, kind: str, status: bytes) -> None:
    async def play(visit: Visit) -> None:
        await visit.answer(b"" if status[:1] != b"2" else b"pipe", status, b"Location: /elsewhere\r\n")
        await visit.wait_gone()

    stack.cluster.on(EXEC, play)
    async with stack.raw() as raw:
        await raw.send(request(stack, kind))
        head = await raw.read_head()
        assert head.startswith(b"HTTP/1.1 502 ")
        assert b"location" not in head.lower()
        assert b"retry-after" not in head.lower()
        assert json.loads(await raw.read_all())["reason"] == "BadGateway"
    await stack.cluster.wait_connections(1)
    assert stack.cluster.count(EXEC) == 1


@pytest.mark.parametrize("token", [b"h2c", b"TLS/1.0", b"websocket, h2c", b"moorline/1", b"SPDY/2"])
async def test_other_protocols_are_not_upgraded_to(stack: Stack, token: bytes) -> None:
    async with stack.raw() as raw:
        await raw.send(stack.head(b"GET", TARGET, b"Connection: Upgrade", b"Upgrade: " + token))
        head = await raw.read_head()
        assert not head.startswith(b"HTTP/1.1 101")
    for sent in stack.cluster.requests:
        assert sent.values(b"upgrade") == []
        assert sent.values(b"connection") == []


async def test_a_101_that_nobody_asked_for_is_a_502(stack: Stack) -> None:
    async def play(visit: Visit) -> None:
        await visit.send(switching("websocket"))
        await visit.wait_gone()

    stack.cluster.on(EXEC, play)
    async with stack.caller() as caller:
        answer = await caller.get(EXEC)
        assert answer.status == 502


async def test_a_read_only_users_upgrade_never_reaches_the_agent(stack: Stack) -> None:
    for kind in KINDS:
        async with stack.raw() as raw:
            await raw.send(request(stack, kind, user="viewer"))
            assert (await raw.read_head()).startswith(b"HTTP/1.1 403 ")
    assert stack.cluster.requests == []


async def test_an_upgrade_over_http2_is_refused_and_nothing_is_started(stack: Stack) -> None:
    async with stack.caller("http2") as caller:
        answer = await caller.request(b"GET", TARGET, [(b"sec-websocket-version", b"13"), (b"te", b"trailers")])
        await answer.head()
    for sent in stack.cluster.requests:
        assert sent.values(b"upgrade") == []


# --- heads -----------------------------------------------------------------------------------------


async def test_an_upgrade_request_is_made_again_exactly(stack: Stack) -> None:
    for kind in KINDS:
        stack.cluster.on(EXEC, accepting(kind, _close))
        async with stack.raw() as raw:
            await begin(stack, raw, kind)
    websocket, spdy = stack.cluster.requests
    assert websocket.method == b"GET"
    assert spdy.method == b"POST"
    for sent, token in ((websocket, b"websocket"), (spdy, b"SPDY/3.1")):
        assert sent.target == TARGET
        assert [value.lower() for value in sent.values(b"connection")] == [b"upgrade"]
        assert sent.values(b"upgrade") == [token]
        assert sent.values(b"transfer-encoding") == []
    assert websocket.values(b"content-length") == []
    assert spdy.values(b"content-length") == [b"0"]
    assert spdy.values(b"x-stream-protocol-version") == [b"v5", b"v4", b"v3", b"v2", b"v1"]
    assert websocket.values(b"sec-websocket-key") == [b"dGhlIHNhbXBsZSBub25jZQ=="]
    assert websocket.values(b"sec-websocket-protocol") == [b"v5.channel.k8s.io"]


@kinds
async def test_the_101_keeps_its_fields(stack: Stack, kind: str) -> None:
    async def play(visit: Visit) -> None:
        await visit.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %b\r\n"
            b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nX-Stream-Protocol-Version: v5\r\n"
            b"X-Twice: 1\r\nX-Twice: 2\r\nConnection: X-Hop\r\nX-Hop: gone\r\n\r\n" % KINDS[kind][2]
        )
        await visit.wait_gone()

    stack.cluster.on(EXEC, play)
    async with stack.raw() as raw:
        await raw.send(request(stack, kind))
        first, *lines = (await raw.read_head()).split(b"\r\n")
        assert first.startswith(b"HTTP/1.1 101 ")
        fields = [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
        assert (b"sec-websocket-accept", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") in fields
        assert (b"x-stream-protocol-version", b"v5") in fields
        assert [value for name, value in fields if name == b"x-twice"] == [b"1", b"2"]
        assert [value.lower() for name, value in fields if name == b"connection"] == [b"upgrade"]
        assert [value for name, value in fields if name == b"upgrade"] == [KINDS[kind][2]]
        assert b"x-hop" not in dict(fields)


# --- bytes -----------------------------------------------------------------------------------------


async def _glue_later(visit: Visit) -> None:
    """101 and data in one write; what the caller sent with its request comes after it."""
    back = b"back"
    await visit.send(switching("spdy") + back)
    while data := await visit.receive():
        await visit.send(data)
    await visit.close()


@kinds
async def test_bytes_glued_to_the_101_arrive(stack: Stack, kind: str) -> None:
    async def play(visit: Visit) -> None:
        await visit.send(switching(kind) + b"first bytes")
        await visit.wait_gone()

    stack.cluster.on(EXEC, play)
    for _ in range(150):
        async with stack.raw() as raw:
            await raw.send(request(stack, kind))
            assert (await raw.read_head()).startswith(b"HTTP/1.1 101 ")
            assert await raw.read(11) == b"first bytes"
    await stack.settle()


async def _glued_both_ways(stack: Stack, iterations: int) -> None:
    stack.cluster.on(EXEC, _glue_later)
    head = request(stack, "spdy")
    for number in range(iterations):
        there = b"there %d" % number
        async with stack.raw() as raw:
            await raw.send(head + there)
            assert (await raw.read_head()).startswith(b"HTTP/1.1 101 ")
            assert await raw.read(4 + len(there)) == b"back" + there
            await raw.send_eof()
            assert await raw.receive() == b""
    await stack.settle()


async def test_bytes_glued_to_request_and_101_arrive_in_both_directions(stack: Stack) -> None:
    with trio.fail_after(10):
        await _glued_both_ways(stack, 300)


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_bytes_glued_to_request_and_101_arrive_ten_thousand_times(stack: Stack) -> None:
    await _glued_both_ways(stack, 10_000)


@kinds
async def test_ten_thousand_small_turns_on_one_stream_lose_nothing(stack: Stack, kind: str) -> None:
    async def echo(visit: Visit) -> None:
        while data := await visit.receive():
            await visit.send(data)
        await visit.close()

    stack.cluster.on(EXEC, accepting(kind, echo))
    async with stack.raw() as raw:
        await begin(stack, raw, kind)
        with trio.fail_after(60):  # ends the wait for a turn that was lost; no measure of speed
            for number in range(2_500):
                turn = b"%d\n" % number
                await raw.send(turn)
                assert await raw.read(len(turn)) == turn
            many = b"".join(b"%d\n" % number for number in range(7_500))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_send_in_pieces, raw, many)
                assert await raw.read(len(many)) == many


async def _send_in_pieces(raw: RawCaller, data: bytes) -> None:
    for line in data.splitlines(keepends=True):
        await raw.send(line)


@kinds
async def test_every_byte_arrives_before_the_end(stack: Stack, kind: str) -> None:
    block = bytes(range(256)) * 256

    async def pour(visit: Visit) -> None:
        for _ in range(128):
            await visit.send(block)
        await visit.close()

    stack.cluster.on(EXEC, accepting(kind, pour))
    async with stack.raw() as raw:
        await begin(stack, raw, kind)
        await raw.send_eof()
        seen, expected = hashlib.sha256(), hashlib.sha256(block * 128)
        while data := await raw.receive():
            seen.update(data)
        assert seen.digest() == expected.digest()


# --- ends ------------------------------------------------------------------------------------------


@kinds
async def test_half_close_of_the_caller_arrives_and_the_other_half_stays_open(stack: Stack, kind: str) -> None:
    async def answer_after_the_end(visit: Visit) -> None:
        received = b""
        while data := await visit.receive():
            received += data
        for _ in range(20):
            await visit.send(received)
            await trio.sleep(0.001)
        await visit.close()

    stack.cluster.on(EXEC, accepting(kind, answer_after_the_end))
    async with stack.raw() as raw:
        await begin(stack, raw, kind)
        await raw.send(b"question")
        await raw.send_eof()
        with trio.fail_after(2):
            assert await raw.read(20 * 8) == b"question" * 20
            assert await raw.receive() == b""
    await stack.settle()


@kinds
async def test_half_close_of_the_upstream_arrives_and_the_other_half_stays_open(stack: Stack, kind: str) -> None:
    received: list[bytes] = []
    done = trio.Event()

    async def end_first(visit: Visit) -> None:
        await visit.send(b"goodbye")
        assert isinstance(visit.stream, trio.SocketStream)
        await visit.stream.send_eof()
        while data := await visit.receive():
            received.append(data)
        done.set()

    stack.cluster.on(EXEC, accepting(kind, end_first))
    async with stack.raw() as raw:
        await begin(stack, raw, kind)
        with trio.fail_after(2):
            assert await raw.read(7) == b"goodbye"
            assert await raw.receive() == b""
            for _ in range(20):
                await raw.send(b"more;")
                await trio.sleep(0.001)
            await raw.send_eof()
            await done.wait()
        assert b"".join(received) == b"more;" * 20
    await stack.settle()


@kinds
async def test_a_caller_that_breaks_off_is_broken_off_at_the_upstream(stack: Stack, kind: str) -> None:
    gone = trio.Event()

    async def wait(visit: Visit) -> None:
        await visit.wait_gone()
        gone.set()

    stack.cluster.on(EXEC, accepting(kind, wait))
    async with stack.raw() as raw:
        await begin(stack, raw, kind)
        raw.abort()
        with trio.fail_after(2):
            await gone.wait()
    await stack.settle()


@kinds
async def test_an_upstream_that_breaks_off_is_no_clean_end_for_the_caller(stack: Stack, kind: str) -> None:
    async def say_and_break(visit: Visit) -> None:
        await visit.send(b"half of the out")
        await trio.sleep(0.05)
        visit.kill()

    stack.cluster.on(EXEC, accepting(kind, say_and_break))
    async with stack.raw() as raw:
        await begin(stack, raw, kind)
        assert await raw.read(15) == b"half of the out"
        with pytest.raises(CutOff):
            await raw.receive()
    await stack.settle()


@kinds
async def test_a_tunnel_that_is_lost_is_no_clean_end_for_the_caller(stack: Stack, kind: str) -> None:
    async def wait(visit: Visit) -> None:
        await visit.wait_gone()

    stack.cluster.on(EXEC, accepting(kind, wait))
    async with stack.raw() as raw:
        await begin(stack, raw, kind)
        await stack.kill_agent()
        with pytest.raises(CutOff):
            await raw.receive()
    assert stack.cluster.count(EXEC) == 1
