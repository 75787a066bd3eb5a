"""SPDY/3.1, as much of it as port-forwarding needs, at the server's end. Pure.

Its flow control is left out, as in the client that kubectl uses; what is received is used up at once. The frames are
those of the SPDY/3.1 draft, §2.2 and §2.6.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib

from sandbox.documents import packaged

FRAME_BYTES = 1_048_576
HEADER_BYTES = 65_536

DATA, SYN_STREAM, SYN_REPLY, RST_STREAM = range(4)
_FIN = 0x01
_WORDS = [word.replace("_", " ").encode() for word in packaged("spdy.yaml")["words"].split()]
DICTIONARY = b"".join(struct.pack("!I", len(word)) + word for word in _WORDS) + packaged("spdy.yaml")["text"].encode()


class SpdyError(Exception):
    """The other side broke the protocol."""


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """What came on a stream: DATA with data, SYN_STREAM with headers, or RST_STREAM."""

    kind: int
    stream_id: int
    data: bytes = b""
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    is_last: bool = False


class SpdyServer:
    """Bytes in, frames out; and the frames to send back."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._deflate = zlib.compressobj(zdict=DICTIONARY)

    def receive(self, data: bytes) -> list[Frame]:
        """Take bytes as they come. Raises `SpdyError`."""
        self._received += data
        frames: list[Frame] = []
        while len(self._received) >= 8:
            first, second = struct.unpack_from("!II", self._received)
            length, is_last = second & 0xFFFFFF, bool(second >> 24 & _FIN)
            if length > FRAME_BYTES:
                raise SpdyError(f"a frame of {length} bytes")
            if len(self._received) < 8 + length:
                break
            payload = bytes(self._received[8 : 8 + length])
            del self._received[: 8 + length]
            if first >> 31:
                frames += self._control(first & 0xFFFF, payload, is_last=is_last)
            else:
                frames.append(Frame(DATA, first, data=payload, is_last=is_last))
        return frames

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

    def _control(self, kind: int, payload: bytes, *, is_last: bool) -> list[Frame]:
        try:
            if kind in (SYN_STREAM, RST_STREAM):
                (stream_id,) = struct.unpack_from("!I", payload)
                headers = self._headers(payload[10:]) if kind == SYN_STREAM else {}
                return [Frame(kind, stream_id, headers=headers, is_last=is_last)]
        except (struct.error, zlib.error, UnicodeDecodeError) as error:
            raise SpdyError(str(error)) from error
        return []  # the others mean nothing here; kubectl sends no PING through a WebSocket

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
