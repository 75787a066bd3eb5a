"""One engine against the `h2` library, in both roles: it accepts every frame that we send, and we every one of its."""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
from hypothesis import given, settings
from hypothesis import strategies as st
from support.http2 import gather

from tunnel.errors import ErrorCode
from tunnel.h2.config import FRONT_RESPONDER, TUNNEL_REQUESTER, TUNNEL_RESPONDER, EngineConfig
from tunnel.h2.engine import Engine, Role
from tunnel.h2.events import (
    ConnectionFailed,
    DataReceived,
    RequestReceived,
    ResponseReceived,
    StreamWasReset,
    TrailersReceived,
)
from tunnel.messages import Fields


@dataclasses.dataclass
class Message:
    """A head, a body in chunks, perhaps trailers; or the body is cut off by a reset."""

    fields: Fields
    chunks: list[bytes]
    trailers: Fields
    reset: bool

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)


@dataclasses.dataclass
class Received:
    """What one side has seen of a message."""

    fields: Fields = dataclasses.field(default_factory=list)
    body: bytes = b""
    trailers: Fields = dataclasses.field(default_factory=list)
    ended: bool = False
    reset: bool = False


# No cookie: `h2` joins those of a message into one line.
names = st.sampled_from([b"accept", b"x-custom", b"authorization", b"content-type", b"x-a-rather-long-field-name"])
field_values = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=200).map(str.encode)
lines = st.lists(st.tuples(names, field_values), max_size=6)
PATTERN = bytes(index % 253 for index in range(997)) * 80
bodies = st.lists(st.integers(0, 70_000).map(lambda size: PATTERN[size % 251 :][:size]), max_size=4)
trailer_lines = st.lists(st.tuples(st.sampled_from([b"x-sum", b"grpc-status"]), field_values), max_size=2)
resets = st.sampled_from([False] * 5 + [True])
messages = st.builds(Message, fields=lines, chunks=bodies, trailers=trailer_lines, reset=resets)
exchanges = st.lists(st.tuples(messages, messages), min_size=1, max_size=6)
pieces = st.sampled_from([1_000_000, 16_000, 313])
our_windows = st.sampled_from([10_000, 65_536, 262_144])

REQUEST: Fields = [
    (b":method", b"POST"),
    (b":scheme", b"https"),
    (b":authority", b"example.com"),
    (b":path", b"/a%2Fb?c"),
]
RESPONSE: Fields = [(b":status", b"200")]


class Referee:
    """`h2` with queues in front of its windows."""

    def __init__(self, *, client: bool) -> None:
        config = h2.config.H2Configuration(client_side=client, header_encoding=None)
        self.connection = h2.connection.H2Connection(config)
        self.connection.initiate_connection()
        self.queues: dict[int, deque[Any]] = {}
        self.received: dict[int, Received] = {}

    def send(self, stream_id: int, head: Fields, message: Message) -> None:
        queue: deque[Any] = deque(message.chunks)
        queue.append("reset" if message.reset else message.trailers or "end")
        self.queues[stream_id] = queue
        self.connection.send_headers(stream_id, [*head, *message.fields])
        self.flush(stream_id)

    def flush(self, stream_id: int) -> None:
        queue = self.queues.get(stream_id, ())
        while queue:
            item = queue.popleft()
            if item == "reset":
                self.connection.reset_stream(stream_id, ErrorCode.INTERNAL_ERROR)
                self.received.setdefault(stream_id, Received()).reset = True
            elif item == "end":
                self.connection.end_stream(stream_id)
            elif isinstance(item, list):
                self.connection.send_headers(stream_id, item, end_stream=True)
            else:
                window = self.connection.local_flow_control_window(stream_id)
                size = min(len(item), window, self.connection.max_outbound_frame_size)
                if size or not item:
                    self.connection.send_data(stream_id, item[:size])
                if size < len(item):
                    queue.appendleft(item[size:])
                if not size and item:
                    return

    def take(self, data: bytes) -> list[int]:
        """Raises where `h2` does not accept what we sent. The streams of new requests."""
        requests = []
        events = self.connection.receive_data(data)
        for event in events:
            # To `h2` a stream is closed before the events in front of its reset are read.
            if isinstance(event, h2.events.StreamReset):
                self.queues.pop(event.stream_id, None)
        for event in events:
            if isinstance(event, h2.events.RequestReceived | h2.events.ResponseReceived):
                self.received.setdefault(event.stream_id, Received()).fields = [tuple(line) for line in event.headers]
                if isinstance(event, h2.events.RequestReceived):
                    requests.append(event.stream_id)
            elif isinstance(event, h2.events.DataReceived):
                self.received[event.stream_id].body += event.data
                self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.TrailersReceived):
                self.received[event.stream_id].trailers = [tuple(line) for line in event.headers]
            elif isinstance(event, h2.events.StreamEnded):
                self.received[event.stream_id].ended = True
            elif isinstance(event, h2.events.StreamReset):
                self.received.setdefault(event.stream_id, Received()).reset = True
            elif isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
                for stream_id in list(self.queues):
                    self.flush(stream_id)
        return requests


class Ours:
    """An engine that sends whole messages and keeps what it gets."""

    def __init__(self, role: Role, config: EngineConfig) -> None:
        self.engine = Engine(role, config)
        self.engine.start()
        self.received: dict[int, Received] = {}

    def send_body(self, stream: Any, message: Message) -> None:
        for chunk in message.chunks:
            self.engine.send_data(stream, chunk)
        if message.reset:
            self.engine.reset_stream(stream, ErrorCode.INTERNAL_ERROR)
            self.received.setdefault(stream.id, Received()).reset = True
        elif message.trailers:
            self.engine.send_trailers(stream, message.trailers)
        else:
            self.engine.send_data(stream, b"", ended=True)

    def take(self, data: bytes, piece: int) -> list[Any]:
        requests = []
        for start in range(0, len(data), piece):
            for event in self.engine.receive(data[start : start + piece], 0.0):
                assert not isinstance(event, ConnectionFailed), event.text
                if isinstance(event, RequestReceived | ResponseReceived):
                    self.received.setdefault(event.stream.id, Received()).fields = event.fields
                    self.received[event.stream.id].ended = event.ended
                    if isinstance(event, RequestReceived):
                        requests.append(event.stream)
                elif isinstance(event, DataReceived):
                    self.received[event.stream.id].body += event.data
                    self.received[event.stream.id].ended = event.ended
                    self.engine.consume(event.stream, len(event.data))
                elif isinstance(event, TrailersReceived):
                    self.received[event.stream.id].trailers = event.fields
                    self.received[event.stream.id].ended = True
                elif isinstance(event, StreamWasReset):
                    assert event.remote
                    self.received.setdefault(event.stream.id, Received()).reset = True
        return requests


def check(received: Received, head: Fields, message: Message) -> None:
    if received.reset:
        assert message.body.startswith(received.body)
        return
    assert received.fields == [*head, *message.fields]
    assert received.body == message.body
    assert received.trailers == message.trailers
    assert received.ended


@settings(max_examples=80, deadline=None)
@given(exchanges, pieces, our_windows, st.sampled_from([16_384, 65_536]))
def test_a_requester_against_h2(traffic: list[tuple[Message, Message]], piece: int, window: int, frame: int):
    config = dataclasses.replace(TUNNEL_REQUESTER, initial_window_bytes=window, max_frame_bytes=frame)
    ours, referee = Ours(Role.REQUESTER, config), Referee(client=False)
    answers = {}
    for question, answer in traffic:
        stream = ours.engine.open_stream([*REQUEST, *question.fields], ended=False)
        answers[stream.id] = (question, answer)
        ours.send_body(stream, question)
    while ours.engine.has_output or (data := referee.connection.data_to_send()):
        for stream_id in referee.take(gather(ours.engine)) if ours.engine.has_output else ():
            if not referee.received[stream_id].reset:
                referee.send(stream_id, RESPONSE, answers[stream_id][1])
        data = referee.connection.data_to_send()
        ours.take(data, piece)

    assert not ours.engine._state.streams
    for stream_id, (question, answer) in answers.items():
        check(referee.received[stream_id], REQUEST, question)
        check(ours.received[stream_id], RESPONSE, answer)


@settings(max_examples=80, deadline=None)
@given(exchanges, pieces, our_windows, st.sampled_from([FRONT_RESPONDER, TUNNEL_RESPONDER]))
def test_a_responder_against_h2(traffic: list[tuple[Message, Message]], piece: int, window: int, preset: EngineConfig):
    ours, referee = Ours(Role.RESPONDER, dataclasses.replace(preset, initial_window_bytes=window)), Referee(client=True)
    answers = {}
    waiting = deque(traffic)
    while True:
        # One request at a time, so that the dynamic table of the referee is in use before and after our SETTINGS.
        if waiting:
            question, answer = waiting.popleft()
            stream_id = referee.connection.get_next_available_stream_id()
            answers[stream_id] = (question, answer)
            referee.send(stream_id, REQUEST, question)
        data = referee.connection.data_to_send()
        if not data and not ours.engine.has_output and not waiting:
            break
        for stream in ours.take(data, piece):
            if not ours.received[stream.id].reset:
                answer = answers[stream.id][1]
                ours.engine.send_head(stream, [*RESPONSE, *answer.fields])
                ours.send_body(stream, answer)
            ours.engine.release(stream)
        if ours.engine.has_output:
            referee.take(gather(ours.engine))

    assert not ours.engine._state.streams
    for stream_id, (question, answer) in answers.items():
        if stream_id in ours.received:
            check(ours.received[stream_id], REQUEST, question)
        check(referee.received[stream_id], RESPONSE, answer)


def test_every_kind_of_frame_that_we_send_is_accepted():
    ours, referee = Ours(Role.REQUESTER, TUNNEL_REQUESTER), Referee(client=False)
    referee.take(gather(ours.engine))
    ours.take(referee.connection.data_to_send(), 1_000_000)
    stream = ours.engine.open_stream([*REQUEST, (b"x-large", b"v" * 60_000)], ended=False)
    ours.engine.send_ping(b"12345678")
    ours.engine.reset_stream(stream, ErrorCode.CANCEL)
    ours.engine.go_away(debug=b"drain")

    assert referee.take(gather(ours.engine)) == [1]
    ours.take(referee.connection.data_to_send(), 1_000_000)
    assert referee.received[1].reset


def test_extended_connect_is_understood_by_both():
    referee = Referee(client=False)
    referee.connection.update_settings({h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL: 1})
    ours = Ours(Role.REQUESTER, TUNNEL_REQUESTER)
    referee.take(gather(ours.engine))
    ours.take(referee.connection.data_to_send(), 1_000_000)
    referee.take(gather(ours.engine))
    assert ours.engine.peer_allows_connect

    fields = [(b":method", b"CONNECT"), *REQUEST[1:], (b":protocol", b"websocket")]
    ours.engine.open_stream(fields, ended=False)
    assert referee.take(gather(ours.engine)) == [1]
    assert referee.received[1].fields == fields
