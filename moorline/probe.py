"""Whether kubectl will work: one real GET /version through kas and agentk, over TLS, as any client would ask.

It speaks with the project's own HTTP/1.1 end and TLS transport. It does not judge the cluster beyond the answer.
"""

from __future__ import annotations

import dataclasses
import json
import ssl
import urllib.parse

import trio

from tunnel.errors import TunnelError
from tunnel.http1.client import Http1Client
from tunnel.messages import RequestHead
from tunnel.transports.tcp import TcpTransport
from tunnel.transports.tls import TlsTransport

PROBE_SECONDS = 15.0
"""For one try, from dialling to the last byte."""

_ANSWER_BYTES = 65_536


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back."""

    status: int
    """0 where there was no answer."""
    text: str
    """The version of the cluster where the status is 200; otherwise what went wrong, as kubectl would say it."""


async def ask_version(server: str, bearer: str, context: ssl.SSLContext) -> Answer:
    """Ask ``GET /version`` of the kube-apiserver behind a kubeconfig's ``server``.

    Raises nothing that the network causes. Cancelling is safe; every try has a deadline of `PROBE_SECONDS`.
    """
    try:
        with trio.fail_after(PROBE_SECONDS):
            return await _ask(server, bearer, context)
    except (TunnelError, OSError, trio.BrokenResourceError) as exc:
        return Answer(status=0, text=str(exc) or type(exc).__name__)
    except trio.TooSlowError:
        return Answer(status=0, text=f"no answer within {PROBE_SECONDS:g} s")


async def _ask(server: str, bearer: str, context: ssl.SSLContext) -> Answer:
    parts = urllib.parse.urlsplit(server)
    assert parts.hostname is not None
    stream = await trio.open_tcp_stream(parts.hostname, parts.port or 443)
    transport = TlsTransport(TcpTransport(stream.socket), context, server_side=False, server_hostname=parts.hostname)
    try:
        await transport.handshake()
        client = Http1Client(transport)
        head = RequestHead(
            method=b"GET",
            target=f"{parts.path}/version".encode("ascii"),
            authority=parts.netloc.encode("ascii"),
            fields=[(b"authorization", b"Bearer " + bearer.encode("ascii")), (b"accept", b"application/json")],
            ended=True,
        )
        exchange = await client.send(head, authority=head.authority)
        response = await exchange.receive_head()
        while response.status < 200:
            response = await exchange.receive_head()
        body = b""
        while len(body) < _ANSWER_BYTES and (data := await exchange.body.receive()):
            body += data
        return Answer(status=response.status, text=_text(response.status, body))
    finally:
        transport.abort()


def _text(status: int, body: bytes) -> str:
    """The interesting line of a version, or of a Status."""
    try:
        answer = json.loads(body)
        return str(answer["gitVersion"] if status == 200 else answer["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {status}, and a body that is neither a version nor a Status"
