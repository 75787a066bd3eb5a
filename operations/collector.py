"""The garbage collector of a long-running process: less often, not over what stays for ever, and with its pauses known.

Most of what a request leaves behind is freed by reference counts. The collector is for cycles, and by default it looks
for them every 700 objects, again and again also at modules and classes, which are all there is at the start. Measured
with 64 callers: 8 % of the samples of kas were in the collector, and 1.5 % like this.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping

YOUNG_OBJECTS = 10_000
"""So many new containers start a young collection: a few hundred requests' worth, a few megabytes."""


class CollectorPauses:
    """How long the collector has held up everything else: a process has one event loop, and it waits meanwhile."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.count = 0
        self.total_seconds = 0.0
        self.longest_seconds = 0.0
        self._started_at = 0.0

    def note(self, phase: str, info: Mapping[str, int]) -> None:
        """For `gc.callbacks`: a collection starts, or has ended."""
        if phase == "start":
            self._started_at = self._clock()
            return
        seconds = self._clock() - self._started_at
        self.count += 1
        self.total_seconds += seconds
        self.longest_seconds = max(self.longest_seconds, seconds)


PAUSES = CollectorPauses()
"""Of this process, which has one collector; all zero where nobody has called `spare_the_collector`."""


def spare_the_collector() -> None:
    """Set aside everything that exists by now, collect less often, and note pauses. Call once, when all is imported."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
    gc.callbacks.append(PAUSES.note)
