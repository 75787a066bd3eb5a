"""A sandbox in memory, on the test's clock, and a caller who speaks HTTP and WebSocket to it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import h11
import trio
from support.http1 import MemoryTransport, memory_transport_pair
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, RejectConnection, RejectData, Request

from sandbox.cluster import Sandbox

TOKEN = "a-token-of-the-tests"
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def cluster_now() -> datetime:
    """Wall-clock time that follows Trio's clock."""
    return EPOCH + timedelta(seconds=trio.current_time() % 1e9)


@dataclass
class Answer:
    """What came back."""

    status: int
    fields: list[tuple[str, str]]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    def field(self, name: str) -> str | None:
        return next((value for key, value in self.fields if key == name), None)


@dataclass
class Watch:
    """The events of a watch as they come."""

    caller: Caller
    connection: h11.Connection
    transport: MemoryTransport
    rest: bytes = b""
    ended: bool = False

    async def event(self) -> Any:
        """The next event; None at the end of the watch."""
        while b"\n" not in self.rest:
            received = await _next_event(self.connection, self.transport)
            if isinstance(received, h11.EndOfMessage):
                self.ended = True
                return None
            assert isinstance(received, h11.Data), received
            self.rest += bytes(received.data)
        line, _, self.rest = self.rest.partition(b"\n")
        return json.loads(line)


@dataclass
class Socket:
    """A WebSocket to a pod."""

    protocol: WSConnection
    transport: MemoryTransport
    messages: list[bytes] = field(default_factory=list)
    is_closed: bool = False

    async def send(self, data: bytes) -> None:
        await self.transport.send_all(self.protocol.send(BytesMessage(data)))

    async def receive(self) -> bytes | None:
        """The next message; None once the server has closed."""
        while not self.messages and not self.is_closed:
            self.protocol.receive_data(await self.transport.receive_some() or None)
            for event in self.protocol.events():
                if isinstance(event, BytesMessage):
                    self.messages.append(bytes(event.data))
                elif isinstance(event, CloseConnection):
                    self.is_closed = True
                    if event.code == 1000:
                        await self.transport.send_all(self.protocol.send(event.response()))
        return self.messages.pop(0) if self.messages else None

    async def by_channel(self) -> dict[int, bytes]:
        """Everything up to the end, by the number of the channel."""
        result: dict[int, bytes] = {}
        while (message := await self.receive()) is not None:
            result[message[0]] = result.get(message[0], b"") + message[1:]
        return result

    async def wait_for(self, text: bytes) -> bytes:
        """Read until the output holds a text; returns all of it."""
        seen = b""
        while text not in seen:
            message = await self.receive()
            assert message is not None, seen
            seen += message[1:]
        return seen


class Caller:
    """Calls a sandbox, each time over a connection of its own."""

    def __init__(self, sandbox: Sandbox, nursery: trio.Nursery) -> None:
        self.sandbox = sandbox
        self.nursery = nursery

    def connect(self) -> MemoryTransport:
        server, client = memory_transport_pair()
        self.nursery.start_soon(self.sandbox._connection, server)
        return client

    async def _begin(
        self, method: str, target: str, document: object, fields: dict[str, str]
    ) -> tuple[h11.Connection, MemoryTransport, h11.Response]:
        body = document if isinstance(document, bytes) else b"" if document is None else json.dumps(document).encode()
        sent = {"Host": "sandbox", "Authorization": f"Bearer {TOKEN}", "Content-Length": str(len(body)), **fields}
        connection, transport = h11.Connection(h11.CLIENT), self.connect()
        request = h11.Request(method=method, target=target, headers=list(sent.items()))
        wire = (connection.send(request) or b"") + (connection.send(h11.Data(body)) or b"")
        await transport.send_all(wire + (connection.send(h11.EndOfMessage()) or b""))
        response = await _next_event(connection, transport)
        assert isinstance(response, h11.Response), response
        return connection, transport, response

    async def ask(self, method: str, target: str, document: object = None, **fields: str) -> Answer:
        """One request; underscores in names of fields stand for hyphens."""
        named = {name.replace("_", "-"): value for name, value in fields.items()}
        connection, transport, response = await self._begin(method, target, document, named)
        body = b""
        while isinstance(received := await _next_event(connection, transport), h11.Data):
            body += bytes(received.data)
        transport.abort()
        headers = [(name.decode(), value.decode()) for name, value in response.headers]
        return Answer(response.status_code, headers, body)

    async def get(self, target: str, **fields: str) -> Any:
        """The document at a path, which must be there."""
        answer = await self.ask("GET", target, **fields)
        assert answer.status == 200, answer.body
        return answer.document

    async def watch(self, target: str, **fields: str) -> Watch:
        """Begin a watch."""
        connection, transport, response = await self._begin("GET", target, None, fields)
        assert response.status_code == 200, response
        return Watch(self, connection, transport)

    async def socket(self, target: str, protocol: str = "v5.channel.k8s.io") -> Socket:
        """Upgrade to a WebSocket; an `Answer` is raised as AssertionError where that is refused."""
        client, transport = WSConnection(ConnectionType.CLIENT), self.connect()
        headers = [(b"Authorization", f"Bearer {TOKEN}".encode())]
        request = Request(host="sandbox", target=target, subprotocols=[protocol], extra_headers=headers)
        await transport.send_all(client.send(request))
        socket = Socket(client, transport)
        while True:
            client.receive_data(await transport.receive_some())
            for event in client.events():
                assert not isinstance(event, RejectConnection | RejectData), event
                if isinstance(event, AcceptConnection):
                    assert event.subprotocol == protocol
                    return socket

    async def until(self, target: str, condition: Any) -> Any:
        """The document at a path, once it is as wanted."""
        with trio.fail_after(120):
            while True:
                revision = self.sandbox.store.revision
                answer = await self.ask("GET", target)
                if answer.status == 200 and condition(answer.document):
                    return answer.document
                await self.sandbox.store.wait_beyond(revision)


async def _next_event(connection: h11.Connection, transport: MemoryTransport) -> Any:
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await transport.receive_some())
    return event


@asynccontextmanager
async def sandbox_caller(*, lives: bool = True) -> AsyncIterator[Caller]:
    """A caller of a new sandbox; without ``lives``, nothing in it moves by itself."""
    sandbox = Sandbox(token=TOKEN, seed=1, now=cluster_now)
    async with trio.open_nursery() as nursery:
        if lives:
            nursery.start_soon(sandbox._controllers.run)
            nursery.start_soon(sandbox._kubelet.run)
        yield Caller(sandbox, nursery)
        nursery.cancel_scope.cancel()
