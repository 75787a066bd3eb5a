"""What a silent peer leads to. Time is a number here."""

from __future__ import annotations

import math

import pytest
from support.http2 import (
    POST,
    REQUEST,
    RESPONSE,
    SETTINGS_ACK,
    block,
    continuation,
    frame,
    gather_all,
    headers,
    lone_engine,
    rst_stream,
    sent_frames,
    settings,
    window_update,
)

from tunnel.errors import ErrorCode
from tunnel.h2.config import TUNNEL_RESPONDER
from tunnel.h2.engine import Engine, Role
from tunnel.h2.events import ConnectionFailed, RequestReceived, StreamWasReset
from tunnel.h2.frames import DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, RST_STREAM


def failed(events: list[object]) -> ConnectionFailed:
    (event,) = events
    assert isinstance(event, ConnectionFailed)
    return event


def blocked_stream(engine: Engine, stream_id: int, now: float, size: int = 2_000):
    (request,) = engine.receive(headers(stream_id, REQUEST), now)
    engine.send_head(request.stream, RESPONSE)
    engine.send_data(request.stream, bytes(size), ended=True)
    gather_all(engine)
    return request.stream


def test_nothing_is_due_on_a_quiet_connection():
    engine = lone_engine()

    assert engine.deadline() is None
    assert engine.expire(1e9) == []


def test_settings_must_arrive_within_ten_seconds():
    engine = Engine(Role.RESPONDER, TUNNEL_RESPONDER, now=100.0)
    engine.start()
    assert engine.deadline() == 110.0
    assert engine.expire(109.9) == []

    event = failed(engine.expire(110.0))
    assert event.code == ErrorCode.SETTINGS_TIMEOUT
    assert event.text == "no SETTINGS within the deadline"


def test_ours_must_be_acknowledged_within_ten_seconds():
    engine = Engine(Role.RESPONDER, TUNNEL_RESPONDER, now=100.0)
    engine.start()
    engine.receive(PREFACE + settings(), 101.0)
    assert engine.deadline() == 110.0

    assert failed(engine.expire(110.0)).text == "no acknowledgement of our SETTINGS within the deadline"


def test_an_acknowledgement_in_time_is_enough():
    engine = Engine(Role.RESPONDER, TUNNEL_RESPONDER, now=100.0)
    engine.start()
    engine.receive(PREFACE + settings() + SETTINGS_ACK, 109.0)

    assert engine.deadline() is None


@pytest.mark.parametrize(
    "pieces",
    [
        [frame(HEADERS, END_STREAM, 1, block(REQUEST)[:5]), continuation(1, b"")],
        [headers(1, REQUEST)[:20], headers(1, REQUEST)[20:21]],
        [frame(HEADERS, END_STREAM, 1, b"") + continuation(1, block(REQUEST))[:5], b"\x00"],
    ],
    ids=["no END_HEADERS", "half a frame", "half a frame header"],
)
def test_a_field_block_must_be_complete_within_ten_seconds(pieces: list[bytes]):
    engine = lone_engine()
    engine.receive(pieces[0], 50.0)
    assert engine.deadline() == 60.0
    engine.receive(pieces[1], 59.0)
    assert engine.expire(59.9) == []

    assert "field block" in failed(engine.expire(60.0)).text


def test_a_field_block_that_was_completed_is_forgotten():
    engine = lone_engine(send_stall_seconds=60)
    wire = frame(HEADERS, END_STREAM, 1, block(REQUEST)[:5]) + continuation(1, block(REQUEST)[5:], END_HEADERS)
    engine.receive(wire[:12], 50.0)
    (request,) = engine.receive(wire[12:], 59.0)

    assert isinstance(request, RequestReceived)
    assert engine.deadline() is None
    assert engine.expire(100.0) == []


def test_a_stream_without_credit_for_a_minute_is_reset():
    engine = lone_engine(send_stall_seconds=60, peer_settings={4: 0})
    stream = blocked_stream(engine, 1, 100.0)
    engine.expire(101.0)
    assert engine.deadline() == 161.0
    assert engine.expire(160.9) == []

    assert engine.expire(161.0) == [StreamWasReset(stream, ErrorCode.CANCEL, remote=False, refused=False)]
    assert [each.kind for each in sent_frames(engine)] == [RST_STREAM]
    assert engine.unsent_bytes == 0
    assert engine.deadline() is None


def test_a_stall_is_dated_when_time_is_next_known_and_due_no_earlier_than_that():
    """Sending knows no time: a stall that began since the last call must not end before its minute."""
    engine = lone_engine(send_stall_seconds=60, peer_settings={4: 0})
    blocked_stream(engine, 1, 100.0)
    assert engine.deadline() == 160.0

    assert engine.expire(160.0) == []
    assert engine.deadline() == 220.0
    assert len(engine.expire(220.0)) == 1


def test_streams_that_stall_are_reset_each_in_its_time():
    engine = lone_engine(send_stall_seconds=60, peer_settings={4: 0})
    first = blocked_stream(engine, 1, 100.0)
    engine.expire(100.0)
    second = blocked_stream(engine, 3, 130.0)
    third = blocked_stream(engine, 5, 130.0)
    engine.receive(rst_stream(5), 130.0)
    assert third.reset

    assert [event.stream for event in engine.expire(160.0)] == [first]
    assert [event.stream for event in engine.expire(190.0)] == [second]


def test_credit_ends_a_stall():
    engine = lone_engine(send_stall_seconds=60, peer_settings={4: 0})
    stream = blocked_stream(engine, 1, 100.0)
    engine.expire(100.0)
    engine.receive(window_update(1, 1_500), 159.0)
    gather_all(engine)
    assert engine.expire(160.0) == []
    assert engine.expire(218.9) == []

    engine.receive(window_update(1, 1_500), 219.0)
    gather_all(engine)
    assert stream.local_ended
    assert engine.expire(400.0) == []


def test_credit_by_the_byte_is_no_progress():
    engine = lone_engine(send_stall_seconds=60, peer_settings={4: 0})
    stream = blocked_stream(engine, 1, 100.0)
    engine.expire(100.0)
    for second in range(101, 160):
        engine.receive(window_update(1, 1), float(second))
        assert [len(each.payload) for each in sent_frames(engine)] == [1]

    assert [event.stream for event in engine.expire(160.0)] == [stream]


def test_the_last_bytes_need_no_more_credit_than_there_are():
    engine = lone_engine(send_stall_seconds=60, peer_settings={4: 0})
    stream = blocked_stream(engine, 1, 100.0, size=10)
    engine.expire(100.0)
    for _ in range(10):
        engine.receive(window_update(1, 1), 150.0)
        gather_all(engine)

    assert stream.local_ended
    assert engine.expire(170.0) == []


def test_a_connection_window_that_stays_shut_ends_the_connection():
    engine = lone_engine(send_stall_seconds=60, peer_settings={4: 1_000_000})
    (request,) = engine.receive(headers(1, REQUEST), 100.0)
    engine.send_head(request.stream, RESPONSE)
    engine.send_data(request.stream, bytes(100_000))
    gather_all(engine)
    assert engine.deadline() == 160.0
    engine.expire(101.0)
    assert engine.deadline() == 161.0
    assert engine.expire(160.0) == []

    assert "connection window" in failed(engine.expire(161.0)).text


def test_credit_or_the_end_of_its_streams_opens_a_connection_again():
    engine = lone_engine(send_stall_seconds=60, peer_settings={4: 1_000_000})
    (request,) = engine.receive(headers(1, REQUEST), 100.0)
    engine.send_head(request.stream, RESPONSE)
    engine.send_data(request.stream, bytes(200_000))
    gather_all(engine)
    engine.expire(100.0)
    engine.receive(window_update(0, 100), 150.0)
    gather_all(engine)
    assert engine.expire(160.0) == []

    engine.receive(rst_stream(1), 200.0)
    assert engine.deadline() is None
    assert engine.expire(1_000.0) == []


def test_stalls_may_be_allowed_for_ever():
    engine = lone_engine(peer_settings={4: 0}, send_stall_seconds=math.inf)
    blocked_stream(engine, 1, 100.0)
    engine.expire(100.0)

    assert engine.deadline() is None
    assert engine.expire(1e9) == []


def test_an_upload_blocked_by_the_responder_is_reset_too():
    engine = lone_engine(Role.REQUESTER, send_stall_seconds=60, peer_settings={4: 100})
    stream = engine.open_stream(POST, ended=False)
    engine.send_data(stream, bytes(200))
    assert [each.kind for each in sent_frames(engine)] == [HEADERS, DATA]
    engine.expire(0.0)

    assert [event.stream for event in engine.expire(60.0)] == [stream]
