"""Whatever a peer sends, `receive` gives events and never raises; and what comes of it stays in order."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from support.http2 import (
    POST,
    REQUEST,
    RESPONSE,
    block,
    data,
    frame,
    gather_all,
    goaway,
    headers,
    lone_engine,
    parse,
    rst_stream,
    window_update,
)
from support.http2 import settings as settings_frame

from tunnel.h2.config import FRONT_RESPONDER, TUNNEL_REQUESTER, TUNNEL_RESPONDER, EngineConfig
from tunnel.h2.engine import Role
from tunnel.h2.events import ConnectionFailed, DataReceived, RequestReceived, StreamWasReset
from tunnel.h2.frames import END_HEADERS, RST_STREAM

stream_ids = st.one_of(st.integers(0, 12), st.just(2**31 - 1))
anything = st.builds(frame, st.integers(0, 12), st.integers(0, 255), stream_ids, st.binary(max_size=40))
sizes = st.sampled_from([0, 1, 100, 65_535, 2**31 - 1])
heads = st.sampled_from([REQUEST, POST, RESPONSE, [(b":status", b"103")], [(b"x-trailer", b"1")], []])
sensible = st.one_of(
    st.builds(headers, stream_ids, heads, st.sampled_from([END_HEADERS, END_HEADERS | 1, END_HEADERS | 8, 0, 1])),
    st.builds(data, stream_ids, st.binary(max_size=300), st.sampled_from([0, 1, 8, 9])),
    st.builds(rst_stream, stream_ids, st.integers(0, 20)),
    st.builds(window_update, stream_ids, sizes),
    st.builds(goaway, stream_ids),
    st.builds(settings_frame, st.dictionaries(st.integers(0, 9), sizes, max_size=3)),
    st.builds(frame, st.just(9), st.sampled_from([0, END_HEADERS]), stream_ids, st.just(block(REQUEST))),
)
presets = st.sampled_from(
    [(Role.RESPONDER, FRONT_RESPONDER), (Role.RESPONDER, TUNNEL_RESPONDER), (Role.REQUESTER, TUNNEL_REQUESTER)]
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.one_of(sensible, sensible, sensible, anything), max_size=25), presets, st.integers(1, 60), st.booleans()
)
def test_no_sequence_of_frames_raises(
    frames: list[bytes], preset: tuple[Role, EngineConfig], piece: int, answers: bool
):
    role, config = preset
    engine = lone_engine(role, config)
    opened = [engine.open_stream(POST, ended=False) for _ in range(4 if role is Role.REQUESTER else 0)]
    for stream in opened:
        engine.send_data(stream, bytes(100_000))
    wire = b"".join(frames)
    dead = set()
    failed = False
    sent = b""
    for start in range(0, len(wire), piece):
        for event in engine.receive(wire[start : start + piece], start / 1_000):
            assert not failed, "an event after ConnectionFailed"
            failed = isinstance(event, ConnectionFailed)
            if not hasattr(event, "stream"):
                continue
            assert event.stream.id not in dead, "an event after the death of its stream"
            if isinstance(event, StreamWasReset):
                dead.add(event.stream.id)
            elif isinstance(event, DataReceived):
                engine.consume(event.stream, len(event.data))
            elif isinstance(event, RequestReceived) and answers:
                engine.send_head(event.stream, RESPONSE)
                engine.send_data(event.stream, bytes(20_000), ended=True)
                engine.release(event.stream)
        sent += gather_all(engine)
    for event in engine.expire(1e6):
        failed = failed or isinstance(event, ConnectionFailed)
    sent += gather_all(engine)

    # Every frame that was sent is whole, and no stream says anything behind its own reset.
    silent = set()
    for each in parse(sent):
        assert each.stream_id == 0 or each.stream_id not in silent
        if each.kind == RST_STREAM:
            silent.add(each.stream_id)
    assert not engine.has_output
    assert engine._sender.window_bytes <= 2**31 - 1
    if failed:
        assert engine.statistics().held_bytes == 0


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), presets)
def test_no_bytes_raise(noise: bytes, preset: tuple[Role, EngineConfig]):
    engine = lone_engine(*preset)
    engine.receive(noise, 0.0)
    engine.receive(noise, 0.0)
    gather_all(engine)
