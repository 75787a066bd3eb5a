"""WebSocket frames (RFC 6455 §5) for a byte stream: binary frames here, everything else by `wsproto`. Pure.

A tunnel sends nothing but binary frames, and for those `wsproto` copies and masks several times over: this is twice as
fast. What is rare and intricate stays with it: control frames, close codes, and what is wrong with a frame.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from wsproto.frame_protocol import CloseReason, FrameProtocol, Opcode, ParseFailed

MESSAGE_BYTES: Final = 65_535
"""Payload of the messages that we send, at most: the longest length that fits into 16 bits."""

_TABLES: Final = [bytes(byte ^ key for byte in range(256)) for key in range(256)]
_BINARY_MESSAGE: Final = 0x82
_MASKED: Final = 0x80
_DATA_OPCODES: Final = (Opcode.CONTINUATION, Opcode.BINARY)


class FrameError(Exception):
    """The other side broke the protocol, or sent text; ``code`` is the close code that says so."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def masked(data: bytes | memoryview, key: bytes) -> bytearray:
    """The payload XORed with the key, each of whose four bytes is applied to every fourth byte of the payload."""
    result = bytearray(data)
    for lane in range(4):  # a `bytearray` on both sides: `bytes` would be copied to one, which takes half as long again
        result[lane::4] = result[lane::4].translate(_TABLES[key[lane]])
    return result


def encode_binary(data: memoryview, *, random: Callable[[int], bytes] | None) -> bytes:
    """Unfragmented binary messages with ``data``; a client gives ``random``, since it must mask (RFC 6455 §5.3)."""
    parts: list[bytes | bytearray | memoryview] = []
    for start in range(0, len(data), MESSAGE_BYTES):
        payload = data[start : start + MESSAGE_BYTES]
        length = len(payload)
        mask_bit = 0 if random is None else _MASKED
        if length < 126:
            parts.append(bytes((_BINARY_MESSAGE, mask_bit | length)))
        else:
            parts.append(struct.pack("!BBH", _BINARY_MESSAGE, mask_bit | 126, length))
        if random is None:
            parts.append(payload)
        else:
            key = random(4)
            parts.append(key)
            parts.append(masked(payload, key))
    return b"".join(parts)


class FrameDecoder:
    """Takes bytes as they come; gives the payload of binary frames at once, whatever part of a frame it is."""

    __slots__ = ("_client", "_in_message", "_key", "_rest", "_tail", "_wsproto", "close_code", "failure", "ping")

    def __init__(self, *, client: bool) -> None:
        self._client = client
        self._wsproto = FrameProtocol(client, [])
        self._tail = b""  # a frame header that is not whole, or a control frame
        self._rest = 0  # bytes that are missing of the binary frame that has begun
        self._key = b""  # turned so that it begins with the byte for the next one
        self._in_message = False
        self.ping: bytes | None = None
        """The payload of the last ping that was not taken; an answer to that one is enough (RFC 6455 §5.5.3)."""
        self.close_code: int | None = None
        """Set once a close frame was received; what comes behind it is ignored."""
        self.failure: FrameError | None = None
        """Set once the protocol was broken; what comes behind that is ignored."""

    def receive(self, data: bytes) -> bytes:
        """The payload bytes in ``data``, as far as a close frame or a failure."""
        if self._tail:
            data, self._tail = self._tail + data, b""
        pieces: list[bytes | bytearray] = []
        position = 0
        while position < len(data) and self.close_code is None and self.failure is None:
            if self._rest:
                piece = data[position : position + self._rest]
                position += len(piece)
                self._rest -= len(piece)
                pieces.append(self._unmasked(piece))
                continue
            try:
                after = self._read_frame(data, position)
            except FrameError as error:
                self.failure = error
                break
            if after is None:
                self._tail = data[position:]
                break
            position = after
        return b"".join(pieces)

    def _unmasked(self, piece: bytes) -> bytes | bytearray:
        if not self._key:
            return piece
        result = masked(piece, self._key)
        turn = len(piece) % 4
        if turn:
            self._key = self._key[turn:] + self._key[:turn]
        return result

    def _read_frame(self, data: bytes, start: int) -> int | None:
        """Read the header of a binary frame, or a whole control frame; where it ends, or None where it is cut off."""
        if len(data) < start + 2:
            return None
        first, second = data[start], data[start + 1]
        opcode = first & 0x0F
        length = second & 0x7F
        if opcode == Opcode.TEXT:
            raise FrameError("text where only binary messages have a meaning", CloseReason.UNSUPPORTED_DATA)
        if opcode not in _DATA_OPCODES or first & 0x70 or bool(second & _MASKED) == self._client:
            return self._read_other(data, start, 2 + length + (0 if self._client else 4))
        position = start + 2
        if length >= 126:
            size = 2 if length == 126 else 8
            position += size
            length = int.from_bytes(data[start + 2 : position], "big")
        if not self._client:
            position += 4
        if len(data) < position:
            return None
        if (opcode == Opcode.BINARY) == self._in_message:
            raise FrameError("a fragment without its message", CloseReason.PROTOCOL_ERROR)
        self._in_message = not first & 0x80
        self._key = b"" if self._client else data[position - 4 : position]
        self._rest = length
        return position

    def _read_other(self, data: bytes, start: int, size: int) -> int | None:
        """Have `wsproto` look at a control frame, or at a header in which something is wrong."""
        is_control = data[start] & 0x08
        if is_control and data[start + 1] & 0x7F < 126 and len(data) < start + size:
            return None
        self._wsproto.receive_bytes(data[start : start + size])
        try:
            frame = next(self._wsproto.received_frames(), None)
        except ParseFailed as error:
            raise FrameError(str(error), error.code) from error
        if frame is None:
            raise FrameError("a frame with a malformed header", CloseReason.PROTOCOL_ERROR)
        if frame.opcode is Opcode.PING:
            assert isinstance(frame.payload, bytes)
            self.ping = frame.payload
        elif frame.opcode is Opcode.CLOSE:
            assert isinstance(frame.payload, tuple)
            self.close_code = frame.payload[0]
        return start + size
