"""The HTTP/1.1 end that callers reach: one connection, its requests one after the other (RFC 9112).

A connection begins with one task, which reads, and begins exchanges directly (`tunnel.direct`). The first request that
needs a task for itself makes it two for the rest of the connection: one reads, one parses heads and runs the handler,
which writes. The reader always reads, within bounds, so that a client that goes away is noticed while a handler waits
for something else.
It knows no routes and no users; answers to malformed requests are drawn by the caller's ``render_error``.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import trio

from tunnel.errors import ConnectionEnded, LocalProtocolError, RemoteProtocolError, StreamReset, TunnelError
from tunnel.http1.downstream import Http1Downstream, NoBody, RequestBody
from tunnel.http1.heads import UPGRADES, HeadBuffer, encode_response_head, parse_request_head, persistent
from tunnel.http1.limits import DEFAULT_LIMITS, Http1Limits
from tunnel.http1.writing import Sender
from tunnel.messages import Fields, RequestHead
from tunnel.transports.base import Transport
from tunnel.wakeup import Wakeup

Handler = Callable[[Http1Downstream], Awaitable[None]]
Begin = Callable[[Http1Downstream], bool]
"""Begins an exchange directly, where that is possible now; else False, and nothing has happened (`tunnel.direct`)."""
RenderError = Callable[[int, str], tuple[Fields, bytes]]


class Http1Server:
    """Serves one connection.

    ``handler`` is called for one request at a time. When it returns without having finished the response, raises, or
    resets, the connection is aborted, so that the client sees that something is missing. When the client goes away
    before the response is finished, the handler is cancelled. Requests for other upgrades than ``upgrades`` are
    ordinary requests. ``initial`` are bytes that were read from the transport before.

    There is no deadline on the arrival of a request body: what streams both ways may be quiet for long. A handler
    that wants one sets it around its `receive`.
    """

    __slots__ = (
        "_answers",
        "_arrived",
        "_begin_directly",
        "_client_gone",
        "_deadline",
        "_discarded_bytes",
        "_downstream",
        "_draining",
        "_given",
        "_handler",
        "_handler_scope",
        "_input",
        "_is_authenticated",
        "_is_direct",
        "_limits",
        "_must_end",
        "_reader_done",
        "_reader_scope",
        "_reading_stopped",
        "_render_error",
        "_requests",
        "_room",
        "_started_at",
        "_timed_out",
        "_transport",
        "_upgrades",
        "must_close",
        "sender",
    )

    def __init__(
        self,
        transport: Transport,
        handler: Handler,
        *,
        limits: Http1Limits = DEFAULT_LIMITS,
        render_error: RenderError,
        begin: Begin | None = None,
        initial: bytes = b"",
        upgrades: frozenset[bytes] = UPGRADES,
    ) -> None:
        self.sender = Sender(transport, "client")
        self.must_close = False
        self._transport = transport
        self._handler = handler
        self._begin_directly = begin
        self._given: Http1Downstream | None = None  # for the serving task: to be handled, or answered already
        self._limits = limits
        self._render_error = render_error
        self._upgrades = upgrades
        self._input = HeadBuffer(initial)
        self._downstream: Http1Downstream | None = None
        self._arrived = Wakeup()  # the handler's side waits here, for bytes or for an end
        self._room = Wakeup()  # the reader waits here, for room
        self._handler_scope: trio.CancelScope | None = None  # once there is a serving task
        self._reader_scope: trio.CancelScope | None = None
        self._deadline = math.inf
        self._started_at = 0.0
        self._answers = 0
        self._requests = 0
        self._is_authenticated = False
        self._draining = False
        self._client_gone = False
        self._timed_out = False
        self._reading_stopped = False
        self._reader_done = False
        self._is_direct = False  # no exchange has needed a task so far, and only the reader runs
        self._must_end = False  # what the reader has to know then
        self._discarded_bytes: int | None = None  # counts what is thrown away, once that has begun

    async def run(self) -> None:
        """Serve until either side closes. The transport is closed in any case.

        An exception of the handler that does not speak of the connection or of the message comes out, in a group.
        """
        self._started_at = trio.current_time()
        self._deadline = self._started_at + self._limits.first_request_seconds
        in_order = False
        try:
            self._is_direct = self._begin_directly is not None and not self._draining
            if not self._is_direct or await self._read_directly():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read)
                    with trio.CancelScope() as self._handler_scope:
                        in_order = await self._serve()
                    nursery.cancel_scope.cancel()
            else:
                in_order = self._downstream is None or self._downstream.finished
            if in_order and self.sender.intact:
                await self._transport.aclose()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client, or whoever had the stream of an upgrade, was faster
        finally:
            if self._downstream is not None and self._downstream.direct is not None:
                self._downstream.direct.abandon()
            self._transport.abort()

    def drain(self) -> None:
        """Finish what runs, saying ``Connection: close``, and close; at once where nothing runs.

        Upgraded streams are left alone: whoever runs this connection ends them by cancelling `run`.
        """
        self._draining = True
        self.must_close = True
        if self._is_direct and self._downstream is None and not len(self._input):
            self._end_directly()
        self._arrived.call()

    # The connection's side of an exchange

    def note_authenticated(self) -> None:
        """See `tunnel.http1.downstream.Connection`."""
        self._is_authenticated = True

    def note_answer(self) -> None:
        """See `tunnel.http1.downstream.Connection`."""
        if self._is_authenticated:
            return
        self._answers += 1
        age = trio.current_time() - self._started_at
        if self._answers >= self._limits.unauthenticated_answers or age >= self._limits.unauthenticated_seconds:
            self.must_close = True

    async def stop_reading(self) -> bytes:
        """See `tunnel.http1.downstream.Connection`."""
        self._reading_stopped = True
        if self._reader_scope is not None:
            self._reader_scope.cancel()
        while not self._reader_done:
            await self._arrived.wait()
        return self._input.take_all()

    # The reader

    async def _read_directly(self) -> bool:
        """Read, and begin exchanges, for as long as none of them needs a task; True once one does.

        False where the connection is over: the client has ended it, or said nothing in time, or was told to.
        """
        while not self._needs_task():
            with trio.CancelScope(deadline=self._deadline) as scope:
                self._reader_scope = scope
                while not self._needs_task():
                    data = await self._transport.receive_some()
                    if not data:
                        return False
                    self._take(data)
            if self._is_told_to_end() or (scope.cancelled_caught and trio.current_time() >= self._deadline):
                return False
        self._is_direct = False
        return True

    def _needs_task(self) -> bool:
        return self._given is not None or len(self._input) > 0

    def _is_told_to_end(self) -> bool:
        return self._must_end

    def _end_directly(self) -> None:
        """The connection is over, and no task but the reader knows of it."""
        self._must_end = True
        self._wake_reader()

    def _wake_reader(self) -> None:
        if self._reader_scope is not None:
            self._reader_scope.cancel()

    async def _read(self) -> None:
        """Read until the client ends its half, a deadline passes, or somebody else wants to read."""
        try:
            while not self._reading_stopped:
                with trio.CancelScope(deadline=self._deadline) as self._reader_scope:
                    await self._receive_until_end()
                if self._client_gone:
                    return
                # Deadlines move with every request. To spare the timer, only an earlier one is set in the scope; when
                # that is over, the one that counts by now is looked at.
                if trio.current_time() >= self._deadline and not self._reading_stopped:
                    self._timed_out = True
                    return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._note_client_gone()
        finally:
            self._reader_done = True
            self._arrived.call()

    async def _receive_until_end(self) -> None:
        while True:
            while self._is_full():
                await self._room.wait()
            data = await self._transport.receive_some()
            if not data:
                self._note_client_gone()
                return
            self._take(data)

    def _take(self, data: bytes) -> None:
        if self._discarded_bytes is not None:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > self._limits.linger_bytes:
                self._note_client_gone()
            return
        downstream = self._downstream
        if downstream is None:
            if self._take_whole_head(data):
                return
        elif downstream.request_body.incomplete:
            data = downstream.request_body.feed(data)
            if data:
                self._input.append(data)
            return
        self._input.append(data)
        self._arrived.call()

    def _take_whole_head(self, data: bytes) -> bool:
        """Begin the exchange where these bytes are one request head and nothing else; False where they are not.

        The serving task is not woken where the exchange could begin directly. What is wrong with a head, that task
        finds out and answers.
        """
        end = len(data) - 4
        if len(self._input) or self._draining or data.find(b"\r\n\r\n") != end or end < 0:
            return False
        if end > self._limits.request_head_bytes:
            return False
        try:
            head = parse_request_head(data[: end + 2], limits=self._limits, upgrades=self._upgrades)
        except RemoteProtocolError:
            return False
        self._deadline = math.inf
        self._requests += 1
        downstream = self._begin(head)
        begin = self._begin_directly
        if begin is None or not head.ended or head.protocol is not None or not begin(downstream):
            self._give(downstream)
        return True

    def _give(self, downstream: Http1Downstream) -> None:
        self._given = downstream
        if self._is_direct:
            self._wake_reader()
        self._arrived.call()

    def _is_full(self) -> bool:
        if self._discarded_bytes is not None:
            return False
        downstream = self._downstream
        if downstream is None:
            return False  # the serving task takes it, or refuses it
        if downstream.request_body.incomplete:
            return downstream.request_body.buffered_bytes >= self._limits.body_buffer_bytes
        return len(self._input) > self._limits.request_head_bytes

    def _note_client_gone(self) -> None:
        self._client_gone = True
        downstream = self._downstream
        if downstream is not None and not downstream.finished and self._discarded_bytes is None:
            self._cancel_serving()
            if downstream.request_body.incomplete:
                downstream.request_body.fail(StreamReset("the client went away before the end of its request"))
        self._arrived.call()

    def _cancel_serving(self) -> None:
        if self._handler_scope is not None:
            self._handler_scope.cancel()

    def cancel_handler(self) -> None:
        """See `tunnel.http1.downstream.Connection`."""
        self._cancel_serving()
        if self._is_direct:
            self._end_directly()

    def hand_over(self) -> None:
        """See `tunnel.http1.downstream.Connection`."""
        assert self._downstream is not None
        self._give(self._downstream)

    def end_direct(self) -> None:
        """See `tunnel.http1.downstream.Connection`."""
        downstream = self._downstream
        assert downstream is not None
        if downstream.finished and not (downstream.close or self.must_close or len(self._input)):
            self._downstream = None
            self._set_deadline(trio.current_time() + self._idle_seconds())
        elif not downstream.finished:
            self.cancel_handler()  # it was reset: nobody is to take it up, and nothing can follow it
        elif self._is_direct and not len(self._input):
            self._end_directly()
        else:
            self._give(downstream)

    def _set_deadline(self, deadline: float) -> None:
        self._deadline = deadline
        scope = self._reader_scope
        if scope is not None and deadline < scope.deadline:
            scope.deadline = deadline

    # Requests, one after the other

    async def _serve(self) -> bool:
        """Serve requests until the connection is to be closed; True where that is to be done in order."""
        while True:
            try:
                downstream = await self._next_request()
            except RemoteProtocolError as error:
                return await self._refuse(error)
            if downstream is None:
                return True
            if not (downstream.finished or await self._handle(downstream)):
                return False
            if downstream.close or self.must_close:
                if downstream.request_body.incomplete:
                    await self._linger()
                return True
            self._downstream = None
            self._set_deadline(trio.current_time() + self._idle_seconds())

    def _idle_seconds(self) -> float:
        idle = self._limits.idle_seconds
        if self._is_authenticated:
            return idle
        return min(idle, self._started_at + self._limits.unauthenticated_seconds - trio.current_time())

    async def _next_request(self) -> Http1Downstream | None:
        """The next request for this task; None where the connection is to be closed without an answer."""
        buffer = self._input
        in_head = False
        can_skip = True
        if len(buffer) and self._requests:
            await trio.lowlevel.checkpoint()  # who sends many requests at once must not have the loop for all of them
        while True:
            if self._given is not None:
                downstream, self._given = self._given, None
                return downstream
            if self._downstream is not None:  # an exchange is under way without this task
                await self._arrived.wait()
                continue
            if can_skip and len(buffer) >= 2:
                can_skip = False
                buffer.skip_empty_line()
            block = buffer.take_head(self._limits.request_head_bytes)
            if block is not None:
                self._deadline = math.inf
                self._requests += 1
                head = parse_request_head(block, limits=self._limits, upgrades=self._upgrades)
                return None if self._client_gone else self._begin(head)
            if self._client_gone:
                return None
            if self._timed_out:
                if len(buffer):
                    raise RemoteProtocolError("the request head did not arrive in time", status=408)
                return None
            if len(buffer):
                if not in_head and self._requests:
                    in_head = True
                    self._set_deadline(trio.current_time() + self._limits.head_seconds)
            elif self._draining:
                return None
            await self._arrived.wait()

    def _begin(self, head: RequestHead) -> Http1Downstream:
        body = NoBody() if head.ended else RequestBody(head, self._arrived, self._room)
        downstream = Http1Downstream(self, head, body, persistent=persistent(head.fields, head.http_version))
        self._downstream = downstream
        if not head.ended and len(self._input):
            leftover = body.feed(self._input.take_all())
            if leftover:
                self._input.append(leftover)
        self._room.call()
        return downstream

    async def _handle(self, downstream: Http1Downstream) -> bool:
        """Run the handler; True where the response is whole."""
        try:
            await self._handler(downstream)
        except RemoteProtocolError as error:
            if downstream.response_started or not self.sender.intact:
                return False
            return await self._refuse(error)
        except LocalProtocolError:
            raise
        except (TunnelError, trio.BrokenResourceError, trio.ClosedResourceError):
            return False  # the message or the connection was cut off: aborting says so
        stream = downstream.stream
        if stream is not None:
            return stream.closed
        return downstream.finished

    async def _refuse(self, error: RemoteProtocolError) -> bool:
        """Answer a request that is none, and close."""
        fields, body = self._render_error(error.status, str(error))
        framing = b"Content-Length: %d\r\nConnection: close\r\n" % len(body)
        self.must_close = True
        self._discarded_bytes = 0
        try:
            await self.sender.send(encode_response_head(error.status, fields, framing=framing) + body)
        except ConnectionEnded:
            return False
        await self._linger()
        return True

    async def _linger(self) -> None:
        """Close the sending half and throw away what still comes, for a while.

        Closing with unread bytes would make the kernel send a reset, and the reset would overtake the answer.
        """
        self._discarded_bytes = 0
        self._room.call()
        with trio.move_on_after(self._limits.linger_seconds):
            try:
                await self._transport.send_eof()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            while not (self._client_gone or self._reader_done):
                await self._arrived.wait()
