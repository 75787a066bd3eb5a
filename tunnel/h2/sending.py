"""The sending half of a connection: what waits to leave, in which order, and within which windows.

Two queues. Everything that is not flow-controlled (heads, credit, acknowledgements, resets) leaves first, in the order
in which it was queued, so that a stream's RST_STREAM can never overtake its HEADERS. DATA follows: streams take turns,
a frame each. Small data that finds both windows open goes straight behind the head in the first queue: an answer of a
kilobyte does not wait for its turn among downloads, and while there are such answers, downloads leave in small batches.

It knows streams and windows; it knows nothing of roles, requests or the peer's frames.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from tunnel.errors import ErrorCode, RemoteProtocolError
from tunnel.h2.defences import BudgetExceeded
from tunnel.h2.frames import (
    DATA,
    DEFAULT_MAX_FRAME_BYTES,
    DEFAULT_WINDOW_BYTES,
    END_STREAM,
    LARGEST_WINDOW_BYTES,
    frame_header,
)
from tunnel.h2.stream import Stream

DIRECT_DATA_BYTES: Final = 16_384
"""Data up to this size may skip the turns when nobody else waits."""

AHEAD_DATA_BYTES: Final = 8_192
"""Data up to this size may do so where others wait."""

DIRECT_QUEUE_BYTES: Final = 65_536
"""Either while less than this is queued in front of it, so that whoever waits has its turn in every batch."""

SHARED_BATCH_BYTES: Final = 65_536
"""DATA leaves in batches of this size while others send heads or small data, which would wait behind a larger one."""

SHARED_BATCHES: Final = 16
"""Batches for which heads or small data count as going on."""

PROGRESS_BYTES: Final = 1_024
"""Credit below this, where more is pending, does not count as progress: a peer that gives a byte at a time stalls
us."""


class Sender:
    """What waits to be sent on one connection."""

    __slots__ = (
        "_connection_stalled_since",
        "_dead",
        "_drained",
        "_first",
        "_first_bytes",
        "_max_control_bytes",
        "_max_data_frame_bytes",
        "_newly_stalled",
        "_owed_bytes",
        "_pending_bytes",
        "_ready",
        "_shared_batches",
        "_stall_seconds",
        "_stalled",
        "_streams",
        "max_frame_bytes",
        "sent_data_bytes",
        "window_bytes",
    )

    def __init__(
        self, streams: dict[int, Stream], *, data_frame_bytes: int, max_control_bytes: int, stall_seconds: float
    ) -> None:
        self._streams = streams
        self._max_data_frame_bytes = data_frame_bytes
        self._max_control_bytes = max_control_bytes
        self._stall_seconds = stall_seconds
        self.max_frame_bytes = DEFAULT_MAX_FRAME_BYTES
        """The peer's MAX_FRAME_SIZE."""
        self.window_bytes = DEFAULT_WINDOW_BYTES
        """Credit left on the connection."""
        self.sent_data_bytes = 0
        """Flow-controlled bytes sent so far."""
        self._first: list[bytes | memoryview] = []
        self._first_bytes = 0
        self._shared_batches = 0
        """How many batches are to be small yet."""
        self._owed_bytes = 0
        """How much of the first queue the peer made us say (acknowledgements, resets, credit)."""
        self._ready: deque[Stream] = deque()
        """Streams with pending bytes and a window above zero, each once; and `_dead` ones that were reset since."""
        self._dead = 0
        self._pending_bytes = 0
        self._drained: dict[Stream, None] = {}
        self._stalled: dict[Stream, float] = {}
        """Streams with pending bytes and no window, and since when; the longest first."""
        self._newly_stalled: list[Stream] = []
        self._connection_stalled_since: float | None = None

    # --- queueing -------------------------------------------------------------------------------

    def queue(self, frames: bytes) -> None:
        """Queue frames that are not flow-controlled."""
        self._first.append(frames)
        self._first_bytes += len(frames)

    def queue_owed(self, frame: bytes) -> None:
        """Queue a frame that the peer made us say. Raises `BudgetExceeded` where it does not read them."""
        self._owed_bytes += len(frame)
        if self._owed_bytes > self._max_control_bytes:
            raise BudgetExceeded("control bytes that wait to be sent")
        self._first.append(frame)
        self._first_bytes += len(frame)

    def queue_data(self, stream: Stream, data: bytes | memoryview, *, ended: bool) -> None:
        """Queue bytes of a body. They are not copied."""
        size = len(data)
        stream.end_queued = ended
        if stream.pending_bytes:
            if size:
                self._add_pending(stream, data, size)
        elif size == 0:
            if ended:
                self.queue(frame_header(0, DATA, END_STREAM, stream.id))
                self._end(stream)
        elif (
            size <= (AHEAD_DATA_BYTES if self._ready else DIRECT_DATA_BYTES)
            and size <= stream.send_window_bytes
            and size <= self.window_bytes
            and self._first_bytes < DIRECT_QUEUE_BYTES
        ):
            if self._ready:
                self._shared_batches = SHARED_BATCHES
            self._spend(stream, size)
            self._first += (frame_header(size, DATA, END_STREAM if ended else 0, stream.id), data)
            self._first_bytes += size + 9
            if ended:
                self._end(stream)
        else:
            self._add_pending(stream, data, size)
            self._wait_for_turn(stream)

    def queue_trailers(self, stream: Stream, frames: bytes) -> None:
        """Queue the trailer section behind what is pending."""
        stream.end_queued = True
        if stream.pending_bytes:
            stream.trailer_frames = frames
        else:
            self.queue(frames)
            self._end(stream)

    def queue_head(self, stream: Stream, frames: bytes, *, ended: bool) -> None:
        """Queue a head; heads come before any data of their stream."""
        self._shared_batches = SHARED_BATCHES
        self.queue(frames)
        if ended:
            stream.end_queued = True
            self._end(stream)

    def drop(self, stream: Stream) -> None:
        """Forget what a dead stream had queued."""
        if stream.pending_bytes:
            self._pending_bytes -= stream.pending_bytes
            stream.pending_bytes = 0
            stream.queue = None
            stream.trailer_frames = None
            self._stalled.pop(stream, None)
            if stream.send_window_bytes > 0:
                # It stays where it waits for its turn: a search would make ten thousand resets quadratic.
                self._dead += 1
                if 2 * self._dead > len(self._ready):
                    self._bury()
                if not self._is_shut:
                    self._connection_stalled_since = None
        self._drained.pop(stream, None)

    def _bury(self) -> None:
        waiting = [stream for stream in self._ready if stream.pending_bytes]
        self._ready.clear()
        self._dead = 0
        for stream in waiting:
            self._wait_for_turn(stream)

    def drop_everything(self) -> None:
        """The connection has failed: every stream is dead, and only what is not flow-controlled still leaves."""
        for stream in self._streams.values():
            stream.pending_bytes = 0
            stream.queue = None
            stream.trailer_frames = None
            stream.reset = True
        self._ready.clear()
        self._dead = 0
        self._stalled.clear()
        self._newly_stalled.clear()
        self._connection_stalled_since = None
        self._pending_bytes = 0

    def _add_pending(self, stream: Stream, data: bytes | memoryview, size: int) -> None:
        if stream.queue is None:
            stream.queue = deque()
        stream.queue.append(data)
        stream.pending_bytes += size
        stream.high_mark_bytes = max(stream.high_mark_bytes, stream.pending_bytes)
        self._pending_bytes += size

    def _wait_for_turn(self, stream: Stream) -> None:
        if stream.send_window_bytes > 0:
            self._ready.append(stream)
        elif stream not in self._stalled:
            self._stalled[stream] = math.inf
            self._newly_stalled.append(stream)

    def _spend(self, stream: Stream, size: int) -> None:
        stream.send_window_bytes -= size
        self.window_bytes -= size
        self.sent_data_bytes += size

    def _end(self, stream: Stream) -> None:
        """END_STREAM is on its way."""
        stream.local_ended = True
        self._drained[stream] = None
        if stream.remote_ended:
            self._streams.pop(stream.id, None)

    # --- leaving --------------------------------------------------------------------------------

    @property
    def has_output(self) -> bool:
        """Whether `gather` would give anything."""
        return bool(self._first) or (self.window_bytes > 0 and len(self._ready) > self._dead)

    @property
    def unsent_bytes(self) -> int:
        """Bytes in both queues, whether windows let them go or not."""
        return self._first_bytes + self._pending_bytes

    def gather(self, max_bytes: int) -> list[bytes | memoryview]:
        """Everything of the first queue, then DATA up to ``max_bytes``, exceeded by one frame at most, which there is.

        Less DATA while heads and small data come; see `SHARED_BATCH_BYTES`.
        """
        output = self._first
        size = self._first_bytes
        self._first = []
        self._first_bytes = 0
        self._owed_bytes = 0
        ready = self._ready
        if ready:
            if self._shared_batches:
                self._shared_batches -= 1
                max_bytes = min(max_bytes, SHARED_BATCH_BYTES)
            max_bytes = max(max_bytes, size + 1)
        while ready and size < max_bytes and self.window_bytes > 0:
            stream = ready.popleft()
            if stream.pending_bytes:
                size += self._emit_frame(stream, output)
            else:
                self._dead -= 1
        return output

    def _emit_frame(self, stream: Stream, output: list[bytes | memoryview]) -> int:
        """One DATA frame of this stream, its place in the next round, and what follows the last one."""
        pending = stream.pending_bytes
        length = min(
            pending, self._max_data_frame_bytes, self.max_frame_bytes, stream.send_window_bytes, self.window_bytes
        )
        is_last = length == pending and stream.end_queued
        flags = END_STREAM if is_last and stream.trailer_frames is None else 0
        output.append(frame_header(length, DATA, flags, stream.id))
        assert stream.queue is not None
        _take(stream.queue, length, output)
        self._spend(stream, length)
        self._pending_bytes -= length
        stream.pending_bytes = pending = pending - length
        size = 9 + length
        if pending:
            self._wait_for_turn(stream)
            if 2 * pending > stream.high_mark_bytes:
                return size
        else:
            stream.queue = None
        stream.high_mark_bytes = pending
        self._drained[stream] = None
        if is_last:
            if stream.trailer_frames is not None:
                output.append(stream.trailer_frames)
                size += len(stream.trailer_frames)
                stream.trailer_frames = None
            self._end(stream)
        return size

    def take_drained(self) -> list[Stream]:
        """Streams of which half of the queue, or the end, has left since the last call."""
        drained = list(self._drained)
        self._drained.clear()
        return drained

    # --- credit ---------------------------------------------------------------------------------

    def add_connection_credit(self, increment: int) -> None:
        """WINDOW_UPDATE on stream 0. Raises `RemoteProtocolError` above 2^31-1 (RFC 9113 §6.9.1)."""
        if self.window_bytes + increment > LARGEST_WINDOW_BYTES:
            raise RemoteProtocolError("the connection window exceeds 2^31-1", code=ErrorCode.FLOW_CONTROL_ERROR)
        self.window_bytes += increment
        self._connection_stalled_since = None

    def add_credit(self, stream: Stream, increment: int) -> bool:
        """Credit for a stream. False where its window would exceed 2^31-1 (RFC 9113 §6.9.1)."""
        before = stream.send_window_bytes
        after = before + increment
        if after > LARGEST_WINDOW_BYTES:
            return False
        stream.send_window_bytes = after
        if stream.pending_bytes and after > 0:
            if after >= min(stream.pending_bytes, PROGRESS_BYTES):
                self._stalled.pop(stream, None)
            if before <= 0:
                self._ready.append(stream)
        return True

    def shift_windows(self, delta: int) -> None:
        """The peer changed its initial window: move all windows, below zero where need be (RFC 9113 §6.9.2).

        Raises `RemoteProtocolError` where one would exceed 2^31-1.
        """
        for stream in self._streams.values():
            if delta < 0:
                stream.send_window_bytes += delta
            elif not self.add_credit(stream, delta):
                raise RemoteProtocolError(
                    f"SETTINGS makes the window of stream {stream.id} exceed 2^31-1", code=ErrorCode.FLOW_CONTROL_ERROR
                )
        if delta < 0:
            self._bury()

    # --- stalls ---------------------------------------------------------------------------------

    def observe_time(self, now: float) -> None:
        """Date the stalls that began since the last call: sending itself knows no time."""
        if self._newly_stalled:
            for stream in self._newly_stalled:
                if stream in self._stalled:
                    del self._stalled[stream]
                    self._stalled[stream] = now
            self._newly_stalled.clear()
        if not self._is_shut:
            self._connection_stalled_since = None
        elif self._connection_stalled_since is None:
            self._connection_stalled_since = now

    @property
    def _is_shut(self) -> bool:
        """Whether the connection window is all that holds DATA back."""
        return self.window_bytes <= 0 and len(self._ready) > self._dead

    def stall_deadline(self, now: float) -> float | None:
        """When a stall next comes to its end; for one that is not dated yet, a bound that is not too late by much."""
        deadline = math.inf
        if self._is_shut:
            deadline = now if self._connection_stalled_since is None else self._connection_stalled_since
        if self._stalled:
            since = next(iter(self._stalled.values()))
            deadline = min(deadline, since if since != math.inf else now)
        deadline += self._stall_seconds
        return None if deadline == math.inf else deadline

    def connection_is_stalled(self, now: float) -> bool:
        """Whether the connection window has been shut for too long with something to send."""
        since = self._connection_stalled_since
        return since is not None and now - since >= self._stall_seconds

    def stalled_streams(self, now: float) -> list[Stream]:
        """Streams whose window has been shut for too long."""
        stalled: list[Stream] = []
        for stream, since in self._stalled.items():
            if now - since < self._stall_seconds:
                break
            stalled.append(stream)
        return stalled


def _take(queue: deque[bytes | memoryview], length: int, output: list[bytes | memoryview]) -> None:
    """Move ``length`` bytes from the queue to the output; a chunk that is split goes on as a view."""
    while length:
        chunk = queue.popleft()
        if len(chunk) > length:
            view = chunk if isinstance(chunk, memoryview) else memoryview(chunk)
            queue.appendleft(view[length:])
            chunk = view[:length]
        output.append(chunk)
        length -= len(chunk)
