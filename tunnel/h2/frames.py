"""The frame layer of HTTP/2 (RFC 9113 §4, §6): numbers, and frames as bytes.

Only what is sent is built here; received frames are taken apart where they are handled, in one loop over the buffer
(`tunnel.h2.receiving`), since a class for each frame costs more than everything else that is done with it.
"""

from __future__ import annotations

import struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a requester sends first (RFC 9113 §3.4)."""

FRAME_HEADER_BYTES: Final = 9
DEFAULT_MAX_FRAME_BYTES: Final = 16_384
"""SETTINGS_MAX_FRAME_SIZE before any SETTINGS, and the least that it may be (RFC 9113 §6.5.2)."""
LARGEST_MAX_FRAME_BYTES: Final = 2**24 - 1
DEFAULT_WINDOW_BYTES: Final = 65_535
"""Both flow-control windows before any SETTINGS or WINDOW_UPDATE (RFC 9113 §6.9.2)."""
LARGEST_WINDOW_BYTES: Final = 2**31 - 1
LARGEST_STREAM_ID: Final = 2**31 - 1

DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY_FLAG: Final = 0x20

HEADER: Final = struct.Struct(">HBBBI")
"""A frame header: the 24-bit length as 16 and 8 bits, type, flags, stream identifier."""

_pack_header = HEADER.pack
_pack_short_frame = struct.Struct(">HBBBII").pack

SETTINGS_ACK: Final = _pack_header(0, 0, SETTINGS, ACK, 0)


def frame_header(length: int, kind: int, flags: int, stream_id: int) -> bytes:
    """The nine bytes in front of a payload of ``length`` bytes."""
    return _pack_header(length >> 8, length & 0xFF, kind, flags, stream_id)


def header_block_frames(stream_id: int, block: bytes, *, ended: bool, max_frame_bytes: int) -> bytes:
    """A field block as HEADERS and, where it does not fit one frame, CONTINUATION (RFC 9113 §6.2, §6.10)."""
    flags = END_STREAM if ended else 0
    length = len(block)
    if length <= max_frame_bytes:
        return _pack_header(length >> 8, length & 0xFF, HEADERS, flags | END_HEADERS, stream_id) + block
    parts = [frame_header(max_frame_bytes, HEADERS, flags, stream_id), block[:max_frame_bytes]]
    for start in range(max_frame_bytes, length, max_frame_bytes):
        piece = block[start : start + max_frame_bytes]
        last = start + max_frame_bytes >= length
        parts += (frame_header(len(piece), CONTINUATION, END_HEADERS if last else 0, stream_id), piece)
    return b"".join(parts)


def rst_stream_frame(stream_id: int, code: int) -> bytes:
    """RST_STREAM (RFC 9113 §6.4)."""
    return _pack_short_frame(0, 4, RST_STREAM, 0, stream_id, code)


def window_update_frame(stream_id: int, increment: int) -> bytes:
    """WINDOW_UPDATE (RFC 9113 §6.9); stream 0 is the connection."""
    return _pack_short_frame(0, 4, WINDOW_UPDATE, 0, stream_id, increment)


def ping_frame(payload: bytes, *, ack: bool = False) -> bytes:
    """PING with its eight opaque bytes (RFC 9113 §6.7)."""
    return frame_header(8, PING, ACK if ack else 0, 0) + payload


def goaway_frame(last_stream_id: int, code: int, debug: bytes) -> bytes:
    """GOAWAY (RFC 9113 §6.8)."""
    return frame_header(8 + len(debug), GOAWAY, 0, 0) + struct.pack(">II", last_stream_id, code) + debug


def settings_frame(values: dict[int, int]) -> bytes:
    """SETTINGS (RFC 9113 §6.5)."""
    payload = b"".join(struct.pack(">HI", setting, value) for setting, value in values.items())
    return frame_header(len(payload), SETTINGS, 0, 0) + payload
