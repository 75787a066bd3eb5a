"""What happens to a request that came through a tunnel: check it, find its origin, answer what goes wrong.

The agent's own findings are answers with a field ``moorline-error`` and a short text, which kas renders for the caller.
Only the agent can set that field: what upstreams send in ``moorline-*`` is removed. Once a response has begun, or an
upgrade was handed over, nothing is answered any more: the stream is reset.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Coroutine, Mapping
from typing import Any, Protocol

import trio

from agent.direct import DirectRequest, filter_response_head
from agent.identity_rules import RequestRefused, check_request, request_fields
from agent.pool import REPEATABLE_METHODS, ConnectionPool, PooledExchange
from agent.upstream import UpstreamFailure
from operations.logs import REQUEST_ID
from tunnel.deadlines import Deadlines, Wait
from tunnel.direct import DirectExchange
from tunnel.errors import ErrorCode, LocalProtocolError
from tunnel.identity import Identity
from tunnel.messages import BodyReader, Downstream, Fields, RequestHead, ResponseHead
from tunnel.progress import DownstreamGone, Progress, UpgradeUnanswered, UpstreamFailed, UpstreamSilent
from tunnel.relay import Boundary, relay, relay_rest

logger = logging.getLogger(__name__)

ERROR_FIELD = b"moorline-error"
ERROR_TEXT_BYTES = 512

CONTINUE_SECONDS = 1.0
"""How long a body is held back for a 100 which the upstream may never send (RFC 9110 §10.1.1)."""

REPEATED_LOG_SECONDS = 10.0
"""The same complaint about kas is logged at most this often: whoever causes it could cause a thousand a second."""

_has_no_head_deadline = re.compile(rb"watch|follow|/log|/proxy|/exec|/attach|/portforward|%").search
"""A target with one of these may take as long as it likes to answer. It is a hint and no decision about rights, so it
errs on the side of waiting: the caller, or kas, gives up when they have had enough."""


class Origin(Protocol):
    """What answers requests of one authority."""

    async def serve(self, downstream: Downstream, identity: Identity) -> None:
        """Answer a request that has been checked. Raises `RequestRefused` or `UpstreamFailure` before a response."""
        ...

    def begin(self, downstream: Downstream, identity: Identity) -> bool:
        """Begin to serve a request without a body directly (`tunnel.direct`), where that is possible now; else False."""
        ...

    async def go_on(self, downstream: Downstream, direct: DirectExchange) -> None:
        """Serve on what was begun directly. Raises as `serve`."""
        ...


class Dispatcher:
    """The handler of every tunnel of this agent."""

    def __init__(self, origins: Mapping[bytes, Origin], *, modes: Collection[str]) -> None:
        """``origins`` by authority; ``modes`` are the access modes that this agent's configuration allows."""
        self._origins = origins
        self._modes = frozenset(modes)
        self._complained: dict[str, float] = {}
        self.refused = 0
        """Requests that were not sent on."""

    def begin(self, downstream: Downstream) -> bool:
        """Begin to serve a request directly (`tunnel.direct`); False where `handle` has to."""
        origin = self._origins.get(downstream.request.authority)
        if origin is None:
            return False
        try:
            return origin.begin(downstream, check_request(downstream.request, self._modes))
        except RequestRefused:
            return False

    async def handle(self, downstream: Downstream) -> None:
        """Serve one request to its end."""
        request_id = None
        direct, downstream.direct = downstream.direct, None
        try:
            identity = check_request(downstream.request, self._modes)
            request_id = REQUEST_ID.set(identity.request_id)
            origin = self._origins.get(downstream.request.authority)
            if origin is None:
                raise RequestRefused("this agent offers no such origin", status=404, word="unknown-origin")
            if direct is not None:
                await origin.go_on(downstream, direct)
            else:
                await origin.serve(downstream, identity)
        except RequestRefused as exc:
            self.refused += 1
            self._complain(exc)
            await answer_failure(downstream, exc.status, exc.word, str(exc))
        except UpstreamFailure as exc:
            await answer_failure(downstream, exc.status, exc.word, str(exc))
        finally:
            if request_id is not None:
                REQUEST_ID.reset(request_id)  # the task may go on to serve another request

    def _complain(self, refusal: RequestRefused) -> None:
        now = trio.current_time()
        if now >= self._complained.get(refusal.word, 0.0):
            self._complained[refusal.word] = now + REPEATED_LOG_SECONDS
            logger.warning("a request of kas was refused", extra={"reason": refusal.word, "error": str(refusal)})


class _ApiServerRelay:
    """The `RelayPolicy` of exchanges with a kube-apiserver."""

    __slots__ = ("head_deadlines", "head_wait")

    continue_seconds = CONTINUE_SECONDS

    def __init__(self, head_deadlines: Deadlines | None, head_wait: Wait | None = None) -> None:
        self.head_deadlines = head_deadlines
        self.head_wait = head_wait

    def filter_head(self, head: ResponseHead) -> ResponseHead:
        return filter_response_head(head)

    async def inspect(self, head: ResponseHead, body: BodyReader) -> None:
        """Nothing to see: what the cluster says is passed on."""

    def boundary_for(self, head: ResponseHead) -> Boundary | None:
        return None  # kas alone decides how a cut watch looks (wire contract §3)


class ApiServerOrigin:
    """The origin ``kubernetes``: the cluster's kube-apiserver, with the agent's credentials.

    `run` keeps the deadlines of its requests.
    """

    def __init__(self, pool: ConnectionPool, *, head_seconds: float) -> None:
        """``head_seconds``: for the head of a response to an ordinary request, after its last byte was sent on."""
        self._pool = pool
        self._deadlines = Deadlines(head_seconds)
        self._ordinary = _ApiServerRelay(self._deadlines)
        self._patient = _ApiServerRelay(None)
        self._is_failing = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:  # noqa: ASYNC128 - the deadlines report it
        """Give up requests whose response head does not come in time, for as long as the agent runs."""
        await self._deadlines.run(task_status=task_status)

    async def serve(self, downstream: Downstream, identity: Identity) -> None:
        """See `Origin.serve`."""
        request = downstream.request
        try:
            if self._may_go_directly(request):
                if self.begin(downstream, identity):
                    return
                await self._pool.dial()
                # Where the caller left meanwhile, nobody would tell it to what begins now.
                await trio.lowlevel.checkpoint_if_cancelled()
                if self.begin(downstream, identity):
                    return
            upstream = await self._pool.open(_upstream_head(request, identity))
        except LocalProtocolError as exc:
            raise RequestRefused(str(exc), status=400, word="bad-request") from exc
        except UpstreamFailure as exc:
            self._note(exc)
            raise
        progress = Progress()
        steps = relay(downstream, upstream, self._policy(request), progress)
        await self._relay(downstream, upstream, progress, steps)

    def _may_go_directly(self, request: RequestHead) -> bool:
        # While the kube-apiserver fails, a task looks at each answer, and says when it is back.
        if self._is_failing:
            return False
        return request.ended and request.protocol is None and request.method in REPEATABLE_METHODS

    def begin(self, downstream: Downstream, identity: Identity) -> bool:
        """See `Origin.begin`."""
        request = downstream.request
        if not self._may_go_directly(request):
            return False
        begun = self._pool.begin(_upstream_head(request, identity))
        if begun is None:
            return False
        kept, head = begun
        deadlines = self._policy(request).head_deadlines
        DirectRequest(downstream, self._pool, kept, head, deadlines)
        return True

    async def go_on(self, downstream: Downstream, direct: DirectExchange) -> None:
        """See `Origin.go_on`."""
        assert isinstance(direct, DirectRequest)
        upstream, progress = direct.take_up(), direct.progress
        if progress.response_started:
            steps = _relay_rest(downstream, upstream, progress)
        else:
            policy = _ApiServerRelay(direct.head_deadlines, direct.head_wait)
            steps = relay(downstream, upstream, policy, progress)
        await self._relay(downstream, upstream, progress, steps)

    async def _relay(
        self, downstream: Downstream, upstream: PooledExchange, progress: Progress, steps: Coroutine[Any, Any, None]
    ) -> None:
        try:
            await steps
        except UpgradeUnanswered as exc:
            logger.info("an upgrade was handed to the kube-apiserver and not answered", extra={"error": str(exc)})
            downstream.reset(ErrorCode.INTERNAL_ERROR)
        except UpstreamFailed as exc:
            if progress.response_started:
                return  # the downstream was reset: kas sees that something is missing
            failure = UpstreamFailure(f"the kube-apiserver failed before it answered: {exc}")
            if isinstance(exc, UpstreamSilent):
                failure.status, failure.word = 504, "upstream-timeout"
            raise failure from exc
        except DownstreamGone as exc:
            downstream.reset(ErrorCode.CANCEL)
            logger.debug("the caller gave up", extra={"error": str(exc)})
        except UpstreamFailure as exc:
            self._note(exc)
            raise
        finally:
            upstream.reset(ErrorCode.CANCEL)
            if progress.response_started:
                self._note(None)

    def _policy(self, request: RequestHead) -> _ApiServerRelay:
        if request.protocol is not None or _has_no_head_deadline(request.target):
            return self._patient
        return self._ordinary

    def _note(self, failure: UpstreamFailure | None) -> None:
        """Log when the kube-apiserver becomes unreachable, and when it is back; not each request in between."""
        if failure is not None and not self._is_failing:
            logger.warning("the kube-apiserver does not answer", extra={"error": str(failure)})
        elif failure is None and self._is_failing:
            logger.info("the kube-apiserver answers again")
        self._is_failing = failure is not None


async def _relay_rest(downstream: Downstream, upstream: PooledExchange, progress: Progress) -> None:
    await downstream.flush()
    await relay_rest(downstream, upstream, None, progress)


def _upstream_head(request: RequestHead, identity: Identity) -> RequestHead:
    return RequestHead(
        request.method,
        request.target,
        b"",
        request_fields(request, identity),
        request.protocol,
        request.content_length,
        request.ended,
    )


async def answer_failure(downstream: Downstream, status: int, word: str, text: str) -> None:
    """Answer with what the agent found; reset instead where a response has begun."""
    if downstream.response_started:
        downstream.reset(ErrorCode.INTERNAL_ERROR)
        return
    body = text.encode("utf-8", "replace")[:ERROR_TEXT_BYTES]
    fields: Fields = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
        (ERROR_FIELD, word.encode("ascii")),
    ]
    await downstream.send_response(ResponseHead(status, fields, len(body)), body, end=True)
