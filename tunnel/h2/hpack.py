"""HPACK (RFC 7541): field blocks to field lines and back.

The encoder keeps no state that the peer would have to follow: static table, else literals without indexing, without
Huffman. Such a block means the same on its own. Credentials are marked "never indexed".

The decoder takes all of HPACK. One loop deals with the lines that our own encoder writes; a line that was seen before
is one dictionary look-up, its fields already checked. Everything else (dynamic table, Huffman) takes the general way.
The `hpack` package gives the Huffman code alone: its decoder copies the rest of the block for each literal, so that a
block of 1 MiB holds up the process for seconds.

Each line is checked by itself when it is first decoded (`tunnel.h2.validation.line_fault`). A malformed line does not
stop decoding, since the state of the table must follow the peer's; `HeaderDecoder.fault` has the first one.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from hpack.exceptions import HPACKDecodingError
from hpack.huffman_table import decode_huffman

from tunnel.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from tunnel.h2.static_table import LAST_STATIC_INDEX, STATIC_FIELDS, is_credential
from tunnel.h2.validation import is_field_name, line_fault
from tunnel.messages import Field, Fields

LINE_OVERHEAD_BYTES: Final = 32
"""What RFC 7541 §4.1 and RFC 9113 §6.5.2 add to name and value."""

EXPANSION_BYTES: Final = 64
"""A line counts for at most this much more in the size of the header list than it takes in a stateless block."""

CACHED_LINE_BYTES: Final = 256
"""Longer lines are not worth remembering."""

_MAX_INTEGER: Final = 2**32 - 1


def header_list_bytes(fields: Fields) -> int:
    """The size that MAX_HEADER_LIST_SIZE limits (RFC 9113 §6.5.2)."""
    return sum([len(name) + len(value) for name, value in fields]) + LINE_OVERHEAD_BYTES * len(fields)


# --- encoding -----------------------------------------------------------------------------------------


def _integer(value: int, mask: int, pattern: int = 0) -> bytes:
    """An integer with a prefix of the bits of ``mask`` (RFC 7541 §5.1), under a pattern of the bits above."""
    if value < mask:
        return bytes((pattern | value,))
    parts = [pattern | mask]
    value -= mask
    while value >= 0x80:
        parts.append(0x80 | (value & 0x7F))
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _static_prefixes() -> dict[bytes, bytes]:
    prefixes: dict[bytes, bytes] = {}
    for index, (name, _) in enumerate(STATIC_FIELDS):
        if index and name not in prefixes:
            prefixes[name] = _integer(index, 0x0F, 0x10 if is_credential(name) else 0)
    return prefixes


_INDEXED: Final = {field: bytes((0x80 | index,)) for index, field in enumerate(STATIC_FIELDS) if field[1]}
_LONGEST_INDEXED_VALUE: Final = (
    5  # ":scheme https"; what is longer ("/index.html", "gzip, deflate") is not worth a look
)
_LENGTHS: Final = tuple(_integer(length, 0x7F) for length in range(1_024))
"""The lengths of most values, as they stand in front of them."""
_STATIC_PREFIXES: Final = _static_prefixes()
_KNOWN_PREFIXES_LIMIT: Final = 2_048


class _Prefixes(dict[bytes, bytes]):
    """The starts of literals by name; names that are not credentials are remembered, up to a limit."""

    def __missing__(self, name: bytes) -> bytes:
        return _name_prefix(name)


_known_prefixes = _Prefixes(_STATIC_PREFIXES)
_IDENTITY_NAME: Final = b"moorline-identity"
_known_prefixes[_IDENTITY_NAME] = b"\x10" + _integer(len(_IDENTITY_NAME), 0x7F) + _IDENTITY_NAME  # of every request


def _name_prefix(name: bytes) -> bytes:
    """The start of a literal with a literal name; names (never values) are remembered for the whole process."""
    if not is_field_name(name):
        raise LocalProtocolError(f"a field name that HTTP/2 does not allow: {name[:60]!r}")
    credential = is_credential(name)
    prefix = (b"\x10" if credential else b"\x00") + _integer(len(name), 0x7F) + name
    if not credential and len(name) <= CACHED_LINE_BYTES and len(_known_prefixes) < _KNOWN_PREFIXES_LIMIT:
        _known_prefixes[name] = prefix
    return prefix


class HeaderEncoder:
    """Field lines to blocks that carry no state."""

    __slots__ = ("_table_is_empty",)

    def __init__(self) -> None:
        self._table_is_empty = False

    def encode(self, fields: Fields) -> bytes:
        """One field block. Raises `LocalProtocolError` for a name that is not a lower-case token."""
        parts: list[bytes] = []
        if not self._table_is_empty:
            # RFC 7541 §4.2: say once that the table has no size; then no limit of the peer's can be below it.
            self._table_is_empty = True
            parts.append(b"\x20")
        known, lengths = _known_prefixes, _LENGTHS
        for field in fields:
            name, value = field
            length = len(value)
            if length <= _LONGEST_INDEXED_VALUE and field in _INDEXED:
                parts.append(_INDEXED[field])
            elif length < 1_024:
                parts += known[name], lengths[length], value
            else:
                parts += known[name], _integer(length, 0x7F), value
        return b"".join(parts)


# --- decoding -----------------------------------------------------------------------------------------


class CompressionFault(RemoteProtocolError):
    """A block that cannot be decoded: the table is lost, and the connection with it (RFC 9113 §4.3)."""

    def __init__(self, text: str) -> None:
        super().__init__(f"HPACK: {text}", code=ErrorCode.COMPRESSION_ERROR)


class LineCache:
    """Lines that were decoded and found valid, by their bytes. Two generations, each bounded in bytes.

    A line that is asked for again moves to the young generation; when that is full it becomes the old one, and what
    nobody has asked for since is gone.
    """

    __slots__ = ("_limit_bytes", "_old", "_young_bytes", "young")

    def __init__(self, limit_bytes: int) -> None:
        self.young: dict[bytes, Field] = {}
        self._old: dict[bytes, Field] = {}
        self._young_bytes = 0
        self._limit_bytes = limit_bytes // 2

    def recall(self, line: bytes) -> Field | None:
        """A line of the old generation, made young again."""
        field = self._old.get(line)
        if field is not None:
            self.remember(line, field)
        return field

    def remember(self, line: bytes, field: Field) -> None:
        """Keep a valid line, unless it is long, a credential, or what somebody asked for.

        Several callers share a tunnel; how fast a line is decoded must tell none of them about another.
        """
        size = len(line)
        name = field[0]
        if size > CACHED_LINE_BYTES or name == b":path" or is_credential(name):
            return
        if self._young_bytes + size > self._limit_bytes:
            self._old = self.young.copy()
            # The dictionary stays the same object: the decoder's loop holds on to it.
            self.young.clear()
            self._young_bytes = 0
        self.young[line] = field
        self._young_bytes += size

    @property
    def held_bytes(self) -> int:
        """Bytes of all lines that are remembered."""
        return sum(map(len, self.young)) + sum(map(len, self._old))


def _fast_indexed() -> tuple[Field | None, ...]:
    """For each first byte of a line: the valid static field that it stands for, where it does."""
    table: list[Field | None] = [None] * 256
    for index, (name, value) in enumerate(STATIC_FIELDS):
        if index and line_fault(name, value) is None:
            table[0x80 | index] = (name, value)
    return tuple(table)


_FAST_INDEXED: Final = _fast_indexed()


_NAME_INDEX_BYTES: Final = tuple(2 if byte & 0x0F == 0x0F else 1 for byte in range(0x20))
"""For each first byte of a literal without indexing: how many bytes the index of its name takes, below 143."""


class HeaderDecoder:
    """Field blocks of one connection to field lines."""

    __slots__ = (
        "_announced_bytes",
        "_cache",
        "_list_limit_bytes",
        "_slow_bytes",
        "_table",
        "_table_bytes",
        "_table_limit_bytes",
        "_table_max_bytes",
        "fault",
        "list_bytes_at_most",
    )

    def __init__(self, *, table_bytes: int, list_limit_bytes: int, cache_bytes: int) -> None:
        self.fault: str | None = None
        """Why the last block is malformed although it could be decoded; None where it is not."""
        self.list_bytes_at_most = 0
        """A bound of the last block's header list size that costs nothing; see `header_list_bytes`."""
        self._announced_bytes = table_bytes
        self._list_limit_bytes = list_limit_bytes
        self._slow_bytes = 0
        # Until the peer has acknowledged our SETTINGS, it may use the table that the RFC gives it.
        self._table_max_bytes = max(table_bytes, 4_096)
        self._table_limit_bytes = 4_096
        self._table: deque[tuple[Field, str | None]] = deque()
        self._table_bytes = 0
        self._cache = LineCache(cache_bytes)

    def settings_acknowledged(self) -> None:
        """The peer knows our HEADER_TABLE_SIZE: from its next block on, its table is no larger (RFC 7541 §4.2).

        It has to say so in that block. One that has no table to reduce may have forgotten to, and does no harm.
        """
        self._table_max_bytes = self._announced_bytes
        self._table_limit_bytes = min(self._table_limit_bytes, self._announced_bytes)
        self._evict(self._table_limit_bytes)

    def decode(self, block: bytes) -> Fields:
        """The lines of a whole block.

        Raises `CompressionFault`, also where the lines are larger than the limit. `fault` tells of malformed lines.
        """
        self.fault = None
        self._slow_bytes = 0
        fields: Fields = []
        end = len(block)
        position = 0
        recall = self._cache.young.get
        try:
            while position < end:
                start = position
                byte = block[position]
                if byte >= 0x80:
                    field = _FAST_INDEXED[byte]
                    if field is None:
                        position = self._indexed(block, start, fields)
                    else:
                        fields.append(field)
                        position += 1
                    continue
                # Where the line would end if it had short strings without Huffman. If it has not, these bytes are no
                # line that anybody remembers: a line is remembered by all of its bytes, and so by its lengths.
                if byte in (0, 0x10):
                    position += 2 + block[position + 1]
                elif byte < 0x20:
                    position += _NAME_INDEX_BYTES[byte]
                else:
                    position = self._unusual(block, start, fields)
                    continue
                if position < end:
                    position += 1 + block[position]
                field = recall(block[start:position])
                if field is None:
                    position = self._literal(block, start, fields)
                else:
                    fields.append(field)
        except IndexError:
            raise CompressionFault("a truncated block") from None
        self.list_bytes_at_most = at_most = self._slow_bytes + end + EXPANSION_BYTES * len(fields)
        if at_most > self._list_limit_bytes and header_list_bytes(fields) > self._list_limit_bytes:
            raise CompressionFault(f"a header list of more than {self._list_limit_bytes} bytes")
        return fields

    def _literal(self, block: bytes, start: int, fields: Fields) -> int:
        """A literal that the young generation of the cache does not have; where it ends."""
        index = block[start] & 0x0F
        position = start + 1
        name_bytes = 0
        if index == 0:
            name_bytes = block[position]
            position += 1 + name_bytes
        elif index == 0x0F:
            index += block[position]
            position += 1
        value_bytes = block[position] if name_bytes < 0x7F else 0xFF
        if value_bytes > 0x7F or index > LAST_STATIC_INDEX:
            return self._unusual(block, start, fields)
        if value_bytes == 0x7F:
            value_bytes, position = _read_integer(block, position, 0x7F)
            position += value_bytes
        else:
            position += 1 + value_bytes
        if position > len(block):
            raise CompressionFault("a truncated block")
        line = block[start:position]
        field = self._cache.recall(line)
        if field is None:
            name = STATIC_FIELDS[index][0] if index else line[2 : 2 + name_bytes]
            field = (name, block[position - value_bytes : position])
            fault = line_fault(*field)
            if fault is None:
                self._cache.remember(line, field)
            else:
                self.fault = self.fault or fault
        fields.append(field)
        return position

    def _indexed(self, block: bytes, start: int, fields: Fields) -> int:
        """An indexed field line (RFC 7541 §6.1) that is dynamic, malformed or wrong."""
        index, position = _read_integer(block, start, 0x7F)
        field, fault = self._entry(index)
        self._append(fields, field, fault)
        return position

    def _unusual(self, block: bytes, start: int, fields: Fields) -> int:
        """Any literal (RFC 7541 §6.2), or a change of the table's size (§6.3)."""
        byte = block[start]
        if 0x20 <= byte < 0x40:
            return self._resize(block, start, fields)
        index, position = _read_integer(block, start, 0x3F if byte >= 0x40 else 0x0F)
        name_at = position
        if index == 0:
            position = _string_end(block, position)
        value_at = position
        position = _string_end(block, position)
        # What an index means beyond the static table changes, so such a line cannot be known by its bytes.
        line = block[start:position] if index <= LAST_STATIC_INDEX else b""
        field = self._cache.young.get(line) or self._cache.recall(line)
        fault = None
        if field is None:
            name = self._entry(index)[0][0] if index else _string(block, name_at, value_at)
            field = (name, _string(block, value_at, position))
            fault = line_fault(*field)
            if fault is None and line:
                self._cache.remember(line, field)
        if byte >= 0x40:
            self._insert(field, fault)
        self._append(fields, field, fault)
        return position

    def _append(self, fields: Fields, field: Field, fault: str | None) -> None:
        fields.append(field)
        self.fault = self.fault or fault
        self._slow_bytes += len(field[0]) + len(field[1])
        if self._slow_bytes > self._list_limit_bytes:
            raise CompressionFault(f"a header list of more than {self._list_limit_bytes} bytes")

    def _entry(self, index: int) -> tuple[Field, str | None]:
        if 0 < index <= LAST_STATIC_INDEX:
            field = STATIC_FIELDS[index]
            return field, line_fault(*field)
        if index == 0 or index > LAST_STATIC_INDEX + len(self._table):
            raise CompressionFault(f"index {index} is in no table")
        return self._table[index - LAST_STATIC_INDEX - 1]

    def _insert(self, field: Field, fault: str | None) -> None:
        """Add to the dynamic table (RFC 7541 §4.4); what is larger than the table empties it."""
        size = len(field[0]) + len(field[1]) + LINE_OVERHEAD_BYTES
        self._evict(self._table_limit_bytes - size)
        if size <= self._table_limit_bytes:
            self._table.appendleft((field, fault))
            self._table_bytes += size

    def _resize(self, block: bytes, start: int, fields: Fields) -> int:
        size, position = _read_integer(block, start, 0x1F)
        if fields:
            raise CompressionFault("a change of the table's size inside a block")
        if size > self._table_max_bytes:
            raise CompressionFault(f"a dynamic table of {size} bytes where {self._table_max_bytes} are allowed")
        self._table_limit_bytes = size
        self._evict(size)
        return position

    def _evict(self, limit_bytes: int) -> None:
        while self._table and self._table_bytes > limit_bytes:
            (name, value), _ = self._table.pop()
            self._table_bytes -= len(name) + len(value) + LINE_OVERHEAD_BYTES


def _read_integer(block: bytes, position: int, mask: int) -> tuple[int, int]:
    """An integer and where it ends (RFC 7541 §5.1)."""
    value = block[position] & mask
    position += 1
    if value < mask:
        return value, position
    shift = 0
    while True:
        byte = block[position]
        position += 1
        value += (byte & 0x7F) << shift
        if value > _MAX_INTEGER or shift > 28:
            raise CompressionFault("an integer above 2^32")
        if byte < 0x80:
            return value, position
        shift += 7


def _string_end(block: bytes, position: int) -> int:
    length, position = _read_integer(block, position, 0x7F)
    position += length
    if position > len(block):
        raise CompressionFault("a truncated block")
    return position


def _string(block: bytes, start: int, end: int) -> bytes:
    """The string literal between two positions (RFC 7541 §5.2)."""
    _, position = _read_integer(block, start, 0x7F)
    text = block[position:end]
    if block[start] < 0x80:
        return text
    try:
        return decode_huffman(text)
    except HPACKDecodingError:
        raise CompressionFault("an invalid Huffman code") from None
