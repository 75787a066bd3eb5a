"""Message bodies: the same content however the bytes are split, and nothing that two parsers could read differently."""

from __future__ import annotations

import itertools

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.errors import LocalProtocolError, RemoteProtocolError
from tunnel.http1.framing import (
    EXTENSION_BYTES,
    TRAILER_BYTES,
    BodyDecoder,
    ChunkedDecoder,
    LengthDecoder,
    UntilCloseDecoder,
    encode_chunk,
    encode_last_chunk,
)
from tunnel.messages import Fields


def decode(decoder: BodyDecoder, pieces: list[bytes]) -> tuple[bytes, bytes]:
    """The content, and what is left over."""
    content = b""
    for number, piece in enumerate(pieces):
        content += decoder.feed(piece)
        if decoder.ended:
            return content, decoder.leftover + b"".join(pieces[number + 1 :])
    return content, b""


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({min(place, len(data)) for place in places} | {0, len(data)})
    return [data[start:stop] for start, stop in itertools.pairwise(edges)]


def chunked(*pieces: bytes) -> list[bytes]:
    return [encode_chunk(piece) for piece in pieces]


CUTS = st.lists(st.integers(0, 200), max_size=12)


@given(st.binary(max_size=100), st.binary(max_size=20), CUTS)
def test_a_body_of_known_length_ends_after_its_last_byte(content: bytes, behind: bytes, places: list[int]) -> None:
    decoder = LengthDecoder(len(content))
    assert decoder.ended is (not content)
    if not content:
        return
    assert decoder.close() is False
    assert decode(decoder, cut(content + behind, places)) == (content, behind)
    assert decoder.ended
    assert decoder.close() is True
    assert decoder.trailers == []


def test_a_body_of_known_length_is_not_copied() -> None:
    decoder = LengthDecoder(10)
    first, last = bytes([1, 2, 3, 4]), bytes([5, 6, 7, 8, 9, 10])
    assert decoder.feed(first) is first
    assert decoder.feed(last) is last
    assert decoder.ended


def test_a_body_until_close_ends_only_by_closing() -> None:
    decoder = UntilCloseDecoder()
    data = bytes([1, 2, 3])
    assert decoder.feed(data) is data
    assert not decoder.ended
    assert decoder.close() is True
    assert decoder.ended
    assert (decoder.leftover, decoder.trailers) == (b"", [])


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=5),
    st.lists(st.sampled_from([(b"grpc-status", b"0"), (b"x-a", b""), (b"x-b", b"c d")]), max_size=3),
    st.binary(max_size=20),
    CUTS,
)
def test_chunks_give_the_same_content_however_they_are_split(
    pieces: list[bytes], trailers: Fields, behind: bytes, places: list[int]
) -> None:
    wire = b"".join(chunked(*pieces)) + encode_last_chunk(trailers)
    decoder = ChunkedDecoder()
    assert decode(decoder, cut(wire + behind, places)) == (b"".join(pieces), behind)
    assert decoder.ended
    assert decoder.trailers == trailers
    assert decoder.close() is True


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=5), CUTS)
def test_chunks_that_stop_early_have_not_ended(pieces: list[bytes], places: list[int]) -> None:
    wire = b"".join(chunked(*pieces)) + b"0\r\n\r\n"
    for length in range(len(wire)):
        decoder = ChunkedDecoder()
        content, _ = decode(decoder, cut(wire[:length], places))
        assert b"".join(pieces).startswith(content)
        assert not decoder.ended
        assert decoder.close() is False


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=5))
def test_h11_reads_the_chunks_that_we_write(pieces: list[bytes]) -> None:
    referee = h11.Connection(h11.SERVER)
    referee.receive_data(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(chunked(*pieces))
    )
    referee.receive_data(encode_last_chunk([(b"x-checksum", b"1")]))
    assert isinstance(referee.next_event(), h11.Request)
    content = b""
    while isinstance(event := referee.next_event(), h11.Data):
        content += event.data
    assert content == b"".join(pieces)
    assert isinstance(event, h11.EndOfMessage)
    assert list(event.headers) == [(b"x-checksum", b"1")]


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=5), CUTS)
def test_we_read_the_chunks_that_h11_writes(pieces: list[bytes], places: list[int]) -> None:
    peer = h11.Connection(h11.CLIENT)
    peer.send(h11.Request(method="POST", target="/", headers=[("Host", "a"), ("Transfer-Encoding", "chunked")]))
    wire = b"".join([peer.send(h11.Data(piece)) or b"" for piece in pieces])
    wire += peer.send(h11.EndOfMessage(headers=[("X-Checksum", "1")])) or b""
    decoder = ChunkedDecoder()
    assert decode(decoder, cut(wire, places)) == (b"".join(pieces), b"")
    assert decoder.trailers == [(b"x-checksum", b"1")]


def test_a_chunk_that_is_a_whole_read_is_copied_once() -> None:
    decoder = ChunkedDecoder()
    assert decoder.feed(b"400\r\n") == b""
    data = bytes(512)
    assert decoder.feed(data) is data


@pytest.mark.parametrize(
    ("wire", "content"),
    [
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"0005;a=b\r\nhello\r\n0;c\r\n\r\n", b"hello"),
        (b'a;x="y z"\r\n0123456789\r\nA\r\n0123456789\r\n000\r\n\r\n', b"0123456789" * 2),
        (b"5;\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"5\r\nhello\r\n0\r\nX:\r\n\r\n", b"hello"),
    ],
)
def test_the_ways_to_write_a_chunk(wire: bytes, content: bytes) -> None:
    for size in range(1, len(wire) + 1):
        decoder = ChunkedDecoder()
        pieces = [wire[start : start + size] for start in range(0, len(wire), size)]
        assert decode(decoder, pieces) == (content, b"")
        assert decoder.ended


MALFORMED = {
    "prefix 0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "plus": b"+5\r\nhello\r\n0\r\n\r\n",
    "minus": b"-5\r\nhello\r\n0\r\n\r\n",
    "underscore": b"1_0\r\n" + b"a" * 16 + b"\r\n0\r\n\r\n",
    "space before": b" 5\r\nhello\r\n0\r\n\r\n",
    "space behind": b"5 \r\nhello\r\n0\r\n\r\n",
    "tab behind": b"5\t\r\nhello\r\n0\r\n\r\n",
    "no size": b"\r\nhello\r\n0\r\n\r\n",
    "only an extension": b";a\r\nhello\r\n0\r\n\r\n",
    "no hexadecimal digit": b"5g\r\nhello\r\n0\r\n\r\n",
    "other digits": b"\xd9\xa5\r\nhello\r\n0\r\n\r\n",
    "bare LF behind the size": b"5\nhello\r\n0\r\n\r\n",
    "bare CR behind the size": b"5\rhello\r\n0\r\n\r\n",
    "bare LF in an extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "bare CR in an extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "NUL in an extension": b"5;\0\r\nhello\r\n0\r\n\r\n",
    "overlong extension": b"5;" + b"a" * 257 + b"\r\nhello\r\n0\r\n\r\n",
    "too many digits": b"0" * 16 + b"5\r\nhello\r\n0\r\n\r\n",
    "too large": b"f" * 16 + b"\r\n",
    "junk behind the data": b"5\r\nhelloXX0\r\n\r\n",
    "data longer than said": b"5\r\nhello!\r\n0\r\n\r\n",
    "data shorter than said": b"6\r\nhello\r\n0\r\n\r\n",
    "bare LF behind the data": b"5\r\nhello\n0\r\n\r\n",
    "bare CR behind the data": b"5\r\nhello\r0\r\n\r\n",
    "nothing behind the data": b"5\r\nhello0\r\n\r\n",
    "two ends of line behind the data": b"5\r\nhello\r\n\r\n0\r\n\r\n",
    "trailer without colon": b"0\r\nX\r\n\r\n",
    "folded trailer": b"0\r\nX: a\r\n b\r\n\r\n",
    "bare LF in the trailers": b"0\r\nX: a\nY: b\r\n\r\n",
    "space before the colon of a trailer": b"0\r\nX : a\r\n\r\n",
    "many trailers": b"0\r\n" + b"X: a\r\n" * 101 + b"\r\n",
    "large trailers": b"0\r\nX: " + b"a" * TRAILER_BYTES + b"\r\n\r\n",
    "trailers without end": b"0\r\nX: " + b"a" * (TRAILER_BYTES + 1),
    "many extensions": (b"1;" + b"e" * 255 + b"\r\na\r\n") * (EXTENSION_BYTES // 256 + 1) + b"0\r\n\r\n",
}


@pytest.mark.parametrize("wire", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_chunk_is_refused_however_it_is_split(wire: bytes) -> None:
    for size in (1, 2, 3, 7, len(wire)):
        decoder = ChunkedDecoder()
        with pytest.raises(RemoteProtocolError):
            decode(decoder, [wire[start : start + size] for start in range(0, len(wire), size)])
        assert not decoder.ended


@pytest.mark.parametrize(("start", "byte"), [(b"", b"0"), (b"5;", b"a"), (b"1\r\na\r\n", b"0"), (b"0\r\nx: ", b"a")])
def test_what_is_kept_of_an_incomplete_line_is_bounded(start: bytes, byte: bytes) -> None:
    decoder = ChunkedDecoder()
    decoder.feed(start)
    with pytest.raises(RemoteProtocolError):
        decode(decoder, [byte] * (TRAILER_BYTES + 1))


def test_an_empty_chunk_is_not_written_since_it_would_be_the_last() -> None:
    assert encode_chunk(b"") == b""
    assert encode_chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"
    assert encode_last_chunk() == encode_last_chunk([]) == b"0\r\n\r\n"


def test_trailers_that_would_not_survive_are_not_written() -> None:
    with pytest.raises(LocalProtocolError):
        encode_last_chunk([(b"x", b"a\r\n")])
    assert encode_last_chunk([(b"content-length", b"5"), (b"x", b"y")]) == b"0\r\nx: y\r\n\r\n"
