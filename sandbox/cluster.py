"""The sandbox as a whole: objects, what changes them by itself, and a listener on loopback."""

from __future__ import annotations

import dataclasses
import random
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import trio

from sandbox.admission import admit, identify
from sandbox.apiserver import ApiServer
from sandbox.controllers import Controllers
from sandbox.documents import encode, packaged
from sandbox.kinds import BY_NAME
from sandbox.kubelet import Kubelet
from sandbox.pods import PodStreams
from sandbox.recorder import Recorder
from sandbox.status import ApiError
from sandbox.store import Now, Store
from tunnel.http1.server import Http1Server
from tunnel.listening import listen, serve
from tunnel.messages import Fields
from tunnel.transports.base import Transport

TlsContext = Callable[[], ssl.SSLContext]


@dataclasses.dataclass(frozen=True, slots=True)
class SandboxAddress:
    """Where the sandbox listens."""

    host: str
    port: int
    url: str


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Sandbox:
    """A make-believe cluster for whoever has the token, on 127.0.0.1.

    Holds nothing beyond its life. ``tls`` gives the context of the listener (plain HTTP without it), ``seed`` decides
    about everything that is random, ``now`` about timestamps; what takes time follows Trio's clock.
    """

    def __init__(
        self, *, token: str, port: int = 0, tls: TlsContext | None = None, seed: int | None = None, now: Now = _utc_now
    ) -> None:
        if not token:
            raise ValueError("the sandbox needs a token, so that other users of this machine cannot use it")
        randomness = random.Random(seed)  # noqa: S311 - names and pauses, not secrets
        self.store = Store(now=now, randomness=randomness)
        self._port = port
        self._tls = tls
        recorder = Recorder(self.store, randomness)
        self._controllers = Controllers(self.store, recorder, randomness)
        self._kubelet = Kubelet(self.store, recorder, randomness)
        streams = PodStreams(self.store, self._kubelet)
        self._server = ApiServer(self.store, streams, randomness, token=token)
        self._seed(randomness)

    async def run(self, *, task_status: trio.TaskStatus[SandboxAddress] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen and live until cancelled; started once connections are accepted. Raises `OSError`."""
        listeners = await listen("127.0.0.1", self._port)
        port = listeners[0].getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._controllers.run)
            nursery.start_soon(self._kubelet.run)
            await nursery.start(partial(serve, listeners, self._connection, name="sandbox", tls=self._tls))
            scheme = "http" if self._tls is None else "https"
            task_status.started(SandboxAddress("127.0.0.1", port, f"{scheme}://127.0.0.1:{port}"))

    async def _connection(self, transport: Transport) -> None:
        await Http1Server(transport, self._server.handle, render_error=_render_error).run()

    def _seed(self, randomness: random.Random) -> None:
        for document in packaged("seed.yaml"):
            kind = BY_NAME[document["kind"]]
            document = identify(kind, document, "", "", randomness)
            self.store.create(kind, admit(kind, document, randomness))


def _render_error(status: int, message: str) -> tuple[Fields, bytes]:
    """The body of an answer to what is no request."""
    return [(b"content-type", b"application/json")], encode(ApiError(status, "BadRequest", message).document())
