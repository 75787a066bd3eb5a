"""Peers that mean harm (CVE-2019-9511 to 9518, CVE-2023-44487, CVE-2025-8671, the CONTINUATION flood), and peers that
only look like it: what trips a budget, what must not, and that nothing grows meanwhile."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from support.http2 import (
    POST,
    REQUEST,
    RESPONSE,
    Pair,
    block,
    continuation,
    data,
    frame,
    gather_all,
    goaway,
    headers,
    lone_engine,
    parse,
    ping,
    rst_stream,
    settings,
    window_update,
)

from tunnel.errors import ErrorCode
from tunnel.h2.config import FRONT_RESPONDER, KIB, MIB, TUNNEL_REQUESTER, TUNNEL_RESPONDER, EngineConfig
from tunnel.h2.engine import Engine, Role
from tunnel.h2.events import ConnectionFailed, DataReceived, HeadTooLarge, RequestReceived, StreamWasReset
from tunnel.h2.frames import ACK, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PRIORITY

CONFIGS = {
    "front": (Role.RESPONDER, FRONT_RESPONDER),
    "tunnel responder": (Role.RESPONDER, TUNNEL_RESPONDER),
    "tunnel requester": (Role.REQUESTER, TUNNEL_REQUESTER),
}


def flood(
    engine: Engine, wires: Iterator[bytes], *, read: bool = False, most_unsent: int = 2 * MIB
) -> ConnectionFailed:
    """Feed until the connection fails, at the latest after the iterator's end; releases what was asked."""
    for wire in wires:
        for event in engine.receive(wire, 0.0):
            if isinstance(event, ConnectionFailed):
                *_, last = parse(gather_all(engine))
                assert last.kind == GOAWAY
                assert last.payload[4:8] == ErrorCode.ENHANCE_YOUR_CALM.to_bytes(4, "big")
                assert event.code == ErrorCode.ENHANCE_YOUR_CALM
                return event
            if isinstance(event, RequestReceived):
                engine.release(event.stream)
        if read:
            gather_all(engine)
        assert engine.unsent_bytes <= most_unsent
    pytest.fail("the flood was taken")


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("read", [False, True], ids=["unread", "read"])
@pytest.mark.parametrize(
    ("wire", "text"),
    [
        (ping() * 100, "PING frames"),
        (ping(flags=ACK) * 100, "PING frames"),
        (settings() * 10, "SETTINGS frames"),
        (frame(4, ACK) * 10, "SETTINGS frames"),
        (frame(0x77) * 100, "PRIORITY and unknown frames"),
        (frame(PRIORITY, 0, 99, bytes(5)) * 100, "PRIORITY and unknown frames"),
        (goaway(0) * 100, "SETTINGS frames"),
    ],
    ids=["PING", "PING ACK", "SETTINGS", "SETTINGS ACK", "unknown", "PRIORITY", "GOAWAY"],
)
def test_frames_that_only_cost_us_trip_their_budget(kind: str, read: bool, wire: bytes, text: str):
    """A million PINGs that nobody reads the answers of end after a thousand."""
    role, config = CONFIGS[kind]
    engine = lone_engine(role, config)

    event = flood(engine, itertools.repeat(wire, 10_000), read=read, most_unsent=40 * KIB)

    assert event.text == f"over the budget of {text}"


@pytest.mark.parametrize("kind", ["front", "tunnel responder"])
def test_empty_data_frames_trip_their_budget(kind: str):
    role, config = CONFIGS[kind]
    engine = lone_engine(role, config)
    engine.receive(headers(1, POST, END_HEADERS), 0.0)

    assert flood(engine, itertools.repeat(data(1, b"") * 100, 10_000)).text == "over the budget of empty DATA frames"


def test_window_updates_without_data_trip_the_front():
    engine = lone_engine(config=FRONT_RESPONDER)

    event = flood(engine, itertools.repeat(window_update(0, 1) * 100, 10_000))
    assert event.text == "over the budget of WINDOW_UPDATE frames"


def test_a_download_with_many_window_updates_is_left_alone():
    """Go announces credit for every 4 KiB that were read, on the stream and on the connection."""
    engine = lone_engine(config=FRONT_RESPONDER)
    (request,) = engine.receive(headers(1, REQUEST), 0.0)
    engine.send_head(request.stream, RESPONSE)
    left = 100 * MIB
    while left:
        engine.send_data(request.stream, bytes(MIB))
        left -= MIB
        while request.stream.pending_bytes:
            gather_all(engine)
            credit = (window_update(0, 4 * KIB) + window_update(1, 4 * KIB)) * 16
            assert engine.receive(credit, 0.0) == []


def test_a_million_frames_that_we_must_answer_do_not_grow_the_queue():
    """Without any budget of frames, the cap on what waits to be sent holds by itself."""
    config = EngineConfig(
        pings=TUNNEL_REQUESTER.window_updates, max_control_bytes=100_000, enable_connect_protocol=True
    )
    engine = lone_engine(config=config)

    event = flood(engine, itertools.repeat(ping() * 100, 10_000), most_unsent=102_000)
    assert event.text == "over the budget of control bytes that wait to be sent"


@pytest.mark.parametrize("kind", ["front", "tunnel responder"])
@pytest.mark.parametrize("piece", [b"", b"\x00\x01a\x01b" * 10], ids=["empty", "full"])
def test_a_continuation_flood_ends_after_64_frames(kind: str, piece: bytes):
    role, config = CONFIGS[kind]
    engine = lone_engine(role, config)
    wires = itertools.chain(
        [frame(HEADERS, END_STREAM, 1, block(REQUEST))], itertools.repeat(continuation(1, piece), 65)
    )

    event = flood(engine, wires)

    assert event.text == "over the budget of CONTINUATION frames of one field block"


def test_an_hpack_bomb_ends_the_connection_before_it_unfolds():
    engine = lone_engine(config=FRONT_RESPONDER)
    entry = b"\x40\x01a" + b"\x7f\xa1\x1e" + b"v" * 4_000
    bomb = frame(HEADERS, END_HEADERS | END_STREAM, 1, block(REQUEST) + entry + b"\xbe" * 10_000)

    (event,) = engine.receive(bomb, 0.0)

    assert isinstance(event, ConnectionFailed)
    assert event.code == ErrorCode.COMPRESSION_ERROR


def test_heads_above_the_limit_trip_their_budget():
    engine = lone_engine(config=FRONT_RESPONDER)
    seen = 0
    for stream_id in range(1, 100, 2):
        *_, event = engine.receive(headers(stream_id, REQUEST + [(b"a", b"b")] * 200), 0.0)
        if isinstance(event, ConnectionFailed):
            break
        assert isinstance(event, HeadTooLarge)
        engine.send_head(event.stream, [(b":status", b"431")], ended=True)
        engine.release(event.stream)
        seen += 1

    assert seen == 20
    assert isinstance(event, ConnectionFailed)
    assert event.text == "over the budget of heads above the limit"


# --- resets -------------------------------------------------------------------------------------------


def rapid_resets() -> Iterator[bytes]:
    for stream_id in range(1, 200_000, 2):
        yield headers(stream_id, REQUEST) + rst_stream(stream_id)


@pytest.mark.parametrize(
    ("kind", "text", "within"),
    [("front", "resets", 501), ("tunnel responder", "resets beyond the work that was under way", 50_010)],
)
def test_rapid_resets_trip(kind: str, text: str, within: int):
    role, config = CONFIGS[kind]
    engine = lone_engine(role, config)

    event = flood(engine, itertools.islice(rapid_resets(), within), read=True)

    assert event.text == f"over the budget of {text}"


def test_rapid_resets_of_work_that_does_not_end_are_refused_first():
    """What is unfinished is bounded although every stream is closed at once."""
    engine = lone_engine(max_concurrent_streams=100)
    unfinished = 0
    for wire in itertools.islice(rapid_resets(), 1_000):
        unfinished += sum(isinstance(event, RequestReceived) for event in engine.receive(wire, 0.0))
        gather_all(engine)

    assert unfinished == engine.open_count == 100


@pytest.mark.parametrize("kind", ["front", "tunnel responder"])
def test_making_us_reset_counts_as_resetting(kind: str):
    """Valid requests, each followed by a frame that makes us reset it (CVE-2025-8671)."""
    role, config = CONFIGS[kind]
    engine = lone_engine(role, config)
    wires = (headers(each, POST, END_HEADERS) + window_update(each, 0) for each in range(1, 120_000, 2))

    assert "resets" in flood(engine, wires, read=True).text


@pytest.mark.parametrize("kind", ["front", "tunnel responder"])
def test_malformed_requests_and_data_on_dead_streams_count_as_resets(kind: str):
    role, config = CONFIGS[kind]
    engine = lone_engine(role, config)
    wires = (headers(each, [*REQUEST, (b"Bad", b"x")]) for each in range(1, 120_000, 2))
    assert "resets" in flood(engine, wires, read=True).text

    engine = lone_engine(role, config, remembered_resets=1)
    engine.receive(headers(199_999, REQUEST) + rst_stream(199_999), 0.0)
    wires = (data(each, b"x") for each in range(1, 120_000, 2))
    assert "resets" in flood(engine, wires, read=True).text


def test_refusals_count_as_resets_on_the_front():
    engine = lone_engine(config=FRONT_RESPONDER)
    failure = None
    for stream_id in range(1, 5_000, 2):
        for event in engine.receive(headers(stream_id, REQUEST), 0.0):
            if isinstance(event, ConnectionFailed):
                failure = event
        gather_all(engine)

    assert failure is not None
    assert failure.text == "over the budget of resets"
    assert engine.open_count == 250


def test_a_client_that_cancels_all_of_its_streams_twice_is_within_the_front_budget():
    engine = lone_engine(config=FRONT_RESPONDER)
    stream_id = 1
    for _ in range(2):
        opened = []
        for _ in range(250):
            (request,) = engine.receive(headers(stream_id, REQUEST), 0.0)
            assert isinstance(request, RequestReceived)
            opened.append(request.stream)
            stream_id += 2
        events = engine.receive(b"".join(rst_stream(stream.id) for stream in opened), 0.0)
        assert all(isinstance(event, StreamWasReset) for event in events)
        for stream in opened:
            engine.release(stream)


# --- what must not trip a tunnel ----------------------------------------------------------------------

WATCHES = 10_000


def open_watches(pair: Pair) -> tuple[list, list]:
    ours = [pair.requester.open_stream(REQUEST, ended=True) for _ in range(WATCHES)]
    theirs = [event.stream for event in pair.to_responder()]
    for stream in theirs:
        pair.responder.send_head(stream, RESPONSE)
        pair.responder.send_data(stream, b"event")
    pair.to_requester()
    assert len(theirs) == WATCHES
    return ours, theirs


def still_works(pair: Pair) -> None:
    stream = pair.requester.open_stream(REQUEST, ended=True)
    (request,) = pair.to_responder()
    pair.responder.send_head(request.stream, RESPONSE, ended=True)
    pair.to_requester()
    assert stream.remote_ended


def test_ten_thousand_watches_cancelled_at_once_leave_a_tunnel_up():
    pair = Pair()
    ours, theirs = open_watches(pair)
    for stream in theirs:
        # Events that are under way while their watches are cancelled.
        pair.responder.send_data(stream, b"event")
    under_way = gather_all(pair.responder)
    for stream in ours:
        pair.requester.reset_stream(stream, ErrorCode.CANCEL)
    events = pair.to_responder()
    assert {type(event) for event in events} == {StreamWasReset}
    assert pair.requester.receive(under_way, 0.0) == []
    for stream in theirs:
        pair.responder.release(stream)

    still_works(pair)
    assert pair.requester.statistics().held_bytes == 0
    assert pair.responder.open_count == 1


def test_ten_thousand_watches_ended_at_once_leave_a_tunnel_up():
    pair = Pair()
    _, theirs = open_watches(pair)
    for stream in theirs:
        pair.responder.send_data(stream, b"", ended=True)
        pair.responder.release(stream)
    events = pair.to_requester()

    assert len(events) == WATCHES
    still_works(pair)


def test_ten_thousand_watches_reset_by_the_agent_leave_a_tunnel_up():
    pair = Pair()
    _, theirs = open_watches(pair)
    for stream in theirs:
        pair.responder.reset_stream(stream, ErrorCode.INTERNAL_ERROR)
        pair.responder.release(stream)
    events = pair.to_requester()

    assert {type(event) for event in events} == {StreamWasReset}
    still_works(pair)


def test_watches_that_come_back_and_are_cancelled_again_leave_a_tunnel_up():
    pair = Pair()
    for _ in range(3):
        ours, theirs = open_watches(pair)
        for stream in ours:
            pair.requester.reset_stream(stream, ErrorCode.CANCEL)
        pair.to_responder()
        for stream in theirs:
            pair.responder.release(stream)
        pair.now += 5.0

    still_works(pair)


def test_ten_thousand_resets_of_streams_that_wait_take_linear_time():
    """Each has data in its turn; a search for each would be fifty million steps."""
    engine = lone_engine(peer_settings={4: 100_000})
    engine._sender.window_bytes = 0
    streams = []
    for index in range(WATCHES):
        (request,) = engine.receive(headers(2 * index + 1, REQUEST), 0.0)
        engine.send_head(request.stream, RESPONSE)
        engine.send_data(request.stream, bytes(100))
        streams.append(request.stream)
    gather_all(engine)
    for stream in streams:
        engine.reset_stream(stream, ErrorCode.CANCEL)

    assert len(engine._sender._ready) == 0
    assert engine.unsent_bytes == WATCHES * 13


def test_two_hundred_streams_with_a_window_of_one_byte_hold_only_what_was_queued():
    engine = lone_engine(config=FRONT_RESPONDER, peer_settings={4: 1}, send_stall_seconds=60)
    for stream_id in range(1, 401, 2):
        (request,) = engine.receive(headers(stream_id, REQUEST), 0.0)
        engine.send_head(request.stream, RESPONSE)
        engine.send_data(request.stream, bytes(1_000), ended=True)
        gather_all(engine)
    assert engine.unsent_bytes == 200 * 999
    engine.expire(0.0)

    events = engine.expire(60.0)
    assert len(events) == 200
    assert engine.unsent_bytes == 200 * 13


def test_forgotten_streams_are_bounded():
    engine = lone_engine(remembered_resets=100)
    for stream_id in range(1, 2_001, 2):
        (request,) = engine.receive(headers(stream_id, POST, END_HEADERS), 0.0)
        engine.reset_stream(request.stream, ErrorCode.CANCEL)
        engine.release(request.stream)

    assert len(engine._state.forgotten) == 100
    assert engine.receive(data(1_999, b"late"), 0.0) == []


def test_one_byte_at_a_time_upload_is_only_slow():
    engine = lone_engine(config=FRONT_RESPONDER)
    (request,) = engine.receive(headers(1, POST, END_HEADERS), 0.0)
    for _ in range(20_000):
        (event,) = engine.receive(data(1, b"x"), 0.0)
        assert isinstance(event, DataReceived)
        engine.consume(request.stream, 1)
    assert engine.statistics().held_bytes == 0
