"""Accepting a tunnel: one HTTP/1.1 request from an agent on an accepted transport, and the answer to it.

Whether the agent may come in is the caller's decision. It accepts no sockets (`tunnel.listening`) and runs no tunnel
(`tunnel.connection`).
"""

from __future__ import annotations

import contextlib
import email.utils
from collections.abc import Awaitable, Callable

import trio

from tunnel.errors import HandshakeError, RemoteProtocolError
from tunnel.handshake import (
    HEAD_BYTES,
    Form,
    Hello,
    HelloRequest,
    Welcome,
    decode_hello,
    encode_refusal,
    encode_welcome,
)
from tunnel.head_reading import receive_head
from tunnel.http1.heads import HeadBuffer
from tunnel.transports.base import Transport
from tunnel.transports.carrier import Carrier
from tunnel.transports.websocket import WebSocketTransport

HEAD_SECONDS = 10.0
DECIDE_SECONDS = 10.0
ANSWER_SECONDS = 5.0


async def accept_tunnel(
    transport: Carrier, *, decide: Callable[[Hello], Awaitable[Welcome]]
) -> tuple[Transport, Hello, Welcome]:
    """Read an agent's request, have ``decide`` judge it, and answer. Returns a transport on which HTTP/2 may begin.

    ``decide`` refuses by raising `HandshakeError` with a status. Every refusal is answered, the transport closed, and
    the error raised for whoever logs it; `trio.BrokenResourceError` where the other side went away. Whatever goes
    wrong, cancellation included, the transport is closed.
    """
    try:
        decision = await _decide(transport, decide)
        if isinstance(decision, HandshakeError):
            await _refuse(transport, decision)
            raise decision
        request, welcome = decision
        answer = encode_welcome(welcome, request, date=email.utils.formatdate(usegmt=True))
        with trio.move_on_after(ANSWER_SECONDS) as patience:
            await transport.send_all(answer)
        if patience.cancelled_caught:
            raise trio.BrokenResourceError(f"the agent at {transport.info.peer} does not read our answer")
    except BaseException:
        transport.abort()
        raise
    if request.form is Form.WEBSOCKET:
        return WebSocketTransport(transport, client=False), request.hello, welcome
    return transport, request.hello, welcome


async def _decide(
    transport: Carrier, decide: Callable[[Hello], Awaitable[Welcome]]
) -> tuple[HelloRequest, Welcome] | HandshakeError:
    try:
        request = await _receive_hello(transport)
        return request, await _ask(decide, request.hello)
    except HandshakeError as error:
        return error


async def _receive_hello(transport: Carrier) -> HelloRequest:
    try:
        with trio.fail_after(HEAD_SECONDS):
            block = await receive_head(transport, HeadBuffer(), limit_bytes=HEAD_BYTES)
    except trio.TooSlowError:
        raise HandshakeError(f"no whole request within {HEAD_SECONDS:g} s", status=408, reason="timeout") from None
    except RemoteProtocolError as error:
        raise HandshakeError(str(error), status=error.status, reason="bad-request") from error
    if block is None:
        raise trio.BrokenResourceError("closed before a request was complete")
    return decode_hello(block)


async def _ask(decide: Callable[[Hello], Awaitable[Welcome]], hello: Hello) -> Welcome:
    try:
        with trio.fail_after(DECIDE_SECONDS):
            return await decide(hello)
    except trio.TooSlowError:
        raise HandshakeError(
            f"not decided within {DECIDE_SECONDS:g} s", status=503, reason="unavailable", retry_after=5.0
        ) from None


async def _refuse(transport: Carrier, error: HandshakeError) -> None:
    """Answer, and let the other side read it: a close with unread bytes would take the answer with it."""
    with trio.move_on_after(ANSWER_SECONDS), contextlib.suppress(trio.BrokenResourceError):
        await transport.send_all(encode_refusal(error, date=email.utils.formatdate(usegmt=True)))
        await transport.aclose()
