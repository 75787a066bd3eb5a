"""Heads of HTTP/1.1 messages, both ways, with h11 as the referee."""

from __future__ import annotations

import itertools

import h11
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tunnel.errors import LocalProtocolError, RemoteProtocolError
from tunnel.http1.heads import (
    BodyKind,
    HeadBuffer,
    encode_fields,
    encode_request_head,
    encode_response_head,
    parse_fields,
    parse_request_head,
    parse_response_head,
    persistent,
)
from tunnel.messages import Fields, RequestHead, ResponseHead


def request(lines: bytes, first: bytes = b"GET /x HTTP/1.1") -> RequestHead:
    return parse_request_head(first + b"\r\n" + lines)


def response(
    lines: bytes, first: bytes = b"HTTP/1.1 200 OK", method: bytes = b"GET"
) -> tuple[ResponseHead, BodyKind, bool]:
    head, framing = parse_response_head(first + b"\r\n" + lines, method)
    return head, framing.kind, framing.persistent


# Requests


def test_a_request_head_is_taken_apart_without_changing_target_order_number_or_values() -> None:
    head = request(
        b"Host: kas.example.com:8443\r\n"
        b"X-Stream-Protocol-Version:v5.channel.k8s.io\r\n"
        b"X-Stream-Protocol-Version: \t v4.channel.k8s.io \t\r\n"
        b"Empty:\r\n"
        b"Also-Empty: \t \r\n"
        b"X-Bytes: a\tb \xe9\xff: c\r\n",
        b"GET /api//v1/../a%2Fb?x=1;y&&=+& HTTP/1.1",
    )
    assert head == RequestHead(
        b"GET",
        b"/api//v1/../a%2Fb?x=1;y&&=+&",
        b"kas.example.com:8443",
        [
            (b"x-stream-protocol-version", b"v5.channel.k8s.io"),
            (b"x-stream-protocol-version", b"v4.channel.k8s.io"),
            (b"empty", b""),
            (b"also-empty", b""),
            (b"x-bytes", b"a\tb \xe9\xff: c"),
        ],
        None,
        None,
        True,
        (1, 1),
    )


@pytest.mark.parametrize(
    ("lines", "length", "ended"),
    [
        (b"", None, True),
        (b"Content-Length: 0\r\n", 0, True),
        (b"Content-Length: 007\r\n", 7, False),
        (b"Transfer-Encoding: chunked\r\n", None, False),
        (b"Transfer-Encoding: Chunked\r\n", None, False),
    ],
)
def test_the_framing_of_a_request_body(lines: bytes, length: int | None, ended: bool) -> None:
    head = request(b"Host: a\r\n" + lines)
    assert (head.content_length, head.ended) == (length, ended)
    assert [name for name, _ in head.fields] == ([b"content-length"] if length is not None else [])


@pytest.mark.parametrize("method", [b"GET", b"PROPFIND", b"get", b"!#$%&'*+-.^_`|~09Az"])
def test_any_token_is_a_method(method: bytes) -> None:
    assert request(b"Host: a\r\n", method + b" / HTTP/1.1").method == method


@pytest.mark.parametrize(
    ("first", "host", "target", "authority"),
    [
        (b"OPTIONS * HTTP/1.1", b"Host: a\r\n", b"*", b"a"),
        (b"OPTIONS * HTTP/1.0", b"", b"*", b""),
        (b"GET http://a HTTP/1.1", b"Host: a\r\n", b"/", b"a"),
        (b"OPTIONS http://a HTTP/1.1", b"Host: a\r\n", b"*", b"a"),
        (b"GET HTTPS://A:1/x?y HTTP/1.1", b"Host: a:1\r\n", b"/x?y", b"A:1"),
        (b"GET http://a?y HTTP/1.1", b"Host: a\r\n", b"/?y", b"a"),
        (b"GET http://[::1]:80//x HTTP/1.1", b"Host: [::1]:80\r\n", b"//x", b"[::1]:80"),
        (b"GET http://a/x HTTP/1.0", b"", b"/x", b"a"),
        (b"GET / HTTP/1.0", b"", b"/", b""),
        (b"GET / HTTP/1.1", b"Host:\r\n", b"/", b""),
    ],
)
def test_the_forms_of_a_target(first: bytes, host: bytes, target: bytes, authority: bytes) -> None:
    head = request(host, first)
    assert (head.target, head.authority) == (target, authority)


BAD_REQUESTS = {
    "no target": (b"GET HTTP/1.1", b"Host: a\r\n", 400),
    "empty": (b"", b"", 400),
    "two spaces": (b"GET  / HTTP/1.1", b"Host: a\r\n", 400),
    "tab between": (b"GET\t/ HTTP/1.1", b"Host: a\r\n", 400),
    "space at the end of the line": (b"GET / HTTP/1.1 ", b"Host: a\r\n", 400),
    "space in the target": (b"GET /a b HTTP/1.1", b"Host: a\r\n", 400),
    "control byte in the target": (b"GET /\x01 HTTP/1.1", b"Host: a\r\n", 400),
    "delete in the target": (b"GET /\x7f HTTP/1.1", b"Host: a\r\n", 400),
    "non-ASCII target": (b"GET /\xc3\xa9 HTTP/1.1", b"Host: a\r\n", 400),
    "method is no token": (b"GE(T / HTTP/1.1", b"Host: a\r\n", 400),
    "no method": (b" / HTTP/1.1", b"Host: a\r\n", 400),
    "lower-case version": (b"GET / http/1.1", b"Host: a\r\n", 400),
    "long version": (b"GET / HTTP/1.10", b"Host: a\r\n", 400),
    "HTTP/2 preface": (b"PRI * HTTP/2.0", b"", 505),
    "HTTP/1.2": (b"GET / HTTP/1.2", b"Host: a\r\n", 505),
    "HTTP/0.9": (b"GET / HTTP/0.9", b"Host: a\r\n", 505),
    "no Host": (b"GET / HTTP/1.1", b"", 400),
    "two Hosts": (b"GET / HTTP/1.1", b"Host: a\r\nHost: a\r\n", 400),
    "two Hosts in HTTP/1.0": (b"GET / HTTP/1.0", b"Host: a\r\nhost: b\r\n", 400),
    "Host with a path": (b"GET / HTTP/1.1", b"Host: a/b\r\n", 400),
    "Host with user information": (b"GET / HTTP/1.1", b"Host: a@b\r\n", 400),
    "Host with a space": (b"GET / HTTP/1.1", b"Host: a b\r\n", 400),
    "CONNECT": (b"CONNECT a:443 HTTP/1.1", b"Host: a:443\r\n", 405),
    "CONNECT with a path": (b"CONNECT / HTTP/1.1", b"Host: a\r\n", 405),
    "authority-form": (b"GET a:443 HTTP/1.1", b"Host: a:443\r\n", 400),
    "asterisk for GET": (b"GET * HTTP/1.1", b"Host: a\r\n", 400),
    "other scheme": (b"GET ftp://a/ HTTP/1.1", b"Host: a\r\n", 400),
    "absolute-form without authority": (b"GET http:///x HTTP/1.1", b"Host: a\r\n", 400),
    "absolute-form with user information": (b"GET http://u@a/ HTTP/1.1", b"Host: a\r\n", 400),
    "absolute-form against Host": (b"GET http://b/ HTTP/1.1", b"Host: a\r\n", 400),
    "absolute-form against another port": (b"GET http://a:1/ HTTP/1.1", b"Host: a\r\n", 400),
    "space before the colon": (b"GET / HTTP/1.1", b"Host: a\r\nX : b\r\n", 400),
    "tab before the colon": (b"GET / HTTP/1.1", b"Host: a\r\nX\t: b\r\n", 400),
    "no colon": (b"GET / HTTP/1.1", b"Host: a\r\nX\r\n", 400),
    "empty name": (b"GET / HTTP/1.1", b"Host: a\r\n: b\r\n", 400),
    "name is no token": (b"GET / HTTP/1.1", b"Host: a\r\nX(y): b\r\n", 400),
    "name is not ASCII": (b"GET / HTTP/1.1", b"Host: a\r\n\xe9: b\r\n", 400),
    "space before the name": (b"GET / HTTP/1.1", b"Host: a\r\n X: b\r\n", 400),
    "folded by a space": (b"GET / HTTP/1.1", b"Host: a\r\nX: b\r\n c\r\n", 400),
    "folded by a tab": (b"GET / HTTP/1.1", b"Host: a\r\nX: b\r\n\tc: d\r\n", 400),
    "folded first line": (b"GET / HTTP/1.1", b" Host: a\r\n", 400),
    "bare LF": (b"GET / HTTP/1.1", b"Host: a\r\nX: b\nY: c\r\n", 400),
    "bare CR": (b"GET / HTTP/1.1", b"Host: a\r\nX: b\rY: c\r\n", 400),
    "CR before CRLF": (b"GET / HTTP/1.1", b"Host: a\r\nX: b\r\r\n", 400),
    "no end of line": (b"GET / HTTP/1.1", b"Host: a\r\nX: b", 400),
    "NUL": (b"GET / HTTP/1.1", b"Host: a\r\nX: b\0c\r\n", 400),
    "escape": (b"GET / HTTP/1.1", b"Host: a\r\nX: \x1b\r\n", 400),
    "length and chunks": (b"POST / HTTP/1.1", b"Host: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n", 400),
    "chunks and length": (b"POST / HTTP/1.1", b"Host: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n", 400),
    "differing lengths": (b"POST / HTTP/1.1", b"Host: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n", 400),
    "equal lengths": (b"POST / HTTP/1.1", b"Host: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n", 400),
    "length list": (b"POST / HTTP/1.1", b"Host: a\r\nContent-Length: 3, 3\r\n", 400),
    "empty length": (b"POST / HTTP/1.1", b"Host: a\r\nContent-Length:\r\n", 400),
    "signed length": (b"POST / HTTP/1.1", b"Host: a\r\nContent-Length: +3\r\n", 400),
    "negative length": (b"POST / HTTP/1.1", b"Host: a\r\nContent-Length: -3\r\n", 400),
    "hexadecimal length": (b"POST / HTTP/1.1", b"Host: a\r\nContent-Length: 0x3\r\n", 400),
    "underscored length": (b"POST / HTTP/1.1", b"Host: a\r\nContent-Length: 1_0\r\n", 400),
    "length in other digits": (b"POST / HTTP/1.1", b"Host: a\r\nContent-Length: \xd9\xa3\r\n", 400),
    "huge length": (b"POST / HTTP/1.1", b"Host: a\r\nContent-Length: " + b"9" * 19 + b"\r\n", 400),
    "gzip, chunked": (b"POST / HTTP/1.1", b"Host: a\r\nTransfer-Encoding: gzip, chunked\r\n", 400),
    "chunked, x": (b"POST / HTTP/1.1", b"Host: a\r\nTransfer-Encoding: chunked, x\r\n", 400),
    "chunked twice": (b"POST / HTTP/1.1", b"Host: a\r\nTransfer-Encoding: chunked, chunked\r\n", 400),
    "chunked on two lines": (
        b"POST / HTTP/1.1",
        b"Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        400,
    ),
    "identity": (b"POST / HTTP/1.1", b"Host: a\r\nTransfer-Encoding: identity\r\n", 400),
    "xchunked": (b"POST / HTTP/1.1", b"Host: a\r\nTransfer-Encoding: xchunked\r\n", 400),
    "quoted chunked": (b"POST / HTTP/1.1", b'Host: a\r\nTransfer-Encoding: "chunked"\r\n', 400),
    "vertical tab before chunked": (b"POST / HTTP/1.1", b"Host: a\r\nTransfer-Encoding: \x0bchunked\r\n", 400),
    "chunked with a parameter": (b"POST / HTTP/1.1", b"Host: a\r\nTransfer-Encoding: chunked;q=1\r\n", 400),
    "empty coding": (b"POST / HTTP/1.1", b"Host: a\r\nTransfer-Encoding:\r\n", 400),
    "chunks in HTTP/1.0": (b"POST / HTTP/1.0", b"Transfer-Encoding: chunked\r\n", 400),
    "upgrade with a body": (
        b"POST / HTTP/1.1",
        b"Host: a\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 1\r\n",
        400,
    ),
    "long target": (b"GET /" + b"a" * 32_768 + b" HTTP/1.1", b"Host: a\r\n", 414),
    "many lines": (b"GET / HTTP/1.1", b"Host: a\r\n" + b"X: y\r\n" * 200, 431),
}


@pytest.mark.parametrize(("first", "lines", "status"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_malformed_request_head_is_refused(first: bytes, lines: bytes, status: int) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        request(lines, first)
    assert caught.value.status == status


def test_the_limits_themselves_are_allowed() -> None:
    assert len(request(b"Host: a\r\n", b"GET /" + b"a" * 32_767 + b" HTTP/1.1").target) == 32_768
    assert len(request(b"Host: a\r\n" + b"X: y\r\n" * 199).fields) == 199


def test_a_refusal_does_not_show_what_was_sent() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        request(b"Host: a\r\nAuthorization : Bearer mlu_canary\r\n")
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "protocol"),
    [
        (b"Connection: Upgrade\r\nUpgrade: websocket\r\n", b"websocket"),
        (b"Connection: keep-alive, UPGRADE\r\nUpgrade: WebSocket\r\n", b"websocket"),
        (b"Connection: x\r\nConnection: upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n", b"SPDY/3.1"),
        (b"Connection: Upgrade\r\nUpgrade: spdy/3.1\r\n", b"SPDY/3.1"),
        (b"Upgrade: websocket\r\n", None),
        (b"Connection: noupgrade\r\nUpgrade: websocket\r\n", None),
        (b"Connection: Upgrade\r\n", None),
        (b"Connection: Upgrade\r\nUpgrade: h2c\r\n", None),
        (b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n", None),
        (b"Connection: Upgrade\r\nUpgrade: websocket, SPDY/3.1\r\n", None),
        (b"Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: SPDY/3.1\r\n", None),
        (b"Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: websocket\r\n", None),
        (b"Connection: Upgrade\r\nUpgrade: SPDY/3\r\n", None),
        (b"Connection: Upgrade\r\nUpgrade:\r\n", None),
    ],
)
def test_an_upgrade_is_one_known_token_that_connection_names(lines: bytes, protocol: bytes | None) -> None:
    assert request(b"Host: a\r\n" + lines).protocol == protocol


def test_http_1_0_has_no_upgrades() -> None:
    assert request(b"Connection: Upgrade\r\nUpgrade: websocket\r\n", b"GET / HTTP/1.0").protocol is None


def test_the_tokens_to_understand_are_a_parameter() -> None:
    block = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: Moorline/1\r\n"
    assert parse_request_head(block, upgrades=frozenset([b"moorline/1"])).protocol == b"moorline/1"
    assert parse_request_head(block).protocol is None


@pytest.mark.parametrize(
    ("connection", "version", "persists"),
    [
        ([], (1, 1), True),
        ([b"close"], (1, 1), False),
        ([b"x, Close"], (1, 1), False),
        ([b"keep-alive", b"close"], (1, 1), False),
        ([b"closed"], (1, 1), True),
        ([], (1, 0), False),
        ([b"Keep-Alive"], (1, 0), True),
        ([b"keep-alive, close"], (1, 0), False),
    ],
)
def test_who_wants_the_connection_to_live_on(connection: list[bytes], version: tuple[int, int], persists: bool) -> None:
    assert persistent([(b"connection", value) for value in connection], version) is persists


# Responses

CL = b"Content-Length: 5\r\n"
TE = b"Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("first", "method", "lines", "length", "ended", "kind", "persists"),
    [
        (b"HTTP/1.1 200 OK", b"GET", CL, 5, False, BodyKind.LENGTH, True),
        (b"HTTP/1.1 200", b"GET", CL, 5, False, BodyKind.LENGTH, True),
        (b"HTTP/1.1 200 ", b"GET", CL, 5, False, BodyKind.LENGTH, True),
        (b"HTTP/1.1 299 Caf\xe9 au lait", b"GET", CL, 5, False, BodyKind.LENGTH, True),
        (b"HTTP/1.1 200 OK", b"GET", b"Content-Length: 0\r\n", 0, True, BodyKind.NONE, True),
        (b"HTTP/1.1 200 OK", b"GET", CL + b"Connection: close\r\n", 5, False, BodyKind.LENGTH, False),
        (b"HTTP/1.1 200 OK", b"GET", CL + b"Connection: x\r\nConnection: close\r\n", 5, False, BodyKind.LENGTH, False),
        (b"HTTP/1.1 200 OK", b"GET", TE, None, False, BodyKind.CHUNKED, True),
        (b"HTTP/1.1 200 OK", b"GET", b"", None, False, BodyKind.UNTIL_CLOSE, False),
        (b"HTTP/1.0 200 OK", b"GET", CL, 5, False, BodyKind.LENGTH, False),
        (b"HTTP/1.0 200 OK", b"GET", CL + b"Connection: keep-alive\r\n", 5, False, BodyKind.LENGTH, False),
        (b"HTTP/1.0 200 OK", b"GET", b"", None, False, BodyKind.UNTIL_CLOSE, False),
        (b"HTTP/1.1 200 OK", b"HEAD", CL, 5, True, BodyKind.NONE, True),
        (b"HTTP/1.1 200 OK", b"HEAD", TE, None, True, BodyKind.NONE, True),
        (b"HTTP/1.1 200 OK", b"HEAD", b"", None, True, BodyKind.NONE, True),
        (b"HTTP/1.1 304 Not Modified", b"GET", CL, 5, True, BodyKind.NONE, True),
        (b"HTTP/1.1 304 Not Modified", b"GET", TE, None, True, BodyKind.NONE, True),
        (b"HTTP/1.1 204 No Content", b"GET", CL, None, True, BodyKind.NONE, True),
        (b"HTTP/1.1 204 No Content", b"GET", TE, None, True, BodyKind.NONE, True),
        (b"HTTP/1.1 100 Continue", b"GET", CL, None, True, BodyKind.NONE, True),
        (b"HTTP/1.1 103 Early Hints", b"GET", b"", None, True, BodyKind.NONE, True),
        (b"HTTP/1.1 101 Switching Protocols", b"GET", b"", None, True, BodyKind.NONE, True),
    ],
)
def test_the_framing_of_a_response(
    first: bytes, method: bytes, lines: bytes, length: int | None, ended: bool, kind: BodyKind, persists: bool
) -> None:
    head, found_kind, found_persists = response(b"Server: x\r\n" + lines, first, method)
    assert (head.content_length, head.ended, found_kind, found_persists) == (length, ended, kind, persists)
    assert head.status == int(first[9:12])
    names = [name for name, _ in head.fields if name != b"connection"]
    assert names == ([b"server", b"content-length"] if length is not None else [b"server"])


BAD_RESPONSES = {
    "other protocol": (b"ICY 200 OK", b""),
    "HTTP/2": (b"HTTP/2.0 200 OK", b""),
    "two digits": (b"HTTP/1.1 20 OK", b""),
    "four digits": (b"HTTP/1.1 2000 OK", b""),
    "status 0": (b"HTTP/1.1 000 OK", b""),
    "bare CR in the reason": (b"HTTP/1.1 200 O\rK", b""),
    "folded": (b"HTTP/1.1 200 OK", b"X: a\r\n b\r\n"),
    "space before the colon": (b"HTTP/1.1 200 OK", b"Content-Length : 5\r\n"),
    "length and chunks": (b"HTTP/1.1 200 OK", CL + TE),
    "two lengths": (b"HTTP/1.1 200 OK", CL + CL),
    "length list": (b"HTTP/1.1 200 OK", b"Content-Length: 5, 5\r\n"),
    "other coding": (b"HTTP/1.1 200 OK", b"Transfer-Encoding: gzip\r\n"),
    "chunks in HTTP/1.0": (b"HTTP/1.0 200 OK", TE),
    "length and chunks in a 204": (b"HTTP/1.1 204 No Content", CL + TE),
    "two lengths to HEAD": (b"HTTP/1.1 304 Not Modified", CL + b"Content-Length: 6\r\n"),
    "many lines": (b"HTTP/1.1 200 OK", b"X: y\r\n" * 1001),
}


@pytest.mark.parametrize(("first", "lines"), BAD_RESPONSES.values(), ids=BAD_RESPONSES)
def test_a_malformed_response_head_means_that_the_upstream_failed(first: bytes, lines: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        response(lines, first)
    assert caught.value.status == 502


# Where a head ends


def take_in_pieces(data: bytes, cuts: list[int], limit: int) -> tuple[bytes | int | None, bytes]:
    """Feed the data cut at these places; the head, None, or the status of the refusal, and what is left."""
    buffer = HeadBuffer()
    block = None
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    try:
        for start, stop in itertools.pairwise(places):
            buffer.append(data[start:stop])
            if block is None:
                block = buffer.take_head(limit)
    except RemoteProtocolError as error:
        return error.status, b""
    return block, buffer.take_all()


CUTS = st.lists(st.integers(0, 120), max_size=6)


@given(
    st.lists(
        st.sampled_from([b"GET / HTTP/1.1", b"\r\n", b"\r", b"\n", b"a: b", b"\r\n\r\n", b"\0", b" "]), max_size=9
    ),
    CUTS,
)
def test_a_head_is_found_the_same_way_however_the_bytes_are_split(pieces: list[bytes], cuts: list[int]) -> None:
    data = b"".join(pieces)
    end = data.find(b"\r\n\r\n")
    found, rest = take_in_pieces(data, cuts, 1_000)
    if isinstance(found, int):
        # Refused early because of a byte that no head contains: before the end, where there is an end
        assert found == 400
        with pytest.raises(RemoteProtocolError):
            parse_request_head(data[: end + 2] if end >= 0 else data)
    elif end < 0:
        assert (found, rest) == (None, data)
    else:
        assert (found, rest) == (data[: end + 2], data[end + 4 :])


@given(st.integers(0, 20), CUTS, st.booleans())
def test_the_limit_of_a_head_does_not_depend_on_how_it_is_split(excess: int, cuts: list[int], complete: bool) -> None:
    line = b"GET / HTTP/1.1\r\n"
    head = line + b"x: " + b"y" * (100 - len(line) - 3 - 10 + excess)
    found, _ = take_in_pieces(head + (b"\r\n\r\n" if complete else b""), cuts, 100)
    if complete:
        assert found == (431 if len(head) > 100 else head + b"\r\n")
    else:
        assert found in ((431, None) if len(head) > 100 else (None,))


def test_a_request_line_without_end_is_a_long_target() -> None:
    buffer = HeadBuffer(b"GET /" + b"a" * 200)
    with pytest.raises(RemoteProtocolError) as caught:
        buffer.take_head(100)
    assert caught.value.status == 414


@pytest.mark.parametrize("start", [b"\x16\x03\x01\x02", b"GET / HTTP/1.1\n", b"GET / HTTP/1.1\rX", b"\0"])
def test_what_can_become_no_head_is_refused_at_once(start: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        HeadBuffer(start).take_head(1_000)
    assert caught.value.status == 400


def test_only_one_empty_line_is_skipped() -> None:
    buffer = HeadBuffer(b"\r\n\r\n\r\nGET")
    assert buffer.skip_empty_line()
    assert buffer.take_head(100) == b"\r\n"
    assert not buffer.skip_empty_line()
    assert len(buffer) == 3


def test_a_trailer_section_is_read_like_a_head() -> None:
    assert parse_fields(b"A: b\r\nGrpc-Status:0 \r\n", limit_lines=2) == [(b"a", b"b"), (b"grpc-status", b"0")]
    for bad in (b"A : b\r\n", b"A: b\r\nC: d\r\nE: f\r\n"):
        with pytest.raises(RemoteProtocolError):
            parse_fields(bad, limit_lines=2)


# Writing


def test_well_known_names_are_written_in_their_usual_case_and_others_as_they_are() -> None:
    fields: Fields = [
        (b"etag", b'"1"'),
        (b"sec-websocket-key", b"k"),
        (b"x-Custom_name", b""),
        (b"www-authenticate", b"Basic"),
        (b"content-type", b"a\tb"),
        (b"WARNING", b"299"),
    ]
    assert encode_fields(fields) == (
        b'ETag: "1"\r\nSec-WebSocket-Key: k\r\nx-Custom_name: \r\nWWW-Authenticate: Basic\r\n'
        b"Content-Type: a\tb\r\nWarning: 299\r\n"
    )
    assert encode_fields([]) == encode_fields(()) == b""


@pytest.mark.parametrize(
    "name",
    [
        b"connection",
        b"Connection",
        b"content-length",
        b"transfer-encoding",
        b"TRANSFER-ENCODING",
        b"host",
        b"upgrade",
        b"keep-alive",
        b"http2-settings",
    ],
)
def test_what_each_hop_makes_anew_is_not_written_from_the_fields(name: bytes) -> None:
    assert encode_fields([(name, b"x")]) == b""
    assert encode_fields([(b"a", b"1"), (name, b"x"), (b"b", b"2")]) == b"a: 1\r\nb: 2\r\n"


@pytest.mark.parametrize(
    "line",
    [
        (b"a", b"b\r\nc: d"),
        (b"a", b"b\n"),
        (b"a", b"b\r"),
        (b"a", b"\0"),
        (b"a", b"\x7f"),
        (b"content-type", b"\x01"),
        (b"a: b\r\nc", b"d"),
        (b"a b", b"c"),
        (b"a:", b"c"),
        (b"", b"c"),
        (b"\xe9", b"c"),
        (b":path", b"/"),
    ],
)
def test_a_line_that_would_not_survive_is_not_written(line: tuple[bytes, bytes]) -> None:
    for fields in ([line], [(b"x", b"y"), line], [line, (b"x", b"y")]):
        with pytest.raises(LocalProtocolError):
            encode_fields(fields)


def head_of(method: bytes, target: bytes, fields: Fields, protocol: bytes | None = None) -> RequestHead:
    return RequestHead(method, target, b"", fields, protocol)


def test_an_upgrade_is_asked_for_anew() -> None:
    head = head_of(b"POST", b"/exec", [(b"connection", b"x"), (b"upgrade", b"y"), (b"te", b"trailers")], b"SPDY/3.1")
    assert encode_request_head(head, authority=b"a", framing=b"Content-Length: 0\r\n") == (
        b"POST /exec HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
        b"Content-Length: 0\r\n\r\n"
    )


def test_te_is_named_in_connection() -> None:
    head = head_of(b"GET", b"/", [(b"te", b"trailers")])
    assert (
        encode_request_head(head, authority=b"")
        == b"GET / HTTP/1.1\r\nHost: \r\nTE: trailers\r\nConnection: TE\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("method", "target", "authority", "protocol"),
    [
        (b"GE T", b"/", b"a", None),
        (b"", b"/", b"a", None),
        (b"GET\r\n", b"/", b"a", None),
        (b"GET", b"", b"a", None),
        (b"GET", b"/ HTTP/1.1\r\nX: y", b"a", None),
        (b"GET", b"/\xe9", b"a", None),
        (b"GET", b"/", b"a\r\nX: y", None),
        (b"GET", b"/", b"a b", None),
        (b"GET", b"/", b"a", b"x\r\nY: z"),
        (b"GET", b"/", b"a", b""),
    ],
)
def test_a_request_that_would_not_survive_is_not_written(
    method: bytes, target: bytes, authority: bytes, protocol: bytes | None
) -> None:
    with pytest.raises(LocalProtocolError):
        encode_request_head(head_of(method, target, [], protocol), authority=authority)


def test_status_lines() -> None:
    assert encode_response_head(404, []) == b"HTTP/1.1 404 Not Found\r\n\r\n"
    assert encode_response_head(299, [], framing=b"A: b\r\n") == b"HTTP/1.1 299 \r\nA: b\r\n\r\n"
    for status in (99, 1000):
        with pytest.raises(LocalProtocolError):
            encode_response_head(status, [])


# h11 as the referee

TOKENS = st.text("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCXYZ", min_size=1, max_size=12).map(str.encode)
VALUES = (
    st.binary(max_size=20)
    .map(lambda raw: bytes(byte for byte in raw if byte == 9 or 32 <= byte != 127).strip(b" \t"))
)  # fmt: skip
SENT_ANEW = {b"connection", b"content-length", b"host", b"keep-alive", b"proxy-connection", b"transfer-encoding",
             b"upgrade", b"http2-settings", b"te", b"expect"}  # fmt: skip
FIELDS = st.lists(st.tuples(TOKENS.map(bytes.lower).filter(lambda name: name not in SENT_ANEW), VALUES), max_size=8)
TARGETS = st.binary(max_size=20).map(lambda raw: b"/" + bytes(byte for byte in raw if 33 <= byte < 127))


@given(TOKENS.filter(lambda method: method != b"CONNECT"), TARGETS, FIELDS)
def test_h11_reads_the_request_heads_that_we_write_and_so_do_we(method: bytes, target: bytes, fields: Fields) -> None:
    wire = encode_request_head(head_of(method, target, fields), authority=b"kubernetes", framing=b"")
    referee = h11.Connection(h11.SERVER)
    referee.receive_data(wire)
    event = referee.next_event()
    assert isinstance(event, h11.Request)
    assert (event.method, event.target) == (method, target)
    assert list(event.headers) == [(b"host", b"kubernetes"), *fields]
    head = parse_request_head(wire[:-2])
    assert (head.method, head.target, head.authority, head.fields) == (method, target, b"kubernetes", fields)


@given(TOKENS.filter(lambda method: method != b"CONNECT"), TARGETS, FIELDS)
def test_we_read_the_request_heads_that_h11_writes(method: bytes, target: bytes, fields: Fields) -> None:
    wire = h11.Connection(h11.CLIENT).send(
        h11.Request(method=method, target=target, headers=[(b"Host", b"kubernetes"), *fields])
    )
    assert wire is not None
    head = parse_request_head(wire[:-2])
    assert (head.method, head.target, head.authority, head.fields) == (method, target, b"kubernetes", fields)


@given(st.integers(200, 599), FIELDS)
def test_h11_reads_the_response_heads_that_we_write_and_so_do_we(status: int, fields: Fields) -> None:
    assume(status not in (204, 304))
    wire = encode_response_head(status, fields, framing=b"Content-Length: 5\r\n")
    referee = h11.Connection(h11.CLIENT)
    referee.send(h11.Request(method=b"GET", target=b"/", headers=[(b"Host", b"a")]))
    referee.receive_data(wire)
    event = referee.next_event()
    assert isinstance(event, h11.Response)
    assert event.status_code == status
    assert list(event.headers) == [*fields, (b"content-length", b"5")]
    head, framing = parse_response_head(wire[:-2], b"GET")
    assert (head.status, head.fields, head.content_length) == (status, [*fields, (b"content-length", b"5")], 5)
    assert framing == (BodyKind.LENGTH, True)


@given(st.binary(max_size=60))
def test_whatever_arrives_is_parsed_or_refused(noise: bytes) -> None:
    for block in (noise, b"GET / HTTP/1.1\r\nHost: a\r\n" + noise + b"\r\n"):
        try:
            head = parse_request_head(block)
        except RemoteProtocolError:
            continue
        assert all(name.islower() or not name.isalpha() for name, _ in head.fields)
        assert not any(byte in value for _, value in head.fields for byte in b"\r\n\0")
