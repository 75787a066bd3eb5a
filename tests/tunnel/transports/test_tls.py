from __future__ import annotations

import contextlib
import datetime
import shutil
import ssl
import subprocess
import warnings

import pytest
import trio
import trio.testing
import trustme
from support.transport_pairs import (
    CA,
    SERVER_CERTIFICATE,
    SERVER_NAME,
    client_tls,
    clogged_stream_maker,
    closing,
    receive_exactly,
    receive_to_end,
    server_tls,
    socket_pair,
    stream_maker,
    tcp_pair,
    tls_pair,
)

from tunnel.errors import HandshakeError
from tunnel.transports import tcp, tls
from tunnel.transports.tls import TlsTransport
from tunnel.transports.tls_contexts import server_context

BULK = bytes(range(256)) * 8_192  # 2 MiB


@pytest.fixture(autouse=True)
def closes_quickly(monkeypatch):
    monkeypatch.setattr(tcp, "CLOSE_SECONDS", 0.05)
    monkeypatch.setattr(tls, "CLOSE_SECONDS", 0.05)


@pytest.mark.slow
async def test_it_behaves_as_trio_demands_of_a_half_closeable_stream():
    await trio.testing.check_half_closeable_stream(stream_maker(tls_pair), clogged_stream_maker(tls_pair))


async def test_a_large_write_arrives_whole_while_the_other_direction_is_busy_too():
    one, other = await tls_pair()
    async with closing(one, other), trio.open_nursery() as nursery:
        nursery.start_soon(one.send_all, BULK)
        nursery.start_soon(other.send_all, BULK[::-1])

        async def check_other_direction() -> None:
            assert await receive_exactly(one, len(BULK)) == BULK[::-1]

        nursery.start_soon(check_other_direction)
        assert await receive_exactly(other, len(BULK)) == BULK


async def test_the_handshake_tells_what_was_agreed():
    client, server = client_tls(), server_tls()
    client.set_alpn_protocols(["h2", "http/1.1"])
    server.set_alpn_protocols(["http/1.1"])
    one, other = await tls_pair(client, server)
    async with closing(one, other):
        for transport in (one, other):
            assert transport.info.kind == "tls"
            assert transport.info.alpn == "http/1.1"
            assert transport.info.server_name == SERVER_NAME
            assert transport.info.tls_version == "TLSv1.3"
            assert transport.info.peer.startswith("127.0.0.1:")


async def test_cancelling_a_receive_loses_nothing():
    one, other = await tls_pair()
    async with closing(one, other):
        with trio.move_on_after(0.01) as scope:
            await other.receive_some()
        assert scope.cancelled_caught
        await one.send_all(b"kept")
        await trio.sleep(0.01)
        with trio.CancelScope() as cancelled:
            cancelled.cancel()
            await other.receive_some()
        assert await other.receive_some() == b"kept"


async def test_receive_nowait_tells_nothing_yet_from_the_end():
    one, other = await tls_pair()
    async with closing(one, other):
        assert other.receive_nowait() is None
        await one.send_all(b"x")
        await trio.sleep(0.01)
        assert other.receive_nowait() == b"x"
        await one.send_eof()
        await trio.sleep(0.01)
        assert not other.clean_eof
        assert other.receive_nowait() == b""
        assert other.clean_eof
        assert await other.receive_some() == b""


async def test_unread_bytes_come_before_those_that_were_received():
    one, other = await tls_pair()
    async with closing(one, other):
        await one.send_all(b"2")
        await trio.sleep(0.01)
        other.unread(b"1")
        assert await receive_exactly(other, 2) == b"12"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_half_close_lets_data_flow_back(version):
    client = client_tls()
    client.maximum_version = version
    one, other = await tls_pair(client)
    async with closing(one, other):
        await other.send_all(b"before")
        await trio.sleep(0.01)
        await one.send_eof()  # with records waiting that were not read
        assert await other.receive_some() == b""
        assert other.clean_eof
        await other.send_all(b" and after")
        assert await receive_exactly(one, 16) == b"before and after"
        await other.send_eof()
        assert await one.receive_some() == b""
        assert one.clean_eof
        with pytest.raises(trio.ClosedResourceError):
            await one.send_all(b"x")


class SlowReader(tcp.TcpTransport):
    """Reads so late that what was sent in several pieces comes in one."""

    async def receive_some(self) -> bytes:
        await trio.sleep(0.02)
        return await super().receive_some()


async def test_half_close_keeps_what_came_together_with_the_end_of_the_handshake():
    client_socket, server_socket = await socket_pair()
    one = TlsTransport(tcp.TcpTransport(client_socket), client_tls(), server_side=False, server_hostname=SERVER_NAME)
    other = TlsTransport(SlowReader(server_socket), server_tls(), server_side=True)

    async def shake_hands_and_send() -> None:
        await one.handshake()
        await one.send_all(b"early")

    async with closing(one, other):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shake_hands_and_send)
            nursery.start_soon(other.handshake)
        assert other._incoming.pending
        await other.send_eof()
        assert await one.receive_some() == b""
        assert one.clean_eof
        assert await other.receive_some() == b"early"


async def test_an_end_without_close_notify_is_an_end_but_not_a_clean_one():
    below_client, below_server = await tcp_pair()
    one = TlsTransport(below_client, client_tls(), server_side=False, server_hostname=SERVER_NAME)
    other = TlsTransport(below_server, server_tls(), server_side=True)
    async with closing(one, other):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.handshake)
            nursery.start_soon(other.handshake)
        await one.send_all(b"cut off")
        await below_client.send_eof()
        assert await receive_to_end(other) == b"cut off"
        assert not other.clean_eof


async def test_closing_sends_close_notify_and_a_cancelled_write_prevents_it():
    one, other = await tls_pair()
    async with closing(one, other), trio.open_nursery() as nursery:
        nursery.start_soon(one.aclose)
        assert await receive_to_end(other) == b""
        assert other.clean_eof
        await other.aclose()

    one, other = await tls_pair()
    async with closing(one, other):
        with trio.move_on_after(0.05):
            await one.send_all(bytes(64_000_000))
        with pytest.raises(trio.BrokenResourceError):
            await one.send_all(b"x")
        await one.aclose()
        with contextlib.suppress(trio.BrokenResourceError):
            await receive_to_end(other)
        assert not other.clean_eof


async def test_closing_towards_a_peer_that_does_not_read_ends_in_time():
    one, other = await clogged_stream_maker(tls_pair)()
    async with closing(one.transport, other.transport):
        with trio.fail_after(1):
            await one.aclose()
            await one.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await one.transport.receive_some()


async def test_abort_wakes_both_waiting_tasks():
    one, other = await tls_pair()
    async with closing(one, other), trio.open_nursery() as nursery:

        async def expect_closed(method, *args) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await method(*args)

        nursery.start_soon(expect_closed, one.receive_some)
        nursery.start_soon(expect_closed, one.send_all, bytes(64_000_000))
        await trio.sleep(0.05)
        one.abort()


async def test_records_that_were_tampered_with_break_the_connection():
    below_client, below_server = await tcp_pair()
    one = TlsTransport(below_client, client_tls(), server_side=False, server_hostname=SERVER_NAME)
    other = TlsTransport(below_server, server_tls(), server_side=True)
    async with closing(one, other):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.handshake)
            nursery.start_soon(other.handshake)
        await one.send_all(b"whole")
        await below_client.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
        await trio.sleep(0.01)
        assert await other.receive_some() == b"whole"
        with pytest.raises(trio.BrokenResourceError, match=r"TLS with .* failed"):
            await other.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await other.send_all(b"x")


async def test_session_tickets_that_come_while_reading_are_no_data():
    server = server_tls()
    server.num_tickets = 5
    one, other = await tls_pair(server_context=server)
    async with closing(one, other):
        await other.send_all(b"after five tickets")
        assert await one.receive_some() == b"after five tickets"


needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")


@contextlib.asynccontextmanager
async def openssl_client(context: ssl.SSLContext, *options: str):
    """OpenSSL's own client, which can do what `ssl` has no function for; and the server's end of its connection."""
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        client = await trio.lowlevel.open_process(
            ["openssl", "s_client", "-connect", address, "-msg", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            async with client.stdin, client.stdout:
                sock, _ = await listener.accept()
                server = TlsTransport(tcp.TcpTransport(sock), context, server_side=True)
                async with closing(server):
                    await server.handshake()
                    with trio.move_on_after(0.3):  # it takes no commands before it has printed what was agreed
                        await server.receive_some()
                    yield client, server
        finally:
            client.kill()
            with trio.CancelScope(shield=True):
                await client.wait()


async def wait_for_lines(client: trio.Process, *lines: bytes) -> None:
    seen = b""
    with trio.fail_after(5):
        while not all(line in seen for line in lines):
            seen += await client.stdout.receive_some()


@needs_openssl
async def test_data_flows_on_both_ways_after_a_key_update():
    async with openssl_client(server_tls(), "-tls1_3") as (client, server):
        await client.stdin.send_all(b"K\n")
        await wait_for_lines(client, b">>> TLS 1.3, Handshake [length 0005], KeyUpdate")
        await client.stdin.send_all(b"after\n")
        assert await server.receive_some() == b"after\n"
        await server.send_all(b"and back\n")
        await wait_for_lines(client, b"<<< TLS 1.3, Handshake [length 0005], KeyUpdate", b"and back\n")


@needs_openssl
async def test_renegotiation_is_refused_at_once_though_nobody_writes(tmp_path):
    certificate = tmp_path / "server.pem"
    certificate.write_bytes(SERVER_CERTIFICATE.private_key_and_cert_chain_pem.bytes())
    context = server_context(certificate_file=certificate)
    async with openssl_client(context, "-tls1_2") as (client, server):
        await client.stdin.send_all(b"R\n")
        with pytest.raises(trio.BrokenResourceError, match="handshake failure"):
            await server.receive_some()
        await wait_for_lines(client, b"<<< TLS 1.2, Alert [length 0002], warning no_renegotiation")


async def shake_hands(
    client: TlsTransport, server: TlsTransport
) -> tuple[HandshakeError | None, HandshakeError | None]:
    """Both ends' errors."""
    errors: dict[TlsTransport, HandshakeError] = {}

    async def one_end(transport: TlsTransport) -> None:
        try:
            await transport.handshake()
            await transport.receive_some()
        except HandshakeError as error:
            errors[transport] = error
        except trio.BrokenResourceError:
            pass

    async with closing(client, server), trio.open_nursery() as nursery:
        nursery.start_soon(one_end, client)
        nursery.start_soon(one_end, server)
        with trio.move_on_after(0.3):
            await trio.sleep_forever()
        nursery.cancel_scope.cancel()
    return errors.get(client), errors.get(server)


def expired() -> trustme.LeafCert:
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    return CA.issue_cert(SERVER_NAME, not_before=yesterday - datetime.timedelta(days=1), not_after=yesterday)


def not_yet_valid() -> trustme.LeafCert:
    tomorrow = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    return CA.issue_cert(SERVER_NAME, not_before=tomorrow, not_after=tomorrow + datetime.timedelta(days=1))


@pytest.mark.parametrize(
    ("certificate", "reason", "words"),
    [
        (expired, "tls-expired", "its certificate has expired: renew it, and check the clock of this machine"),
        (not_yet_valid, "tls-not-yet-valid", "its certificate is not valid yet: check the clocks"),
        (
            lambda: CA.issue_cert("other.test"),
            "tls-name-mismatch",
            "its certificate is for other names than 'kas.test': check the address, or set the server name",
        ),
        (
            lambda: trustme.CA().issue_cert(SERVER_NAME),
            "tls-unknown-ca",
            "its certificate comes from a CA that is not trusted here: add that CA to the CA file",
        ),
    ],
)
async def test_a_certificate_that_is_refused_is_explained(certificate, reason, words):
    one, other = await tcp_pair()
    client_error, server_error = await shake_hands(
        TlsTransport(one, client_tls(), server_side=False, server_hostname=SERVER_NAME),
        TlsTransport(other, server_tls(certificate()), server_side=True),
    )
    assert client_error is not None
    assert client_error.reason == reason
    assert words in str(client_error)
    assert "127.0.0.1:" in str(client_error)
    # With TLS 1.3 the server is done when the client refuses; it learns of that while it reads.
    assert server_error is None or server_error.reason == "tls-certificate-refused"


async def test_an_address_that_the_certificate_does_not_name_is_told_from_a_name():
    one, other = await tcp_pair()
    error, _ = await shake_hands(
        TlsTransport(one, client_tls(), server_side=False, server_hostname="127.0.0.9"),
        TlsTransport(other, server_tls(), server_side=True),
    )
    assert error is not None
    assert "its certificate is for other addresses than '127.0.0.9'" in str(error)


async def test_a_server_with_tls_1_2_learns_why_its_certificate_was_refused():
    context = client_tls(trustme.CA())
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    one, other = await tcp_pair()
    _, error = await shake_hands(
        TlsTransport(one, context, server_side=False, server_hostname=SERVER_NAME),
        TlsTransport(other, server_tls(), server_side=True),
    )
    assert error is not None
    assert "it does not trust the CA of the certificate presented here" in str(error)


async def test_an_old_tls_version_is_refused_by_the_server(tmp_path):
    certificate = tmp_path / "server.pem"
    certificate.write_bytes(SERVER_CERTIFICATE.private_key_and_cert_chain_pem.bytes())
    context = client_tls()
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    one, other = await tcp_pair()
    client_error, server_error = await shake_hands(
        TlsTransport(one, context, server_side=False, server_hostname=SERVER_NAME),
        TlsTransport(other, server_context(certificate_file=certificate), server_side=True),
    )
    assert server_error is not None
    assert server_error.reason == "tls-version"
    assert "it offers no TLS version that is allowed here (TLS 1.2 and newer)" in str(server_error)
    assert client_error is not None
    assert client_error.reason == "tls-version"


async def test_a_client_certificate_that_is_missing_or_unknown_is_refused(tmp_path):
    (tmp_path / "server.pem").write_bytes(SERVER_CERTIFICATE.private_key_and_cert_chain_pem.bytes())
    CA.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = server_context(certificate_file=tmp_path / "server.pem", client_ca_file=tmp_path / "ca.pem")
    one, other = await tcp_pair()
    _, error = await shake_hands(
        TlsTransport(one, client_tls(), server_side=False, server_hostname=SERVER_NAME),
        TlsTransport(other, context, server_side=True),
    )
    assert error is not None
    assert error.reason == "tls-client-certificate"

    stranger = client_tls()
    trustme.CA().issue_cert("stranger").configure_cert(stranger)
    one, other = await tcp_pair()
    _, error = await shake_hands(
        TlsTransport(one, stranger, server_side=False, server_hostname=SERVER_NAME),
        TlsTransport(other, context, server_side=True),
    )
    assert error is not None
    assert "its client certificate comes from a CA that is not trusted here" in str(error)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"GET / HTTP/1.1\r\nHost: kas.test\r\n\r\n", "received plain HTTP on a TLS port"),
        (b"\x00\x01\x02\x03\x04\x05\x06\x07", "received b'\\x00\\x01"),
    ],
)
async def test_a_client_without_tls_is_recognised(said, words):
    one, other = await tcp_pair()
    server = TlsTransport(other, server_tls(), server_side=True)
    async with closing(one, server):
        await one.send_all(said)
        with pytest.raises(HandshakeError, match="the client must use https:// or wss://") as caught:
            await server.handshake()
        assert caught.value.reason == "tls-not-tls"
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "received a plain HTTP answer"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "received b'SSH-2.0-OpenSSH_', which is not TLS"),
    ],
)
async def test_a_server_without_tls_is_recognised(said, words):
    one, other = await tcp_pair()
    client = TlsTransport(one, client_tls(), server_side=False, server_hostname=SERVER_NAME)
    async with closing(client, other):
        await other.send_all(said)
        with pytest.raises(HandshakeError, match="check the port") as caught:
            await client.handshake()
        assert words in str(caught.value)


async def test_a_connection_that_ends_during_the_handshake_says_so():
    one, other = await tcp_pair()
    client = TlsTransport(one, client_tls(), server_side=False, server_hostname=SERVER_NAME)
    async with closing(client, other):
        await other.send_eof()
        with pytest.raises(HandshakeError, match="ended the connection during the TLS handshake") as caught:
            await client.handshake()
        assert caught.value.reason == "tls-cut-off"


@pytest.mark.parametrize(("said", "got"), [(b"", "received nothing"), (b"\x16\x03\x01", "received half of a TLS")])
async def test_a_silent_peer_ends_the_handshake_in_time(monkeypatch, said, got):
    monkeypatch.setattr(tls, "HANDSHAKE_SECONDS", 0.1)
    one, other = await tcp_pair()
    server = TlsTransport(other, server_tls(), server_side=True)
    async with closing(one, server):
        if said:
            await one.send_all(said)
        with pytest.raises(HandshakeError, match=got) as caught:
            await server.handshake()
        assert caught.value.reason == "tls-timeout"
        with pytest.raises(trio.BrokenResourceError):
            await receive_to_end(one)


async def test_a_cancelled_handshake_closes_the_connection():
    one, other = await tcp_pair()
    server = TlsTransport(other, server_tls(), server_side=True)
    async with closing(one):
        with trio.move_on_after(0.05):
            await server.handshake()
        with pytest.raises(trio.BrokenResourceError):
            await receive_to_end(one)


async def test_tls_goes_through_tls():
    outer_client, outer_server = await tls_pair()
    client = TlsTransport(outer_client, client_tls(), server_side=False, server_hostname=SERVER_NAME)
    server = TlsTransport(outer_server, server_tls(), server_side=True)
    async with closing(client, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.handshake)
            nursery.start_soon(server.handshake)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, BULK)
            assert await receive_exactly(server, len(BULK)) == BULK


async def test_cancelling_at_every_moment_loses_and_repeats_nothing():
    one, other = await tls_pair()
    received = bytearray()
    async with closing(one, other), trio.open_nursery() as nursery:
        nursery.start_soon(one.send_all, BULK)
        patience = 0.0
        while len(received) < len(BULK):
            with trio.move_on_after(patience):
                received += await other.receive_some()
            patience = (patience + 0.00001) % 0.0005
    assert received == BULK
