"""Carry one exchange from a `Downstream` to an `Upstream` and back: heads, bodies both ways, trailers, upgrades.

Both kas and agentk use it; what differs (authentication, header rules, error answers) happens before and after.
Rules that hold here:

- The response head leaves at once, and each piece of a body when it arrives; nothing is buffered whole.
- Trailers travel without the fields that would change the message, or say who sends it (`allowed_trailers`).
- Both directions run at the same time: an early final answer reaches the caller while the body is still being sent.
- A failure after the head is visible to the caller: the downstream is reset. The one exception is a watch that was cut
  between two events, which ends cleanly so that the client watches on from where it was (`Boundary`).
- An upgrade that was handed over and got no answer is reset, never answered: kubectl repeats the command after any
  HTTP status.
"""

from __future__ import annotations

from typing import Protocol

import trio

from tunnel.deadlines import Deadlines, Wait
from tunnel.errors import ErrorCode
from tunnel.fields import allowed_trailers
from tunnel.messages import BodyReader, Downstream, ResponseHead, Upstream, field_value
from tunnel.progress import BROKEN, DownstreamGone, Progress, UpgradeUnanswered, UpstreamFailed, UpstreamSilent
from tunnel.splice import splice
from tunnel.wakeup import Wakeup

MAX_INTERIM_HEADS = 16
"""More 1xx heads than this before the final one end the exchange."""


class Boundary(Protocol):
    """Watches a response body go by and knows where its events end."""

    def feed(self, data: bytes) -> None:
        """The next bytes of the body."""
        ...

    @property
    def at_boundary(self) -> bool:
        """Whether all that was fed ends with a complete event (or nothing was fed)."""
        ...


class RelayPolicy(Protocol):
    """What differs between the two ends of the tunnel, for one exchange."""

    head_deadlines: Deadlines | None
    """Bounds the wait for the final head, counted from the last byte of the request that was sent on; None: no bound."""
    head_wait: Wait | None
    """Of an exchange that was under way without a task: its wait for the head, which has begun."""
    continue_seconds: float
    """With ``expect: 100-continue``: how long the body is held back when no 100 comes (agentk: 1 s; kas: for ever,
    since its own deadline for the head applies)."""

    def filter_head(self, head: ResponseHead) -> ResponseHead:
        """Applied to each response head, interim ones too; may raise to refuse it."""
        ...

    async def inspect(self, head: ResponseHead, body: BodyReader) -> None:
        """Awaited with the final head before anything of it is relayed; may read the body and raise."""
        ...

    def boundary_for(self, head: ResponseHead) -> Boundary | None:
        """For a watch: what finds the events in the body of this response."""
        ...


async def relay(downstream: Downstream, upstream: Upstream, policy: RelayPolicy, progress: Progress) -> None:
    """Relay one exchange to its end.

    Raises `UpstreamFailed`, `UpgradeUnanswered` or `DownstreamGone`; after any of them, and after cancellation, the
    upstream has been reset, and so has the downstream if its response had started.
    """
    try:
        if downstream.request.ended:
            await _relay_response(downstream, upstream, policy, progress, None)
        else:
            await _relay_both_ways(downstream, upstream, policy, progress)
    except BaseException:
        upstream.reset(ErrorCode.CANCEL)
        if progress.response_started:
            downstream.reset(ErrorCode.INTERNAL_ERROR)
        raise
    upstream.reset(ErrorCode.CANCEL)  # nothing after a clean end; gives up what the caller no longer needs


async def _relay_both_ways(downstream: Downstream, upstream: Upstream, policy: RelayPolicy, progress: Progress) -> None:
    gate = _Gate(downstream, policy.continue_seconds)
    failures: list[Exception] = []
    async with trio.open_nursery() as nursery:

        async def send_request_body() -> None:
            try:
                await _relay_request_body(downstream, upstream, gate, progress, policy.head_deadlines)
            except DownstreamGone as exc:
                failures.append(exc)
                nursery.cancel_scope.cancel()

        async def receive_response() -> None:
            try:
                await _relay_response(downstream, upstream, policy, progress, gate)
            except Exception as exc:  # noqa: BLE001  raised again below, where no nursery wraps it into a group
                failures.append(exc)
            nursery.cancel_scope.cancel()

        nursery.start_soon(send_request_body)
        await receive_response()
    if failures:
        raise failures[0]


class _Gate:
    """Holds the request body back until the upstream has said 100 Continue, where the caller asked for that."""

    __slots__ = ("_downstream", "_wakeup", "is_open", "seconds", "wait_for_head")

    def __init__(self, downstream: Downstream, seconds: float) -> None:
        expectation = field_value(downstream.request.fields, b"expect")
        self._downstream = downstream
        self._wakeup = Wakeup()
        self.is_open = expectation is None or expectation.lower() != b"100-continue"
        self.seconds = seconds
        self.wait_for_head: Wait | None = None
        """Each piece of the body that is sent on gives the wait for the response head its whole time again."""

    def open(self) -> None:
        self.is_open = True
        self._wakeup.call()

    async def wait_open(self) -> None:
        with trio.move_on_after(self.seconds):
            while not self.is_open:
                await self._wakeup.wait()
        if not self.is_open:
            # The caller still waits for a 100 which the upstream does not send (RFC 9110 §10.1.1 allows it not to).
            self.is_open = True
            await self._downstream.send_interim(ResponseHead(100, []))


async def _relay_request_body(
    downstream: Downstream, upstream: Upstream, gate: _Gate, progress: Progress, deadlines: Deadlines | None
) -> None:
    """Send the body on. A failing upstream ends this quietly: the response tells what happened, or fails as well."""
    writer = upstream.writer
    if not gate.is_open:
        await gate.wait_open()
    while True:
        try:
            data = await downstream.body.receive()
        except BROKEN as exc:
            raise DownstreamGone(f"the request body was cut off: {exc}") from exc
        progress.request_taken = True
        try:
            if not data:
                await writer.finish(allowed_trailers(downstream.body.trailers))
                return
            await writer.send(data)
        except BROKEN:
            return
        progress.request_bytes += len(data)
        if deadlines is not None and gate.wait_for_head is not None:
            deadlines.renew(gate.wait_for_head)


async def _receive_head(
    downstream: Downstream, upstream: Upstream, policy: RelayPolicy, gate: _Gate | None
) -> ResponseHead:
    interim = 0
    while True:
        try:
            head = await upstream.receive_head()
        except BROKEN as exc:
            if downstream.request.protocol is not None:
                raise UpgradeUnanswered(str(exc)) from exc
            raise UpstreamFailed(str(exc)) from exc
        if head.status >= 200 or head.status == 101:
            return head
        interim += 1
        if interim > MAX_INTERIM_HEADS:
            raise UpstreamFailed(f"more than {MAX_INTERIM_HEADS} interim responses")
        if head.status == 100 and gate is not None:
            gate.open()
        try:
            await downstream.send_interim(policy.filter_head(head))
        except BROKEN as exc:
            raise DownstreamGone(str(exc)) from exc


async def _receive_head_in_time(
    downstream: Downstream, upstream: Upstream, policy: RelayPolicy, deadlines: Deadlines, gate: _Gate | None
) -> ResponseHead:
    wait = policy.head_wait or deadlines.start(lambda: upstream.reset(ErrorCode.CANCEL))
    if gate is not None:
        gate.wait_for_head = wait
    try:
        return await _receive_head(downstream, upstream, policy, gate)
    except UpstreamFailed as exc:
        if not wait.expired:
            raise
        if downstream.request.protocol is not None:
            raise UpgradeUnanswered(f"no answer to the upgrade within {deadlines.seconds:g} s") from exc
        raise UpstreamSilent(f"no response within {deadlines.seconds:g} s") from exc
    finally:
        deadlines.end(wait)


async def _relay_response(
    downstream: Downstream, upstream: Upstream, policy: RelayPolicy, progress: Progress, gate: _Gate | None
) -> None:
    deadlines = policy.head_deadlines
    if deadlines is None:
        head = await _receive_head(downstream, upstream, policy, gate)
    else:
        head = await _receive_head_in_time(downstream, upstream, policy, deadlines, gate)
    await policy.inspect(head, upstream.body)
    is_upgrade = downstream.request.protocol is not None
    if head.status == 101:
        await _relay_upgrade(downstream, upstream, policy.filter_head(head), progress)
        return
    if is_upgrade and head.status < 400:
        raise UpstreamFailed(f"status {head.status} in answer to an upgrade, where only 101 or an error is one")
    boundary = policy.boundary_for(head)
    await _relay_body(downstream, upstream, policy.filter_head(head), boundary, progress)


async def relay_rest(downstream: Downstream, upstream: Upstream, boundary: Boundary | None, progress: Progress) -> None:
    """Relay the rest of a response whose head and first bytes have been passed on. Ends and raises as `relay` does."""
    try:
        await _relay_pieces(downstream, upstream.body, boundary, progress, None)
    except BaseException:
        upstream.reset(ErrorCode.CANCEL)
        downstream.reset(ErrorCode.INTERNAL_ERROR)
        raise
    upstream.reset(ErrorCode.CANCEL)


async def _relay_body(
    downstream: Downstream, upstream: Upstream, head: ResponseHead, boundary: Boundary | None, progress: Progress
) -> None:
    body = upstream.body
    data: bytes | None = b""
    failure: BaseException | None = None
    if not head.ended:
        try:
            data = body.receive_nowait() or b""
        except BROKEN as exc:
            failure = exc
    ended = head.ended or (failure is None and body.at_end and not body.trailers)
    progress.status = head.status
    progress.response_started = True
    try:
        if boundary is not None and data:
            boundary.feed(data)
        await downstream.send_response(head, data or b"", end=ended)
        progress.response_bytes += len(data or b"")
    except BROKEN as exc:
        raise DownstreamGone(str(exc)) from exc
    if not ended:
        await _relay_pieces(downstream, body, boundary, progress, failure)


async def _relay_pieces(
    downstream: Downstream,
    body: BodyReader,
    boundary: Boundary | None,
    progress: Progress,
    failure: BaseException | None,
) -> None:
    """Pass on what comes of a body, to its end."""
    writer = downstream.writer
    try:
        while failure is None:
            try:
                data = await body.receive()
            except BROKEN as exc:
                failure = exc
                break
            if not data:
                await writer.finish(allowed_trailers(body.trailers))
                return
            if boundary is not None:
                boundary.feed(data)
            await writer.send(data)
            progress.response_bytes += len(data)
        if boundary is not None and boundary.at_boundary:
            progress.cut_at_boundary = True
            await writer.finish()
    except BROKEN as exc:
        raise DownstreamGone(str(exc)) from exc
    if not progress.cut_at_boundary:
        raise UpstreamFailed(f"the response was cut off: {failure}") from failure


async def _relay_upgrade(downstream: Downstream, upstream: Upstream, head: ResponseHead, progress: Progress) -> None:
    if downstream.request.protocol is None:
        raise UpstreamFailed("status 101 in answer to a request that asked for no upgrade")
    progress.status = 101
    progress.response_started = True
    progress.upgraded = True
    try:
        near = await downstream.accept_upgrade(head)
    except BROKEN as exc:
        raise DownstreamGone(str(exc)) from exc
    await splice(near, upstream.take_stream(), progress)
