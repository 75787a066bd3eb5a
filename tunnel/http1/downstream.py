"""One request on an HTTP/1.1 front, and the means to answer it (a `tunnel.messages.Downstream`).

How requests follow each other on a connection, and when it is closed, is decided in `tunnel.http1.server`.
"""

from __future__ import annotations

from typing import Protocol

from tunnel.direct import DirectExchange
from tunnel.errors import LocalProtocolError, RemoteProtocolError, StreamReset
from tunnel.http1.framing import BodyDecoder, ChunkedDecoder, LengthDecoder
from tunnel.http1.heads import BodyKind, encode_response_head
from tunnel.http1.upgraded import UpgradedStream
from tunnel.http1.writing import MessageWriter, Sender
from tunnel.messages import BodyReader, Fields, RequestHead, ResponseHead, field_value
from tunnel.wakeup import Wakeup

_CLOSE = b"Connection: close\r\n"
_KEEP_ALIVE = b"Connection: keep-alive\r\n"


class RequestBody:
    """The body of a request, filled by the connection's reader (a `tunnel.messages.BodyReader`).

    Buffers at most what one read brings beyond a limit: the reader pauses while `buffered_bytes` is above it.
    """

    __slots__ = ("_arrived", "_decoder", "_error", "_pieces", "_room", "buffered_bytes")

    def __init__(self, head: RequestHead, arrived: Wakeup, room: Wakeup) -> None:
        self._decoder: BodyDecoder = (
            ChunkedDecoder()
            if head.content_length is None and not head.ended
            else LengthDecoder(head.content_length or 0)
        )
        self._arrived = arrived
        self._room = room
        self._pieces: list[bytes] = []
        self._error: RemoteProtocolError | StreamReset | None = None
        self.buffered_bytes = 0

    @property
    def trailers(self) -> Fields:
        """See `tunnel.messages.BodyReader`."""
        return self._decoder.trailers

    @trailers.setter
    def trailers(self, trailers: Fields) -> None:
        self._decoder.trailers = trailers

    @property
    def incomplete(self) -> bool:
        """True while bytes on the wire belong to this body."""
        return not self._decoder.ended

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the wire; returns those that are beyond the end of the body."""
        if self._error is not None:
            return b""
        try:
            content = self._decoder.feed(data)
        except RemoteProtocolError as error:
            self.fail(error)
            return b""
        if content:
            self._pieces.append(content)
            self.buffered_bytes += len(content)
        if content or self._decoder.ended:
            self._arrived.call()
        return self._decoder.leftover if self._decoder.ended else b""

    def fail(self, error: RemoteProtocolError | StreamReset) -> None:
        """Nothing more will come; `receive` raises this after what is buffered."""
        self._error = error
        self._arrived.call()

    async def receive(self) -> bytes:
        """See `tunnel.messages.BodyReader`. Also raises `RemoteProtocolError` for a malformed body."""
        while (data := self.receive_nowait()) is None:
            await self._arrived.wait()
        return data

    def receive_nowait(self) -> bytes | None:
        """See `tunnel.messages.BodyReader`. Also raises `RemoteProtocolError` for a malformed body."""
        if self._pieces:
            data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces.clear()
            self.buffered_bytes = 0
            self._room.call()
            return data
        if self._error is not None:
            raise self._error
        return b"" if self._decoder.ended else None

    @property
    def at_end(self) -> bool:
        """See `tunnel.messages.BodyReader`."""
        return self._decoder.ended and not self._pieces


class NoBody:
    """The body of a request that has none (a `tunnel.messages.BodyReader`)."""

    __slots__ = ("trailers",)

    incomplete = False
    at_end = True
    buffered_bytes = 0

    def __init__(self) -> None:
        self.trailers: Fields = []

    async def receive(self) -> bytes:
        """See `tunnel.messages.BodyReader`."""
        return b""

    def receive_nowait(self) -> bytes | None:
        """See `tunnel.messages.BodyReader`."""
        return b""

    def feed(self, data: bytes) -> bytes:
        """All of it lies beyond the end."""
        return data

    def fail(self, error: RemoteProtocolError | StreamReset) -> None:
        """It had ended before."""


class Connection(Protocol):
    """What one exchange needs of its connection."""

    sender: Sender
    must_close: bool
    """The next response is the last one, whatever the request says."""

    def note_answer(self) -> None:
        """A final response is about to be written; may set `must_close`."""
        ...

    def note_authenticated(self) -> None:
        """The exchange was authenticated."""
        ...

    def cancel_handler(self) -> None:
        """Cancel what serves the exchange; the connection ends with it."""
        ...

    def end_direct(self) -> None:
        """The exchange that was under way without a task has been answered."""
        ...

    def hand_over(self) -> None:
        """The exchange that was under way without a task needs one."""
        ...

    async def stop_reading(self) -> bytes:
        """Leave the receiving half to somebody else; returns what was read beyond the request."""
        ...


class Http1Downstream:
    """One exchange on an HTTP/1.1 connection. Made by `tunnel.http1.server.Http1Server` only."""

    __slots__ = (
        "_connection",
        "_response_started",
        "_writer",
        "body",
        "close",
        "direct",
        "request",
        "request_body",
        "stream",
    )

    def __init__(
        self, connection: Connection, request: RequestHead, body: RequestBody | NoBody, *, persistent: bool
    ) -> None:
        self._connection = connection
        self._writer: MessageWriter | None = None
        self._response_started = False
        self.request = request
        self.body: BodyReader = body
        self.request_body = body
        self.close = not persistent
        """Whether the connection ends with this exchange."""
        self.stream: UpgradedStream | None = None
        """The byte stream, once the exchange was upgraded."""
        self.direct: DirectExchange | None = None
        """See `tunnel.messages.Downstream.direct`."""

    def authenticated(self) -> None:
        """To be called once the caller is known: the limits for strangers no longer apply to the connection."""
        self._connection.note_authenticated()

    def cancel(self) -> None:
        """See `tunnel.messages.Downstream`."""
        self._connection.cancel_handler()

    @property
    def response_started(self) -> bool:
        """See `tunnel.messages.Downstream`."""
        return self._response_started

    @property
    def finished(self) -> bool:
        """True once the whole response was handed to the transport."""
        return self._writer is not None and self._writer.finished and self._connection.sender.intact

    @property
    def writer(self) -> MessageWriter:
        """See `tunnel.messages.Downstream`. Raises `LocalProtocolError` before `send_response`."""
        if self._writer is None:
            raise LocalProtocolError("the body of a response before its head")
        return self._writer

    async def send_interim(self, head: ResponseHead) -> None:
        """See `tunnel.messages.Downstream`. Cancelled, the exchange can only be reset."""
        if self._response_started or not 100 <= head.status < 200 or head.status == 101:
            raise LocalProtocolError(f"status {head.status} cannot be sent as an interim response now")
        if self.request.http_version >= (1, 1):
            await self._connection.sender.send(encode_response_head(head.status, head.fields))

    async def send_response(self, head: ResponseHead, data: bytes = b"", *, end: bool = False) -> None:
        """See `tunnel.messages.Downstream`. Raises `ConnectionEnded`, and `LocalProtocolError` for a wrong head.

        Data for the answer to a HEAD request counts for Content-Length and is not sent.
        """
        await self._connection.sender.send(self._whole(head, data, end=end))

    def respond_nowait(self, head: ResponseHead, data: bytes) -> bool:
        """See `tunnel.messages.Downstream.respond_nowait`. Raises as `send_response` does."""
        return self._connection.sender.send_nowait(self._whole(head, data, end=True))

    def start_nowait(self, head: ResponseHead, data: bytes) -> bool:
        """See `tunnel.messages.Downstream.start_nowait`. Raises as `send_response` does."""
        return self._connection.sender.send_nowait(self._whole(head, data, end=False))

    def write_nowait(self, data: bytes) -> bool:
        """See `tunnel.messages.Downstream.write_nowait`. Raises as `MessageWriter.send` does."""
        framed = self.writer.frame(data)
        return not framed or self._connection.sender.send_nowait(framed)

    def finish_nowait(self, trailers: Fields | tuple[()] = ()) -> bool:
        """See `tunnel.messages.Downstream.finish_nowait`. Raises as `MessageWriter.finish` does."""
        last = self.writer.end(trailers)
        return not last or self._connection.sender.send_nowait(last)

    async def flush(self) -> None:
        """See `tunnel.messages.Downstream.flush`."""
        await self._connection.sender.send_rest()

    def begin_direct(self, direct: DirectExchange) -> None:
        """See `tunnel.messages.Downstream.begin_direct`. Not to be called by the handler here."""
        self.direct = direct

    def end_direct(self) -> None:
        """See `tunnel.messages.Downstream.end_direct`."""
        self.direct = None
        self._connection.end_direct()

    def hand_over(self) -> None:
        """See `tunnel.messages.Downstream.hand_over`."""
        self._connection.hand_over()

    def _whole(self, head: ResponseHead, data: bytes, *, end: bool) -> bytes:
        """The final head and these bytes of the body as they go on the wire; the response has begun with that."""
        if self._response_started:
            raise LocalProtocolError("a second final response to one request")
        if head.status < 200:
            raise LocalProtocolError(f"status {head.status} is no final response")
        length = _declared_length(head)
        bodiless = head.status in (204, 304)
        if bodiless and data:
            raise LocalProtocolError(f"a body for status {head.status}")
        if end and not bodiless:
            if length is None and (data or self.request.method != b"HEAD"):
                length = len(data)
            elif data and length != len(data):
                raise LocalProtocolError("the body has not the length that was declared")
        kind, framing = self._frame(head, length)
        writer = MessageWriter(self._connection.sender, kind, length or 0 if kind is BodyKind.LENGTH else 0)
        if self.request.method == b"HEAD":
            data = b""
        wire = encode_response_head(head.status, head.fields, framing=framing) + writer.frame(data)
        if end or kind is BodyKind.NONE:
            wire += writer.end()
        self._writer = writer
        self._response_started = True
        return wire

    def _frame(self, head: ResponseHead, length: int | None) -> tuple[BodyKind, bytes]:
        """How the body of this response is framed, and the lines that say so and what becomes of the connection."""
        connection = self._connection
        connection.note_answer()
        request = self.request
        is_old = request.http_version < (1, 1)
        lines = b"" if length is None or head.status == 204 else b"Content-Length: %d\r\n" % length
        if head.status in (204, 304) or request.method == b"HEAD":
            kind = BodyKind.NONE
        elif head.ended and not length:
            kind = BodyKind.NONE
            lines = b"Content-Length: 0\r\n"
        elif length is not None:
            kind = BodyKind.LENGTH if length else BodyKind.NONE
        elif is_old:
            kind = BodyKind.UNTIL_CLOSE
            self.close = True
        else:
            kind = BodyKind.CHUNKED
            lines = b"Transfer-Encoding: chunked\r\n"
        if connection.must_close or request.protocol is not None or self.request_body.incomplete:
            self.close = True
        if self.close:
            return kind, lines + _CLOSE
        return kind, lines + _KEEP_ALIVE if is_old else lines

    async def accept_upgrade(self, head: ResponseHead) -> UpgradedStream:
        """See `tunnel.messages.Downstream`. The 101 leaves in a write of its own before anything else can.

        Raises `LocalProtocolError` where no upgrade was asked for, or the response has begun.
        """
        if self.request.protocol is None or self._response_started:
            raise LocalProtocolError("nothing to upgrade here")
        if head.status != 101:
            raise LocalProtocolError(f"status {head.status} accepts no upgrade in HTTP/1.1")
        wire = encode_response_head(
            101, head.fields, framing=b"Connection: Upgrade\r\nUpgrade: %b\r\n" % self.request.protocol
        )
        self._response_started = True
        self.close = True
        initial = await self._connection.stop_reading()
        await self._connection.sender.send(wire)
        self.stream = UpgradedStream(self._connection.sender.transport, initial)
        return self.stream

    def reset(self, code: int) -> None:
        """Abort the connection, unless the response is whole. HTTP/1.1 has no place for the code."""
        if self.finished:
            return
        self._response_started = True
        if self.stream is not None:
            self.stream.reset(code)
        else:
            self._connection.sender.abort()


def _declared_length(head: ResponseHead) -> int | None:
    """The length that the head declares, in itself or by its field."""
    if head.content_length is not None:
        return head.content_length
    value = field_value(head.fields, b"content-length")
    if value is None:
        return None
    if not value.isdigit():
        raise LocalProtocolError("a malformed Content-Length was to be sent")
    return int(value)
