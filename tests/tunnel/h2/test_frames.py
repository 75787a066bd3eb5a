"""Frames as bytes, read back by `hyperframe`."""

from __future__ import annotations

import hyperframe.frame
import pytest

from tunnel.h2 import frames


def read(wire: bytes) -> list[hyperframe.frame.Frame]:
    found = []
    while wire:
        frame, length = hyperframe.frame.Frame.parse_frame_header(memoryview(wire)[:9])
        frame.parse_body(memoryview(wire)[9 : 9 + length])
        found.append(frame)
        wire = wire[9 + length :]
    return found


def test_short_frames_are_what_another_codec_reads():
    reset, update, ping, pong = read(
        frames.rst_stream_frame(5, 8)
        + frames.window_update_frame(0, 2**31 - 1)
        + frames.ping_frame(b"abcdefgh")
        + frames.ping_frame(b"abcdefgh", ack=True)
    )

    assert isinstance(reset, hyperframe.frame.RstStreamFrame)
    assert (reset.stream_id, reset.error_code) == (5, 8)
    assert isinstance(update, hyperframe.frame.WindowUpdateFrame)
    assert (update.stream_id, update.window_increment) == (0, 2**31 - 1)
    assert isinstance(ping, hyperframe.frame.PingFrame)
    assert (ping.opaque_data, ping.flags) == (b"abcdefgh", set())
    assert isinstance(pong, hyperframe.frame.PingFrame)
    assert pong.flags == {"ACK"}


def test_goaway_and_settings_are_what_another_codec_reads():
    goaway, settings, ack = read(
        frames.goaway_frame(2**31 - 1, 11, b"why") + frames.settings_frame({1: 0, 4: 65_536}) + frames.SETTINGS_ACK
    )

    assert isinstance(goaway, hyperframe.frame.GoAwayFrame)
    assert (goaway.last_stream_id, goaway.error_code, goaway.additional_data) == (2**31 - 1, 11, b"why")
    assert isinstance(settings, hyperframe.frame.SettingsFrame)
    assert settings.settings == {1: 0, 4: 65_536}
    assert isinstance(ack, hyperframe.frame.SettingsFrame)
    assert ack.flags == {"ACK"}


@pytest.mark.parametrize("length", [0, 1, 99, 100, 101, 199, 200, 201, 1000])
@pytest.mark.parametrize("ended", [False, True])
def test_a_block_is_split_over_continuation_frames(length: int, ended: bool):
    block = bytes(index % 251 for index in range(length))

    first, *rest = read(frames.header_block_frames(7, block, ended=ended, max_frame_bytes=100))

    assert isinstance(first, hyperframe.frame.HeadersFrame)
    assert all(isinstance(frame, hyperframe.frame.ContinuationFrame) for frame in rest)
    assert b"".join(frame.data for frame in (first, *rest)) == block
    assert len(rest) == max(0, -(-length // 100) - 1)
    assert ("END_STREAM" in first.flags) is ended
    assert ["END_HEADERS" in frame.flags for frame in (first, *rest)] == [False] * len(rest) + [True]
    assert {frame.stream_id for frame in (first, *rest)} == {7}


def test_a_length_of_three_bytes_survives():
    header = frames.frame_header(0x01_02_03, frames.DATA, frames.END_STREAM, 2**31 - 1)

    assert header == b"\x01\x02\x03\x00\x01\x7f\xff\xff\xff"
