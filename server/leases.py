"""How much of kas one credential may use at a time, and how fast it may start anew.

Counted in memory, for each credential on its own. Storms of cancellations stop here, before they reach a tunnel that
carries everybody's exchanges (wire contract §2).
"""

from __future__ import annotations

from collections.abc import Callable

from server.errors import TooManyExchanges

START_BURST_SECONDS = 10.0
"""So many seconds' worth of starts may come at once."""


class _Account:
    """One credential's exchanges under way, and its bucket of starts."""

    __slots__ = ("held", "starts", "updated_at")

    def __init__(self, starts: float, now: float) -> None:
        self.held = 0
        self.starts = starts
        self.updated_at = now


class Leases:
    """Counts exchanges under way and starts of exchanges, by credential."""

    def __init__(self, *, at_a_time: int, starts_per_second: float, clock: Callable[[], float]) -> None:
        self._at_a_time = at_a_time
        self._starts_per_second = starts_per_second
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    def take(self, credential_id: str, agent_id: str) -> float:
        """Count one exchange, until `give_back`; the time on the clock.

        Raises `TooManyExchanges` at a limit; then nothing is counted.
        """
        account = self._start(credential_id, agent_id)
        account.held += 1
        return account.updated_at

    def give_back(self, credential_id: str) -> None:
        """The exchange has ended; once for each `take`."""
        account = self._accounts[credential_id]
        account.held -= 1
        if not account.held:
            self._forget_rested(credential_id, account)

    def _start(self, credential_id: str, agent_id: str) -> _Account:
        now = self._clock()
        burst = self._starts_per_second * START_BURST_SECONDS
        account = self._accounts.get(credential_id)
        if account is None:
            account = self._accounts[credential_id] = _Account(burst, now)
        account.starts = min(burst, account.starts + (now - account.updated_at) * self._starts_per_second)
        account.updated_at = now
        if account.held >= self._at_a_time:
            raise TooManyExchanges(agent_id, self._at_a_time)
        if account.starts < 1:
            raise TooManyExchanges(agent_id, int(self._starts_per_second), of="new requests per second")
        account.starts -= 1
        return account

    def _forget_rested(self, credential_id: str, account: _Account) -> None:
        # A bucket that is nearly full says nothing that a new one would not: the table holds only who is busy.
        burst = self._starts_per_second * START_BURST_SECONDS
        if account.starts + 1 >= burst / 2 and self._accounts.get(credential_id) is account:
            del self._accounts[credential_id]

    def __len__(self) -> int:
        """How many exchanges are under way."""
        return sum(account.held for account in self._accounts.values())
