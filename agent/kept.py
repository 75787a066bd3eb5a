"""A connection to the kube-apiserver that is kept between requests, and the task that listens on it.

While nobody uses the connection, that task finds out when the server closes it. While a direct exchange does
(`tunnel.direct`), it is the one that reads the response. A task that wants the connection for itself claims it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from agent.credentials import Access
from tunnel.errors import ConnectionEnded
from tunnel.http1.client import Http1Client


class Listener(Protocol):
    """A direct exchange, as the connection sees it."""

    def received(self, data: bytes) -> bool:
        """Bytes of the response, or ``b""`` where the connection has ended; False where nothing more is to be read here."""
        ...


class KeptConnection:
    """One connection with nobody's or one direct exchange's request on it."""

    __slots__ = ("_lost", "_scope", "access", "client", "is_new", "listener", "since")

    def __init__(
        self, client: Http1Client, access: Access, *, since: float, lost: Callable[[KeptConnection], None]
    ) -> None:
        """``lost`` is called where the connection ends, or says something, while nobody uses it."""
        self.client = client
        self.access = access
        self.since = since
        """When it was used last."""
        self.is_new = False
        """Whether it has not carried a request yet."""
        self.listener: Listener | None = None
        self._lost = lost
        self._scope = trio.CancelScope()

    async def run(self) -> None:
        """Listen until the connection is claimed, handed over or lost. Raises nothing."""
        with self._scope:
            while self._goes_on(await self._receive()):
                pass

    async def _receive(self) -> bytes:
        try:
            return await self.client.receive_some()
        except ConnectionEnded:
            return b""
        except trio.BusyResourceError:
            if self._scope.cancel_called:
                return b""  # claimed while this task was about to wake up
            raise

    def _goes_on(self, data: bytes) -> bool:
        """Deal with what was received; False where this task has nothing more to do."""
        if self._scope.cancel_called:
            if data:
                self.client.abort()  # claimed a moment too late to see these bytes: nobody knows whose they are
            return False
        if self.listener is None:
            self._lost(self)
            return False
        return self.listener.received(data)

    def claim(self) -> Http1Client:
        """Have the connection for oneself: `run` returns, and does not read any more from now on."""
        self._scope.cancel()
        return self.client

    def abort(self) -> None:
        """Close the connection at once. Idempotent."""
        self.listener = None
        self.claim().abort()
