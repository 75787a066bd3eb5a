"""A kube-apiserver that misbehaves on purpose, over real sockets, and credentials that do not need a cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import trio

from agent.address import ApiServerAddress
from agent.credentials import Access
from agent.exec_plugin import CredentialsUnavailable
from agent.pool import ConnectionPool, PoolLimits
from tunnel.messages import Fields
from tunnel.transports.tcp import TcpTransport


@dataclasses.dataclass
class ReceivedRequest:
    """A request as it stood on the wire."""

    method: bytes
    target: bytes
    fields: Fields
    body: bytes = b""

    def values(self, name: bytes) -> list[bytes]:
        return [value for field, value in self.fields if field.lower() == name.lower()]


class UpstreamConnection:
    """One accepted connection, as a script plays it."""

    def __init__(self, stream: trio.SocketStream, upstream: ScriptedApiServer) -> None:
        self.stream = stream
        self.upstream = upstream
        self._input = bytearray()

    async def _more(self) -> bool:
        data = await self.stream.receive_some(65536)
        self._input += data
        return bool(data)

    async def read_head(self) -> ReceivedRequest | None:
        """The next request head; None where the client has closed."""
        while b"\r\n\r\n" not in self._input:
            if not await self._more():
                return None
        head, _, rest = bytes(self._input).partition(b"\r\n\r\n")
        self._input = bytearray(rest)
        first, *lines = head.split(b"\r\n")
        method, target, version = first.split(b" ")
        assert version == b"HTTP/1.1"
        fields = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
        request = ReceivedRequest(method, target, fields)
        self.upstream.requests.append(request)
        return request

    async def read_request(self) -> ReceivedRequest | None:
        """The next request with its body."""
        request = await self.read_head()
        if request is not None:
            request.body = await self.read_body(request)
        return request

    async def read_body(self, request: ReceivedRequest) -> bytes:
        if lengths := request.values(b"content-length"):
            return await self.read_exactly(int(lengths[0]))
        body = b""
        if request.values(b"transfer-encoding") == [b"chunked"]:
            while size := int(await self.read_line(), 16):
                body += await self.read_exactly(size)
                assert await self.read_line() == b""
            while await self.read_line():
                pass
        return body

    async def read_exactly(self, count: int) -> bytes:
        while len(self._input) < count:
            if not await self._more():
                raise AssertionError(f"the body ended after {len(self._input)} of {count} bytes")
        data = bytes(self._input[:count])
        del self._input[:count]
        return data

    async def read_line(self) -> bytes:
        while b"\r\n" not in self._input:
            if not await self._more():
                raise AssertionError("the connection ended inside a line")
        line, _, rest = bytes(self._input).partition(b"\r\n")
        self._input = bytearray(rest)
        return line

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def answer(self, body: bytes = b"ok", status: bytes = b"200 OK", more: bytes = b"") -> None:
        await self.send(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n%b\r\n%b" % (status, len(body), more, body))

    def kill(self) -> None:
        """Close with a reset, so that nothing looks like an end."""
        self.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.stream.socket.close()


Script = Callable[[UpstreamConnection], Awaitable[None]]


async def well_behaved(connection: UpstreamConnection) -> None:
    """Answers everything with 200 until the client goes away."""
    while await connection.read_request() is not None:
        await connection.answer()


class ScriptedApiServer:
    """On its n-th connection it does what the n-th script says, and on later ones what the last one says."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = scripts or (well_behaved,)
        self.requests: list[ReceivedRequest] = []
        self.accepted = 0
        self.port = 0
        self._scope = trio.CancelScope()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
                self.port = listeners[0].socket.getsockname()[1]
                nursery.start_soon(trio.serve_listeners, self._serve, listeners)
                task_status.started()

    def stop(self) -> None:
        """Close the listener and every connection."""
        self._scope.cancel()

    async def _serve(self, stream: trio.SocketStream) -> None:
        script = self._scripts[min(self.accepted, len(self._scripts) - 1)]
        self.accepted += 1
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await script(UpstreamConnection(stream, self))
        await stream.aclose()


class FixedCredentials:
    """Credentials that a test sets."""

    def __init__(self, address: ApiServerAddress, *, token: bytes = b"agent-token") -> None:
        self.address = address
        self.server_hostname = address.host
        self.proxy_url: str | None = None
        self.description = "a test"
        self.rejections = 0
        self.failure: CredentialsUnavailable | None = None
        self.set_token(token)

    def set_token(self, token: bytes, context: ssl.SSLContext | None = None) -> None:
        self.access = Access([(b"authorization", b"Bearer " + token)], context)

    async def current(self) -> Access:
        if self.failure is not None:
            raise self.failure
        return self.access

    def known(self) -> Access | None:
        """What `current` returns; nothing where that would raise."""
        return None if self.failure is not None else self.access

    def rejected(self) -> None:
        self.rejections += 1


@contextlib.asynccontextmanager
async def pool_for(
    upstream: ScriptedApiServer, *, limits: PoolLimits | None = None, prefix: bytes = b""
) -> AsyncIterator[ConnectionPool]:
    """A pool on a scripted kube-apiserver, both running."""
    async with trio.open_nursery() as nursery:
        await nursery.start(upstream.run)
        address = ApiServerAddress(scheme="http", host="127.0.0.1", port=upstream.port, prefix=prefix)

        async def dial(_: Access) -> TcpTransport:
            stream = await trio.open_tcp_stream("127.0.0.1", upstream.port)
            return TcpTransport(stream.socket)

        pool = ConnectionPool(FixedCredentials(address), dial=dial, limits=limits or PoolLimits())
        await nursery.start(pool.run)
        yield pool
        nursery.cancel_scope.cancel()
