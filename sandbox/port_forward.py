"""Port-forwarding to the page that a make-believe container serves, over SPDY in a WebSocket.

The page is made from the request head alone; one answer to a connection.
"""

from __future__ import annotations

import dataclasses

from sandbox.calls import Call
from sandbox.kinds import Object
from sandbox.logs import Log
from sandbox.spdy import DATA, RST_STREAM, SYN_STREAM, Frame, SpdyError, SpdyServer
from sandbox.websockets import accepted

PROTOCOL = "SPDY/3.1+portforward.k8s.io"
STREAMS = 200
HEAD_BYTES = 65_536


async def forward(call: Call, pod: Object, log: Log) -> None:
    """Answer a port-forward request; requests for the page are logged. Raises `ApiError` where it is none."""
    async with accepted(call, (PROTOCOL,)) as socket:
        forwarding = Forwarding(pod, log)
        while (message := await socket.receive()) is not None:
            try:
                answer = await forwarding.receive(message)
            except SpdyError:
                return
            if answer:
                await socket.send(answer)


@dataclasses.dataclass(slots=True)
class Connection:
    """One connection to the page: a stream for data, one for an error, and the request as far as it has come."""

    error_id: int
    head: bytearray = dataclasses.field(default_factory=bytearray)


class Forwarding:
    """The connections through one WebSocket."""

    def __init__(self, pod: Object, log: Log) -> None:
        self._pod = pod
        self._log = log
        self._spdy = SpdyServer()
        self._errors: dict[str, int] = {}
        self._connections: dict[int, Connection] = {}

    async def receive(self, message: bytes) -> bytes:
        """Take bytes as they come; gives what is to be sent. Raises `SpdyError`."""
        output = bytearray()
        for frame in self._spdy.receive(message):
            if frame.kind == SYN_STREAM:
                output += self._opened(frame)
            elif frame.kind == RST_STREAM:
                self._connections.pop(frame.stream_id, None)
            elif frame.kind == DATA and frame.stream_id in self._connections:
                output += await self._data(frame, self._connections[frame.stream_id])
        return bytes(output)

    def _opened(self, frame: Frame) -> bytes:
        headers, stream_id = frame.headers, frame.stream_id
        kind, request_id, port = (headers.get(name, "") for name in ("streamtype", "requestid", "port"))
        if len(self._connections) + len(self._errors) >= STREAMS:
            return self._spdy.reset(stream_id)
        if kind == "error":
            self._errors[request_id] = stream_id
            return self._spdy.reply(stream_id)
        if kind != "data" or request_id not in self._errors:
            return self._spdy.reset(stream_id)
        self._connections[stream_id] = Connection(self._errors.pop(request_id))
        ports = [
            item.get("containerPort") for one in self._pod["spec"]["containers"] for item in one.get("ports") or []
        ]
        if port in map(str, ports):
            return self._spdy.reply(stream_id)
        problem = f"error forwarding port {port} to pod {self._pod['metadata']['name']}"
        refusal = f"{problem}: nothing listens there in the sandbox".encode()
        return self._spdy.reply(stream_id) + self._ended(stream_id, refusal)

    async def _data(self, frame: Frame, connection: Connection) -> bytes:
        connection.head += frame.data
        if b"\r\n\r\n" in connection.head or len(connection.head) > HEAD_BYTES:
            method, _, rest = bytes(connection.head).partition(b" ")
            await self._log.write(b"GET %b 200 (from outside)\n" % rest.partition(b" ")[0])
            body = _page(self._pod).encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            answer = head.encode() + (b"" if method == b"HEAD" else body)
            return self._spdy.data(frame.stream_id, answer) + self._ended(frame.stream_id)
        return self._ended(frame.stream_id) if frame.is_last else b""

    def _ended(self, stream_id: int, error: bytes = b"") -> bytes:
        connection = self._connections.pop(stream_id)
        end = self._spdy.data(connection.error_id, error, is_last=True)
        return end + self._spdy.data(stream_id, b"", is_last=True)


def _page(pod: Object) -> str:
    """What the make-believe web server shows."""
    metadata, node = pod["metadata"], pod["spec"].get("nodeName")
    return (
        f"<!doctype html>\n<title>{metadata['name']}</title>\n<h1>Hello from the sandbox</h1>\n"
        f"<p>Pod {metadata['name']} in namespace {metadata['namespace']}, on node {node}. Nothing here is real.</p>\n"
    )
