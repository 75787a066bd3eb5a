"""Two engines and two wires that Hypothesis cuts as it likes: whatever is done, in whatever order.

No byte is lost, repeated or out of order; nobody holds more than its window; credit outstanding, held and about to be
returned add up; the budget is exact; and each end of each stream comes exactly once.
"""

from __future__ import annotations

import dataclasses

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.http2 import POST, RESPONSE, gather

from tunnel.h2.config import TUNNEL_REQUESTER, TUNNEL_RESPONDER
from tunnel.h2.engine import Engine, Role
from tunnel.h2.events import (
    ConnectionFailed,
    DataReceived,
    Event,
    InterimReceived,
    RequestReceived,
    ResponseReceived,
    StreamWasReset,
    TrailersReceived,
)
from tunnel.h2.stream import Stream
from tunnel.h2.windows import WindowBudget

TRAILERS = [(b"checksum", b"1")]


class End:
    """One end of one stream, as a task would see it."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.sent = bytearray()
        self.received = bytearray()
        self.unconsumed = 0
        self.head_sent = False
        self.finished = False
        self.ended = False
        self.dead = False
        self.other: End | None = None

    @property
    def may_send(self) -> bool:
        return self.head_sent and not self.finished and not self.dead


class Side:
    """An engine and what came of it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.ends: dict[int, End] = {}
        self.wire = bytearray()

    def take(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            assert event.stream.id not in self.ends
            self.ends[event.stream.id] = End(event.stream)
            self._end(event.stream, event.ended)
        elif isinstance(event, DataReceived):
            end = self._live(event.stream)
            end.received += event.data
            end.unconsumed += len(event.data)
            self._end(event.stream, event.ended)
        elif isinstance(event, ResponseReceived):
            self._end(event.stream, event.ended)
        elif isinstance(event, TrailersReceived):
            assert event.fields == TRAILERS
            self._end(event.stream, True)
        elif isinstance(event, StreamWasReset):
            assert event.remote
            self._live(event.stream, ended=None).dead = True
        elif isinstance(event, InterimReceived):
            self._live(event.stream)
        else:
            assert not isinstance(event, ConnectionFailed), event.text

    def _live(self, stream: Stream, *, ended: bool | None = False) -> End:
        end = self.ends[stream.id]
        assert end.stream is stream
        assert not end.dead, "an event after the death of its stream"
        if ended is not None:
            assert not end.ended, "an event after the end of its stream"
        return end

    def _end(self, stream: Stream, ended: bool) -> None:
        end = self._live(stream)
        end.ended = ended


class BackToBack(RuleBasedStateMachine):
    """See the module's docstring."""

    @initialize(
        window=st.sampled_from([1, 7, 100, 5_000, 65_536]),
        frame=st.sampled_from([16_384, 65_536]),
        data_frame=st.sampled_from([1, 50, 65_536]),
        raised=st.sampled_from([100, 300_000]),
    )
    def connect(self, window: int, frame: int, data_frame: int, raised: int) -> None:
        self.budget = WindowBudget(10_000_000)
        self.now = 0.0
        changes = {
            "initial_window_bytes": window,
            "max_frame_bytes": frame,
            "data_frame_bytes": data_frame,
            "raised_window_bytes": max(raised, window),
            "connection_window_bytes": 70_000,
            "max_window_bytes": 1_000_000,
        }
        requester = Engine(Role.REQUESTER, dataclasses.replace(TUNNEL_REQUESTER, **changes), budget=self.budget)
        responder = Engine(Role.RESPONDER, dataclasses.replace(TUNNEL_RESPONDER, **changes), budget=self.budget)
        self.requester, self.responder = Side(requester), Side(responder)
        self.sides = (self.requester, self.responder)
        for side in self.sides:
            side.engine.start()
        self.deliver_everything()

    # --- wires --------------------------------------------------------------------------------

    def other(self, side: Side) -> Side:
        return self.responder if side is self.requester else self.requester

    def deliver(self, side: Side, size: int) -> None:
        piece = bytes(side.wire[:size])
        del side.wire[:size]
        receiver = self.other(side)
        for event in receiver.engine.receive(piece, self.now):
            receiver.take(event)
        for stream_id, end in self.responder.ends.items():
            if end.other is None:
                end.other = self.requester.ends[stream_id]
                end.other.other = end

    def deliver_everything(self) -> None:
        while any(side.wire or side.engine.has_output for side in self.sides):
            for side in self.sides:
                side.wire += gather(side.engine)
                self.deliver(side, len(side.wire))

    @rule(which=st.integers(0, 1), limit=st.sampled_from([1, 100, 300_000]))
    def gather_some(self, which: int, limit: int) -> None:
        side = self.sides[which]
        before = side.engine.has_output
        pieces = side.engine.gather(limit)
        assert bool(pieces) is before
        side.wire += b"".join(pieces)
        for stream in side.engine.take_drained():
            assert stream.id in side.ends

    @rule(which=st.integers(0, 1), size=st.one_of(st.integers(1, 30), st.integers(1, 200_000)))
    def deliver_some(self, which: int, size: int) -> None:
        self.deliver(self.sides[which], size)

    @rule(seconds=st.sampled_from([0.0001, 0.01, 1.0]), round_trip=st.sampled_from([0.0001, 0.5]))
    def time_passes(self, seconds: float, round_trip: float) -> None:
        self.now += seconds
        for side in self.sides:
            side.engine.note_round_trip(round_trip)

    # --- exchanges ----------------------------------------------------------------------------

    @precondition(lambda self: len(self.requester.ends) < 12)
    @rule(ended=st.booleans())
    def open(self, ended: bool) -> None:
        stream = self.requester.engine.open_stream(POST, ended=ended)
        end = self.requester.ends[stream.id] = End(stream)
        end.head_sent = True
        end.finished = ended

    def pick(self, data: st.DataObject, ends: list[tuple[Side, End]]) -> tuple[Side, End]:
        return ends[data.draw(st.integers(0, len(ends) - 1), label="which")]

    def all_ends(self) -> list[tuple[Side, End]]:
        return [(side, end) for side in self.sides for end in side.ends.values()]

    @rule(data=st.data(), ended=st.booleans(), interim=st.booleans())
    def answer(self, data: st.DataObject, ended: bool, interim: bool) -> None:
        ends = [(side, end) for side, end in self.all_ends() if not end.head_sent and not end.dead]
        if ends:
            side, end = self.pick(data, ends)
            if interim:
                side.engine.send_head(end.stream, [(b":status", b"103")])
            side.engine.send_head(end.stream, RESPONSE, ended=ended)
            end.head_sent = True
            end.finished = ended

    @rule(data=st.data(), size=st.one_of(st.integers(0, 20), st.integers(0, 100_000)), ended=st.booleans())
    def send(self, data: st.DataObject, size: int, ended: bool) -> None:
        ends = [(side, end) for side, end in self.all_ends() if end.may_send]
        if ends:
            side, end = self.pick(data, ends)
            start = len(end.sent) + end.stream.id
            body = bytes((start + index) % 251 for index in range(min(size, 251))) * (size // 251 + 1)
            side.engine.send_data(end.stream, body[:size], ended=ended)
            end.sent += body[:size]
            end.finished = ended

    @rule(data=st.data())
    def send_trailers(self, data: st.DataObject) -> None:
        ends = [(side, end) for side, end in self.all_ends() if end.may_send]
        if ends:
            side, end = self.pick(data, ends)
            side.engine.send_trailers(end.stream, TRAILERS)
            end.finished = True

    @rule(data=st.data())
    def reset(self, data: st.DataObject) -> None:
        ends = [(side, end) for side, end in self.all_ends() if not end.dead]
        if ends:
            side, end = self.pick(data, ends)
            side.engine.reset_stream(end.stream, 8)
            if end.stream.reset:
                end.dead = True

    @rule(data=st.data(), share=st.floats(0.1, 1.0))
    def consume(self, data: st.DataObject, share: float) -> None:
        ends = [(side, end) for side, end in self.all_ends() if end.unconsumed and not end.dead]
        if ends:
            side, end = self.pick(data, ends)
            self.consume_bytes(side, end, max(1, int(end.unconsumed * share)))

    def consume_bytes(self, side: Side, end: End, size: int) -> None:
        side.engine.consume(end.stream, size)
        end.unconsumed -= size

    # --- what must hold -----------------------------------------------------------------------

    @invariant()
    def bytes_arrive_in_order(self) -> None:
        for _, end in self.all_ends() if hasattr(self, "sides") else ():
            if end.other is not None:
                assert end.other.sent.startswith(end.received)

    @invariant()
    def windows_add_up(self) -> None:
        for side in self.sides if hasattr(self, "sides") else ():
            state = side.engine._state
            receiver = side.engine._receiver
            assert receiver._window_bytes + receiver._returnable_bytes == state.config.connection_window_bytes
            assert side.engine._sender.window_bytes >= 0
            held = 0
            for end in side.ends.values():
                stream = end.stream
                if end.dead:
                    continue
                held += end.unconsumed + stream.window_target_bytes - state.config.initial_window_bytes
                assert stream.unconsumed_bytes == end.unconsumed
                if not stream.remote_ended:
                    assert stream.unconsumed_bytes <= stream.window_target_bytes
                    outstanding = stream.receive_window_bytes + stream.unconsumed_bytes + stream.uncredited_bytes
                    assert outstanding == stream.window_target_bytes
            assert state.account.used_bytes == held

    @invariant()
    def queues_add_up(self) -> None:
        for side in self.sides if hasattr(self, "sides") else ():
            sender = side.engine._sender
            pending = {stream for stream in side.engine._state.streams.values() if stream.pending_bytes}
            assert sender._pending_bytes == sum(stream.pending_bytes for stream in pending)
            waiting = [stream for stream in sender._ready if stream.pending_bytes]
            assert len(sender._ready) == len(waiting) + sender._dead
            assert set(waiting) == {stream for stream in pending if stream.send_window_bytes > 0}
            assert len(set(waiting)) == len(waiting)
            assert {stream for stream in pending if stream.send_window_bytes <= 0} <= sender._stalled.keys() <= pending

    def teardown(self) -> None:
        """Everybody finishes what was begun: then all is there, and both tables are empty."""
        if not hasattr(self, "sides"):
            return
        for _ in range(100_000):
            self.deliver_everything()
            waiting = [(side, end) for side, end in self.all_ends() if end.unconsumed and not end.dead]
            unfinished = [(side, end) for side, end in self.all_ends() if not end.finished and not end.dead]
            if not waiting and not unfinished:
                break
            for side, end in waiting:
                self.consume_bytes(side, end, end.unconsumed)
            for side, end in unfinished:
                if not end.head_sent:
                    side.engine.send_head(end.stream, RESPONSE)
                end.head_sent = end.finished = True
                side.engine.send_data(end.stream, b"", ended=True)
        for _, end in self.all_ends():
            assert end.other is not None
            assert end.dead or end.ended
            assert end.stream.reset or (end.stream.local_ended and end.stream.remote_ended)
            if not end.dead:
                assert end.received == end.other.sent
        for side in self.sides:
            assert not side.engine._state.streams
            assert side.engine.unsent_bytes == 0
            assert side.engine._state.account.used_bytes == 0
            receiver = self.other(side).engine._receiver
            assert side.engine._sender.window_bytes + receiver._returnable_bytes == 70_000
        assert self.budget.used_bytes == 0


TestBackToBack = BackToBack.TestCase
TestBackToBack.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
