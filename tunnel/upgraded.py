"""The byte stream that an accepted upgrade leaves behind on an HTTP/2 stream."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import trio

from tunnel.errors import ConnectionEnded, ErrorCode, StreamError, TunnelError

if TYPE_CHECKING:
    from tunnel.streams import Http2Stream

CLOSE_SECONDS = 5.0
"""How long `UpgradedStream.aclose` waits for what is queued to leave before it resets."""


class UpgradedStream(trio.abc.HalfCloseableStream):
    """The byte stream of an accepted upgrade. ``aclose`` and ``send_eof`` are END_STREAM; `reset` is RST_STREAM."""

    __slots__ = ("_closed", "_leftover", "_receiving", "_stream", "sending")

    def __init__(self, stream: Http2Stream) -> None:
        self._stream = stream
        self._leftover = b""
        self._closed = False
        self._receiving = False
        self.sending = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes, at most ``max_bytes``; ``b""`` after the peer's END_STREAM."""
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this stream")
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise trio.ClosedResourceError
        self._receiving = True
        try:
            data = self._leftover or await self._stream.receive()
        except (StreamError, ConnectionEnded) as exc:
            raise self._gone(exc) from exc
        finally:
            self._receiving = False
        if max_bytes is not None and len(data) > max_bytes:
            data, self._leftover = data[:max_bytes], data[max_bytes:]
        else:
            self._leftover = b""
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of it; returns when at most `SEND_BUFFER_BYTES` are still queued."""
        with _Exclusive(self):
            await trio.lowlevel.checkpoint()
            self._check_open()
            try:
                await self._stream.send(bytes(data))
            except (StreamError, ConnectionEnded) as exc:
                raise self._gone(exc) from exc

    async def wait_send_all_might_not_block(self) -> None:
        """Return once less than `SEND_BUFFER_BYTES` are queued."""
        with _Exclusive(self):
            await trio.lowlevel.checkpoint()
            self._check_open()
            try:
                await self._stream.wait_sendable()
            except (StreamError, ConnectionEnded) as exc:
                raise self._gone(exc) from exc

    async def send_eof(self) -> None:
        """END_STREAM; what the peer sends still arrives. The second time does nothing."""
        with _Exclusive(self):
            await trio.lowlevel.checkpoint()
            if self._closed:
                raise trio.ClosedResourceError
            if not self._stream.sent_end:
                try:
                    await self._stream.finish()
                except (StreamError, ConnectionEnded) as exc:
                    raise trio.BrokenResourceError(str(exc)) from exc

    async def aclose(self) -> None:
        """END_STREAM, then RST_STREAM(NO_ERROR) where the peer has not ended. Cancelled, it resets."""
        stream = self._stream
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        try:
            if self.sending:
                stream.reset(ErrorCode.CANCEL)  # what another task is sending can only be cut off
            if stream.failure is None and not stream.sent_end:
                await stream.finish()
            with trio.move_on_after(CLOSE_SECONDS):
                while stream.failure is None and not stream.h2.local_ended:
                    await stream.writable.wait()
            await trio.lowlevel.checkpoint()
        finally:
            stream.reset(ErrorCode.NO_ERROR if stream.h2.local_ended else ErrorCode.CANCEL)

    def reset(self, code: int) -> None:
        """RST_STREAM, unless both directions have ended in order."""
        self._closed = True
        self._stream.reset(code)

    def _gone(self, exc: TunnelError) -> Exception:
        """What Trio wants to hear of a failure: closed where this side did it, broken otherwise."""
        return trio.ClosedResourceError() if self._closed else trio.BrokenResourceError(str(exc))

    def _check_open(self) -> None:
        if self._closed or self._stream.sent_end:
            raise trio.ClosedResourceError


class _Exclusive:
    """Refuses the second task that sends, as `trio.abc.SendStream` asks for."""

    __slots__ = ("_owner",)

    def __init__(self, owner: UpgradedStream) -> None:
        self._owner = owner

    def __enter__(self) -> None:
        if self._owner.sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._owner.sending = True

    def __exit__(self, *_: object) -> None:
        self._owner.sending = False
