"""Scripted ends of an exchange, for what real ones cannot be made to do at a given moment."""

from __future__ import annotations

import math
from collections import deque

import trio

from tunnel.errors import StreamReset
from tunnel.messages import Fields, RequestHead, ResponseHead

Item = bytes | BaseException | None
"""Bytes that arrive; an exception that is raised; None for the clean end."""


class ScriptedBody:
    """A `BodyReader` into which a test puts what arrives."""

    def __init__(self, *items: Item, trailers: Fields | None = None) -> None:
        self._send, self._receive = trio.open_memory_channel[Item](math.inf)
        self._waiting: deque[Item] = deque(items)
        self.trailers: Fields = trailers or []
        self._ended = False

    def put(self, item: Item) -> None:
        self._send.send_nowait(item)

    async def receive(self) -> bytes:
        if self._ended:
            return b""
        item = self._waiting.popleft() if self._waiting else await self._receive.receive()
        return self._deliver(item)

    def receive_nowait(self) -> bytes | None:
        if self._ended:
            return b""
        if not self._waiting:
            try:
                self._waiting.append(self._receive.receive_nowait())
            except trio.WouldBlock:
                return None
        return self._deliver(self._waiting.popleft())

    def _deliver(self, item: Item) -> bytes:
        if isinstance(item, BaseException):
            raise item
        if item is None:
            self._ended = True
            return b""
        return item

    @property
    def at_end(self) -> bool:
        return self._ended or (bool(self._waiting) and self._waiting[0] is None)


class RecordingWriter:
    """A `BodyWriter` that keeps what it is given."""

    def __init__(self) -> None:
        self.data = b""
        self.finished: Fields | tuple[()] | None = None
        self.reset_code: int | None = None
        self.fails_with: BaseException | None = None

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if self.fails_with is not None:
            raise self.fails_with
        self.data += data

    async def finish(self, trailers: Fields | tuple[()] = ()) -> None:
        await trio.lowlevel.checkpoint()
        if self.fails_with is not None:
            raise self.fails_with
        self.finished = trailers

    def reset(self, code: int) -> None:
        if self.finished is None and self.reset_code is None:
            self.reset_code = code


class ScriptedUpstream:
    """An `Upstream` whose heads and body a test provides."""

    def __init__(self, *heads: ResponseHead | BaseException, body: ScriptedBody | None = None) -> None:
        self._send, self._receive = trio.open_memory_channel[ResponseHead | BaseException](math.inf)
        for head in heads:
            self._send.send_nowait(head)
        self.body = body or ScriptedBody()
        self.request = RecordingWriter()
        self.reset_code: int | None = None
        self.stream: ScriptedStream | None = None

    def put_head(self, head: ResponseHead | BaseException) -> None:
        self._send.send_nowait(head)

    @property
    def writer(self) -> RecordingWriter:
        return self.request

    async def receive_head(self) -> ResponseHead:
        head = await self._receive.receive()
        if isinstance(head, BaseException):
            raise head
        return head

    def take_stream(self) -> ScriptedStream:
        assert self.stream is not None
        return self.stream

    def reset(self, code: int) -> None:
        if self.reset_code is None:
            self.reset_code = code
            self._send.send_nowait(StreamReset(code=code, remote=False))


class ScriptedDownstream:
    """A `Downstream` that records the answer."""

    def __init__(self, request: RequestHead, body: ScriptedBody | None = None) -> None:
        self.request = request
        self.body = body or ScriptedBody(None)
        self.interim: list[int] = []
        self.head: ResponseHead | None = None
        self.response = RecordingWriter()
        self.first = b""
        self.whole = False
        self.reset_code: int | None = None
        self.stream: ScriptedStream | None = None
        self.known = False

    async def send_interim(self, head: ResponseHead) -> None:
        self.interim.append(head.status)

    async def send_response(self, head: ResponseHead, data: bytes = b"", *, end: bool = False) -> None:
        assert self.head is None
        await trio.lowlevel.checkpoint()
        self.head, self.first, self.whole = head, data, end

    @property
    def writer(self) -> RecordingWriter:
        return self.response

    async def accept_upgrade(self, head: ResponseHead) -> ScriptedStream:
        self.head = head
        assert self.stream is not None
        return self.stream

    def reset(self, code: int) -> None:
        if self.reset_code is None:
            self.reset_code = code

    def authenticated(self) -> None:
        self.known = True

    def cancel(self) -> None:
        self.reset(0)

    @property
    def response_started(self) -> bool:
        return self.head is not None or self.reset_code is not None

    @property
    def ended_cleanly(self) -> bool:
        return self.reset_code is None and (self.whole or self.response.finished is not None)

    @property
    def content(self) -> bytes:
        return self.first + self.response.data


class ScriptedStream:
    """A `ByteStream` whose incoming side a test provides and whose outgoing side it reads."""

    def __init__(self, *items: Item) -> None:
        self.incoming = ScriptedBody(*items)
        self.sent = b""
        self.eof_sent = False
        self.closed = False
        self.reset_code: int | None = None
        self.fails_with: BaseException | None = None

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self.incoming.receive()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        if self.fails_with is not None:
            raise self.fails_with
        self.sent += bytes(data)

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        self.eof_sent = True

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self.closed = True

    def reset(self, code: int) -> None:
        if not self.closed and self.reset_code is None:
            self.reset_code = code
