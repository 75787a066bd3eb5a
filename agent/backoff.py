"""When to try again: full-jitter exponential backoff, and what the other side asked for. Pure: no clock, no sleep.

Full jitter (a uniform draw from zero to the ceiling) spreads the agents of a fleet evenly over the time after a kas
restart; equal steps would bring all of them back in the same instant, again and again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BackoffTimes:
    """Durations in seconds."""

    floor: float = 0.25
    """No wait is shorter, so that a peer which refuses at once is not asked in a tight loop."""
    first_ceiling: float = 1.0
    """The first draw is below this; each further ceiling is twice the one before."""
    last_ceiling: float = 30.0
    """No draw is above this."""
    stable: float = 30.0
    """What has worked for this long starts again from the first ceiling when it breaks."""
    longest_asked: float = 300.0
    """A wait that the other side asks for (``Retry-After``) is honoured up to this."""


class Backoff:
    """The state of one loop of attempts."""

    def __init__(self, times: BackoffTimes, *, draw: Callable[[float, float], float]) -> None:
        """``draw(low, high)`` returns a number between the two (`random.uniform`)."""
        self._times = times
        self._draw = draw
        self._ceiling = times.first_ceiling
        self.failures = 0
        """Failed attempts since the last success."""

    def next_wait(self, *, asked: float | None = None, at_least: float = 0.0) -> float:
        """Seconds to wait after a failure.

        ``asked`` is the other side's wish: the wait is not shorter, with a little jitter on top, since everybody was
        told the same. ``at_least`` is a floor of the caller's.
        """
        times = self._times
        wait = self._draw(times.floor, max(self._ceiling, times.floor))
        self._ceiling = min(self._ceiling * 2, times.last_ceiling)
        self.failures += 1
        least = at_least
        if asked is not None:
            least = max(least, min(max(asked, 0.0), times.longest_asked))
        if wait < least:
            wait = least + self._draw(0.0, min(least / 10, 5.0))
        return wait

    def succeeded(self) -> None:
        """An attempt worked: `failures` is 0. The ceiling falls only once it has lasted (`lasted`)."""
        self.failures = 0

    def lasted(self, seconds: float) -> None:
        """What worked has ended after so long. If that was stable, begin again from the first ceiling."""
        if seconds >= self._times.stable:
            self._ceiling = self._times.first_ceiling
