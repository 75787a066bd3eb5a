"""What both directions of a connection share: the table of streams, and the ways in which a stream ends.

A stream is in the table from its head until both ends have been sent, or it was reset. What comes for a stream outside
of the table is judged by its id: never opened, reset by us a moment ago, or over.
"""

from __future__ import annotations

import enum

from tunnel.errors import ErrorCode
from tunnel.h2.config import EngineConfig
from tunnel.h2.defences import Defences
from tunnel.h2.events import Event, StreamWasReset
from tunnel.h2.frames import DEFAULT_WINDOW_BYTES, rst_stream_frame, window_update_frame
from tunnel.h2.sending import Sender
from tunnel.h2.settings import PeerSettings
from tunnel.h2.stream import Stream
from tunnel.h2.windows import CreditPolicy, WindowBudget


class Role(enum.Enum):
    """Who opens streams. Not who dialled: on a tunnel the acceptor of the transport is the requester."""

    REQUESTER = "requester"
    """The HTTP/2 client: opens streams, takes responses."""
    RESPONDER = "responder"
    """The HTTP/2 server: takes requests, answers."""


class ConnectionState:
    """The state of one connection; see the module's docstring."""

    __slots__ = (
        "account",
        "bad_streams",
        "config",
        "credit",
        "defences",
        "events",
        "failed",
        "forgotten",
        "goaway_received_id",
        "goaway_sent_id",
        "highest_peer_stream_id",
        "is_responder",
        "next_stream_id",
        "now",
        "peer",
        "pings_unanswered",
        "received_data_bytes",
        "resets_received",
        "sender",
        "settings_acknowledged",
        "settings_received",
        "streams",
        "streams_refused",
        "unfinished",
    )

    def __init__(self, role: Role, config: EngineConfig, budget: WindowBudget, now: float) -> None:
        self.is_responder = role is Role.RESPONDER
        self.config = config
        self.now = now
        """The time of the last call that told it."""
        self.peer = PeerSettings()
        self.settings_received = False
        self.settings_acknowledged = False
        self.streams: dict[int, Stream] = {}
        self.sender = Sender(
            self.streams,
            data_frame_bytes=config.data_frame_bytes,
            max_control_bytes=config.max_control_bytes,
            stall_seconds=config.send_stall_seconds,
        )
        self.account = budget.open_account()
        self.credit = CreditPolicy(config, self.account)
        self.defences = Defences(config, now)
        self.events: list[Event] = []
        """What the current call has to report."""
        self.failed = False
        self.next_stream_id = 1
        self.highest_peer_stream_id = 0
        self.goaway_sent_id: int | None = None
        self.goaway_received_id: int | None = None
        self.forgotten: dict[int, None] = {}
        """Streams that we reset, the oldest first: frames that were under way are ignored."""
        self.unfinished = 0
        """Responder: requests reported and not yet released."""
        self.pings_unanswered = 0
        self.received_data_bytes = 0
        self.streams_refused = 0
        self.resets_received = 0
        self.bad_streams = 0

    # --- streams --------------------------------------------------------------------------------

    def add_stream(self, stream_id: int) -> Stream:
        """A new stream in the table."""
        config = self.config
        stream = Stream(
            stream_id,
            send_window_bytes=self.peer.initial_window_bytes,
            receive_window_bytes=config.initial_window_bytes,
            now=self.now,
        )
        if not self.settings_acknowledged and config.initial_window_bytes < DEFAULT_WINDOW_BYTES:
            # RFC 9113 §6.9.2: until it has seen our SETTINGS, the peer goes by the default.
            stream.receive_window_bytes = DEFAULT_WINDOW_BYTES
        self.streams[stream_id] = stream
        return stream

    def end_remote(self, stream: Stream) -> None:
        """END_STREAM arrived."""
        stream.remote_ended = True
        if stream.local_ended:
            del self.streams[stream.id]
        self.settle_growth(stream)

    def reset_by_us(self, stream: Stream, code: int, *, owed: bool) -> None:
        """Queue RST_STREAM and drop the stream. ``owed``: because of something that the peer did."""
        self.drop(stream)
        self.remember_reset(stream.id)
        frame = rst_stream_frame(stream.id, code)
        if owed:
            self.sender.queue_owed(frame)
        else:
            self.sender.queue(frame)

    def fault(self, stream: Stream, code: int, *, announced: bool = True) -> None:
        """The peer broke a rule on one stream: reset it, and count that (CVE-2025-8671). Raises `BudgetExceeded`."""
        self.bad_streams += 1
        self.reset_by_us(stream, code, owed=True)
        if announced:
            self.events.append(StreamWasReset(stream, code, remote=False, refused=False))
        self.defences.take_reset(self.unfinished, self.now)

    def drop(self, stream: Stream) -> None:
        """The stream is dead: out of the table, nothing queued, nothing held against the budget."""
        stream.reset = True
        self.streams.pop(stream.id, None)
        self.sender.drop(stream)
        if stream.unconsumed_bytes:
            self.account.charge(-stream.unconsumed_bytes)
            stream.unconsumed_bytes = 0
        self.settle_growth(stream)

    def settle_growth(self, stream: Stream) -> None:
        """The stream takes no more data: what its window had grown by goes back to the budget."""
        growth_bytes = stream.window_target_bytes - self.config.initial_window_bytes
        if growth_bytes:
            stream.window_target_bytes = self.config.initial_window_bytes
            self.account.charge(-growth_bytes)

    def remember_reset(self, stream_id: int) -> None:
        """Ignore what still comes for this stream, as long as there is room to remember it."""
        forgotten = self.forgotten
        forgotten[stream_id] = None
        if len(forgotten) > self.config.remembered_resets:
            del forgotten[next(iter(forgotten))]

    def is_idle(self, stream_id: int) -> bool:
        """Whether nobody has opened this stream yet (RFC 9113 §5.1.1)."""
        if self.is_responder:
            return stream_id % 2 == 0 or stream_id > self.highest_peer_stream_id
        return stream_id % 2 == 0 or stream_id >= self.next_stream_id

    def is_beyond_goaway(self, stream_id: int) -> bool:
        """Whether our GOAWAY has told the peer that this stream of its own is not served."""
        return self.is_responder and self.goaway_sent_id is not None and stream_id > self.goaway_sent_id

    # --- credit ---------------------------------------------------------------------------------

    def consumed(self, stream: Stream, size: int) -> None:
        """Bytes of a stream were taken (or are padding, or dropped): give credit once it is half a window."""
        stream.uncredited_bytes += size
        if 2 * stream.uncredited_bytes >= stream.window_target_bytes:
            self.sender.queue(window_update_frame(stream.id, self.credit.increment(stream, self.now)))

    def shed(self) -> None:
        """Over twice the process's budget: reset the stream whose consumer has been idle the longest."""
        holding = [stream for stream in self.streams.values() if stream.unconsumed_bytes]
        if holding:
            stalled = min(holding, key=_stalled_since)
            self.reset_by_us(stalled, ErrorCode.ENHANCE_YOUR_CALM, owed=False)
            self.events.append(StreamWasReset(stalled, ErrorCode.ENHANCE_YOUR_CALM, remote=False, refused=False))


def _stalled_since(stream: Stream) -> float:
    return stream.stalled_since
