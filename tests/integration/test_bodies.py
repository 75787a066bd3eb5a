"""Bodies: cut where they are cut, framed as they were, with their trailers; 1xx, Expect, early answers, redirects."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from support.scripted_callers import CutOff
from support.scripted_cluster import Visit
from support.scripted_stack import PREFIX, VERSIONS, Stack, Version, open_stack

DATA = b"/api/v1/data"
BODY = bytes(range(256)) * 40

Script = Callable[[Visit], Awaitable[None]]

versions = pytest.mark.parametrize("version", VERSIONS)


def play(*pieces: bytes, end: str = "hold") -> Script:
    """Take the request, send these pieces, and end so."""

    async def script(visit: Visit) -> None:
        await visit.read_body()
        for piece in pieces:
            await visit.send(piece)
        if end == "hold":
            await visit.wait_gone()
        elif end == "close":
            await visit.close()
        elif end == "kill":
            await trio.sleep(0.02)
            visit.kill()

    return script


def head(*lines: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\n%b\r\n" % (status, b"".join(line + b"\r\n" for line in lines))


LENGTH = head(b"Content-Length: %d" % len(BODY))
CHUNKED = head(b"Transfer-Encoding: chunked")
CLOSE = head(b"Connection: close")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


# --- a cut is visible ------------------------------------------------------------------------------

CUTS = {
    "length": (LENGTH, BODY[:5000]),
    "length-last-byte": (LENGTH, BODY[:-1]),
    "length-at-once": (LENGTH, b""),
    "chunked-between": (CHUNKED, chunk(BODY[:5000])),
    "chunked-inside": (CHUNKED, chunk(BODY[:5000]) + b"1000\r\n" + BODY[:100]),
    "chunked-no-last": (CHUNKED, chunk(BODY)),
    "chunked-in-last": (CHUNKED, chunk(BODY) + b"0\r\n"),
    "chunked-at-once": (CHUNKED, b""),
}


@versions
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("how", ["close", "kill", "agent"])
async def test_a_body_that_is_cut_off_is_seen_to_be_and_has_nothing_added(
    stack: Stack, version: Version, cut: str, how: str
) -> None:
    first, rest = CUTS[cut]
    stack.cluster.on(DATA, play(first, rest, end="hold" if how == "agent" else how))
    async with stack.caller(version) as caller:
        answer = await caller.get(DATA)
        assert answer.status == 200
        received = b""
        if how == "agent":
            expected = len(rest.partition(b"\r\n")[2]) if first is CHUNKED else len(rest)
            received = await answer.read(min(expected, 5000)) if expected else b""
            await stack.kill_agent()
        received += await answer.until_cut()
        assert BODY.startswith(received) or (cut == "chunked-inside" and received == BODY[:5000] + BODY[:100])


@versions
async def test_a_close_delimited_body_that_ends_in_order_is_whole(tmp_path: Path, version: Version) -> None:
    async with open_stack(tmp_path, cluster_tls=True) as stack:
        stack.cluster.on(DATA, play(CLOSE, BODY, end="close"))
        async with stack.caller(version) as caller:
            assert await (await caller.get(DATA)).content() == BODY


@versions
async def test_a_close_delimited_body_whose_end_nobody_vouches_for_is_cut(tmp_path: Path, version: Version) -> None:
    async with open_stack(tmp_path, cluster_tls=True) as stack:

        async def break_off(visit: Visit) -> None:
            await visit.send(CLOSE + BODY)
            assert isinstance(visit.stream, trio.SSLStream)
            visit.closed = True
            await visit.stream.transport_stream.aclose()  # without close_notify: an attacker could do as much

        stack.cluster.on(DATA, break_off)
        async with stack.caller(version) as caller:
            answer = await caller.get(DATA)
            assert BODY.startswith(await answer.until_cut())


async def test_an_http1_front_writes_no_last_chunk_behind_a_cut_body(stack: Stack) -> None:
    stack.cluster.on(DATA, play(CHUNKED, chunk(b"whole"), end="kill"))
    async with stack.raw() as raw:
        await raw.send(stack.head(b"GET", DATA))
        assert b"chunked" in (await raw.read_head()).lower()
        assert await raw.read_all() == chunk(b"whole")


async def test_an_http2_front_resets_behind_a_cut_body_and_keeps_the_connection(stack: Stack) -> None:
    stack.cluster.on(DATA, play(CHUNKED, chunk(b"whole"), end="kill"))
    async with stack.caller("http2") as caller:
        answer = await caller.get(DATA)
        assert await answer.read(5) == b"whole"
        with pytest.raises(CutOff) as caught:
            await answer.piece()
        assert caught.value.code is not None
        assert await (await caller.get(b"/api")).content() == b"ok"


async def test_http10_gets_no_chunks_and_sees_a_cut(stack: Stack) -> None:
    stack.cluster.on(DATA, play(CHUNKED, chunk(b"one"), chunk(b"two"), chunk(b""), end="next"))
    async with stack.raw() as raw:
        await raw.send(stack.head(b"GET", DATA).replace(b"HTTP/1.1", b"HTTP/1.0"))
        answered = await raw.read_head()
        assert b"transfer-encoding" not in answered.lower()
        assert b"connection: close" in answered.lower()
        assert await raw.read(7) == b"onetwo"  # and the end, vouched for
    stack.cluster.on(DATA, play(CHUNKED, chunk(b"one"), end="kill"))
    async with stack.raw() as raw:
        await raw.send(stack.head(b"GET", DATA).replace(b"HTTP/1.1", b"HTTP/1.0"))
        await raw.read_head()
        assert await raw.read(3) == b"one"
        with pytest.raises(CutOff):
            await raw.receive()


@versions
async def test_a_request_body_that_is_cut_off_is_cut_off_at_the_api_server(stack: Stack, version: Version) -> None:
    ends: list[bytes] = []
    done = trio.Event()

    async def read_raw(visit: Visit) -> None:
        received = b""
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await visit.receive():
                received += data
        ends.append(received)
        done.set()

    stack.cluster.on(DATA, read_raw)
    async with stack.caller(version) as caller:
        answer = await caller.request(b"POST", DATA, body=None)
        await answer.send(b"only half")
        await stack.cluster.wait_for(DATA)
        await trio.sleep(0.05)
        await answer.cancel()
        with trio.fail_after(2):
            await done.wait()
    assert b"only half" in ends[0]
    assert not ends[0].endswith(b"0\r\n\r\n")


# --- framing ---------------------------------------------------------------------------------------


@versions
@pytest.mark.parametrize("data", [b"", b"x", BODY], ids=len)
async def test_a_length_stays_a_length(stack: Stack, version: Version, data: bytes) -> None:
    stack.cluster.on(DATA, play(head(b"Content-Length: %d" % len(data)), data, end="next"))
    async with stack.caller(version) as caller:
        answer = await caller.get(DATA)
        assert answer.values(b"content-length") == [b"%d" % len(data)]
        assert answer.values(b"transfer-encoding") == []
        assert await answer.content() == data


async def test_a_body_of_unknown_length_is_chunked(stack: Stack) -> None:
    seen = trio.Event()

    async def end_later(visit: Visit) -> None:
        await visit.send(CHUNKED + chunk(BODY))
        await seen.wait()  # an end that is known with the head would be known as a length
        await visit.chunk(b"")

    stack.cluster.on(DATA, end_later)
    async with stack.caller() as caller:
        answer = await caller.get(DATA)
        seen.set()
        assert answer.values(b"transfer-encoding") == [b"chunked"]
        assert answer.values(b"content-length") == []
        assert await answer.content() == BODY


@versions
@pytest.mark.parametrize(
    ("method", "answered", "length"),
    [
        (b"HEAD", head(b"Content-Length: 77"), [b"77"]),
        (b"HEAD", head(b"Transfer-Encoding: chunked"), []),
        (b"GET", head(status=b"204 No Content"), []),
        (b"GET", head(b'ETag: "x"', status=b"304 Not Modified"), []),
        (b"GET", head(b"Content-Length: 77", b'ETag: "x"', status=b"304 Not Modified"), [b"77"]),
        (b"DELETE", head(b"Content-Length: 0"), [b"0"]),
    ],
)
async def test_what_has_no_body_gets_none_and_the_connection_goes_on(
    stack: Stack, version: Version, method: bytes, answered: bytes, length: list[bytes]
) -> None:
    stack.cluster.on(DATA, play(answered, end="next"))
    async with stack.caller(version) as caller:
        for _ in range(3):
            answer = await caller.request(method, DATA)
            assert await answer.head() == int(answered[9:12])
            assert answer.values(b"content-length") == length
            assert await answer.content() == b""
        # Both connections still stand between two messages.
        assert await (await caller.get(b"/api")).content() == b"ok"
    assert {request.connection for request in stack.cluster.requests} == {1}


@versions
@pytest.mark.parametrize("length", [None, 11])
async def test_a_request_body_keeps_its_framing(stack: Stack, version: Version, length: int | None) -> None:
    seen: list[bytes] = []

    async def read(visit: Visit) -> None:
        seen.append((await visit.read_body())[0])
        await visit.answer()

    stack.cluster.on(DATA, read)
    async with stack.caller(version) as caller:
        fields = [] if length is None else [(b"content-length", b"%d" % length)]
        answer = await caller.request(b"POST", DATA, fields, None)
        for piece in (b"hello", b" ", b"world"):
            await answer.send(piece)
        await answer.finish()
        assert await answer.head() == 200
    assert seen == [b"hello world"]
    (request,) = stack.cluster.requests
    assert request.values(b"content-length") == ([] if length is None else [b"11"])
    assert request.values(b"transfer-encoding") == ([b"chunked"] if length is None else [])


@versions
async def test_gzip_passes_as_it_is(stack: Stack, version: Version) -> None:
    squeezed = b"\x1f\x8b\x08\x00not really"
    stack.cluster.on(
        DATA, play(head(b"Content-Encoding: gzip", b"Content-Length: %d" % len(squeezed)), squeezed, end="next")
    )
    async with stack.caller(version) as caller:
        answer = await caller.get(DATA, [(b"accept-encoding", b"gzip")])
        assert answer.values(b"content-encoding") == [b"gzip"]
        assert await answer.content() == squeezed


# --- trailers --------------------------------------------------------------------------------------


@versions
async def test_trailers_travel_and_those_that_would_change_the_message_do_not(stack: Stack, version: Version) -> None:
    trailers = (
        b"Grpc-Status: 0\r\nContent-Length: 3\r\nSet-Cookie: a=b\r\nAuthorization: Bearer x\r\nImpersonate-User: root\r\n"
        b"Moorline-Error: busy\r\nTransfer-Encoding: chunked\r\nX-Checksum: abc\r\nX-Checksum: def\r\n"
    )
    stack.cluster.on(DATA, play(CHUNKED, chunk(b"data"), b"0\r\n" + trailers + b"\r\n", end="next"))
    async with stack.caller(version) as caller:
        answer = await caller.get(DATA, [(b"te", b"trailers")])
        assert await answer.content() == b"data"
        kept = [(name.lower(), value) for name, value in answer.trailers]
        assert kept == [(b"grpc-status", b"0"), (b"x-checksum", b"abc"), (b"x-checksum", b"def")]
        assert answer.values(b"grpc-status") == []
        assert await (await caller.get(b"/api")).content() == b"ok"


@versions
async def test_trailers_of_a_request_travel_too(stack: Stack, version: Version) -> None:
    seen: list[tuple[bytes, list[bytes]]] = []

    async def read(visit: Visit) -> None:
        seen.append(await visit.read_body())
        await visit.answer()

    stack.cluster.on(DATA, read)
    async with stack.caller(version) as caller:
        answer = await caller.request(b"POST", DATA, body=None)
        await answer.send(b"data")
        await answer.finish([(b"x-checksum", b"abc"), (b"impersonate-user", b"root"), (b"authorization", b"Bearer x")])
        assert await answer.head() == 200
    ((body, trailers),) = seen
    assert body == b"data"
    assert [line.lower() for line in trailers] == [b"x-checksum: abc"]


# --- interim responses -----------------------------------------------------------------------------

EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\nMoorline-Error: busy\r\n\r\n"


@versions
async def test_interim_responses_are_passed_on_and_are_not_final(stack: Stack, version: Version) -> None:
    stack.cluster.on(DATA, play(EARLY_HINTS, b"HTTP/1.1 102 Processing\r\n\r\n", LENGTH, BODY, end="next"))
    async with stack.caller(version) as caller:
        answer = await caller.get(DATA)
        assert answer.status == 200
        assert answer.interim == [103, 102]
        names = [name.lower() for name, _ in answer.interim_fields[0]]
        assert names == [b"link"]
        assert await answer.content() == BODY


@versions
@pytest.mark.parametrize(("count", "status"), [(16, 200), (17, 502)])
async def test_sixteen_interim_responses_are_enough(stack: Stack, version: Version, count: int, status: int) -> None:
    stack.cluster.on(DATA, play(EARLY_HINTS * count, LENGTH, BODY, end="next"))
    async with stack.caller(version) as caller:
        answer = await caller.get(DATA)
        assert answer.status == status
        assert len(answer.interim) <= 16


async def test_http10_gets_no_interim_response(stack: Stack) -> None:
    stack.cluster.on(DATA, play(EARLY_HINTS, LENGTH, BODY, end="next"))
    async with stack.raw() as raw:
        await raw.send(stack.head(b"GET", DATA).replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert b" 200 " in (await raw.read_head()).partition(b"\r\n")[0]


# --- Expect ----------------------------------------------------------------------------------------

EXPECT = [(b"expect", b"100-continue"), (b"content-length", b"5")]


@versions
async def test_a_100_is_the_api_servers_and_the_body_waits_for_it(stack: Stack, version: Version) -> None:
    may_continue = trio.Event()
    seen: list[bytes] = []

    async def ask_for_it(visit: Visit) -> None:
        assert visit.request.values(b"expect") == [b"100-continue"]
        await may_continue.wait()
        await visit.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        seen.append(await visit.read(5))
        await visit.answer()

    stack.cluster.on(DATA, ask_for_it)
    async with stack.caller(version) as caller:
        answer = await caller.request(b"PUT", DATA, EXPECT, None)
        await stack.cluster.wait_for(DATA)
        assert answer.interim == []
        may_continue.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer.head)
            with trio.fail_after(5):
                while answer.interim != [100]:  # noqa: ASYNC110
                    await trio.sleep(0.001)
            await answer.send(b"hello")
            await answer.finish()
        assert answer.status == 200
    assert seen == [b"hello"]


@versions
@pytest.mark.parametrize("status", [b"413 Content Too Large", b"403 Forbidden", b"417 Expectation Failed"])
async def test_a_refusal_arrives_before_the_body_was_asked_for(stack: Stack, version: Version, status: bytes) -> None:
    behind: list[bytes] = []

    async def refuse(visit: Visit) -> None:
        await visit.answer(b"no", status, b"Connection: close\r\n")
        with contextlib.suppress(trio.BrokenResourceError):
            behind.append(await visit.receive())

    stack.cluster.on(DATA, refuse)
    async with stack.caller(version) as caller:
        answer = await caller.request(b"PUT", DATA, EXPECT, None)
        assert await answer.head() == int(status[:3])
        assert 100 not in answer.interim
        assert await answer.content() == b"no"
    await stack.cluster.wait_connections(0)
    assert b"".join(behind) == b""


@versions
async def test_a_refusal_of_kas_arrives_before_the_body_was_asked_for(stack: Stack, version: Version) -> None:
    async with stack.caller(version, user="viewer") as caller:
        answer = await caller.request(b"PUT", DATA, EXPECT, None)
        assert await answer.head() == 403
        assert answer.interim == []
    assert stack.cluster.requests == []


@versions
async def test_an_api_server_that_knows_no_100_gets_the_body_after_a_second(stack: Stack, version: Version) -> None:
    seen: list[tuple[bytes, float]] = []

    async def wait_for_body(visit: Visit) -> None:
        start = trio.current_time()
        body = await visit.read(5)
        seen.append((body, trio.current_time() - start))
        await visit.answer()

    stack.cluster.on(DATA, wait_for_body)
    async with stack.caller(version) as caller:
        answer = await caller.request(b"PUT", DATA, EXPECT, None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer.head)
            with trio.fail_after(5):
                while answer.interim != [100]:  # noqa: ASYNC110
                    await trio.sleep(0.005)
            await answer.send(b"hello")
            await answer.finish()
        assert answer.status == 200
    ((body, waited),) = seen
    assert body == b"hello"
    assert waited > 0.9


@versions
async def test_a_caller_that_does_not_wait_for_the_100_is_served_at_once(stack: Stack, version: Version) -> None:
    async def ask_for_it(visit: Visit) -> None:
        await visit.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await visit.read(5) == b"hello"
        await visit.answer()

    stack.cluster.on(DATA, ask_for_it)
    async with stack.caller(version) as caller:
        with trio.fail_after(0.9):
            answer = await caller.request(b"PUT", DATA, EXPECT, b"hello")
            assert await answer.head() == 200


# --- early answers ---------------------------------------------------------------------------------


@versions
async def test_a_413_arrives_while_fifty_megabytes_are_being_sent(stack: Stack, version: Version) -> None:
    taken: list[int] = []

    async def refuse(visit: Visit) -> None:
        taken.append(len(await visit.read(100_000)))
        await visit.answer(b'{"code":413}', b"413 Content Too Large", b"Connection: close\r\n")
        await visit.wait_gone()

    stack.cluster.on(DATA, refuse)
    total = 50 * 1024 * 1024
    sent = 0
    async with stack.caller(version) as caller:
        answer = await caller.request(b"POST", DATA, [(b"content-length", b"%d" % total)], None)

        async def upload() -> None:
            nonlocal sent
            with contextlib.suppress(CutOff, trio.BrokenResourceError, trio.ClosedResourceError):
                while sent < total:
                    await answer.send(bytes(65_536))
                    sent += 65_536

        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload)
            assert await answer.head() == 413
            assert await answer.content() == b'{"code":413}'
            nursery.cancel_scope.cancel()
    assert sent < total
    await stack.settle()
    async with stack.caller(version) as caller:
        assert (await caller.get(b"/api")).status == 200


@versions
async def test_an_answer_in_full_duplex_is_not_held_back_by_the_request(stack: Stack, version: Version) -> None:
    async def echo(visit: Visit) -> None:
        await visit.send(CHUNKED)
        for _ in range(3):
            size = int(await visit._line(), 16)
            await visit.chunk(await visit.read(size))
            assert await visit._line() == b""
        assert await visit._line() == b"0"
        await visit.chunk(b"")

    stack.cluster.on(DATA, echo)
    async with stack.caller(version) as caller:
        answer = await caller.request(b"POST", DATA, body=None)
        assert await answer.head() == 200
        for piece in (b"one", b"two", b"three"):
            await answer.send(piece)
            assert await answer.read(len(piece)) == piece
        await answer.finish()
        assert await answer.piece() == b""


# --- redirects and statuses ------------------------------------------------------------------------


@versions
@pytest.mark.parametrize("status", [b"301 Moved Permanently", b"302 Found", b"307 Temporary Redirect"])
@pytest.mark.parametrize(
    ("location", "becomes"),
    [
        (b"/api/v1/x/", PREFIX + b"/api/v1/x/"),
        (b"/a%2Fb?c;d", PREFIX + b"/a%2Fb?c;d"),
        (b"relative/path", b"relative/path"),
        (b"?query", b"?query"),
    ],
)
async def test_a_redirect_stays_behind_the_prefix_and_is_not_followed(
    stack: Stack, version: Version, status: bytes, location: bytes, becomes: bytes
) -> None:
    stack.cluster.on(DATA, play(head(b"Location: " + location, b"Content-Length: 0", status=status), end="next"))
    async with stack.caller(version) as caller:
        answer = await caller.get(DATA)
        assert answer.status == int(status[:3])
        assert answer.values(b"location") == [becomes]
    assert len(stack.cluster.requests) == 1


@versions
@pytest.mark.parametrize(
    "location",
    [
        b"https://evil.example/x",
        b"http://169.254.169.254/latest",
        b"//evil.example/x",
        b"/\\evil.example/x",
        b"\\\\evil.example",
        b"javascript:alert(1)",
        b"HTTPS:evil",
        b"/\t/evil.example",
    ],
)
async def test_a_redirect_to_another_host_is_a_502(stack: Stack, version: Version, location: bytes) -> None:
    stack.cluster.on(
        DATA, play(head(b"Location: " + location, b"Content-Length: 4", status=b"302 Found"), b"body", end="next")
    )
    async with stack.caller(version) as caller:
        answer = await caller.get(DATA)
        assert answer.status == 502
        assert answer.values(b"location") == []
        assert json.loads(await answer.content())["reason"] == "BadGateway"


@versions
@pytest.mark.parametrize(
    "status", [200, 201, 202, 207, 300, 400, 403, 404, 405, 406, 409, 410, 415, 418, 422, 429, 499, 500, 599]
)
async def test_a_status_and_its_body_pass_as_they_are(stack: Stack, version: Version, status: int) -> None:
    stack.cluster.on(DATA, play(head(b"Content-Length: 4", status=b"%d Some Reason" % status), b"body", end="next"))
    async with stack.caller(version) as caller:
        answer = await caller.get(DATA)
        assert answer.status == status
        assert await answer.content() == b"body"
        assert answer.values(b"moorline-failed-hop") == []
