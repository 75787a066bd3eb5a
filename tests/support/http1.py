"""Transports in memory, and the other end of an HTTP/1.1 connection as a test plays it."""

from __future__ import annotations

from collections.abc import Callable

import trio

from tunnel.http1.downstream import Http1Downstream
from tunnel.http1.limits import DEFAULT_LIMITS, Http1Limits
from tunnel.http1.server import Begin, Handler, Http1Server
from tunnel.messages import Fields, ResponseHead
from tunnel.transports.base import TransportInfo


class MemoryTransport:
    """One end of a pair: what one end sends, the other receives, write by write unless ``split`` says otherwise.

    ``writes`` keeps every write apart, so that tests can tell what left in one piece. ``send_all`` waits while
    ``capacity_bytes`` are unread at the other end.
    """

    def __init__(self, *, capacity_bytes: int | None = None, clean_eof: bool = True) -> None:
        self.info = TransportInfo(kind="tcp", peer="127.0.0.1:1")
        self.writes: list[bytes] = []
        self.largest_unread_bytes = 0
        self.received_bytes = 0
        self.aborted = False
        self.closed = False
        self.eof_sent = False
        self.vouches = clean_eof
        self.fails_to_close = False  # whether an orderly close finds the other end gone
        self.nowait_bytes = 0  # how much of a write is taken without waiting
        self.is_flushed = True
        self.split: Callable[[bytes], list[bytes]] = lambda data: [data]
        self.peer: MemoryTransport = self
        self._capacity_bytes = capacity_bytes
        self._inbox: list[bytes] = []
        self._peer_gone = False
        self._peer_eof = False
        self._changed = trio.lowlevel.ParkingLot()
        self._saw_eof = False

    def _wake(self) -> None:
        self._changed.unpark_all()

    @property
    def unread_bytes(self) -> int:
        return sum(map(len, self._inbox))

    @property
    def sent(self) -> bytes:
        return b"".join(self.writes)

    @property
    def clean_eof(self) -> bool:
        return self._saw_eof and self.vouches

    def _check_open(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError("this end was closed")

    def receive_nowait(self) -> bytes | None:
        self._check_open()
        if self._inbox:
            data = self._inbox.pop(0)
            self.received_bytes += len(data)
            self.peer._wake()
            return data
        if self._peer_gone:
            raise trio.BrokenResourceError("the other end is gone")
        if self._peer_eof:
            self._saw_eof = True
            return b""
        return None

    async def receive_some(self) -> bytes:
        await trio.lowlevel.checkpoint()
        while (data := self.receive_nowait()) is None:
            await self._changed.park()
        return data

    def _check_sendable(self) -> None:
        self._check_open()
        if self.eof_sent:
            raise trio.ClosedResourceError("this half was closed")
        if self.peer.closed:
            raise trio.BrokenResourceError("the other end is gone")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._check_sendable()
        await trio.lowlevel.checkpoint()
        self._check_sendable()
        data = bytes(data)
        if not data:
            return
        self.writes.append(data)
        for piece in self.split(data):
            self.peer._inbox.append(piece)
            self.peer.largest_unread_bytes = max(self.peer.largest_unread_bytes, self.peer.unread_bytes)
            self.peer._wake()
            await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        while self._capacity_bytes is not None and self.peer.unread_bytes > self._capacity_bytes:
            await self._changed.park()
            self._check_sendable()

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Takes ``nowait_bytes`` at most: nothing by default, so that every write goes through `send_all`."""
        self._check_sendable()
        taken = bytes(data[: self.nowait_bytes])
        if taken:
            self.writes.append(taken)
            self.peer._inbox.append(taken)
            self.peer._wake()
        return len(taken)

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()
        self._check_sendable()
        self.is_flushed = True

    @property
    def is_writable(self) -> bool:
        self._check_sendable()
        return self._capacity_bytes is None or self.peer.unread_bytes <= self._capacity_bytes

    async def wait_writable(self) -> None:
        self._check_sendable()
        await trio.lowlevel.checkpoint()
        await self._wait_for_room()

    async def send_eof(self) -> None:
        self._check_open()
        await trio.lowlevel.checkpoint()
        self.eof_sent = True
        self.peer._peer_eof = True
        self.peer._wake()

    async def aclose(self) -> None:
        try:
            if not self.closed:
                self.closed = True
                self.peer._peer_eof = True
                self.peer._wake()
                self._wake()
                if self.fails_to_close:
                    raise trio.BrokenResourceError("the other end is gone")
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            self.abort()
            raise

    def abort(self) -> None:
        if not self.closed:
            self.aborted = True
            self.closed = True
            self.peer._peer_gone = True
            self.peer._wake()
            self._wake()


def memory_transport_pair(*, capacity_bytes: int | None = None) -> tuple[MemoryTransport, MemoryTransport]:
    """Two connected transports."""
    one, other = MemoryTransport(capacity_bytes=capacity_bytes), MemoryTransport(capacity_bytes=capacity_bytes)
    one.peer, other.peer = other, one
    return one, other


async def read_until(transport: MemoryTransport, end: bytes, collected: bytes = b"") -> bytes:
    """Receive until what has come ends with these bytes, and return all of it."""
    while not collected.endswith(end):
        data = await transport.receive_some()
        assert data, f"the connection ended after {collected!r}"
        collected += data
    return collected


async def read_to_eof(transport: MemoryTransport) -> bytes:
    """Receive until the other end has closed its half in order."""
    collected = b""
    while data := await transport.receive_some():
        collected += data
    return collected


def plain_error(status: int, message: str) -> tuple[Fields, bytes]:
    """A ``render_error`` for tests."""
    return [(b"content-type", b"text/plain")], f"{status} {message}".encode()


class Front:
    """A server on one end of a pair of transports, and a client played by hand on the other."""

    def __init__(
        self,
        nursery: trio.Nursery,
        handler: Handler,
        *,
        limits: Http1Limits = DEFAULT_LIMITS,
        initial: bytes = b"",
        capacity_bytes: int | None = None,
        begin: Begin | None = None,
    ) -> None:
        self.transport, self.client = memory_transport_pair(capacity_bytes=capacity_bytes)
        self.seen: list[Http1Downstream] = []
        self.over = trio.Event()
        self.crash: BaseException | None = None
        self._handler = handler
        self.server = Http1Server(
            self.transport, self._handle, limits=limits, render_error=plain_error, initial=initial, begin=begin
        )
        self.scope = trio.CancelScope()
        nursery.start_soon(self._run)

    async def _handle(self, downstream: Http1Downstream) -> None:
        self.seen.append(downstream)
        await self._handler(downstream)

    async def _run(self) -> None:
        try:
            with self.scope:
                await self.server.run()
        except ExceptionGroup as group:
            self.crash = group
            if group.subgroup(AssertionError) is not None:
                raise
        finally:
            self.over.set()

    async def ask(self, request: bytes, end: bytes) -> bytes:
        """Send a request and read the response up to these last bytes."""
        await self.client.send_all(request)
        return await read_until(self.client, end)

    async def ask_last(self, request: bytes) -> bytes:
        """Send a request and read until the server closes in order."""
        await self.client.send_all(request)
        return await read_to_eof(self.client)


async def answer_ok(downstream: Http1Downstream) -> None:
    """A handler: the body ``ok``, whole."""
    await downstream.send_response(ResponseHead(200, [(b"content-type", b"text/plain")]), b"ok", end=True)


OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"
OK_CLOSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
"""A request and its answers by `answer_ok`."""
