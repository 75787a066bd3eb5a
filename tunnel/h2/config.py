"""Every setting and limit of an engine, and the three sets of them that are in use.

A limit says where its number comes from. `docs/protocol.md` has the table of what goes on the wire.
"""

from __future__ import annotations

import dataclasses
import math

from tunnel.h2.frames import DEFAULT_MAX_FRAME_BYTES

KIB = 1024
MIB = 1024 * KIB


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A token bucket: ``burst`` at once, refilled by ``per_second``. An infinite burst is no limit."""

    burst: float
    per_second: float


UNLIMITED = Budget(burst=math.inf, per_second=0.0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Settings that are announced, and limits that are not. Sizes in bytes, times in seconds."""

    # Announced in SETTINGS (RFC 9113 §6.5.2, RFC 8441 §3).
    header_table_bytes: int = 0
    """Our decoder's dynamic table. 0: a block means the same on its own, and its lines may be cached by their bytes."""
    max_frame_bytes: int = 64 * KIB
    """The largest frame that we take."""
    initial_window_bytes: int = 64 * KIB
    """What a new stream may send before anybody has read a byte of it."""
    max_header_list_bytes: int = 256 * KIB
    """Above it, `HeadTooLarge`."""
    max_concurrent_streams: int = 16_384
    """Responder: unfinished requests at a time; above it REFUSED_STREAM."""
    enable_connect_protocol: bool = False
    """Responder: extended CONNECT (RFC 8441) is understood."""

    # Receiving.
    connection_window_bytes: int = 16 * MIB
    """Returned as bytes arrive, so it bounds what is on the way, not what is held. 16 MiB fills 1.3 Gbit/s at 100
    ms."""
    raised_window_bytes: int = 256 * KIB
    """The window of a stream once its consumer has taken half of the initial one."""
    max_window_bytes: int = 8 * MIB
    """How far the window of a stream follows bandwidth × delay; half the connection's, so that none can fill it
    alone."""
    max_header_lines: int = 1_000
    """Field lines in a head; above it, `HeadTooLarge`."""
    max_header_block_bytes: int = 1 * MIB
    """A field block is decoded up to here, compressed or not, to keep HPACK's state; above it COMPRESSION_ERROR."""
    line_cache_bytes: int = 16 * KIB
    """Decoded header lines that are remembered; ten times as much in memory. Holds the usual lines of a cluster's
    clients."""
    max_interim_heads: int = 32
    """1xx heads before the final one; twice of what is passed on."""
    max_continuation_frames: int = 64
    """CONTINUATION frames of one block: 1 MiB in frames of 16 KiB, the least that a peer must be able to send."""

    # Sending.
    data_frame_bytes: int = 64 * KIB
    """The largest DATA frame that we send: with 1 MiB, small requests beside a download took fifteen times as long."""
    max_control_bytes: int = 1 * MIB
    """Acknowledgements, resets and credit that the peer made us queue and does not read; 80,000 resets."""

    # Deadlines.
    settings_seconds: float = 10.0
    """For the peer's preface and SETTINGS, and for its acknowledgement of ours (RFC 9113 §6.5.3)."""
    header_block_seconds: float = 10.0
    """From the first byte of a HEADERS frame to END_HEADERS."""
    send_stall_seconds: float = 14_400.0
    """Without credit for this long, a stream that has something to send is reset; with the connection's window shut, the
    connection ends. Long, because a paused `kubectl logs -f | less` looks the same, and four hours are what
    kube-apiserver allows: what a stalled stream holds is bounded by its window, and shed when the process's budget is
    exceeded. Infinite: never."""

    # Defences; see `tunnel.h2.defences`.
    pings: Budget = Budget(burst=1_000, per_second=100)
    settings_frames: Budget = Budget(burst=100, per_second=10)
    empty_data_frames: Budget = Budget(burst=10_000, per_second=1_000)
    window_updates: Budget = UNLIMITED
    """Beyond those that our own DATA earned; see `tunnel.h2.defences.WINDOW_UPDATE_EARNED_BYTES`."""
    idle_frames: Budget = Budget(burst=10_000, per_second=1_000)
    """PRIORITY and frames of unknown type: valid, and of no use to us."""
    large_heads: Budget = Budget(burst=1_000, per_second=10)
    """Heads for which `HeadTooLarge` is reported: up to a megabyte each is decoded for nothing."""
    resets: Budget = UNLIMITED
    """RST_STREAM from the peer, and from us because of what it did, at a flat rate."""
    resets_beyond_peak: float = math.inf
    """Resets in `resets_window_seconds` beyond twice the peak of unfinished requests in that time."""
    resets_window_seconds: float = 10.0
    remembered_resets: int = 20_000
    """Streams that we reset whose late frames are ignored. More than a tunnel's streams: all may be cancelled at
    once."""


TUNNEL_REQUESTER = EngineConfig()
"""kas on a tunnel, and a kas that asks its peer. What a responder can reset is bounded by what we ask of it."""

TUNNEL_RESPONDER = EngineConfig(enable_connect_protocol=True, resets_beyond_peak=50_000)
"""agentk on a tunnel, and a kas that is asked by its peer. The tunnel carries everybody: what is bounded is unfinished
work. Ten thousand watches that are cancelled at once are twice covered by the peak that they themselves made. Beyond
that are more cancellations than the callers of an honest kas bring about in ten seconds, since one that leaves a
thousand times would otherwise cut off everybody else."""

FRONT_RESPONDER = EngineConfig(
    header_table_bytes=4_096,
    max_frame_bytes=DEFAULT_MAX_FRAME_BYTES,
    initial_window_bytes=256 * KIB,
    connection_window_bytes=1 * MIB,
    max_window_bytes=1 * MIB,
    max_header_list_bytes=64 * KIB,
    max_concurrent_streams=250,
    max_header_lines=200,
    line_cache_bytes=4 * KIB,
    max_control_bytes=128 * KIB,
    pings=Budget(burst=200, per_second=20),
    settings_frames=Budget(burst=50, per_second=1),
    empty_data_frames=Budget(burst=200, per_second=20),
    window_updates=Budget(burst=2_000, per_second=200),
    idle_frames=Budget(burst=500, per_second=50),
    large_heads=Budget(burst=20, per_second=1),
    resets=Budget(burst=500, per_second=50),
    remembered_resets=1_000,
)
"""The public side of kas: one caller to a connection, so flat budgets. A client that cancels all of its 250 streams
twice in a row is within them."""
