"""Both windows in both directions, turns among streams, and the process's budget (RFC 9113 §5.2, §6.9)."""

from __future__ import annotations

import pytest
from support.http2 import (
    POST,
    REQUEST,
    RESPONSE,
    SETTINGS_ACK,
    Pair,
    data,
    frame,
    gather,
    gather_all,
    headers,
    lone_engine,
    parse,
    rst_stream,
    sent_frames,
    settings,
    window_update,
)

from tunnel.errors import ErrorCode
from tunnel.h2.config import KIB, MIB, TUNNEL_RESPONDER
from tunnel.h2.engine import Engine, Role
from tunnel.h2.events import ConnectionFailed, DataReceived, StreamWasReset
from tunnel.h2.frames import DATA, END_HEADERS, END_STREAM, HEADERS, PADDED, PING, PREFACE, RST_STREAM, WINDOW_UPDATE
from tunnel.h2.sending import AHEAD_DATA_BYTES, DIRECT_QUEUE_BYTES, SHARED_BATCH_BYTES, SHARED_BATCHES
from tunnel.h2.stream import Stream
from tunnel.h2.windows import WindowBudget


def answering(engine: Engine, *bodies: bytes, first_id: int = 1, ended: bool = True) -> list[Stream]:
    """Requests on successive streams, each answered with a body; the heads have left."""
    streams = []
    for index, _ in enumerate(bodies):
        (request,) = engine.receive(headers(first_id + 2 * index, REQUEST), 0.0)
        engine.send_head(request.stream, RESPONSE)
        streams.append(request.stream)
    gather_all(engine)
    for stream, body in zip(streams, bodies, strict=True):
        engine.send_data(stream, body, ended=ended)
    return streams


def sizes(wire: bytes) -> list[tuple[int, int]]:
    return [(each.stream_id, len(each.payload)) for each in parse(wire) if each.kind == DATA]


def credit_of(wire: bytes, stream_id: int) -> int:
    return sum(
        int.from_bytes(each.payload, "big")
        for each in parse(wire)
        if each.kind == WINDOW_UPDATE and each.stream_id == stream_id
    )


# --- sending ------------------------------------------------------------------------------------------


def test_a_stream_sends_no_more_than_its_window():
    engine = lone_engine(peer_settings={4: 10})
    (stream,) = answering(engine, b"0123456789abcde")

    assert sizes(gather_all(engine)) == [(1, 10)]
    assert not engine.has_output
    assert stream.pending_bytes == 5
    engine.receive(window_update(1, 3), 0.0)
    assert sizes(gather_all(engine)) == [(1, 3)]
    engine.receive(window_update(1, 100), 0.0)
    (last,) = parse(gather_all(engine))
    assert (last.payload, last.flags) == (b"de", END_STREAM)
    assert stream.local_ended


def test_the_connection_window_bounds_all_streams():
    engine = lone_engine(peer_settings={4: MIB})
    answering(engine, bytes(60_000), bytes(60_000))

    assert sum(size for _, size in sizes(gather_all(engine))) == 65_535
    assert not engine.has_output
    engine.receive(window_update(0, 54_465), 0.0)
    assert sum(size for _, size in sizes(gather_all(engine))) == 54_465
    assert engine.unsent_bytes == 0


def test_a_window_may_become_negative():
    engine = lone_engine(peer_settings={4: 1_000})
    (stream,) = answering(engine, bytes(2_000))
    gather_all(engine)
    engine.receive(settings({4: 400}), 0.0)
    gather_all(engine)
    assert stream.send_window_bytes == -600

    engine.receive(window_update(1, 600), 0.0)
    assert not engine.has_output
    engine.receive(window_update(1, 1), 0.0)
    assert sizes(gather_all(engine)) == [(1, 1)]
    engine.receive(settings({4: 5_000}), 0.0)
    assert sizes(gather_all(engine)) == [(1, 999)]


def test_a_shrunk_window_takes_a_stream_out_of_its_turn():
    engine = lone_engine(peer_settings={4: 1_000})
    answering(engine, bytes(20_000), bytes(20_000))
    engine.receive(settings({4: 0}), 0.0)
    assert sizes(gather_all(engine)) == []

    engine.receive(window_update(3, 7), 0.0)
    assert sizes(gather_all(engine)) == [(3, 7)]


def test_streams_take_turns_by_frame():
    engine = lone_engine(peer_settings={4: MIB, 5: 16_384})
    engine.receive(window_update(0, MIB), 0.0)
    answering(engine, bytes(50_000), bytes(20_000), bytes(20_000))

    assert [stream_id for stream_id, _ in sizes(gather_all(engine))] == [1, 3, 5, 1, 3, 5, 1, 1]


def test_data_frames_stay_below_our_own_limit_and_the_peers():
    engine = lone_engine(peer_settings={4: 4 * MIB, 5: MIB})
    engine.receive(window_update(0, 4 * MIB), 0.0)
    answering(engine, bytes(200_000))
    assert max(size for _, size in sizes(gather_all(engine))) == 65_536


def test_a_gather_stops_at_its_limit_but_for_one_frame():
    engine = lone_engine(peer_settings={4: 8 * MIB, 5: MIB})
    engine.receive(window_update(0, 8 * MIB), 0.0)
    (stream,) = answering(engine, bytes(4 * MIB))
    for _ in range(SHARED_BATCHES):
        gather(engine, 100_000)
    assert 100_000 <= len(gather(engine, 100_000)) <= 100_000 + 65_545
    assert engine.has_output
    assert engine.unsent_bytes == stream.pending_bytes


def test_data_leaves_in_small_batches_while_others_send_heads_or_small_data():
    engine = lone_engine(peer_settings={4: 32 * MIB, 5: MIB})
    engine.receive(window_update(0, 32 * MIB), 0.0)
    bulk, other = answering(engine, bytes(24 * MIB), b"", ended=False)
    for _ in range(SHARED_BATCHES):
        assert len(gather(engine, MIB)) <= SHARED_BATCH_BYTES + 65_545
    assert len(gather(engine, MIB)) > MIB

    engine.send_data(other, b"an event")
    for _ in range(SHARED_BATCHES):
        assert len(gather(engine, MIB)) <= SHARED_BATCH_BYTES + 65_545
    assert len(gather(engine, MIB)) > MIB
    assert bulk.pending_bytes


def test_small_data_of_the_only_one_who_sends_makes_no_small_batches():
    """What a download is read in may be of any size."""
    engine = lone_engine(peer_settings={4: 8 * MIB, 5: MIB})
    engine.receive(window_update(0, 8 * MIB), 0.0)
    (stream,) = answering(engine, bytes(4 * MIB), ended=False)
    gather_all(engine)
    assert not stream.pending_bytes
    engine.send_data(stream, b"small")
    engine.send_data(stream, bytes(2 * MIB))
    assert len(gather(engine, MIB)) > MIB


def test_control_frames_and_heads_leave_before_data():
    engine = lone_engine(peer_settings={4: MIB})
    answering(engine, bytes(60_000))
    (request,) = engine.receive(headers(3, REQUEST), 0.0)
    engine.send_head(request.stream, RESPONSE)
    engine.send_ping(b"12345678")

    assert [each.kind for each in parse(gather_all(engine))][:3] == [HEADERS, PING, DATA]


def test_small_data_goes_behind_its_head():
    engine = lone_engine(peer_settings={4: MIB})
    (request,) = engine.receive(headers(1, REQUEST), 0.0)
    engine.send_head(request.stream, RESPONSE)
    engine.send_data(request.stream, b"small", ended=True)
    assert request.stream.local_ended
    assert request.stream.pending_bytes == 0


def test_small_data_goes_ahead_of_those_who_wait_and_longer_data_waits_with_them():
    engine = lone_engine(peer_settings={4: MIB})
    _, small, longer = answering(
        engine, bytes(60_000), bytes(AHEAD_DATA_BYTES), bytes(AHEAD_DATA_BYTES + 1), first_id=3
    )
    assert small.pending_bytes == 0
    assert longer.pending_bytes == AHEAD_DATA_BYTES + 1
    assert sizes(gather_all(engine))[:3] == [(5, AHEAD_DATA_BYTES), (3, 16_384), (7, AHEAD_DATA_BYTES + 1)]


def test_no_amount_of_small_data_keeps_those_who_wait_from_their_turn():
    engine = lone_engine(peer_settings={4: 8 * MIB})
    engine.receive(window_update(0, 8 * MIB), 0.0)
    a_batch = DIRECT_QUEUE_BYTES // AHEAD_DATA_BYTES
    bulk, *others = answering(engine, bytes(60_000), *[b""] * 4 * a_batch, ended=False)
    for turn in range(4):
        before = bulk.pending_bytes
        for other in others[turn * a_batch : (turn + 1) * a_batch]:
            engine.send_data(other, bytes(AHEAD_DATA_BYTES))
        assert len(gather(engine, 65_536)) <= DIRECT_QUEUE_BYTES + AHEAD_DATA_BYTES + 2 * 16_384
        assert bulk.pending_bytes < before


def test_direct_data_is_bounded():
    """A task that never waits must not grow the first queue without limit."""
    engine = lone_engine(peer_settings={4: 4 * MIB})
    engine.receive(window_update(0, 4 * MIB), 0.0)
    (stream,) = answering(engine, b"x", ended=False)
    for _ in range(100):
        engine.send_data(stream, bytes(10_000))

    assert stream.pending_bytes > 900_000


def test_chunks_are_joined_into_frames_in_order():
    engine = lone_engine(peer_settings={4: 0})
    (stream,) = answering(engine, b"abc", ended=False)
    engine.send_data(stream, memoryview(b"defg"))
    engine.send_data(stream, b"")
    engine.send_data(stream, b"hij")
    engine.send_trailers(stream, [(b"t", b"1")])
    engine.receive(window_update(1, 5), 0.0)
    assert [each.payload for each in parse(gather_all(engine))] == [b"abcde"]

    engine.receive(window_update(1, 5), 0.0)
    last, trailers = parse(gather_all(engine))
    assert (last.payload, last.flags) == (b"fghij", 0)
    assert (trailers.kind, trailers.flags & END_STREAM) == (HEADERS, END_STREAM)
    assert stream.local_ended


def test_data_that_is_queued_behind_may_carry_the_end():
    engine = lone_engine(peer_settings={4: 0})
    (stream,) = answering(engine, b"abc", ended=False)
    engine.send_data(stream, b"", ended=True)
    assert not stream.local_ended
    engine.receive(window_update(1, 5), 0.0)

    assert [(each.payload, each.flags) for each in sent_frames(engine)] == [(b"abc", END_STREAM)]


def test_drained_streams_are_reported_at_half_and_at_the_end():
    engine = lone_engine(peer_settings={4: 0})
    (stream,) = answering(engine, bytes(100))
    engine.take_drained()
    for credit, drained in ((49, []), (1, [stream]), (24, []), (1, [stream]), (25, [stream])):
        engine.receive(window_update(1, credit), 0.0)
        gather_all(engine)
        assert engine.take_drained() == drained
    assert stream.local_ended


def test_a_reset_stream_waits_for_no_turn():
    engine = lone_engine(peer_settings={4: MIB})
    first, second, third = answering(engine, bytes(20_000), bytes(20_000), bytes(20_000))
    engine.reset_stream(first, ErrorCode.CANCEL)
    engine.reset_stream(third, ErrorCode.CANCEL)
    engine.take_drained()

    assert [stream_id for stream_id, _ in sizes(gather_all(engine))] == [3, 3]
    assert engine.take_drained() == [second]
    assert engine.unsent_bytes == 0


def test_a_reset_stream_alone_leaves_nothing_to_gather():
    engine = lone_engine(peer_settings={4: MIB})
    streams = answering(engine, *[bytes(20_000)] * 5)
    engine.receive(window_update(0, MIB) + b"".join(rst_stream(stream.id) for stream in streams[1:3]), 0.0)
    engine.receive(rst_stream(1) + rst_stream(7) + rst_stream(9), 0.0)

    assert not engine.has_output
    assert gather(engine) == b""


def test_a_dead_turn_is_skipped():
    engine = lone_engine(peer_settings={4: MIB})
    answering(engine, *[bytes(20_000)] * 5)
    engine.receive(rst_stream(1), 0.0)

    assert {stream_id for stream_id, _ in sizes(gather_all(engine))} == {3, 5, 7, 9}


# --- receiving ----------------------------------------------------------------------------------------


def open_upload(engine: Engine, stream_id: int = 1) -> Stream:
    (request,) = engine.receive(headers(stream_id, POST, END_HEADERS), 0.0)
    return request.stream


def test_connection_credit_returns_on_arrival_and_stream_credit_when_consumed():
    engine = lone_engine(connection_window_bytes=100_000)
    stream = open_upload(engine)
    engine.receive(data(1, bytes(60_000)), 0.0)
    assert credit_of(gather_all(engine), 0) == 60_000

    engine.consume(stream, 32_767)
    assert not engine.has_output
    engine.consume(stream, 1)
    assert credit_of(gather_all(engine), 1) == 32_768 + 192 * KIB


def test_more_than_the_connection_window_ends_the_connection():
    engine = lone_engine(connection_window_bytes=65_535, initial_window_bytes=MIB, max_frame_bytes=MIB)
    open_upload(engine)
    *_, last = engine.receive(data(1, bytes(65_536)), 0.0)

    assert isinstance(last, ConnectionFailed)
    assert last.code == ErrorCode.FLOW_CONTROL_ERROR


def test_padding_is_credited_without_a_consumer():
    engine = lone_engine()
    stream = open_upload(engine)
    padded = frame(DATA, PADDED, 1, b"\xff" + b"x" + bytes(255))
    for _ in range(200):
        engine.receive(padded, 0.0)

    assert stream.unconsumed_bytes == 200
    assert credit_of(gather_all(engine), 1) >= 32_768
    assert stream.receive_window_bytes + stream.unconsumed_bytes + stream.uncredited_bytes == stream.window_target_bytes


def test_padding_alone_is_an_empty_frame():
    engine = lone_engine()
    open_upload(engine)
    assert engine.receive(frame(DATA, PADDED, 1, b"\x01\x00"), 0.0) == []


def test_no_credit_for_a_stream_that_takes_no_more():
    engine = lone_engine()
    stream = open_upload(engine)
    engine.receive(data(1, bytes(50_000), END_STREAM), 0.0)
    engine.consume(stream, 50_000)

    assert not engine.has_output
    assert engine.statistics().held_bytes == 0


def test_bytes_of_dead_streams_are_credited():
    """After many streams that were cancelled with data under way, the connection window is whole."""
    engine = lone_engine(connection_window_bytes=100_000)
    returned = 0
    sent = 0
    for stream_id in range(1, 201, 2):
        stream = open_upload(engine, stream_id)
        engine.reset_stream(stream, ErrorCode.CANCEL)
        engine.receive(data(stream_id, bytes(30_000)), 0.0)
        sent += 30_000
        returned += credit_of(gather_all(engine), 0)

    assert sent - returned < 50_000
    assert engine.statistics().held_bytes == 0


def test_an_unread_stream_does_not_stall_others():
    pair = Pair()
    unread = pair.requester.open_stream(POST, ended=False)
    read = pair.requester.open_stream(POST, ended=False)
    pair.requester.send_data(unread, bytes(10 * MIB))
    pair.requester.send_data(read, bytes(40 * MIB))
    arrived = 0
    for _ in range(2_000):
        for event in pair.to_responder():
            if isinstance(event, DataReceived) and event.stream.id == read.id:
                arrived += len(event.data)
                pair.responder.consume(event.stream, len(event.data))
        pair.to_requester()

    assert arrived == 40 * MIB
    assert unread.pending_bytes == 10 * MIB - 64 * KIB


def test_a_window_grows_with_a_fast_consumer_on_a_long_path():
    pair = Pair()
    pair.responder.note_round_trip(0.1)
    stream = pair.requester.open_stream(POST, ended=False)
    pair.requester.send_data(stream, bytes(60 * MIB))
    received: Stream | None = None
    for _ in range(60):
        pair.now += 0.05
        for event in pair.to_responder():
            if isinstance(event, DataReceived):
                received = event.stream
                pair.responder.consume(event.stream, len(event.data))
        pair.now += 0.05
        pair.to_requester()

    assert received is not None
    assert received.window_target_bytes == 8 * MIB
    assert pair.responder.statistics().held_bytes == 8 * MIB - 64 * KIB
    pair.requester.reset_stream(stream, ErrorCode.CANCEL)
    pair.to_responder()
    assert pair.responder.statistics().held_bytes == 0


def test_before_our_settings_are_acknowledged_the_peer_may_use_the_default_window():
    engine = Engine(Role.RESPONDER, TUNNEL_RESPONDER.__class__(initial_window_bytes=100))
    engine.start()
    engine.receive(PREFACE + settings(), 0.0)
    events = engine.receive(headers(1, POST, END_HEADERS) + data(1, bytes(65_535)) + SETTINGS_ACK, 0.0)
    assert isinstance(events[-1], DataReceived)

    events = engine.receive(headers(3, POST, END_HEADERS) + data(3, bytes(101)), 0.0)
    assert isinstance(events[-1], StreamWasReset)


# --- the budget of the process ------------------------------------------------------------------------


def held_engine(budget: WindowBudget) -> Engine:
    engine = Engine(Role.RESPONDER, TUNNEL_RESPONDER, budget=budget)
    engine.start()
    engine.receive(PREFACE + settings() + SETTINGS_ACK, 0.0)
    gather_all(engine)
    return engine


def test_over_twice_the_budget_the_stream_stalled_longest_is_reset():
    budget = WindowBudget(40_000)
    engine = held_engine(budget)
    for stream_id, now in ((1, 1.0), (3, 2.0), (5, 3.0)):
        engine.receive(headers(stream_id, POST, END_HEADERS), now)
        *_, event = engine.receive(data(stream_id, bytes(26_000)), now)
        assert isinstance(event, DataReceived)
        if stream_id == 1:
            engine.consume(event.stream, 10_000)
    events = engine.receive(data(5, bytes(20_000)), 4.0)

    reset = events[-1]
    assert isinstance(reset, StreamWasReset)
    assert (reset.stream.id, reset.code, reset.remote) == (1, ErrorCode.ENHANCE_YOUR_CALM, False)
    assert budget.used_bytes == 26_000 + 46_000
    assert sent_frames(engine, RST_STREAM)[0].stream_id == 1


def test_a_connection_within_its_share_is_spared_and_the_other_sheds_on_its_timer():
    budget = WindowBudget(40_000)
    greedy, modest = held_engine(budget), held_engine(budget)
    greedy.receive(headers(1, POST, END_HEADERS) + data(1, bytes(60_000)), 1.0)
    events = modest.receive(headers(1, POST, END_HEADERS) + data(1, bytes(30_000)), 2.0)

    assert not any(isinstance(event, StreamWasReset) for event in events)
    (reset,) = greedy.expire(3.0)
    assert isinstance(reset, StreamWasReset)
    assert budget.used_bytes == 30_000
    modest.close()
    greedy.close()
    assert budget.used_bytes == budget.accounts == 0


def test_with_nothing_held_there_is_nothing_to_shed():
    budget = WindowBudget(1_000)
    engine = held_engine(budget)
    engine._state.account.charge(5_000)

    assert engine.expire(1.0) == []


@pytest.mark.parametrize("ended", [False, True])
def test_what_nobody_consumed_is_given_back_with_the_stream(ended: bool):
    budget = WindowBudget()
    engine = held_engine(budget)
    engine.receive(headers(1, POST, END_HEADERS), 0.0)
    (event,) = engine.receive(data(1, b"abc", END_STREAM if ended else 0), 0.0)
    engine.reset_stream(event.stream, ErrorCode.CANCEL)

    assert budget.used_bytes == 0
