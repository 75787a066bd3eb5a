"""SPDY frames, against a client of a few lines."""

from __future__ import annotations

import contextlib
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.spdy import DATA, DICTIONARY, RST_STREAM, SYN_STREAM, Frame, SpdyError, SpdyServer


def control(kind: int, payload: bytes, flags: int = 0) -> bytes:
    return struct.pack("!HHI", 0x8003, kind, flags << 24 | len(payload)) + payload


class Client:
    """The other end, with a compression context of its own."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(zdict=DICTIONARY)
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)

    def syn_stream(self, stream_id: int, headers: dict[str, str], flags: int = 0) -> bytes:
        plain = struct.pack("!I", len(headers))
        for text in (text for pair in headers.items() for text in pair):
            plain += struct.pack("!I", len(text)) + text.encode()
        block = self._deflate.compress(plain) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        return control(1, struct.pack("!IIH", stream_id, 0, 0) + block, flags)

    def headers_of(self, reply: bytes) -> bytes:
        return self._inflate.decompress(reply[12:])


def data_frame(stream_id: int, data: bytes, flags: int = 0) -> bytes:
    return struct.pack("!II", stream_id, flags << 24 | len(data)) + data


def test_the_dictionary_is_that_of_the_draft() -> None:
    assert len(DICTIONARY) == 1423
    assert zlib.adler32(DICTIONARY) == 0xE3C6A7C2


def test_streams_are_opened_one_after_the_other_in_one_context() -> None:
    server, client = SpdyServer(), Client()
    first = {"streamtype": "error", "port": "80", "requestid": "0"}
    second = {**first, "streamtype": "data"}
    events = server.receive(client.syn_stream(1, first, flags=1) + client.syn_stream(3, second))
    assert events == [Frame(SYN_STREAM, 1, b"", first, True), Frame(SYN_STREAM, 3, b"", second)]


def test_replies_have_no_headers_and_share_a_context() -> None:
    server, client = SpdyServer(), Client()
    for stream_id in (1, 3):
        reply = server.reply(stream_id)
        assert struct.unpack_from("!HHII", reply) == (0x8003, 2, len(reply) - 8, stream_id)
        assert client.headers_of(reply) == b"\0\0\0\0"


def test_data_and_resets() -> None:
    server = SpdyServer()
    events = server.receive(data_frame(3, b"ab") + data_frame(3, b"", flags=1) + control(3, b"\0\0\0\3\0\0\0\1"))
    assert events == [Frame(DATA, 3, b"ab"), Frame(DATA, 3, is_last=True), Frame(RST_STREAM, 3)]


def test_other_frames_mean_nothing() -> None:
    server = SpdyServer()
    frames = (
        control(6, struct.pack("!I", 4))
        + control(4, b"\0\0\0\0")
        + control(7, bytes(8))
        + control(9, bytes(8))
        + control(77, b"x")
    )
    assert server.receive(frames) == []


def test_what_is_sent() -> None:
    server = SpdyServer()
    assert server.data(5, b"abc") == data_frame(5, b"abc")
    assert server.data(5, b"", is_last=True) == data_frame(5, b"", flags=1)
    assert server.reset(5) == control(3, struct.pack("!II", 5, 3))


@settings(deadline=None)
@given(st.data())
def test_frames_may_be_cut_anywhere(data: st.DataObject) -> None:
    wire = Client().syn_stream(1, {"streamtype": "data"}) + data_frame(1, b"hello") + data_frame(1, b"", flags=1)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=5)))
    server, events = SpdyServer(), []
    for begin, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        events += server.receive(wire[begin:end])
    assert events == SpdyServer().receive(wire)
    assert len(events) == 3


@pytest.mark.parametrize(
    "wire",
    [
        struct.pack("!II", 1, 0x00FF_FFFF),
        control(1, b"\0"),
        control(1, bytes(10) + b"this is not zlib"),
        control(3, b""),
    ],
)
def test_what_is_no_spdy_is_an_error(wire: bytes) -> None:
    with pytest.raises(SpdyError):
        SpdyServer().receive(wire)


def test_a_header_block_cannot_grow_without_end() -> None:
    with pytest.raises(SpdyError, match="too large"):
        SpdyServer().receive(Client().syn_stream(1, {"streamtype": "x" * 200_000}))


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_no_input_brings_it_down(data: bytes) -> None:
    with contextlib.suppress(SpdyError):
        SpdyServer().receive(data)
