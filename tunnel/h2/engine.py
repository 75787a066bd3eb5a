"""HTTP/2 without I/O: one connection in either role.

Bytes that arrived go into `Engine.receive`, which gives events; methods say what is to be sent, and `Engine.gather`
gives the bytes. Theory of operation:

- `receiving` takes bytes apart, `heads` puts field blocks together and says what they mean, `sending` holds what waits
  and hands it out in turns. What they share is `state`. This module is the door to them and does little itself.
- A violation by the peer never raises here. One that concerns a stream ends it (RST_STREAM is queued) and is reported
  as `StreamWasReset`; one that concerns the connection ends that (GOAWAY is queued) and is reported as
  `ConnectionFailed`.
- What the caller does wrong raises `LocalProtocolError`: it is a bug. Sending on a stream that was reset is none, since
  the reset may have come this moment; it does nothing.
- Credit of the connection goes back as bytes arrive; credit of a stream when `Engine.consume` says that a consumer took
  them. Credit for padding and for dead streams needs no call.
- Time comes in with `receive` and `expire`. `deadline` says when `expire` has to be called at the latest.

Deliberately absent: priorities beyond taking turns, server push, and the upgrade from HTTP/1.1.
"""

from __future__ import annotations

import dataclasses

from tunnel.errors import ConnectionEnded, ErrorCode, LocalProtocolError, RemoteProtocolError, StreamLimitReached
from tunnel.h2.config import FRONT_RESPONDER, TUNNEL_REQUESTER, TUNNEL_RESPONDER, Budget, EngineConfig
from tunnel.h2.events import ConnectionFailed, Event, StreamWasReset
from tunnel.h2.frames import (
    DEFAULT_WINDOW_BYTES,
    LARGEST_STREAM_ID,
    PREFACE,
    goaway_frame,
    header_block_frames,
    ping_frame,
    settings_frame,
    window_update_frame,
)
from tunnel.h2.hpack import HeaderEncoder
from tunnel.h2.receiving import Receiver
from tunnel.h2.settings import PeerSettings, announced
from tunnel.h2.state import ConnectionState, Role
from tunnel.h2.stream import Stream
from tunnel.h2.windows import WindowBudget
from tunnel.messages import Fields

__all__ = [
    "FRONT_RESPONDER",
    "TUNNEL_REQUESTER",
    "TUNNEL_RESPONDER",
    "Budget",
    "Engine",
    "EngineConfig",
    "EngineStatistics",
    "Role",
]

GATHER_BYTES = 262_144


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatistics:
    """A snapshot for metrics."""

    open_streams: int
    """Requester: streams that are open. Responder: requests whose task has not ended."""
    sent_data_bytes: int
    received_data_bytes: int
    unsent_bytes: int
    held_bytes: int
    """This connection's part of the `WindowBudget`: received and not consumed, and windows grown."""
    connection_window_bytes: int
    """Credit that the peer has left us."""
    resets_received: int
    streams_refused: int
    """Responder: requests refused at MAX_CONCURRENT_STREAMS."""
    bad_streams: int
    """Streams that we reset for a violation of the protocol."""


class Engine:
    """One HTTP/2 connection. Not safe for several threads; calls never block."""

    __slots__ = ("_encoder", "_receiver", "_sender", "_settings_deadline", "_state", "role")

    def __init__(
        self, role: Role, config: EngineConfig, *, budget: WindowBudget | None = None, now: float = 0.0
    ) -> None:
        """``budget`` is shared by all connections of a process; without one, this connection has its own."""
        self.role = role
        self._state = ConnectionState(role, config, budget or WindowBudget(), now)
        self._sender = self._state.sender
        self._receiver = Receiver(self._state)
        self._encoder = HeaderEncoder()
        self._settings_deadline = now + config.settings_seconds

    def start(self) -> None:
        """Queue the preface (requester), SETTINGS, and the connection's window."""
        config = self._state.config
        preface = PREFACE if self.role is Role.REQUESTER else b""
        frames = preface + settings_frame(announced(config, is_responder=self.role is Role.RESPONDER))
        if config.connection_window_bytes > DEFAULT_WINDOW_BYTES:
            frames += window_update_frame(0, config.connection_window_bytes - DEFAULT_WINDOW_BYTES)
        self._sender.queue(frames)

    def close(self) -> None:
        """The transport is gone: what this connection holds of the process's budget goes back. Idempotent."""
        self._state.account.close()

    # --- bytes ----------------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Take bytes from the transport; what they meant. After `ConnectionFailed`, nothing more."""
        state = self._state
        if state.failed:
            return []
        state.now = now
        self._sender.observe_time(now)
        events = state.events = []
        try:
            self._receiver.feed(data)
        except RemoteProtocolError as exc:
            self._fail(exc.code, str(exc))
        if state.account.must_shed:
            state.shed()
        return events

    @property
    def has_output(self) -> bool:
        """Whether to call `gather` now."""
        return self._sender.has_output

    @property
    def unsent_bytes(self) -> int:
        """Bytes queued, whether the peer's windows let them go or not."""
        return self._sender.unsent_bytes

    def gather(self, max_bytes: int = GATHER_BYTES) -> list[bytes | memoryview]:
        """What is to be sent now: all control frames and heads, then DATA up to ``max_bytes`` (or a frame more)."""
        return self._sender.gather(max_bytes)

    def take_drained(self) -> list[Stream]:
        """Streams of which at least half of what was queued, or END_STREAM, has left since the last call."""
        return self._sender.take_drained()

    # --- requests and responses -----------------------------------------------------------------

    def open_stream(self, fields: Fields, *, ended: bool) -> Stream:
        """Send a request head. ``fields``: pseudo-fields first, names in lower case.

        Raises `ConnectionEnded` where either side is going away, `StreamLimitReached` at the peer's limit.
        """
        state = self._state
        if state.is_responder:
            raise LocalProtocolError("a responder opens no streams")
        if self.going_away:
            raise ConnectionEnded("the connection takes no new requests", local=state.goaway_received_id is None)
        if len(state.streams) >= state.peer.max_concurrent_streams:
            raise StreamLimitReached(f"the peer allows {state.peer.max_concurrent_streams} streams at a time")
        block = self._encoder.encode(fields)
        stream = state.add_stream(state.next_stream_id)
        state.next_stream_id += 2
        stream.awaits_head = True
        method = fields[0][1]
        stream.has_no_body = method == b"HEAD"
        stream.is_connect = method == b"CONNECT"
        self._queue_head(stream, block, ended)
        return stream

    def send_head(self, stream: Stream, fields: Fields, *, ended: bool = False) -> None:
        """Send a response head: any number of interim ones, then the final one."""
        if not stream.reset:
            self._check_open(stream)
            self._queue_head(stream, self._encoder.encode(fields), ended)

    def _queue_head(self, stream: Stream, block: bytes, ended: bool) -> None:
        frames = header_block_frames(stream.id, block, ended=ended, max_frame_bytes=self._sender.max_frame_bytes)
        self._sender.queue_head(stream, frames, ended=ended)

    def send_data(self, stream: Stream, data: bytes | memoryview, *, ended: bool = False) -> None:
        """Queue bytes of a body, of any size; they are not copied, and must not change. Watch
        `Stream.pending_bytes`."""
        if not stream.reset:
            self._check_open(stream)
            self._sender.queue_data(stream, data, ended=ended)

    def send_trailers(self, stream: Stream, fields: Fields) -> None:
        """End the message with a trailer section, behind all data that is queued."""
        if not stream.reset:
            self._check_open(stream)
            block = self._encoder.encode(fields)
            frames = header_block_frames(stream.id, block, ended=True, max_frame_bytes=self._sender.max_frame_bytes)
            self._sender.queue_trailers(stream, frames)

    def _check_open(self, stream: Stream) -> None:
        if stream.end_queued:
            raise LocalProtocolError(f"stream {stream.id} has been ended by this side")

    def reset_stream(self, stream: Stream, code: int) -> None:
        """RST_STREAM; what is queued is dropped, what nobody consumed is given back. Idempotent.

        Where both ends have left, no frame is sent.
        """
        state = self._state
        if stream.local_ended and stream.remote_ended:
            state.drop(stream)
        elif not stream.reset:
            state.reset_by_us(stream, code, owed=False)

    def consume(self, stream: Stream, size: int) -> None:
        """A consumer took so many bytes of what `DataReceived` brought: the peer gets credit for them."""
        if stream.reset:
            return
        state = self._state
        stream.unconsumed_bytes -= size
        if stream.unconsumed_bytes < 0:
            raise LocalProtocolError(f"stream {stream.id}: more bytes were consumed than received")
        stream.stalled_since = state.now
        state.account.charge(-size)
        if not stream.remote_ended:
            state.consumed(stream, size)

    def release(self, stream: Stream) -> None:
        """Responder: the task of this request has ended, and its concurrency slot is free. Idempotent."""
        if not stream.released:
            stream.released = True
            self._state.unfinished -= 1

    # --- the connection -------------------------------------------------------------------------

    def send_ping(self, payload: bytes) -> None:
        """Send a PING of eight bytes; `Pong` answers."""
        if len(payload) != 8:
            raise LocalProtocolError("a PING has eight bytes")
        self._state.pings_unanswered += 1
        self._sender.queue(ping_frame(payload))

    def go_away(self, *, last_stream_id: int | None = None, code: int = ErrorCode.NO_ERROR, debug: bytes = b"") -> None:
        """Send GOAWAY: the peer's streams above ``last_stream_id`` (default: the highest so far) are ignored.

        Streams that are open go on. We open none either.
        """
        state = self._state
        if last_stream_id is None:
            last_stream_id = state.highest_peer_stream_id
        if state.goaway_sent_id is not None:
            last_stream_id = min(last_stream_id, state.goaway_sent_id)
        state.goaway_sent_id = last_stream_id
        self._sender.queue(goaway_frame(last_stream_id, code, debug))

    def note_round_trip(self, seconds: float) -> None:
        """A measured round trip: from it windows learn how far to grow."""
        self._state.credit.note_round_trip(seconds)

    def deadline(self) -> float | None:
        """When `expire` has something to do unless bytes come first; None where nothing is due."""
        state = self._state
        if state.failed:
            return None
        due = [self._receiver.head_deadline(), self._sender.stall_deadline(state.now)]
        if not self._is_settled:
            due.append(self._settings_deadline)
        return min((moment for moment in due if moment is not None), default=None)

    def expire(self, now: float) -> list[Event]:
        """Act on deadlines that have passed."""
        state = self._state
        if state.failed:
            return []
        state.now = now
        events = state.events = []
        try:
            self._expire(now)
        except RemoteProtocolError as exc:
            self._fail(exc.code, str(exc))
        if state.account.must_shed:
            state.shed()
        return events

    def _expire(self, now: float) -> None:
        state, sender = self._state, self._sender
        if not self._is_settled and now >= self._settings_deadline:
            what = "acknowledgement of our SETTINGS" if state.settings_received else "SETTINGS"
            raise RemoteProtocolError(f"no {what} within the deadline", code=ErrorCode.SETTINGS_TIMEOUT)
        head_deadline = self._receiver.head_deadline()
        if head_deadline is not None and now >= head_deadline:
            raise RemoteProtocolError("a field block was not completed in time", code=ErrorCode.ENHANCE_YOUR_CALM)
        if sender.connection_is_stalled(now):
            raise RemoteProtocolError("the connection window was shut for too long", code=ErrorCode.ENHANCE_YOUR_CALM)
        for stream in sender.stalled_streams(now):
            state.reset_by_us(stream, ErrorCode.CANCEL, owed=False)
            state.events.append(StreamWasReset(stream, ErrorCode.CANCEL, remote=False, refused=False))
        sender.observe_time(now)

    @property
    def _is_settled(self) -> bool:
        return self._state.settings_received and self._state.settings_acknowledged

    def _fail(self, code: int, text: str) -> None:
        self._sender.drop_everything()
        self._state.account.close()
        self.go_away(code=code, debug=text.encode())
        self._state.failed = True
        self._state.events.append(ConnectionFailed(code, text))

    # --- facts ----------------------------------------------------------------------------------

    @property
    def can_open(self) -> bool:
        """Whether `open_stream` would succeed."""
        state = self._state
        return not self.going_away and len(state.streams) < state.peer.max_concurrent_streams

    @property
    def open_count(self) -> int:
        """Requester: streams that are open. Responder: requests that have not been released."""
        return self._state.unfinished if self._state.is_responder else len(self._state.streams)

    @property
    def going_away(self) -> bool:
        """No new request may be sent: GOAWAY was sent or received, or the stream ids are used up."""
        state = self._state
        return (
            state.goaway_received_id is not None
            or state.goaway_sent_id is not None
            or state.next_stream_id > LARGEST_STREAM_ID
        )

    @property
    def settings_received(self) -> bool:
        """Whether the peer's SETTINGS have arrived."""
        return self._state.settings_received

    @property
    def peer_settings(self) -> PeerSettings:
        """The peer's settings; its defaults before they arrive."""
        return self._state.peer

    @property
    def peer_allows_connect(self) -> bool:
        """Whether the peer has announced extended CONNECT (RFC 8441)."""
        return self._state.peer.enable_connect_protocol

    @property
    def highest_peer_stream_id(self) -> int:
        """The highest stream that the peer has opened; 0 where none."""
        return self._state.highest_peer_stream_id

    def statistics(self) -> EngineStatistics:
        """A snapshot of counters."""
        state = self._state
        return EngineStatistics(
            open_streams=self.open_count,
            sent_data_bytes=self._sender.sent_data_bytes,
            received_data_bytes=state.received_data_bytes,
            unsent_bytes=self._sender.unsent_bytes,
            held_bytes=state.account.used_bytes,
            connection_window_bytes=self._sender.window_bytes,
            resets_received=state.resets_received,
            streams_refused=state.streams_refused,
            bad_streams=state.bad_streams,
        )
