"""Exchanges that need no task of their own.

Most requests have no body, and what comes in answer can mostly be passed back at once: a whole answer, or the events
of a watch, one after the other. For such an exchange the task that reads the request can send it on, and the task that
reads the answer can pass it back: two task switches, a wake-up and a stack of coroutines fewer at each end of the
tunnel, for each request and for each event, and no task that sleeps for as long as a watch is open. Everything else
needs a task, which waits: for room, for another tunnel, for what an agent has to explain.

So an exchange may begin *directly*. It is an object with a place in a table of its downstream's connection, and ends
in one of three ways, each of them synchronous: the response was passed on to its end; the downstream went away
(`abandon`); or it is handed over to a task (`Downstream.hand_over`), which goes on from where it stands. Handing over
is always right.
"""

from __future__ import annotations

from typing import Protocol

DIRECT_BYTES = 65_536
"""What is longer is passed on by a task, which can wait for room."""


class DirectExchange(Protocol):
    """An exchange that is under way without a task. All methods are synchronous and raise nothing."""

    def response_arrived(self) -> None:
        """Something of the response is at hand, or its end."""
        ...

    def response_failed(self) -> None:
        """The response will not come to its end: hand the exchange over."""
        ...

    def abandon(self) -> None:
        """The downstream is gone, or was cancelled: give the exchange up. Idempotent; nothing once it is over."""
        ...
