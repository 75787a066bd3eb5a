"""A pool of HTTP/1.1 connections to the kube-apiserver.

One connection carries one exchange at a time. The one used last is used next, so that a burst's surplus goes idle and
is closed after 45 s. A connection that the server closed meanwhile is found by looking whether anything can be read.
That leaves the race of a close under way; so a request that may be repeated is sent once more, on a new connection, if
a *reused* one ended before the first byte of its response. Nothing else is ever sent twice (wire contract §3).

Upgrades get a connection of their own, which never comes back. HTTP/1.1 on purpose: kube-apiserver closes an HTTP/2
connection, and everybody's watches on it, after a request that it could not authenticate.
"""

from __future__ import annotations

import collections
import dataclasses
import errno
import logging
from collections.abc import Awaitable, Callable

import trio

from agent.credentials import Access, Credentials
from agent.exec_plugin import CredentialsUnavailable
from agent.kept import KeptConnection
from agent.upstream import UpstreamBusy, UpstreamFailure, UpstreamTimeout, UpstreamUnreachable
from tunnel.errors import ConnectionEnded, HandshakeError, LocalProtocolError
from tunnel.http1.client import Http1Client, Http1Upstream
from tunnel.messages import BodyReader, BodyWriter, ByteStream, RequestHead, ResponseHead
from tunnel.transports.base import Transport
from tunnel.wakeup import Wakeup

logger = logging.getLogger(__name__)

REPEATABLE_METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS"})

Dial = Callable[[Access], Awaitable[Transport]]
"""Opens one connection, TLS included. Raises `OSError` or `HandshakeError`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """Bounds of the pool. Durations are seconds."""

    idle_seconds: float = 45.0
    """An idle connection is closed after this; kube-apiserver keeps one for 3 minutes, load balancers for 60 s."""
    idle_connections: int = 64
    """More idle ones than this are closed at once."""
    connect_seconds: float = 10.0
    """For a connection: waiting for a turn, name, TCP and TLS together."""
    concurrent_dials: int = 32
    """Handshakes under way at the same time; the others wait for their turn."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatistics:
    """A snapshot for metrics."""

    busy: int
    idle: int
    dialled: int
    """Connections made since the start."""
    reused: int
    """Requests that found an idle connection."""
    repeated: int
    """Requests that were sent once more because a reused connection had ended."""
    failed_dials: int


class ConnectionPool:
    """Connections to one kube-apiserver; an `agent.upstream.UpstreamOpener`."""

    def __init__(self, credentials: Credentials, *, dial: Dial, limits: PoolLimits = PoolLimits()) -> None:
        self._credentials = credentials
        self._dial = dial
        self._limits = limits
        self._dials = trio.CapacityLimiter(limits.concurrent_dials)
        self._idle: collections.deque[KeptConnection] = collections.deque()  # the longest idle first
        self._idle_added = Wakeup()
        self._unattended: list[KeptConnection] = []  # on which nobody listens yet
        self._unattended_added = Wakeup()
        self._busy: set[PooledExchange | KeptConnection] = set()
        self._prefix = credentials.address.prefix
        self._authority = credentials.address.authority
        self._closed = False
        self._dialled = self._reused = self._repeated = self._failed_dials = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen on idle connections, and close those that are idle for too long; cancelled, close all that are idle."""
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._close_expired)
                while True:
                    await self._unattended_added.wait()
                    for kept in self._unattended:
                        nursery.start_soon(kept.run)
                    self._unattended.clear()
        finally:
            self._closed = True
            for kept in self._idle:
                kept.abort()
            self._idle.clear()

    async def _close_expired(self) -> None:
        async with trio.open_nursery() as closing:
            while True:
                while not self._idle:
                    await self._idle_added.wait()
                await trio.sleep_until(self._idle[0].since + self._limits.idle_seconds)
                for kept in self._take_expired():
                    closing.start_soon(kept.claim().aclose)

    async def dial(self) -> None:
        """Open one more connection, which is idle then: `begin` will take it. Raises `UpstreamFailure`."""
        access = await self._current_access()
        self._attend(Http1Client(await self._connect(access)), access, is_new=True)

    async def open(self, request: RequestHead) -> PooledExchange:
        """See `agent.upstream.UpstreamOpener.open`. ``request.fields`` must be free of credentials."""
        access = await self._current_access()
        exchange = PooledExchange(self, self._complete(request, access))
        client = self._take_idle(access) if request.protocol is None else None
        if client is not None:
            self._reused += 1
            try:
                await exchange.begin(client, access, reused=True)
            except ConnectionEnded as exc:
                if client.sent_any_byte and not exchange.may_repeat:
                    raise UpstreamUnreachable(f"{self._name}: {exc}") from exc
                self._repeated += 1
            else:
                return exchange
        await self.begin_anew(exchange)
        return exchange

    def _complete(self, request: RequestHead, access: Access) -> RequestHead:
        return RequestHead(
            request.method,
            self._prefix + request.target,
            self._authority,
            request.fields + access.fields,
            request.protocol,
            request.content_length,
            request.ended,
        )

    def begin(self, request: RequestHead) -> tuple[KeptConnection, RequestHead] | None:
        """Send a request that consists of its head on an idle connection, without waiting.

        The connection and the head as it was sent: set `KeptConnection.listener` at once. What follows is `keep`, or
        `take_up`, or `drop`. None where a task has to open it.
        """
        access = self._credentials.known()
        kept = self._take_kept(access) if access is not None else None
        if kept is None or access is None:
            return None
        if not kept.client.is_idle_and_alive():
            kept.abort()  # what has come meanwhile would be taken for the answer
            return None
        head = self._complete(request, access)
        try:
            is_sent = kept.client.send_nowait(head, authority=self._authority)
        except LocalProtocolError:
            self._idle.append(kept)
            return None
        except ConnectionEnded:
            is_sent = False
        if not is_sent:
            kept.abort()
            return None
        self._reused += not kept.is_new
        self._busy.add(kept)
        return kept, head

    def keep(self, kept: KeptConnection) -> None:
        """The response to what `begin` sent has arrived whole."""
        kept.listener = None
        kept.is_new = False
        self._busy.discard(kept)
        if self._closed or not kept.client.reusable:
            kept.abort()
        else:
            kept.since = trio.current_time()
            self._add_idle(kept)

    def take_up(self, kept: KeptConnection, head: RequestHead, data: bytes) -> PooledExchange:
        """Go on with a request that `begin` sent, of whose response these bytes have arrived.

        A task that does so claims the connection.
        """
        self._busy.discard(kept)
        exchange = PooledExchange(self, head)
        exchange.take_up(kept.client, kept.access, data, reused=not kept.is_new)
        return exchange

    def drop(self, kept: KeptConnection) -> None:
        """Give up a request that `begin` sent, or a connection that was kept after it. Idempotent."""
        self._busy.discard(kept)
        self._lost(kept)

    def _lost(self, kept: KeptConnection) -> None:
        kept.abort()
        if kept in self._idle:
            self._idle.remove(kept)

    def _add_idle(self, kept: KeptConnection) -> None:
        self._idle.append(kept)
        self._idle_added.call()
        if len(self._idle) > self._limits.idle_connections:
            self._idle.popleft().abort()

    async def begin_anew(self, exchange: PooledExchange) -> None:
        """Send the request of this exchange on a new connection.

        Raises `UpstreamFailure`, and `ConnectionEnded` where the exchange was given up meanwhile.
        """
        access = await self._current_access()
        client = Http1Client(await self._connect(access))
        try:
            await exchange.begin(client, access, reused=False)
        except ConnectionEnded as exc:
            if exchange.given_up:
                raise
            raise UpstreamUnreachable(f"{self._name}: {exc}") from exc

    def occupy(self, exchange: PooledExchange) -> None:
        """The exchange has a connection."""
        self._busy.add(exchange)

    def repeated(self) -> None:
        """A request is sent once more."""
        self._repeated += 1

    def rejected(self) -> None:
        """The server answered 401: the only credentials in a request are the agent's."""
        self._credentials.rejected()

    def give_back(self, exchange: PooledExchange, client: Http1Client, access: Access) -> None:
        """The exchange is over. Its connection is kept where it stands between two messages, else closed."""
        self._busy.discard(exchange)
        if self._closed or not client.reusable:
            client.abort()
            return
        self._attend(client, access)

    def _attend(self, client: Http1Client, access: Access, *, is_new: bool = False) -> None:
        kept = KeptConnection(client, access, since=trio.current_time(), lost=self._lost)
        kept.is_new = is_new
        self._add_idle(kept)
        self._unattended.append(kept)
        self._unattended_added.call()

    def statistics(self) -> PoolStatistics:
        """A snapshot of counters."""
        return PoolStatistics(
            busy=len(self._busy),
            idle=len(self._idle),
            dialled=self._dialled,
            reused=self._reused,
            repeated=self._repeated,
            failed_dials=self._failed_dials,
        )

    @property
    def _name(self) -> str:
        return f"the kube-apiserver {self._credentials.address}"

    async def _current_access(self) -> Access:
        try:
            return await self._credentials.current()
        except CredentialsUnavailable as exc:
            raise UpstreamUnreachable(f"the agent has no credentials for {self._name}: {exc}") from exc

    def _take_idle(self, access: Access) -> Http1Client | None:
        while (kept := self._take_kept(access)) is not None:
            if kept.claim().is_idle_and_alive():
                return kept.client
            kept.abort()
        return None

    def _take_kept(self, access: Access) -> KeptConnection | None:
        while self._idle:
            kept = self._idle.pop()
            # Another CA or client certificate: what was dialled under the old one has had its time.
            if kept.access.context is access.context and kept.client.reusable:
                return kept
            kept.abort()
        return None

    def _take_expired(self) -> list[KeptConnection]:
        limit = trio.current_time() - self._limits.idle_seconds
        expired = []
        while self._idle and self._idle[0].since <= limit:
            expired.append(self._idle.popleft())
        return expired

    async def _connect(self, access: Access) -> Transport:
        seconds = self._limits.connect_seconds
        try:
            with trio.fail_after(seconds):
                async with self._dials:
                    transport = await self._dial(access)
        except trio.TooSlowError:
            self._failed_dials += 1
            raise UpstreamTimeout(f"{self._name} accepted no connection within {seconds:g} s") from None
        except (OSError, HandshakeError) as exc:
            self._failed_dials += 1
            raise _explain(self._name, exc) from exc
        self._dialled += 1
        return transport


class PooledExchange:
    """One request to the kube-apiserver; an `Upstream`."""

    __slots__ = ("_access", "_client", "_exchange", "_head", "_pool", "_reused", "given_up")

    def __init__(self, pool: ConnectionPool, head: RequestHead) -> None:
        self._pool = pool
        self._head = head
        self._client: Http1Client | None = None
        self._access: Access | None = None
        self._exchange: Http1Upstream | None = None
        self._reused = False
        self.given_up = False
        """`reset` was called: by a deadline, also while the request is being sent once more."""

    async def begin(self, client: Http1Client, access: Access, *, reused: bool) -> None:
        """Send the head on this connection. Whatever is raised, the connection is closed."""
        try:
            if self.given_up:
                raise ConnectionEnded("the request was given up before it was sent", local=True)
            self._exchange = await client.send(self._head, authority=self._head.authority)
        except BaseException:
            client.abort()
            raise
        self._client = client
        self._access = access
        self._reused = reused
        self._pool.occupy(self)

    def take_up(self, client: Http1Client, access: Access, data: bytes, *, reused: bool) -> None:
        """The request was sent on this connection; these bytes of a response have arrived."""
        self._exchange = client.take_up(self._head, data)
        self._client = client
        self._access = access
        self._reused = reused
        self._pool.occupy(self)

    @property
    def may_repeat(self) -> bool:
        """Whether sending the request a second time does no harm."""
        head = self._head
        return head.ended and head.protocol is None and head.method in REPEATABLE_METHODS

    @property
    def writer(self) -> BodyWriter:
        """See `tunnel.messages.Upstream`."""
        return self.under_way.writer

    @property
    def body(self) -> BodyReader:
        """See `tunnel.messages.Upstream`."""
        return self.under_way.body

    async def receive_head(self) -> ResponseHead:
        """See `tunnel.messages.Upstream`. Sends a repeatable request once more if a reused connection had ended.

        Also raises `UpstreamFailure` where the new connection fails.
        """
        try:
            head = await self.under_way.receive_head()
        except ConnectionEnded:
            client = self._client
            if client is None or not self._reused or client.received_any_byte or not self.may_repeat:
                raise
            client.abort()
            self._pool.repeated()
            await self._pool.begin_anew(self)
            head = await self.under_way.receive_head()
        if head.status == 401:
            self._pool.rejected()
        return head

    def take_stream(self) -> ByteStream:
        """See `tunnel.messages.Upstream`."""
        return self.under_way.take_stream()

    def reset(self, code: int) -> None:
        """Give the exchange up, or, after a clean end, give its connection back. Idempotent."""
        self.given_up = True
        client, access = self._client, self._access
        if client is None or access is None:
            return
        self._client = None
        self.under_way.reset(code)
        self._pool.give_back(self, client, access)

    @property
    def under_way(self) -> Http1Upstream:
        """The exchange on its connection. Raises `LocalProtocolError` where it was not begun."""
        if self._exchange is None:
            raise LocalProtocolError("an exchange that was not begun")
        return self._exchange


def _explain(name: str, error: OSError | HandshakeError) -> UpstreamFailure:
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
        return UpstreamBusy(f"the agent cannot open one more connection to {name}: {error.strerror}")
    return UpstreamUnreachable(f"{name} cannot be reached: {error}")
