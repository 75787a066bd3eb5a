"""The client end: one connection to an upstream that may send anything at all."""

from __future__ import annotations

import h11
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from support.http1 import Front, MemoryTransport, answer_ok, memory_transport_pair, read_until

from tunnel.errors import ConnectionEnded, ErrorCode, LocalProtocolError, RemoteProtocolError, StreamReset
from tunnel.http1.client import Http1Client, Http1Upstream
from tunnel.http1.downstream import Http1Downstream
from tunnel.messages import Fields, RequestHead, ResponseHead, Upstream


def head(
    method: bytes = b"GET",
    *,
    fields: Fields | None = None,
    protocol: bytes | None = None,
    length: int | None = None,
    ended: bool = True,
) -> RequestHead:
    return RequestHead(method, b"/x?y", b"front", fields or [], protocol, length, ended)


def connected(*, capacity_bytes: int | None = None) -> tuple[Http1Client, MemoryTransport]:
    """A client, and the upstream's end of its transport."""
    near, far = memory_transport_pair(capacity_bytes=capacity_bytes)
    return Http1Client(near), far


async def read_body(upstream: Upstream) -> bytes:
    content = b""
    while data := await upstream.body.receive():
        content += data
    return content


async def receive_final_head(upstream: Upstream) -> ResponseHead:
    while (answer := await upstream.receive_head()).status < 200:
        pass
    return answer


async def get(client: Http1Client, far: MemoryTransport, response: bytes, method: bytes = b"GET") -> Http1Upstream:
    upstream = await client.send(head(method), authority=b"kubernetes")
    await far.send_all(response)
    return upstream


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

# Requests


@pytest.mark.parametrize(
    ("request_head", "data", "end", "lines", "body"),
    [
        (head(), b"", False, b"", b""),
        (head(), b"", True, b"", b""),
        (head(b"DELETE"), b"", False, b"", b""),
        (head(b"POST"), b"", False, b"Content-Length: 0\r\n", b""),
        (head(b"GET", length=0), b"", False, b"Content-Length: 0\r\n", b""),
        (head(b"PATCH", length=2, ended=False), b"ok", True, b"Content-Length: 2\r\n", b"ok"),
        (head(b"PATCH", length=2, ended=False), b"ok", False, b"Content-Length: 2\r\n", b"ok"),
        (head(b"PATCH", ended=False), b"ok", True, b"Content-Length: 2\r\n", b"ok"),
        (head(b"PATCH", ended=False), b"", True, b"Content-Length: 0\r\n", b""),
        (head(b"PATCH", length=0, ended=False), b"", False, b"Content-Length: 0\r\n", b""),
        (head(b"GET", ended=False), b"ok", False, b"Transfer-Encoding: chunked\r\n", b"2\r\nok\r\n"),
        (
            head(b"POST", fields=[(b"content-length", b"7"), (b"transfer-encoding", b"x")], length=2, ended=False),
            b"ok",
            False,
            b"Content-Length: 2\r\n",
            b"ok",
        ),
        (
            head(protocol=b"websocket"),
            b"",
            False,
            b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
            b"",
        ),
        (
            head(b"POST", protocol=b"SPDY/3.1"),
            b"",
            False,
            b"Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n",
            b"",
        ),
        (
            head(b"POST", protocol=b"SPDY/3.1", length=0),
            b"",
            True,
            b"Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n",
            b"",
        ),
    ],
)
async def test_a_request_and_its_first_bytes_leave_in_one_write(
    request_head: RequestHead, data: bytes, end: bool, lines: bytes, body: bytes
) -> None:
    client, far = connected()
    await client.send(request_head, authority=b"kubernetes", data=data, end=end)
    start = request_head.method + b" /x?y HTTP/1.1\r\nHost: kubernetes\r\n"
    assert far.peer.writes == [start + lines + b"\r\n" + body]


async def test_a_body_is_streamed_as_it_was_declared() -> None:
    client, far = connected()
    upstream = await client.send(head(b"PUT", length=5, ended=False), authority=b"a")
    await upstream.writer.send(b"he")
    await upstream.writer.send(b"llo")
    await upstream.writer.finish([(b"x", b"left out")])
    assert far.peer.sent.endswith(b"\r\n\r\nhello")

    client, far = connected()
    upstream = await client.send(head(b"PUT", ended=False), authority=b"a")
    await upstream.writer.send(b"hello")
    await upstream.writer.finish([(b"x", b"y")])
    assert far.peer.sent.endswith(b"\r\n\r\n5\r\nhello\r\n0\r\nx: y\r\n\r\n")


async def test_a_body_of_another_length_than_declared_aborts_the_connection() -> None:
    client, far = connected()
    upstream = await client.send(head(b"PUT", length=5, ended=False), authority=b"a", data=b"four")
    with pytest.raises(LocalProtocolError):
        await upstream.writer.finish()
    assert far.peer.aborted

    client, far = connected()
    upstream = await client.send(head(b"PUT", length=5, ended=False), authority=b"a", data=b"four")
    with pytest.raises(LocalProtocolError):
        await upstream.writer.send(b"teen")
    assert far.peer.aborted


@pytest.mark.parametrize(
    ("request_head", "data", "end", "wait"),
    [
        (head(b"PUT", length=3, ended=False), b"ok", True, False),
        (head(b"PUT", length=1, ended=False), b"ok", False, False),
        (head(b"PUT"), b"ok", True, False),
        (head(b"PUT", length=3), b"", False, False),
        (head(b"PUT"), b"ok", False, False),
        (head(b"PUT", length=2, ended=False), b"ok", False, True),
        (head(b"PUT", length=2, ended=False), b"", True, True),
        (head(b"POST", protocol=b"SPDY/3.1", ended=False), b"", False, False),
        (head(b"POST", protocol=b"SPDY/3.1", length=2), b"", False, False),
        (head(b"POST", protocol=b"SPDY/3.1"), b"ok", True, False),
        (head(b"POST", protocol=b"SPDY/3.1"), b"ok", False, False),
        (head(fields=[(b"x", b"a\r\nb: c")]), b"", False, False),
    ],
)
async def test_a_request_that_contradicts_itself_is_a_bug_and_nothing_is_written(
    request_head: RequestHead, data: bytes, end: bool, wait: bool
) -> None:
    client, far = connected()
    with pytest.raises(LocalProtocolError):
        await client.send(request_head, authority=b"a", data=data, end=end, wait_for_continue=wait)
    assert far.peer.sent == b""
    assert not client.sent_any_byte


async def test_the_body_waits_for_a_100_where_it_is_told_to() -> None:
    client, far = connected()
    fields: Fields = [(b"expect", b"100-continue")]
    upstream = await client.send(
        head(b"PUT", fields=fields, length=2, ended=False), authority=b"a", wait_for_continue=True
    )
    assert far.peer.sent.endswith(b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    with trio.move_on_after(0.01) as waiting:
        await upstream.receive_head()
    assert waiting.cancelled_caught  # and nothing is lost by it
    await far.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert (await upstream.receive_head()).status == 100
    await upstream.writer.send(b"ok")
    await upstream.writer.finish()
    await far.send_all(OK)
    assert (await upstream.receive_head()).status == 200
    assert await read_body(upstream) == b"ok"
    assert client.reusable


# Responses, and whether the connection may be used again

REUSABLE = {
    "length": (b"GET", OK, b"ok"),
    "chunked": (b"GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", b"ok"),
    "empty": (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
    "HEAD with a length": (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b""),
    "HEAD with chunks": (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b""),
    "HEAD without either": (b"HEAD", b"HTTP/1.1 200 OK\r\n\r\n", b""),
    "304 with a length": (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n", b""),
    "304 with chunks": (b"GET", b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", b""),
    "204": (b"DELETE", b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "204 with a length": (b"DELETE", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", b""),
    "interim first": (
        b"GET",
        b"HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\nHTTP/1.1 100 \r\n\r\n" + OK,
        b"ok",
    ),
}


@pytest.mark.parametrize("size", [1, 1_000])
async def test_responses_on_one_connection_keep_in_step(size: int) -> None:
    client, far = connected()
    far.split = lambda data: [data[at : at + size] for at in range(0, len(data), size)]
    for method, response, content in [*REUSABLE.values(), *reversed(REUSABLE.values())]:
        upstream = await get(client, far, response, method)
        while (answer := await upstream.receive_head()).status < 200:
            assert not client.reusable
        assert await read_body(upstream) == content
        assert upstream.body.at_end
        assert answer.ended is (content == b"")
        assert client.reusable
        assert client.is_idle_and_alive()


NOT_REUSABLE = {
    "close": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
    "close among others": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: x, Close\r\n\r\nok",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.0 keep-alive": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok",
    "junk behind a length": OK + b"x",
    "response behind a length": OK + OK,
    "junk behind chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nx",
    "body behind a 204": b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok",
    "body behind a 304": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\nok",
}


@pytest.mark.parametrize("response", NOT_REUSABLE.values(), ids=NOT_REUSABLE)
async def test_a_connection_out_of_step_is_not_used_again(response: bytes) -> None:
    client, far = connected()
    upstream = await get(client, far, response)
    await upstream.receive_head()
    assert await read_body(upstream) in (b"ok", b"")
    assert not client.reusable
    assert not client.is_idle_and_alive()
    with pytest.raises(LocalProtocolError):
        await client.send(head(), authority=b"a")


async def test_an_answer_to_head_with_a_body_is_not_the_next_response() -> None:
    client, far = connected()
    upstream = await get(client, far, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"HEAD")
    assert (await upstream.receive_head()).content_length == 2
    assert await read_body(upstream) == b""
    assert not client.reusable


async def test_trailers_are_trailers() -> None:
    client, far = connected()
    wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n2\r\nok\r\n0\r\nX: y\r\n\r\n"
    upstream = await get(client, far, wire)
    assert upstream.body.trailers == []
    assert (await upstream.receive_head()).fields == [(b"trailer", b"X")]
    assert await read_body(upstream) == b"ok"
    assert upstream.body.trailers == [(b"x", b"y")]
    upstream.body.trailers = []
    assert upstream.body.trailers == []
    assert client.reusable


async def test_a_body_can_be_read_without_waiting_and_knows_its_end_with_its_last_byte() -> None:
    client, far = connected()
    upstream = await get(client, far, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe")
    await upstream.receive_head()
    body = upstream.body
    assert (body.receive_nowait(), body.at_end) == (b"he", False)
    assert (body.receive_nowait(), body.at_end) == (None, False)
    await far.send_all(b"llo")
    assert (body.receive_nowait(), body.at_end) == (b"llo", True)
    assert (body.receive_nowait(), await body.receive()) == (b"", b"")


async def test_each_event_of_a_stream_arrives_when_it_is_sent() -> None:
    client, far = connected()
    upstream = await get(client, far, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert not (await upstream.receive_head()).ended
    for event in (b"{}\n", b'{"a":1}\n'):
        await far.send_all(b"%x\r\n%b\r\n" % (len(event), event))
        assert await upstream.body.receive() == event
        with trio.move_on_after(0.001):
            await upstream.body.receive()


async def test_a_body_until_close_ends_with_a_vouched_close_only() -> None:
    for vouched in (True, False):
        client, far = connected()
        far.peer.vouches = vouched
        upstream = await get(client, far, b"HTTP/1.1 200 OK\r\n\r\nsome")
        await upstream.receive_head()
        await far.send_eof()
        assert await upstream.body.receive() == b"some"
        if vouched:
            assert await upstream.body.receive() == b""
            assert upstream.body.at_end
        else:
            for receive in (upstream.body.receive, upstream.body.receive):
                with pytest.raises(StreamReset):
                    await receive()
            assert not upstream.body.at_end
        assert not client.reusable


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfour",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfour\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfour\r\n0\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfour\r\n0\r\nX: y\r\n",
    ],
)
@pytest.mark.parametrize("how", ["eof", "abort"])
async def test_a_body_that_is_cut_off_never_looks_whole(response: bytes, how: str) -> None:
    client, far = connected()
    upstream = await get(client, far, response)
    await upstream.receive_head()
    assert await upstream.body.receive() == b"four"
    if how == "eof":
        await far.send_eof()
    else:
        far.abort()
    with pytest.raises((StreamReset, ConnectionEnded)):
        await upstream.body.receive()
    with pytest.raises((StreamReset, ConnectionEnded)):
        upstream.body.receive_nowait()
    assert not upstream.body.at_end
    assert not client.reusable


async def test_a_malformed_body_means_that_the_upstream_failed() -> None:
    for in_one_piece in (True, False):
        client, far = connected()
        start, rest = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0x1\r\na\r\n0\r\n\r\n"
        upstream = await get(client, far, start + rest if in_one_piece else start)
        await upstream.receive_head()
        if not in_one_piece:
            await far.send_all(rest)
        with pytest.raises(RemoteProtocolError) as caught:
            await upstream.body.receive()
        assert caught.value.status == 502
        assert not client.reusable


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"\x15\x03\x03\x00\x02\x02\x16",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 140_000,
        b"y" * 140_000,
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 100 \r\n\r\n" * 17,
        b"\r\n" + OK,
    ],
)
async def test_a_malformed_response_means_that_the_upstream_failed(response: bytes) -> None:
    client, far = connected()
    upstream = await get(client, far, response)
    if b"SSH" in response:
        await far.send_eof()
    with pytest.raises((RemoteProtocolError, ConnectionEnded)) as caught:
        await receive_final_head(upstream)
    if isinstance(caught.value, RemoteProtocolError):
        assert caught.value.status == 502
    assert not client.reusable


async def test_sixteen_interim_responses_are_allowed() -> None:
    client, far = connected()
    upstream = await get(client, far, b"HTTP/1.1 103 Early Hints\r\n\r\n" * 16 + OK)
    assert [(await upstream.receive_head()).status for _ in range(17)] == [103] * 16 + [200]


# What the pool's rule for repeating a request needs to know


async def test_what_was_sent_and_received_is_known() -> None:
    client, far = connected()
    assert client.reusable
    assert client.is_idle_and_alive()
    assert (client.sent_any_byte, client.received_any_byte) == (False, False)
    for _ in range(2):
        upstream = await client.send(head(), authority=b"a")
        assert (client.sent_any_byte, client.received_any_byte) == (True, False)
        await far.send_all(OK)
        await upstream.receive_head()
        assert client.received_any_byte
        await read_body(upstream)
    upstream = await client.send(head(), authority=b"a")
    await far.send_eof()
    with pytest.raises(ConnectionEnded):
        await upstream.receive_head()
    assert (client.sent_any_byte, client.received_any_byte) == (True, False)
    assert not client.reusable


async def test_an_end_in_the_middle_of_a_head_is_told_from_no_answer() -> None:
    client, far = connected()
    upstream = await get(client, far, b"HTTP/1.1 200 OK\r\n")
    far.abort()
    with pytest.raises(ConnectionEnded):
        await upstream.receive_head()

    client, far = connected()
    upstream = await get(client, far, b"HTTP/1.1 200 OK\r\n")
    await far.send_eof()
    with pytest.raises(ConnectionEnded, match="middle"):
        await upstream.receive_head()
    assert client.received_any_byte


@pytest.mark.parametrize("what", ["bytes", "eof", "abort"])
async def test_an_idle_connection_on_which_anything_arrived_is_not_alive(what: str) -> None:
    client, far = connected()
    upstream = await get(client, far, OK)
    await upstream.receive_head()
    await read_body(upstream)
    assert client.is_idle_and_alive()
    if what == "bytes":
        await far.send_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    elif what == "eof":
        await far.send_eof()
    else:
        far.abort()
    assert not client.is_idle_and_alive()
    assert not client.reusable


async def test_a_lost_connection_is_told_from_a_bug() -> None:
    client, far = connected()
    far.abort()
    with pytest.raises(ConnectionEnded):
        await client.send(head(), authority=b"a")
    assert not client.reusable


async def test_a_cancelled_write_ends_the_connection() -> None:
    client, far = connected(capacity_bytes=10)
    with trio.move_on_after(0.01) as scope:
        await client.send(head(b"PUT", ended=False), authority=b"a")
    assert scope.cancelled_caught
    assert not client.reusable
    assert client.sent_any_byte
    client.abort()
    assert far.peer.aborted


# Both directions, and giving up


async def test_both_directions_run_at_the_same_time(nursery: trio.Nursery) -> None:
    client, far = connected()
    upstream = await client.send(head(b"POST", ended=False), authority=b"a")
    await far.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    await upstream.receive_head()
    received: list[bytes] = []

    async def receive() -> None:
        while data := await upstream.body.receive():
            received.append(data)

    async with trio.open_nursery() as inner:
        inner.start_soon(receive)
        await read_until(far, b"\r\n\r\n")
        for piece in (b"a", b"bc"):
            await upstream.writer.send(piece)
            await far.send_all(await far.receive_some())
        await trio.testing.wait_all_tasks_blocked()
        assert received == [b"a", b"bc"]
        await far.send_all(b"0\r\n\r\n")
    assert not client.reusable  # the request is not whole
    await upstream.writer.finish()
    assert client.reusable


async def test_an_answer_before_the_end_of_the_request_leaves_a_connection_to_be_aborted() -> None:
    client, far = connected()
    upstream = await client.send(head(b"POST", length=1_000_000, ended=False), authority=b"a")
    await far.send_all(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
    assert (await upstream.receive_head()).status == 413
    assert not client.reusable
    upstream.reset(ErrorCode.NO_ERROR)
    assert far.peer.aborted


async def test_a_reset_after_a_clean_end_changes_nothing() -> None:
    client, far = connected()
    upstream = await get(client, far, OK)
    await upstream.receive_head()
    await read_body(upstream)
    upstream.reset(ErrorCode.CANCEL)
    upstream.writer.reset(ErrorCode.CANCEL)
    assert client.reusable
    assert not far.peer.closed


async def test_a_reset_in_the_middle_is_visible_and_idempotent() -> None:
    client, far = connected()
    upstream = await get(client, far, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
    await upstream.receive_head()
    upstream.reset(ErrorCode.CANCEL)
    upstream.reset(ErrorCode.CANCEL)
    assert far.peer.aborted
    with pytest.raises(ConnectionEnded):
        await upstream.body.receive()
    assert not client.reusable


@pytest.mark.parametrize("steps", range(25))
async def test_an_upload_that_is_cancelled_anywhere_never_looks_whole(steps: int) -> None:
    client, far = connected(capacity_bytes=1)
    finished = False

    async def upload() -> None:
        nonlocal finished
        upstream = await client.send(head(b"PUT", ended=False), authority=b"a", data=b"first")
        for piece in (b"second", b"third"):
            await upstream.writer.send(piece)
        await upstream.writer.finish()
        finished = True
        await upstream.receive_head()

    async def swallow() -> None:
        while True:
            await far.receive_some()
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(swallow)
        nursery.start_soon(upload)
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert not client.reusable or not client.sent_any_byte
    if far.peer.sent.endswith(b"0\r\n\r\n"):
        assert far.peer.sent.endswith(b"5\r\nfirst\r\n6\r\nsecond\r\n5\r\nthird\r\n0\r\n\r\n")
    else:
        assert not finished


async def test_closing_is_silent_and_final() -> None:
    client, far = connected()
    far.peer.fails_to_close = True
    await client.aclose()
    await client.aclose()
    assert not client.reusable
    assert await far.receive_some() == b""


async def test_a_body_needs_a_head_first() -> None:
    client, _far = connected()
    upstream = await client.send(head(), authority=b"a")
    with pytest.raises(LocalProtocolError):
        await upstream.body.receive()
    with pytest.raises(LocalProtocolError):
        upstream.body.trailers = []
    assert not upstream.body.at_end


# Upgrades

SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"


@pytest.mark.parametrize("size", [1, 7, 1_000])
async def test_bytes_glued_to_a_101_come_first(size: int) -> None:
    client, far = connected()
    far.split = lambda data: [data[at : at + size] for at in range(0, len(data), size)]
    upstream = await client.send(head(b"POST", protocol=b"SPDY/3.1"), authority=b"a")
    with pytest.raises(LocalProtocolError):
        upstream.take_stream()
    await far.send_all(b"HTTP/1.1 100 Continue\r\n\r\n" + SWITCHING + b"glued")
    assert (await upstream.receive_head()).status == 100
    answer = await upstream.receive_head()
    assert answer == ResponseHead(101, [(b"connection", b"Upgrade"), (b"upgrade", b"SPDY/3.1")], None, True)
    stream = upstream.take_stream()
    await far.send_all(b"later")
    await far.send_eof()
    received = b""
    while data := await stream.receive_some(3):
        received += data
    assert received == b"gluedlater"
    await stream.send_all(b"still open")
    await stream.aclose()
    assert far.peer.writes[-1] == b"still open"
    assert not client.reusable


async def test_a_refused_upgrade_is_an_answer_and_the_end_of_the_connection() -> None:
    client, far = connected()
    upstream = await client.send(head(protocol=b"websocket"), authority=b"a")
    await far.send_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
    assert (await upstream.receive_head()).status == 403
    assert await read_body(upstream) == b"no"
    assert not client.reusable
    with pytest.raises(LocalProtocolError):
        upstream.take_stream()


@pytest.mark.parametrize("offer", [b"", b"Upgrade: h2c\r\n", b"Upgrade: SPDY/3.1\r\nUpgrade: SPDY/3.1\r\n"])
async def test_a_101_to_something_else_means_that_the_upstream_failed(offer: bytes) -> None:
    client, far = connected()
    upstream = await client.send(head(b"POST", protocol=b"SPDY/3.1"), authority=b"a")
    await far.send_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n" + offer + b"\r\n")
    with pytest.raises(RemoteProtocolError) as caught:
        await upstream.receive_head()
    assert caught.value.status == 502


# Against the referee, and against ourselves


@given(
    st.sampled_from([b"GET", b"POST", b"PATCH"]),
    st.lists(st.binary(max_size=30), max_size=4),
    st.booleans(),
    st.booleans(),
    st.lists(st.binary(max_size=30), max_size=4),
    st.integers(1, 40),
)
async def test_h11_reads_our_requests_and_we_read_its_responses(
    method: bytes, request_body: list[bytes], declared: bool, chunked: bool, response_body: list[bytes], size: int
) -> None:
    client, far = connected()
    far.split = lambda data: [data[at : at + size] for at in range(0, len(data), size)]
    referee = h11.Connection(h11.SERVER)
    for _ in range(2):
        length = sum(map(len, request_body)) if declared else None
        upstream = await client.send(head(method, length=length, ended=False), authority=b"a")
        for piece in request_body:
            await upstream.writer.send(piece)
        await upstream.writer.finish()
        content = b""
        while not isinstance(event := referee.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                referee.receive_data(await far.receive_some())
            elif isinstance(event, h11.Data):
                content += event.data
        assert content == b"".join(request_body)
        total = sum(map(len, response_body))
        framing = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(total))
        for answer in (
            h11.Response(status_code=200, headers=[framing]),
            *map(h11.Data, response_body),
            h11.EndOfMessage(),
        ):
            await far.send_all(referee.send(answer) or b"")
        assert (await upstream.receive_head()).content_length == (None if chunked else total)
        assert await read_body(upstream) == b"".join(response_body)
        assert client.reusable
        referee.start_next_cycle()


async def test_our_two_ends_understand_each_other(nursery: trio.Nursery) -> None:
    async def handler(downstream: Http1Downstream) -> None:
        if downstream.request.target == b"/x?y" and downstream.request.ended:
            await answer_ok(downstream)
            return
        body = b""
        while data := await downstream.body.receive():
            body += data
        await downstream.send_response(ResponseHead(200, []))
        await downstream.writer.send(body)
        await downstream.writer.finish([(b"x-digest", b"1")])

    front = Front(nursery, handler)
    client = Http1Client(front.client)
    for number in range(5):
        upstream = await client.send(head(), authority=b"a")
        await upstream.receive_head()
        assert await read_body(upstream) == b"ok"
        upstream = await client.send(head(b"PUT", ended=False), authority=b"a", data=b"%d" % number)
        await upstream.writer.finish()
        await upstream.receive_head()
        assert await read_body(upstream) == b"%d" % number
        assert upstream.body.trailers == [(b"x-digest", b"1")]
        assert client.is_idle_and_alive()
    await client.aclose()
