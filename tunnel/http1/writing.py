"""The sending half of an HTTP/1.1 connection, for both ends: writes that cannot be half done unnoticed, and bodies.

Knows nothing of heads and of reading.
"""

from __future__ import annotations

import trio

from tunnel.errors import ConnectionEnded, LocalProtocolError, StreamReset
from tunnel.http1.framing import encode_chunk, encode_last_chunk
from tunnel.http1.heads import BodyKind
from tunnel.messages import Fields
from tunnel.transports.base import SMALL_BYTES, Transport, send_at_once


class Sender:
    """Writes to a transport, and remembers a write that failed or was cancelled.

    After such a write nobody knows what the other side has, so that nothing may follow it.
    """

    __slots__ = ("intact", "peer", "transport", "unsent", "wrote")

    def __init__(self, transport: Transport, peer: str) -> None:
        self.transport = transport
        self.peer = peer
        """Who is at the other end, for messages: "client" or "upstream"."""
        self.intact = True
        self.wrote = False
        """Whether a write was begun; its owner sets it back."""
        self.unsent: memoryview | None = None
        """What `send_nowait` could not hand over; until `send_rest` has, nothing else may be sent."""

    async def send(self, data: bytes) -> None:
        """Write all of it. Raises `ConnectionEnded`. Cancelled, it leaves a connection that can only be aborted."""
        if not self.intact:
            raise ConnectionEnded(f"the connection to the {self.peer} is closed, or a write on it was cut short")
        self.intact = False
        self.wrote = True
        try:
            if len(data) <= SMALL_BYTES:
                await send_at_once(self.transport, data)
            else:
                await self.transport.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionEnded(f"the connection to the {self.peer} was lost while writing") from error
        self.intact = True

    def send_nowait(self, data: bytes) -> bool:
        """Write what the transport takes now; True where that was all. Else `send_rest` has to follow.

        Raises `ConnectionEnded`.
        """
        if not self.intact:
            raise ConnectionEnded(f"the connection to the {self.peer} is closed, or a write on it was cut short")
        self.wrote = True
        try:
            taken = self.transport.send_nowait(data)
            if taken == len(data) and self.transport.is_flushed:
                return True
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.intact = False
            raise ConnectionEnded(f"the connection to the {self.peer} was lost while writing") from error
        self.intact = False
        self.unsent = memoryview(data)[taken:]
        return False

    async def send_rest(self) -> None:
        """Write what `send_nowait` could not. Raises `ConnectionEnded`; cancelled, the connection is lost."""
        rest, self.unsent = self.unsent, None
        if rest is None:
            return
        try:
            if rest:
                await self.transport.send_all(rest)
            else:
                await self.transport.flush()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionEnded(f"the connection to the {self.peer} was lost while writing") from error
        self.intact = True

    def abort(self) -> None:
        """Close the connection at once, visibly."""
        self.intact = False
        self.transport.abort()


class MessageWriter:
    """The body of a message that is being sent (a `tunnel.messages.BodyWriter`).

    A body that does not keep to its declared length aborts the connection: the other side would take what comes next
    for a part of it, or the reverse.
    """

    __slots__ = ("_kind", "_remaining_bytes", "_sender", "finished", "was_reset")

    def __init__(self, sender: Sender, kind: BodyKind, length_bytes: int = 0) -> None:
        self._sender = sender
        self._kind = kind
        self._remaining_bytes = length_bytes
        self.finished = False
        self.was_reset = False

    def frame(self, data: bytes) -> bytes:
        """Account for bytes of the body and return them as they go on the wire.

        Raises `LocalProtocolError` for more than was declared, `StreamReset` after `reset`.
        """
        if self.was_reset:
            raise StreamReset("the message was given up by this side", remote=False)
        if not data:
            return b""
        if self.finished:
            raise LocalProtocolError("body bytes after the end of the message")
        if self._kind is BodyKind.CHUNKED:
            return encode_chunk(data)
        if self._kind is not BodyKind.UNTIL_CLOSE:
            if len(data) > self._remaining_bytes:
                self._sender.abort()
                raise LocalProtocolError("the body is longer than was declared")
            self._remaining_bytes -= len(data)
        return data

    def end(self, trailers: Fields | tuple[()] = ()) -> bytes:
        """Mark the message as whole and return what is left to write.

        Trailers are left out where the message is not chunked. Raises `LocalProtocolError` for less than was declared.
        """
        if self.was_reset:
            raise StreamReset("the message was given up by this side", remote=False)
        if self.finished:
            return b""
        if self._kind is BodyKind.CHUNKED:
            last = encode_last_chunk(trailers)
            self.finished = True
            return last
        if self._remaining_bytes:
            self._sender.abort()
            raise LocalProtocolError(f"the body is {self._remaining_bytes} bytes shorter than was declared")
        self.finished = True
        return b""

    async def send(self, data: bytes) -> None:
        """See `tunnel.messages.BodyWriter`. Also raises `LocalProtocolError`."""
        framed = self.frame(data)
        if framed:
            await self._sender.send(framed)

    async def finish(self, trailers: Fields | tuple[()] = ()) -> None:
        """See `tunnel.messages.BodyWriter`. Also raises `LocalProtocolError`."""
        last = self.end(trailers)
        if last:
            await self._sender.send(last)

    def reset(self, code: int) -> None:
        """Abort the connection, unless the message is whole. HTTP/1.1 has no place for the code."""
        if not (self.finished and self._sender.intact) and not self.was_reset:
            self.was_reset = True
            self._sender.abort()
