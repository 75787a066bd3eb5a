"""Receive credit: how much a peer may send before anybody has read it, and what the whole process can afford.

HTTP/2 has two windows. The connection's is returned as bytes arrive, so that no stream can hold up another. A stream's
is returned when its consumer takes bytes, in halves of the window, and grows while the consumer keeps up: first to a
fixed size, then towards twice bandwidth × delay. What is held for slow consumers and what was granted beyond the first
window comes out of one `WindowBudget`. Pure arithmetic; the engine sends the frames.
"""

from __future__ import annotations

from typing import Final

from tunnel.h2.config import EngineConfig
from tunnel.h2.stream import Stream

DEFAULT_BUDGET_BYTES: Final = 256 * 1024 * 1024

ROUND_TRIP_DRIFT: Final = 1.25
"""How fast the remembered round trip follows a longer one. It is the least that counts: behind a full send queue a PING
takes longer, and a window made for that would only lengthen the queue."""


class WindowBudget:
    """What all connections of a process may hold and grant. Over the limit no window grows; over twice it, streams that
    nobody reads are reset (`Account.must_shed`)."""

    __slots__ = ("accounts", "limit_bytes", "used_bytes")

    def __init__(self, limit_bytes: int = DEFAULT_BUDGET_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.accounts = 0

    def open_account(self) -> Account:
        """The share of one connection; `Account.close` gives it back."""
        self.accounts += 1
        return Account(self)


class Account:
    """What one connection has used of the budget."""

    __slots__ = ("_budget", "_open", "used_bytes")

    def __init__(self, budget: WindowBudget) -> None:
        self._budget = budget
        self._open = True
        self.used_bytes = 0

    def charge(self, size_bytes: int) -> None:
        """Take from the budget, or give back where negative. After `close`, nothing."""
        if self._open:
            self.used_bytes += size_bytes
            self._budget.used_bytes += size_bytes

    def may_grant(self, size_bytes: int) -> bool:
        """Whether windows may grow by this much now."""
        return self._budget.used_bytes + size_bytes <= self._budget.limit_bytes

    @property
    def must_shed(self) -> bool:
        """Twice the budget is exceeded, and this connection has more than its equal share of that.

        Those over their share shed, the others cannot exceed it: so the total is bounded although no connection ever
        reaches into another.
        """
        most = 2 * self._budget.limit_bytes
        return self._budget.used_bytes > most and self.used_bytes * self._budget.accounts > most

    def close(self) -> None:
        """The connection is over: give everything back. Idempotent."""
        if self._open:
            self._budget.used_bytes -= self.used_bytes
            self._budget.accounts -= 1
            self.used_bytes = 0
            self._open = False


class CreditPolicy:
    """How the windows of one connection's streams grow."""

    __slots__ = ("_account", "_config", "round_trip_seconds")

    def __init__(self, config: EngineConfig, account: Account) -> None:
        self._config = config
        self._account = account
        self.round_trip_seconds: float | None = None

    def note_round_trip(self, seconds: float) -> None:
        """Learn the delay of the path."""
        if self.round_trip_seconds is not None:
            seconds = min(seconds, self.round_trip_seconds * ROUND_TRIP_DRIFT)
        self.round_trip_seconds = seconds

    def increment(self, stream: Stream, now: float) -> int:
        """The credit to announce for what was consumed, growth included; books it on the stream."""
        taken_bytes = stream.uncredited_bytes
        wanted_bytes = self._wanted_bytes(stream, taken_bytes, now)
        growth_bytes = wanted_bytes - stream.window_target_bytes
        if growth_bytes <= 0 or not self._account.may_grant(growth_bytes):
            growth_bytes = 0
        else:
            stream.window_target_bytes = wanted_bytes
            self._account.charge(growth_bytes)
        stream.uncredited_bytes = 0
        stream.credited_at = now
        stream.receive_window_bytes += taken_bytes + growth_bytes
        return taken_bytes + growth_bytes

    def _wanted_bytes(self, stream: Stream, taken_bytes: int, now: float) -> int:
        target_bytes = stream.window_target_bytes
        if target_bytes < self._config.raised_window_bytes:
            return self._config.raised_window_bytes
        if self.round_trip_seconds is None:
            return target_bytes
        # A window that limits the sender is used up once per round trip. Twice what passes in one keeps the sender
        # going while credit is under way; doubling at most, since one fast half window proves no more.
        elapsed = now - stream.credited_at
        if 2 * taken_bytes * self.round_trip_seconds <= target_bytes * elapsed:
            return target_bytes
        return min(2 * target_bytes, max(self._config.max_window_bytes, target_bytes))
