from __future__ import annotations

import itertools
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.frame_protocol import FrameProtocol, Opcode

from tunnel.transports.websocket_frames import MESSAGE_BYTES, FrameDecoder, encode_binary, masked

SIZES = [0, 1, 3, 125, 126, 1_000, MESSAGE_BYTES, MESSAGE_BYTES + 1, 200_001]


def fixed_key(count: int) -> bytes:
    return b"\x11\x22\x33\x44"[:count]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("client", [True, False])
def test_wsproto_reads_what_is_encoded(client, size):
    data = os.urandom(size)
    referee = FrameProtocol(not client, [])
    referee.receive_bytes(encode_binary(memoryview(data), random=os.urandom if client else None))
    frames = list(referee.received_frames())
    assert b"".join(frame.payload for frame in frames) == data
    assert all(frame.opcode is Opcode.BINARY and frame.message_finished for frame in frames)
    assert all(len(frame.payload) <= MESSAGE_BYTES for frame in frames)


def test_every_message_has_a_key_of_its_own():
    keys = itertools.count(1)
    encoded = encode_binary(memoryview(bytes(MESSAGE_BYTES + 1)), random=lambda _: bytes([next(keys)] * 4))
    assert encoded[8:12] == b"\x01\x01\x01\x01"
    assert encoded[-1:] == b"\x02"


@pytest.mark.parametrize("size", [size for size in SIZES if size])
@pytest.mark.parametrize("client", [True, False])
def test_what_wsproto_sends_is_decoded(client, size):
    data = os.urandom(size)
    sent = bytes(FrameProtocol(not client, []).send_data(data))
    assert FrameDecoder(client=client).receive(sent) == data


@given(
    client=st.booleans(),
    pieces=st.lists(st.tuples(st.binary(max_size=300), st.booleans(), st.binary(max_size=20)), max_size=8),
    cuts=st.lists(st.integers(min_value=1, max_value=200)),
)
def test_fragments_and_pings_are_decoded_however_the_bytes_are_cut(client, pieces, cuts):
    sender = FrameProtocol(not client, [])
    wire = bytearray()
    for data, is_last, ping in pieces:
        wire += sender.send_data(data, is_last)
        wire += sender.ping(ping)
    decoder = FrameDecoder(client=client)
    received = b""
    for cut in [*cuts, len(wire)]:
        received += decoder.receive(bytes(wire[:cut]))
        del wire[:cut]
    assert received == b"".join(data for data, _, _ in pieces)
    assert decoder.ping == (pieces[-1][2] if pieces else None)


def test_a_header_that_comes_byte_by_byte_is_put_together():
    wire = encode_binary(memoryview(bytes(200)), random=fixed_key)
    decoder = FrameDecoder(client=False)
    assert b"".join(decoder.receive(wire[index : index + 1]) for index in range(len(wire))) == bytes(200)


def test_only_the_last_ping_is_kept():
    sender = FrameProtocol(True, [])
    decoder = FrameDecoder(client=False)
    decoder.receive(bytes(sender.ping(b"first") + sender.ping(b"second") + sender.pong(b"unasked")))
    assert decoder.ping == b"second"


def test_nothing_is_read_behind_a_close_frame():
    sender = FrameProtocol(True, [])
    decoder = FrameDecoder(client=False)
    received = decoder.receive(bytes(sender.send_data(b"before") + sender.close(1001, "away") + b"\xff\xff\xff"))
    assert received == b"before"
    assert decoder.close_code == 1001
    assert decoder.receive(b"\xff\xff\xff") == b""


def header(first: int, second: int, rest: bytes = b"") -> bytes:
    return bytes([first, second]) + rest


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        pytest.param(header(0x81, 0x80, fixed_key(4)), 1003, id="text"),
        pytest.param(header(0x01, 0x80, fixed_key(4)), 1003, id="first fragment of text"),
        pytest.param(header(0x82, 0x01, b"x"), 1002, id="unmasked from a client"),
        pytest.param(header(0x82, 0x7E), 1002, id="unmasked, and its length is not there yet"),
        pytest.param(header(0xC2, 0x80, fixed_key(4)), 1002, id="reserved bit: compression that nobody agreed on"),
        pytest.param(header(0x83, 0x80, fixed_key(4)), 1002, id="unknown opcode"),
        pytest.param(header(0x80, 0x80, fixed_key(4)), 1002, id="continuation of nothing"),
        pytest.param(header(0x09, 0x80, fixed_key(4)), 1002, id="fragmented ping"),
        pytest.param(header(0x89, 0xFE, b"\x00\x7e" + fixed_key(4)), 1002, id="ping of 126 bytes"),
        pytest.param(header(0x88, 0x81, fixed_key(4) + b"x"), 1002, id="close frame with one byte"),
        pytest.param(header(0x88, 0x82, bytes(4) + b"\x03\xed"), 1002, id="close code that may not be sent"),
        pytest.param(
            header(0x02, 0x80, fixed_key(4)) + header(0x82, 0x80, fixed_key(4)), 1002, id="message inside a message"
        ),
    ],
)
def test_what_breaks_the_protocol_is_refused_with_a_code(frame, code):
    decoder = FrameDecoder(client=False)
    assert decoder.receive(b"\x82\x82\0\0\0\0ok") == b"ok"
    assert decoder.receive(frame) == b""
    assert decoder.failure is not None
    assert decoder.failure.code == code
    assert str(decoder.failure)
    assert decoder.receive(b"\x82\x82\0\0\0\0no") == b""


def test_a_server_that_masks_is_refused():
    decoder = FrameDecoder(client=True)
    decoder.receive(bytes(FrameProtocol(True, []).send_data(b"x")))
    assert "masked" in str(decoder.failure)


@given(data=st.binary(max_size=100), key=st.binary(min_size=4, max_size=4))
def test_masking_twice_gives_the_same_bytes(data, key):
    assert masked(bytes(masked(data, key)), key) == data
    assert list(masked(data, key)) == [byte ^ key[index % 4] for index, byte in enumerate(data)]
