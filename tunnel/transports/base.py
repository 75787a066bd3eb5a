"""What every transport offers: an ordered byte stream, and how it ends."""

from __future__ import annotations

import dataclasses
from typing import Protocol

RECEIVE_BYTES = 262_144
"""How much one receive may return: the size of the read, not the event loop, decides bulk speed."""

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
