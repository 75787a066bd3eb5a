"""SETTINGS (RFC 9113 §6.5, RFC 8441 §3): what we announce, and what the peer has announced."""

from __future__ import annotations

import struct
from typing import Final

from tunnel.errors import ErrorCode
from tunnel.h2.config import EngineConfig
from tunnel.h2.frames import (
    DEFAULT_MAX_FRAME_BYTES,
    DEFAULT_WINDOW_BYTES,
    LARGEST_MAX_FRAME_BYTES,
    LARGEST_WINDOW_BYTES,
)

HEADER_TABLE_SIZE: Final = 0x1
ENABLE_PUSH: Final = 0x2
MAX_CONCURRENT_STREAMS: Final = 0x3
INITIAL_WINDOW_SIZE: Final = 0x4
MAX_FRAME_SIZE: Final = 0x5
MAX_HEADER_LIST_SIZE: Final = 0x6
ENABLE_CONNECT_PROTOCOL: Final = 0x8

ASSUMED_CONCURRENT_STREAMS: Final = 100
"""How many streams we open before the peer has said how many it takes; RFC 9113 asks for no fewer."""


class InvalidSetting(Exception):
    """A value that the RFC forbids. ``code`` is the error of the connection."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class PeerSettings:
    """The peer's settings; its defaults until SETTINGS has arrived."""

    __slots__ = (
        "enable_connect_protocol",
        "header_table_bytes",
        "initial_window_bytes",
        "max_concurrent_streams",
        "max_frame_bytes",
        "max_header_list_bytes",
    )

    def __init__(self) -> None:
        self.header_table_bytes = 4_096
        self.max_concurrent_streams = ASSUMED_CONCURRENT_STREAMS
        self.initial_window_bytes = DEFAULT_WINDOW_BYTES
        self.max_frame_bytes = DEFAULT_MAX_FRAME_BYTES
        self.max_header_list_bytes: int | None = None
        self.enable_connect_protocol = False

    def apply(self, payload: bytes, *, from_responder: bool, first: bool) -> None:
        """Take over the values of a SETTINGS payload, in order; unknown ones are ignored.

        Raises `InvalidSetting`. ``first``: an absent MAX_CONCURRENT_STREAMS then means that there is no limit.
        """
        if first:
            self.max_concurrent_streams = 2**32 - 1
        for setting, value in struct.iter_unpack(">HI", payload):
            if setting == HEADER_TABLE_SIZE:
                self.header_table_bytes = value
            elif setting == ENABLE_PUSH:
                # RFC 9113 §6.5.2: a server must not announce 1, a client nothing but 0 and 1.
                _require(value == 0 or (value == 1 and not from_responder), "ENABLE_PUSH", value)
            elif setting == MAX_CONCURRENT_STREAMS:
                self.max_concurrent_streams = value
            elif setting == INITIAL_WINDOW_SIZE:
                if value > LARGEST_WINDOW_BYTES:
                    raise InvalidSetting(ErrorCode.FLOW_CONTROL_ERROR, f"SETTINGS INITIAL_WINDOW_SIZE is {value}")
                self.initial_window_bytes = value
            elif setting == MAX_FRAME_SIZE:
                _require(DEFAULT_MAX_FRAME_BYTES <= value <= LARGEST_MAX_FRAME_BYTES, "MAX_FRAME_SIZE", value)
                self.max_frame_bytes = value
            elif setting == MAX_HEADER_LIST_SIZE:
                self.max_header_list_bytes = value
            elif setting == ENABLE_CONNECT_PROTOCOL:
                # RFC 8441 §3: 0 or 1, and never taken back.
                _require(
                    value == 1 or (value == 0 and not self.enable_connect_protocol), "ENABLE_CONNECT_PROTOCOL", value
                )
                self.enable_connect_protocol = value == 1


def _require(valid: bool, name: str, value: int) -> None:
    if not valid:
        raise InvalidSetting(ErrorCode.PROTOCOL_ERROR, f"SETTINGS {name} is {value}")


def announced(config: EngineConfig, *, is_responder: bool) -> dict[int, int]:
    """The settings that this side sends."""
    values = {
        HEADER_TABLE_SIZE: config.header_table_bytes,
        INITIAL_WINDOW_SIZE: config.initial_window_bytes,
        MAX_FRAME_SIZE: config.max_frame_bytes,
        MAX_HEADER_LIST_SIZE: config.max_header_list_bytes,
    }
    if not is_responder:
        values[ENABLE_PUSH] = 0
        return values
    values[MAX_CONCURRENT_STREAMS] = config.max_concurrent_streams
    if config.enable_connect_protocol:
        values[ENABLE_CONNECT_PROTOCOL] = 1
    return values
