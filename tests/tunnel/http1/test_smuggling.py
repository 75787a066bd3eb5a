"""Requests that two parsers could read differently: each ends the connection, and none becomes two.

Every payload carries a second request, for ``/smuggled``, in a place where a laxer reader would find it.
"""

from __future__ import annotations

import pytest
import trio
from support.http1 import Front, answer_ok

from tunnel.http1.downstream import Http1Downstream

INNER = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

IN_THE_HEAD = {
    "CL.TE": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + INNER,
    "TE.CL": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n" + INNER,
    "CL 0 and TE": POST + b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n" + INNER,
    "CL.CL": POST + b"Content-Length: 0\r\nContent-Length: 5\r\n\r\n" + INNER,
    "CL list": POST + b"Content-Length: 0, 5\r\n\r\n" + INNER,
    "CL +0": POST + b"Content-Length: +0\r\n\r\n" + INNER,
    "CL with underscore": POST + b"Content-Length: 0_0\r\n\r\n" + INNER,
    "CL after a vertical tab": POST + b"Content-Length: \x0b0\r\n\r\n" + INNER,
    "CL overflow": POST + b"Content-Length: 18446744073709551616\r\n\r\n" + INNER,
    "TE chunked, identity": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + INNER,
    "TE identity, chunked": POST + b"Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n" + INNER,
    "TE twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n" + INNER,
    "TE xchunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + INNER,
    "TE with a form feed": POST + b"Transfer-Encoding: chunked\x0c\r\n\r\n0\r\n\r\n" + INNER,
    "TE with a NUL": POST + b"Transfer-Encoding: chunked\0\r\n\r\n0\r\n\r\n" + INNER,
    "TE with a colon gap": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + INNER,
    "TE folded": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + INNER,
    "TE after a bare LF": POST + b"X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + INNER,
    "TE after a bare CR": POST + b"X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + INNER,
    "TE in HTTP/1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + INNER,
    "bare LF head": b"GET / HTTP/1.1\nHost: a\n\n" + INNER,
    "empty head by bare LF": b"GET / HTTP/1.1\r\nHost: a\r\n\n" + INNER,
    "space before the first line": b"GET / HTTP/1.1\r\n Host: a\r\n\r\n" + INNER,
    "two Hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n" + INNER,
    "request line with two versions": b"GET / HTTP/1.1 HTTP/1.1\r\nHost: a\r\n\r\n" + INNER,
    "request in the target": b"GET /\rGET HTTP/1.1\r\nHost: a\r\n\r\n" + INNER,
    "nothing but empty lines": b"\r\n\r\n\r\n" + INNER,
    "upgrade with a body": POST + b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 38\r\n\r\n" + INNER,
}

IN_THE_BODY = {
    "0x size": CHUNKED + b"0x0\r\n\r\n" + INNER,
    "+ size": CHUNKED + b"+0\r\n\r\n" + INNER,
    "underscored size": CHUNKED + b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n" + INNER,
    "size with a space": CHUNKED + b"0 \r\n\r\n" + INNER,
    "empty size": CHUNKED + b"\r\n\r\n" + INNER,
    "wrapped size": CHUNKED + b"1000000000000000000000000\r\n\r\n" + INNER,
    "size ended by LF": CHUNKED + b"0\n\r\n" + INNER,
    "size ended by CR": CHUNKED + b"0\r\r\n" + INNER,
    "LF in an extension": CHUNKED + b"2;\nxx\r\n12\r\n0\r\n\r\n" + INNER,
    "long extension": CHUNKED + b"1;" + b"x" * 1_000 + b"\r\na\r\n0\r\n\r\n" + INNER,
    "junk behind the data": CHUNKED + b"1\r\naXX0\r\n\r\n" + INNER,
    "LF behind the data": CHUNKED + b"1\r\na\n0\r\n\r\n" + INNER,
    "no end of data": CHUNKED + b"1\r\na0\r\n\r\n" + INNER,
    "LF in the trailers": CHUNKED + b"0\r\nX: y\nZ: z\r\n\r\n" + INNER,
    "folded trailer": CHUNKED + b"0\r\nX: y\r\n z\r\n\r\n" + INNER,
    "request as trailers": CHUNKED + b"0\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
}


async def read_all(downstream: Http1Downstream) -> None:
    while await downstream.body.receive():
        pass
    await answer_ok(downstream)


async def result_of(nursery: trio.Nursery, wire: bytes, size: int) -> tuple[bytes, list[bytes]]:
    front = Front(nursery, read_all)
    front.client.split = lambda data: [data[at : at + size] for at in range(0, len(data), size)]
    await front.client.send_all(wire)
    answer = b""
    while data := await front.client.receive_some():
        answer += data
    await front.client.aclose()
    await front.over.wait()
    return answer, [downstream.request.target for downstream in front.seen]


@pytest.mark.parametrize("size", [1, 3, 100_000])
@pytest.mark.parametrize("wire", IN_THE_HEAD.values(), ids=IN_THE_HEAD)
async def test_an_ambiguous_head_is_answered_with_400_and_reaches_no_handler(
    nursery: trio.Nursery, wire: bytes, size: int
) -> None:
    answer, targets = await result_of(nursery, wire, size)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"\r\nConnection: close\r\n" in answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert targets == []


@pytest.mark.parametrize("size", [1, 3, 100_000])
@pytest.mark.parametrize("wire", IN_THE_BODY.values(), ids=IN_THE_BODY)
async def test_an_ambiguous_body_is_answered_with_400_and_never_becomes_a_request(
    nursery: trio.Nursery, wire: bytes, size: int
) -> None:
    answer, targets = await result_of(nursery, wire, size)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert targets == [b"/"]


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        (b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET /" + b"a" * 200_000, 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 300_000, 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 300 + b"\r\n", 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ],
)
async def test_what_is_refused_has_its_own_status(nursery: trio.Nursery, wire: bytes, status: int) -> None:
    for size in (16_384, 1_000_000):
        answer, targets = await result_of(nursery, wire, size)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert targets == []
