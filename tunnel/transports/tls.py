"""TLS on top of another transport, on `ssl`'s memory buffers.

Reads and writes up to 256 KiB per system call, whatever the size of TLS records. What the TLS library produces while
reading (key updates, alerts, session tickets) leaves through the same `Outlet` as what the writing task encrypts. It
builds no contexts (`tunnel.transports.tls_contexts`) and does not renegotiate.
"""

from __future__ import annotations

import contextlib
import ssl
from typing import Literal

import trio

from tunnel.errors import HandshakeError
from tunnel.transports.base import RECEIVE_BYTES, TransportInfo
from tunnel.transports.carrier import Carrier, Outlet
from tunnel.transports.tls_errors import explain_handshake_failure

HANDSHAKE_SECONDS = 10.0
CLOSE_SECONDS = 2.0
"""How long an orderly close tries to hand down the close_notify."""

_RECORD_BYTES = 16_384


class ServerSideObject(ssl.SSLObject):
    """An `ssl.SSLObject` which remembers what name the client asked for; see `remember_server_name`."""

    requested_name: str | None = None


def remember_server_name(ssl_object: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
    """The ``sni_callback`` of a context whose ``sslobject_class`` is `ServerSideObject`."""
    if isinstance(ssl_object, ServerSideObject):
        ssl_object.requested_name = name


class TlsTransport:
    """TLS over ``lower``, which it owns from now on. Usable once `handshake` has returned."""

    __slots__ = (
        "_aborted",
        "_broken",
        "_clean_eof",
        "_early",
        "_ended",
        "_failure",
        "_first_bytes",
        "_incoming",
        "_lower",
        "_outgoing",
        "_outlet",
        "_server_hostname",
        "_server_side",
        "_tls",
        "_write_ended",
        "info",
    )

    def __init__(
        self, lower: Carrier, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None
    ) -> None:
        self._lower = lower
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._server_side = server_side
        self._server_hostname = server_hostname
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )
        outgoing = self._outgoing
        self._outlet = Outlet(lower, outgoing.read, lambda: outgoing.pending)
        self.info = TransportInfo(kind="tls", peer=lower.info.peer)
        self._first_bytes = b""
        self._early = b""
        self._ended = False
        self._clean_eof = False
        self._failure: ssl.SSLError | None = None
        self._aborted = False
        self._broken = False
        self._write_ended = False

    async def handshake(self) -> None:
        """Shake hands within `HANDSHAKE_SECONDS`; fills in ``info``.

        Raises `HandshakeError`, whose text says which check failed. That, or being cancelled, leaves the transport
        aborted.
        """
        try:
            with trio.fail_after(HANDSHAKE_SECONDS):
                await self._shake_hands()
        except trio.TooSlowError:
            self.abort()
            got = "half of a TLS handshake" if self._first_bytes else "nothing"
            message = f"TLS handshake with {self._other} not finished in {HANDSHAKE_SECONDS:g} s: received {got}"
            raise HandshakeError(message, reason="tls-timeout") from None
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.abort()
            raise HandshakeError(
                f"{self._other} ended the connection during the TLS handshake: {error}", reason="tls-cut-off"
            ) from error
        except BaseException:
            self.abort()
            raise
        tls = self._tls
        requested = tls.requested_name if isinstance(tls, ServerSideObject) else self._server_hostname
        self.info = TransportInfo(
            kind="tls",
            peer=self._lower.info.peer,
            alpn=tls.selected_alpn_protocol(),
            server_name=requested,
            tls_version=tls.version(),
        )

    @property
    def peer_certificate(self) -> bytes | None:
        """The certificate that the other side presented (DER); None before the handshake, or where it has none."""
        return self._tls.getpeercert(binary_form=True)

    async def receive_some(self) -> bytes:
        """Up to `RECEIVE_BYTES` bytes; ``b""`` at the end, which is authentic only where `clean_eof` says so.

        Cancelling loses nothing.
        """
        data: bytes | None = None
        if self._early or self._incoming.pending or self._ended or self._failure is not None:
            await trio.lowlevel.checkpoint()
            data = self.receive_nowait()
        while data is None:
            self._check_open()
            # The usual way past the outlet: for each of many idle connections, one frame fewer that sleeps.
            is_usual = self._outlet.may_receive and not self._outlet.unattended
            self._feed(await (self._lower if is_usual else self._outlet).receive_some())
            data = self._decrypt()
        return data

    def receive_nowait(self) -> bytes | None:
        """What `receive_some` would return at once; None where it would wait."""
        self._check_open()
        data = self._decrypt()
        while data is None and self._outlet.may_receive:
            encrypted = self._lower.receive_nowait()
            if encrypted is None:
                return None
            self._feed(encrypted)
            data = self._decrypt()
        return data

    def unread(self, data: bytes) -> None:
        """Let the next receive return these bytes first."""
        self._early = data + self._early

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of it, in records of up to 16 KiB and system calls of up to 256 KiB.

        Cancelled, an unknown part is written, and the transport is only good for `abort`.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_writable()
        waited = False
        view = memoryview(data)
        try:
            while view:
                view = view[self._encrypt(view[:RECEIVE_BYTES]) :]
                if not self._outlet.push():
                    waited = True
                    await self._outlet.drain()
            if not waited:
                await trio.lowlevel.cancel_shielded_checkpoint()
        except BaseException:
            self._broken = True
            raise

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Encrypt up to 256 KiB and hand down what fits; takes nothing while something encrypted still waits."""
        self._check_writable()
        if not data or not self._outlet.push():
            return 0
        taken = self._encrypt(memoryview(data)[:RECEIVE_BYTES])
        self._outlet.push()
        return taken

    @property
    def is_flushed(self) -> bool:
        """Whether nothing that was encrypted still waits here or below."""
        return not self._outlet.backlog_bytes and self._lower.is_flushed

    async def flush(self) -> None:
        """Return once everything that was encrypted is with the kernel."""
        self._check_open()
        await self._outlet.drain()
        await self._lower.flush()

    async def wait_writable(self) -> None:
        """Return once all that was encrypted has been handed down and the kernel takes more."""
        self._check_writable()
        await self._outlet.drain()
        await self._outlet.wait_writable()

    @property
    def is_writable(self) -> bool:
        """Whether `wait_writable` would return at once."""
        self._check_writable()
        return not self._outlet.backlog_bytes and self._lower.is_writable

    async def send_eof(self) -> None:
        """Send close_notify; reading goes on. Idempotent."""
        if self._write_ended:
            await trio.lowlevel.checkpoint()
            return
        self._check_writable()
        self._say_close_notify()
        await self.flush()

    @property
    def clean_eof(self) -> bool:
        """True once a close_notify was received; False where the connection just ended."""
        return self._clean_eof

    async def aclose(self) -> None:
        """Send close_notify, then close what is below. Does not wait for the other side's close_notify.

        After a failed or cancelled write there is no close_notify: what was cut off must not look whole. Idempotent.
        """
        if self._aborted or self._broken:
            self.abort()
            await trio.lowlevel.checkpoint()
            return
        try:
            with trio.move_on_after(CLOSE_SECONDS) as patience, contextlib.suppress(trio.BrokenResourceError):
                await self.send_eof()
            if patience.cancelled_caught:
                return
            await self._lower.aclose()
        finally:
            self.abort()

    def abort(self) -> None:
        """Close at once, without a close_notify. Idempotent."""
        self._aborted = True
        self._lower.abort()

    @property
    def _other(self) -> str:
        return self.info.peer or "the other side"

    async def _shake_hands(self) -> None:
        while (step := self._step()) is not True:
            if step is not None:
                await self._say_alert()
                raise self._explain(step) from step
            await self._outlet.drain()
            encrypted = await self._lower.receive_some()
            if not encrypted:
                raise trio.BrokenResourceError("it closed the connection")
            if len(self._first_bytes) < 16:
                self._first_bytes += encrypted[:16]
            self._incoming.write(encrypted)
        await self._outlet.drain()

    def _step(self) -> Literal[True] | ssl.SSLError | None:
        """Go on with the handshake: True where it is done, None where more must arrive first, or why it failed."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLError as error:
            return error
        return True

    def _explain(self, error: ssl.SSLError) -> HandshakeError:
        return explain_handshake_failure(
            error,
            peer=self._other,
            server_side=self._server_side,
            server_hostname=self._server_hostname,
            first_bytes=self._first_bytes,
        )

    async def _say_alert(self) -> None:
        """Tell the other side why, and let it read that: a reset would take the alert with it."""
        with trio.move_on_after(CLOSE_SECONDS), contextlib.suppress(trio.BrokenResourceError):
            await self._outlet.drain()
            await self._lower.aclose()

    def _feed(self, encrypted: bytes) -> None:
        if encrypted:
            self._incoming.write(encrypted)
        else:
            self._ended = True

    def _decrypt(self) -> bytes | None:
        """What was received and can be decrypted: everything, or ``b""`` at the end, or None for nothing yet."""
        if self._incoming.pending:
            self._decrypt_records()
        if self._early:
            data, self._early = self._early, b""
            return data
        if self._failure is not None:
            raise trio.BrokenResourceError(f"TLS with {self._other} failed: {self._failure}") from self._failure
        return b"" if self._ended else None

    def _decrypt_records(self) -> None:
        """Move every whole record from the incoming buffer to ``_early``, and push out what that provoked."""
        owed_before = self._outgoing.pending
        pieces = [self._early] if self._early else []
        try:
            while self._incoming.pending and not self._ended:
                piece = self._tls.read(_RECORD_BYTES)
                if piece:
                    pieces.append(piece)
                else:
                    self._clean_eof = self._ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._clean_eof = self._ended = True
        except ssl.SSLError as error:
            self._failure = error
            self._broken = True
        self._early = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        provoked = self._outgoing.pending - owed_before
        if provoked:
            self._outlet.owe(provoked)
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                self._outlet.push()

    def _encrypt(self, data: memoryview) -> int:
        try:
            return self._tls.write(data)
        except ssl.SSLError as error:
            raise trio.BrokenResourceError(f"TLS with {self._other} failed: {error}") from error

    def _say_close_notify(self) -> None:
        # Whole records that were not read yet would make the TLS library fail: it looks for the other close_notify.
        self._decrypt_records()
        self._write_ended = True
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._broken = True
            raise trio.BrokenResourceError(f"TLS with {self._other} failed: {error}") from error

    def _check_open(self) -> None:
        if self._aborted:
            raise trio.ClosedResourceError("this transport was closed")

    def _check_writable(self) -> None:
        self._check_open()
        if self._write_ended:
            raise trio.ClosedResourceError("the sending half of this transport was closed")
        if self._broken:
            raise trio.BrokenResourceError("an earlier write to this transport was cancelled, or TLS failed")
