"""The tasks of a responder, each of which serves one request after the other.

Starting a task and a cancel scope for each request costs more than most handlers do, so a task that has served a request
rests and takes the next one. What a handler raises ends its own stream and nothing else. Whose request it is, and what
follows when it has ended, is the connection's business.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from tunnel.errors import ConnectionEnded, StreamError
from tunnel.streams import ServedStream
from tunnel.wakeup import Wakeup

logger = logging.getLogger(__name__)

RESTING_WORKERS = 64
"""So many tasks of requests that have ended wait for the next request; the others end."""

EARLY_ANSWER_SECONDS = 0.25
"""So long after an answer that came before the end of its request, the rest of the request is refused. A closed stream
could no more tell a violation from a frame that was under way; most requests end by themselves before."""

Handler = Callable[[ServedStream], Awaitable[None]]
Begin = Callable[[ServedStream], bool]
"""Begins an exchange directly, where that is possible now; else False, and nothing has happened (`tunnel.direct`)."""


class _Worker:
    """A task that serves requests, and the one that it serves now or next."""

    __slots__ = ("stream", "wakeup")

    def __init__(self, stream: ServedStream) -> None:
        self.stream = stream
        self.wakeup = Wakeup()


class Workers:
    """The tasks that run the handler of one connection. They live as long as `run`."""

    __slots__ = ("_accepted", "_ended", "_handler", "_name", "_resting", "_wanted")

    def __init__(self, handler: Handler | None, *, name: str, ended: Callable[[ServedStream], None]) -> None:
        """``ended`` is called, synchronously, when the handler has left a stream, in whatever way."""
        self._handler = handler
        self._name = name
        self._ended = ended
        self._resting: list[_Worker] = []
        self._accepted: list[ServedStream] = []  # for which a task is still to be started
        self._wanted = Wakeup()

    async def run(self) -> None:
        """Start the tasks that are wanted, for ever; none of them outlives this."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._wanted.wait()
                for stream in self._accepted:
                    nursery.start_soon(self._work, stream)
                self._accepted.clear()

    def serve(self, stream: ServedStream) -> None:
        """Give the request to a task that rests, or have one started for it. Synchronous."""
        if self._resting:
            worker = self._resting.pop()
            worker.stream = stream
            worker.wakeup.call()
        else:
            self._accepted.append(stream)
            self._wanted.call()

    async def _work(self, stream: ServedStream) -> None:
        """Serve this request and those that follow. A request that is cancelled takes its task with it."""
        worker = _Worker(stream)
        with trio.CancelScope() as scope:
            while True:
                await self._serve(worker.stream, scope)
                if worker.stream.answered_early:
                    await self._refuse_the_rest(worker.stream)
                if scope.cancel_called or len(self._resting) >= RESTING_WORKERS:
                    return
                self._resting.append(worker)
                await worker.wakeup.wait()

    async def _refuse_the_rest(self, stream: ServedStream) -> None:
        """Tell the peer to send no more, but not at once: what it sends meanwhile is still judged by the protocol."""
        try:
            await trio.sleep(EARLY_ANSWER_SECONDS)
        finally:
            stream.refuse_the_rest()

    async def _serve(self, stream: ServedStream, scope: trio.CancelScope) -> None:
        assert self._handler is not None
        try:
            if stream.failure is None:
                stream.scope = scope
                await self._handler(stream)
        except (StreamError, ConnectionEnded, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            logger.debug("%s: stream %d ended: %s", self._name, stream.stream_id, exc)
        except Exception:
            # The fan-out that contains: a bug met by one request must not end the requests of others.
            logger.exception("%s: the handler of stream %d crashed", self._name, stream.stream_id)
        finally:
            stream.scope = None
            if stream.direct is None:  # else the exchange goes on without this task
                stream.conclude()
                self._ended(stream)
