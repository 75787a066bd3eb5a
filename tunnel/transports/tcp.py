"""A TCP connection as a transport.

Works on the non-blocking socket itself: one system call where the kernel is ready, Trio's readiness where it is not. It
does not listen, connect or resolve names (`tunnel.listening`, `tunnel.dialer`).
"""

from __future__ import annotations

import contextlib
import fcntl
import select
import socket
import struct
import sys
import termios

import trio

from tunnel.errors import PeerUnresponsive
from tunnel.transports.base import RECEIVE_BYTES, WRITE_PROGRESS_SECONDS, TransportInfo

NOTSENT_LOWAT_BYTES = 131_072
"""How many bytes the kernel may hold that it has not sent yet; what is above that waits where it can be reordered."""

CLOSE_SECONDS = 2.0
"""How long an orderly close waits for the other side to close as well."""

_DROP_BYTES = 65_536
_TCP_OPTIONS = {
    "TCP_NODELAY": 1,
    "TCP_KEEPIDLE": 60,
    "TCP_KEEPINTVL": 15,
    "TCP_KEEPCNT": 4,
    "TCP_NOTSENT_LOWAT": NOTSENT_LOWAT_BYTES,
}

# Reading into a buffer that is reused and copying out what came is five times as fast as `recv(256 KiB)`, for which the
# allocator maps and unmaps pages at every call. Borrowed and given back around one system call, so there is one buffer
# for each thread that is inside of it, and not one for each connection.
_read_buffers: list[bytearray] = []


def _keep_large_blocks() -> None:
    """Have the allocator keep the memory of buffers for the next ones.

    glibc maps blocks of 128 KiB and more one by one, and unmaps them when they are freed, until it has seen a larger
    one come and go (mallopt(3), M_MMAP_THRESHOLD). Bulk transfers then spend half of their time in page faults. This
    block is never touched, and so costs no memory.
    """
    block = bytearray(16_777_216)
    del block


_keep_large_blocks()


class TcpTransport:
    """A connected TCP socket. Takes the socket over: the object that was given is of no more use to the caller."""

    __slots__ = (
        "_broken",
        "_closed",
        "_drained",
        "_early",
        "_eof",
        "_failed",
        "_poll",
        "_progress_seconds",
        "_sock",
        "_write_ended",
        "info",
    )

    def __init__(
        self,
        sock: trio.socket.SocketType | socket.socket,
        *,
        peer: str | None = None,
        write_progress_seconds: float = WRITE_PROGRESS_SECONDS,
    ) -> None:
        """``peer``: the name of the other end, where the caller knows it and `set_options` has been called."""
        if isinstance(sock, socket.socket):
            self._sock = sock
        else:
            self._sock = socket.socket(fileno=sock.detach())
        self._sock.setblocking(False)
        if peer is None:
            set_options(self._sock)
            peer = _peer_name(self._sock)
        self.info = TransportInfo(kind="tcp", peer=peer)
        self._progress_seconds = write_progress_seconds
        self._poll: select.poll | None = None  # made for those who ask `is_writable`: HTTP/2 connections, which are few
        self._early = b""
        self._drained = False  # the last read took everything: the next one would find nothing, so wait first
        self._eof = False
        self._closed = False
        self._broken = False  # a write was left half done
        self._failed = False  # the kernel reported an error, which it does only once
        self._write_ended = False

    async def receive_some(self) -> bytes:
        """Up to `RECEIVE_BYTES` bytes; ``b""`` once the other side has closed its half. Cancelling loses nothing."""
        data: bytes | None = None
        if not self._drained or self._early or self._closed:
            await trio.lowlevel.checkpoint_if_cancelled()
            data = self.receive_nowait()
            if data is not None:
                await trio.lowlevel.cancel_shielded_checkpoint()
                return data
        while data is None:
            await trio.lowlevel.wait_readable(self._sock)
            data = self.receive_nowait()
        return data

    def receive_nowait(self) -> bytes | None:
        """What `receive_some` would return at once; None where it would wait."""
        if self._closed:
            raise trio.ClosedResourceError("this transport was closed")
        if self._early:
            data, self._early = self._early, b""
            return data
        buffer = _read_buffers.pop() if _read_buffers else bytearray(RECEIVE_BYTES)
        try:
            count = self._sock.recv_into(buffer)
            data = bytes(memoryview(buffer)[:count])
        except (BlockingIOError, InterruptedError):
            self._drained = True
            return None
        except OSError as error:
            self._failed = True
            raise trio.BrokenResourceError(f"receiving from {self._peer} failed: {error}") from error
        finally:
            _read_buffers.append(buffer)
        self._drained = 0 < count < RECEIVE_BYTES
        if not data:
            if self._failed:  # what looks like a FIN is a reset that another call was told about
                raise trio.BrokenResourceError(f"the connection to {self._peer} failed")
            self._eof = True
        return data

    def unread(self, data: bytes) -> None:
        """Let the next receive return these bytes first."""
        self._early = data + self._early

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of it; raises where nothing moves for ``write_progress_seconds``.

        Cancelled, an unknown part is written, and the transport is only good for `abort`.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        sent = self.send_nowait(data)
        if sent == len(data):
            await trio.lowlevel.cancel_shielded_checkpoint()
            return
        view = memoryview(data)[sent:]
        try:
            while view:
                await self._wait_for_room()
                view = view[self.send_nowait(view) :]
        except BaseException:
            self._broken = True
            raise

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Write what the kernel takes now; returns how many bytes that were."""
        self._check_writable()
        if not data:
            return 0
        try:
            return self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            self._failed = True
            raise trio.BrokenResourceError(f"sending to {self._peer} failed: {error}") from error

    @property
    def is_flushed(self) -> bool:
        """Always: nothing is held back here."""
        return True

    async def flush(self) -> None:
        """Nothing is held back here."""
        await trio.lowlevel.checkpoint()

    async def wait_writable(self) -> None:
        """Return once the kernel holds less than `NOTSENT_LOWAT_BYTES` that it has not sent."""
        if self.is_writable:
            await trio.lowlevel.checkpoint()
        else:
            await self._wait_for_room()

    @property
    def is_writable(self) -> bool:
        """Whether `wait_writable` would return at once."""
        self._check_writable()
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._sock, select.POLLOUT)
        return bool(self._poll.poll(0))

    async def send_eof(self) -> None:
        """Send a FIN; reading goes on. Idempotent."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._write_ended:
            self._check_writable()
            self._write_ended = True
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                self._failed = True
                raise trio.BrokenResourceError(f"closing the half towards {self._peer} failed: {error}") from error
        await trio.lowlevel.cancel_shielded_checkpoint()

    @property
    def clean_eof(self) -> bool:
        """True once a FIN was received."""
        return self._eof

    async def aclose(self) -> None:
        """Send a FIN, wait for the other side's for `CLOSE_SECONDS` at most, and close.

        What still arrives is dropped. Closing without reading it would make the kernel send a RST, and the other side
        might then lose what we sent last. After a failed or cancelled write this is `abort`. Idempotent.
        """
        if self._broken or self._failed:
            self.abort()
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        trio.lowlevel.notify_closing(self._sock)
        try:
            if self._eof:  # closing says the rest
                await trio.lowlevel.checkpoint()
                return
            if not self._write_ended:
                self._sock.shutdown(socket.SHUT_WR)
            with trio.move_on_after(CLOSE_SECONDS):
                await trio.lowlevel.checkpoint()
                while not self._eof:
                    await self._drop_what_arrives()
        except (OSError, trio.ClosedResourceError):
            return  # the other side, or `abort` in another task, was faster
        finally:
            self._close()

    def abort(self, *, reset: bool = True) -> None:
        """Close at once and wake whoever waits. Idempotent.

        With ``reset`` the other side sees a failure (RST): a FIN would end a message that is delimited by the close as
        if it were whole. Without, the kernel goes on sending what it has.
        """
        self._closed = True
        if reset and self._sock.fileno() >= 0:
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._close()

    def _close(self) -> None:
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()

    async def _drop_what_arrives(self) -> None:
        await trio.lowlevel.wait_readable(self._sock)
        with contextlib.suppress(BlockingIOError, InterruptedError):
            self._eof = not self._sock.recv(_DROP_BYTES)

    @property
    def _peer(self) -> str:
        return self.info.peer or "the other side"

    def _check_writable(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this transport was closed")
        if self._write_ended:
            raise trio.ClosedResourceError("the sending half of this transport was closed")
        if self._failed:
            raise trio.BrokenResourceError(f"the connection to {self._peer} failed")
        if self._broken:
            raise trio.BrokenResourceError("an earlier write to this transport was cancelled")

    async def _wait_for_room(self) -> None:
        unacknowledged = _unacknowledged_bytes(self._sock)
        while True:
            with trio.move_on_after(self._progress_seconds) as patience:
                await trio.lowlevel.wait_writable(self._sock)
            if not patience.cancelled_caught:
                self._check_writable()
                return
            # A slow uplink can take longer than the deadline to make room, and still move bytes.
            before, unacknowledged = unacknowledged, _unacknowledged_bytes(self._sock)
            if unacknowledged >= before:
                self._failed = True
                message = f"{self._peer} took no byte for {self._progress_seconds:g} s"
                raise trio.BrokenResourceError(message) from PeerUnresponsive(message, local=True)


def set_options(sock: socket.socket) -> None:
    """Set what can be set: a connection that is reset already refuses some options, and a read will say so."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _TCP_OPTIONS.items():
            option = getattr(socket, name, None)  # not every platform has every one
            if option is not None:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _peer_name(sock: socket.socket) -> str:
    try:
        return address_name(sock.getpeername())
    except OSError:
        return ""


def address_name(address: object) -> str:
    """`format_address` of what the socket module gives for an address; "" where it has no port."""
    return format_address(address[0], address[1]) if isinstance(address, tuple) else ""


def format_address(host: str, port: int) -> str:
    """``host:port``, with brackets round an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _unacknowledged_bytes(sock: socket.socket) -> int:
    """Bytes that the kernel holds until the other side has acknowledged them (SIOCOUTQ); 0 where it does not tell."""
    if sys.platform != "linux":
        return 0
    count: int = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]
    return count
