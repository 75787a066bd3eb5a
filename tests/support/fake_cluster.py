"""A kube-apiserver of a few lines, on the standard library's server: independent of everything that is tested."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml


class FakeCluster(http.server.ThreadingHTTPServer):
    """Answers ``/version``, and holds ``?watch=1`` open after one event, until the end of the test."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.requests: list[tuple[str, dict[str, str]]] = []
        """Path and (lower-case) header fields of each request, in order."""
        self.closing = threading.Event()
        self.watches_ended = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is killed may leave its answer unread; anything else is worth a traceback."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeCluster

    def do_GET(self) -> None:
        self.server.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        if "watch=" in self.path:
            self._watch()
            return
        body = json.dumps({"gitVersion": "v1.36.3", "path": self.path}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _watch(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        event = b'{"type":"ADDED","object":{}}\n'
        self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))
        self.close_connection = True
        self.connection.settimeout(0.1)
        while not self.server.closing.is_set():
            try:
                if not self.connection.recv(1):
                    self.server.watches_ended += 1
                    return
            except TimeoutError:
                continue
            except OSError:
                self.server.watches_ended += 1
                return

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def fake_cluster(port: int = 0) -> Iterator[FakeCluster]:
    """A cluster for the length of the block."""
    with FakeCluster(port) as cluster:
        thread = threading.Thread(target=cluster.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield cluster
        finally:
            cluster.closing.set()
            cluster.shutdown()
            thread.join()


def write_kubeconfig(path: Path, port: int, *, token: str = "cluster-token") -> Path:
    """A kubeconfig that leads straight to the cluster."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "fake",
        "clusters": [{"name": "fake", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "fake", "user": {"token": token}}],
        "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
    }
    path.write_text(yaml.safe_dump(document))
    return path


def read_kubeconfig(path: Path) -> tuple[str, str, str]:
    """Server, bearer token, and the certificates to trust (PEM) of a kubeconfig."""
    document = yaml.safe_load(path.read_text())
    cluster = document["clusters"][0]["cluster"]
    authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
    return cluster["server"], document["users"][0]["user"]["token"], authority
