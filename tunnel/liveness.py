"""When to send a PING, and when a connection counts as dead, idle or unwelcome. Pure: the caller has the clock.

Any frame is proof of life. A PING goes out at a steady interval all the same, because its answer measures the round
trip; the peer is dead only when a PING is unanswered and nothing else has come either.
"""

from __future__ import annotations

import dataclasses
import enum
import math


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionTimes:
    """The limits of one connection, in seconds where nothing else is said."""

    ping_interval: float = 15.0
    """A PING goes out this long after the last one was answered."""
    ping_deadline: float = 15.0
    """The peer is unresponsive when no frame of any kind has come for this long after a PING."""
    idle: float = math.inf
    """Without streams for this long, the connection is closed (a front; tunnels live without streams)."""
    stranger: float = math.inf
    """Without an authenticated request for this long, the connection is closed (a front)."""
    stranger_answers: float = math.inf
    """The same, counted in answers."""


DEFAULT_TIMES = ConnectionTimes()


class Verdict(enum.Enum):
    """What a look at the clock found."""

    FINE = "fine"
    PING = "ping"
    UNRESPONSIVE = "unresponsive"
    IDLE = "idle"
    STRANGER = "stranger"


class Liveness:
    """The clock of one connection."""

    __slots__ = (
        "_answers",
        "_opened_at",
        "_ping_sent_at",
        "_ponged_at",
        "_times",
        "idle_since",
        "is_known",
        "received_at",
    )

    def __init__(self, times: ConnectionTimes, now: float) -> None:
        self._times = times
        self._opened_at = now
        self.is_known = False
        """Whether a request was authenticated here."""
        self._answers = 0
        self._ping_sent_at: float | None = None
        self._ponged_at = -math.inf
        self.received_at = now
        """When the last bytes came; set by the reader."""
        self.idle_since: float | None = now
        """Since when there is no stream; None while there is one."""

    def ping_sent(self, now: float) -> None:
        """A PING was queued."""
        self._ping_sent_at = now

    def ponged(self, now: float) -> float | None:
        """The PING was answered; returns the round trip in seconds, None where none was under way."""
        if self._ping_sent_at is None:
            return None
        round_trip = now - self._ping_sent_at
        self._ping_sent_at = None
        self._ponged_at = now
        return round_trip

    def authenticated(self) -> None:
        """The peer is no stranger any more."""
        self.is_known = True

    def answered(self) -> None:
        """One more answer went out."""
        self._answers += 1

    def verdict(self, now: float) -> Verdict:
        """What is to be done now."""
        times = self._times
        if not self.is_known and (now - self._opened_at >= times.stranger or self._answers >= times.stranger_answers):
            return Verdict.STRANGER
        if self.idle_since is not None and now - self.idle_since >= times.idle:
            return Verdict.IDLE
        if self._ping_sent_at is None:
            return Verdict.PING if now - self._ponged_at >= times.ping_interval else Verdict.FINE
        silent_since = max(self._ping_sent_at, self.received_at)
        return Verdict.UNRESPONSIVE if now - silent_since >= times.ping_deadline else Verdict.FINE

    def due(self) -> float:
        """When to look again, on the caller's clock, if nothing happens before."""
        times = self._times
        if self._ping_sent_at is None:
            due = self._ponged_at + times.ping_interval
        else:
            due = max(self._ping_sent_at, self.received_at) + times.ping_deadline
        if self.idle_since is not None:
            due = min(due, self.idle_since + times.idle)
        if not self.is_known:
            due = min(due, self._opened_at + times.stranger)
        return due
