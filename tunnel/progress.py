"""How far an exchange has come between its two ends, and how one of them failed.

Kept by `tunnel.relay` and `tunnel.splice`, and by exchanges that need no task; read by the access log of kas.
"""

from __future__ import annotations

import dataclasses

import trio

from tunnel.errors import ConnectionEnded, RemoteProtocolError, StreamError, TunnelError

BROKEN = (
    StreamError,
    ConnectionEnded,
    RemoteProtocolError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
)
"""What either end raises where it is gone or says what it must not."""


class UpstreamFailed(TunnelError):
    """The upstream side of the exchange failed; the cause is ``__cause__``.

    Where `Progress.response_started` is False, nothing was answered and the caller of `relay` decides what to say.
    """


class UpstreamSilent(UpstreamFailed):
    """No final response head came in time."""


class UpgradeUnanswered(UpstreamFailed):
    """An upgrade was handed over and no answer came: close the downstream, never answer with a status."""


class DownstreamGone(TunnelError):
    """The caller's side of the exchange failed: it went away, or sent what it must not."""


@dataclasses.dataclass(slots=True)
class Progress:
    """What has happened so far; kept up to date while `relay` runs, valid however it ends."""

    request_taken: bool = False
    """Whether any byte of the request body was taken from the caller: it cannot be sent a second time."""
    request_bytes: int = 0
    """Body bytes (or bytes of the upgraded stream) towards the upstream."""
    response_bytes: int = 0
    """The same towards the caller."""
    status: int = 0
    """The final status that was relayed; 0 before."""
    response_started: bool = False
    upgraded: bool = False
    cut_at_boundary: bool = False
    """A watch whose upstream failed between two events, and which was therefore ended cleanly."""
