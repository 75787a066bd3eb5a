"""SETTINGS: what is announced, what is taken over, what is refused."""

from __future__ import annotations

import struct

import pytest

from tunnel.errors import ErrorCode
from tunnel.h2.config import FRONT_RESPONDER, TUNNEL_REQUESTER, TUNNEL_RESPONDER
from tunnel.h2.settings import InvalidSetting, PeerSettings, announced


def payload(*values: tuple[int, int]) -> bytes:
    return b"".join(struct.pack(">HI", *value) for value in values)


def test_what_we_announce_is_the_wire_contract():
    assert announced(TUNNEL_REQUESTER, is_responder=False) == {1: 0, 4: 65_536, 5: 65_536, 6: 262_144, 2: 0}
    assert announced(TUNNEL_RESPONDER, is_responder=True) == {1: 0, 4: 65_536, 5: 65_536, 6: 262_144, 3: 16_384, 8: 1}
    assert announced(FRONT_RESPONDER, is_responder=True) == {1: 4_096, 4: 262_144, 5: 16_384, 6: 65_536, 3: 250}


def test_values_are_taken_over_in_order_and_unknown_ones_ignored():
    peer = PeerSettings()
    peer.apply(
        payload((1, 1), (2, 0), (3, 7), (4, 9), (5, 20_000), (6, 100), (8, 1), (0x99, 5), (4, 10)),
        from_responder=True,
        first=True,
    )

    assert peer.header_table_bytes == 1
    assert peer.max_concurrent_streams == 7
    assert peer.initial_window_bytes == 10
    assert peer.max_frame_bytes == 20_000
    assert peer.max_header_list_bytes == 100
    assert peer.enable_connect_protocol


def test_no_limit_of_streams_in_the_first_settings_means_none():
    peer = PeerSettings()
    assert peer.max_concurrent_streams == 100
    peer.apply(b"", from_responder=True, first=True)
    assert peer.max_concurrent_streams == 2**32 - 1

    peer.apply(payload((3, 5)), from_responder=True, first=False)
    peer.apply(b"", from_responder=True, first=False)
    assert peer.max_concurrent_streams == 5


@pytest.mark.parametrize(
    ("setting", "value", "from_responder", "code"),
    [
        (2, 2, False, ErrorCode.PROTOCOL_ERROR),
        (2, 1, True, ErrorCode.PROTOCOL_ERROR),
        (4, 2**31, False, ErrorCode.FLOW_CONTROL_ERROR),
        (5, 16_383, False, ErrorCode.PROTOCOL_ERROR),
        (5, 2**24, False, ErrorCode.PROTOCOL_ERROR),
        (8, 2, True, ErrorCode.PROTOCOL_ERROR),
    ],
)
def test_a_value_that_the_rfc_forbids_is_refused(setting: int, value: int, from_responder: bool, code: ErrorCode):
    with pytest.raises(InvalidSetting, match=str(value)) as caught:
        PeerSettings().apply(payload((setting, value)), from_responder=from_responder, first=True)

    assert caught.value.code == code


@pytest.mark.parametrize(
    ("setting", "value", "from_responder"),
    [
        (2, 1, False),
        (2, 0, False),
        (2, 0, True),
        (4, 2**31 - 1, False),
        (5, 16_384, False),
        (5, 2**24 - 1, False),
        (8, 0, True),
    ],
)
def test_the_edges_of_the_allowed_are_allowed(setting: int, value: int, from_responder: bool):
    PeerSettings().apply(payload((setting, value)), from_responder=from_responder, first=True)


def test_extended_connect_is_never_taken_back():
    peer = PeerSettings()
    peer.apply(payload((8, 1)), from_responder=True, first=True)

    with pytest.raises(InvalidSetting):
        peer.apply(payload((8, 0)), from_responder=True, first=False)
