"""SPDY/3.1, as much of it as port-forwarding needs, at the server's end. Pure.

Its flow control is left out, as in the client that kubectl uses; what is received is used up at once. The frames are
those of the SPDY/3.1 draft, §2.2 and §2.6.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib

FRAME_BYTES = 1_048_576
HEADER_BYTES = 65_536

SYN_STREAM, SYN_REPLY, RST_STREAM, PING = 1, 2, 3, 6
_FIN = 0x01
_WORDS = """\
options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow \
authorization cache-control connection content-base content-encoding content-language content-length content-location \
content-md5 content-range content-type date etag expect expires from host if-match if-modified-since if-none-match \
if-range if-unmodified-since last-modified location max-forwards pragma proxy-authenticate proxy-authorization range \
referer retry-after server te trailer transfer-encoding upgrade user-agent vary via warning www-authenticate method get \
status 200_OK version HTTP/1.1 url public set-cookie keep-alive origin"""
_TAIL = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritative "
    "Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 Internal "
    "Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, "
    "Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,"
    "text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
DICTIONARY = (
    b"".join(struct.pack("!I", len(word)) + word.replace("_", " ").encode() for word in _WORDS.split()) + _TAIL.encode()
)
"""What header blocks are compressed with, draft §2.6.10.1."""


class SpdyError(Exception):
    """The other side broke the protocol."""


@dataclasses.dataclass(frozen=True, slots=True)
class StreamOpened:
    """SYN_STREAM: a new stream with its headers."""

    stream_id: int
    headers: dict[str, str]
    is_last: bool


@dataclasses.dataclass(frozen=True, slots=True)
class DataReceived:
    """DATA on a stream."""

    stream_id: int
    data: bytes
    is_last: bool


@dataclasses.dataclass(frozen=True, slots=True)
class StreamEnded:
    """RST_STREAM."""

    stream_id: int


class SpdyServer:
    """Bytes in, events out; and the frames to send back."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._deflate = zlib.compressobj(zdict=DICTIONARY)
        self._answers = bytearray()

    def receive(self, data: bytes) -> list[StreamOpened | DataReceived | StreamEnded]:
        """Take bytes as they come. Raises `SpdyError`."""
        self._received += data
        events: list[StreamOpened | DataReceived | StreamEnded] = []
        while len(self._received) >= 8:
            first, second = struct.unpack_from("!II", self._received)
            length, flags = second & 0xFFFFFF, second >> 24
            if length > FRAME_BYTES:
                raise SpdyError(f"a frame of {length} bytes")
            if len(self._received) < 8 + length:
                break
            payload = bytes(self._received[8 : 8 + length])
            del self._received[: 8 + length]
            if first >> 31:
                events += self._control(first & 0xFFFF, payload, is_last=bool(flags & _FIN))
            else:
                events.append(DataReceived(first, payload, bool(flags & _FIN)))
        return events

    def take_answers(self) -> bytes:
        """Frames that the protocol itself demands; to be sent before anything else."""
        answers = bytes(self._answers)
        self._answers.clear()
        return answers

    def reply(self, stream_id: int) -> bytes:
        """SYN_REPLY without headers."""
        block = self._deflate.compress(struct.pack("!I", 0)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        return _control_frame(SYN_REPLY, struct.pack("!I", stream_id) + block)

    def data(self, stream_id: int, data: bytes, *, is_last: bool = False) -> bytes:
        """DATA, in one frame."""
        return struct.pack("!II", stream_id, (_FIN << 24 if is_last else 0) | len(data)) + data

    def reset(self, stream_id: int) -> bytes:
        """RST_STREAM with REFUSED_STREAM."""
        return _control_frame(RST_STREAM, struct.pack("!II", stream_id, 3))

    def _control(self, kind: int, payload: bytes, *, is_last: bool) -> list[StreamOpened | DataReceived | StreamEnded]:
        try:
            if kind == SYN_STREAM:
                (stream_id,) = struct.unpack_from("!I", payload)
                return [StreamOpened(stream_id, self._headers(payload[10:]), is_last)]
            if kind == RST_STREAM:
                return [StreamEnded(struct.unpack_from("!I", payload)[0])]
        except (struct.error, zlib.error, UnicodeDecodeError) as error:
            raise SpdyError(str(error)) from error
        if kind == PING and len(payload) == 4 and payload[3] & 1 and len(self._answers) < FRAME_BYTES:
            self._answers += _control_frame(PING, payload)
        return []  # SETTINGS, WINDOW_UPDATE, GOAWAY and what is unknown mean nothing here

    def _headers(self, block: bytes) -> dict[str, str]:
        plain = self._inflate.decompress(block, HEADER_BYTES)
        if self._inflate.unconsumed_tail:
            raise SpdyError("a header block that is too large")
        (count,) = struct.unpack_from("!I", plain)
        texts, position = [], 4
        for _ in range(2 * count):
            (length,) = struct.unpack_from("!I", plain, position)
            texts.append(plain[position + 4 : position + 4 + length].decode())
            position += 4 + length
        return dict(zip(texts[::2], texts[1::2], strict=True))


def _control_frame(kind: int, payload: bytes) -> bytes:
    return struct.pack("!HHI", 0x8003, kind, len(payload)) + payload
