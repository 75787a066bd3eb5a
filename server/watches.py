"""Where one event of a watch ends and the next begins, without parsing them.

A watch that is cut between two events may end cleanly: client-go then watches again from where it was. Inside an event
it must not. `framer_for` gives the framer for a response, or None where boundaries cannot be seen; then every cut is a
reset.

A framer looks for the last newline of a chunk, or adds up length prefixes. Beside the boundary it keeps the type and
the resource version of the last whole event, as a starting point for whoever resumes a watch, and never more than a
kilobyte, whatever the size of the event. Pure.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Protocol


@dataclasses.dataclass(frozen=True, slots=True)
class WatchEvent:
    """What is known about an event: empty where it could not be read."""

    type: str
    """ADDED, MODIFIED, DELETED, BOOKMARK or ERROR."""
    resource_version: str


class Framer(Protocol):
    """Follows the body of a watch."""

    boundary: int
    """Bytes from the start of the body to the end of the last whole event."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body."""
        ...

    @property
    def at_boundary(self) -> bool:
        """Whether the bytes so far end between two events (or there are none yet)."""
        ...

    def last_event(self) -> WatchEvent | None:
        """The last whole event; None before the first."""
        ...


def framer_for(content_type: bytes | None, content_encoding: bytes | None) -> Framer | None:
    """The framer for a response with these fields; None for CBOR, for any content coding, for what is unknown."""
    if content_encoding is not None and content_encoding.strip().lower() not in (b"", b"identity"):
        return None
    media_type = (content_type or b"").partition(b";")[0].strip().lower()
    if media_type == b"application/json":
        return JsonLines()
    if media_type == b"application/vnd.kubernetes.protobuf":
        return LengthPrefixed()
    return None


class JsonLines:
    """Events that are JSON objects, one on each line.

    A newline is a boundary where it ends a line that begins with ``{`` and ends with ``}``. A server that spreads an
    event over several lines never satisfies that, so its watches count as always inside an event, which is safe.
    """

    __slots__ = ("_last", "_length", "_line", "boundary")

    def __init__(self) -> None:
        self.boundary = 0
        self._length = 0
        self._line = _JsonLine()
        self._last: _JsonLine | None = None

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body."""
        end = data.rfind(b"\n")
        if end >= 0:
            # Of the lines that end here only the last one matters.
            start = data.rfind(b"\n", 0, end) + 1
            line = self._line if start == 0 else _JsonLine()
            line.feed(data, start, end)
            if line.is_object:
                self.boundary = self._length + end + 1
                self._last = line
            self._line = _JsonLine()
        if end + 1 < len(data):
            self._line.feed(data, end + 1, len(data))
        self._length += len(data)

    @property
    def at_boundary(self) -> bool:
        """Whether the bytes so far end between two events."""
        return self.boundary == self._length

    def last_event(self) -> WatchEvent | None:
        """The last whole event; None before the first."""
        return self._last.event() if self._last is not None else None


_TYPE = re.compile(rb'\{\s*"type"\s*:\s*"([A-Z]{1,32})"')
_RESOURCE_VERSION = re.compile(rb'"resourceVersion"\s*:\s*"([^"\\]{0,128})"')
_START_BYTES = 64
_OVERLAP_BYTES = 192  # longer than what `_RESOURCE_VERSION` matches
_SEARCHED_BYTES = 262_144  # metadata comes early; behind this much of an event it is not worth the search


class _JsonLine:
    """One line, as it arrives: its two ends, and the first resource version behind the word "metadata".

    The keys cannot be mistaken for text in a string, since there their quotes would be escaped.
    """

    __slots__ = ("_in_metadata", "_resource_version", "_searched", "_start", "_tail")

    def __init__(self) -> None:
        self._start = b""
        self._tail = b""
        self._in_metadata = False
        self._resource_version: bytes | None = None
        self._searched = 0

    def feed(self, data: bytes, start: int, end: int) -> None:
        if start == end:
            return
        if len(self._start) < _START_BYTES:
            self._start += data[start : min(end, start + _START_BYTES - len(self._start))]
        if self._resource_version is None and self._searched < _SEARCHED_BYTES:
            if self._tail:
                seam = self._tail + data[start : min(end, start + _OVERLAP_BYTES)]
                self._search(seam, 0, len(seam))
            self._search(data, start, end)
            self._searched += end - start
        if end - start >= _OVERLAP_BYTES:
            self._tail = data[end - _OVERLAP_BYTES : end]
        else:
            self._tail = (self._tail + data[start:end])[-_OVERLAP_BYTES:]

    @property
    def is_object(self) -> bool:
        return self._start[:1] == b"{" and self._tail[-1:] == b"}"

    def event(self) -> WatchEvent:
        match = _TYPE.match(self._start)
        kind = match[1].decode() if match is not None else ""
        return WatchEvent(kind, (self._resource_version or b"").decode("utf-8", "replace"))

    def _search(self, data: bytes, start: int, end: int) -> None:
        if self._resource_version is not None:
            return
        if not self._in_metadata:
            start = data.find(b'"metadata"', start, end)
            if start < 0:
                return
            self._in_metadata = True
        start = data.find(b'"resourceVersion"', start, end)
        if start >= 0:
            match = _RESOURCE_VERSION.match(data, start, end)
            if match is not None:
                self._resource_version = match[1]


_PREFIX_BYTES = 4
_HEAD_BYTES = 1024


class LengthPrefixed:
    """Events in frames, each behind its length in four bytes, the most significant first."""

    __slots__ = ("_head", "_last", "_length", "_missing", "_prefix", "boundary")

    def __init__(self) -> None:
        self.boundary = 0
        self._length = 0
        self._prefix = b""
        self._missing = 0  # bytes of the current event that have not come yet
        self._head = b""
        self._last: bytes | None = None

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body."""
        position, end = 0, len(data)
        while position < end:
            if self._missing == 0:
                part = data[position : position + _PREFIX_BYTES - len(self._prefix)]
                self._prefix += part
                position += len(part)
                if len(self._prefix) < _PREFIX_BYTES:
                    break
                self._missing = int.from_bytes(self._prefix, "big")
                self._prefix = self._head = b""
            taken = min(self._missing, end - position)
            if len(self._head) < _HEAD_BYTES:
                self._head += data[position : position + min(taken, _HEAD_BYTES - len(self._head))]
            position += taken
            self._missing -= taken
            if self._missing == 0:
                self.boundary = self._length + position
                self._last = self._head
        self._length += end

    @property
    def at_boundary(self) -> bool:
        """Whether the bytes so far end between two events."""
        return self.boundary == self._length

    def last_event(self) -> WatchEvent | None:
        """The last whole event; None before the first."""
        return _protobuf_event(self._last) if self._last is not None else None


_LENGTH_DELIMITED = 2
_VARINT = 0


def _protobuf_event(head: bytes) -> WatchEvent:
    """Read the first bytes of a ``meta/v1 WatchEvent``.

    Its field 1 is the type and field 2 a RawExtension, whose field 1 is the object: the magic ``k8s\\0`` and a
    runtime.Unknown, whose field 2 is the message; there, field 1 is the ObjectMeta (of Status and lists: ListMeta) and
    its field 6 (2) the resource version.
    """
    fields = _fields(head)
    kind = fields.get(1, b"").decode("utf-8", "replace")
    unknown = _fields(_fields(fields.get(2, b"")).get(1, b"").removeprefix(b"k8s\x00"))
    object_meta = _fields(_fields(unknown.get(2, b"")).get(1, b""))
    version = object_meta.get(6, b"") if kind != "ERROR" else b""
    return WatchEvent(kind, version.decode("utf-8", "replace"))


def _fields(message: bytes) -> dict[int, bytes]:
    """The length-delimited fields of a message that may be cut short; each at its first occurrence."""
    fields: dict[int, bytes] = {}
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        if key & 7 == _LENGTH_DELIMITED:
            length, position = _varint(message, position)
            fields.setdefault(key >> 3, message[position : position + length])
            position += length
        elif key & 7 == _VARINT:
            _, position = _varint(message, position)
        else:
            break  # Kubernetes' metadata has no other wire types; whatever this is, nothing behind it is needed
    return fields


def _varint(message: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while position < len(message):
        byte = message[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80 or shift > 63:
            break
        shift += 7
    return number, position
