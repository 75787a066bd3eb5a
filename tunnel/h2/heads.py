"""HEADERS and CONTINUATION received: putting blocks together, and what a head means for its stream (RFC 9113 §6.2,
§8.1).

Every block is decoded, whatever becomes of its stream, since HPACK's table is the connection's.
"""

from __future__ import annotations

from tunnel.errors import ErrorCode, RemoteProtocolError
from tunnel.h2.defences import BudgetExceeded
from tunnel.h2.events import (
    HeadTooLarge,
    InterimReceived,
    RequestReceived,
    ResponseReceived,
    TrailersReceived,
)
from tunnel.h2.frames import END_HEADERS, END_STREAM, PADDED, PRIORITY_FLAG, rst_stream_frame
from tunnel.h2.hpack import CompressionFault, HeaderDecoder, header_list_bytes
from tunnel.h2.state import ConnectionState
from tunnel.h2.stream import NO_LENGTH, Stream
from tunnel.h2.validation import MalformedHead, check_request, check_response, check_trailers
from tunnel.messages import Fields


class HeadReceiver:
    """Field blocks of one connection, as they arrive."""

    __slots__ = ("_continuations", "_flags", "_fragments", "_size", "_state", "decoder", "open_stream_id")

    def __init__(self, state: ConnectionState) -> None:
        self._state = state
        config = state.config
        self.decoder = HeaderDecoder(
            table_bytes=config.header_table_bytes,
            list_limit_bytes=config.max_header_block_bytes,
            cache_bytes=config.line_cache_bytes,
        )
        self.open_stream_id = 0
        """The stream of a block without END_HEADERS yet: nothing but its CONTINUATION may come (RFC 9113 §6.10)."""
        self._flags = 0
        self._fragments: list[bytes] = []
        self._size = 0
        self._continuations = 0

    # --- blocks ---------------------------------------------------------------------------------

    def on_headers(self, stream_id: int, flags: int, payload: bytes) -> None:
        """A HEADERS frame."""
        if stream_id == 0:
            raise RemoteProtocolError("HEADERS on stream 0")
        depends_on_itself = False
        if flags & (PADDED | PRIORITY_FLAG):
            payload, depends_on_itself = _strip(stream_id, flags, payload)
        if flags & END_HEADERS:
            self._on_block(stream_id, bool(flags & END_STREAM), payload, depends_on_itself)
            return
        self.open_stream_id = stream_id
        self._flags = flags
        self._fragments = [payload]
        self._size = len(payload)
        self._continuations = 0
        if depends_on_itself:
            raise RemoteProtocolError(f"stream {stream_id} depends on itself")
        self._check_size()

    def on_continuation(self, stream_id: int, flags: int, payload: bytes) -> None:
        """A CONTINUATION frame."""
        if stream_id != self.open_stream_id or not stream_id:
            raise RemoteProtocolError("CONTINUATION without an open field block")
        self._continuations += 1
        if self._continuations > self._state.config.max_continuation_frames:
            raise BudgetExceeded("CONTINUATION frames of one field block")
        self._fragments.append(payload)
        self._size += len(payload)
        self._check_size()
        if flags & END_HEADERS:
            block = b"".join(self._fragments)
            self._fragments = []
            self.open_stream_id = 0
            self._on_block(stream_id, bool(self._flags & END_STREAM), block, False)

    def _check_size(self) -> None:
        if self._size > self._state.config.max_header_block_bytes:
            raise CompressionFault(f"a field block of more than {self._state.config.max_header_block_bytes} bytes")

    def _on_block(self, stream_id: int, ended: bool, block: bytes, depends_on_itself: bool) -> None:
        state = self._state
        fields = self.decoder.decode(block)
        stream = state.streams.get(stream_id)
        if stream is None:
            if state.is_responder and stream_id & 1 and stream_id > state.highest_peer_stream_id:
                self._on_request(stream_id, fields, ended, depends_on_itself)
            else:
                self._on_absent(stream_id)
        elif stream.remote_ended:
            # RFC 9113 §5.1, half-closed (remote).
            state.fault(stream, ErrorCode.STREAM_CLOSED)
        elif depends_on_itself:
            state.fault(stream, ErrorCode.PROTOCOL_ERROR)
        elif stream.awaits_head:
            self._on_response(stream, fields, ended)
        else:
            self._on_trailers(stream, fields, ended)

    def _on_absent(self, stream_id: int) -> None:
        """HEADERS on a stream that is not in the table and opens none."""
        state = self._state
        if stream_id in state.forgotten or state.is_beyond_goaway(stream_id):
            return
        if state.is_idle(stream_id):
            raise RemoteProtocolError(f"HEADERS on stream {stream_id}, which is not the peer's to open")
        raise RemoteProtocolError(f"HEADERS on closed stream {stream_id}", code=ErrorCode.STREAM_CLOSED)

    def _is_too_large(self, fields: Fields) -> bool:
        config = self._state.config
        if len(fields) > config.max_header_lines:
            return True
        limit_bytes = config.max_header_list_bytes
        return self.decoder.list_bytes_at_most > limit_bytes and header_list_bytes(fields) > limit_bytes

    # --- heads ----------------------------------------------------------------------------------

    def _on_request(self, stream_id: int, fields: Fields, ended: bool, depends_on_itself: bool) -> None:
        state = self._state
        if state.is_beyond_goaway(stream_id):
            return
        state.highest_peer_stream_id = stream_id
        # Both count: a stream that is still open although its task has ended, and a task whose stream is gone.
        if max(state.unfinished, len(state.streams)) >= state.config.max_concurrent_streams:
            state.streams_refused += 1
            state.remember_reset(stream_id)
            state.sender.queue_owed(rst_stream_frame(stream_id, ErrorCode.REFUSED_STREAM))
            state.defences.take_reset(state.unfinished, state.now)
            return
        stream = state.add_stream(stream_id)
        if self._is_too_large(fields):
            self._report_large(stream, ended)
            state.unfinished += 1
            return
        try:
            if depends_on_itself or self.decoder.fault is not None:
                raise MalformedHead
            length = check_request(fields, extended_connect=state.config.enable_connect_protocol)
            if ended and length > 0:
                raise MalformedHead
        except MalformedHead:
            state.fault(stream, ErrorCode.PROTOCOL_ERROR, announced=False)
            return
        state.unfinished += 1
        state.defences.work.note_unfinished(state.unfinished)
        stream.remaining_bytes = length
        if ended:
            stream.remote_ended = True
        state.events.append(RequestReceived(stream, fields, ended))

    def _on_response(self, stream: Stream, fields: Fields, ended: bool) -> None:
        state = self._state
        if self._is_too_large(fields):
            stream.awaits_head = False
            self._report_large(stream, ended)
            return
        try:
            if self.decoder.fault is not None:
                raise MalformedHead
            status, length = check_response(fields)
            if status < 200:
                if ended:
                    raise MalformedHead
                self._on_interim(stream, fields)
                return
            if stream.has_no_body or status in (204, 304):
                length = 0 if not ended else NO_LENGTH
            elif stream.is_connect and status < 300:
                length = NO_LENGTH
            if ended and length > 0:
                raise MalformedHead
        except MalformedHead:
            state.fault(stream, ErrorCode.PROTOCOL_ERROR)
            return
        stream.awaits_head = False
        stream.remaining_bytes = length
        if ended:
            state.end_remote(stream)
        state.events.append(ResponseReceived(stream, fields, ended))

    def _on_interim(self, stream: Stream, fields: Fields) -> None:
        state = self._state
        stream.interim_heads += 1
        if stream.interim_heads > state.config.max_interim_heads:
            state.fault(stream, ErrorCode.ENHANCE_YOUR_CALM)
        else:
            state.events.append(InterimReceived(stream, fields))

    def _on_trailers(self, stream: Stream, fields: Fields, ended: bool) -> None:
        state = self._state
        if stream.discards:
            if ended:
                state.end_remote(stream)
            return
        try:
            if not ended or stream.remaining_bytes > 0 or self.decoder.fault is not None or self._is_too_large(fields):
                raise MalformedHead
            check_trailers(fields)
        except MalformedHead:
            state.fault(stream, ErrorCode.PROTOCOL_ERROR)
            return
        state.end_remote(stream)
        state.events.append(TrailersReceived(stream, fields))

    def _report_large(self, stream: Stream, ended: bool) -> None:
        state = self._state
        stream.discards = True
        if ended:
            state.end_remote(stream)
        state.events.append(HeadTooLarge(stream))
        state.defences.large_heads.take(state.now)


def _strip(stream_id: int, flags: int, payload: bytes) -> tuple[bytes, bool]:
    """Take padding and priority off; whether the stream depends on itself (RFC 7540 §5.3.1)."""
    start, end = 0, len(payload)
    if flags & PADDED:
        if not payload:
            raise RemoteProtocolError("HEADERS without its padding length", code=ErrorCode.FRAME_SIZE_ERROR)
        start = 1
        end -= payload[0]
    depends_on_itself = False
    if flags & PRIORITY_FLAG:
        dependency = int.from_bytes(payload[start : start + 4], "big") & 0x7FFF_FFFF
        depends_on_itself = dependency == stream_id
        start += 5
    if start > end:
        raise RemoteProtocolError("HEADERS with more padding than payload")
    return payload[start:end], depends_on_itself
