"""Many waits of the same duration, kept by one task.

A cancel scope for each exchange costs more than the rest of its bookkeeping. Where all waits last equally long, the one
that began first is due first: a dictionary in order of insertion and one sleeping task are enough. Waits are entered and
left synchronously; one that is never left is called once and forgotten.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from tunnel.wakeup import Wakeup

Expire = Callable[[], None]


class Wait:
    """One wait that is under way. ``expired`` is True once its time was over."""

    __slots__ = ("expire", "expired", "until")

    def __init__(self, until: float, expire: Expire) -> None:
        self.until = until
        self.expire = expire
        self.expired = False


class Deadlines:
    """The waits of one duration. `run` must run for them to end."""

    def __init__(self, seconds: float) -> None:
        """``seconds`` may be infinite: then no wait ends, and `run` has nothing to do."""
        self.seconds = seconds
        self._waits: dict[Wait, None] = {}
        self._first = Wakeup()

    def start(self, expire: Expire, now: float | None = None) -> Wait:
        """Begin a wait; ``expire`` is called when its time is over. It is synchronous and must not raise.

        ``now`` is for callers who know what `trio.current_time` says.
        """
        wait = Wait((trio.current_time() if now is None else now) + self.seconds, expire)
        if not self._waits:
            self._first.call()
        self._waits[wait] = None
        return wait

    def renew(self, wait: Wait) -> None:
        """Give a wait its whole time again; nothing where it has ended."""
        if self._waits.pop(wait, self) is None:
            wait.until = trio.current_time() + self.seconds
            self._waits[wait] = None

    def end(self, wait: Wait) -> None:
        """The wait is over in good time. Idempotent."""
        self._waits.pop(wait, None)

    def __len__(self) -> int:
        """How many waits are under way."""
        return len(self._waits)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """End the waits whose time is over, for ever."""
        task_status.started()
        while True:
            await trio.lowlevel.checkpoint()
            first = next(iter(self._waits), None)
            if first is None:
                await self._first.wait()
            elif trio.current_time() < first.until:
                await trio.sleep_until(first.until)
            else:
                del self._waits[first]
                first.expired = True
                first.expire()
