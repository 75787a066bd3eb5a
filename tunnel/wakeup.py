"""A sticky wake-up call for exactly one waiting task.

`trio.Event` must be replaced after each use and costs a parking lot; the hot paths wake one known task thousands of
times a second. A call that comes while nobody waits is kept, so nothing is lost between a check and the wait.
"""

from __future__ import annotations

import trio


class Wakeup:
    """Wakes one task; further calls before it has run count as one."""

    __slots__ = ("_called", "_task")

    def __init__(self) -> None:
        self._called = False
        self._task: trio.lowlevel.Task | None = None

    def call(self) -> None:
        """Wake the waiting task, or let the next `wait` return at once. Synchronous, never fails."""
        task = self._task
        if task is None:
            self._called = True
        else:
            self._task = None
            trio.lowlevel.reschedule(task)

    async def wait(self) -> None:
        """Return after the next `call`, or at once (without a checkpoint) where one is kept.

        Cancelling is safe. A second waiting task is a bug and raises `trio.BusyResourceError`.
        """
        if self._called:
            self._called = False
            return
        if self._task is not None:
            raise trio.BusyResourceError("two tasks wait for one wake-up")
        self._task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
