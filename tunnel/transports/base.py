"""What every transport offers: an ordered byte stream, and how it ends."""

from __future__ import annotations

import dataclasses
from typing import Protocol

RECEIVE_BYTES = 262_144
"""How much one receive may return: the size of the read, not the event loop, decides bulk speed."""

SMALL_BYTES = 65_536
"""Up to this size, `send_at_once` is the way to write."""

WRITE_PROGRESS_SECONDS = 20.0
"""A transport write that moves no byte for this long has failed (a deadline on progress, not on the whole write)."""

PATIENT_WRITE_SECONDS = 14_400.0
"""The same for connections that carry one exchange at a time: whoever pauses `kubectl logs -f | less` or a process that
does not read its input yet must not be cut off. kube-apiserver allows upgraded streams the same four hours; a peer that
is gone is found by TCP's own keep-alive."""


@dataclasses.dataclass(slots=True, frozen=True, kw_only=True)
class TransportInfo:
    """Facts for logs and routing, fixed once the transport is open."""

    kind: str
    """"tcp", "tls" or "websocket"."""
    peer: str
    """"address:port" of the other end, "" where it has none."""
    alpn: str | None = None
    """The protocol that ALPN chose; None without TLS or without ALPN."""
    server_name: str | None = None
    """The name that the client asked for in SNI (acceptor), or that was verified (dialer)."""
    tls_version: str | None = None


class Transport(Protocol):
    """A bidirectional byte stream with one reading task and one writing task.

    Every method that fails because the other end is gone raises `trio.BrokenResourceError`; after `aclose` or `abort`
    all raise `trio.ClosedResourceError`.
    """

    info: TransportInfo

    async def receive_some(self) -> bytes:
        """Up to `RECEIVE_BYTES` bytes; ``b""`` once the other side has closed its half. Cancelling loses nothing."""
        ...

    def receive_nowait(self) -> bytes | None:
        """What `receive_some` would return at once; None where it would wait."""
        ...

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of it; raises where nothing moves for `WRITE_PROGRESS_SECONDS` (or what it was made with).

        Cancelled, an unknown part is written: the transport is then only good for `abort`.
        """
        ...

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Take as many bytes as fit without waiting and return how many; the rest stays the caller's."""
        ...

    @property
    def is_flushed(self) -> bool:
        """Whether everything that `send_nowait` has taken is with the kernel."""
        ...

    async def flush(self) -> None:
        """Return once `is_flushed`. Cancelling loses nothing."""
        ...

    @property
    def is_writable(self) -> bool:
        """Whether `wait_writable` would return at once."""
        ...

    async def wait_writable(self) -> None:
        """Return once the kernel would take bytes, so that what is gathered next is as fresh as can be."""
        ...

    async def send_eof(self) -> None:
        """Close the sending half (TLS: close_notify). Reading goes on. WebSocket: sends a close frame."""
        ...

    @property
    def clean_eof(self) -> bool:
        """After ``b""`` was received: whether the end was authenticated (close_notify, WebSocket close, plain FIN)."""
        ...

    async def aclose(self) -> None:
        """Close in order, within a deadline of a few seconds; idempotent. Cancelled, it aborts."""
        ...

    def abort(self) -> None:
        """Close at once, synchronously; wakes whoever waits in the other methods. Idempotent."""
        ...


async def send_at_once(transport: Transport, data: bytes) -> None:
    """`Transport.send_all` without a checkpoint where the kernel takes everything now.

    For small pieces: another task's turn costs more than the write. Whoever calls it in a loop has to wait for something
    else there.
    """
    taken = transport.send_nowait(data)
    if taken < len(data):
        await transport.send_all(memoryview(data)[taken:])
    elif not transport.is_flushed:
        await transport.flush()


async def send_joined(transport: Transport, chunks: list[bytes | memoryview]) -> None:
    """Send these pieces as one; `send_at_once` where that is little."""
    data = b"".join(chunks)
    if len(data) > SMALL_BYTES:
        await transport.send_all(data)
    elif data:
        await send_at_once(transport, data)
