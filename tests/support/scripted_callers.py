"""Callers of the proxy listener who see every byte: raw TLS, HTTP/1.1 on `h11`, HTTP/2 on `h2`.

`Http1Caller` and `Http2Caller` answer alike, so that one test holds for both fronts. A body that ends in any way but
the clean one raises `CutOff`.
"""

from __future__ import annotations

import contextlib
import ssl
from collections import deque
from collections.abc import AsyncIterator, Sequence

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import h11
import trio

from tunnel.errors import HandshakeError
from tunnel.transports.tcp import TcpTransport
from tunnel.transports.tls import TlsTransport

Fields = Sequence[tuple[bytes, bytes]]

PATIENCE_SECONDS = 10.0
"""Nothing in these tests takes so long; what does has hung."""


class CutOff(Exception):
    """The exchange ended before its message was whole. ``code`` is that of RST_STREAM, None for HTTP/1.1."""

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code = code


class RawCaller:
    """A TLS connection that speaks nothing by itself."""

    def __init__(self, transport: TlsTransport) -> None:
        self.transport = transport
        self.received = bytearray()
        """What came and was not asked for yet."""

    async def send(self, data: bytes) -> None:
        with trio.fail_after(PATIENCE_SECONDS):
            await self.transport.send_all(data)

    async def receive(self) -> bytes:
        """The next bytes; ``b""`` at an end in order. Raises `CutOff` for any other end."""
        if self.received:
            data = bytes(self.received)
            self.received.clear()
            return data
        with trio.fail_after(PATIENCE_SECONDS):
            try:
                data = await self.transport.receive_some()
            except trio.BrokenResourceError as exc:
                raise CutOff(str(exc)) from exc
        if not data and not self.transport.clean_eof:
            raise CutOff("the connection ended without close_notify")
        return data

    async def read(self, count: int) -> bytes:
        """So many bytes; fewer at the end."""
        data = b""
        while len(data) < count:
            more = await self.receive()
            if not more:
                break
            data += more
        self.received += data[count:]
        return data[:count]

    async def read_head(self) -> bytes:
        """A response head without the empty line; what was there at the end if none came whole."""
        data = b""
        while b"\r\n\r\n" not in data:
            try:
                more = await self.receive()
            except CutOff:
                more = b""
            if not more:
                return data
            data += more
        head, _, rest = data.partition(b"\r\n\r\n")
        self.received[:0] = rest
        return head

    async def read_all(self) -> bytes:
        """Everything until the connection ends, in whatever way."""
        data = b""
        with contextlib.suppress(CutOff):
            while more := await self.receive():
                data += more
        return data

    async def send_eof(self) -> None:
        await self.transport.send_eof()

    async def aclose(self) -> None:
        with trio.move_on_after(1):
            await self.transport.aclose()

    def abort(self) -> None:
        self.transport.abort()


async def connect(port: int, context: ssl.SSLContext) -> RawCaller:
    """A TLS connection to 127.0.0.1, with the ALPN that the context offers."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    transport = TlsTransport(TcpTransport(stream.socket), context, server_side=False, server_hostname="127.0.0.1")
    try:
        with trio.fail_after(PATIENCE_SECONDS):
            await transport.handshake()
    except (HandshakeError, trio.TooSlowError):
        transport.abort()
        raise
    return RawCaller(transport)


class Answer:
    """What comes back for one request, whichever the protocol."""

    def __init__(self) -> None:
        self.interim: list[int] = []
        self.interim_fields: list[list[tuple[bytes, bytes]]] = []
        self.status = 0
        self.fields: list[tuple[bytes, bytes]] = []
        self.trailers: list[tuple[bytes, bytes]] = []

    def values(self, name: bytes) -> list[bytes]:
        return [value for field, value in self.fields if field.lower() == name]

    async def head(self) -> int:
        """The status of the final head. Raises `CutOff`."""
        raise NotImplementedError

    async def piece(self) -> bytes:
        """The next bytes of the body as they came; ``b""`` at the clean end. Raises `CutOff`."""
        raise NotImplementedError

    async def read(self, count: int) -> bytes:
        """At least so many bytes of the body."""
        data = bytearray()
        while len(data) < count:
            more = await self.piece()
            assert more, f"the body ended after {len(data)} of {count} bytes"
            data += more
        return bytes(data)

    async def content(self) -> bytes:
        """The whole body. Raises `CutOff`."""
        data = bytearray()
        while more := await self.piece():
            data += more
        return bytes(data)

    async def until_cut(self) -> bytes:
        """The body up to where it is cut off; fails where it ends in order."""
        data = b""
        try:
            while more := await self.piece():
                data += more
        except CutOff:
            return data
        raise AssertionError(f"the body ended in order after {data[-200:]!r}")

    async def send(self, data: bytes) -> None:
        """More of the request body."""
        raise NotImplementedError

    async def finish(self, trailers: Fields = ()) -> None:
        """The end of the request body."""
        raise NotImplementedError

    async def cancel(self) -> None:
        """Give the exchange up."""
        raise NotImplementedError


class Caller:
    """One connection to the proxy listener."""

    def __init__(self, prefix: bytes, token: bytes) -> None:
        self._prefix = prefix
        self._authorization = (b"authorization", b"Bearer " + token)

    async def request(
        self, method: bytes, path: bytes, fields: Fields = (), body: bytes | None = b"", *, authorize: bool = True
    ) -> Answer:
        """Send a request to the cluster. With ``body=None`` it stays open: go on with `Answer.send`."""
        raise NotImplementedError

    async def get(self, path: bytes, fields: Fields = ()) -> Answer:
        """A GET whose head has come back."""
        answer = await self.request(b"GET", path, fields)
        await answer.head()
        return answer


class _Http1Answer(Answer):
    def __init__(self, caller: Http1Caller) -> None:
        super().__init__()
        self._caller = caller
        self._machine = caller.machine

    async def _next(self) -> h11.Event | type[h11.PAUSED]:
        while True:
            try:
                event = self._machine.next_event()
            except h11.RemoteProtocolError as exc:
                raise CutOff(str(exc)) from exc
            if event is not h11.NEED_DATA:
                return event  # type: ignore[return-value]
            try:
                data = await self._caller.raw.receive()
            except CutOff:
                if self._machine.their_state is h11.SEND_BODY and not self.framed:
                    raise  # the end of a body without a length, and nobody vouches for it
                data = b""
            self._machine.receive_data(data)

    @property
    def framed(self) -> bool:
        """Whether the message says itself where it ends."""
        names = {name.lower() for name, _ in self.fields}
        return bool(names & {b"content-length", b"transfer-encoding"})

    async def head(self) -> int:
        while not self.status:
            event = await self._next()
            if isinstance(event, h11.InformationalResponse):
                self.interim.append(event.status_code)
                self.interim_fields.append(list(event.headers))
            elif isinstance(event, h11.Response):
                self.status = event.status_code
                self.fields = list(event.headers.raw_items())
            else:
                raise CutOff("the connection was closed without an answer")
        return self.status

    async def piece(self) -> bytes:
        await self.head()
        if self._machine.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED):
            return b""
        event = await self._next()
        if isinstance(event, h11.Data):
            return bytes(event.data)
        assert isinstance(event, h11.EndOfMessage), event
        self.trailers = list(event.headers)
        return b""

    async def send(self, data: bytes) -> None:
        await self._caller.emit(h11.Data(data=data))

    async def finish(self, trailers: Fields = ()) -> None:
        await self._caller.emit(h11.EndOfMessage(headers=list(trailers)))

    async def cancel(self) -> None:
        self._caller.raw.abort()


class Http1Caller(Caller):
    """HTTP/1.1, one request after the other."""

    def __init__(self, raw: RawCaller, prefix: bytes, token: bytes) -> None:
        super().__init__(prefix, token)
        self.raw = raw
        self.machine = h11.Connection(h11.CLIENT, max_incomplete_event_size=1_000_000)

    async def emit(self, event: h11.Event) -> None:
        data = self.machine.send(event)
        if data:
            try:
                await self.raw.send(data)
            except trio.BrokenResourceError as exc:
                raise CutOff(str(exc)) from exc

    async def request(
        self, method: bytes, path: bytes, fields: Fields = (), body: bytes | None = b"", *, authorize: bool = True
    ) -> Answer:
        if self.machine.our_state is h11.DONE:
            self.machine.start_next_cycle()
        lines = [(b"host", b"kas.example.com"), *([self._authorization] if authorize else []), *fields]
        names = {name.lower() for name, _ in lines}
        if body is None and b"content-length" not in names:
            lines.append((b"transfer-encoding", b"chunked"))
        elif body and b"content-length" not in names:
            lines.append((b"content-length", b"%d" % len(body)))
        await self.emit(h11.Request(method=method, target=self._prefix + path, headers=lines))
        answer = _Http1Answer(self)
        if body is not None:
            if body:
                await answer.send(body)
            await answer.finish()
        return answer


class _Http2Answer(Answer):
    def __init__(self, caller: Http2Caller, stream_id: int) -> None:
        super().__init__()
        self._caller = caller
        self.stream_id = stream_id
        self.pieces: deque[tuple[bytes, int]] = deque()
        self.ended = False
        self.failure: CutOff | None = None
        self.room = trio.Event()
        self._changed = trio.Event()

    def changed(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _wait(self) -> None:
        if self.failure is not None:
            raise self.failure
        with trio.fail_after(PATIENCE_SECONDS):
            await self._changed.wait()

    async def head(self) -> int:
        while not self.status:
            await self._wait()
        return self.status

    async def piece(self) -> bytes:
        while not self.pieces:
            if self.ended:
                return b""
            await self._wait()
        data, size = self.pieces.popleft()
        await self._caller.credit(self.stream_id, size)
        return data or await self.piece()

    async def send(self, data: bytes) -> None:
        with trio.fail_after(PATIENCE_SECONDS):
            while data:
                if self.failure is not None:
                    raise self.failure
                window = self._caller.machine.local_flow_control_window(self.stream_id)
                size = min(window, self._caller.machine.max_outbound_frame_size, len(data))
                if size <= 0:
                    self.room = trio.Event()
                    await self.room.wait()
                    continue
                self._caller.machine.send_data(self.stream_id, data[:size])
                data = data[size:]
                await self._caller.flush()

    async def finish(self, trailers: Fields = ()) -> None:
        if trailers:
            self._caller.machine.send_headers(self.stream_id, list(trailers), end_stream=True)
        else:
            self._caller.machine.end_stream(self.stream_id)
        await self._caller.flush()

    async def cancel(self) -> None:
        with contextlib.suppress(h2.exceptions.ProtocolError):
            self._caller.machine.reset_stream(self.stream_id, h2.errors.ErrorCodes.CANCEL)
        self._caller.answers.pop(self.stream_id, None)
        await self._caller.flush()


class _PatientMachine(h2.connection.H2Connection):
    """Lets streams go on after GOAWAY, which h2 takes for the end of everything (RFC 9113 §6.8)."""

    def _receive_goaway_frame(self, frame):  # type: ignore[no-untyped-def]
        event = h2.events.ConnectionTerminated()
        event.error_code, event.last_stream_id = frame.error_code, frame.last_stream_id
        event.additional_data = frame.additional_data or None
        return [], [event]


class Http2Caller(Caller):
    """HTTP/2, any number of requests at a time. Credit goes back when a test takes a piece, and not before."""

    def __init__(self, raw: RawCaller, prefix: bytes, token: bytes, window_bytes: int = 65_535) -> None:
        super().__init__(prefix, token)
        self.raw = raw
        self.machine = _PatientMachine(h2.config.H2Configuration(header_encoding=None))
        self.machine.local_settings[h2.settings.SettingCodes.INITIAL_WINDOW_SIZE] = window_bytes
        self.answers: dict[int, _Http2Answer] = {}
        self.goaway: h2.events.ConnectionTerminated | None = None
        self._sending = trio.Lock()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self.machine.initiate_connection()
        # Large enough for every test: what stalls here is a stream, never the connection.
        self.machine.increment_flow_control_window(1 << 30)
        await self.flush()
        task_status.started()
        while True:
            try:
                data = await self.raw.transport.receive_some()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data:
                break
            for event in self.machine.receive_data(data):
                self._dispatch(event)
            await self.flush()
        for answer in self.answers.values():
            answer.failure = answer.failure or CutOff("the connection ended")
            answer.changed()
            answer.room.set()

    def _dispatch(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            self.goaway = event
            return
        if isinstance(event, (h2.events.WindowUpdated, h2.events.RemoteSettingsChanged)):
            for answer in self.answers.values():
                answer.room.set()
            return
        found = self.answers.get(getattr(event, "stream_id", None) or 0)
        if found is None:
            return
        if isinstance(event, h2.events.InformationalResponseReceived):
            found.interim.append(int(dict(event.headers)[b":status"]))
            found.interim_fields.append([line for line in event.headers if line[0] != b":status"])
        elif isinstance(event, h2.events.ResponseReceived):
            found.status = int(dict(event.headers)[b":status"])
            found.fields = [(bytes(name), bytes(value)) for name, value in event.headers if name != b":status"]
        elif isinstance(event, h2.events.DataReceived):
            found.pieces.append((event.data, event.flow_controlled_length))
        elif isinstance(event, h2.events.TrailersReceived):
            found.trailers = [(bytes(name), bytes(value)) for name, value in event.headers]
        elif isinstance(event, h2.events.StreamEnded):
            found.ended = True
        elif isinstance(event, h2.events.StreamReset):
            found.failure = CutOff(f"reset with {event.error_code}", int(event.error_code))
            found.room.set()
        found.changed()

    async def credit(self, stream_id: int, size: int) -> None:
        with contextlib.suppress(h2.exceptions.ProtocolError):
            self.machine.acknowledge_received_data(size, stream_id)
        await self.flush()

    async def flush(self) -> None:
        async with self._sending:
            data = self.machine.data_to_send()
            if data:
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await self.raw.transport.send_all(data)

    async def send_fields(
        self, lines: list[tuple[bytes, bytes]], *, ended: bool = True, body: bytes | None = None
    ) -> Answer:
        """A request with exactly these lines, pseudo-fields among them. ``body``: all of it, in the same write."""
        stream_id = self.machine.get_next_available_stream_id()
        answer = self.answers[stream_id] = _Http2Answer(self, stream_id)
        self.machine.send_headers(stream_id, lines, end_stream=ended and body is None)
        if body is not None:
            self.machine.send_data(stream_id, body, end_stream=True)
        await self.flush()
        return answer

    async def request(
        self, method: bytes, path: bytes, fields: Fields = (), body: bytes | None = b"", *, authorize: bool = True
    ) -> Answer:
        lines = [
            (b":method", method),
            (b":scheme", b"https"),
            (b":authority", b"kas.example.com"),
            (b":path", self._prefix + path),
            *([self._authorization] if authorize else []),
            *fields,
        ]
        if body and not any(name == b"content-length" for name, _ in fields):
            lines.append((b"content-length", b"%d" % len(body)))
        answer = await self.send_fields(lines, ended=body == b"")
        if body:
            await answer.send(body)
            await answer.finish()
        return answer


@contextlib.asynccontextmanager
async def http1_caller(port: int, context: ssl.SSLContext, prefix: bytes, token: bytes) -> AsyncIterator[Http1Caller]:
    """An HTTP/1.1 caller for the length of the block."""
    raw = await connect(port, context)
    try:
        yield Http1Caller(raw, prefix, token)
    finally:
        raw.abort()


@contextlib.asynccontextmanager
async def http2_caller(
    port: int, context: ssl.SSLContext, prefix: bytes, token: bytes, window_bytes: int = 65_535
) -> AsyncIterator[Http2Caller]:
    """An HTTP/2 caller for the length of the block."""
    raw = await connect(port, context)
    try:
        assert raw.transport.info.alpn == "h2"
        caller = Http2Caller(raw, prefix, token, window_bytes)
        async with trio.open_nursery() as nursery:
            await nursery.start(caller.run)
            yield caller
            nursery.cancel_scope.cancel()
    finally:
        raw.abort()
