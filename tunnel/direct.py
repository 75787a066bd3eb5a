"""Exchanges that need no task of their own.

Most requests have no body, and most answers are at hand whole before anybody could look. For such an exchange the task
that reads the request can send it on, and the task that reads the answer can pass it back: two task switches, a
wake-up and a stack of coroutines fewer at each end of the tunnel. Everything else needs a task, which waits: for the
rest of a body, for room, for another tunnel.

So an exchange may begin *directly*. It is an object with a place in a table of its downstream's connection, and ends
in one of three ways, each of them synchronous: the whole response was passed on; the downstream went away (`abandon`);
or it is handed over to a task (`Downstream.hand_over`), which goes on from where it stands. Handing over is always
right, and happens at once when part of a response is here: nothing waits to become whole.
"""

from __future__ import annotations

from typing import Protocol

DIRECT_BYTES = 65_536
"""A response with a larger body is passed on by a task, which can wait for room."""


class DirectExchange(Protocol):
    """An exchange that is under way without a task. All methods are synchronous and raise nothing."""

    def response_complete(self) -> None:
        """Head and body of the response are at hand, to the end."""
        ...

    def need_task(self) -> None:
        """Part of the response is at hand, or it failed: hand the exchange over."""
        ...

    def abandon(self) -> None:
        """The downstream is gone, or was cancelled: give the exchange up. Idempotent; nothing once it is over."""
        ...
