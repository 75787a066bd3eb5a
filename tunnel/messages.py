"""One request and its response, whatever carries them: heads, and the shape of the two ends of an exchange.

Towards the caller stands a `Downstream` (an HTTP/1.1 or HTTP/2 front in kas; a stream of the tunnel in agentk). Towards
the cluster stands an `Upstream` (a stream of the tunnel in kas; an HTTP/1.1 connection in agentk). `tunnel.relay` joins
one of each. Nothing here does I/O.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from tunnel.direct import DirectExchange

Field = tuple[bytes, bytes]
"""One field line: the name in lower case, the value without surrounding white space."""

Fields = list[Field]
"""Field lines in the order of the wire, repeats kept apart."""


@dataclasses.dataclass(slots=True)
class RequestHead:
    """The head of a request. No pseudo-fields, no ``host``, no ``transfer-encoding`` among ``fields``."""

    method: bytes
    """Any RFC 9110 token, case kept."""
    target: bytes
    """Path and query, byte for byte as received ("/…" or "*")."""
    authority: bytes
    """Host or ``:authority``, as received; may be empty."""
    fields: Fields
    """End-to-end and (from HTTP/1.1, until `tunnel.fields.strip_hop_by_hop`) connection-specific field lines.
    ``content-length`` stays where it was sent."""
    protocol: bytes | None = None
    """The upgrade token (HTTP/1.1 ``Upgrade``, HTTP/2 ``:protocol``), where this asks for an upgrade."""
    content_length: int | None = None
    """The declared length of the body in bytes; None where it was not declared."""
    ended: bool = False
    """True where no body follows (and none was declared, or its length is 0)."""
    http_version: tuple[int, int] = (1, 1)
    """The version that the caller spoke on this hop."""


@dataclasses.dataclass(slots=True)
class ResponseHead:
    """The head of an interim (1xx) or final response."""

    status: int
    fields: Fields
    content_length: int | None = None
    ended: bool = False
    """True where no body follows."""


class BodyReader(Protocol):
    """The receiving end of a message body."""

    trailers: Fields
    """The trailer section; complete once `receive` has returned ``b""``."""

    async def receive(self) -> bytes:
        """The next bytes, as they arrived; ``b""`` at the clean end and ever after.

        Raises `StreamError` or `ConnectionEnded` where the message was cut off. Cancelling is safe: nothing is lost.
        """
        ...

    def receive_nowait(self) -> bytes | None:
        """What `receive` would return without waiting, or None where it would wait. Raises as `receive` does."""
        ...

    @property
    def at_end(self) -> bool:
        """True once everything has been received and the end was clean (the next `receive` returns ``b""``)."""
        ...


class BodyWriter(Protocol):
    """The sending end of a message body. Its only clean end is `finish`."""

    async def send(self, data: bytes) -> None:
        """Send bytes; returns when this end may take more.

        Raises `StreamError` or `ConnectionEnded`. Cancelled, the message can only be reset.
        """
        ...

    async def finish(self, trailers: Fields | tuple[()] = ()) -> None:
        """End the message cleanly."""
        ...

    def reset(self, code: int) -> None:
        """Cut the message off so that the receiver sees it. Does nothing after `finish`, or the second time."""
        ...


class ByteStream(Protocol):
    """Both directions of an upgraded connection; every implementation is a `trio.abc.HalfCloseableStream`."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes; ``b""`` once the other side has closed its half. Raises `trio.BrokenResourceError`."""
        ...

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of it. Raises `trio.BrokenResourceError`, `trio.ClosedResourceError`."""
        ...

    async def wait_send_all_might_not_block(self) -> None:
        """Returns once `send_all` would make progress at once."""
        ...

    async def send_eof(self) -> None:
        """Close this half; the other half stays open."""
        ...

    async def aclose(self) -> None:
        """Close both halves in order."""
        ...

    def reset(self, code: int) -> None:
        """Close both halves so that the other side sees a failure."""
        ...


class Downstream(Protocol):
    """One request that arrived here, and the means to answer it."""

    request: RequestHead
    direct: DirectExchange | None
    """What is under way here without a task, until a task has taken it up (`tunnel.direct`)."""

    def begin_direct(self, direct: DirectExchange) -> None:
        """The exchange is under way without a task from now on, whoever called this."""
        ...

    @property
    def body(self) -> BodyReader:
        """The request body."""
        ...

    def respond_nowait(self, head: ResponseHead, data: bytes) -> bool:
        """Send a whole response without waiting; False where the end of it still waits for room: then `flush` it.

        Raises `StreamError` or `ConnectionEnded`.
        """
        ...

    def start_nowait(self, head: ResponseHead, data: bytes) -> bool:
        """Send a final head and the first bytes of a longer body; False as for `respond_nowait`. Raises as that does."""
        ...

    def write_nowait(self, data: bytes) -> bool:
        """Send more of the body that `start_nowait` began; False where no more should follow before `flush`."""
        ...

    def finish_nowait(self, trailers: Fields | tuple[()] = ()) -> bool:
        """End the body that `start_nowait` began; False as for `respond_nowait`."""
        ...

    async def flush(self) -> None:
        """Send what one of the above had to leave. Cancelled, the exchange can only be reset."""
        ...

    def end_direct(self) -> None:
        """The direct exchange is over; where it was answered, the connection goes on."""
        ...

    def hand_over(self) -> None:
        """Have a task call the handler with this; it finds `direct`, takes it away and goes on."""
        ...

    async def send_interim(self, head: ResponseHead) -> None:
        """Send a 1xx response other than 101. Does nothing where the caller's version has none (HTTP/1.0)."""
        ...

    async def send_response(self, head: ResponseHead, data: bytes = b"", *, end: bool = False) -> None:
        """Send the final head, and the first bytes of the body with it.

        With ``end``, ``data`` is the whole body and the message is finished. Otherwise go on with `writer`. A head that
        has no body (``head.ended``, HEAD, 204, 304) takes no data. It leaves at once.
        """
        ...

    @property
    def writer(self) -> BodyWriter:
        """The body of the response; usable after `send_response` without ``end``."""
        ...

    async def accept_upgrade(self, head: ResponseHead) -> ByteStream:
        """Answer an upgrade positively and hand over the byte stream. ``head.status`` is 101 on both kinds of front.

        Bytes that came behind the request are the first ones of the stream.
        """
        ...

    def reset(self, code: int) -> None:
        """End the exchange visibly: RST_STREAM, or a close before the message is whole."""
        ...

    def authenticated(self) -> None:
        """Say that the caller is known: the limits for connections of strangers no longer apply to this one."""
        ...

    def cancel(self) -> None:
        """Cancel the task that serves this request, from another one; the caller sees a broken exchange."""
        ...

    @property
    def response_started(self) -> bool:
        """True once a final head has been handed to the transport, or the exchange was reset."""
        ...


class Upstream(Protocol):
    """One request that was sent on, and its response."""

    @property
    def body(self) -> BodyReader:
        """The response body; usable after the final head."""
        ...

    @property
    def writer(self) -> BodyWriter:
        """The request body; where the request head said ``ended``, it is finished already."""
        ...

    async def receive_head(self) -> ResponseHead:
        """The next head: any number of 1xx, then the final one. A 101 is final where an upgrade was asked for.

        Raises `StreamError`, `ConnectionEnded` or `RemoteProtocolError`.
        """
        ...

    def take_stream(self) -> ByteStream:
        """The byte stream behind a positive answer to an upgrade, over-read bytes first."""
        ...

    def reset(self, code: int) -> None:
        """Give the exchange up: RST_STREAM, or a close of the connection. Idempotent; nothing after a clean end."""
        ...


def field_value(fields: Sequence[Field], name: bytes) -> bytes | None:
    """The value of the first field line of this (lower-case) name, or None."""
    for field_name, value in fields:
        if field_name == name:
            return value
    return None


def field_values(fields: Sequence[Field], name: bytes) -> list[bytes]:
    """The values of all field lines of this (lower-case) name, in order."""
    return [value for field_name, value in fields if field_name == name]
