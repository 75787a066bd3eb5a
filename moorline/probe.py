"""Whether kubectl will work: one real request through kas and agentk, over TLS, as any client would ask.

It speaks with the project's own HTTP/1.1 end and TLS transport. It does not judge the cluster beyond the answer.
"""

from __future__ import annotations

import dataclasses
import json
import ssl
import urllib.parse
from collections.abc import Callable
from typing import Any

import trio

from tunnel.errors import TunnelError
from tunnel.http1.client import Http1Client
from tunnel.messages import RequestHead
from tunnel.transports.tcp import TcpTransport
from tunnel.transports.tls import TlsTransport

PROBE_SECONDS = 15.0
"""For one try, from dialling to the last byte."""

NODES = "/api/v1/nodes"

_TABLE = b"application/json;as=Table;v=v1;g=meta.k8s.io"
_ANSWER_BYTES = 65_536


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back."""

    status: int
    """0 where there was no answer."""
    text: str
    """What was asked for where the status is 200; otherwise what went wrong, as kubectl would say it."""


async def ask_version(server: str, bearer: str, context: ssl.SSLContext) -> Answer:
    """Ask ``GET /version`` of the kube-apiserver behind a kubeconfig's ``server``; the text is the version.

    Raises nothing that the network causes. Cancelling is safe; every try has a deadline of `PROBE_SECONDS`.
    """
    return await _ask(server, bearer, context, target="/version", accept=b"application/json", read=_version)


async def ask_nodes(server: str, bearer: str, context: ssl.SSLContext) -> Answer:
    """Ask for the first nodes, as kubectl does: the text is the table that it would print. Otherwise as above."""
    return await _ask(server, bearer, context, target=f"{NODES}?limit=20&includeObject=None", accept=_TABLE, read=_rows)


async def _ask(
    server: str, bearer: str, context: ssl.SSLContext, *, target: str, accept: bytes, read: Callable[[Any], str]
) -> Answer:
    try:
        with trio.fail_after(PROBE_SECONDS):
            status, body = await _get(server, bearer, context, target, accept)
    except (TunnelError, OSError, trio.BrokenResourceError) as exc:
        return Answer(status=0, text=str(exc) or type(exc).__name__)
    except trio.TooSlowError:
        return Answer(status=0, text=f"no answer within {PROBE_SECONDS:g} s")
    try:
        answer = json.loads(body)
        return Answer(status=status, text=read(answer) if status == 200 else str(answer["message"]))
    except (ValueError, KeyError, TypeError):
        return Answer(status=status, text=f"status {status}, and a body that is neither the answer nor a Status")


async def _get(server: str, bearer: str, context: ssl.SSLContext, target: str, accept: bytes) -> tuple[int, bytes]:
    parts = urllib.parse.urlsplit(server)
    assert parts.hostname is not None
    stream = await trio.open_tcp_stream(parts.hostname, parts.port or 443)
    transport = TlsTransport(TcpTransport(stream.socket), context, server_side=False, server_hostname=parts.hostname)
    try:
        await transport.handshake()
        client = Http1Client(transport)
        head = RequestHead(
            method=b"GET",
            target=f"{parts.path}{target}".encode("ascii"),
            authority=parts.netloc.encode("ascii"),
            fields=[(b"authorization", b"Bearer " + bearer.encode("ascii")), (b"accept", accept)],
            ended=True,
        )
        exchange = await client.send(head, authority=head.authority)
        response = await exchange.receive_head()
        while response.status < 200:
            response = await exchange.receive_head()
        body = b""
        while len(body) < _ANSWER_BYTES and (data := await exchange.body.receive()):
            body += data
        return response.status, body
    finally:
        transport.abort()


def _version(answer: Any) -> str:
    return str(answer["gitVersion"])


def _rows(answer: Any) -> str:
    """The columns of a Table that are shown without ``-o wide``, aligned."""
    shown = [(index, column) for index, column in enumerate(answer["columnDefinitions"]) if not column.get("priority")]
    lines = [[str(column["name"]).upper() for _, column in shown]]
    lines += [[str(row["cells"][index]) for index, _ in shown] for row in answer["rows"]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("   ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
