"""Opening one connection to the kube-apiserver: TCP, maybe through a proxy, and TLS."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Mapping

import trio

from agent.credentials import Access, Credentials
from agent.pool import Dial
from tunnel.dial_address import DialAddress
from tunnel.errors import HandshakeError, RemoteProtocolError
from tunnel.head_reading import receive_head
from tunnel.http1.heads import HeadBuffer, parse_response_head
from tunnel.proxy_settings import ProxySettings, ProxyUrl
from tunnel.refusals import explain_proxy_refusal
from tunnel.transports.base import PATIENT_WRITE_SECONDS
from tunnel.transports.carrier import Carrier
from tunnel.transports.tcp import TcpTransport, format_address
from tunnel.transports.tls import TlsTransport
from tunnel.transports.tls_contexts import client_context

PROXY_HEAD_BYTES = 16_384

_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def dialer_for(credentials: Credentials, proxy: ProxyUrl | None) -> Dial:
    """What opens connections to this kube-apiserver. The caller sets a deadline round it."""
    address = credentials.address

    async def dial(access: Access) -> Carrier:
        target = format_address(address.host, address.port)
        carrier: Carrier
        if proxy is None:
            carrier = await _connect(address.host, address.port)
        else:
            carrier = await _connect(proxy.host, proxy.port)
        try:
            if proxy is not None:
                if proxy.scheme == "https":
                    carrier = await _start_tls(carrier, client_context(), proxy.host)
                await _ask_proxy(carrier, proxy, target)
            if access.context is not None:
                carrier = await _start_tls(carrier, access.context, credentials.server_hostname)
        except BaseException:
            carrier.abort()
            raise
        return carrier

    return dial


def proxy_for(credentials: Credentials, environment: Mapping[str, str]) -> ProxyUrl | None:
    """The proxy that the kubeconfig names, else the one of the environment. Raises `ValueError`.

    The caller does not ask for a service account's own cluster: `HTTPS_PROXY` is there to reach kas.
    """
    if credentials.proxy_url is not None:
        return ProxyUrl.parse(credentials.proxy_url)
    address = credentials.address
    return ProxySettings.from_environment(environment).for_address(
        DialAddress(scheme=address.scheme, host=address.host, port=address.port)
    )


async def _connect(host: str, port: int) -> TcpTransport:
    try:
        stream = await trio.open_tcp_stream(host, port)
    except socket.gaierror as exc:
        raise HandshakeError(f"cannot resolve {host}: {exc.strerror}", reason="dns") from exc
    except OSError as exc:
        causes = _causes(exc)
        for cause in causes:
            if cause.errno in _NO_ROOM:
                raise cause from exc
        reasons = "; ".join(dict.fromkeys(os.strerror(cause.errno) if cause.errno else str(cause) for cause in causes))
        raise HandshakeError(
            f"cannot connect to {format_address(host, port)}: {reasons}", reason="unreachable"
        ) from exc
    return TcpTransport(stream.socket, write_progress_seconds=PATIENT_WRITE_SECONDS)


def _causes(error: BaseException) -> list[OSError]:
    """The errors behind a failure that tried several addresses."""
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup):
        return [found for member in cause.exceptions for found in _causes(member)]
    if isinstance(cause, OSError):
        return _causes(cause)
    return [error] if isinstance(error, OSError) else []


async def _start_tls(lower: Carrier, context: ssl.SSLContext, server_hostname: str) -> TlsTransport:
    transport = TlsTransport(lower, context, server_side=False, server_hostname=server_hostname)
    await transport.handshake()
    return transport


async def _ask_proxy(carrier: Carrier, proxy: ProxyUrl, authority: str) -> None:
    credentials = proxy.basic_credentials
    authorization = b"Proxy-Authorization: %b\r\n" % credentials if credentials is not None else b""
    target = authority.encode("ascii")
    try:
        await carrier.send_all(b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (target, target, authorization))
        block = await receive_head(carrier, HeadBuffer(), limit_bytes=PROXY_HEAD_BYTES)
        if block is None:
            raise HandshakeError(f"proxy {proxy} closed the connection instead of answering", reason="proxy")
        head, _ = parse_response_head(block, b"CONNECT")
    except trio.BrokenResourceError as exc:
        raise HandshakeError(f"proxy {proxy}: the connection broke: {exc}", reason="proxy") from exc
    except RemoteProtocolError as exc:
        raise HandshakeError(f"proxy {proxy}: its answer is not valid HTTP: {exc}", reason="proxy") from exc
    if not 200 <= head.status < 300:
        raise explain_proxy_refusal(
            head, b"", proxy=str(proxy), authority=authority, with_credentials=credentials is not None
        )
