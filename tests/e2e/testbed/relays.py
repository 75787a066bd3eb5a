"""Small servers that stand where a test wants to see, hold or refuse what passes: a gate, a reservoir, a CONNECT proxy.

They serve each connection in a thread of their own and end with the ``with`` block that started them.
"""

from __future__ import annotations

import base64
import contextlib
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

_BUFFER = 1 << 16


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    block_on_close = False

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        self._serve = serve

    def finish_request(self, request: object, client_address: object) -> None:
        assert isinstance(request, socket.socket)
        with contextlib.suppress(OSError):
            self._serve(request)

    @contextmanager
    def running(self) -> Iterator[int]:
        with ThreadPoolExecutor(1) as executor, self:
            executor.submit(self.serve_forever, poll_interval=0.05)
            try:
                yield int(self.server_address[1])
            finally:
                self.shutdown()


def _read_head(stream: socket.socket) -> bytes:
    """A head and whatever came with it; empty when the peer closed before."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = stream.recv(_BUFFER)
        if not more:
            return b""
        data += more
    return data


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Copy until the end of one direction, then end both."""
    with contextlib.suppress(OSError, ValueError):
        while data := source.recv(_BUFFER):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


class Gate:
    """Stands between agentk and the kube-apiserver, and keeps back the answers to upgrade requests.

    What is asked reaches the kube-apiserver at once, so that whatever it starts is started. ``held`` is set when the
    first answer to an upgrade has come and was kept back; ``upgrades`` counts the requests.
    """

    def __init__(self, *, upstream_port: int, upstream: ssl.SSLContext, certificate: Path, key: Path) -> None:
        self._upstream_port = upstream_port
        self._upstream = upstream
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._context.set_alpn_protocols(["http/1.1"])
        self.held = threading.Event()
        self.opened = threading.Event()
        self.upgrades = 0

    @contextmanager
    def running(self) -> Iterator[int]:
        """Serve inside the block; yields the port."""
        with _Server(self._serve).running() as port:
            try:
                yield port
            finally:
                self.opened.set()

    def _serve(self, plain: socket.socket) -> None:
        with self._context.wrap_socket(plain, server_side=True) as client:
            head = _read_head(client)
            if not head:
                return
            below = socket.create_connection(("127.0.0.1", self._upstream_port), timeout=10)
            below.settimeout(None)
            with self._upstream.wrap_socket(below, server_hostname="127.0.0.1") as server:
                upward = threading.Thread(target=_pump, args=(client, server), daemon=True)
                server.sendall(head)
                if b"\r\nupgrade:" in head.lower():
                    self.upgrades += 1
                    answer = _read_head(server)
                    self.held.set()
                    self.opened.wait(60)
                    client.sendall(answer)
                upward.start()
                _pump(server, client)


class Reservoir:
    """Stands between agentk and the kube-apiserver, and takes what the latter says at once, however slow agentk is.

    A kube-apiserver that has said everything closes, while its kernel may still have megabytes for agentk. A ping of
    kubectl which comes in those moments makes that kernel drop them (``kubelet/closing.go`` says more): 2 copies of 100,
    on a busy machine. Here nothing is left in that kernel, so what is missing in the end was lost behind this server.
    """

    def __init__(self, *, upstream_port: int) -> None:
        self._upstream_port = upstream_port

    @contextmanager
    def running(self) -> Iterator[int]:
        """Serve inside the block; yields the port."""
        with _Server(self._serve).running() as port:
            yield port

    def _serve(self, client: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", self._upstream_port), timeout=10) as server:
            server.settimeout(None)
            held: SimpleQueue[bytes] = SimpleQueue()
            others = [
                threading.Thread(target=self._pour, args=(held, client), daemon=True),
                threading.Thread(target=self._pass_up, args=(client, server), daemon=True),
            ]
            for thread in others:
                thread.start()
            with contextlib.suppress(OSError):
                while data := server.recv(_BUFFER):
                    held.put(data)
            held.put(b"")
            for thread in others:
                thread.join()

    @staticmethod
    def _pour(held: SimpleQueue[bytes], client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := held.get():
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)

    @staticmethod
    def _pass_up(client: socket.socket, server: socket.socket) -> None:
        """Read to the end also what the server does not take any more."""
        with contextlib.suppress(OSError):
            while data := client.recv(_BUFFER):
                with contextlib.suppress(OSError):
                    server.sendall(data)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)


class ConnectProxy:
    """An HTTP proxy for CONNECT, which leads every host to 127.0.0.1 and may ask for a password."""

    def __init__(self, *, user: str = "", password: str = "") -> None:
        self._wanted = base64.b64encode(f"{user}:{password}".encode()) if user else b""
        self.asked: list[str] = []
        self.heads: list[bytes] = []

    @contextmanager
    def running(self) -> Iterator[int]:
        """Serve inside the block; yields the port."""
        with _Server(self._serve).running() as port:
            yield port

    def _serve(self, client: socket.socket) -> None:
        head = _read_head(client)
        if not head:
            return
        self.heads.append(head)
        method, target, _ = head.split(b" ", 2)
        if method != b"CONNECT":
            client.sendall(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        if self._wanted and b"basic " + self._wanted.lower() not in head.lower():
            client.sendall(
                b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=test\r\n"
                b"Content-Length: 0\r\nConnection: close\r\n\r\n"
            )
            return
        self.asked.append(target.decode())
        with socket.create_connection(("127.0.0.1", int(target.rsplit(b":", 1)[1])), timeout=10) as server:
            server.settimeout(None)
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            upward = threading.Thread(target=_pump, args=(client, server), daemon=True)
            upward.start()
            _pump(server, client)
