"""Port-forwarding to the page that a make-believe container serves, over SPDY in a WebSocket.

The page is made from the request head alone; one answer to a connection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable

from sandbox.calls import Call
from sandbox.kinds import Object
from sandbox.spdy import DataReceived, SpdyError, SpdyServer, StreamEnded, StreamOpened
from sandbox.websockets import WebSocket, accepted

PROTOCOL = "SPDY/3.1+portforward.k8s.io"
STREAMS = 200
HEAD_BYTES = 65_536

Served = Callable[[str], Awaitable[None]]
"""Told the target of each request."""


def page(pod: Object) -> str:
    """What the make-believe web server shows."""
    metadata, node = pod["metadata"], pod["spec"].get("nodeName")
    return (
        f"<!doctype html>\n<title>{metadata['name']}</title>\n<h1>Hello from the sandbox</h1>\n"
        f"<p>Pod {metadata['name']} in namespace {metadata['namespace']}, on node {node}. Nothing here is real.</p>\n"
    )


def ports_of(pod: Object) -> set[int]:
    """The ports that the containers of a pod say they listen on."""
    return {port["containerPort"] for item in pod["spec"]["containers"] for port in item.get("ports") or []}


@dataclasses.dataclass(slots=True)
class Visit:
    """One connection to the page."""

    pod: Object
    served: Served
    head: bytearray = dataclasses.field(default_factory=bytearray)
    is_over: bool = False

    async def receive(self, data: bytes) -> bytes:
        """Take bytes of a request; gives the answer, once the head is complete."""
        self.head += data
        if self.is_over or (b"\r\n\r\n" not in self.head and len(self.head) < HEAD_BYTES):
            return b""
        self.is_over = True
        method, _, rest = self.head.partition(b" ")
        await self.served(rest.partition(b" ")[0].decode("latin-1"))
        body = page(self.pod).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        return head.encode() + (b"" if method == b"HEAD" else body)


async def forward(call: Call, pod: Object, served: Served) -> None:
    """Answer a port-forward request. Raises `ApiError` where it is none."""
    async with accepted(call, (PROTOCOL,)) as socket:
        await _converse(socket, pod, served)


async def _converse(socket: WebSocket, pod: Object, served: Served) -> None:
    """Each connection is a pair of streams, for data and for an error, with one request id."""
    spdy = SpdyServer()
    errors: dict[str, int] = {}
    visits: dict[int, tuple[Visit, str]] = {}
    while (message := await socket.receive()) is not None:
        try:
            events = spdy.receive(message)
        except SpdyError:
            return
        output = bytearray(spdy.take_answers())
        for event in events:
            match event:
                case StreamOpened(stream_id) if len(visits) + len(errors) >= STREAMS:
                    output += spdy.reset(stream_id)
                case StreamOpened(stream_id, {"streamtype": "error", "requestid": request_id}):
                    errors[request_id] = stream_id
                    output += spdy.reply(stream_id)
                case StreamOpened(stream_id, {"streamtype": "data", "requestid": request_id, "port": port}):
                    output += spdy.reply(stream_id)
                    if port.isdecimal() and int(port) in ports_of(pod):
                        visits[stream_id] = (Visit(pod, served), request_id)
                    else:
                        refusal = _refusal(pod, port)
                        output += spdy.data(errors.pop(request_id, stream_id), refusal, is_last=True)
                        output += spdy.data(stream_id, b"", is_last=True)
                case StreamOpened(stream_id):
                    output += spdy.reset(stream_id)
                case DataReceived(stream_id, data, is_last) if stream_id in visits:
                    visit, request_id = visits[stream_id]
                    output += spdy.data(stream_id, answer) if (answer := await visit.receive(data)) else b""
                    if visit.is_over or is_last:
                        del visits[stream_id]
                        output += spdy.data(stream_id, b"", is_last=True)
                        if (error_id := errors.pop(request_id, None)) is not None:
                            output += spdy.data(error_id, b"", is_last=True)
                case StreamEnded(stream_id) if stream_id in visits:
                    errors.pop(visits.pop(stream_id)[1], None)
        if output:
            await socket.send(bytes(output))


def _refusal(pod: Object, port: str) -> bytes:
    return (
        f"error forwarding port {port} to pod {pod['metadata']['name']}: nothing listens there in the sandbox".encode()
    )
