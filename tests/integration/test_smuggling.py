"""One request in, at most one request out: what front and agent make of messages that two parsers read differently.

Each payload has a second request hidden in it, with a credential that works. At the kube-apiserver it must never arrive.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Awaitable, Callable

import h2.config
import pytest
import trio
import trio.testing
from support.scripted_callers import Answer, CutOff, Http2Caller
from support.scripted_cluster import Visit
from support.scripted_stack import VERSIONS, Stack, Version

FIRST = b"/api/v1/first"
HIDDEN = b"/api/v1/hidden"
NEXT = b"/api/v1/next"


def hidden(stack: Stack) -> bytes:
    return stack.head(b"GET", HIDDEN)


# --- heads that are refused: nothing arrives --------------------------------------------------------

BAD_LINES = {
    "length and chunked": (b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    "chunked and length": (b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", b"0\r\n\r\n"),
    "two lengths": (b"Content-Length: 0\r\nContent-Length: 44\r\n", b""),
    "two equal lengths": (b"Content-Length: 0\r\nContent-Length: 0\r\n", b""),
    "list of lengths": (b"Content-Length: 0, 44\r\n", b""),
    "length with plus": (b"Content-Length: +0\r\n", b""),
    "length with minus": (b"Content-Length: -1\r\n", b""),
    "length in hexadecimal": (b"Content-Length: 0x0\r\n", b""),
    "length with underscore": (b"Content-Length: 1_0\r\n", b"0123456789"),
    "length with a fraction": (b"Content-Length: 0.0\r\n", b""),
    "length with other digits": (b"Content-Length: \xd9\xa0\r\n", b""),
    "length that is empty": (b"Content-Length:\r\n", b""),
    "length that is huge": (b"Content-Length: 99999999999999999999999999\r\n", b""),
    "length with vertical tab": (b"Content-Length:\x0b0\r\n", b""),
    "chunked twice": (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    "chunked and more": (b"Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n"),
    "more and chunked": (b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"),
    "identity": (b"Transfer-Encoding: identity\r\n", b""),
    "nearly chunked": (b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"),
    "chunked in quotes": (b'Transfer-Encoding: "chunked"\r\n', b"0\r\n\r\n"),
    "chunked with parameter": (b"Transfer-Encoding: chunked;q=1\r\n", b"0\r\n\r\n"),
    "chunked behind vertical tab": (b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n"),
    "empty coding": (b"Transfer-Encoding:\r\n", b""),
    "space before colon": (b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n"),
    "tab before colon": (b"Content-Length\t: 44\r\n", b""),
    "folded line": (b"X-Folded: a\r\n Transfer-Encoding: chunked\r\n", b""),
    "folded coding": (b"Transfer-Encoding:\r\n chunked\r\n", b"0\r\n\r\n"),
    "bare LF in value": (b"X-A: b\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    "bare LF at the end": (b"X-A: b\n", b""),
    "bare CR in value": (b"X-A: b\rTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    "NUL in value": (b"X-A: a\x00b\r\n", b""),
    "NUL in name": (b"X\x00A: b\r\n", b""),
    "control byte in value": (b"X-A: a\x01b\r\n", b""),
    "DEL in value": (b"X-A: a\x7fb\r\n", b""),
    "no colon": (b"X-Nothing\r\n", b""),
    "no name": (b": value\r\n", b""),
    "name with space": (b"X A: b\r\n", b""),
    "name with slash": (b"X/A: b\r\n", b""),
    "name with high byte": (b"X\xe9: b\r\n", b""),
    "second host": (b"Host: elsewhere\r\n", b""),
}


@pytest.mark.parametrize("name", BAD_LINES)
async def test_a_head_that_could_be_read_in_two_ways_is_refused_and_the_connection_closed(
    stack: Stack, name: str
) -> None:
    lines, body = BAD_LINES[name]
    head = stack.head(b"POST", FIRST)[:-2] + lines + b"\r\n"
    await _expect_refusal(stack, head + body + hidden(stack), {400})


BAD_STARTS = {
    "http/0.9": (b"GET %s\r\n\r\n", {400}),
    "version in lower case": (b"GET %s http/1.1\r\nHost: a\r\n\r\n", {400}),
    "version with more digits": (b"GET %s HTTP/1.10\r\nHost: a\r\n\r\n", {400}),
    "version 1.2": (b"GET %s HTTP/1.2\r\nHost: a\r\n\r\n", {505}),
    "version 2.0": (b"GET %s HTTP/2.0\r\nHost: a\r\n\r\n", {505}),
    "preface of http/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 505}),
    "two spaces": (b"GET  %s HTTP/1.1\r\nHost: a\r\n\r\n", {400}),
    "tab": (b"GET\t%s HTTP/1.1\r\nHost: a\r\n\r\n", {400}),
    "space in target": (b"GET %s x HTTP/1.1\r\nHost: a\r\n\r\n", {400}),
    "leading space": (b" GET %s HTTP/1.1\r\nHost: a\r\n\r\n", {400}),
    "two empty lines first": (b"\r\n\r\nGET %s HTTP/1.1\r\nHost: a\r\n\r\n", {400}),
    "bare LF": (b"GET %s HTTP/1.1\nHost: a\n\n", {400}),
    "no host": (b"GET %s HTTP/1.1\r\nX-A: b\r\n\r\n", {400}),
    "host with a path": (b"GET %s HTTP/1.1\r\nHost: a/b\r\n\r\n", {400}),
    "host with userinfo": (b"GET %s HTTP/1.1\r\nHost: u@a\r\n\r\n", {400}),
    "list of hosts": (b"GET %s HTTP/1.1\r\nHost: a b\r\n\r\n", {400}),
    "authority of another": (b"GET https://b%s HTTP/1.1\r\nHost: a\r\n\r\n", {400}),
    "target without slash": (b"GET x%s HTTP/1.1\r\nHost: a\r\n\r\n", {400}),
    "asterisk": (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", {400}),
    "connect": (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", {400, 405}),
    "method in parentheses": (b"(GET) %s HTTP/1.1\r\nHost: a\r\n\r\n", {400}),
    "first line is a field": (b"Host: a\r\nGET %s HTTP/1.1\r\n\r\n", {400}),
    "TLS inside": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", {400}),
}


@pytest.mark.parametrize("name", BAD_STARTS)
async def test_a_request_line_that_is_none_is_refused_and_the_connection_closed(stack: Stack, name: str) -> None:
    text, statuses = BAD_STARTS[name]
    await _expect_refusal(stack, text.replace(b"%s", b"/agents/edge/k8s" + FIRST) + hidden(stack), statuses)


@pytest.mark.parametrize(
    ("more", "status"),
    [
        (b"X-Big: " + b"x" * 70_000 + b"\r\n", 431),
        (b"X-Many: 1\r\n" * 201, 431),
        (b"X-Slow: " + b"x" * 70_000, 431),
    ],
    ids=["large", "many", "without end"],
)
async def test_a_head_that_is_too_large_is_refused_and_the_connection_closed(
    stack: Stack, more: bytes, status: int
) -> None:
    await _expect_refusal(stack, stack.head(b"GET", FIRST)[:-2] + more + b"\r\n" + hidden(stack), {status})


async def test_a_target_that_is_too_long_is_refused_and_the_connection_closed(stack: Stack) -> None:
    await _expect_refusal(stack, stack.head(b"GET", FIRST + b"x" * 33_000) + hidden(stack), {414})
    await _expect_refusal(stack, b"GET /" + b"x" * 70_000, {414})


async def _expect_refusal(stack: Stack, wire: bytes, statuses: set[int]) -> None:
    async with stack.raw() as raw:
        await raw.send(wire)
        answered = await raw.read_all()  # ends only when kas has closed
    assert answered.startswith(b"HTTP/1.1 "), answered[:100]
    assert int(answered[9:12]) in statuses
    assert len(re.findall(rb"HTTP/1\.1 [0-9]", answered)) == 1
    head, _, body = answered.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    assert json.loads(body)["kind"] == "Status"
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert stack.cluster.requests == []


# --- bodies that are broken: the one request never becomes whole -----------------------------------

BAD_CHUNKS = {
    "size with 0x": b"0x3\r\nabc\r\n0\r\n\r\n",
    "size with plus": b"+3\r\nabc\r\n0\r\n\r\n",
    "size with minus": b"-3\r\nabc\r\n0\r\n\r\n",
    "size with underscore": b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n",
    "size with leading space": b" 3\r\nabc\r\n0\r\n\r\n",
    "size that is empty": b"\r\nabc\r\n0\r\n\r\n",
    "size that is huge": b"ffffffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "size in other digits": b"\xd9\xa3\r\nabc\r\n0\r\n\r\n",
    "size behind NUL": b"\x003\r\nabc\r\n0\r\n\r\n",
    "size line with bare LF": b"3\nabc\r\n0\r\n\r\n",
    "size line with bare CR": b"3\rabc\r\n0\r\n\r\n",
    "extension with LF": b"3;a\nb\r\nabc\r\n0\r\n\r\n",
    "extension with CR": b"3;a\rb\r\nabc\r\n0\r\n\r\n",
    "extension without end": b"3;" + b"x" * 50_000,
    "data longer than size": b"3\r\nabcd\r\n0\r\n\r\n",
    "data shorter than size": b"5\r\nabc\r\n0\r\n\r\n",
    "data ended by LF": b"3\r\nabc\n0\r\n\r\n",
    "data ended by two bytes": b"3\r\nabcXX0\r\n\r\n",
    "junk instead of last chunk": b"3\r\nabc\r\nGET / HTTP/1.1\r\n\r\n",
    "folded trailer": b"0\r\nX-A: b\r\n c\r\n\r\n",
    "trailer without colon": b"0\r\nX-A\r\n\r\n",
    "trailer with bare LF": b"0\r\nX-A: b\nX-B: c\r\n\r\n",
    "trailers without end": b"0\r\n" + b"X-A: b\r\n" * 20_000,
}


@pytest.mark.parametrize("name", BAD_CHUNKS)
async def test_a_body_that_could_be_read_in_two_ways_never_becomes_whole(stack: Stack, name: str) -> None:
    bodies: list[bytes] = []

    async def take(visit: Visit) -> None:
        received = b""
        while data := await visit.receive():
            received += data
        bodies.append(received)

    stack.cluster.on(FIRST, take)
    async with stack.raw() as raw:
        await raw.send(stack.head(b"POST", FIRST, b"Transfer-Encoding: chunked"))
        await stack.cluster.wait_for(FIRST)
        await raw.send(BAD_CHUNKS[name] + hidden(stack))
        answered = await raw.read_all()
    assert answered == b"" or answered.startswith(b"HTTP/1.1 400 "), answered
    assert answered.count(b"HTTP/1.1 ") <= 1
    await stack.cluster.wait_connections(0)
    assert all(not body.endswith(b"0\r\n\r\n") for body in bodies)
    assert len(stack.cluster.requests) == 1


async def test_requests_that_are_sent_ahead_are_served_in_order_and_one_at_a_time(stack: Stack) -> None:
    running = 0

    async def count(visit: Visit) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await trio.sleep(0.01)
        running -= 1
        await visit.answer(visit.request.target)

    stack.cluster.default = count
    async with stack.raw() as raw:
        await raw.send(b"".join(stack.head(b"GET", b"/%d" % number) for number in range(10)))
        for number in range(10):
            assert (await raw.read_head()).startswith(b"HTTP/1.1 200 ")
            assert await raw.read(2) == b"/%d" % number


# --- HTTP/2 ----------------------------------------------------------------------------------------

PSEUDO: dict[bytes, bytes] = {b":method": b"POST", b":scheme": b"https", b":authority": b"kas.example.com"}

BAD_HTTP2: dict[str, list[tuple[bytes, bytes]] | dict[bytes, bytes | None]] = {
    "connection": [(b"connection", b"close")],
    "transfer-encoding": [(b"transfer-encoding", b"chunked")],
    "upgrade": [(b"upgrade", b"h2c")],
    "keep-alive": [(b"keep-alive", b"1")],
    "te": [(b"te", b"chunked")],
    "name in upper case": [(b"X-Upper", b"1")],
    "line break in value": [(b"x-a", b"b\r\ntransfer-encoding: chunked")],
    "line feed in value": [(b"x-a", b"b\nc")],
    "NUL in value": [(b"x-a", b"b\x00c")],
    "space around value": [(b"x-a", b" b ")],
    "line break in name": [(b"x-a: b\r\nx", b"c")],
    "colon in name": [(b"x:a", b"b")],
    "space in name": [(b"x a", b"b")],
    "empty name": [(b"", b"b")],
    "another host": [(b"host", b"elsewhere.example")],
    "two lengths": [(b"content-length", b"0"), (b"content-length", b"5")],
    "length with plus": [(b"content-length", b"+0")],
    "second path": [(b":path", b"/api")],
    "unknown pseudo-field": [(b":agent", b"edge")],
    "protocol": [(b":protocol", b"websocket")],
    "late pseudo-field": [(b"x-a", b"b"), (b":scheme", b"https")],
    "method with line": {b":method": b"GET / HTTP/1.1\r\nX: y"},
    "method with space": {b":method": b"GET "},
    "empty method": {b":method": b""},
    "path with line break": {b":path": b"/agents/edge/k8s/x HTTP/1.1\r\nX: y"},
    "path with space": {b":path": b"/agents/edge/k8s/x y"},
    "path with NUL": {b":path": b"/agents/edge/k8s/x\x00"},
    "path without slash": {b":path": b"agents/edge/k8s/x"},
    "empty path": {b":path": b""},
    "authority with userinfo": {b":authority": b"u@kas.example.com"},
    "authority with line break": {b":authority": b"a\r\nb"},
    "no path": {b":path": None},
    "no method": {b":method": None},
}


@pytest.mark.parametrize("name", BAD_HTTP2)
async def test_an_http2_head_that_http1_would_read_differently_is_refused(stack: Stack, name: str) -> None:
    change = BAD_HTTP2[name]
    pseudo: dict[bytes, bytes | None] = {**PSEUDO, b":path": b"/agents/edge/k8s" + FIRST}
    lines: list[tuple[bytes, bytes]] = []
    if isinstance(change, dict):
        pseudo.update(change)
    else:
        lines = change
    fields = [(key, value) for key, value in pseudo.items() if value is not None]
    fields += [(b"authorization", b"Bearer " + stack.token()), *lines]
    async with stack.caller("http2") as caller:
        assert isinstance(caller, Http2Caller)
        answer = await _send_unchecked(caller, fields)
        with contextlib.suppress(CutOff):
            assert await answer.head() == 400
        assert stack.cluster.requests == []


async def test_the_same_request_without_the_trick_is_served(stack: Stack) -> None:
    fields = [*PSEUDO.items(), (b":path", b"/agents/edge/k8s" + FIRST), (b"authorization", b"Bearer " + stack.token())]
    async with stack.caller("http2") as caller:
        assert isinstance(caller, Http2Caller)
        answer = await _send_unchecked(caller, [*fields, (b"x-a", b"b")])
        assert await answer.head() == 200
    assert stack.cluster.count(FIRST) == 1


async def _send_unchecked(caller: Http2Caller, fields: list[tuple[bytes, bytes]]) -> Answer:
    """Send a head which `h2` would not send by itself."""
    caller.machine.config = h2.config.H2Configuration(
        header_encoding=None,
        validate_outbound_headers=False,
        normalize_outbound_headers=False,
        validate_inbound_headers=True,
    )
    return await caller.send_fields(fields)


@pytest.mark.parametrize(("declared", "sent"), [(b"10", b"abc"), (b"2", b"abc"), (b"0", b"abc")])
async def test_http2_data_that_contradict_the_length_never_become_a_whole_body(
    stack: Stack, declared: bytes, sent: bytes
) -> None:
    bodies: list[bytes] = []

    async def take(visit: Visit) -> None:
        received = b""
        while data := await visit.receive():
            received += data
        bodies.append(received)

    stack.cluster.on(FIRST, take)
    async with stack.caller("http2") as caller:
        answer = await caller.request(b"POST", FIRST, [(b"content-length", declared)], None)
        with pytest.raises(CutOff):
            await answer.send(sent)
            await answer.finish()
            await answer.head()
    await stack.settle()
    assert all(len(body) < int(declared) or not body for body in bodies)


# --- malformed answers -----------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\n"
POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"

BAD_ANSWERS = {
    "no http": b"hello\r\n\r\n",
    "http/0.9": b"<html></html>\r\n\r\n",
    "version 2": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "status of two digits": b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
    "status of four digits": b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
    "status zero": b"HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n",
    "length and chunked": OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": OK + b"Content-Length: 0\r\nContent-Length: 50\r\n\r\n",
    "length with plus": OK + b"Content-Length: +5\r\n\r\nabcde",
    "length with minus": OK + b"Content-Length: -5\r\n\r\n",
    "length in hexadecimal": OK + b"Content-Length: 0x5\r\n\r\nabcde",
    "unknown coding": OK + b"Transfer-Encoding: rot13\r\n\r\nabcde",
    "chunked and more": OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "NUL in value": OK + b"X-A: a\x00b\r\nContent-Length: 0\r\n\r\n",
    "folded line": OK + b"X-A: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "bare CR": OK + b"X-A: a\rb\r\nContent-Length: 0\r\n\r\n",
    "space before colon": OK + b"Content-Length : 0\r\n\r\n",
    "no colon": OK + b"X-A\r\nContent-Length: 0\r\n\r\n",
    "huge head": OK + b"X-A: " + b"x" * 140_000 + b"\r\n\r\n",
    "many lines": OK + b"X-A: b\r\n" * 1_100 + b"\r\n",
    "head without end": OK + b"X-A: b\r\n" * 30_000,
    "101 to no upgrade": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "endless interim": b"HTTP/1.1 102 Processing\r\n\r\n" * 40,
}

BAD_BODIES = {
    "chunk size with 0x": b"0x3\r\nabc\r\n0\r\n\r\n",
    "chunk size with underscore": b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n",
    "chunk size that is huge": b"fffffffffffffffffff\r\nabc",
    "chunk size line with LF": b"3\nabc\r\n0\r\n\r\n",
    "chunk data too long": b"3\r\nabcdef\r\n0\r\n\r\n",
    "folded trailer": b"3\r\nabc\r\n0\r\nX-A: b\r\n c\r\n\r\n",
    "trailers without end": b"3\r\nabc\r\n0\r\n" + b"X-A: b\r\n" * 20_000,
}


def _say(wire: bytes) -> Callable[[Visit], Awaitable[None]]:
    async def script(visit: Visit) -> None:
        await visit.read_body()
        await visit.send(wire)
        await visit.wait_gone()

    return script


async def _expect_next_is_clean(stack: Stack, version: Version) -> None:
    """The connection with the bad answer is not used again, and nothing of it reaches anybody else."""
    async with stack.caller(version) as caller:
        answer = await caller.get(NEXT)
        assert answer.status == 200
        assert await answer.content() == b"ok"
    by_path = stack.cluster.by_path()
    assert len(by_path[FIRST]) == 1
    assert by_path[FIRST][0].connection != by_path[NEXT][0].connection


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", BAD_ANSWERS)
async def test_an_answer_that_is_none_is_a_502_and_its_connection_is_not_used_again(
    stack: Stack, version: Version, name: str
) -> None:
    stack.cluster.on(FIRST, _say(BAD_ANSWERS[name] + POISON))
    async with stack.caller(version) as caller:
        answer = await caller.get(FIRST)
        assert answer.status == 502
        status = json.loads(await answer.content())
        assert status["reason"] == "BadGateway"
        assert "poison" not in status["message"]
        assert answer.values(b"retry-after") == []
    await _expect_next_is_clean(stack, version)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", BAD_BODIES)
async def test_a_body_that_is_malformed_is_cut_and_its_connection_is_not_used_again(
    stack: Stack, version: Version, name: str
) -> None:
    seen = trio.Event()

    async def script(visit: Visit) -> None:
        await visit.send(OK + b"Transfer-Encoding: chunked\r\n\r\n")
        await seen.wait()
        await visit.send(BAD_BODIES[name] + POISON)
        await visit.wait_gone()

    stack.cluster.on(FIRST, script)
    async with stack.caller(version) as caller:
        answer = await caller.get(FIRST)
        seen.set()
        received = await answer.until_cut()
        assert b"poison" not in received
        assert b"Status" not in received
    await _expect_next_is_clean(stack, version)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
async def test_a_second_answer_behind_the_first_is_nobodys(stack: Stack, version: Version, method: bytes) -> None:
    stack.cluster.on(FIRST, _say(OK + b"Content-Length: 2\r\n\r\nok" + POISON))
    async with stack.caller(version) as caller:
        answer = await caller.request(method, FIRST)
        assert await answer.head() == 200
        assert await answer.content() == (b"ok" if method == b"GET" else b"")
    await _expect_next_is_clean(stack, version)


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_answer_before_the_request_is_nobodys(stack: Stack, version: Version) -> None:
    async def answer_and_poison_later(visit: Visit) -> None:
        await visit.answer()
        await trio.sleep(0.02)
        await visit.send(POISON)
        await visit.wait_gone()

    stack.cluster.on(FIRST, answer_and_poison_later)
    async with stack.caller(version) as caller:
        assert await (await caller.get(FIRST)).content() == b"ok"
    await trio.sleep(0.1)
    await _expect_next_is_clean(stack, version)


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_answer_without_a_body_may_not_have_one(stack: Stack, version: Version) -> None:
    """204 with a body that looks like the next answer; a HEAD whose answer brings what it announces."""
    stack.cluster.on(FIRST, _say(b"HTTP/1.1 204 No Content\r\nContent-Length: 64\r\n\r\n" + POISON))
    async with stack.caller(version) as caller:
        answer = await caller.get(FIRST)
        assert await answer.content() == b"" or answer.status == 502
    await _expect_next_is_clean(stack, version)
