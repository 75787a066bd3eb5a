"""What a transport offers to another one that is put on top of it, and how the upper one writes to it.

TLS over TCP, a WebSocket over either, TLS through an HTTPS proxy's TLS: the upper transport produces bytes in two tasks
(the writing task, and the reading task, which answers pings and key updates), and all of them must leave in the order
in which they were produced. `Outlet` keeps that order without a lock: taking bytes and handing them down is
synchronous, and only waiting for room is not. So neither task can be cancelled between taking a byte and accounting
for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from tunnel.transports.base import RECEIVE_BYTES, Transport

REPLIES_BYTES = 65_536
"""How many bytes the other side can make us owe it (pongs, key updates, alerts) before we stop reading from it."""


class Carrier(Transport, Protocol):
    """A transport that another one may be put on."""

    def unread(self, data: bytes) -> None:
        """Let the next receive return these bytes first: they were read too early."""
        ...


class Outlet:
    """The one way down for bytes that two tasks produce. Holds what was produced and has not been taken yet."""

    __slots__ = ("_is_waiting", "_lower", "_owed_bytes", "_pending_bytes", "_room", "_take", "_unsent")

    def __init__(self, lower: Carrier, take: Callable[[int], bytes], pending_bytes: Callable[[], int]) -> None:
        self._lower = lower
        self._take = take
        self._pending_bytes = pending_bytes
        self._unsent = memoryview(b"")
        self._is_waiting = False
        self._room: trio.Event | None = None  # for the tasks that wait behind the one that does
        self._owed_bytes = 0

    @property
    def backlog_bytes(self) -> int:
        """Bytes that have been produced and that the carrier has not taken."""
        return len(self._unsent) + self._pending_bytes()

    @property
    def unattended(self) -> bool:
        """Whether bytes wait here and no task waits for room for them."""
        return not self._is_waiting and self.backlog_bytes > 0

    @property
    def may_receive(self) -> bool:
        """False while so much is owed that reading on would let the other side fill our memory."""
        return self._owed_bytes <= REPLIES_BYTES or self.push()

    def owe(self, count: int) -> None:
        """Account for bytes that the other side made us produce; see `REPLIES_BYTES`."""
        self._owed_bytes += count

    def push(self) -> bool:
        """Hand down what fits now; True once nothing is left here."""
        while True:
            if not self._unsent:
                if not self._pending_bytes():
                    self._owed_bytes = 0
                    return True
                self._unsent = memoryview(self._take(RECEIVE_BYTES))
            taken = self._lower.send_nowait(self._unsent)
            self._unsent = self._unsent[taken:]
            if self._unsent:
                return False

    async def drain(self) -> None:
        """Return once nothing is left here. Any number of tasks; cancelling loses nothing."""
        while not self.push():
            await self.wait_writable()

    async def wait_writable(self) -> None:
        """`Transport.wait_writable` of the carrier, for any number of tasks."""
        if self._is_waiting:
            if self._room is None:
                self._room = trio.Event()
            await self._room.wait()
            return
        self._is_waiting = True
        try:
            await self._lower.wait_writable()
        finally:
            self._is_waiting = False
            if self._room is not None:
                self._room.set()
                self._room = None

    async def receive_some(self) -> bytes:
        """Receive from the carrier, and meanwhile hand down what waits here where nobody else does.

        Does not read on while more is owed than `REPLIES_BYTES`. Cancelling loses nothing.
        """
        while not self.may_receive:
            await self.wait_writable()
        if not self.unattended:
            return await self._lower.receive_some()
        failure: Exception | None = None
        data: bytes | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._drain_quietly)
                try:
                    data = await self._lower.receive_some()
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    failure = error
                nursery.cancel_scope.cancel()
        except BaseException:
            if data:
                self._lower.unread(data)
            raise
        if failure is not None:
            raise failure
        return data or b""

    async def _drain_quietly(self) -> None:
        try:
            await self.drain()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # the reading task finds out by itself, and says so to its caller
