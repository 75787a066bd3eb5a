"""Two byte streams copied into each other: an upgraded exchange, once both sides have agreed to it.

Each half ends by itself, and the other side hears of it at once. What makes it more than two copies is how such streams
end in practice: kubectl pings every five seconds, also a server that has said its last byte and closed.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from tunnel.errors import ErrorCode, TunnelError
from tunnel.messages import ByteStream
from tunnel.progress import BROKEN, DownstreamGone, Progress, UpstreamFailed

HALF_OPEN_IDLE_SECONDS = 60.0
"""After the upstream closed its half, the caller may be silent for this long; and the upstream, after it took no more of
what the caller sent."""


async def splice(near: ByteStream, far: ByteStream, progress: Progress) -> None:
    """Copy the caller's stream and the upstream's into each other until both directions have ended.

    The end of one half reaches the other side at once, and every byte before it. On every way out but success both
    streams are reset. Raises `DownstreamGone` or `UpstreamFailed`.
    """
    try:
        await _Splice(near, far, progress).run()
        await near.aclose()
        await far.aclose()
    except BaseException:
        near.reset(ErrorCode.CANCEL)
        far.reset(ErrorCode.CANCEL)
        raise


class _Splice:
    """The two copies, and what each of them has to know of the other."""

    def __init__(self, near: ByteStream, far: ByteStream, progress: Progress) -> None:
        self._near = near
        self._far = far
        self._progress = progress
        self._dropped_bytes = 0
        self._failure: TunnelError | None = None
        self._answer_wait = trio.CancelScope()  # for the rest of what an upstream says that reads no more
        self._silence = trio.CancelScope()  # of a caller whose upstream has ended

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._towards_upstream, nursery.cancel_scope)
            await self._towards_caller(nursery.cancel_scope)
        if self._failure is not None:
            raise self._failure

    async def _towards_upstream(self, both: trio.CancelScope) -> None:
        try:
            failure = await self._copy_to_upstream()
            if failure is not None:
                # It reads no more, as a server that has said everything. What it has said comes first, and then how it
                # ended.
                with self._answer_wait:
                    await _until_idle(lambda: self._progress.response_bytes)
                    raise failure
                await self._drop_what_the_caller_says()
            self._silence.cancel()
        except (UpstreamFailed, DownstreamGone) as exc:
            self._fail(exc, both)

    async def _towards_caller(self, both: trio.CancelScope) -> None:
        try:
            await _copy(self._far, self._near, UpstreamFailed, DownstreamGone, self._count_response)
            self._answer_wait.cancel()
            with self._silence:
                await _until_idle(lambda: self._progress.request_bytes + self._dropped_bytes)
                raise DownstreamGone("the caller kept its half open and silent after the upstream had ended")
            both.cancel()
        except (UpstreamFailed, DownstreamGone) as exc:
            self._fail(exc, both)

    def _fail(self, failure: TunnelError, both: trio.CancelScope) -> None:
        self._failure = self._failure or failure
        both.cancel()

    async def _copy_to_upstream(self) -> UpstreamFailed | None:
        try:
            await _copy(self._near, self._far, DownstreamGone, UpstreamFailed, self._count_request)
        except UpstreamFailed as exc:
            return exc
        return None

    async def _drop_what_the_caller_says(self) -> None:
        """Hear the caller out, who is told no more, until it ends its half: that says it has read what was sent.

        Closing before would lose what is still under way to a slow caller: its next ping reaches a closed socket, whose
        kernel answers with a RST and throws away what it had left to send.
        """
        try:
            while data := await self._near.receive_some():
                self._dropped_bytes += len(data)
        except BROKEN as exc:
            raise DownstreamGone(str(exc)) from exc

    def _count_request(self, sent_bytes: int) -> None:
        self._progress.request_bytes += sent_bytes

    def _count_response(self, sent_bytes: int) -> None:
        self._progress.response_bytes += sent_bytes


async def _until_idle(passed_bytes: Callable[[], int]) -> None:
    """Return once nothing has passed for `HALF_OPEN_IDLE_SECONDS`."""
    before = -1
    while passed_bytes() != before:
        before = passed_bytes()
        await trio.sleep(HALF_OPEN_IDLE_SECONDS)


async def _copy(
    source: ByteStream,
    sink: ByteStream,
    source_error: type[TunnelError],
    sink_error: type[TunnelError],
    count: Callable[[int], None],
) -> None:
    while True:
        try:
            data = await source.receive_some()
        except BROKEN as exc:
            raise source_error(str(exc)) from exc
        try:
            if not data:
                await sink.send_eof()
                return
            await sink.send_all(data)
        except BROKEN as exc:
            raise sink_error(str(exc)) from exc
        count(len(data))
