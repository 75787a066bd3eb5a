"""The exceptions of the package. Imports nothing.

TunnelError
├── HandshakeError            the other side refused, or is not what we took it for; before HTTP/2 starts
├── ConnectionEnded           the connection is over: by whom, code, text
│   └── PeerUnresponsive      a PING went unanswered, or a write made no progress, past its deadline
├── StreamError               one stream or message: the connection may live on
│   ├── StreamReset           RST_STREAM was received or sent, or the message was cut off
│   ├── StreamRefused         provably not processed by the peer: safe to send elsewhere (RFC 9113 §8.7)
│   └── StreamLimitReached    the peer's MAX_CONCURRENT_STREAMS is used up
└── ProtocolError             abstract
    ├── LocalProtocolError    we broke the protocol: a bug of ours
    └── RemoteProtocolError   they broke it; carries the HTTP status to answer with, where one can be
"""

from __future__ import annotations

import enum


class ErrorCode(enum.IntEnum):
    """HTTP/2 error codes, RFC 9113 §7."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


def error_code_name(code: int) -> str:
    """The RFC's name of an error code, or its hexadecimal number where the RFC has none."""
    try:
        return ErrorCode(code).name
    except ValueError:
        return f"0x{code:x}"


class TunnelError(Exception):
    """Root of this package's exceptions."""


class HandshakeError(TunnelError):
    """The handshake failed before HTTP/2 began.

    ``status`` is the HTTP status that was received or is to be answered (0 where there was none), ``reason`` a short
    machine-readable word, ``retry_after`` the seconds that the other side asked us to wait, where it did.
    """

    def __init__(self, message: str, *, status: int = 0, reason: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after


class ConnectionEnded(TunnelError):
    """The connection is over. ``local`` tells whether this side ended it."""

    def __init__(self, message: str, *, code: int = ErrorCode.NO_ERROR, local: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.local = local


class PeerUnresponsive(ConnectionEnded):
    """Nothing came back within the deadline."""


class StreamError(TunnelError):
    """Something ended one stream, or one HTTP/1.1 message."""


class StreamReset(StreamError):
    """A stream was reset, or a message cut off before its end.

    ``remote`` is True where the peer did it. ``code`` is an HTTP/2 error code; HTTP/1.1 ends use the nearest one.
    """

    def __init__(self, message: str = "", *, code: int = ErrorCode.CANCEL, remote: bool = True) -> None:
        who = "by the peer" if remote else "by this side"
        super().__init__(message or f"stream reset {who}: {error_code_name(code)}")
        self.code = code
        self.remote = remote


class StreamRefused(StreamError):
    """The peer did not process the request: REFUSED_STREAM, or a stream above the last id of its GOAWAY."""


class StreamLimitReached(StreamError):
    """No stream can be opened now: the peer allows no more at a time."""


class ProtocolError(TunnelError):
    """Abstract: raise one of the two below."""


class LocalProtocolError(ProtocolError):
    """This side used the protocol wrongly: a bug here, not bad input."""


class RemoteProtocolError(ProtocolError):
    """The other side sent what the protocol forbids.

    ``status`` is the HTTP status that says so best, for where an answer can still be given.
    """

    def __init__(self, message: str, *, code: int = ErrorCode.PROTOCOL_ERROR, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


def first_text(group: BaseExceptionGroup[BaseException]) -> str:
    """What the first error in the group says, or what it is."""
    error = _first(group)
    return str(error) or type(error).__name__


def first_connection_ended(group: BaseExceptionGroup[ConnectionEnded]) -> ConnectionEnded:
    """The first error in the group."""
    error = _first(group)
    assert isinstance(error, ConnectionEnded)
    return error


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
