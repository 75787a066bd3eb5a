"""A WebSocket as a byte stream, on top of another transport, after the opening handshake (`tunnel.handshake`).

Binary messages carry the bytes and their boundaries mean nothing. Text is refused with 1003, no extension is ever
negotiated, and pings are answered through the same `Outlet` as data, the last one only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets

import trio
from wsproto.frame_protocol import CloseReason, FrameProtocol

from tunnel.transports.base import RECEIVE_BYTES
from tunnel.transports.carrier import Carrier, Outlet
from tunnel.transports.websocket_frames import FrameDecoder, encode_binary

CLOSE_SECONDS = 2.0
"""How long an orderly close waits for each: handing down our close frame, and the other side's."""


class WebSocketTransport:
    """A WebSocket connection over ``lower``, which it owns from now on."""

    __slots__ = (
        "_closed",
        "_control",
        "_decoder",
        "_early",
        "_encoded",
        "_ended",
        "_interrupted",
        "_lower",
        "_outlet",
        "_random",
        "_received_end",
        "_receiving",
        "_write_ended",
        "_wsproto",
        "info",
    )

    def __init__(self, lower: Carrier, *, client: bool) -> None:
        self._lower = lower
        self._decoder = FrameDecoder(client=client)
        self._wsproto = FrameProtocol(client, [])
        self._random = secrets.token_bytes if client else None
        self._outlet = Outlet(lower, self._take, self._pending_bytes)
        self.info = dataclasses.replace(lower.info, kind="websocket")
        self._encoded = b""  # the writing task's, at most 256 KiB
        self._control = b""  # at most one close frame
        self._early = b""
        self._received_end = trio.Event()
        self._receiving = False
        self._ended = False  # nothing more will be received, cleanly or not
        self._write_ended = False
        self._interrupted = False
        self._closed = False

    async def receive_some(self) -> bytes:
        """Bytes of one read or more; ``b""`` at the end, which was said only where `clean_eof` is True.

        Cancelling loses nothing.
        """
        data: bytes | None = None
        if self._early or self._ended:
            await trio.lowlevel.checkpoint()
            data = self.receive_nowait()
        while data is None:
            self._check_open()
            self._receiving = True
            try:
                received = await self._outlet.receive_some()
            finally:
                self._receiving = False
            self._feed(received)
            data = self._received()
        return data

    def receive_nowait(self) -> bytes | None:
        """What `receive_some` would return at once; None where it would wait."""
        self._check_open()
        data = self._received()
        while data is None:
            received = self._lower.receive_nowait()
            if received is None:
                return None
            self._feed(received)
            data = self._received()
        return data

    def unread(self, data: bytes) -> None:
        """Let the next receive return these bytes first."""
        self._early = data + self._early

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of it in messages of up to 64 KiB.

        Cancelled, an unknown part is written, and the transport is only good for `abort`.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_writable()
        view = memoryview(data)
        try:
            await self._outlet.drain()
            while view:
                self._encoded = encode_binary(view[:RECEIVE_BYTES], random=self._random)
                view = view[RECEIVE_BYTES:]
                await self._outlet.drain()
            await self._lower.flush()
        except BaseException:
            self._interrupted = True
            raise

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Encode up to 256 KiB and hand down what fits; takes nothing while something still waits."""
        self._check_writable()
        if not data or not self._outlet.push():
            return 0
        view = memoryview(data)[:RECEIVE_BYTES]
        self._encoded = encode_binary(view, random=self._random)
        self._outlet.push()
        return len(view)

    @property
    def is_flushed(self) -> bool:
        """Whether nothing that was encoded still waits here or below."""
        return not self._outlet.backlog_bytes and self._lower.is_flushed

    async def flush(self) -> None:
        """Return once everything that was encoded is with the kernel."""
        self._check_open()
        await self._outlet.drain()
        await self._lower.flush()

    async def wait_writable(self) -> None:
        """Return once all that was encoded has been handed down and the kernel takes more."""
        self._check_writable()
        await self._outlet.drain()
        await self._outlet.wait_writable()

    @property
    def is_writable(self) -> bool:
        """Whether `wait_writable` would return at once."""
        self._check_writable()
        return not self._outlet.backlog_bytes and self._lower.is_writable

    async def send_eof(self) -> None:
        """Send a close frame; the other side may go on for a while, and that can still be received. Idempotent."""
        if self._write_ended:
            await trio.lowlevel.checkpoint()
            return
        self._check_writable()
        self._say_close(CloseReason.NORMAL_CLOSURE)
        await self.flush()

    @property
    def clean_eof(self) -> bool:
        """True once a close frame was received."""
        return self._decoder.close_code is not None

    async def aclose(self) -> None:
        """The closing handshake, each part of it within `CLOSE_SECONDS`, then close what is below.

        After a failed or cancelled write there is no close frame. Idempotent.
        """
        if self._interrupted or self._decoder.failure is not None:
            self.abort()
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        try:
            with trio.move_on_after(CLOSE_SECONDS) as patience, contextlib.suppress(trio.BrokenResourceError):
                await self.send_eof()
            if patience.cancelled_caught:
                return
            with trio.move_on_after(CLOSE_SECONDS), contextlib.suppress(trio.BrokenResourceError):
                await self._await_end()
            self._closed = True
            await self._lower.aclose()
        except trio.ClosedResourceError:
            return  # `abort` in another task was faster
        finally:
            self.abort()

    def abort(self) -> None:
        """Close at once, without a close frame. Idempotent."""
        self._closed = True
        self._received_end.set()
        self._lower.abort()

    async def _await_end(self) -> None:
        """Until the other side's close frame is here, whichever task reads."""
        if self._receiving:
            await self._received_end.wait()
            return
        while not self._ended:
            await self.receive_some()

    def _feed(self, received: bytes) -> None:
        """Decode what came, and answer it as far as it asks for an answer."""
        if not received:
            self._end()
            return
        data = self._decoder.receive(received)
        self._early = self._early + data if self._early else data
        failure = self._decoder.failure
        if failure is not None or self._decoder.close_code is not None:
            self._end()
            self._say_close(CloseReason.NORMAL_CLOSURE if failure is None else failure.code)
            self._push_quietly()
        elif self._decoder.ping is not None:
            self._push_quietly()

    def _received(self) -> bytes | None:
        if self._early:
            data, self._early = self._early, b""
            return data
        failure = self._decoder.failure
        if failure is not None:
            raise trio.BrokenResourceError(f"WebSocket: {failure}") from failure
        return b"" if self._ended else None

    def _end(self) -> None:
        self._ended = True
        self._received_end.set()

    def _say_close(self, code: int) -> None:
        """Let one close frame, the first, be the last thing that is sent."""
        if not self._write_ended:
            self._write_ended = True
            self._control = bytes(self._wsproto.close(code))

    def _push_quietly(self) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            self._outlet.push()

    def _pending_bytes(self) -> int:
        ping = self._decoder.ping
        answer = 0 if ping is None or self._write_ended else len(ping) + 6
        return len(self._encoded) + answer + len(self._control)

    def _take(self, _: int) -> bytes:
        """What is to be sent next: whole frames, data first, and nothing behind a close frame."""
        if self._encoded:
            taken, self._encoded = self._encoded, b""
        elif self._decoder.ping is not None and not self._write_ended:
            taken, self._decoder.ping = bytes(self._wsproto.pong(self._decoder.ping)), None
        else:
            taken, self._control = self._control, b""
        return taken

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this transport was closed")

    def _check_writable(self) -> None:
        self._check_open()
        if self._decoder.failure is not None or (self._write_ended and self._ended):
            raise trio.BrokenResourceError("the other side closed the WebSocket, or broke its protocol")
        if self._write_ended:
            raise trio.ClosedResourceError("the sending half of this transport was closed")
        if self._interrupted:
            raise trio.BrokenResourceError("an earlier write to this transport was cancelled")
