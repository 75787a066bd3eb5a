"""The sandbox, on a loop of its own beside the tests, and a kubeconfig for it."""

from __future__ import annotations

import base64
import contextlib
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import trio
import trustme
import yaml

from sandbox.cluster import Sandbox, SandboxAddress

TOKEN = "the-token-of-the-sandbox"


@dataclass
class Running:
    """A sandbox in a thread of its own."""

    kubeconfig: Path
    url: str


@contextlib.contextmanager
def running_sandbox(directory: Path) -> Iterator[Running]:
    """kubectl sends no token without TLS, so there is some."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    started, address, stop = threading.Event(), [], []

    async def live() -> None:
        async with trio.open_nursery() as nursery:
            found: SandboxAddress = await nursery.start(Sandbox(token=TOKEN, tls=lambda: context).run)
            address.append(found.url)
            token = trio.lowlevel.current_trio_token()
            stop.append(lambda: trio.from_thread.run_sync(nursery.cancel_scope.cancel, trio_token=token))
            started.set()

    thread = threading.Thread(target=trio.run, args=(live,), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        path = directory / "sandbox.kubeconfig"
        authority_data = base64.b64encode(authority.cert_pem.bytes()).decode()
        cluster = {"server": address[0], "certificate-authority-data": authority_data}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "sandbox",
            "clusters": [{"name": "sandbox", "cluster": cluster}],
            "users": [{"name": "sandbox", "user": {"token": TOKEN}}],
            "contexts": [
                {"name": "sandbox", "context": {"cluster": "sandbox", "user": "sandbox", "namespace": "demo"}}
            ],
        }
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        yield Running(path, address[0])
    finally:
        stop[0]()
        thread.join(5)
        assert not thread.is_alive(), "the sandbox did not end within five seconds"
