"""A kube-apiserver that does on the wire what a test says, byte by byte.

Unlike `support.agent.ScriptedApiServer`, which plays one script per connection, it picks a script by the request's
path, so that one cluster can misbehave on one path and serve all others at the same time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import ssl
import struct
from collections import defaultdict
from collections.abc import Awaitable, Callable

import trio

OWN_QUESTIONS = (b"/api/v1/namespaces/kube-system", b"/version")
"""What an agent asks on its own account; answered, and not counted."""


@dataclasses.dataclass
class Received:
    """A request head as it stood on the wire."""

    method: bytes
    target: bytes
    fields: list[tuple[bytes, bytes]]
    raw: bytes
    connection: int
    """Which connection it came on, counted from 1."""

    def values(self, name: bytes) -> list[bytes]:
        """The values of all lines of this name, in order."""
        return [value for field, value in self.fields if field.lower() == name]

    @property
    def names(self) -> list[bytes]:
        """The names of all lines, in lower case and in order."""
        return [name.lower() for name, _ in self.fields]


class Visit:
    """One request, and the connection on which a script answers it."""

    def __init__(self, stream: trio.abc.HalfCloseableStream | trio.SSLStream[trio.SocketStream], number: int) -> None:
        self.stream = stream
        self.number = number
        self.closed = False
        self.request = Received(b"", b"", [], b"", number)
        self._input = bytearray()

    async def next_request(self) -> bool:
        """Read the next request head; False where the other side has closed."""
        while (end := self._input.find(b"\r\n\r\n")) < 0:
            if not await self._more():
                return False
        raw = bytes(self._input[:end])
        del self._input[: end + 4]
        first, *lines = raw.split(b"\r\n")
        method, target, version = first.split(b" ")
        assert version == b"HTTP/1.1", first
        fields = [(name, value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in lines)]
        self.request = Received(method, target, fields, raw, self.number)
        return True

    async def _more(self) -> bool:
        data = await self.stream.receive_some(262_144)
        self._input += data
        return bool(data)

    async def receive(self) -> bytes:
        """Raw bytes behind the head, as they come; ``b""`` at the end."""
        if not self._input and not await self._more():
            return b""
        data = bytes(self._input)
        self._input.clear()
        return data

    async def read(self, count: int) -> bytes:
        """So many raw bytes; fewer where the other side closes first."""
        while len(self._input) < count and await self._more():
            pass
        data = bytes(self._input[:count])
        del self._input[:count]
        return data

    async def read_body(self) -> tuple[bytes, list[bytes]]:
        """The body of the request by its framing, and its trailer lines."""
        if lengths := self.request.values(b"content-length"):
            return await self.read(int(lengths[0])), []
        body, trailers = b"", []
        if self.request.values(b"transfer-encoding") == [b"chunked"]:
            while size := int(await self._line(), 16):
                body += await self.read(size)
                assert await self._line() == b""
            while line := await self._line():
                trailers.append(line)
        return body, trailers

    async def _line(self) -> bytes:
        while (end := self._input.find(b"\r\n")) < 0:
            assert await self._more(), "the connection ended inside a line"
        line = bytes(self._input[:end])
        del self._input[: end + 2]
        return line

    async def send(self, data: bytes) -> None:
        """Exactly these bytes."""
        await self.stream.send_all(data)

    async def answer(self, body: bytes = b"ok", status: bytes = b"200 OK", fields: bytes = b"") -> None:
        """A whole response with Content-Length. ``fields`` are lines, each with its line end."""
        await self.send(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n%b\r\n%b" % (status, len(body), fields, body))

    async def chunk(self, data: bytes) -> None:
        """One chunk; the last one where there are no data."""
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def wait_gone(self) -> None:
        """Return once the other side has closed or reset the connection; what it sends is thrown away."""
        with contextlib.suppress(trio.BrokenResourceError):
            while await self.stream.receive_some(262_144):
                pass

    async def close(self) -> None:
        """Close in order (with close_notify where there is TLS)."""
        self.closed = True
        await self.stream.aclose()

    def kill(self) -> None:
        """A TCP reset, so that nothing looks like an end."""
        self.closed = True
        sock = self._socket
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    @property
    def _socket(self) -> trio.socket.SocketType:
        lower = self.stream.transport_stream if isinstance(self.stream, trio.SSLStream) else self.stream
        assert isinstance(lower, trio.SocketStream)
        return lower.socket


Script = Callable[[Visit], Awaitable[None]]


async def say_ok(visit: Visit) -> None:
    """Take the body and answer 200."""
    await visit.read_body()
    await visit.answer()


class ScriptedCluster:
    """The scripts, and what arrived."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.scripts: dict[bytes, Script] = {}
        """By path, without the query."""
        self.default: Script = say_ok
        self.requests: list[Received] = []
        self.connections = 0
        self.open_connections = 0
        self.port = 0
        self._tls = tls
        self._changed = trio.Event()

    def on(self, path: bytes, script: Script) -> None:
        """Play this script for requests to this path."""
        self.scripts[path] = script

    def count(self, path: bytes) -> int:
        """How many requests came for this path."""
        return sum(request.target.partition(b"?")[0] == path for request in self.requests)

    def by_path(self) -> dict[bytes, list[Received]]:
        """What came, by path."""
        found: dict[bytes, list[Received]] = defaultdict(list)
        for request in self.requests:
            found[request.target.partition(b"?")[0]].append(request)
        return found

    async def wait_for(self, path: bytes, count: int = 1) -> None:
        """Return once so many requests have come for this path."""
        while self.count(path) < count:
            await self._changed.wait()

    async def wait_connections(self, count: int) -> None:
        """Return once at most so many connections are open."""
        while self.open_connections > count:
            await self._changed.wait()

    def _note(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1", backlog=4096)
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._serve, listeners)

    async def _serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        self.open_connections += 1
        top: trio.SocketStream | trio.SSLStream[trio.SocketStream] = stream
        if self._tls is not None:
            top = trio.SSLStream(stream, self._tls, server_side=True)
        visit = Visit(top, self.connections)
        try:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                while not visit.closed and await visit.next_request():
                    await self._play(visit)
        finally:
            self.open_connections -= 1
            self._note()
            await trio.aclose_forcefully(stream)

    async def _play(self, visit: Visit) -> None:
        path = visit.request.target.partition(b"?")[0]
        if path in OWN_QUESTIONS and visit.request.values(b"user-agent") == [b"moorline-agentk"]:
            answer = {"metadata": {"uid": "00000000-0000-4000-8000-000000000000"}, "gitVersion": "v1.36.0"}
            await visit.answer(json.dumps(answer).encode(), fields=b"Content-Type: application/json\r\n")
            return
        self.requests.append(visit.request)
        self._note()
        await self.scripts.get(path, self.default)(visit)
