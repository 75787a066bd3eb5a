"""The HTTP/1.1 end towards an upstream: one connection, one exchange at a time (RFC 9112).

It has no task of its own: what is received is read by whoever asks for it, and what is sent is written by whoever has
the writer, which may be two tasks at once. It neither dials nor retries; a pool does, by what is told here.
"""

from __future__ import annotations

import trio

from tunnel.errors import ConnectionEnded, LocalProtocolError, RemoteProtocolError, StreamReset
from tunnel.http1.framing import BodyDecoder, ChunkedDecoder, LengthDecoder, UntilCloseDecoder
from tunnel.http1.heads import BodyKind, HeadBuffer, encode_request_head, parse_response_head
from tunnel.http1.limits import DEFAULT_LIMITS, Http1Limits
from tunnel.http1.upgraded import UpgradedStream
from tunnel.http1.writing import MessageWriter, Sender
from tunnel.messages import BodyReader, Fields, RequestHead, ResponseHead, field_values
from tunnel.transports.base import Transport

# Methods whose requests usually have no body, so that nothing needs to say so (RFC 9110 §8.6).
_BODILESS_METHODS = frozenset([b"GET", b"HEAD", b"OPTIONS", b"DELETE", b"TRACE", b"CONNECT"])
_TRANSPORT_ERRORS = (trio.BrokenResourceError, trio.ClosedResourceError)


class Http1Client:
    """One connection to an upstream.

    `send` begins an exchange; the next one may begin once `reusable` is true again. After any error, and after a
    cancelled write, the connection is only good for `abort`.
    """

    __slots__ = ("_exchange", "_transport", "input", "limits", "received_any_byte", "sender")

    def __init__(self, transport: Transport, *, limits: Http1Limits = DEFAULT_LIMITS) -> None:
        self.sender = Sender(transport, "upstream")
        self.input = HeadBuffer()
        self.limits = limits
        self.received_any_byte = False
        """Whether a byte of a response to the current request arrived."""
        self._transport = transport
        self._exchange: Http1Upstream | None = None

    @property
    def sent_any_byte(self) -> bool:
        """Whether writing the current request has begun: if not, it was certainly not processed."""
        return self.sender.wrote

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent: the last exchange, if any, left the connection between two messages."""
        return self.sender.intact and (self._exchange is None or self._exchange.ended_cleanly)

    def is_idle_and_alive(self) -> bool:
        """Whether the connection is `reusable` and nothing at all has arrived on it: no byte, and no end."""
        if not self.reusable:
            return False
        try:
            arrived = self._transport.receive_nowait()
        except _TRANSPORT_ERRORS:
            arrived = b""
        if arrived is None:
            return True
        self.sender.intact = False
        return False

    async def send(
        self,
        head: RequestHead,
        *,
        authority: bytes,
        wait_for_continue: bool = False,
        data: bytes = b"",
        end: bool = False,
    ) -> Http1Upstream:
        """Send a request head, which leaves at once, and with it the first bytes of the body.

        ``authority`` becomes ``Host``. ``head.fields`` are the end-to-end lines; what frames the message and asks for
        an upgrade is written here. With ``end``, ``data`` is the whole body. ``wait_for_continue`` says that the body
        is to wait for a 100, so that there can be no data yet.

        Raises `ConnectionEnded`, and `LocalProtocolError` for a head that cannot be sent or a connection that is not
        `reusable`. Cancelled, the connection can only be aborted.
        """
        if not self.reusable:
            raise LocalProtocolError("a request on a connection that is not free")
        if wait_for_continue and (data or end):
            raise LocalProtocolError("a body that was to wait for 100 (Continue)")
        kind, length = _request_framing(head, len(data) if end else None)
        framing = b""
        if kind is BodyKind.CHUNKED:
            framing = b"Transfer-Encoding: chunked\r\n"
        elif length is not None:
            framing = b"Content-Length: %d\r\n" % length
        wire = encode_request_head(head, authority=authority, framing=framing)
        writer = MessageWriter(self.sender, kind, length or 0)
        wire += writer.frame(data)
        if end or kind is BodyKind.NONE:
            wire += writer.end()
        exchange = self._exchange = Http1Upstream(self, head, writer)
        self.received_any_byte = False
        self.sender.wrote = False
        await self.sender.send(wire)
        return exchange

    def send_nowait(self, head: RequestHead, *, authority: bytes) -> bool:
        """Send a request that consists of its head, without waiting; False where it could not leave as a whole.

        Then, and where `ConnectionEnded` is raised, the connection is only good for `abort`. What arrives next belongs
        to `take_whole`, or to the exchange that `take_up` makes. Raises `LocalProtocolError` for a head that cannot be
        sent; then nothing has happened.
        """
        _, length = _request_framing(head, None)
        framing = b"" if length is None else b"Content-Length: %d\r\n" % length
        wire = encode_request_head(head, authority=authority, framing=framing)
        self._exchange = None
        self.received_any_byte = False
        self.sender.wrote = False
        return self.sender.send_nowait(wire)

    def take_whole(self, data: bytes, method: bytes) -> tuple[ResponseHead, bytes] | None:
        """The response to what `send_nowait` sent, if these bytes are one final response to the end and nothing else.

        The connection is then `reusable`, if the response allows it. None: nothing has happened.
        """
        end = data.find(b"\r\n\r\n")
        if not 0 < end <= self.limits.response_head_bytes or len(self.input):
            return None
        try:
            head, framing = parse_response_head(data[: end + 2], method, limits=self.limits)
            body = data[end + 4 :]
            if framing.kind is BodyKind.CHUNKED:
                decoder = ChunkedDecoder()
                body = decoder.feed(body)
                if not decoder.ended or decoder.leftover or decoder.trailers:
                    return None
        except RemoteProtocolError:
            return None  # whoever takes the exchange up finds the same
        if head.status < 200 or framing.kind is BodyKind.UNTIL_CLOSE:
            return None
        if framing.kind is not BodyKind.CHUNKED:
            length = head.content_length if framing.kind is BodyKind.LENGTH else 0
            if len(body) != length:
                return None
        if not framing.persistent:
            self.sender.intact = False
        return head, body

    def take_up(self, head: RequestHead, data: bytes) -> Http1Upstream:
        """The exchange of a request that `send_nowait` sent, of whose response these bytes have arrived."""
        writer = MessageWriter(self.sender, BodyKind.NONE)
        writer.end()
        self._exchange = Http1Upstream(self, head, writer)
        if data:
            self.input.append(data)
        return self._exchange

    async def receive_some(self) -> bytes:
        """The next bytes of the transport, for the exchange. Raises `ConnectionEnded`."""
        try:
            data = await self._transport.receive_some()
        except _TRANSPORT_ERRORS as error:
            raise ConnectionEnded("the connection to the upstream was lost while reading") from error
        if data:
            self.received_any_byte = True
        return data

    def receive_nowait(self) -> bytes | None:
        """What `receive_some` would return at once, or None."""
        try:
            data = self._transport.receive_nowait()
        except _TRANSPORT_ERRORS as error:
            raise ConnectionEnded("the connection to the upstream was lost while reading") from error
        if data:
            self.received_any_byte = True
        return data

    @property
    def clean_eof(self) -> bool:
        """Whether the end of the input was vouched for."""
        return self._transport.clean_eof

    async def aclose(self) -> None:
        """Close the connection in order. Idempotent."""
        self.sender.intact = False
        try:
            await self._transport.aclose()
        except trio.BrokenResourceError:
            pass  # closed is closed
        finally:
            self._transport.abort()

    def abort(self) -> None:
        """Close the connection at once. Idempotent."""
        self.sender.abort()


def _request_framing(head: RequestHead, whole_length: int | None) -> tuple[BodyKind, int | None]:
    """How the body of this request is framed, and the length to declare, if any."""
    length = head.content_length
    if head.protocol is not None:
        if not head.ended or length or whole_length:
            raise LocalProtocolError("a request for an upgrade has no body")
        return BodyKind.NONE, None if head.method == b"GET" else 0
    if head.ended:
        if length or whole_length:
            raise LocalProtocolError("a body for a request that was said to have none")
        return BodyKind.NONE, None if length is None and head.method in _BODILESS_METHODS else 0
    if length is None:
        length = whole_length
    elif whole_length is not None and whole_length != length:
        raise LocalProtocolError("the body has not the length that was declared")
    if length is None:
        return BodyKind.CHUNKED, None
    return BodyKind.LENGTH if length else BodyKind.NONE, length


class ResponseBody:
    """The body of a response (a `tunnel.messages.BodyReader`), read from the connection on demand."""

    __slots__ = ("_client", "_decoder", "_error", "_ready")

    def __init__(self, client: Http1Client) -> None:
        self._client = client
        self._decoder: BodyDecoder | None = None
        self._ready = b""
        self._error: RemoteProtocolError | StreamReset | ConnectionEnded | None = None

    def begin(self, decoder: BodyDecoder) -> None:
        """The head has said how the body is framed; what was read with the head belongs to it."""
        self._decoder = decoder
        if not decoder.ended and len(self._client.input):
            self._ready = self._feed(decoder, self._client.input.take_all())

    @property
    def trailers(self) -> Fields:
        """See `tunnel.messages.BodyReader`."""
        return self._decoder.trailers if self._decoder is not None else []

    @trailers.setter
    def trailers(self, trailers: Fields) -> None:
        self._framing().trailers = trailers

    @property
    def failed(self) -> bool:
        """Whether `receive` raises once it has given what is at hand."""
        return self._error is not None

    @property
    def ended(self) -> bool:
        """True once the end was found and was clean, whether or not everything has been taken."""
        return self._decoder is not None and self._decoder.ended

    @property
    def at_end(self) -> bool:
        """See `tunnel.messages.BodyReader`."""
        return self.ended and not self._ready

    async def receive(self) -> bytes:
        """See `tunnel.messages.BodyReader`. Also raises `RemoteProtocolError`, with status 502."""
        while (data := self._take()) is None:
            self.take_in(await self._client.receive_some())
        return data

    def receive_nowait(self) -> bytes | None:
        """See `tunnel.messages.BodyReader`. Also raises `RemoteProtocolError`, with status 502."""
        while (data := self._take()) is None:
            arrived = self._client.receive_nowait()
            if arrived is None:
                return None
            self.take_in(arrived)
        return data

    def _take(self) -> bytes | None:
        if self._ready:
            data = self._ready
            self._ready = b""
            return data
        if self._error is not None:
            raise self._error
        return b"" if self._framing().ended else None

    def at_hand(self) -> bytes:
        """The content of what was read and not taken yet; nothing where there is none, or where that is an error."""
        data, self._ready = self._ready, b""
        return data

    def take_in(self, data: bytes) -> None:
        """Bytes were read from the connection; ``b""``: its end."""
        decoder = self._framing()
        if data:
            self._ready = self._feed(decoder, data)
        elif not (self._client.clean_eof and decoder.close()):
            self._error = StreamReset("the upstream closed the connection before the end of its response")

    def _feed(self, decoder: BodyDecoder, data: bytes) -> bytes:
        try:
            content = decoder.feed(data)
        except RemoteProtocolError as error:
            error.status = 502
            self._error = error
            return b""
        if decoder.ended and decoder.leftover:
            self._client.input.append(decoder.leftover)
        return content

    def _framing(self) -> BodyDecoder:
        if self._decoder is None:
            raise LocalProtocolError("the body of a response before its head")
        return self._decoder


class Http1Upstream:
    """One exchange on an HTTP/1.1 connection (a `tunnel.messages.Upstream`). Made by `Http1Client.send` only."""

    __slots__ = ("_client", "_interim_responses", "_method", "_persistent", "_protocol", "_unread_failure",
                 "_unread_head", "_upgraded", "_was_reset", "_writer", "body", "response_body")  # fmt: skip

    def __init__(self, client: Http1Client, head: RequestHead, writer: MessageWriter) -> None:
        self._client = client
        self._method = head.method
        self._protocol = head.protocol
        self._writer = writer
        self._unread_head: ResponseHead | None = None
        self._unread_failure: RemoteProtocolError | None = None
        self.response_body = ResponseBody(client)
        self._interim_responses = 0
        self._persistent = False
        self._upgraded = False
        self._was_reset = False
        self.body: BodyReader = self.response_body

    @property
    def writer(self) -> MessageWriter:
        """See `tunnel.messages.Upstream`."""
        return self._writer

    @property
    def ended_cleanly(self) -> bool:
        """True once both messages are whole and the connection stands exactly between two exchanges."""
        return self._persistent and self._writer.finished and self.response_body.ended and not len(self._client.input)

    async def receive_head(self) -> ResponseHead:
        """See `tunnel.messages.Upstream`. Cancelling loses nothing.

        Raises `ConnectionEnded` where the connection ends first, and `RemoteProtocolError` with status 502.
        """
        client = self._client
        while (head := self.head_nowait()) is None:
            data = await client.receive_some()
            if not data:
                raise ConnectionEnded(
                    "the upstream closed the connection in the middle of a response head"
                    if client.received_any_byte
                    else "the upstream closed the connection without a response"
                )
            client.input.append(data)
        return head

    def unread_head(self, head: ResponseHead) -> None:
        """Let `receive_head` return this head, which `head_nowait` gave."""
        self._unread_head = head

    def unread_failure(self, failure: RemoteProtocolError) -> None:
        """Let `receive_head` raise this, which `head_nowait` did."""
        self._unread_failure = failure

    def head_nowait(self) -> ResponseHead | None:
        """What `receive_head` would return, from the bytes that are at hand; None where they are no whole head.

        Raises `RemoteProtocolError` with status 502.
        """
        client = self._client
        if self._unread_failure is not None:
            raise self._unread_failure
        if self._unread_head is not None:
            head, self._unread_head = self._unread_head, None
            return head
        try:
            block = client.input.take_head(client.limits.response_head_bytes)
            if block is None:
                return None
            head, framing = parse_response_head(block, self._method, limits=client.limits)
            if head.status < 200:
                self._check_interim(head)
                return head
        except RemoteProtocolError as error:
            error.status = 502
            client.sender.intact = False
            raise
        # A response to an upgrade that was refused ends the connection too: what the upstream makes of the rest of it
        # is not known.
        self._persistent = framing.persistent and self._protocol is None
        decoder: BodyDecoder
        if framing.kind is BodyKind.CHUNKED:
            decoder = ChunkedDecoder()
        elif framing.kind is BodyKind.UNTIL_CLOSE:
            decoder = UntilCloseDecoder()
        else:
            decoder = LengthDecoder((head.content_length or 0) if framing.kind is BodyKind.LENGTH else 0)
        self.response_body.begin(decoder)
        return head

    def _check_interim(self, head: ResponseHead) -> None:
        if head.status == 101:
            offered = [value.lower() for value in field_values(head.fields, b"upgrade")]
            if self._protocol is None or offered != [self._protocol.lower()]:
                raise RemoteProtocolError("the upstream switched to a protocol that it was not asked for")
            self._upgraded = True
            return
        self._interim_responses += 1
        if self._interim_responses > self._client.limits.interim_responses:
            raise RemoteProtocolError("the upstream sent too many interim responses")

    def take_stream(self) -> UpgradedStream:
        """See `tunnel.messages.Upstream`. Raises `LocalProtocolError` unless the last head was a 101."""
        if not self._upgraded:
            raise LocalProtocolError("there is no byte stream without a 101")
        client = self._client
        client.sender.intact = False  # the connection belongs to the stream now
        return UpgradedStream(client.sender.transport, client.input.take_all())

    def reset(self, code: int) -> None:
        """Abort the connection, unless both messages are whole. HTTP/1.1 has no place for the code."""
        if self._was_reset or (self._writer.finished and self.response_body.ended):
            return
        self._was_reset = True
        self._client.abort()
