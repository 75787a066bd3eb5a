"""What each frame does, by the sections of RFC 9113: connection errors, stream errors, and what is ignored."""

from __future__ import annotations

from typing import Any

import pytest
from support.http2 import (
    POST,
    REQUEST,
    RESPONSE,
    SETTINGS_ACK,
    block,
    continuation,
    data,
    frame,
    gather_all,
    goaway,
    headers,
    lone_engine,
    ping,
    rst_stream,
    sent_frames,
    settings,
    window_update,
)

from tunnel.errors import ErrorCode
from tunnel.h2.config import FRONT_RESPONDER, TUNNEL_RESPONDER
from tunnel.h2.engine import Engine, Role
from tunnel.h2.events import (
    ConnectionFailed,
    DataReceived,
    Event,
    HeadTooLarge,
    InterimReceived,
    PeerGoingAway,
    Pong,
    RequestReceived,
    ResponseReceived,
    SettingsReceived,
    StreamWasReset,
    TrailersReceived,
)
from tunnel.h2.frames import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PRIORITY_FLAG,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)

PROTOCOL = ErrorCode.PROTOCOL_ERROR
SIZE = ErrorCode.FRAME_SIZE_ERROR
FLOW = ErrorCode.FLOW_CONTROL_ERROR
CLOSED = ErrorCode.STREAM_CLOSED
COMPRESSION = ErrorCode.COMPRESSION_ERROR

OPEN = headers(1, POST, END_HEADERS)
HALF_CLOSED = headers(1, REQUEST)


def rows(table: list[tuple[Any, ...]]) -> list[Any]:
    """The rows of a table as parameters, each named by its first column."""
    return [pytest.param(*row[1:], id=row[0]) for row in table]


def chopped(engine: Engine, wire: bytes, step: int) -> list[Event]:
    """The events of bytes that come in pieces."""
    return [event for start in range(0, len(wire), step) for event in engine.receive(wire[start : start + step], 0.0)]


def fail_text(engine: Engine, wire: bytes, code: ErrorCode) -> str:
    """Feed bytes that must end the connection; what the log would say."""
    *_, last = engine.receive(wire, 0.0)
    assert isinstance(last, ConnectionFailed)
    assert last.code == code
    goodbye = sent_frames(engine)[-1]
    assert goodbye.kind == GOAWAY
    assert goodbye.payload[4:8] == code.to_bytes(4, "big")
    assert not engine.has_output
    assert engine.receive(ping(), 0.0) == []
    assert engine.expire(1e9) == []
    assert engine.deadline() is None
    return last.text


CONNECTION_ERRORS = [
    # §3.4, §6.5: SETTINGS comes first; checked with its own engines below.
    # §4.2
    ("frame too large", frame(0x99, 0, 0, bytes(65_537)), SIZE),
    # §5.1: idle streams
    ("DATA on idle", data(1, b"x"), PROTOCOL),
    ("RST_STREAM on idle", rst_stream(1), PROTOCOL),
    ("WINDOW_UPDATE on idle", window_update(1, 1), PROTOCOL),
    ("DATA on stream 0", data(0, b"x"), PROTOCOL),
    ("even stream", headers(2, REQUEST), PROTOCOL),
    ("DATA on even stream", data(2, b"x"), PROTOCOL),
    # §5.1.1: a new stream below the last one
    ("stream id that shrinks", headers(5, REQUEST) + headers(3, REQUEST), CLOSED),
    # §6.1
    ("DATA padding beyond the payload", OPEN + frame(DATA, PADDED, 1, b"\x05abc"), PROTOCOL),
    ("DATA padding length missing", OPEN + frame(DATA, PADDED, 1), SIZE),
    # §6.2
    ("HEADERS on stream 0", headers(0, REQUEST), PROTOCOL),
    ("HEADERS padding length missing", frame(HEADERS, PADDED | END_HEADERS, 1), SIZE),
    ("HEADERS padding beyond the payload", frame(HEADERS, PADDED | END_HEADERS, 1, b"\x05abc"), PROTOCOL),
    ("HEADERS priority cut off", frame(HEADERS, PRIORITY_FLAG | END_HEADERS, 1, b"\x00\x00\x00"), PROTOCOL),
    ("unfinished HEADERS that depends on itself", frame(HEADERS, PRIORITY_FLAG, 1, b"\x00\x00\x00\x01\x00"), PROTOCOL),
    # §6.3
    ("PRIORITY on stream 0", frame(PRIORITY, 0, 0, bytes(5)), PROTOCOL),
    ("PRIORITY of a wrong size", frame(PRIORITY, 0, 1, bytes(4)), SIZE),
    ("PRIORITY on itself, idle", frame(PRIORITY, 0, 1, b"\x00\x00\x00\x01\x00"), PROTOCOL),
    # §6.4
    ("RST_STREAM on stream 0", rst_stream(0), PROTOCOL),
    ("RST_STREAM of a wrong size", OPEN + frame(RST_STREAM, 0, 1, bytes(5)), SIZE),
    # §6.5
    ("SETTINGS on a stream", frame(SETTINGS, 0, 1), PROTOCOL),
    ("SETTINGS of a wrong size", frame(SETTINGS, 0, 0, bytes(5)), SIZE),
    ("SETTINGS ACK with payload", frame(SETTINGS, ACK, 0, bytes(6)), SIZE),
    ("SETTINGS value", settings({4: 2**31}), FLOW),
    # §6.6
    ("PUSH_PROMISE", frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4)), PROTOCOL),
    # §6.7
    ("PING on a stream", frame(PING, 0, 1, bytes(8)), PROTOCOL),
    ("PING of a wrong size", frame(PING, 0, 0, bytes(7)), SIZE),
    # §6.8
    ("GOAWAY on a stream", frame(GOAWAY, 0, 1, bytes(8)), PROTOCOL),
    ("GOAWAY of a wrong size", frame(GOAWAY, 0, 0, bytes(7)), SIZE),
    # §6.9
    ("WINDOW_UPDATE of a wrong size", frame(WINDOW_UPDATE, 0, 0, bytes(3)), SIZE),
    ("WINDOW_UPDATE of 0", window_update(0, 0), PROTOCOL),
    ("WINDOW_UPDATE beyond 2^31-1", window_update(0, 2**31 - 1), FLOW),
    (
        "SETTINGS that moves a window beyond 2^31-1",
        OPEN + window_update(1, 2**31 - 65_536) + settings({4: 65_537}),
        FLOW,
    ),
    # §6.10
    ("CONTINUATION without HEADERS", continuation(1, b""), PROTOCOL),
    ("CONTINUATION after END_HEADERS", OPEN + continuation(1, b""), PROTOCOL),
    ("CONTINUATION of another stream", frame(HEADERS, 0, 1, b"") + continuation(3, b""), PROTOCOL),
    ("another frame inside a block", frame(HEADERS, 0, 1, b"") + ping(), PROTOCOL),
    # §4.3
    ("a block that cannot be decoded", frame(HEADERS, END_HEADERS, 1, b"\x80"), COMPRESSION),
    # §5.1, closed
    ("HEADERS after the peer's RST_STREAM", OPEN + rst_stream(1) + headers(1, REQUEST), CLOSED),
]


@pytest.mark.parametrize(("wire", "code"), rows(CONNECTION_ERRORS))
def test_a_connection_error_ends_the_connection_and_says_why(wire: bytes, code: ErrorCode):
    assert fail_text(lone_engine(), wire, code)


STREAM_ERRORS = [
    # §5.1, half-closed (remote)
    ("DATA after END_STREAM", HALF_CLOSED, data(1, b"x"), CLOSED),
    ("HEADERS after END_STREAM", HALF_CLOSED, headers(1, REQUEST), CLOSED),
    # §5.3.1 of RFC 7540
    ("PRIORITY on itself", OPEN, frame(PRIORITY, 0, 1, b"\x80\x00\x00\x01\x00"), PROTOCOL),
    ("PRIORITY of a wrong size", OPEN, frame(PRIORITY, 0, 1, bytes(6)), SIZE),
    (
        "trailers that depend on themselves",
        OPEN,
        frame(HEADERS, PRIORITY_FLAG | END_HEADERS | END_STREAM, 1, b"\x00\x00\x00\x01\x00"),
        PROTOCOL,
    ),
    # §6.9
    ("WINDOW_UPDATE of 0", OPEN, window_update(1, 0), PROTOCOL),
    ("WINDOW_UPDATE beyond 2^31-1", OPEN, window_update(1, 2**31 - 1), FLOW),
    ("DATA beyond the window", OPEN, data(1, bytes(65_536)) + data(1, b"x"), FLOW),
    # §8.1
    ("trailers without END_STREAM", OPEN, headers(1, [(b"a", b"b")], END_HEADERS), PROTOCOL),
    ("trailers with a pseudo-field", OPEN, headers(1, [(b":path", b"/")]), PROTOCOL),
    ("trailers with an invalid line", OPEN, headers(1, [(b"A", b"b")]), PROTOCOL),
    # §8.1.1
    (
        "less than Content-Length",
        headers(1, [*POST, (b"content-length", b"3")], END_HEADERS),
        data(1, b"ab", END_STREAM),
        PROTOCOL,
    ),
    ("more than Content-Length", headers(1, [*POST, (b"content-length", b"1")], END_HEADERS), data(1, b"ab"), PROTOCOL),
    (
        "less than Content-Length, then trailers",
        headers(1, [*POST, (b"content-length", b"3")], END_HEADERS),
        data(1, b"ab") + headers(1, [(b"a", b"b")]),
        PROTOCOL,
    ),
]


@pytest.mark.parametrize(("before", "wire", "code"), rows(STREAM_ERRORS))
def test_a_stream_error_ends_the_stream_and_nothing_else(before: bytes, wire: bytes, code: ErrorCode):
    engine = lone_engine()
    (request,) = engine.receive(before, 0.0)
    assert isinstance(request, RequestReceived)
    gather_all(engine)

    *_, last = engine.receive(wire, 0.0)

    assert last == StreamWasReset(request.stream, code, remote=False, refused=False)
    assert request.stream.reset
    (reset,) = sent_frames(engine)
    assert (reset.kind, reset.stream_id, reset.payload) == (RST_STREAM, 1, code.to_bytes(4, "big"))
    # What was under way is ignored, and the next stream is served.
    assert engine.receive(data(1, b"x") + headers(1, [(b"a", b"b")]) + window_update(1, 1) + rst_stream(1), 0.0) == []
    (request,) = engine.receive(headers(3, REQUEST), 0.0)
    assert isinstance(request, RequestReceived)
    assert engine.statistics().bad_streams == 1


MALFORMED = [
    ("no :path", REQUEST[:3]),
    ("upper case", [*REQUEST, (b"Accept", b"x")]),
    ("connection", [*REQUEST, (b"connection", b"close")]),
    ("unknown pseudo-field", [*REQUEST, (b":x", b"y")]),
    ("content-length without a body", [*REQUEST, (b"content-length", b"1")]),
    ("plain CONNECT", [(b":method", b"CONNECT"), (b":authority", b"a:1")]),
]


@pytest.mark.parametrize("fields", rows(MALFORMED))
def test_a_malformed_request_is_reset_and_never_reported(fields: list[tuple[bytes, bytes]]):
    engine = lone_engine()

    assert engine.receive(headers(1, fields), 0.0) == []
    (reset,) = sent_frames(engine)
    assert (reset.kind, reset.stream_id, reset.payload[-1]) == (RST_STREAM, 1, PROTOCOL)
    assert engine.open_count == 0


def test_a_request_that_depends_on_itself_is_reset():
    engine = lone_engine()
    wire = frame(HEADERS, PRIORITY_FLAG | END_HEADERS | END_STREAM, 1, b"\x00\x00\x00\x01\x10" + block(REQUEST))

    assert engine.receive(wire, 0.0) == []
    assert [each.kind for each in sent_frames(engine)] == [RST_STREAM]


def test_padding_and_priority_are_taken_off():
    engine = lone_engine()
    head = b"\x03" + b"\x00\x00\x00\x00\x10" + block(POST) + bytes(3)
    request, body = engine.receive(
        frame(HEADERS, PADDED | PRIORITY_FLAG | END_HEADERS, 1, head)
        + frame(DATA, PADDED | END_STREAM, 1, b"\x02hi\0\0"),
        0.0,
    )

    assert isinstance(request, RequestReceived)
    assert request.fields == POST
    assert body == DataReceived(request.stream, b"hi", ended=True)


def test_extended_connect_only_where_it_was_announced():
    connect = [(b":method", b"CONNECT"), *REQUEST[1:], (b":protocol", b"websocket")]

    (request,) = lone_engine().receive(headers(1, connect, END_HEADERS), 0.0)
    assert isinstance(request, RequestReceived)
    front = lone_engine(config=FRONT_RESPONDER)
    assert front.receive(headers(1, connect, END_HEADERS), 0.0) == []
    assert [each.kind for each in sent_frames(front)] == [RST_STREAM]


def test_a_block_may_come_in_pieces():
    engine = lone_engine()
    whole = block(REQUEST)
    wire = frame(HEADERS, END_STREAM, 1, whole[:3]) + continuation(1, b"") + continuation(1, whole[3:], END_HEADERS)

    (request,) = engine.receive(wire, 0.0)

    assert isinstance(request, RequestReceived)
    assert request.fields == REQUEST
    assert request.ended


def test_ping_is_answered_and_ours_reported():
    engine = lone_engine()
    engine.send_ping(b"from us!")
    gather_all(engine)

    assert engine.receive(ping(b"abcdefgh") + ping(b"from us!", ACK) + ping(b"unasked!", ACK), 0.0) == [
        Pong(b"from us!")
    ]
    (pong,) = sent_frames(engine)
    assert (pong.kind, pong.flags, pong.payload) == (PING, ACK, b"abcdefgh")


def test_settings_are_acknowledged_and_reported():
    engine = lone_engine()

    assert engine.receive(settings({3: 5}), 0.0) == [SettingsReceived()]
    assert [(each.kind, each.flags) for each in sent_frames(engine)] == [(SETTINGS, ACK)]
    assert engine.peer_settings.max_concurrent_streams == 5


def test_frames_of_unknown_type_and_priority_are_ignored():
    engine = lone_engine()

    assert engine.receive(frame(0x42, 0xFF, 7, b"what") + frame(PRIORITY, 0, 9, b"\x00\x00\x00\x03\x10"), 0.0) == []
    assert not engine.has_output


@pytest.mark.parametrize(
    "wire", [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", PREFACE + ping(), PREFACE + SETTINGS_ACK]
)
def test_a_peer_that_does_not_begin_as_the_rfc_says_is_refused(wire: bytes):
    for step in (1, len(wire)):
        engine = Engine(Role.RESPONDER, TUNNEL_RESPONDER)
        events = chopped(engine, wire, step)
        (failed,) = events
        assert isinstance(failed, ConnectionFailed)
        assert failed.code == PROTOCOL


@pytest.mark.parametrize("step", [1, 2, 7, 9, 10, 64])
def test_bytes_may_come_in_any_pieces(step: int):
    wire = PREFACE + settings() + SETTINGS_ACK + headers(1, POST, END_HEADERS)
    wire += data(1, b"abc" * 50) + data(1, b"", END_STREAM) + ping()
    engine = Engine(Role.RESPONDER, TUNNEL_RESPONDER)

    events = chopped(engine, wire, step)

    settled, request, first, last = events
    assert settled == SettingsReceived()
    assert isinstance(request, RequestReceived)
    assert first == DataReceived(request.stream, b"abc" * 50, ended=False)
    assert last == DataReceived(request.stream, b"", ended=True)


def test_a_large_frame_in_single_bytes_takes_linear_time():
    """65,536 joins of up to 64 KiB would take seconds."""
    engine = lone_engine()
    wire = OPEN + data(1, bytes(65_536))

    events = chopped(engine, wire, 1)

    assert isinstance(events[-1], DataReceived)
    assert len(events[-1].data) == 65_536


# --- the requester --------------------------------------------------------------------------------------


def requester_with_stream(fields: list[tuple[bytes, bytes]] = REQUEST, *, ended: bool = True):
    engine = lone_engine(Role.REQUESTER)
    stream = engine.open_stream(fields, ended=ended)
    gather_all(engine)
    return engine, stream


def test_interim_heads_come_before_the_final_one_and_trailers_after():
    engine, stream = requester_with_stream()
    early = [(b":status", b"103"), (b"link", b"x")]
    wire = headers(1, early, END_HEADERS) * 2 + headers(1, RESPONSE, END_HEADERS) + data(1, b"hi")
    wire += headers(1, [(b"grpc-status", b"0")])

    assert engine.receive(wire, 0.0) == [
        InterimReceived(stream, early),
        InterimReceived(stream, early),
        ResponseReceived(stream, RESPONSE, ended=False),
        DataReceived(stream, b"hi", ended=False),
        TrailersReceived(stream, [(b"grpc-status", b"0")]),
    ]
    assert engine.open_count == 0


RESPONSE_ERRORS = [
    ("DATA before the head", data(1, b"x"), PROTOCOL),
    ("interim head that ends", headers(1, [(b":status", b"100")]), PROTOCOL),
    ("status 101", headers(1, [(b":status", b"101")], END_HEADERS), PROTOCOL),
    ("no status", headers(1, [(b"a", b"b")]), PROTOCOL),
    ("an invalid line", headers(1, [(b":status", b"200"), (b"A", b"b")]), PROTOCOL),
    ("content-length without a body", headers(1, [(b":status", b"200"), (b"content-length", b"1")]), PROTOCOL),
    ("a body of 204", headers(1, [(b":status", b"204")], END_HEADERS) + data(1, b"x"), PROTOCOL),
    ("too many interim heads", headers(1, [(b":status", b"100")], END_HEADERS) * 33, ErrorCode.ENHANCE_YOUR_CALM),
]


@pytest.mark.parametrize(("wire", "code"), rows(RESPONSE_ERRORS))
def test_a_malformed_response_ends_the_stream(wire: bytes, code: ErrorCode):
    engine, stream = requester_with_stream()

    *_, last = engine.receive(wire, 0.0)

    assert last == StreamWasReset(stream, code, remote=False, refused=False)
    assert sent_frames(engine)[-1].payload == code.to_bytes(4, "big")


@pytest.mark.parametrize(
    ("request_fields", "response"),
    [
        ([(b":method", b"HEAD"), *REQUEST[1:]], [(b":status", b"200"), (b"content-length", b"7")]),
        (REQUEST, [(b":status", b"304"), (b"content-length", b"7")]),
    ],
    ids=["HEAD", "304"],
)
def test_a_length_without_body_is_right_where_there_never_is_one(
    request_fields: list[tuple[bytes, bytes]], response: list[tuple[bytes, bytes]]
):
    engine, stream = requester_with_stream(request_fields)
    assert engine.receive(headers(1, response), 0.0) == [ResponseReceived(stream, response, ended=True)]

    engine, stream = requester_with_stream(request_fields)
    head, end = engine.receive(headers(1, response, END_HEADERS) + data(1, b"", END_STREAM), 0.0)
    assert head == ResponseReceived(stream, response, ended=False)
    assert end == DataReceived(stream, b"", ended=True)


def test_the_byte_stream_behind_connect_has_no_length():
    connect = [(b":method", b"CONNECT"), *REQUEST[1:], (b":protocol", b"websocket")]
    engine, stream = requester_with_stream(connect, ended=False)
    answer = [(b":status", b"200"), (b"content-length", b"1")]

    events = engine.receive(headers(1, answer, END_HEADERS) + data(1, b"hello"), 0.0)

    assert events[1] == DataReceived(stream, b"hello", ended=False)


@pytest.mark.parametrize(
    "wire", [headers(2, RESPONSE), headers(3, RESPONSE), data(3, b"x"), rst_stream(3), window_update(3, 1)]
)
def test_a_responder_opens_no_streams(wire: bytes):
    engine, _ = requester_with_stream()

    fail_text(engine, wire, PROTOCOL)


def test_a_reset_by_the_peer_is_reported_with_its_code():
    engine, stream = requester_with_stream()
    assert engine.receive(rst_stream(1, 0x99), 0.0) == [StreamWasReset(stream, 0x99, remote=True, refused=False)]

    engine, stream = requester_with_stream()
    assert engine.receive(rst_stream(1, ErrorCode.REFUSED_STREAM), 0.0) == [
        StreamWasReset(stream, ErrorCode.REFUSED_STREAM, remote=True, refused=True)
    ]
    assert not engine.has_output


def test_data_on_a_stream_that_is_over_is_refused_once():
    engine, _ = requester_with_stream()
    engine.receive(headers(1, RESPONSE), 0.0)

    assert engine.receive(data(1, b"late") * 3, 0.0) == []
    (reset,) = sent_frames(engine)
    assert (reset.kind, reset.payload[-1]) == (RST_STREAM, CLOSED)


def test_what_comes_for_a_stream_that_is_over_is_otherwise_ignored():
    engine, _ = requester_with_stream()
    engine.receive(headers(1, RESPONSE), 0.0)

    assert engine.receive(rst_stream(1) + window_update(1, 1) + frame(PRIORITY, 0, 1, bytes(5)), 0.0) == []
    assert not engine.has_output


# --- heads above the limit ------------------------------------------------------------------------------


def large_head(size: int, stream_id: int = 1, flags: int = END_HEADERS) -> bytes:
    lines = b"".join(b"\x00\x08x-filler\x64" + b"v" * 100 for _ in range(size // 111))
    return frame(HEADERS, flags, stream_id, block(POST) + lines)


def test_a_request_head_above_the_limit_is_reported_and_its_body_dropped():
    engine = lone_engine(max_header_list_bytes=5_000)
    (event,) = engine.receive(large_head(6_000), 0.0)
    assert isinstance(event, HeadTooLarge)
    assert engine.open_count == 1

    late = headers(1, [(b"a", b"b")], END_HEADERS) + headers(1, [(b"a", b"b")])
    assert engine.receive(data(1, bytes(40_000)) + late, 0.0) == []
    engine.send_head(event.stream, [(b":status", b"431")], ended=True)
    engine.release(event.stream)

    kinds = [(each.kind, each.stream_id) for each in sent_frames(engine)]
    assert kinds == [(WINDOW_UPDATE, 1), (HEADERS, 1)]
    assert engine.open_count == 0
    assert event.stream.id not in engine._state.streams


def test_a_dropped_body_may_end_with_data():
    engine = lone_engine(max_header_list_bytes=5_000)
    (event,) = engine.receive(large_head(6_000), 0.0)
    assert engine.receive(data(1, b"x", END_STREAM), 0.0) == []
    assert event.stream.remote_ended


def test_too_many_lines_are_a_head_above_the_limit():
    engine = lone_engine(max_header_lines=10)

    (event,) = engine.receive(headers(1, REQUEST + [(b"a", b"b")] * 7), 0.0)
    assert isinstance(event, HeadTooLarge)
    assert event.stream.remote_ended


def test_a_response_head_above_the_limit_is_reported():
    engine = lone_engine(Role.REQUESTER, max_header_list_bytes=10_000)
    stream = engine.open_stream(REQUEST, ended=True)
    wire = frame(HEADERS, END_HEADERS, 1, b"\x88" + b"\x00\x01a\x7f\x81\x7e" + b"v" * 16_256)

    assert engine.receive(wire + data(1, b"x"), 0.0) == [HeadTooLarge(stream)]


def test_trailers_above_the_limit_end_the_stream():
    engine = lone_engine(max_header_lines=10)
    (request,) = engine.receive(OPEN, 0.0)

    assert engine.receive(headers(1, [(b"a", b"b")] * 11), 0.0) == [
        StreamWasReset(request.stream, PROTOCOL, remote=False, refused=False)
    ]


def test_a_block_above_what_is_decoded_ends_the_connection():
    engine = lone_engine(max_header_block_bytes=50_000)
    wire = frame(HEADERS, 0, 1, bytes(40_000)) + continuation(1, bytes(10_001))
    assert "50000" in fail_text(engine, wire, COMPRESSION)
    engine = lone_engine(max_header_block_bytes=50_000)
    assert "50000" in fail_text(engine, large_head(45_000), COMPRESSION)


# --- going away -----------------------------------------------------------------------------------------


def test_goaway_refuses_the_streams_above_its_last_id():
    engine = lone_engine(Role.REQUESTER)
    first, second, third = (engine.open_stream(POST, ended=False) for _ in range(3))

    events = engine.receive(goaway(1, 0, b"drain"), 0.0)

    assert events == [
        PeerGoingAway(1, 0, b"drain"),
        StreamWasReset(second, ErrorCode.REFUSED_STREAM, remote=True, refused=True),
        StreamWasReset(third, ErrorCode.REFUSED_STREAM, remote=True, refused=True),
    ]
    assert engine.open_count == 1
    assert not first.reset
    assert not engine.can_open
    # A second GOAWAY cannot take the exclusion back; frames of excluded streams are ignored.
    assert engine.receive(goaway(5) + headers(3, RESPONSE) + data(5, b"x"), 0.0) == [PeerGoingAway(1, 0, b"")]


def test_a_responder_only_reports_goaway():
    engine = lone_engine()
    (request,) = engine.receive(OPEN, 0.0)

    assert engine.receive(goaway(0, 2, b"age"), 0.0) == [PeerGoingAway(0, 2, b"age")]
    assert not request.stream.reset


def test_streams_above_our_goaway_are_ignored_whatever_comes():
    engine = lone_engine()
    (request,) = engine.receive(OPEN, 0.0)
    engine.go_away(debug=b"drain")
    (goodbye,) = sent_frames(engine)
    assert goodbye.payload == (1).to_bytes(4, "big") + bytes(4) + b"drain"

    ignored = (
        headers(3, POST, END_HEADERS) + data(3, b"x") + window_update(3, 1) + headers(3, [(b"a", b"b")]) + rst_stream(3)
    )
    assert engine.receive(ignored, 0.0) == []
    assert engine.receive(data(1, b"x"), 0.0) == [DataReceived(request.stream, b"x", ended=False)]
    assert not engine.has_output


def test_a_drain_in_two_steps_loses_no_request():
    engine = lone_engine()
    engine.go_away(last_stream_id=2**31 - 1, debug=b"drain")
    (request,) = engine.receive(headers(1, REQUEST), 0.0)
    assert isinstance(request, RequestReceived)

    engine.go_away(last_stream_id=engine.highest_peer_stream_id)
    engine.go_away(last_stream_id=2**31 - 1)
    assert [int.from_bytes(each.payload[:4], "big") for each in sent_frames(engine)] == [2**31 - 1, 1, 1]
    assert engine.receive(headers(3, REQUEST), 0.0) == []
