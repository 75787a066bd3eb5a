"""Engines back to back, and raw frames: what the tests of `tunnel.h2` speak in."""

from __future__ import annotations

import dataclasses
import struct
from typing import Any

from tunnel.h2.config import TUNNEL_REQUESTER, TUNNEL_RESPONDER, EngineConfig
from tunnel.h2.engine import Engine, Role
from tunnel.h2.events import Event
from tunnel.h2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)
from tunnel.messages import Fields

REQUEST: Fields = [
    (b":method", b"GET"),
    (b":scheme", b"http"),
    (b":authority", b"kubernetes"),
    (b":path", b"/api"),
]
POST: Fields = [(b":method", b"POST"), *REQUEST[1:]]
RESPONSE: Fields = [(b":status", b"200"), (b"content-type", b"text/plain")]


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame as it stands on the wire."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes


def frame(kind: int, flags: int = 0, stream_id: int = 0, payload: bytes = b"") -> bytes:
    """Any frame at all, valid or not."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream_id) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A literal field line without indexing, for short names and values."""
    assert len(name) < 127
    assert len(value) < 127
    return b"\x00" + bytes((len(name),)) + name + bytes((len(value),)) + value


def block(fields: Fields) -> bytes:
    """A field block of literals."""
    return b"".join(literal(name, value) for name, value in fields)


def headers(stream_id: int, fields: Fields, flags: int = END_HEADERS | END_STREAM) -> bytes:
    """One HEADERS frame."""
    return frame(HEADERS, flags, stream_id, block(fields))


def data(stream_id: int, payload: bytes, flags: int = 0) -> bytes:
    """One DATA frame."""
    return frame(DATA, flags, stream_id, payload)


def settings(values: dict[int, int] | None = None) -> bytes:
    """One SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *item) for item in (values or {}).items()))


SETTINGS_ACK = frame(SETTINGS, ACK)


def window_update(stream_id: int, increment: int) -> bytes:
    """One WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream_id, struct.pack(">I", increment))


def rst_stream(stream_id: int, code: int = 8) -> bytes:
    """One RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream_id, struct.pack(">I", code))


def ping(payload: bytes = b"12345678", flags: int = 0) -> bytes:
    """One PING frame."""
    return frame(PING, flags, 0, payload)


def goaway(last_stream_id: int, code: int = 0, debug: bytes = b"") -> bytes:
    """One GOAWAY frame."""
    return frame(7, 0, 0, struct.pack(">II", last_stream_id, code) + debug)


def continuation(stream_id: int, payload: bytes, flags: int = 0) -> bytes:
    """One CONTINUATION frame."""
    return frame(CONTINUATION, flags, stream_id, payload)


def parse(wire: bytes) -> list[Frame]:
    """The frames in what an engine sent; a preface in front is skipped."""
    wire = wire.removeprefix(PREFACE)
    frames = []
    while wire:
        length = int.from_bytes(wire[:3], "big")
        kind, flags, stream_id = struct.unpack(">BBI", wire[3:9])
        assert len(wire) >= 9 + length, "a frame that is cut off"
        frames.append(Frame(kind, flags, stream_id, wire[9 : 9 + length]))
        wire = wire[9 + length :]
    return frames


def gather(engine: Engine, max_bytes: int = 262_144) -> bytes:
    """What the engine has to send now."""
    return b"".join(engine.gather(max_bytes))


def gather_all(engine: Engine) -> bytes:
    """Everything that windows let go."""
    sent = b""
    while engine.has_output:
        sent += gather(engine)
    return sent


def sent_frames(engine: Engine, kind: int | None = None) -> list[Frame]:
    """The frames that the engine has to send, or those of one kind."""
    return [each for each in parse(gather_all(engine)) if kind is None or each.kind == kind]


def lone_engine(
    role: Role = Role.RESPONDER,
    config: EngineConfig | None = None,
    peer_settings: dict[int, int] | None = None,
    **more: Any,
) -> Engine:
    """An engine that has greeted a peer made of raw frames, with nothing left to send."""
    if config is None:
        config = TUNNEL_RESPONDER if role is Role.RESPONDER else TUNNEL_REQUESTER
    engine = Engine(role, dataclasses.replace(config, **more))
    engine.start()
    preface = PREFACE if role is Role.RESPONDER else b""
    engine.receive(preface + settings(peer_settings) + SETTINGS_ACK, 0.0)
    gather_all(engine)
    return engine


class Pair:
    """A requester and a responder, wired to each other."""

    def __init__(
        self, requester: EngineConfig = TUNNEL_REQUESTER, responder: EngineConfig = TUNNEL_RESPONDER, **both: Any
    ) -> None:
        self.requester = Engine(Role.REQUESTER, dataclasses.replace(requester, **both))
        self.responder = Engine(Role.RESPONDER, dataclasses.replace(responder, **both))
        self.now = 0.0
        self.requester.start()
        self.responder.start()
        self.pump()

    def to_responder(self) -> list[Event]:
        """Deliver what the requester has to say."""
        return self.responder.receive(gather_all(self.requester), self.now)

    def to_requester(self) -> list[Event]:
        """Deliver what the responder has to say."""
        return self.requester.receive(gather_all(self.responder), self.now)

    def pump(self) -> tuple[list[Event], list[Event]]:
        """Deliver until both are silent: the events of the requester, and of the responder."""
        at_requester: list[Event] = []
        at_responder: list[Event] = []
        while self.requester.has_output or self.responder.has_output:
            at_responder += self.to_responder()
            at_requester += self.to_requester()
        return at_requester, at_responder
