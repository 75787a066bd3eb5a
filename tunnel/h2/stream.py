"""One HTTP/2 stream as the engine keeps it: two directions, two windows, and the bytes that wait to be sent.

A plain record. What moves it is in `tunnel.h2.heads`, `tunnel.h2.receiving` and `tunnel.h2.sending`.
"""

from __future__ import annotations

from collections import deque
from typing import Any

NO_LENGTH = -1
"""`Stream.remaining_bytes` where no Content-Length binds the body."""


class Stream:
    """State of one stream. The shell reads the first group and sets ``owner``; the rest is the engine's.

    States of RFC 9113 §5.1: "open" is neither end, "half-closed (local)" is ``local_ended``, "half-closed (remote)" is
    ``remote_ended``, "closed" is both or ``reset``.
    """

    __slots__ = (
        "awaits_head",
        "credited_at",
        "discards",
        "end_queued",
        "has_no_body",
        "high_mark_bytes",
        "id",
        "interim_heads",
        "is_connect",
        "local_ended",
        "owner",
        "pending_bytes",
        "queue",
        "receive_window_bytes",
        "released",
        "remaining_bytes",
        "remote_ended",
        "reset",
        "send_window_bytes",
        "stalled_since",
        "trailer_frames",
        "unconsumed_bytes",
        "uncredited_bytes",
        "window_target_bytes",
    )

    def __init__(self, stream_id: int, *, send_window_bytes: int, receive_window_bytes: int, now: float) -> None:
        self.id = stream_id
        self.owner: Any = None
        """The shell's object for this stream."""
        self.pending_bytes = 0
        """Bytes handed to `Engine.send_data` that `Engine.gather` has not given out."""
        self.local_ended = False
        """Our END_STREAM has left the queue of this stream."""
        self.remote_ended = False
        """The peer's END_STREAM has arrived."""
        self.reset = False
        """RST_STREAM was sent or received, or the stream was refused by GOAWAY."""

        # Sending.
        self.end_queued = False
        """The application has ended this direction; `local_ended` follows when the queue is empty."""
        self.queue: deque[bytes | memoryview] | None = None
        """What is pending. Ten thousand watches have nothing pending, and an empty deque takes 700 bytes."""
        self.trailer_frames: bytes | None = None
        self.send_window_bytes = send_window_bytes
        """May be negative after the peer has shrunk its initial window (RFC 9113 §6.9.2)."""
        self.high_mark_bytes = 0
        """The most that was pending since the stream was last reported as drained."""

        # Receiving.
        self.receive_window_bytes = receive_window_bytes
        """What the peer may still send without further credit."""
        self.window_target_bytes = receive_window_bytes
        """What credit outstanding, bytes held for the consumer and bytes about to be credited add up to."""
        self.unconsumed_bytes = 0
        """Reported in `DataReceived` and not yet given back with `Engine.consume`."""
        self.uncredited_bytes = 0
        """Consumed, but not yet announced in a WINDOW_UPDATE."""
        self.credited_at = now
        self.stalled_since = now
        """When the consumer last took something, or the first byte arrived for it."""
        self.remaining_bytes = NO_LENGTH
        """How much of the declared Content-Length is still to come."""

        # The exchange.
        self.awaits_head = False
        """Requester: the final response head has not arrived."""
        self.interim_heads = 0
        """Requester: how many 1xx heads have arrived."""
        self.has_no_body = False
        """Requester: the answer to this request (HEAD) never has a body, whatever its Content-Length says."""
        self.is_connect = False
        """Requester: a positive answer opens a byte stream, to which no Content-Length applies (RFC 9110 §9.3.6)."""
        self.discards = False
        """The head was too large: what follows is credited and dropped."""
        self.released = False
        """Responder: the task has ended, the concurrency slot is free."""

    def __repr__(self) -> str:
        return (
            f"<Stream {self.id} pending={self.pending_bytes} local_ended={self.local_ended} "
            f"remote_ended={self.remote_ended} reset={self.reset}>"
        )
