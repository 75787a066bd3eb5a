"""An exchange of kas that is under way without a task (`tunnel.direct`).

It has passed every step of the pipeline and was sent through a tunnel. When the whole response is at hand, the task
that reads the tunnel passes it to the caller. Whatever has to wait, to refuse or to explain is handed over.
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
from tunnel.messages import Downstream
from tunnel.streams import RequestStream

logger = logging.getLogger(__name__)

_BROKEN = (StreamError, ConnectionEnded, trio.BrokenResourceError, trio.ClosedResourceError)


class DirectForwarding:
    """One exchange; a `tunnel.direct.DirectExchange`. ``ended`` is called once when it ends without a task."""

    __slots__ = ("_downstream", "_ended", "_forwarder", "_forwarding", "_tunnel", "_upstream", "exchange")

    def __init__(
        self,
        exchange: Exchange,
        downstream: Downstream,
        forwarding: Forwarding,
        tunnel: Tunnel,
        forwarder: Forwarder,
        ended: Callable[[DirectForwarding], None],
    ) -> None:
        self.exchange = exchange
        self._downstream = downstream
        self._forwarding = forwarding
        self._tunnel = tunnel
        self._forwarder = forwarder
        self._ended = ended
        self._upstream: RequestStream | None = None

    def begin(self, now: float) -> None:
        """Send the request on. It is under way in any case: where it could not be sent, a task tries again."""
        self._downstream.direct = self
        self._upstream = self._forwarder.begin(self._forwarding, self._tunnel, self._expire, now)
        if self._upstream is None:
            self._downstream.hand_over()
        else:
            self._upstream.direct = self

    def response_complete(self) -> None:
        """See `tunnel.direct.DirectExchange`."""
        try:
            self._pass_back()
        except _BROKEN as exc:
            self._break("caller", None, str(exc))
        except Exception:
            # The fan-out that contains: this runs in the task that reads everybody's answers.
            logger.exception("an exchange crashed", extra={"request_id": self.exchange.request_id})
            self._break("kas", "kas", "internal error")

    def _pass_back(self) -> None:
        upstream, forwarding, downstream = self._upstream, self._forwarding, self._downstream
        assert upstream is not None
        head = upstream.peek_whole()
        if head is None or not forwarding.passes_unseen(head):
            self.need_task()
            return
        upstream.direct = None
        self._forwarder.end_wait(forwarding)
        head = forwarding.filter_head(head)
        data = upstream.take_whole()
        progress = self.exchange.progress
        progress.status = head.status
        progress.response_started = True
        progress.response_bytes = len(data)
        if not downstream.respond_nowait(head, data):
            downstream.hand_over()
            return
        self.exchange.completed()
        self._ended(self)
        downstream.end_direct()

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

    def need_task(self) -> None:
        """See `tunnel.direct.DirectExchange`."""
        if self._upstream is not None and self._upstream.direct is not None:
            self._upstream.direct = None
            self._downstream.hand_over()

    def _expire(self) -> None:
        """The response head did not come in time."""
        if self._upstream is not None:
            self._upstream.reset(ErrorCode.CANCEL)
            self.need_task()

    def abandon(self) -> None:
        """See `tunnel.direct.DirectExchange`."""
        if self._downstream.direct is not self:
            return
        if self.exchange.revoked:
            self.exchange.failed("reset", ended_by="revocation", hop=None, error="the token was revoked or has expired")
        else:
            self.exchange.failed("cancelled", ended_by="caller", hop=None, error="")
        self._give_up()

    def revoke(self) -> None:
        """The caller's credential was revoked."""
        self.exchange.revoked = True
        self._downstream.cancel()

    async def go_on(self, on_head: Callable[[int], None]) -> None:
        """What is left of the exchange, in the task that has taken it up. Raises as `Forwarder.forward`."""
        self._forwarding.on_head = on_head
        if self.exchange.progress.response_started:
            on_head(self.exchange.progress.status)
            await self._downstream.flush()
            return
        begun = None if self._upstream is None else (self._tunnel, self._upstream)
        await self._forwarder.forward(
            self._downstream, self._forwarding, queue=self.exchange.credential_id, begun=begun
        )
