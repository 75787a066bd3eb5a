"""The calls of an engine: what they queue, what they refuse, what they count."""

from __future__ import annotations

import dataclasses

import pytest
from support.http2 import (
    POST,
    REQUEST,
    RESPONSE,
    Pair,
    data,
    gather_all,
    headers,
    lone_engine,
    parse,
    rst_stream,
    sent_frames,
    window_update,
)

from tunnel.errors import ConnectionEnded, ErrorCode, LocalProtocolError, StreamLimitReached
from tunnel.h2.config import TUNNEL_RESPONDER
from tunnel.h2.engine import Engine, EngineConfig, Role
from tunnel.h2.events import DataReceived, RequestReceived, ResponseReceived, StreamWasReset, TrailersReceived
from tunnel.h2.frames import (
    CONTINUATION,
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)
from tunnel.h2.stream import Stream


def serve(pair: Pair, fields: list[tuple[bytes, bytes]] = REQUEST, *, ended: bool = True) -> tuple[Stream, Stream]:
    """Open a stream; both of its ends."""
    ours = pair.requester.open_stream(fields, ended=ended)
    (request,) = pair.to_responder()
    assert isinstance(request, RequestReceived)
    return ours, request.stream


def test_a_requester_greets_with_preface_settings_and_window():
    engine = Engine(Role.REQUESTER, EngineConfig())
    assert not engine.has_output
    engine.start()
    wire = gather_all(engine)

    assert wire.startswith(PREFACE)
    assert [(each.kind, each.flags) for each in parse(wire)] == [(SETTINGS, 0), (WINDOW_UPDATE, 0)]
    assert int.from_bytes(parse(wire)[1].payload, "big") == 16 * 1024 * 1024 - 65_535


def test_a_responder_greets_without_preface_and_a_small_window_is_not_announced():
    engine = Engine(Role.RESPONDER, EngineConfig(connection_window_bytes=65_535))
    engine.start()

    assert [each.kind for each in parse(gather_all(engine))] == [SETTINGS]


def test_what_a_peer_said_is_in_no_representation():
    pair = Pair()
    _, stream = serve(pair, [*REQUEST, (b"authorization", b"Bearer secret")])

    event = RequestReceived(stream, [(b"authorization", b"Bearer secret")], True)
    for each in (event, DataReceived(stream, b"Bearer secret", False), stream):
        assert "secret" not in repr(each)


def test_an_exchange_with_bodies_and_trailers_both_ways():
    pair = Pair()
    ours, theirs = serve(pair, POST, ended=False)
    pair.requester.send_data(ours, b"question")
    pair.requester.send_trailers(ours, [(b"a", b"1")])
    body, trailers = pair.to_responder()
    pair.responder.send_head(theirs, [(b":status", b"103")])
    pair.responder.send_head(theirs, RESPONSE)
    pair.responder.send_data(theirs, memoryview(b"answer"))
    pair.responder.send_trailers(theirs, [(b"b", b"2")])
    _, head, answer, end = pair.to_requester()

    assert body == DataReceived(theirs, b"question", ended=False)
    assert trailers == TrailersReceived(theirs, [(b"a", b"1")])
    assert head == ResponseReceived(ours, RESPONSE, ended=False)
    assert answer == DataReceived(ours, b"answer", ended=False)
    assert end == TrailersReceived(ours, [(b"b", b"2")])
    assert pair.requester.open_count == 0
    assert pair.responder.open_count == 1
    pair.responder.release(theirs)
    pair.responder.release(theirs)
    assert pair.responder.open_count == 0


def test_a_head_larger_than_a_frame_is_continued():
    pair = Pair(max_frame_bytes=16_384)
    value = b"v" * 40_000
    ours, theirs = serve(pair, [*REQUEST, (b"x-large", value)])
    pair.responder.send_head(theirs, [*RESPONSE, (b"x-large", value)], ended=True)
    wire = gather_all(pair.responder)

    assert [each.kind for each in parse(wire)] == [HEADERS, CONTINUATION, CONTINUATION]
    (response,) = pair.requester.receive(wire, 0.0)
    assert response == ResponseReceived(ours, [*RESPONSE, (b"x-large", value)], ended=True)


def test_streams_open_up_to_the_limit_of_the_peer():
    engine = lone_engine(Role.REQUESTER, peer_settings={3: 2})
    first = engine.open_stream(REQUEST, ended=True)
    engine.open_stream(REQUEST, ended=True)

    assert not engine.can_open
    with pytest.raises(StreamLimitReached, match="2 streams"):
        engine.open_stream(REQUEST, ended=True)
    engine.receive(headers(first.id, RESPONSE), 0.0)
    assert engine.can_open
    assert engine.open_stream(REQUEST, ended=True).id == 5


def test_before_settings_a_hundred_streams_may_be_opened():
    engine = Engine(Role.REQUESTER, EngineConfig())
    engine.start()
    for _ in range(100):
        engine.open_stream(REQUEST, ended=True)

    assert not engine.can_open
    assert not engine.settings_received


def test_who_goes_away_opens_nothing_more():
    engine = lone_engine(Role.REQUESTER)
    engine.go_away(last_stream_id=0, debug=b"drain")

    assert engine.going_away
    assert not engine.can_open
    with pytest.raises(ConnectionEnded) as caught:
        engine.open_stream(REQUEST, ended=True)
    assert caught.value.local


def test_stream_ids_run_out():
    engine = lone_engine(Role.REQUESTER)
    engine._state.next_stream_id = 2**31 - 1
    assert engine.open_stream(REQUEST, ended=True).id == 2**31 - 1

    assert engine.going_away
    with pytest.raises(ConnectionEnded):
        engine.open_stream(REQUEST, ended=True)


def test_a_responder_cannot_open_streams():
    with pytest.raises(LocalProtocolError):
        lone_engine().open_stream(REQUEST, ended=True)


def test_nothing_can_be_sent_after_the_end():
    pair = Pair()
    ours, _ = serve(pair)

    with pytest.raises(LocalProtocolError, match="has been ended"):
        pair.requester.send_data(ours, b"x")
    with pytest.raises(LocalProtocolError):
        pair.requester.send_trailers(ours, [])
    with pytest.raises(LocalProtocolError):
        pair.requester.send_head(ours, RESPONSE)


def test_sending_on_a_stream_that_was_reset_does_nothing():
    engine = lone_engine()
    (request,) = engine.receive(headers(1, REQUEST), 0.0)
    engine.receive(rst_stream(1), 0.0)

    engine.send_head(request.stream, RESPONSE)
    engine.send_data(request.stream, b"x")
    engine.send_trailers(request.stream, [])
    engine.consume(request.stream, 5)
    engine.reset_stream(request.stream, ErrorCode.CANCEL)

    assert not engine.has_output


def test_a_reset_drops_what_is_queued_and_never_overtakes_the_head():
    pair = Pair()
    ours = pair.requester.open_stream(POST, ended=False)
    pair.requester.send_data(ours, bytes(200_000))
    assert ours.pending_bytes == 200_000
    pair.requester.reset_stream(ours, ErrorCode.CANCEL)
    pair.requester.reset_stream(ours, ErrorCode.INTERNAL_ERROR)

    assert ours.pending_bytes == 0
    assert ours.reset
    wire = gather_all(pair.requester)
    assert [each.kind for each in parse(wire)] == [HEADERS, RST_STREAM]
    request, reset = pair.responder.receive(wire, 0.0)
    assert reset == StreamWasReset(request.stream, ErrorCode.CANCEL, remote=True, refused=False)
    assert pair.responder.open_count == 1


def test_a_reset_after_both_ends_sends_nothing_and_frees_the_budget():
    pair = Pair()
    ours, theirs = serve(pair)
    pair.responder.send_head(theirs, RESPONSE)
    pair.responder.send_data(theirs, b"unread", ended=True)
    pair.to_requester()
    assert pair.requester.statistics().held_bytes == 6

    pair.requester.reset_stream(ours, ErrorCode.CANCEL)

    assert not pair.requester.has_output
    assert pair.requester.statistics().held_bytes == 0


def test_an_early_answer_is_followed_by_a_reset_without_error():
    pair = Pair()
    ours, theirs = serve(pair, POST, ended=False)
    pair.responder.send_head(theirs, [(b":status", b"413")], ended=True)
    pair.responder.reset_stream(theirs, ErrorCode.NO_ERROR)

    head, reset = pair.to_requester()
    assert head == ResponseReceived(ours, [(b":status", b"413")], ended=True)
    assert reset == StreamWasReset(ours, ErrorCode.NO_ERROR, remote=True, refused=False)


def test_above_its_limit_a_responder_refuses_until_work_has_ended():
    """A stream that was reset keeps its slot until its task has ended: that is what bounds rapid resets."""
    engine = lone_engine(max_concurrent_streams=2)
    requests = engine.receive(headers(1, REQUEST) + headers(3, REQUEST) + rst_stream(1) + rst_stream(3), 0.0)
    assert engine.open_count == 2

    assert engine.receive(headers(5, REQUEST), 0.0) == []
    (refusal,) = sent_frames(engine)
    assert (refusal.kind, refusal.payload[-1]) == (RST_STREAM, ErrorCode.REFUSED_STREAM)
    engine.release(requests[0].stream)
    assert isinstance(engine.receive(headers(7, REQUEST), 0.0)[0], RequestReceived)
    assert engine.statistics().streams_refused == 1


def test_a_stream_that_is_still_open_keeps_its_slot_after_its_task():
    engine = lone_engine(max_concurrent_streams=1, peer_settings={4: 0})
    (request,) = engine.receive(headers(1, REQUEST), 0.0)
    engine.send_head(request.stream, RESPONSE)
    engine.send_data(request.stream, b"blocked", ended=True)
    engine.release(request.stream)

    assert engine.receive(headers(3, REQUEST), 0.0) == []
    assert engine.statistics().streams_refused == 1


def test_a_refused_stream_may_be_sent_elsewhere():
    pair = Pair(responder=dataclasses.replace(TUNNEL_RESPONDER, max_concurrent_streams=0))
    pair.requester._state.peer.max_concurrent_streams = 5
    stream = pair.requester.open_stream(REQUEST, ended=True)

    (reset,), _ = pair.pump()
    assert reset == StreamWasReset(stream, ErrorCode.REFUSED_STREAM, remote=True, refused=True)


def test_a_ping_has_eight_bytes():
    engine = lone_engine()
    engine.send_ping(b"12345678")
    assert [(each.kind, each.payload) for each in sent_frames(engine)] == [(PING, b"12345678")]

    with pytest.raises(LocalProtocolError):
        engine.send_ping(b"short")


def test_extended_connect_is_known_from_the_settings():
    assert Pair().requester.peer_allows_connect
    assert not lone_engine(Role.REQUESTER).peer_allows_connect


def test_the_highest_stream_of_the_peer_is_known():
    engine = lone_engine()
    assert engine.highest_peer_stream_id == 0
    engine.receive(headers(1, REQUEST) + headers(9, REQUEST), 0.0)
    assert engine.highest_peer_stream_id == 9


def test_statistics_tell_what_was_carried():
    pair = Pair()
    ours, theirs = serve(pair, POST, ended=False)
    pair.requester.send_data(ours, bytes(1_000))
    assert pair.requester.statistics().unsent_bytes == pair.requester.unsent_bytes == 1_009
    pair.to_responder()

    sent, received = pair.requester.statistics(), pair.responder.statistics()
    assert (sent.sent_data_bytes, received.received_data_bytes) == (1_000, 1_000)
    assert (sent.open_streams, received.open_streams, received.held_bytes) == (1, 1, 1_000)
    assert sent.connection_window_bytes == 16 * 1024 * 1024 - 1_000
    assert "pending=0" in repr(ours)
    assert theirs.owner is None


def test_a_failed_connection_is_silent():
    engine = lone_engine()
    (request,) = engine.receive(headers(1, REQUEST), 0.0)
    engine.send_head(request.stream, RESPONSE)
    engine.send_data(request.stream, bytes(1_000_000))
    engine.receive(window_update(0, 0), 0.0)

    assert request.stream.reset
    engine.send_data(request.stream, b"more")
    assert [each.kind for each in sent_frames(engine)] == [HEADERS, GOAWAY]
    assert engine.unsent_bytes == 0


def test_an_end_without_data_needs_no_window():
    engine = lone_engine(peer_settings={4: 0})
    (request,) = engine.receive(headers(1, REQUEST), 0.0)
    engine.send_head(request.stream, RESPONSE)
    engine.send_data(request.stream, b"")
    engine.send_data(request.stream, b"", ended=True)

    assert [(each.kind, each.flags & END_STREAM) for each in sent_frames(engine)] == [(HEADERS, 0), (DATA, END_STREAM)]
    assert request.stream.local_ended


def test_consuming_more_than_was_received_is_a_bug():
    engine = lone_engine()
    request, _ = engine.receive(headers(1, POST, 4) + data(1, b"abc"), 0.0)

    with pytest.raises(LocalProtocolError, match="more bytes were consumed"):
        engine.consume(request.stream, 4)
