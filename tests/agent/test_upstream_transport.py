"""Connections to the kube-apiserver: TLS that is verified, proxies, and failures that say what to check."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio
import trustme
from support.agent import FixedCredentials

from agent.address import ApiServerAddress
from agent.upstream_transport import dialer_for, proxy_for
from tunnel.errors import HandshakeError
from tunnel.proxy_settings import ProxyUrl

CA = trustme.CA()


def trusting(ca: trustme.CA = CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca.configure_trust(context)
    return context


def credentials(port: int, *, context: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> FixedCredentials:
    fixed = FixedCredentials(ApiServerAddress(scheme="https", host=host, port=port))
    fixed.set_token(b"t", context)
    return fixed


@contextlib.asynccontextmanager
async def listening(handler: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[int]:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(functools.partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def greet_over_tls(stream: trio.SocketStream) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CA.issue_cert("api.test").configure_cert(context)
    tls = trio.SSLStream(stream, context, server_side=True)
    with contextlib.suppress(trio.BrokenResourceError):
        await tls.send_all(b"hello")
        await tls.receive_some()


async def test_the_certificate_must_have_the_name_that_the_kubeconfig_says():
    async with listening(greet_over_tls) as port:
        subject = credentials(port, context=trusting())
        subject.server_hostname = "api.test"
        transport = await dialer_for(subject, None)(subject.access)
        assert await transport.receive_some() == b"hello"
        transport.abort()
        subject.server_hostname = "127.0.0.1"
        with pytest.raises(HandshakeError, match=r"127\.0\.0\.1"):
            await dialer_for(subject, None)(subject.access)


async def test_a_server_that_another_ca_signed_is_refused():
    async with listening(greet_over_tls) as port:
        subject = credentials(port, context=trusting(trustme.CA()))
        subject.server_hostname = "api.test"
        with pytest.raises(HandshakeError, match="certificate"):
            await dialer_for(subject, None)(subject.access)


async def test_a_port_where_nobody_listens():
    async def never(_: trio.SocketStream) -> None:
        raise AssertionError

    async with listening(never) as port:
        pass
    subject = credentials(port)
    with pytest.raises(HandshakeError, match=f"127.0.0.1:{port}: Connection refused"):
        await dialer_for(subject, None)(subject.access)


async def test_a_name_that_does_not_resolve(monkeypatch):
    subject = credentials(1, host="does-not-exist.invalid")
    with pytest.raises(HandshakeError, match=r"cannot resolve does-not-exist\.invalid"):
        await dialer_for(subject, None)(subject.access)


async def test_without_file_descriptors_the_error_keeps_its_number(monkeypatch):
    """The pool tells "busy" from "unreachable" by it."""

    async def exhausted(*args: object, **kwargs: object) -> None:
        cause = OSError(errno.EMFILE, "Too many open files")
        raise OSError("all attempts to connect failed") from ExceptionGroup("attempts", [cause])

    monkeypatch.setattr(trio, "open_tcp_stream", exhausted)
    subject = credentials(1)
    with pytest.raises(OSError, match="Too many open files") as caught:
        await dialer_for(subject, None)(subject.access)

    assert caught.value.errno == errno.EMFILE


@dataclasses.dataclass
class ScriptedProxy:
    """Answers CONNECT with one status, and then speaks as the server behind it."""

    answer: bytes
    asked: bytes = b""

    async def serve(self, stream: trio.SocketStream) -> None:
        while b"\r\n\r\n" not in self.asked:
            self.asked += await stream.receive_some()
        await stream.send_all(self.answer)
        if b"200" in self.answer:
            await greet_over_tls(stream)


async def test_through_a_proxy_tls_is_spoken_with_the_server_behind_it():
    proxy = ScriptedProxy(b"HTTP/1.1 200 Connection established\r\n\r\n")
    async with listening(proxy.serve) as port:
        subject = credentials(6443, context=trusting(), host="api.test")
        transport = await dialer_for(subject, ProxyUrl.parse(f"http://u:p@127.0.0.1:{port}"))(subject.access)
        assert await transport.receive_some() == b"hello"
        transport.abort()

    assert proxy.asked.startswith(b"CONNECT api.test:6443 HTTP/1.1\r\nHost: api.test:6443\r\n")
    assert b"Proxy-Authorization: Basic dTpw\r\n" in proxy.asked
    assert b"Bearer" not in proxy.asked


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "407"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "does not allow"),
        (b"SSH-2.0\r\n\r\n", "not valid HTTP"),
        (b"", "closed the connection"),
    ],
)
async def test_a_proxy_that_refuses_is_named(answer, said):
    async with listening(ScriptedProxy(answer).serve) as port:
        subject = credentials(6443, context=trusting(), host="api.test")
        with pytest.raises(HandshakeError, match=said) as caught:
            await dialer_for(subject, ProxyUrl.parse(f"http://127.0.0.1:{port}"))(subject.access)

    assert f"127.0.0.1:{port}" in str(caught.value)


@pytest.mark.parametrize(
    ("proxy_url", "environment", "expected"),
    [
        (None, {}, None),
        ("http://kubeconfig:1", {"HTTPS_PROXY": "http://environment:1"}, "http://kubeconfig:1"),
        (None, {"HTTPS_PROXY": "http://environment:1"}, "http://environment:1"),
        (None, {"HTTPS_PROXY": "http://environment:1", "NO_PROXY": ".test"}, None),
        (None, {"HTTP_PROXY": "http://environment:1"}, None),
    ],
)
def test_which_proxy(proxy_url, environment, expected):
    subject = credentials(443, host="api.test")
    subject.proxy_url = proxy_url
    found = proxy_for(subject, environment)

    assert (str(found) if found is not None else None) == expected
