"""An exchange of the agent that is under way without a task (`tunnel.direct`).

The task that reads the tunnel has sent the request on an idle connection; the task that listens on that connection
passes the response back: at once where it is there as a whole, else piece by piece.
"""

from __future__ import annotations

import logging

from agent.kept import KeptConnection
from agent.pool import ConnectionPool, PooledExchange
from tunnel.deadlines import Deadlines, Wait
from tunnel.direct import DIRECT_BYTES
from tunnel.errors import ConnectionEnded, ErrorCode, RemoteProtocolError, StreamError
from tunnel.fields import allowed_trailers, response_to_pass_on
from tunnel.messages import Downstream, RequestHead, ResponseHead
from tunnel.progress import Progress

logger = logging.getLogger(__name__)


class DirectRequest:
    """One exchange; a `tunnel.direct.DirectExchange` and an `agent.kept.Listener`."""

    __slots__ = (
        "_downstream",
        "_exchange",
        "_head",
        "_kept",
        "_pool",
        "head_deadlines",
        "head_wait",
        "progress",
    )

    def __init__(
        self,
        downstream: Downstream,
        pool: ConnectionPool,
        kept: KeptConnection,
        head: RequestHead,
        deadlines: Deadlines | None,
    ) -> None:
        """``head`` was sent on ``kept`` a moment ago."""
        self._downstream = downstream
        self._pool = pool
        self._kept = kept
        self._head = head
        self._exchange: PooledExchange | None = None
        """Once there is more to the response than one piece."""
        self.progress = Progress()
        self.head_deadlines = deadlines
        self.head_wait: Wait | None = deadlines.start(self._expire) if deadlines is not None else None
        kept.listener = self
        downstream.begin_direct(self)

    def received(self, data: bytes) -> bool:
        """See `agent.kept.Listener`."""
        try:
            if self._exchange is not None:
                self._exchange.under_way.response_body.take_in(data)
                return self._pass_on(self._exchange)
            whole = self._kept.client.take_whole(data, self._head.method) if len(data) <= DIRECT_BYTES else None
            if whole is None or whole[0].status == 401:
                return self._begin_response(data)
            self._end_wait()
            self._pool.keep(self._kept)
            self._downstream.respond_nowait(filter_response_head(whole[0]), whole[1])
            self._downstream.end_direct()
            return True
        except (StreamError, ConnectionEnded) as exc:
            logger.debug("the caller gave up", extra={"error": str(exc)})
        except Exception:
            # The fan-out that contains: this runs in the task of a connection that will serve others.
            logger.exception("an exchange crashed")
        self._break_off()
        return False

    def _begin_response(self, data: bytes) -> bool:
        """The response is not at hand as a whole; whether the connection is to be listened to further."""
        exchange = self._exchange = self._pool.take_up(self._kept, self._head, data)
        under_way = exchange.under_way
        try:
            head = under_way.head_nowait() if data else None
        except RemoteProtocolError as exc:
            under_way.unread_failure(exc)
            return self._need_task()
        if head is None or head.status < 200 or head.status == 401:
            if head is not None:
                under_way.unread_head(head)
            return self._need_task()
        self._end_wait()
        content = under_way.response_body.at_hand()
        self.progress.status = head.status
        self.progress.response_started = True
        if not self._downstream.start_nowait(filter_response_head(head), content):
            return self._need_task()
        return self._pass_on(exchange)

    def _pass_on(self, exchange: PooledExchange) -> bool:
        body = exchange.under_way.response_body
        content = body.at_hand()
        has_room = self._downstream.write_nowait(content) if content else True
        if body.failed or not has_room:
            return self._need_task()
        if not body.at_end:
            return True
        self._downstream.finish_nowait(allowed_trailers(body.trailers))
        exchange.reset(ErrorCode.NO_ERROR)
        self._downstream.end_direct()
        return False

    def _need_task(self) -> bool:
        self._kept.listener = None
        self._downstream.hand_over()
        return False

    def _break_off(self) -> None:
        self._end_wait()
        self._kept.listener = None
        self._pool.drop(self._kept)
        if self._exchange is not None:
            self._exchange.reset(ErrorCode.CANCEL)
        self._downstream.reset(ErrorCode.INTERNAL_ERROR)
        self._downstream.end_direct()

    def response_arrived(self) -> None:
        """See `tunnel.direct.DirectExchange`; `received` has its part here."""

    def response_failed(self) -> None:
        """See `tunnel.direct.DirectExchange`; `received` has its part here."""

    def take_up(self) -> PooledExchange:
        """What a task goes on with. The request was given up where the response head did not come in time."""
        if self._exchange is None:
            self._exchange = self._pool.take_up(self._kept, self._head, b"")
        self._kept.listener = None
        self._kept.claim()
        if self.head_wait is not None and self.head_wait.expired:
            self._exchange.reset(ErrorCode.CANCEL)
        return self._exchange

    def abandon(self) -> None:
        """See `tunnel.direct.DirectExchange`."""
        if self._downstream.direct is self:
            self._downstream.direct = None
            self._end_wait()
            if self._exchange is not None:
                self._exchange.reset(ErrorCode.CANCEL)
            self._pool.drop(self._kept)

    def _expire(self) -> None:
        """The response head did not come in time."""
        if self._exchange is not None:
            self._exchange.reset(ErrorCode.CANCEL)
        elif self._kept.listener is self:
            self._need_task()

    def _end_wait(self) -> None:
        if self.head_deadlines is not None and self.head_wait is not None:
            self.head_deadlines.end(self.head_wait)
            self.head_wait = None


def filter_response_head(head: ResponseHead) -> ResponseHead:
    """The head as it goes into the tunnel: no hop-by-hop field, and none with which an upstream could pose as us."""
    fields = response_to_pass_on(head.fields)
    if fields is head.fields:
        return head
    return ResponseHead(head.status, fields, head.content_length, head.ended)
