"""An exchange of the agent that is under way without a task (`tunnel.direct`).

The task that reads the tunnel has sent the request on an idle connection; the task that listens on that connection
passes the response back when it is there as a whole.
"""

from __future__ import annotations

import logging

from agent.kept import KeptConnection
from agent.pool import ConnectionPool, PooledExchange
from tunnel.deadlines import Deadlines, Wait
from tunnel.direct import DIRECT_BYTES
from tunnel.errors import ConnectionEnded, ErrorCode, StreamError
from tunnel.fields import response_to_pass_on
from tunnel.messages import Downstream, RequestHead, ResponseHead

logger = logging.getLogger(__name__)


class DirectRequest:
    """One exchange; a `tunnel.direct.DirectExchange` and an `agent.kept.Listener`."""

    __slots__ = ("_arrived", "_downstream", "_exchange", "_head", "_kept", "_pool", "head_deadlines", "head_wait")

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
        self._arrived = b""
        self._exchange: PooledExchange | None = None
        self.head_deadlines = deadlines
        self.head_wait: Wait | None = deadlines.start(self._expire) if deadlines is not None else None

    def received(self, data: bytes) -> bool:
        """See `agent.kept.Listener`."""
        try:
            whole = self._kept.client.take_whole(data, self._head.method) if len(data) <= DIRECT_BYTES else None
            if whole is None or whole[0].status == 401:
                self._arrived = data
                self.need_task()
                return False
            self._end_wait()
            self._pool.keep(self._kept)
            self._downstream.respond_nowait(filter_response_head(whole[0]), whole[1])
        except (StreamError, ConnectionEnded) as exc:
            logger.debug("the caller gave up", extra={"error": str(exc)})
        except Exception:
            # The fan-out that contains: this runs in the task of a connection that will serve others.
            logger.exception("an exchange crashed")
            self._pool.drop(self._kept)
            self._downstream.reset(ErrorCode.INTERNAL_ERROR)
        self._downstream.end_direct()
        return True

    def response_complete(self) -> None:
        """See `tunnel.direct.DirectExchange`; `received` has its part here."""

    def need_task(self) -> None:
        """See `tunnel.direct.DirectExchange`."""
        self._kept.listener = None
        self._downstream.hand_over()

    def take_up(self) -> PooledExchange:
        """What a task goes on with. The request was given up where the response head did not come in time."""
        exchange = self._exchange = self._pool.take_up(self._kept, self._head, self._arrived)
        if self.head_wait is not None and self.head_wait.expired:
            exchange.reset(ErrorCode.CANCEL)
        return exchange

    def abandon(self) -> None:
        """See `tunnel.direct.DirectExchange`."""
        if self._downstream.direct is self:
            self._downstream.direct = None
            self._end_wait()
            self._pool.drop(self._kept)

    def _expire(self) -> None:
        """The response head did not come in time."""
        if self._exchange is not None:
            self._exchange.reset(ErrorCode.CANCEL)
        elif self._kept.listener is self:
            self.need_task()

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
