"""What an engine reports: one dataclass for each thing that the peer did and that somebody has to act on.

Flow control, acknowledgements and frames on dead streams are dealt with inside and never surface. What a peer said is
left out of the representations, since it may hold credentials.
"""

from __future__ import annotations

import dataclasses

from tunnel.h2.stream import Stream
from tunnel.messages import Fields


@dataclasses.dataclass(slots=True)
class RequestReceived:
    """A valid request head (responder). Pseudo-fields come first; ``ended`` means that there is no body."""

    stream: Stream
    fields: Fields = dataclasses.field(repr=False)
    ended: bool


@dataclasses.dataclass(slots=True)
class InterimReceived:
    """A 1xx response head (requester). Any number may come before the final one."""

    stream: Stream
    fields: Fields = dataclasses.field(repr=False)


@dataclasses.dataclass(slots=True)
class ResponseReceived:
    """The final response head (requester); ``ended`` means that there is no body."""

    stream: Stream
    fields: Fields = dataclasses.field(repr=False)
    ended: bool


@dataclasses.dataclass(slots=True)
class HeadTooLarge:
    """A head above our MAX_HEADER_LIST_SIZE or limit of lines; the connection is sound.

    A responder answers 431, a requester gives the exchange up with 502. DATA that follows is credited and dropped.
    """

    stream: Stream


@dataclasses.dataclass(slots=True)
class DataReceived:
    """Bytes of a body, without padding. Empty only together with ``ended``. Give them back with `Engine.consume`."""

    stream: Stream
    data: bytes = dataclasses.field(repr=False)
    ended: bool


@dataclasses.dataclass(slots=True)
class TrailersReceived:
    """The trailer section, and with it the end of the message."""

    stream: Stream
    fields: Fields = dataclasses.field(repr=False)


@dataclasses.dataclass(slots=True)
class StreamWasReset:
    """The stream is dead in both directions.

    ``remote``: RST_STREAM arrived, or GOAWAY excluded the stream. Otherwise the engine reset it, for a violation by the
    peer or for lack of progress; RST_STREAM is queued. ``refused``: the peer has provably not processed the request.
    """

    stream: Stream
    code: int
    remote: bool
    refused: bool


@dataclasses.dataclass(slots=True)
class SettingsReceived:
    """The peer's SETTINGS are in force. May come again."""


@dataclasses.dataclass(slots=True)
class Pong:
    """A PING of ours was answered."""

    payload: bytes


@dataclasses.dataclass(slots=True)
class PeerGoingAway:
    """GOAWAY arrived. `StreamWasReset` with ``refused`` follows for each stream of ours above ``last_stream_id``."""

    last_stream_id: int
    code: int
    debug: bytes


@dataclasses.dataclass(slots=True)
class ConnectionFailed:
    """The connection cannot go on. GOAWAY is queued: send what `Engine.gather` gives and close.

    ``text`` names the rule that was broken or the budget that was exceeded, for the log of this side.
    """

    code: int
    text: str


Event = (
    RequestReceived
    | InterimReceived
    | ResponseReceived
    | HeadTooLarge
    | DataReceived
    | TrailersReceived
    | StreamWasReset
    | SettingsReceived
    | Pong
    | PeerGoingAway
    | ConnectionFailed
)
