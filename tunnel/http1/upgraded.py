"""The byte stream behind a 101, for both ends: what HTTP/1.1 leaves of a transport once it has stepped aside."""

from __future__ import annotations

import operator

import trio

from tunnel.transports.base import Transport


class UpgradedStream(trio.abc.HalfCloseableStream):
    """A transport as a Trio stream, with bytes that were read too early coming first.

    An end that the transport cannot vouch for (TLS without close_notify) raises `trio.BrokenResourceError`, since no
    message framing tells whether something is missing.
    """

    def __init__(self, transport: Transport, initial: bytes = b"") -> None:
        self._transport = transport
        self._received = initial
        self._eof_received = False
        self._eof_sent = False
        self._closed = False
        self._sending = False
        self._receiving = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See `trio.abc.ReceiveStream`. Cancelling loses nothing."""
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this stream")
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed")
        if self._received or self._eof_received:
            await trio.lowlevel.checkpoint()
        else:
            self._receiving = True
            try:
                self._received = await self._transport.receive_some()
            finally:
                self._receiving = False
            if not self._received:
                if not self._transport.clean_eof:
                    raise trio.BrokenResourceError("the connection ended without a close")
                self._eof_received = True
        data = self._received
        if max_bytes is None or len(data) <= max_bytes:
            self._received = b""
            return data
        self._received = data[max_bytes:]
        return data[:max_bytes]

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `trio.abc.SendStream`. Cancelled, the stream can only be reset."""
        self._begin_sending()
        try:
            if data:
                await self._transport.send_all(data)
            else:
                await trio.lowlevel.checkpoint()
        finally:
            self._sending = False

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        self._begin_sending()
        try:
            await self._transport.wait_writable()
        finally:
            self._sending = False

    def _begin_sending(self) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        if self._closed or self._eof_sent:
            raise trio.ClosedResourceError("this half of the stream was closed")
        self._sending = True

    async def send_eof(self) -> None:
        """See `trio.abc.HalfCloseableStream`."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed")
        if self._eof_sent:
            await trio.lowlevel.checkpoint()
            return
        self._eof_sent = True
        self._sending = True
        try:
            await self._transport.send_eof()
        finally:
            self._sending = False

    async def aclose(self) -> None:
        """Close both halves in order; cancelled or broken, at once. Idempotent."""
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        try:
            await self._transport.aclose()
        except trio.BrokenResourceError:
            pass  # closed is closed
        finally:
            self._transport.abort()

    def reset(self, code: int) -> None:
        """Close both halves at once, visibly. Nothing after `aclose`; HTTP/1.1 has no place for the code."""
        if not self._closed:
            self._closed = True
            self._transport.abort()

    @property
    def closed(self) -> bool:
        """Whether this side has closed or reset the stream."""
        return self._closed
