"""An HTTP/2 connection on Trio: the engine, one transport, and the tasks between them.

Theory of operation. `Connection.run` has one reader task, one writer task and one timer. The reader feeds the engine and
hands each event to the stream that it concerns; it never waits for a stream. The writer sleeps until the engine has
something to say, waits until the kernel takes bytes, and only then gathers frames, so that a small answer never
queues behind more than one batch. Tasks of exchanges call synchronous methods of the engine and wake the writer; they
may be cancelled at any await without harm to the connection.

A responder asks ``begin`` whether a request needs no task (`tunnel.direct`). For every other one, a task runs the
handler, contained: what a handler raises ends its own stream and nothing else.
The task is cancelled when the caller resets the stream or the connection ends.

Deliberately absent: what requests mean, who may open them, and when to dial again.
"""

from __future__ import annotations

import dataclasses
import enum
import logging
import math
from collections.abc import Callable

import trio

from tunnel.errors import (
    ConnectionEnded,
    ErrorCode,
    PeerUnresponsive,
    StreamLimitReached,
    TunnelError,
    error_code_name,
    first_connection_ended,
    first_text,
)
from tunnel.h2.engine import Engine, EngineConfig, EngineStatistics, Role
from tunnel.h2.events import (
    ConnectionFailed,
    DataReceived,
    Event,
    HeadTooLarge,
    InterimReceived,
    PeerGoingAway,
    Pong,
    RequestReceived,
    ResponseReceived,
    SettingsReceived,
    StreamWasReset,
    TrailersReceived,
)
from tunnel.h2.stream import Stream
from tunnel.h2.windows import WindowBudget
from tunnel.heads import request_fields, request_head
from tunnel.liveness import DEFAULT_TIMES, ConnectionTimes, Liveness, Verdict
from tunnel.messages import Fields, RequestHead
from tunnel.openings import Openings
from tunnel.streams import Http2Stream, RequestStream, ServedStream
from tunnel.transports.base import Transport, send_joined
from tunnel.wakeup import Wakeup
from tunnel.workers import Begin, Handler, Workers

logger = logging.getLogger(__name__)

GATHER_BYTES = 262_144
"""At most this much leaves the engine before the kernel has taken it."""

FAREWELL_SECONDS = 2.0
"""How long the last frames (GOAWAY) may take to leave."""

OPEN_WAIT_SECONDS = 1.0
"""How long a request waits for the peer's MAX_CONCURRENT_STREAMS before it is refused."""

TICK_SECONDS = 5.0
"""How late a deadline of the engine may be met: all of them are coarse."""

DRAIN_PING = b"ml-drain"
FIRST_GOAWAY_ID = 2**31 - 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionStatistics:
    """A snapshot for metrics and health."""

    open_streams: int
    unsent_bytes: int
    round_trip_seconds: float | None
    engine: EngineStatistics


class _Drain(enum.Enum):
    NONE = "none"
    ANNOUNCED = "announced"
    """A responder has said that it will go, and waits for the requests that are under way."""
    ENDING = "ending"
    """What runs may end; the last one closes the connection."""


class Connection:
    """One HTTP/2 connection in either role, over one transport."""

    def __init__(
        self,
        transport: Transport,
        *,
        role: Role,
        config: EngineConfig,
        handler: Handler | None = None,
        begin: Begin | None = None,
        budget: WindowBudget | None = None,
        times: ConnectionTimes = DEFAULT_TIMES,
        on_going_away: Callable[[str], None] | None = None,
        name: str = "http2",
    ) -> None:
        """``handler`` serves requests (responder); ``begin`` is asked first, for those that may need no task.

        ``on_going_away`` hears the debug data of the peer's GOAWAY.
        """
        self._transport = transport
        self._engine = Engine(role, config, budget=budget, now=trio.current_time())
        self._workers = Workers(handler, name=name, ended=self.served)
        self._begin_directly = begin
        self._on_going_away = on_going_away
        self._name = name
        self._streams: set[Http2Stream] = set()
        self._begun: list[ServedStream] = []
        """Requests of the bytes that the reader is looking at, which may begin directly."""
        self._partial: list[RequestStream] = []
        """Direct exchanges of which the bytes that the reader is looking at bring a part."""
        self._openings = Openings()
        self._writer_wakeup = Wakeup()
        self._ready = trio.Event()
        self._ended = trio.Event()
        self._failure: ConnectionEnded | None = None
        self._closing = False
        self._drain = _Drain.NONE
        self._drain_debug = b""
        self._liveness = Liveness(times, trio.current_time())
        self._ping_number = 0
        self.round_trip_seconds: float | None = None
        """The last measured round trip of a PING; None before the first."""
        self.peer_is_going_away = False

    # --- life ------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Drive the connection until it ends; ``started()`` once the peer's SETTINGS are here.

        Raises `ConnectionEnded` (or `PeerUnresponsive`) for every end that the peer or the transport brought about;
        returns after `close`. However it ends, every stream has failed, every handler has ended, and the transport is
        closed.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._engine.start()
                nursery.start_soon(self._write_frames, nursery.cancel_scope)
                nursery.start_soon(self._keep_time)
                nursery.start_soon(self._receive_frames)
                if self._engine.role is Role.RESPONDER:
                    nursery.start_soon(self._workers.run)
                await self._ready.wait()
                task_status.started()
        except* (trio.BrokenResourceError, trio.ClosedResourceError) as group:
            if self._failure is None:
                self._failure = ConnectionEnded(f"{self._name}: the transport broke: {first_text(group)}")
        except* ConnectionEnded as group:
            self._failure = self._failure or first_connection_ended(group)
        finally:
            self._end_everything()
        if self._failure is not None and not self._closing:
            raise self._failure
        if self._failure is not None and self._failure.code != ErrorCode.NO_ERROR:
            raise self._failure

    def close(self, *, code: int = ErrorCode.NO_ERROR, debug: bytes = b"") -> None:
        """Say GOAWAY, let what is queued leave (at most `FAREWELL_SECONDS`), end. Synchronous; `run` then returns."""
        if not self._closing:
            self._closing = True
            self._engine.go_away(code=code, debug=debug)
            self._writer_wakeup.call()

    def abort(self) -> None:
        """Close the transport under the connection, at once. `run` raises."""
        self._transport.abort()

    def drain(self, debug: bytes = b"drain") -> None:
        """Take nothing new, let what runs end, then close (wire contract §4). Synchronous, cuts nothing; `run` returns.

        A requester says GOAWAY(0). A responder says GOAWAY(2^31-1), waits one round trip, and then names the last
        stream that it will serve, so that no request is lost that was under way.
        """
        if self._ended.is_set() or self._drain is not _Drain.NONE:
            return
        self._drain_debug = debug
        if self._engine.role is Role.REQUESTER:
            self._drain = _Drain.ENDING
            self._engine.go_away(last_stream_id=0, debug=debug)
            self._close_if_drained()
        else:
            self._drain = _Drain.ANNOUNCED
            self._engine.go_away(last_stream_id=FIRST_GOAWAY_ID, debug=debug)
            self._engine.send_ping(DRAIN_PING)
        self._openings.wake_all()
        self._writer_wakeup.call()

    def _close_if_drained(self) -> None:
        if self._drain is _Drain.ENDING and not self._streams:
            self.close(debug=self._drain_debug)

    async def wait_ended(self) -> None:
        """Return once the connection is over."""
        await self._ended.wait()

    @property
    def open_streams(self) -> int:
        """Streams whose exchange has not ended."""
        return len(self._streams)

    @property
    def is_usable(self) -> bool:
        """Whether a request may still be opened here."""
        return not (self._closing or self._ended.is_set() or self.peer_is_going_away or self._drain is not _Drain.NONE)

    @property
    def peer_allows_upgrades(self) -> bool:
        """Whether the peer announced extended CONNECT (RFC 8441)."""
        return self._engine.peer_allows_connect

    def statistics(self) -> ConnectionStatistics:
        """A snapshot of counters."""
        return ConnectionStatistics(
            open_streams=len(self._streams),
            unsent_bytes=self._engine.unsent_bytes,
            round_trip_seconds=self.round_trip_seconds,
            engine=self._engine.statistics(),
        )

    # --- requests of ours ---------------------------------------------------------------------------

    async def open(self, head: RequestHead, *, queue: str = "") -> RequestStream:
        """Send a request head and return its stream.

        At the peer's limit of streams this waits up to `OPEN_WAIT_SECONDS`, in turn among the queues (one for each
        credential) and first come first served within one; then `StreamLimitReached`. Raises `ConnectionEnded` where the
        connection is closing. Cancelled, nothing was sent.
        """
        if self._openings or not self._engine.can_open:
            await self._wait_for_slot(queue)
        if not self.is_usable:
            raise self._failure or ConnectionEnded(f"{self._name}: takes no new requests")
        return self._open(head)

    def open_nowait(self, head: RequestHead) -> RequestStream | None:
        """`open` where it need not wait; None where it would, or the connection takes no new requests."""
        return self._open(head) if self.can_open_nowait else None

    @property
    def can_open_nowait(self) -> bool:
        """Whether `open_nowait` would open a stream."""
        return not self._openings and self._engine.can_open and self.is_usable

    def _open(self, head: RequestHead) -> RequestStream:
        is_upgrade = head.protocol is not None
        ended = head.ended and not is_upgrade
        h2 = self._engine.open_stream(request_fields(head), ended=ended)
        stream = RequestStream(self, h2, is_upgrade=is_upgrade, ended=ended)
        h2.owner = stream
        self._add(stream)
        self._writer_wakeup.call()
        return stream

    async def _wait_for_slot(self, queue: str) -> None:
        with trio.move_on_after(OPEN_WAIT_SECONDS):
            while await self._openings.wait(queue):
                if self._engine.can_open:
                    return
        if self.is_usable:
            raise StreamLimitReached(f"{self._name}: no stream became free within {OPEN_WAIT_SECONDS:g} s")

    # --- called by streams --------------------------------------------------------------------------

    def send_head(self, h2: Stream, fields: Fields, *, ended: bool = False) -> None:
        """Queue a head; it leaves before any DATA that waits."""
        self._engine.send_head(h2, fields, ended=ended)
        self._after_sending(h2, ended)

    def send_data(self, h2: Stream, data: bytes, *, ended: bool = False) -> None:
        """Queue bytes of a body."""
        self._engine.send_data(h2, data, ended=ended)
        self._after_sending(h2, ended)

    def send_trailers(self, h2: Stream, fields: Fields) -> None:
        """Queue the trailer section; it leaves behind the queued body."""
        self._engine.send_trailers(h2, fields)
        self._after_sending(h2, True)

    def reset_stream(self, h2: Stream, code: int) -> None:
        """RST_STREAM; the stream is forgotten here."""
        if not self._ended.is_set():
            self._engine.reset_stream(h2, code)
            self._writer_wakeup.call()
        self._forget(h2.owner)

    def consumed(self, h2: Stream, taken_bytes: int) -> None:
        """A task took bytes of a body: credit goes back to the peer."""
        if not self._ended.is_set():
            self._engine.consume(h2, taken_bytes)
            if self._engine.has_output:
                self._writer_wakeup.call()

    def note_partial(self, stream: RequestStream) -> None:
        """Part of a response came, of which no task knows; the rest may be right behind it."""
        self._partial.append(stream)

    def hand_over(self, stream: ServedStream) -> None:
        """Have a task serve this request, which was under way without one."""
        self._workers.serve(stream)

    def authenticated(self) -> None:
        """A request on this connection was authenticated; the limits for strangers no longer apply."""
        self._liveness.authenticated()

    def _after_sending(self, h2: Stream, ended: bool) -> None:
        self._writer_wakeup.call()
        if ended and h2.owner is not None and h2.owner.received_end:
            self._forget(h2.owner)

    def _forget(self, stream: Http2Stream | None) -> None:
        """Both directions have ended. A served stream stays until its task has."""
        if stream is not None and not isinstance(stream, ServedStream):
            self._discard(stream)

    def _add(self, stream: Http2Stream) -> None:
        self._streams.add(stream)
        self._liveness.idle_since = None

    def _discard(self, stream: Http2Stream) -> None:
        self._streams.discard(stream)
        if not self._streams:
            self._liveness.idle_since = trio.current_time()
            self._close_if_drained()
        if self._openings and self._engine.can_open:
            self._openings.admit()

    # --- tasks ----------------------------------------------------------------------------------------

    async def _receive_frames(self) -> None:
        transport, engine = self._transport, self._engine
        while True:
            data = await transport.receive_some()
            if not data:
                raise ConnectionEnded(f"{self._name}: the peer closed the connection")
            self._liveness.received_at = now = trio.current_time()
            for event in engine.receive(data, now):
                self._dispatch(event)
            if self._begun:
                self._begin_requests()
            if self._partial:
                self._pass_on_partial()
            if engine.has_output:
                self._writer_wakeup.call()

    def _begin_requests(self) -> None:
        """Begin the requests of one read: after all of its frames, so that one that was reset at once begins nothing."""
        for stream in self._begun:
            if not self._began_directly(stream):
                self.hand_over(stream)
        self._begun.clear()

    def _began_directly(self, stream: ServedStream) -> bool:
        if self._begin_directly is None or not stream.request.ended or stream.request.protocol is not None:
            return False
        return stream.failure is None and not stream.head_too_large and self._begin_directly(stream)

    def _pass_on_partial(self) -> None:
        """No byte of a response waits for others: what is not whole by now is passed on in parts."""
        for stream in self._partial:
            if stream.direct is not None:
                stream.direct.response_arrived()
        self._partial.clear()

    async def _write_frames(self, everything: trio.CancelScope) -> None:
        transport, engine = self._transport, self._engine
        while True:
            if engine.has_output:
                if len(self._streams) > 1 or not transport.is_writable:
                    # With several streams, let their tasks add to the batch first; with one, nobody else would.
                    await transport.wait_writable()
                chunks = engine.gather(GATHER_BYTES)
                for h2 in engine.take_drained():
                    if h2.owner is not None:
                        h2.owner.on_drained()
                await send_joined(transport, chunks)
            elif self._closing:
                with trio.move_on_after(FAREWELL_SECONDS):
                    await transport.send_eof()
                everything.cancel()
                return
            else:
                await self._writer_wakeup.wait()

    async def _keep_time(self) -> None:
        """PINGs, the deadlines of the engine, and the limits on idle and unknown peers."""
        liveness, engine = self._liveness, self._engine
        while True:
            now = trio.current_time()
            for event in engine.expire(now):
                self._dispatch(event)
            self._act(liveness.verdict(now), now)
            if engine.has_output:
                self._writer_wakeup.call()
            # What falls due later than this look, and earlier than the next, is met at most TICK_SECONDS late.
            due = min(liveness.due(), engine.deadline() or math.inf)
            await trio.sleep(min(max(due - now, 0.01), TICK_SECONDS))

    def _act(self, verdict: Verdict, now: float) -> None:
        if verdict is Verdict.PING:
            self._ping_number += 1
            self._liveness.ping_sent(now)
            self._engine.send_ping(b"ml%06x" % (self._ping_number & 0xFFFFFF))
        elif verdict is Verdict.UNRESPONSIVE:
            silent = now - self._liveness.received_at
            raise PeerUnresponsive(
                f"{self._name}: nothing came from the peer for {silent:.0f} s, and a PING went unanswered", local=True
            )
        elif verdict is Verdict.IDLE:
            self.close(debug=b"idle")
        elif verdict is Verdict.STRANGER:
            self.close(debug=b"unauthenticated")

    def served(self, stream: ServedStream) -> None:
        """A request has been dealt with: its slot is free."""
        if not self._ended.is_set():
            self._engine.release(stream.h2)
            self._writer_wakeup.call()
        self._discard(stream)
        if not self._liveness.is_known:
            self._note_stranger()

    def _note_stranger(self) -> None:
        self._liveness.answered()
        if self._liveness.verdict(trio.current_time()) is Verdict.STRANGER:
            self.close(debug=b"unauthenticated")

    # --- events ---------------------------------------------------------------------------------------

    def _dispatch(self, event: Event) -> None:
        if isinstance(event, DataReceived):
            stream = event.stream.owner
            if stream is not None:
                stream.on_data(event.data, event.ended)
                if event.ended and stream.sent_end:
                    self._forget(stream)
        elif isinstance(event, RequestReceived):
            self._accept(event.stream, event.fields, event.ended)
        elif isinstance(event, ResponseReceived):
            stream = event.stream.owner
            stream.on_head(event.fields, event.ended)
            if event.ended and stream.sent_end:
                self._forget(stream)
        elif isinstance(event, StreamWasReset):
            stream = event.stream.owner
            if stream is not None:
                stream.on_reset(event.code, event.remote, event.refused)
                self._forget(stream)
        elif isinstance(event, TrailersReceived):
            stream = event.stream.owner
            if stream is not None:
                stream.on_trailers(event.fields)
                if stream.sent_end:
                    self._forget(stream)
        elif isinstance(event, InterimReceived):
            event.stream.owner.on_head(event.fields, False)
        else:
            self._dispatch_rare(event)

    def _dispatch_rare(self, event: Event) -> None:
        if isinstance(event, Pong):
            self._on_pong(event.payload)
        elif isinstance(event, SettingsReceived):
            self._ready.set()
            if self._engine.can_open:
                self._openings.admit()
        elif isinstance(event, PeerGoingAway):
            self._on_peer_going_away(event)
        elif isinstance(event, HeadTooLarge):
            self._on_head_too_large(event.stream)
        elif isinstance(event, ConnectionFailed):
            self._failure = ConnectionEnded(
                f"{self._name}: {event.text} ({error_code_name(event.code)})", code=event.code, local=True
            )
            logger.warning("%s: ended the connection: %s (%s)", self._name, event.text, error_code_name(event.code))
            self._closing = True
            self._writer_wakeup.call()

    def _accept(self, h2: Stream, fields: Fields, ended: bool) -> None:
        try:
            head = request_head(fields, ended=ended)
        except TunnelError:
            self._engine.reset_stream(h2, ErrorCode.PROTOCOL_ERROR)
            self._engine.release(h2)
            return
        self._add_served(ServedStream(self, h2, head, ended=ended), h2)

    def _on_head_too_large(self, h2: Stream) -> None:
        if h2.owner is not None:
            h2.owner.on_head_too_large()
            return
        stream = ServedStream(self, h2, RequestHead(b"GET", b"/", b"", []), ended=False)
        stream.head_too_large = True
        self._add_served(stream, h2)

    def _add_served(self, stream: ServedStream, h2: Stream) -> None:
        h2.owner = stream
        self._add(stream)
        self._begun.append(stream)

    def _on_pong(self, payload: bytes) -> None:
        if payload == DRAIN_PING:
            self._drain = _Drain.ENDING
            self._engine.go_away(last_stream_id=self._engine.highest_peer_stream_id, debug=self._drain_debug)
            self._writer_wakeup.call()
            self._close_if_drained()
        else:
            round_trip = self._liveness.ponged(trio.current_time())
            if round_trip is not None:
                self.round_trip_seconds = round_trip
                self._engine.note_round_trip(round_trip)

    def _on_peer_going_away(self, event: PeerGoingAway) -> None:
        self.peer_is_going_away = True
        debug = event.debug[:200].decode("ascii", "replace")
        if event.code != ErrorCode.NO_ERROR:
            logger.warning("%s: the peer goes away: %s %s", self._name, error_code_name(event.code), debug)
        if self._on_going_away is not None:
            self._on_going_away(debug)
        self._openings.wake_all()

    # --- the end --------------------------------------------------------------------------------------

    def _end_everything(self) -> None:
        self._ended.set()
        self._transport.abort()
        self._engine.close()
        failure = self._failure or ConnectionEnded(f"{self._name}: closed", local=True)
        for stream in list(self._streams):
            stream.on_failure(failure)
            stream.discard_received()
        self._streams.clear()
        self._openings.wake_all()
