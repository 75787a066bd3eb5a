"""Opening a tunnel from the agent's side: connect, maybe through a proxy, TLS, handshake.

Each step has a deadline and, where it fails, one line that says which step it was, what came back and what to check. It
tries once; when to try again is the caller's business. `dial` is all steps; they are functions of their own for
`moorline doctor`, which tells how each of them went.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

import trio

from tunnel.dial_address import DialAddress
from tunnel.errors import HandshakeError, RemoteProtocolError
from tunnel.handshake import HANDSHAKE_LIMITS, HEAD_BYTES, Form, Hello, Welcome, decode_welcome, encode_hello
from tunnel.head_reading import receive_head
from tunnel.http1.heads import HeadBuffer, parse_response_head
from tunnel.messages import ResponseHead
from tunnel.proxy_settings import NO_PROXIES, ProxySettings, ProxyUrl
from tunnel.refusals import BODY_BYTES, explain_garbage, explain_proxy_refusal, explain_refusal
from tunnel.transports.base import Transport
from tunnel.transports.carrier import Carrier
from tunnel.transports.tcp import TcpTransport, format_address
from tunnel.transports.tls import TlsTransport
from tunnel.transports.tls_contexts import client_context
from tunnel.transports.tls_errors import explain_alert
from tunnel.transports.websocket import WebSocketTransport

__all__ = [
    "Answer",
    "DialAddress",
    "ProxySettings",
    "aborting_on_failure",
    "ask_kas",
    "ask_proxy",
    "connect",
    "dial",
    "new_websocket_key",
    "resolve",
    "start_tls",
    "understand",
]

CONNECT_SECONDS = 10.0
PROXY_SECONDS = 10.0
UPGRADE_SECONDS = 10.0
BODY_SECONDS = 1.0
"""How long to wait for the body of a refusal, which only makes the message better."""

_INTERIM_RESPONSES = 8


class Answer(NamedTuple):
    """What came back to the request for a tunnel."""

    head: ResponseHead
    body: bytes
    """The beginning of it; empty where the head is a 101."""


async def dial(
    address: DialAddress,
    hello: Hello,
    *,
    tls: ssl.SSLContext | None = None,
    server_name: str | None = None,
    proxy: ProxySettings = NO_PROXIES,
    proxy_tls: ssl.SSLContext | None = None,
    extra_headers: Sequence[tuple[str, str]] = (),
    insecure_plaintext: bool = False,
) -> tuple[Transport, Welcome]:
    """Open a tunnel's transport at ``address`` and introduce ourselves.

    ``tls`` is the context for kas (`client_context` with ALPN ``http/1.1`` by default), ``server_name`` the name to
    verify instead of the host, ``proxy_tls`` the context for an ``https://`` proxy. The token goes to kas alone: never
    to a proxy, never to where a redirect points, and without TLS only with ``insecure_plaintext``.

    Raises `HandshakeError` for whatever goes wrong outside; `LocalProtocolError` for an extra header that cannot be
    sent. Nothing stays open then, nor where it is cancelled.
    """
    if not address.is_encrypted and not insecure_plaintext:
        raise HandshakeError(
            f"{address}: without TLS anybody on the way could read the token: use {_encrypted(address)}://, or allow "
            "it with --insecure-plaintext",
            reason="plaintext",
        )
    websocket_key = new_websocket_key(address.form)
    request = encode_hello(
        hello,
        form=address.form,
        authority=address.authority,
        path_prefix=address.path_prefix,
        websocket_key=websocket_key,
        extra_headers=extra_headers,
    )
    carrier = await _reach(address, proxy.for_address(address), proxy_tls)
    async with aborting_on_failure(carrier):
        if address.is_encrypted:
            context = tls if tls is not None else client_context(alpn=("http/1.1",))
            carrier = await start_tls(carrier, context, server_name or address.host, what=str(address))
        answer = await ask_kas(carrier, request, address)
        welcome = understand(answer, hello=hello, address=address, websocket_key=websocket_key)
    if address.form is Form.WEBSOCKET:
        return WebSocketTransport(carrier, client=True), welcome
    return carrier, welcome


def new_websocket_key(form: Form) -> bytes:
    """The key of a handshake; empty for the form that has none."""
    return base64.b64encode(secrets.token_bytes(16)) if form is Form.WEBSOCKET else b""


def _encrypted(address: DialAddress) -> str:
    return "wss" if address.form is Form.WEBSOCKET else "https"


@contextlib.asynccontextmanager
async def aborting_on_failure(carrier: Carrier) -> AsyncIterator[None]:
    """Leave nothing open where the block fails or is cancelled."""
    try:
        yield
    except BaseException:
        carrier.abort()
        raise


async def _reach(address: DialAddress, proxy: ProxyUrl | None, proxy_tls: ssl.SSLContext | None) -> Carrier:
    """A byte stream to the host and port of ``address``."""
    if proxy is None:
        return await connect(address.host, address.port, what=str(address))
    carrier = await connect(proxy.host, proxy.port, what=f"proxy {proxy}")
    async with aborting_on_failure(carrier):
        return await ask_proxy(carrier, proxy, format_address(address.host, address.port), tls=proxy_tls)


async def resolve(host: str, port: int, *, what: str) -> list[str]:
    """The IP addresses of a host, in the order in which they would be tried.

    `connect` looks them up by itself. Raises `HandshakeError` as it does.
    """
    try:
        with trio.fail_after(CONNECT_SECONDS):
            found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except trio.TooSlowError:
        raise HandshakeError(f"{what}: {host} was not resolved within {CONNECT_SECONDS:g} s", reason="dns") from None
    except socket.gaierror as error:
        raise _no_such_host(error, host, what) from error
    except UnicodeError as error:
        raise HandshakeError(f"{what}: {host} is not a host name: {error}", reason="dns") from error
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


async def connect(host: str, port: int, *, what: str) -> TcpTransport:
    """Connect to whichever address of the host answers first (RFC 8305). Raises `HandshakeError`."""
    try:
        with trio.fail_after(CONNECT_SECONDS):
            stream = await trio.open_tcp_stream(host, port)
    except trio.TooSlowError:
        raise HandshakeError(
            f"{what}: no TCP connection within {CONNECT_SECONDS:g} s: check host, port, firewalls and HTTPS_PROXY",
            reason="timeout",
        ) from None
    except socket.gaierror as error:
        raise _no_such_host(error, host, what) from error
    except (OSError, UnicodeError) as error:
        raise HandshakeError(
            f"{what}: cannot connect: {'; '.join(_reasons(error.__cause__ or error))}", reason="unreachable"
        ) from error
    return TcpTransport(stream.socket)


def _no_such_host(error: socket.gaierror, host: str, what: str) -> HandshakeError:
    return HandshakeError(f"{what}: cannot resolve {host}: {error.strerror}", reason="dns")


def _reasons(error: BaseException) -> list[str]:
    """The different texts of a failure that may be a group: one for each address that was tried."""
    if isinstance(error, BaseExceptionGroup):
        return list(dict.fromkeys(reason for member in error.exceptions for reason in _reasons(member)))
    if isinstance(error, OSError) and error.errno is not None:
        return [os.strerror(error.errno)]
    return [str(error)]


async def start_tls(lower: Carrier, context: ssl.SSLContext, server_name: str, *, what: str) -> TlsTransport:
    """Speak TLS on ``lower``, which is aborted where that fails. Raises `HandshakeError`."""
    try:
        transport = TlsTransport(lower, context, server_side=False, server_hostname=server_name)
        await transport.handshake()
    except ValueError as error:
        lower.abort()
        raise HandshakeError(f"{what}: {server_name!r} is no name for TLS: {error}", reason="tls-name") from error
    except HandshakeError as error:
        raise HandshakeError(f"{what}: {error}", reason=error.reason) from error
    return transport


async def ask_proxy(carrier: Carrier, proxy: ProxyUrl, authority: str, *, tls: ssl.SSLContext | None = None) -> Carrier:
    """Have the proxy at the other end of ``carrier`` connect us to ``authority``. Raises `HandshakeError`.

    ``tls`` is the context for an ``https://`` proxy. The proxy's answer is all that it gets to say.
    """
    what = f"proxy {proxy}"
    if proxy.scheme == "https":
        carrier = await start_tls(carrier, tls if tls is not None else client_context(), proxy.host, what=what)
    try:
        with trio.fail_after(PROXY_SECONDS):
            await _send_connect(carrier, proxy, authority)
    except trio.TooSlowError:
        raise HandshakeError(f"{what}: no answer to CONNECT within {PROXY_SECONDS:g} s", reason="timeout") from None
    except trio.BrokenResourceError as error:
        raise HandshakeError(f"{what}: the connection broke: {error}", reason="proxy") from error
    return carrier


async def _send_connect(carrier: Carrier, proxy: ProxyUrl, authority: str) -> None:
    credentials = proxy.basic_credentials
    authorization = b"Proxy-Authorization: %b\r\n" % credentials if credentials is not None else b""
    await carrier.send_all(
        b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (authority.encode(), authority.encode(), authorization)
    )
    head = await _receive_response(carrier, address=f"proxy {proxy}", method=b"CONNECT")
    if not 200 <= head.status < 300:
        body = await _receive_body(carrier)
        raise explain_proxy_refusal(
            head, body, proxy=str(proxy), authority=authority, with_credentials=credentials is not None
        )


async def ask_kas(carrier: Carrier, request: bytes, address: DialAddress) -> Answer:
    """Send the request of `encode_hello` and receive the answer to it. Raises `HandshakeError` where there is none."""
    try:
        with trio.fail_after(UPGRADE_SECONDS):
            await carrier.send_all(request)
            head = await _receive_response(carrier, address=str(address), method=b"GET")
    except trio.TooSlowError:
        raise HandshakeError(
            f"{address}: connected, but no answer to the handshake within {UPGRADE_SECONDS:g} s: check the port, and "
            "whether something on the way holds upgrades back",
            reason="timeout",
        ) from None
    except trio.BrokenResourceError as error:
        raise _explain_break(error, address) from error
    return Answer(head, b"" if head.status == 101 else await _receive_body(carrier))


def understand(answer: Answer, *, hello: Hello, address: DialAddress, websocket_key: bytes) -> Welcome:
    """What kas said. Raises `HandshakeError` where it refused, or where the answer is no kas's."""
    head, body = answer
    if head.status == 101:
        return decode_welcome(head, hello=hello, form=address.form, websocket_key=websocket_key, address=str(address))
    raise explain_refusal(head, body, hello=hello, form=address.form, address=str(address))


def _explain_break(error: trio.BrokenResourceError, address: DialAddress) -> HandshakeError:
    cause = error.__cause__
    alert = explain_alert(cause) if isinstance(cause, ssl.SSLError) else None
    if alert is not None:  # with TLS 1.3 a server looks at a client's certificate after the handshake
        return HandshakeError(f"{address}: TLS failed: {alert[1]}", reason=alert[0])
    return HandshakeError(f"{address}: the connection broke during the handshake: {error}", reason="broken")


async def _receive_response(carrier: Carrier, *, address: str, method: bytes) -> ResponseHead:
    """The final response head, or a 101."""
    for _ in range(_INTERIM_RESPONSES):
        buffer = HeadBuffer()
        try:
            block = await receive_head(carrier, buffer, limit_bytes=HEAD_BYTES)
            if block is None:
                raise explain_garbage(buffer.take_all(), address=address)
            head, _framing = parse_response_head(block, method, limits=HANDSHAKE_LIMITS)
        except RemoteProtocolError as error:
            received = buffer.take_all()
            if received:
                raise explain_garbage(received, address=address) from error
            raise HandshakeError(f"{address}: the answer is not valid HTTP: {error}", reason="not-http") from error
        if head.status == 101 or head.status >= 200:
            return head
    raise HandshakeError(f"{address}: nothing but interim answers", reason="not-http")


async def _receive_body(carrier: Carrier) -> bytes:
    """The beginning of the body of a refusal, as far as it comes quickly. Framing does not matter for an excerpt."""
    body = bytearray()
    with trio.move_on_after(BODY_SECONDS), contextlib.suppress(trio.BrokenResourceError):
        while len(body) < BODY_BYTES:
            data = await carrier.receive_some()
            if not data:
                break
            body += data
    return bytes(body[:BODY_BYTES])
