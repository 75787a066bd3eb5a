"""Ending in order: the first SIGTERM or SIGINT drains, the second ends at once."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable

import trio

logger = logging.getLogger(__name__)


async def handle_signals(
    *,
    drain: Callable[[], None],
    stop: Callable[[], None],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Call ``drain`` on the first signal and ``stop`` on the second, then return.

    Start it with ``nursery.start`` in the nursery that it is to end, before anything else: from then on Ctrl-C raises
    no `KeyboardInterrupt`. ``stop`` is usually that nursery's ``cancel_scope.cancel``. When the drain is over, cancel
    the nursery; cancelled, this gives the signals back. Runs in the main thread only, as Python demands of signal
    handlers.
    """
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        task_status.started()
        first = await anext(received)
        logger.info("draining; a second signal ends at once", extra={"signal": signal.Signals(first).name})
        drain()
        second = await anext(received)
        logger.warning("ending at once", extra={"signal": signal.Signals(second).name})
        stop()
