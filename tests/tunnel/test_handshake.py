from __future__ import annotations

import json

import pytest

from tunnel.errors import HandshakeError, LocalProtocolError
from tunnel.handshake import (
    Form,
    Hello,
    HelloRequest,
    Welcome,
    common_version,
    decode_hello,
    decode_welcome,
    encode_hello,
    encode_refusal,
    encode_welcome,
    websocket_accept,
)
from tunnel.http1.heads import HeadBuffer, parse_response_head

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="  # of RFC 6455 §1.3
HELLO = Hello(
    token="mla_secret",
    agent_version="0.1.0",
    replica="agentk-0",
    process="9f86d081",
    cluster="5d41402a-bc4b-2a76-b971-9d911017c592",
    origins=("kubernetes", "agentk", "prometheus.monitoring:9090"),
    holds=("kas-1", "kas-2"),
    replaces="t-17",
)
WELCOME = Welcome(kas_id="kas-1", tunnel_id="t-18", agent_id="prod-eu")


def block_of(message: bytes) -> bytes:
    """The head as `receive_head` would give it."""
    buffer = HeadBuffer(message)
    block = buffer.take_head(100_000)
    assert block is not None
    assert len(buffer) == 0
    return block


def request(*changes: tuple[bytes, bytes | None], form: Form = Form.UPGRADE, line: bytes | None = None) -> bytes:
    """A proper request with some of its field lines replaced (None: left out), or added where the name is new."""
    head = encode_hello(HELLO, form=form, authority="kas.test", websocket_key=KEY)
    lines = head.split(b"\r\n")[:-2]
    if line is not None:
        lines[0] = line
    for name, value in changes:
        at = [index for index, text in enumerate(lines) if text.lower().startswith(name.lower() + b":")]
        if value is None:
            for index in reversed(at):
                del lines[index]
        elif at:
            lines[at[0]] = name + b": " + value
        else:
            lines.append(name + b": " + value)
    return b"\r\n".join(lines) + b"\r\n"


@pytest.mark.parametrize("form", list(Form))
def test_what_an_agent_says_is_understood_whole(form):
    sent = encode_hello(HELLO, form=form, authority="kas.test", path_prefix="/moorline", websocket_key=KEY)
    assert sent.startswith(b"GET /moorline/agent/v1/tunnel HTTP/1.1\r\nHost: kas.test\r\n")
    received = decode_hello(block_of(sent))
    assert received.hello == HELLO
    assert received.form is form
    assert received.websocket_key == (KEY if form is Form.WEBSOCKET else b"")


def test_what_an_agent_leaves_out_is_empty():
    minimal = Hello(token="mla_x", agent_version="1", replica="r", process="p", origins=())
    received = decode_hello(block_of(encode_hello(minimal, form=Form.UPGRADE, authority="kas.test")))
    assert received.hello == minimal


def test_the_token_is_in_no_representation():
    assert "mla_secret" not in repr(HELLO)
    assert "mla_secret" not in repr(HelloRequest(HELLO, Form.UPGRADE, b""))


@pytest.mark.parametrize(
    ("prefix", "target"),
    [
        ("", b"/agent/v1/tunnel"),
        ("/", b"/agent/v1/tunnel"),
        ("/kas", b"/kas/agent/v1/tunnel"),
        ("/kas/", b"/kas/agent/v1/tunnel"),
        ("/kas/agent/v1/tunnel", b"/kas/agent/v1/tunnel"),
        ("/agent/v1/tunnel/", b"/agent/v1/tunnel"),
    ],
)
def test_a_prefix_may_name_the_whole_path_already(prefix, target):
    sent = encode_hello(HELLO, form=Form.UPGRADE, authority="kas.test", path_prefix=prefix)
    assert sent.split(b" ")[1] == target


@pytest.mark.parametrize(
    "target", [b"/agent/v1/tunnel", b"/agent/v1/tunnel/", b"/some/prefix/agent/v1/tunnel", b"/agent/v1/tunnel?x=y"]
)
def test_the_path_is_found_below_any_prefix(target):
    assert decode_hello(request(line=b"GET " + target + b" HTTP/1.1")).hello == HELLO


def test_extra_headers_are_sent_along_and_unknown_ones_ignored():
    sent = encode_hello(
        HELLO, form=Form.UPGRADE, authority="kas.test", extra_headers=[("X-Gate", "open"), ("User-Agent", "mine")]
    )
    assert b"\r\nx-gate: open\r\n" in sent
    assert sent.lower().count(b"user-agent:") == 1
    assert decode_hello(block_of(sent)).hello == HELLO


@pytest.mark.parametrize("name", ["Authorization", "Host", "Moorline-Agent", "moorline_kas", "Upgrade", "TE"])
def test_an_extra_header_cannot_replace_one_of_the_handshake(name):
    with pytest.raises(LocalProtocolError, match=name):
        encode_hello(HELLO, form=Form.UPGRADE, authority="kas.test", extra_headers=[(name, "x")])


def test_an_extra_header_cannot_smuggle_a_line():
    with pytest.raises(LocalProtocolError):
        encode_hello(HELLO, form=Form.UPGRADE, authority="kas.test", extra_headers=[("X-A", "b\r\nHost: other")])


WEBSOCKET = Form.WEBSOCKET
UPGRADE = Form.UPGRADE


@pytest.mark.parametrize(
    ("form", "change", "status", "words"),
    [
        (UPGRADE, (b"Authorization", None), 401, "no agent token"),
        (UPGRADE, (b"Authorization", b"Basic abc"), 401, "no agent token"),
        (UPGRADE, (b"Authorization", b"Bearer "), 401, "no agent token"),
        (UPGRADE, (b"Authorization", b"Bearer two words"), 401, "no agent token"),
        (UPGRADE, (b"authorization: Bearer one\r\nAuthorization", b"Bearer two"), 400, "more than once"),
        (UPGRADE, (b"Moorline-Versions", None), 400, "Moorline-Versions is missing"),
        (UPGRADE, (b"Moorline-Versions", b"one"), 400, "Moorline-Versions is missing or malformed"),
        (UPGRADE, (b"Moorline-Versions", b",".join([b"1"] * 65)), 400, "Moorline-Versions is missing or malformed"),
        (UPGRADE, (b"Moorline-Versions", b"2, 3"), 426, "speaks version 1 of the tunnel protocol, the agent 2, 3"),
        (UPGRADE, (b"Moorline-Agent-Version", None), 400, "Moorline-Agent-Version is missing"),
        (UPGRADE, (b"Moorline-Replica", None), 400, "Moorline-Replica is missing"),
        (UPGRADE, (b"Moorline-Replica", b"two words"), 400, "Moorline-Replica is malformed"),
        (UPGRADE, (b"Moorline-Process", b"x" * 254), 400, "Moorline-Process is malformed"),
        (UPGRADE, (b"Moorline-Cluster", b"\xc3\xa4"), 400, "Moorline-Cluster is malformed"),
        (UPGRADE, (b"Moorline-Replaces", b"a,b"), 400, "Moorline-Replaces is malformed"),
        (UPGRADE, (b"Moorline-Holds", b",".join([b"k"] * 65)), 400, "Moorline-Holds is malformed or has more than 64"),
        (UPGRADE, (b"Moorline-Origins", b"a b"), 400, "Moorline-Origins is malformed"),
        (UPGRADE, (b"Upgrade", None), 426, "must ask for an upgrade to moorline/1 or to a WebSocket"),
        (UPGRADE, (b"Upgrade", b"h2c"), 426, "must ask for an upgrade"),
        (UPGRADE, (b"Connection", b"close"), 426, "must ask for an upgrade"),
        (UPGRADE, (b"Content-Length", b"5"), 400, "no body"),
        (UPGRADE, (b"Host", None), 400, "Host"),
        (UPGRADE, (b"X-Large", b"x" * 70_000), None, ""),
        (WEBSOCKET, (b"Sec-WebSocket-Version", b"8"), 426, "only version 13 of WebSocket"),
        (WEBSOCKET, (b"Sec-WebSocket-Version", None), 426, "only version 13 of WebSocket"),
        (WEBSOCKET, (b"Sec-WebSocket-Protocol", b"chat"), 400, "subprotocol must be moorline.v1"),
        (WEBSOCKET, (b"Sec-WebSocket-Protocol", b"chat, moorline.v1"), None, ""),
        (WEBSOCKET, (b"Sec-WebSocket-Key", None), 400, "Sec-WebSocket-Key is malformed"),
        (WEBSOCKET, (b"Sec-WebSocket-Key", b"c2hvcnQ="), 400, "Sec-WebSocket-Key is malformed"),
        (WEBSOCKET, (b"Sec-WebSocket-Key", b"no base64!"), 400, "Sec-WebSocket-Key is malformed"),
    ],
)
def test_a_request_that_is_wrong_in_one_place_is_refused_for_that(form, change, status, words):
    name = change[0]
    changes = [change] if b"\r\n" not in name else [(b"Authorization", None), change]
    block = request(*changes, form=form)
    if status is None:
        assert decode_hello(block).hello == HELLO
        return
    with pytest.raises(HandshakeError, match=words) as caught:
        decode_hello(block)
    assert caught.value.status == status
    assert caught.value.reason
    assert "mla_secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET / HTTP/1.1", 404),
        (b"GET /agent/v1/tunnels HTTP/1.1", 404),
        (b"GET /" + b"x" * 3_000 + b"/agent/v1/tunnel HTTP/1.1", 414),
        (b"POST /agent/v1/tunnel HTTP/1.1", 405),
        (b"CONNECT kas.test:443 HTTP/1.1", 405),
        (b"GET /agent/v1/tunnel HTTP/1.0", 426),
        (b"GET /agent/v1/tunnel HTTP/2.0", 505),
        (b"PRI * HTTP/2.0", 505),
        (b"\x16\x03\x01", 400),
    ],
)
def test_a_request_line_for_something_else_is_refused(line, status):
    with pytest.raises(HandshakeError) as caught:
        decode_hello(request(line=line))
    assert caught.value.status == status


def test_too_many_field_lines_are_refused():
    with pytest.raises(HandshakeError) as caught:
        decode_hello(request() + b"x-more: y\r\n" * 100)
    assert caught.value.status == 431


def answer(data: bytes):
    return parse_response_head(block_of(data), b"GET")[0]


@pytest.mark.parametrize("form", list(Form))
def test_the_answer_is_understood_by_the_agent(form):
    sent = encode_welcome(WELCOME, HelloRequest(HELLO, form, KEY))
    assert sent.startswith(b"HTTP/1.1 101 ")
    assert decode_welcome(answer(sent), hello=HELLO, form=form, websocket_key=KEY, address="") == WELCOME


def test_the_accept_value_is_that_of_the_rfc():
    assert websocket_accept(KEY) == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize(
    ("form", "old", "new", "words"),
    [
        (UPGRADE, b"Upgrade: moorline/1", b"Upgrade: websocket", "upgraded to 'websocket' and not to 'moorline/1'"),
        (UPGRADE, b"Upgrade: moorline/1\r\n", b"", "upgraded to ''"),
        (UPGRADE, b"moorline-version: 1", b"moorline-version: 2", "Moorline-Version is '2'"),
        (UPGRADE, b"moorline-version: 1", b"moorline-version: x", "Moorline-Version is 'x'"),
        (UPGRADE, b"moorline-version: 1\r\n", b"", "Moorline-Version is ''"),
        (UPGRADE, b"moorline-kas: kas-1\r\n", b"", "Moorline-Kas is ''"),
        (UPGRADE, b"moorline-tunnel: t-18", b"moorline-tunnel: t 18", "Moorline-Tunnel is 't 18'"),
        (UPGRADE, b"moorline-agent: prod-eu\r\n", b"", "Moorline-Agent is ''"),
        (WEBSOCKET, b"Upgrade: websocket", b"Upgrade: moorline/1", "upgraded to 'moorline/1' and not to 'websocket'"),
        (WEBSOCKET, b"s3pPLMBi", b"AAAAAAAA", "Sec-WebSocket-Accept does not belong to our key"),
        (WEBSOCKET, b": moorline.v1", b": chat", "did not choose the WebSocket subprotocol 'moorline.v1'"),
        (
            WEBSOCKET,
            b"Upgrade: websocket",
            b"Sec-WebSocket-Extensions: permessage-deflate\r\nUpgrade: websocket",
            "extension that was not offered",
        ),
    ],
)
def test_a_101_that_is_no_kas_s_is_refused(form, old, new, words):
    sent = encode_welcome(WELCOME, HelloRequest(HELLO, form, KEY))
    assert old in sent
    with pytest.raises(HandshakeError, match=words) as caught:
        decode_welcome(
            answer(sent.replace(old, new)), hello=HELLO, form=form, websocket_key=KEY, address="https://kas.test"
        )
    assert str(caught.value).startswith("https://kas.test: something answered 101 that is no kas: ")
    assert caught.value.reason == "not-a-kas"


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (401, b"www-authenticate: bearer"),
        (405, b"allow: get"),
        (426, b"upgrade: moorline/1"),
        (426, b"sec-websocket-version: 13"),
        (409, b"retry-after: 31"),
    ],
)
def test_a_refusal_carries_what_its_status_demands(status, line):
    error = HandshakeError("not now", status=status, reason="because", retry_after=30.2 if status == 409 else None)
    sent = encode_refusal(error)
    head, _, body = sent.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert line in lines
    assert b"moorline-versions: 1" in lines
    assert b"content-length: %d" % len(body) in lines
    assert any(text.startswith(b"connection: close") for text in lines)
    assert json.loads(body) == {"error": "because", "message": "not now"}
    assert (b"retry-after" in head.lower()) == (status == 409)


def test_both_answers_tell_the_time_where_it_is_given():
    date = "Sun, 06 Nov 1994 08:49:37 GMT"
    for sent in (
        encode_welcome(WELCOME, HelloRequest(HELLO, UPGRADE, KEY), date=date),
        encode_refusal(HandshakeError("no", status=401), date=date),
    ):
        assert b"\r\nDate: %b\r\n" % date.encode() in sent


def test_a_refusal_without_a_status_is_our_own_fault():
    assert encode_refusal(HandshakeError("oops")).startswith(b"HTTP/1.1 500 ")


def test_the_common_version_is_the_newest():
    assert common_version([1, 2]) == 1
    assert common_version([2, 3]) is None
    assert common_version([]) is None
