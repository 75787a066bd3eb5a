"""Message bodies of HTTP/1.1 (RFC 9112 §6, §7): decoders that are fed with bytes, and the chunked encoding.

A decoder takes what was read and returns the content in it, in as few pieces and copies as the framing allows (often
the very object that was read). It does no I/O and does not decide what a broken body means for the connection.
"""

from __future__ import annotations

import re
from typing import Protocol

from tunnel.errors import RemoteProtocolError
from tunnel.http1.heads import CRLF, encode_fields, parse_fields
from tunnel.messages import Fields

TRAILER_BYTES = 16_384
"""The trailer section; larger ones are refused."""
TRAILER_LINES = 100
EXTENSION_BYTES = 16_384
"""Chunk extensions of one message, all together; no one needs any."""

_EXTENSION = rb"(;[\t\x20-\x7e\x80-\xff]{0,256})"
_FIRST_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})" + _EXTENSION + rb"?\r\n")
_NEXT_CHUNK = re.compile(rb"\r\n([0-9A-Fa-f]{1,15})" + _EXTENSION + rb"?\r\n")
# A beginning of the above: anything else need not be waited for.
_FIRST_PARTIAL = re.compile(rb"(?:[0-9A-Fa-f]{1,15}" + _EXTENSION + rb"?\r?)?")
_NEXT_PARTIAL = re.compile(rb"\r(?:\n(?:[0-9A-Fa-f]{1,15}" + _EXTENSION + rb"?\r?)?)?")


class BodyDecoder(Protocol):
    """Finds the content of one message, and its end."""

    ended: bool
    """The end was found, and it was clean."""
    leftover: bytes
    """Once ended: what was fed beyond the end."""
    trailers: Fields
    """Once ended: the trailer section."""

    def feed(self, data: bytes) -> bytes:
        """The content in these bytes; may be empty. Raises `RemoteProtocolError`. Not to be called once ended."""
        ...

    def close(self) -> bool:
        """The connection was closed in order: says whether that ends the message cleanly."""
        ...


class LengthDecoder:
    """A body of ``length_bytes``."""

    __slots__ = ("ended", "leftover", "remaining_bytes", "trailers")

    def __init__(self, length_bytes: int) -> None:
        self.remaining_bytes = length_bytes
        self.ended = length_bytes == 0
        self.leftover = b""
        self.trailers: Fields = []

    def feed(self, data: bytes) -> bytes:
        """See `BodyDecoder`."""
        remaining = self.remaining_bytes
        if len(data) < remaining:
            self.remaining_bytes = remaining - len(data)
            return data
        self.remaining_bytes = 0
        self.ended = True
        if len(data) == remaining:
            return data
        self.leftover = data[remaining:]
        return data[:remaining]

    def close(self) -> bool:
        """A body of known length does not end by closing, unless it had ended before."""
        return self.ended


class UntilCloseDecoder:
    """A body that lasts until the connection is closed; only responses have such."""

    __slots__ = ("ended", "leftover", "trailers")

    def __init__(self) -> None:
        self.ended = False
        self.leftover = b""
        self.trailers: Fields = []

    def feed(self, data: bytes) -> bytes:
        """See `BodyDecoder`."""
        return data

    def close(self) -> bool:
        """Ends the message."""
        self.ended = True
        return True


class ChunkedDecoder:
    """A body in chunks, with trailers (RFC 9112 §7.1).

    Sizes are one to fifteen hexadecimal digits and nothing else. Extensions are ignored within a limit.
    """

    __slots__ = (
        "_after_data",
        "_extension_bytes",
        "_held",
        "_in_trailers",
        "_remaining_bytes",
        "ended",
        "leftover",
        "trailers",
    )

    def __init__(self) -> None:
        self.ended = False
        self.leftover = b""
        self.trailers: Fields = []
        self._held = b""  # the beginning of a size line or of the trailers; bounded by the patterns and TRAILER_BYTES
        self._remaining_bytes = 0
        self._after_data = False
        self._in_trailers = False
        self._extension_bytes = 0

    def feed(self, data: bytes) -> bytes:
        """See `BodyDecoder`."""
        if self._held:
            data = self._held + data
            self._held = b""
        spans: list[tuple[int, int]] = []
        position = 0
        end = len(data)
        while position < end:
            if self._remaining_bytes:
                stop = min(position + self._remaining_bytes, end)
                self._remaining_bytes -= stop - position
                spans.append((position, stop))
                position = stop
            elif self._in_trailers:
                self._read_trailers(data, position)
                break
            else:
                position = self._read_size(data, position)
        if not spans:
            return b""
        if len(spans) == 1:
            return data[spans[0][0] : spans[0][1]]
        view = memoryview(data)
        return b"".join([view[start:stop] for start, stop in spans])

    def _read_size(self, data: bytes, position: int) -> int:
        """Read the line before a chunk, with the end of the chunk before it; returns where to go on."""
        match = (_NEXT_CHUNK if self._after_data else _FIRST_CHUNK).match(data, position)
        if match is None:
            partial = _NEXT_PARTIAL if self._after_data else _FIRST_PARTIAL
            if not partial.fullmatch(data, position):
                raise RemoteProtocolError("malformed chunked body: not the beginning of a chunk")
            self._held = data[position:]
            return len(data)
        digits, extension = match.groups()
        if extension is not None:
            self._extension_bytes += len(extension)
            if self._extension_bytes > EXTENSION_BYTES:
                raise RemoteProtocolError("malformed chunked body: too many chunk extensions")
        self._remaining_bytes = int(digits, 16)
        self._after_data = True
        self._in_trailers = self._remaining_bytes == 0
        return match.end()

    def _read_trailers(self, data: bytes, position: int) -> None:
        """Read what follows the last chunk, or keep it until there is more."""
        if data.startswith(CRLF, position):
            self.ended = True
            self.leftover = data[position + 2 :]
            return
        end = data.find(b"\r\n\r\n", position)
        if (len(data) if end < 0 else end) - position > TRAILER_BYTES:
            raise RemoteProtocolError(f"malformed chunked body: trailers larger than {TRAILER_BYTES} bytes")
        if end < 0:
            self._held = data[position:]
            return
        self.trailers = parse_fields(data[position : end + 2], limit_lines=TRAILER_LINES)
        self.ended = True
        self.leftover = data[end + 4 :]

    def close(self) -> bool:
        """A chunked body does not end by closing, unless it had ended before."""
        return self.ended


def encode_chunk(data: bytes) -> bytes:
    """One chunk. Empty data gives nothing: an empty chunk would be the last one.

    The copy is cheaper than a second write, at any size that one write of ours has.
    """
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def encode_last_chunk(trailers: Fields | tuple[()] = ()) -> bytes:
    """The end of a chunked body. Raises `LocalProtocolError` as `encode_fields` does."""
    return b"0\r\n%b\r\n" % encode_fields(trailers) if trailers else b"0\r\n\r\n"
