"""One HTTP/2 stream as the tasks of an exchange see it.

`RequestStream` is an `Upstream` (this side sent the request), `ServedStream` a `Downstream` (this side answers it). Each
is its own body reader and body writer: one object a stream, because a tunnel carries thousands.

The connection's reader calls the ``on_…`` methods; everything else is called by the one task that reads and the one
task that writes the message. Bytes are credited to the sender when a task takes them (`receive`), never before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tunnel.direct import DirectExchange
from tunnel.errors import (
    ErrorCode,
    LocalProtocolError,
    RemoteProtocolError,
    StreamError,
    StreamRefused,
    StreamReset,
    TunnelError,
)
from tunnel.heads import response_fields, response_head
from tunnel.messages import Fields, RequestHead, ResponseHead
from tunnel.transports.base import RECEIVE_BYTES
from tunnel.upgraded import UpgradedStream
from tunnel.wakeup import Wakeup

if TYPE_CHECKING:
    from tunnel.connection import Connection
    from tunnel.h2.stream import Stream

SEND_BUFFER_BYTES = 65_536
"""A sender waits while more than this of its stream is queued and not yet gathered for the transport."""


class Http2Stream:
    """What both kinds of streams share: a received body, a sent body, and one failure for both."""

    __slots__ = (
        "_chunks",
        "_connection",
        "_readable",
        "_reset_when_drained",
        "failure",
        "h2",
        "received_end",
        "sent_end",
        "trailers",
        "writable",
    )

    def __init__(self, connection: Connection, h2: Stream) -> None:
        self._connection = connection
        self.h2 = h2
        self._chunks: list[bytes] = []  # a list is a tenth of a deque, and most of the time there is one or none
        self.received_end = False
        self.sent_end = False
        self._reset_when_drained = False
        self.failure: TunnelError | None = None
        self._readable = Wakeup()
        self.writable = Wakeup()
        self.trailers: Fields = []

    @property
    def stream_id(self) -> int:
        """The HTTP/2 stream identifier, for logs."""
        return self.h2.id

    # --- receiving -------------------------------------------------------------------------------

    async def receive(self) -> bytes:
        """See `tunnel.messages.BodyReader.receive`. Does not checkpoint where bytes are at hand."""
        while True:
            data = self.receive_nowait()
            if data is not None:
                return data
            await self._readable.wait()

    def receive_nowait(self) -> bytes | None:
        """See `tunnel.messages.BodyReader.receive_nowait`."""
        chunks = self._chunks
        if chunks:
            data = chunks.pop() if len(chunks) == 1 else _take(chunks, RECEIVE_BYTES)
            self._connection.consumed(self.h2, len(data))
            return data
        if self.received_end:
            return b""
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        return None

    @property
    def at_end(self) -> bool:
        """See `tunnel.messages.BodyReader.at_end`."""
        return self.received_end and not self._chunks

    # --- sending ---------------------------------------------------------------------------------

    async def send(self, data: bytes) -> None:
        """See `tunnel.messages.BodyWriter.send`. Does not checkpoint where the bytes find room at once."""
        self._check_sending()
        if not data:
            return
        self._connection.send_data(self.h2, data)
        await self.wait_sendable()

    async def finish(self, trailers: Fields | tuple[()] = ()) -> None:
        """See `tunnel.messages.BodyWriter.finish`. What is queued leaves in order before the end."""
        self._finish(trailers)

    def _finish(self, trailers: Fields | tuple[()]) -> None:
        self._check_sending()
        self.sent_end = True
        if trailers:
            self._connection.send_trailers(self.h2, list(trailers))
        else:
            self._connection.send_data(self.h2, b"", ended=True)

    def reset(self, code: int) -> None:
        """RST_STREAM, unless both directions have ended; what is queued is dropped. Idempotent."""
        self.discard_received()
        if self.failure is None and not (self.sent_end and self.received_end):
            self.failure = StreamReset(code=code, remote=False)
            self._readable.call()
            self.writable.call()
            self._connection.reset_stream(self.h2, code)

    def discard_received(self) -> None:
        """Credit what nobody will take, so that the process's budget gets it back."""
        if self._chunks:
            unread_bytes = sum(map(len, self._chunks))
            self._chunks.clear()
            self._connection.consumed(self.h2, unread_bytes)

    def _check_sending(self) -> None:
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        if self.sent_end:
            raise LocalProtocolError("the message has been finished")

    async def wait_sendable(self) -> None:
        """Return once at most `SEND_BUFFER_BYTES` are queued; raises as `send` does."""
        while self.h2.pending_bytes > SEND_BUFFER_BYTES:
            await self.writable.wait()
            if self.failure is not None:
                raise self.failure.with_traceback(None)

    # --- called by the connection ------------------------------------------------------------------

    def on_data(self, data: bytes, ended: bool) -> None:
        """DATA arrived."""
        if data:
            self._chunks.append(data)
        if ended:
            self.received_end = True
        self._arrived()

    def on_trailers(self, fields: Fields) -> None:
        """The trailer section arrived, and with it the end."""
        self.trailers = fields
        self.received_end = True
        self._arrived()

    def _part(self) -> None:
        """Both directions are over: let go of the engine's stream, so that neither has to wait for the collector."""
        if self.sent_end and self.received_end:
            self.h2.owner = None

    def _arrived(self) -> None:
        """Something is to be read."""
        self._readable.call()

    def on_reset(self, code: int, remote: bool, refused: bool) -> None:
        """The stream is gone. A response that had already ended stays readable (RFC 9113 §8.1, NO_ERROR)."""
        failure: StreamError = (
            StreamRefused("the peer did not process the request") if refused else StreamReset(code=code, remote=remote)
        )
        self.on_failure(failure)

    def on_failure(self, failure: TunnelError) -> None:
        """Nothing more comes or goes: wake whoever waits."""
        if self.failure is None:
            self.failure = failure
        self._readable.call()
        self.writable.call()

    def on_drained(self) -> None:
        """Room for more to send; or everything has left."""
        self.writable.call()
        if self._reset_when_drained and self.h2.local_ended:
            self._reset_when_drained = False
            self._connection.reset_stream(self.h2, ErrorCode.NO_ERROR)


class RequestStream(Http2Stream):
    """A request that this side sent: an `Upstream`."""

    __slots__ = ("_heads", "_is_upgrade", "direct")

    def __init__(self, connection: Connection, h2: Stream, *, is_upgrade: bool, ended: bool) -> None:
        super().__init__(connection, h2)
        self._heads: list[ResponseHead] = []
        self._is_upgrade = is_upgrade
        self.direct: DirectExchange | None = None
        """What reads the response instead of a task; None again once a task does."""
        self.sent_end = ended and not is_upgrade

    @property
    def body(self) -> RequestStream:
        """The response body."""
        return self

    @property
    def writer(self) -> RequestStream:
        """The request body."""
        return self

    async def receive_head(self) -> ResponseHead:
        """See `tunnel.messages.Upstream.receive_head`."""
        while not self._heads:
            if self.failure is not None:
                raise self.failure.with_traceback(None)
            await self._readable.wait()
        return self._heads.pop(0)

    def peek_head(self) -> ResponseHead | None:
        """The final head of the response, where that is all there is of heads so far; it stays."""
        heads = self._heads
        return heads[0] if len(heads) == 1 and heads[0].status >= 200 else None

    def take_start(self) -> bytes:
        """What has arrived of the body behind the head that `peek_head` has shown; both are consumed."""
        self._heads.clear()
        return self.receive_nowait() or b""

    def part(self) -> None:
        """The exchange has ended without a task: let go of the engine's stream."""
        self.direct = None
        self._part()

    def take_stream(self) -> UpgradedStream:
        """See `tunnel.messages.Upstream.take_stream`."""
        return UpgradedStream(self)

    def _arrived(self) -> None:
        direct = self.direct
        if direct is None:
            self._readable.call()
        elif self.received_end:
            direct.response_arrived()
        else:
            self._connection.note_partial(self)

    def on_failure(self, failure: TunnelError) -> None:
        """Nothing more comes or goes: wake whoever waits."""
        super().on_failure(failure)
        if self.direct is not None:
            self.direct.response_failed()

    def on_head(self, fields: Fields, ended: bool) -> None:
        """An interim or final head arrived. A 200 to an upgrade is the 101 of the upstream."""
        head = response_head(fields, ended=ended)
        if self._is_upgrade and head.status == 200:
            head.status = 101
            head.ended = False
        self._heads.append(head)
        if ended:
            self.received_end = True
        self._arrived()

    def on_head_too_large(self) -> None:
        """The response head exceeded our limit."""
        self.on_failure(RemoteProtocolError("the response head is larger than this side accepts", status=502))
        self._connection.reset_stream(self.h2, ErrorCode.CANCEL)


class ServedStream(Http2Stream):
    """A request that arrived here: a `Downstream`."""

    __slots__ = (
        "_handed_over",
        "_is_upgraded",
        "_response_started",
        "answered_early",
        "direct",
        "head_too_large",
        "request",
        "scope",
    )

    def __init__(self, connection: Connection, h2: Stream, request: RequestHead, *, ended: bool) -> None:
        super().__init__(connection, h2)
        self.request = request
        self.received_end = ended
        self._response_started = False
        self._is_upgraded = False
        self.answered_early = False
        """The answer is complete and the request is not; `refuse_the_rest` is due."""
        self.head_too_large = False
        self.scope: trio.CancelScope | None = None
        """Set while the handler runs; cancelled when the caller resets the stream."""
        self.direct: DirectExchange | None = None
        """See `tunnel.messages.Downstream.direct`."""
        self._handed_over = False

    @property
    def body(self) -> ServedStream:
        """The request body."""
        return self

    @property
    def writer(self) -> ServedStream:
        """The response body."""
        return self

    @property
    def response_started(self) -> bool:
        """See `tunnel.messages.Downstream.response_started`."""
        return self._response_started or self.failure is not None

    def authenticated(self) -> None:
        """See `tunnel.messages.Downstream.authenticated`."""
        self._connection.authenticated()

    def cancel(self) -> None:
        """See `tunnel.messages.Downstream.cancel`."""
        self.reset(ErrorCode.CANCEL)
        self._cancel()

    def _cancel(self) -> None:
        """Cancel whatever runs for the caller."""
        if self.scope is not None:
            self.scope.cancel()
        elif self.direct is not None:
            self.direct.abandon()
            self.end_direct()

    async def send_interim(self, head: ResponseHead) -> None:
        """See `tunnel.messages.Downstream.send_interim`."""
        self._check_sending()
        self._connection.send_head(self.h2, response_fields(head))

    async def send_response(self, head: ResponseHead, data: bytes = b"", *, end: bool = False) -> None:
        """See `tunnel.messages.Downstream.send_response`."""
        self._check_sending()
        self._response_started = True
        head_only = head.ended or (end and not data)
        self.sent_end = head_only or end
        self._connection.send_head(self.h2, response_fields(head), ended=head_only)
        if data and not head_only:
            self._connection.send_data(self.h2, data, ended=end)
            if not end:
                await self.wait_sendable()

    def respond_nowait(self, head: ResponseHead, data: bytes) -> bool:
        """See `tunnel.messages.Downstream.respond_nowait`. What the peer has no window for is queued, and that is all."""
        self._check_sending()
        self._response_started = True
        self.sent_end = True
        head_only = head.ended or not data
        self._connection.send_head(self.h2, response_fields(head), ended=head_only)
        if not head_only:
            self._connection.send_data(self.h2, data, ended=True)
        return True

    def start_nowait(self, head: ResponseHead, data: bytes) -> bool:
        """See `tunnel.messages.Downstream.start_nowait`."""
        self._check_sending()
        self._response_started = True
        self._connection.send_head(self.h2, response_fields(head))
        return self.write_nowait(data)

    def write_nowait(self, data: bytes) -> bool:
        """See `tunnel.messages.Downstream.write_nowait`."""
        self._check_sending()
        if data:
            self._connection.send_data(self.h2, data)
        return self.h2.pending_bytes <= SEND_BUFFER_BYTES

    def finish_nowait(self, trailers: Fields | tuple[()] = ()) -> bool:
        """See `tunnel.messages.Downstream.finish_nowait`."""
        self._finish(trailers)
        return True

    async def flush(self) -> None:
        """See `tunnel.messages.Downstream.flush`."""
        await self.wait_sendable()

    def begin_direct(self, direct: DirectExchange) -> None:
        """See `tunnel.messages.Downstream.begin_direct`. A handler that calls it returns without another checkpoint."""
        self.direct = direct
        self._handed_over = False

    def end_direct(self) -> None:
        """See `tunnel.messages.Downstream.end_direct`."""
        self.direct = None
        if not self._handed_over:
            self.conclude()
            self._connection.served(self)
            self._part()

    def hand_over(self) -> None:
        """See `tunnel.messages.Downstream.hand_over`."""
        self._handed_over = True
        self._connection.hand_over(self)

    async def accept_upgrade(self, head: ResponseHead) -> UpgradedStream:
        """See `tunnel.messages.Downstream.accept_upgrade`."""
        self._check_sending()
        self._response_started = True
        self._is_upgraded = True
        self._connection.send_head(self.h2, response_fields(head))
        return UpgradedStream(self)

    def on_reset(self, code: int, remote: bool, refused: bool) -> None:
        """The caller gave up: whatever runs for it is cancelled.

        Except where it closed an upgraded stream in order and only wants to hear no more: its bytes are still good.
        """
        if self._is_upgraded and self.received_end and code == ErrorCode.NO_ERROR:
            super().on_failure(StreamReset(code=code, remote=remote))
        else:
            super().on_reset(code, remote, refused)

    def on_failure(self, failure: TunnelError) -> None:
        """The connection is gone: whatever runs for the caller is cancelled."""
        super().on_failure(failure)
        self._cancel()

    def conclude(self) -> None:
        """The handler has returned: an answer that is not finished is cut off, a request unread is refused the rest."""
        self.discard_received()
        if self.failure is not None:
            return
        if not self.sent_end:
            self.reset(ErrorCode.INTERNAL_ERROR)
        elif not self.received_end:
            self.answered_early = True

    def refuse_the_rest(self) -> None:
        """After a complete answer that came before the end of the request: "do not send me more" (RFC 9113 §8.1)."""
        self.discard_received()
        if self.failure is not None or self.received_end:
            return
        if self.h2.local_ended and not self.h2.pending_bytes:
            self._connection.reset_stream(self.h2, ErrorCode.NO_ERROR)
        else:
            self._reset_when_drained = True


def _take(chunks: list[bytes], limit_bytes: int) -> bytes:
    """The first chunks joined, as many as fit the limit, at least one."""
    size = len(chunks[0])
    count = 1
    while count < len(chunks) and size + len(chunks[count]) <= limit_bytes:
        size += len(chunks[count])
        count += 1
    data = b"".join(chunks[:count])
    del chunks[:count]
    return data
