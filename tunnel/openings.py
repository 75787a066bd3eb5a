"""Requests that wait for the peer to allow another stream.

Queues take turns and each is first come first served, so that one credential with a thousand requests does not hold up
the others. The wait is short and bounded by the caller's deadline; a place is given up on every way out.
"""

from __future__ import annotations

import dataclasses
from collections import deque

from tunnel.wakeup import Wakeup


@dataclasses.dataclass(slots=True, eq=False)
class _Place:
    wakeup: Wakeup
    granted: bool = False


class Openings:
    """The waiting requests of one connection, by queue."""

    __slots__ = ("_queues",)

    def __init__(self) -> None:
        self._queues: dict[str, deque[_Place]] = {}

    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return bool(self._queues)

    async def wait(self, queue: str) -> bool:
        """Wait for a turn; True where it was granted, False where `wake_all` ended the wait.

        Cancelling is safe: the place is given up, and a turn that was already granted goes to the next request.
        """
        place = _Place(Wakeup())
        self._queues.setdefault(queue, deque()).append(place)
        try:
            await place.wakeup.wait()
        except BaseException:
            if place.granted:
                self.admit()
            raise
        finally:
            self._leave(queue, place)
        return place.granted

    def _leave(self, queue: str, place: _Place) -> None:
        places = self._queues.get(queue)
        if places is not None and place in places:
            places.remove(place)
            if not places:
                del self._queues[queue]

    def admit(self) -> None:
        """Grant the first request of the next queue its turn, if any waits."""
        if not self._queues:
            return
        queue, places = next(iter(self._queues.items()))
        place = places.popleft()
        del self._queues[queue]
        if places:
            self._queues[queue] = places  # to the end of the round
        place.granted = True
        place.wakeup.call()

    def wake_all(self) -> None:
        """The connection takes no more requests: end every wait."""
        for places in self._queues.values():
            for place in places:
                place.wakeup.call()
