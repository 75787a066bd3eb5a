"""Budgets against a peer that keeps the protocol and means harm (RFC 9113 §10.5; CVE-2019-9511 to 9518,
CVE-2023-44487).

Each budget is a token bucket for one kind of frame that costs us more than it costs the peer. Resets have a flat bucket
where a connection serves one caller. On a tunnel they are compared with the work that there was: a responder's streams
keep their slots until their tasks have ended, so many resets in little time are only harmful far above the peak of
unfinished requests.
"""

from __future__ import annotations

from typing import Final

from tunnel.errors import ErrorCode, RemoteProtocolError
from tunnel.h2.config import Budget, EngineConfig

WINDOW_UPDATE_EARNED_BYTES: Final = 1_024
"""Each so many bytes of DATA that we sent entitle the peer to one WINDOW_UPDATE above the budget. Go announces credit
for every 4 KiB, on the stream and on the connection."""


class BudgetExceeded(RemoteProtocolError):
    """The peer has used up a budget; the text names it."""

    def __init__(self, name: str) -> None:
        super().__init__(f"over the budget of {name}", code=ErrorCode.ENHANCE_YOUR_CALM)


class TokenBucket:
    """One budget."""

    __slots__ = ("_burst", "_level", "_name", "_per_second", "_updated")

    def __init__(self, name: str, budget: Budget, now: float) -> None:
        self._name = name
        self._burst = budget.burst
        self._per_second = budget.per_second
        self._level = budget.burst
        self._updated = now

    def try_take(self, now: float) -> bool:
        """Take one token; False where there is none."""
        level = min(self._burst, self._level + (now - self._updated) * self._per_second)
        self._updated = now
        if level < 1:
            self._level = level
            return False
        self._level = level - 1
        return True

    def take(self, now: float) -> None:
        """Take one token. Raises `BudgetExceeded`."""
        if not self.try_take(now):
            raise BudgetExceeded(self._name)


class ResetsAgainstWork:
    """Resets in a span of time, against twice the peak of unfinished requests in it."""

    __slots__ = ("_beyond_peak", "_count", "_peak", "_started", "_window_seconds")

    def __init__(self, beyond_peak: float, window_seconds: float, now: float) -> None:
        self._beyond_peak = beyond_peak
        self._window_seconds = window_seconds
        self._started = now
        self._count = 0
        self._peak = 0

    def note_unfinished(self, count: int) -> None:
        """So many requests are unfinished."""
        self._peak = max(self._peak, count)

    def take(self, unfinished: int, now: float) -> None:
        """One more reset. Raises `BudgetExceeded`."""
        if now - self._started >= self._window_seconds:
            self._started = now
            self._count = 0
            self._peak = unfinished
        self._count += 1
        if self._count > 2 * self._peak + self._beyond_peak:
            raise BudgetExceeded("resets beyond the work that was under way")


class Defences:
    """The budgets of one connection."""

    __slots__ = (
        "_resets",
        "_window_updates",
        "_window_updates_earned",
        "empty_data",
        "idle_frames",
        "large_heads",
        "pings",
        "settings",
        "work",
    )

    def __init__(self, config: EngineConfig, now: float) -> None:
        self.pings = TokenBucket("PING frames", config.pings, now)
        self.settings = TokenBucket("SETTINGS frames", config.settings_frames, now)
        self.empty_data = TokenBucket("empty DATA frames", config.empty_data_frames, now)
        self.idle_frames = TokenBucket("PRIORITY and unknown frames", config.idle_frames, now)
        self.large_heads = TokenBucket("heads above the limit", config.large_heads, now)
        self.work = ResetsAgainstWork(config.resets_beyond_peak, config.resets_window_seconds, now)
        self._resets = TokenBucket("resets", config.resets, now)
        self._window_updates = TokenBucket("WINDOW_UPDATE frames", config.window_updates, now)
        self._window_updates_earned = 0

    def take_reset(self, unfinished: int, now: float) -> None:
        """RST_STREAM from the peer, or one of ours for what it did. Raises `BudgetExceeded`."""
        self._resets.take(now)
        self.work.take(unfinished, now)

    def take_window_update(self, sent_data_bytes: int, now: float) -> None:
        """WINDOW_UPDATE from the peer, to which we have sent so many bytes of DATA. Raises `BudgetExceeded`."""
        if self._window_updates_earned < sent_data_bytes // WINDOW_UPDATE_EARNED_BYTES:
            self._window_updates_earned += 1
        else:
            self._window_updates.take(now)
