"""An exchange of kas that is under way without a task (`tunnel.direct`).

It has passed every step of the pipeline and was sent through a tunnel. The task that reads the tunnel passes the
response to the caller: at once where it is there as a whole, else piece by piece. Whatever has to wait, to refuse or to
explain is handed over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from server.errors import Hop
from server.exchange_record import Exchange
from server.forwarding import Forwarder, Forwarding
from server.registry import Tunnel
from tunnel.errors import ConnectionEnded, ErrorCode, StreamError
from tunnel.fields import allowed_trailers
from tunnel.messages import Downstream
from tunnel.progress import DownstreamGone
from tunnel.relay import Boundary, relay_rest
from tunnel.streams import RequestStream

logger = logging.getLogger(__name__)

_BROKEN = (StreamError, ConnectionEnded, trio.BrokenResourceError, trio.ClosedResourceError)


class DirectForwarding:
    """One exchange; a `tunnel.direct.DirectExchange`. ``ended`` is called once when it ends without a task."""

    __slots__ = (
        "_boundary",
        "_crash",
        "_downstream",
        "_ended",
        "_forwarder",
        "_forwarding",
        "_head_sent",
        "_is_finished",
        "_is_streaming",
        "_tunnel",
        "_upstream",
        "exchange",
    )

    def __init__(
        self,
        exchange: Exchange,
        downstream: Downstream,
        forwarding: Forwarding,
        tunnel: Tunnel,
        forwarder: Forwarder,
        *,
        head_sent: Callable[[Exchange], None],
        ended: Callable[[DirectForwarding], None],
    ) -> None:
        """``head_sent`` is called when the head of a longer response has been passed back."""
        self.exchange = exchange
        self._downstream = downstream
        self._forwarding = forwarding
        self._tunnel = tunnel
        self._forwarder = forwarder
        self._head_sent = head_sent
        self._ended = ended
        self._upstream: RequestStream | None = None
        self._boundary: Boundary | None = None
        self._crash: Exception | None = None
        self._is_streaming = False  # head and first bytes have been passed back, the rest follows
        self._is_finished = False  # everything has been handed to the downstream

    def begin(self, now: float) -> None:
        """Send the request on. It is under way in any case: where it could not be sent, a task tries again."""
        self._downstream.begin_direct(self)
        try:
            self._upstream = self._forwarder.begin(self._forwarding, self._tunnel, self._expire, now)
        except Exception as exc:  # noqa: BLE001 - who answers it logs it
            # The fan-out that contains: this runs in the task that reads everybody's requests.
            self._crash = exc
        if self._upstream is None:
            self._downstream.hand_over()
        else:
            self._upstream.direct = self

    def response_arrived(self) -> None:
        """See `tunnel.direct.DirectExchange`."""
        try:
            if self._is_streaming:
                self._pass_on()
            else:
                self._begin_response()
        except _BROKEN as exc:
            self._break("caller", None, str(exc))
        except Exception as exc:  # noqa: BLE001 - who answers it logs it
            # The fan-out that contains: this runs in the task that reads everybody's answers.
            self._answer_crash(exc)

    def _answer_crash(self, crash: Exception) -> None:
        """A bug of ours: a task says so, unless an answer has begun: then break it off."""
        if self._downstream.response_started:
            logger.error("an exchange crashed", exc_info=crash, extra={"request_id": self.exchange.request_id})
            self._break("kas", "kas", "internal error")
            return
        self._crash = crash
        assert self._upstream is not None
        self._upstream.reset(ErrorCode.CANCEL)
        self._need_task()

    def _begin_response(self) -> None:
        upstream, forwarding = self._upstream, self._forwarding
        assert upstream is not None
        head = upstream.peek_head()
        if head is None or not forwarding.passes_unseen(head):
            self._need_task()
            return
        self._forwarder.end_wait(forwarding)
        self._boundary = forwarding.boundary_for(head)
        head = forwarding.filter_head(head)
        data = upstream.take_start()
        progress = self.exchange.progress
        progress.status = head.status
        progress.response_started = True
        progress.response_bytes = len(data)
        if upstream.at_end and not upstream.trailers:
            self._is_finished = True
            if self._downstream.respond_nowait(head, data):
                self._end()
                return
        else:
            self._is_streaming = True
            forwarding.forget_request()
            self.exchange.request.fields = []
            self._head_sent(self.exchange)
            if self._boundary is not None:
                self._boundary.feed(data)
            if self._downstream.start_nowait(head, data):
                self._pass_on()
                return
        self._need_task()

    def _pass_on(self) -> None:
        """Pass on what has arrived of the body, as long as there is room for it."""
        upstream, downstream = self._upstream, self._downstream
        assert upstream is not None
        has_room = True
        while has_room and (data := upstream.receive_nowait()):
            if self._boundary is not None:
                self._boundary.feed(data)
            has_room = downstream.write_nowait(data)
            self.exchange.progress.response_bytes += len(data)
        if has_room and not upstream.at_end:
            return
        if has_room:
            self._is_finished = True
            if downstream.finish_nowait(allowed_trailers(upstream.trailers)):
                self._end()
                return
        self._need_task()

    def _end(self) -> None:
        assert self._upstream is not None
        self._upstream.part()
        self.exchange.completed()
        self._ended(self)
        self._downstream.end_direct()

    def _break(self, ended_by: str, hop: Hop | None, error: str) -> None:
        self.exchange.failed("reset", ended_by=ended_by, hop=hop, error=error)
        self._give_up()
        self._downstream.reset(ErrorCode.INTERNAL_ERROR)
        self._downstream.end_direct()

    def _give_up(self) -> None:
        self._forwarder.end_wait(self._forwarding)
        if self._upstream is not None:
            self._upstream.direct = None
            self._upstream.reset(ErrorCode.CANCEL)
        self._downstream.direct = None
        self._ended(self)

    def response_failed(self) -> None:
        """See `tunnel.direct.DirectExchange`."""
        self._need_task()

    def _need_task(self) -> None:
        if self._upstream is not None and self._upstream.direct is not None:
            self._upstream.direct = None
            self._downstream.hand_over()

    def _expire(self) -> None:
        """The response head did not come in time."""
        if self._upstream is not None:
            self._upstream.reset(ErrorCode.CANCEL)
            self._need_task()

    def abandon(self) -> None:
        """See `tunnel.direct.DirectExchange`."""
        if self._downstream.direct is not self:
            return
        self.exchange.given_up()
        self._give_up()

    def revoke(self) -> None:
        """The caller's credential was revoked."""
        self.exchange.revoked = True
        self._downstream.cancel()

    async def _go_on_responding(self) -> None:
        assert self._upstream is not None
        if not self._is_streaming:
            self._head_sent(self.exchange)
        try:
            await self._downstream.flush()
        except _BROKEN as exc:
            self._upstream.reset(ErrorCode.CANCEL)
            raise DownstreamGone(str(exc)) from exc
        except BaseException:
            self._upstream.reset(ErrorCode.CANCEL)
            self._downstream.reset(ErrorCode.INTERNAL_ERROR)
            raise
        if not self._is_finished:
            await relay_rest(self._downstream, self._upstream, self._boundary, self.exchange.progress)

    async def go_on(self, on_head: Callable[[int], None]) -> None:
        """What is left of the exchange, in the task that has taken it up. Raises as `Forwarder.forward`."""
        self._forwarding.on_head = on_head
        if self._crash is not None:
            self._forwarder.end_wait(self._forwarding)
            raise self._crash
        if self.exchange.progress.response_started:
            await self._go_on_responding()
            return
        begun = None if self._upstream is None else (self._tunnel, self._upstream)
        await self._forwarder.forward(
            self._downstream, self._forwarding, queue=self.exchange.credential_id, begun=begun
        )
