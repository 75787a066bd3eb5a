"""The receiving half of a connection: bytes to frames, and every frame but HEADERS and CONTINUATION (RFC 9113 §4-6).

One loop over the buffer. Rules that concern the whole connection raise `RemoteProtocolError`, which the engine turns
into GOAWAY; rules that concern a stream end in `ConnectionState.fault`.
"""

from __future__ import annotations

from typing import Final

from tunnel.errors import ErrorCode, RemoteProtocolError
from tunnel.h2.events import DataReceived, PeerGoingAway, Pong, SettingsReceived, StreamWasReset
from tunnel.h2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_STREAM,
    FRAME_HEADER_BYTES,
    GOAWAY,
    HEADER,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    SETTINGS_ACK,
    WINDOW_UPDATE,
    ping_frame,
    rst_stream_frame,
    window_update_frame,
)
from tunnel.h2.heads import HeadReceiver
from tunnel.h2.settings import InvalidSetting
from tunnel.h2.state import ConnectionState
from tunnel.h2.stream import NO_LENGTH, Stream

_MASK: Final = 0x7FFF_FFFF
_NAMES: Final = {
    DATA: "DATA",
    PRIORITY: "PRIORITY",
    RST_STREAM: "RST_STREAM",
    SETTINGS: "SETTINGS",
    PING: "PING",
    GOAWAY: "GOAWAY",
    WINDOW_UPDATE: "WINDOW_UPDATE",
}

_unpack_header = HEADER.unpack_from


class Receiver:
    """Bytes of one connection, as they arrive."""

    __slots__ = (
        "_buffer",
        "_half_window_bytes",
        "_head_since",
        "_heads",
        "_missing_bytes",
        "_preface_missing",
        "_returnable_bytes",
        "_state",
        "_window_bytes",
    )

    def __init__(self, state: ConnectionState) -> None:
        self._state = state
        self._heads = HeadReceiver(state)
        self._buffer: list[bytes] = []
        self._missing_bytes = 0
        """How many bytes the buffer lacks for its first frame; until then, joining it would be wasted work."""
        self._preface_missing = state.is_responder
        self._window_bytes = state.config.connection_window_bytes
        """What the peer may still send on the connection."""
        self._half_window_bytes = state.config.connection_window_bytes // 2
        self._returnable_bytes = 0
        self._head_since: float | None = None

    # --- frames ---------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Take bytes apart; events go to the state. Raises `RemoteProtocolError` for what ends the connection."""
        if self._buffer:
            self._buffer.append(data)
            if len(data) < self._missing_bytes:
                self._missing_bytes -= len(data)
                return
            data = b"".join(self._buffer)
            self._buffer.clear()
        position = 0
        if self._preface_missing:
            if not self._take_preface(data):
                return
            position = len(PREFACE)
        self._take_frames(data, position)

    def _take_preface(self, data: bytes) -> bool:
        if not data.startswith(PREFACE):
            if not PREFACE.startswith(data):
                raise RemoteProtocolError("the connection preface is not that of HTTP/2")
            self._keep(data, len(PREFACE) - len(data))
            return False
        self._preface_missing = False
        return True

    def _keep(self, rest: bytes, missing_bytes: int) -> None:
        if rest:
            self._buffer.append(rest)
        self._missing_bytes = missing_bytes

    def _take_frames(self, data: bytes, position: int) -> None:
        state = self._state
        heads = self._heads
        max_frame_bytes = state.config.max_frame_bytes
        available = len(data)
        while True:
            start = position + FRAME_HEADER_BYTES
            if start > available:
                self._keep(data[position:], start - available)
                self._date_head(heads.open_stream_id != 0)
                return
            high, low, kind, flags, stream_id = _unpack_header(data, position)
            end = start + (high << 8 | low)
            if end - start > max_frame_bytes:
                raise RemoteProtocolError("a frame above MAX_FRAME_SIZE", code=ErrorCode.FRAME_SIZE_ERROR)
            if end > available:
                self._keep(data[position:], end - available)
                self._date_head(heads.open_stream_id != 0 or kind == HEADERS)
                return
            position = end
            stream_id &= _MASK
            if heads.open_stream_id and kind != CONTINUATION:
                raise RemoteProtocolError("a frame inside a field block")
            if not state.settings_received and kind != SETTINGS:
                raise RemoteProtocolError("the first frame is not SETTINGS")
            if kind == DATA:
                self._on_data(stream_id, flags, data, start, end)
            elif kind == HEADERS:
                heads.on_headers(stream_id, flags, data[start:end])
            elif kind == WINDOW_UPDATE:
                self._on_window_update(stream_id, data[start:end])
            elif kind == CONTINUATION:
                heads.on_continuation(stream_id, flags, data[start:end])
            else:
                self._on_rare(kind, flags, stream_id, data[start:end])

    def _on_rare(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == RST_STREAM:
            self._on_rst_stream(stream_id, payload)
        elif kind == PING:
            self._on_ping(flags, stream_id, payload)
        elif kind == SETTINGS:
            self._on_settings(flags, stream_id, payload)
        elif kind == GOAWAY:
            self._on_goaway(stream_id, payload)
        elif kind == PUSH_PROMISE:
            raise RemoteProtocolError("PUSH_PROMISE, which nobody has allowed")
        else:
            self._state.defences.idle_frames.take(self._state.now)
            if kind == PRIORITY:
                self._on_priority(stream_id, payload)

    def _date_head(self, is_open: bool) -> None:
        """Remember since when a field block has been incomplete."""
        if not is_open:
            self._head_since = None
        elif self._head_since is None:
            self._head_since = self._state.now

    def head_deadline(self) -> float | None:
        """When the incomplete field block must be complete, where there is one."""
        return None if self._head_since is None else self._head_since + self._state.config.header_block_seconds

    # --- DATA -----------------------------------------------------------------------------------

    def _on_data(self, stream_id: int, flags: int, data: bytes, start: int, end: int) -> None:
        state = self._state
        length = end - start
        self._take_connection_window(length)
        if flags & PADDED:
            start, end = _without_padding(data, start, end)
        stream = state.streams.get(stream_id)
        if stream is None:
            self._on_absent_data(stream_id)
            return
        stream.receive_window_bytes -= length
        if stream.remote_ended:
            state.fault(stream, ErrorCode.STREAM_CLOSED)
            return
        if stream.receive_window_bytes < 0:
            state.fault(stream, ErrorCode.FLOW_CONTROL_ERROR)
            return
        if stream.awaits_head:
            state.fault(stream, ErrorCode.PROTOCOL_ERROR)
            return
        size = end - start
        ended = flags & END_STREAM != 0
        if stream.remaining_bytes != NO_LENGTH:
            stream.remaining_bytes -= size
            if stream.remaining_bytes < 0 or (ended and stream.remaining_bytes):
                state.fault(stream, ErrorCode.PROTOCOL_ERROR)
                return
        if ended:
            state.end_remote(stream)
        elif size == 0:
            state.defences.empty_data.take(state.now)
        if stream.discards:
            if not ended:
                state.consumed(stream, length)
            return
        if size != length and not ended:
            state.consumed(stream, length - size)
        if size:
            self._hold(stream, size)
        elif not ended:
            return
        state.events.append(DataReceived(stream, data[start:end], ended))

    def _hold(self, stream: Stream, size: int) -> None:
        """Bytes wait for their consumer."""
        state = self._state
        if not stream.unconsumed_bytes:
            stream.stalled_since = state.now
        stream.unconsumed_bytes += size
        state.received_data_bytes += size
        state.account.charge(size)

    def _take_connection_window(self, length: int) -> None:
        """Book a DATA frame, and return its credit at once: nobody's slowness is anybody else's."""
        self._window_bytes -= length
        if self._window_bytes < 0:
            raise RemoteProtocolError("more DATA than the connection window allows", code=ErrorCode.FLOW_CONTROL_ERROR)
        self._returnable_bytes += length
        if self._returnable_bytes >= self._half_window_bytes:
            self._window_bytes += self._returnable_bytes
            self._state.sender.queue_owed(window_update_frame(0, self._returnable_bytes))
            self._returnable_bytes = 0

    def _on_absent_data(self, stream_id: int) -> None:
        state = self._state
        if stream_id in state.forgotten or state.is_beyond_goaway(stream_id):
            return
        if stream_id == 0 or state.is_idle(stream_id):
            raise RemoteProtocolError(f"DATA on idle stream {stream_id}")
        # RFC 9113 §6.1: a stream error, although there is no stream left that could be told of it.
        state.remember_reset(stream_id)
        state.sender.queue_owed(rst_stream_frame(stream_id, ErrorCode.STREAM_CLOSED))
        state.defences.take_reset(state.unfinished, state.now)

    # --- the other frames -----------------------------------------------------------------------

    def _on_window_update(self, stream_id: int, payload: bytes) -> None:
        state = self._state
        if len(payload) != 4:
            raise _wrong_size(WINDOW_UPDATE)
        increment = int.from_bytes(payload, "big") & _MASK
        state.defences.take_window_update(state.sender.sent_data_bytes, state.now)
        if stream_id == 0:
            if not increment:
                raise RemoteProtocolError("WINDOW_UPDATE of 0 on the connection")
            state.sender.add_connection_credit(increment)
            return
        stream = state.streams.get(stream_id)
        if stream is None:
            if state.is_idle(stream_id) and not state.is_beyond_goaway(stream_id):
                raise RemoteProtocolError(f"WINDOW_UPDATE on idle stream {stream_id}")
        elif not increment:
            state.fault(stream, ErrorCode.PROTOCOL_ERROR)
        elif not state.sender.add_credit(stream, increment):
            state.fault(stream, ErrorCode.FLOW_CONTROL_ERROR)

    def _on_rst_stream(self, stream_id: int, payload: bytes) -> None:
        state = self._state
        if len(payload) != 4:
            raise _wrong_size(RST_STREAM)
        if stream_id == 0 or (state.is_idle(stream_id) and not state.is_beyond_goaway(stream_id)):
            raise RemoteProtocolError(f"RST_STREAM on idle stream {stream_id}")
        state.resets_received += 1
        stream = state.streams.get(stream_id)
        if stream is not None:
            code = int.from_bytes(payload, "big")
            state.drop(stream)
            refused = code == ErrorCode.REFUSED_STREAM and not state.is_responder
            state.events.append(StreamWasReset(stream, code, remote=True, refused=refused))
        state.defences.take_reset(state.unfinished, state.now)

    def _on_priority(self, stream_id: int, payload: bytes) -> None:
        """RFC 9113 deprecates it and keeps its frame checks; that of RFC 7540 §5.3.1 is h2spec's."""
        state = self._state
        if stream_id == 0:
            raise RemoteProtocolError("PRIORITY on stream 0")
        code = None
        if len(payload) != 5:
            code = ErrorCode.FRAME_SIZE_ERROR
        elif int.from_bytes(payload[:4], "big") & _MASK == stream_id:
            code = ErrorCode.PROTOCOL_ERROR
        if code is None:
            return
        stream = state.streams.get(stream_id)
        if stream is None:
            raise RemoteProtocolError(f"a wrong PRIORITY on stream {stream_id}, which is not open", code=code)
        state.fault(stream, code)

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        state = self._state
        if stream_id:
            raise _on_a_stream(PING)
        if len(payload) != 8:
            raise _wrong_size(PING)
        if flags & ACK and state.pings_unanswered:
            state.pings_unanswered -= 1
            state.events.append(Pong(payload))
            return
        state.defences.pings.take(state.now)
        if not flags & ACK:
            state.sender.queue_owed(ping_frame(payload, ack=True))

    def _on_goaway(self, stream_id: int, payload: bytes) -> None:
        state = self._state
        if stream_id:
            raise _on_a_stream(GOAWAY)
        if len(payload) < 8:
            raise _wrong_size(GOAWAY)
        last_stream_id = int.from_bytes(payload[:4], "big") & _MASK
        code = int.from_bytes(payload[4:8], "big")
        if state.goaway_received_id is not None:
            # RFC 9113 §6.8: it must not grow. Where it does, what was excluded stays excluded.
            state.defences.settings.take(state.now)
            last_stream_id = min(last_stream_id, state.goaway_received_id)
        state.goaway_received_id = last_stream_id
        state.events.append(PeerGoingAway(last_stream_id, code, payload[8:]))
        if state.is_responder:
            return
        for stream in [stream for stream in state.streams.values() if stream.id > last_stream_id]:
            state.drop(stream)
            state.remember_reset(stream.id)
            state.events.append(StreamWasReset(stream, ErrorCode.REFUSED_STREAM, remote=True, refused=True))

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        state = self._state
        if stream_id:
            raise _on_a_stream(SETTINGS)
        if len(payload) % 6 or (flags & ACK and payload):
            raise _wrong_size(SETTINGS)
        state.defences.settings.take(state.now)
        if flags & ACK:
            self._on_settings_ack()
            return
        peer = state.peer
        window_bytes = peer.initial_window_bytes
        try:
            peer.apply(payload, from_responder=not state.is_responder, first=not state.settings_received)
        except InvalidSetting as exc:
            raise RemoteProtocolError(exc.text, code=exc.code) from None
        state.settings_received = True
        state.sender.max_frame_bytes = peer.max_frame_bytes
        if peer.initial_window_bytes != window_bytes:
            state.sender.shift_windows(peer.initial_window_bytes - window_bytes)
        state.sender.queue_owed(SETTINGS_ACK)
        state.events.append(SettingsReceived())

    def _on_settings_ack(self) -> None:
        if not self._state.settings_received:
            raise RemoteProtocolError("the first frame is not SETTINGS")
        self._state.settings_acknowledged = True
        self._heads.decoder.settings_acknowledged()


def _wrong_size(kind: int) -> RemoteProtocolError:
    return RemoteProtocolError(f"{_NAMES[kind]} of a wrong size", code=ErrorCode.FRAME_SIZE_ERROR)


def _on_a_stream(kind: int) -> RemoteProtocolError:
    return RemoteProtocolError(f"{_NAMES[kind]} on a stream")


def _without_padding(data: bytes, start: int, end: int) -> tuple[int, int]:
    """Where the data of a padded DATA frame starts and ends (RFC 9113 §6.1)."""
    if start == end:
        raise RemoteProtocolError("DATA without its padding length", code=ErrorCode.FRAME_SIZE_ERROR)
    start, end = start + 1, end - data[start]
    if start > end:
        raise RemoteProtocolError("DATA with more padding than payload")
    return start, end
