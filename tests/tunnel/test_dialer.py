from __future__ import annotations

import contextlib
import socket
import ssl
from functools import partial

import pytest
import trio
import trio_websocket
from support.fake_proxy import FakeProxy
from support.transport_pairs import (
    CA,
    SERVER_CERTIFICATE,
    SERVER_NAME,
    client_tls,
    closing,
    receive_exactly,
    server_tls,
)

from tunnel import dialer
from tunnel.acceptor import accept_tunnel
from tunnel.dialer import DialAddress, ProxySettings, dial, resolve
from tunnel.errors import HandshakeError, LocalProtocolError
from tunnel.handshake import Hello, Welcome
from tunnel.listening import listen, serve
from tunnel.proxy_settings import ProxyUrl
from tunnel.transports import tcp, tls

HELLO = Hello(token="mla_secret", agent_version="0.1.0", replica="agentk-0", process="p1")
WELCOME = Welcome(kas_id="kas-1", tunnel_id="t-1", agent_id="prod-eu")


@pytest.fixture(autouse=True)
def closes_quickly(monkeypatch):
    for module in (tcp, tls):
        monkeypatch.setattr(module, "CLOSE_SECONDS", 0.05)


@contextlib.asynccontextmanager
async def kas(*, server_context: ssl.SSLContext | None = None):
    """An agent listener that takes everybody and sends everything back; yields its port."""
    heard: list[Hello] = []

    async def decide(hello: Hello) -> Welcome:
        heard.append(hello)
        return WELCOME

    async def echo(transport) -> None:
        with contextlib.suppress(HandshakeError, trio.BrokenResourceError):
            transport, _, _ = await accept_tunnel(transport, decide=decide)
            while data := await transport.receive_some():
                await transport.send_all(data)
            await transport.aclose()

    listeners = await listen("127.0.0.1", 0)
    async with trio.open_nursery() as nursery:
        make_tls = None if server_context is None else lambda: server_context
        await nursery.start(partial(serve, listeners, echo, name="agent listener", tls=make_tls))
        yield listeners[0].getsockname()[1], heard
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def scripted(answer: bytes | None):
    """Something that answers whatever comes with ``answer`` (None: not at all); yields its port and what came."""
    received = bytearray()

    async def serve_one(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            received.extend(await stream.receive_some())
            if answer is not None:
                await stream.send_all(answer)
                await stream.aclose()
            else:
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve_one, 0)
        yield listeners[0].socket.getsockname()[1], received
        nursery.cancel_scope.cancel()


plain = partial(dial, insecure_plaintext=True)


async def refusal(port: int, *, scheme: str = "http", **options) -> HandshakeError:
    with pytest.raises(HandshakeError) as caught:
        await plain(DialAddress.parse(f"{scheme}://127.0.0.1:{port}"), HELLO, **options)
    assert "mla_secret" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("scheme", ["https", "wss", "http", "ws"])
async def test_all_four_kinds_of_address_lead_to_a_tunnel(scheme):
    is_encrypted = scheme in ("https", "wss")
    async with kas(server_context=server_tls() if is_encrypted else None) as (port, heard):
        address = DialAddress.parse(f"{scheme}://127.0.0.1:{port}/some/prefix")
        transport, welcome = await dial(
            address, HELLO, tls=client_tls(), server_name=SERVER_NAME, insecure_plaintext=not is_encrypted
        )
        async with closing(transport):
            assert welcome == WELCOME
            assert heard == [HELLO]
            expected = {"https": "tls", "wss": "websocket", "http": "tcp", "ws": "websocket"}[scheme]
            assert transport.info.kind == expected
            await transport.send_all(b"PRI * HTTP/2.0")
            assert await receive_exactly(transport, 14) == b"PRI * HTTP/2.0"


async def test_bytes_right_behind_the_101_belong_to_the_tunnel():
    answer = (
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: moorline/1\r\nMoorline-Version: 1\r\n"
        b"Moorline-Kas: k\r\nMoorline-Tunnel: t\r\nMoorline-Agent: a\r\n\r\nPRI *"
    )
    async with scripted(b"HTTP/1.1 103 Early Hints\r\n\r\n" + answer) as (port, _):
        transport, welcome = await plain(DialAddress.parse(f"http://127.0.0.1:{port}"), HELLO)
        async with closing(transport):
            assert welcome.kas_id == "k"
            assert await transport.receive_some() == b"PRI *"


async def test_a_host_is_resolved_to_addresses():
    assert await resolve("127.0.0.1", 80, what="kas") == ["127.0.0.1"]
    assert "127.0.0.1" in await resolve("localhost", 80, what="kas")
    for host, words in (
        ("kas.invalid", "kas: cannot resolve kas.invalid: "),
        ("a" * 64 + ".test", "is not a host name"),
    ):
        with pytest.raises(HandshakeError, match=words) as caught:
            await resolve(host, 80, what="kas")
        assert caught.value.reason == "dns"


async def test_without_tls_nothing_is_sent_unless_that_was_asked_for():
    async with scripted(None) as (port, received):
        for scheme, other in (("http", "https"), ("ws", "wss")):
            with pytest.raises(HandshakeError, match=f"use {other}://, or allow it with --insecure-plaintext"):
                await dial(DialAddress.parse(f"{scheme}://127.0.0.1:{port}"), HELLO)
        assert received == b""


@pytest.mark.parametrize(
    ("answer", "reason", "words"),
    [
        (b"", "no-answer", "the connection was closed without an answer"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "not-http", "it begins with 'SSH-2.0-OpenSSH_9.6'"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "is-tls", "it speaks TLS on this port"),
        (b"HTTP/1.1 two hundred\r\n\r\n", "not-http", "the answer is not valid HTTP: malformed status line"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000, "not-http", "the answer is not HTTP/1.1"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 20, "not-http", "nothing but interim answers"),
        (b"HTTP/1.1 502 Bad Gateway\r\nServer: nginx\r\n\r\n<html>", "bad-gateway", "(Server: nginx, body: <html>)"),
        (b"HTTP/1.1 302 Found\r\nLocation: https://elsewhere.test/\r\n\r\n", "redirect", "https://elsewhere.test/"),
        (b"HTTP/1.1 503 Busy\r\nRetry-After: 3\r\n\r\n" + b"x" * 100_000, "unavailable", "trying again in 3 s"),
        (b"HTTP/1.1 101 X\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n", "not-a-kas", "upgraded to 'h2c'"),
    ],
)
async def test_what_answers_and_is_no_kas_is_explained(answer, reason, words):
    async with scripted(answer) as (port, received):
        error = await refusal(port)
        assert words in str(error)
        assert error.reason == reason
        assert f"http://127.0.0.1:{port}: " in str(error)
        assert received.startswith(b"GET /agent/v1/tunnel HTTP/1.1\r\n")


async def test_a_kas_that_does_not_answer_is_given_up_in_time(monkeypatch):
    monkeypatch.setattr(dialer, "UPGRADE_SECONDS", 0.1)
    async with scripted(None) as (port, _):
        error = await refusal(port)
        assert error.reason == "timeout"
        assert "connected, but no answer to the handshake within 0.1 s" in str(error)


async def test_a_port_on_which_nobody_listens_is_named():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        error = await refusal(port)
    assert str(error) == f"http://127.0.0.1:{port}: cannot connect: Connection refused"
    assert error.reason == "unreachable"


async def test_a_name_that_does_not_resolve_is_named():
    with pytest.raises(HandshakeError, match=r"cannot resolve nowhere\.invalid: ") as caught:
        await plain(DialAddress.parse("http://nowhere.invalid"), HELLO)
    assert caught.value.reason == "dns"


class TwoAddresses(trio.abc.HostnameResolver):
    """Knows one name, with an address on which nobody listens before the right one."""

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):  # noqa: A002
        assert host == b"kas.test"
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, ("127.0.0.2", port)), (*kind, ("127.0.0.1", port))]

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


async def test_the_next_address_is_tried_where_the_first_refuses():
    trio.socket.set_custom_hostname_resolver(TwoAddresses())
    async with kas() as (port, _):
        transport, _ = await plain(DialAddress.parse(f"http://kas.test:{port}"), HELLO)
        async with closing(transport):
            assert transport.info.peer == f"127.0.0.1:{port}"


async def test_connecting_has_a_deadline(monkeypatch):
    monkeypatch.setattr(dialer, "CONNECT_SECONDS", 0.1)

    async def never(*_args, **_options):
        await trio.sleep_forever()

    monkeypatch.setattr(trio, "open_tcp_stream", never)
    error = await refusal(9)
    assert error.reason == "timeout"
    assert "no TCP connection within 0.1 s: check host, port, firewalls and HTTPS_PROXY" in str(error)


async def test_a_certificate_for_another_name_is_refused_before_the_token_is_sent():
    async with kas(server_context=server_tls(CA.issue_cert("other.test"))) as (port, heard):
        error = await refusal(port, scheme="https", tls=client_tls())
        assert error.reason == "tls-name-mismatch"
        assert heard == []


async def test_without_a_context_the_cas_of_the_system_decide():
    async with kas(server_context=server_tls()) as (port, heard), FakeProxy(target=port).running() as proxy:
        error = await refusal(port, scheme="https", server_name=SERVER_NAME)
        assert error.reason == "tls-unknown-ca"
        proxy.tls = server_tls()
        with pytest.raises(HandshakeError, match="proxy https://127") as caught:
            await dial(OUTSIDE, HELLO, proxy=through(proxy, scheme="https"))
        assert caught.value.reason == "tls-unknown-ca"
        assert heard == []


async def test_a_server_name_that_cannot_be_one_is_refused():
    async with kas(server_context=server_tls()) as (port, _):
        error = await refusal(port, scheme="https", tls=client_tls(), server_name="." + SERVER_NAME)
        assert error.reason == "tls-name"


async def test_a_client_certificate_that_is_missing_is_explained_though_tls_1_3_tells_late():
    context = server_tls()
    context.verify_mode = ssl.CERT_REQUIRED
    CA.configure_trust(context)
    async with kas(server_context=context) as (port, _):
        error = await refusal(port, scheme="https", tls=client_tls(), server_name=SERVER_NAME)
        assert error.reason == "tls-client-certificate"
        assert "it asks for a client certificate: configure one" in str(error)


async def test_extra_headers_reach_what_is_in_front_and_cannot_break_the_handshake():
    async with scripted(b"") as (port, received):
        await refusal(port, extra_headers=[("X-Gate", "open")])
        assert b"\r\nx-gate: open\r\n" in received
        with pytest.raises(LocalProtocolError):
            await refusal(port, extra_headers=[("Authorization", "x")])


async def test_cancelling_leaves_no_connection_open():
    closed = trio.Event()

    async def notice_end(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass
        closed.set()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, notice_end, 0)
        port = listeners[0].socket.getsockname()[1]
        with trio.move_on_after(0.1) as scope:
            await plain(DialAddress.parse(f"http://127.0.0.1:{port}"), HELLO)
        assert scope.cancelled_caught
        with trio.fail_after(2):
            await closed.wait()
        nursery.cancel_scope.cancel()


async def test_a_foreign_websocket_server_is_no_kas():
    async def serve_websocket(request) -> None:
        await request.accept(subprotocol="moorline.v1")
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        server = await nursery.start(trio_websocket.serve_websocket, serve_websocket, "127.0.0.1", 0, None)
        error = await refusal(server.port, scheme="ws")
        assert "no kas: its Moorline-Version is ''" in str(error)
        nursery.cancel_scope.cancel()


def through(proxy: FakeProxy, *, scheme: str = "http", user: str = "", password: str = "") -> ProxySettings:
    url = ProxyUrl(scheme=scheme, host="127.0.0.1", port=proxy.port, user=user, password=password)
    return ProxySettings(https_proxy=url, http_proxy=url)


OUTSIDE = DialAddress.parse("https://kas.test:8443")
"""An address to which nobody but the proxy has a way."""


@pytest.mark.parametrize("scheme", ["https", "wss"])
async def test_a_proxy_carries_the_tunnel_and_never_sees_the_token(scheme):
    async with (
        kas(server_context=server_tls()) as (port, heard),
        FakeProxy(target=port, credentials="user:p@ss").running() as proxy,
    ):
        transport, welcome = await dial(
            DialAddress.parse(f"{scheme}://kas.test:8443"),
            HELLO,
            tls=client_tls(),
            proxy=through(proxy, user="user", password="p@ss"),
        )
        async with closing(transport):
            assert welcome == WELCOME
            assert heard == [HELLO]
            await transport.send_all(b"x" * 100_000)
            assert await receive_exactly(transport, 100_000) == b"x" * 100_000
        (head,) = proxy.received
        assert head.startswith(b"CONNECT kas.test:8443 HTTP/1.1\r\nHost: kas.test:8443\r\n")
        assert b"mla_secret" not in head


async def test_a_proxy_to_which_tls_is_spoken_carries_tls_inside():
    proxy = FakeProxy()
    proxy.tls = server_tls(SERVER_CERTIFICATE)
    async with kas(server_context=server_tls()) as (port, _):
        proxy._target = port
        async with proxy.running():
            transport, welcome = await dial(
                OUTSIDE, HELLO, tls=client_tls(), proxy=through(proxy, scheme="https"), proxy_tls=client_tls()
            )
            async with closing(transport):
                assert welcome == WELCOME


async def test_plaintext_goes_through_connect_too_and_ipv6_keeps_its_brackets():
    async with kas() as (port, _), FakeProxy(target=port).running() as proxy:
        transport, _ = await plain(DialAddress.parse("http://[fd00::1]:81"), HELLO, proxy=through(proxy))
        async with closing(transport):
            assert proxy.received[0].startswith(b"CONNECT [fd00::1]:81 HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("answer", "user", "reason", "words"),
    [
        (
            None,
            "",
            "proxy-authentication",
            "asks for credentials (407): set HTTPS_PROXY=http://user:password@host:port",
        ),
        (None, "stranger", "proxy-authentication", "refuses our credentials (407): check user and password"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "user", "proxy", "does not allow connections to kas.test:8443 (403)"),
        (b"HTTP/1.1 502 Bad Gateway\r\nServer: squid\r\n\r\n", "user", "proxy", "does not reach kas.test:8443 (502)"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "user", "not-http", "it begins with 'SSH-2.0-OpenSSH_9.6'"),
        (b"", "user", "no-answer", "the connection was closed without an answer"),
    ],
)
async def test_a_proxy_that_refuses_is_named_and_not_shown_our_secrets(answer, user, reason, words):
    async with FakeProxy(answer=answer, credentials="user:p@ss").running() as proxy:
        with pytest.raises(HandshakeError) as caught:
            await dial(OUTSIDE, HELLO, tls=client_tls(), proxy=through(proxy, user=user, password="p@ss"))
        assert words in str(caught.value)
        assert f"proxy http://127.0.0.1:{proxy.port}" in str(caught.value)
        assert "p@ss" not in str(caught.value)
        assert caught.value.reason == reason


async def test_a_proxy_that_does_not_answer_is_given_up_in_time(monkeypatch):
    monkeypatch.setattr(dialer, "PROXY_SECONDS", 0.1)
    async with scripted(None) as (port, received):
        url = ProxyUrl(scheme="http", host="127.0.0.1", port=port)
        with pytest.raises(HandshakeError, match="no answer to CONNECT within") as caught:
            await dial(OUTSIDE, HELLO, tls=client_tls(), proxy=ProxySettings(https_proxy=url))
        assert caught.value.reason == "timeout"
        assert b"mla_secret" not in received


async def test_a_connection_that_is_reset_in_the_middle_of_each_step_is_explained():
    async def reset(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, reset, 0)
        port = listeners[0].socket.getsockname()[1]
        error = await refusal(port)
        assert error.reason == "broken"
        assert "the connection broke during the handshake" in str(error)
        url = ProxyUrl(scheme="http", host="127.0.0.1", port=port)
        with pytest.raises(HandshakeError, match=f"proxy {url}: the connection broke"):
            await dial(OUTSIDE, HELLO, tls=client_tls(), proxy=ProxySettings(https_proxy=url))
        nursery.cancel_scope.cancel()


async def test_a_proxy_that_cannot_be_reached_is_named():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = ProxyUrl(scheme="http", host="127.0.0.1", port=unused.getsockname()[1])
        with pytest.raises(HandshakeError, match=f"proxy {url}: cannot connect: Connection refused"):
            await dial(OUTSIDE, HELLO, tls=client_tls(), proxy=ProxySettings(https_proxy=url))
