from __future__ import annotations

import ssl

import pytest
import trio
import trustme
from cryptography.hazmat.primitives import serialization
from support.transport_pairs import SERVER_NAME, closing, receive_exactly, tls_pair

from tunnel.errors import HandshakeError
from tunnel.transports.tls_contexts import ReloadableServerContext, client_context, server_context


@pytest.fixture
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(tmp_path, ca):
    """Certificate and key of a server, one of a client, and the CA of both."""
    for name in ("server", "client"):
        write_certificate(tmp_path, ca, name)
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    return tmp_path


def write_certificate(folder, ca, name) -> None:
    leaf = ca.issue_cert(SERVER_NAME if name == "server" else "agent")
    leaf.private_key_pem.write_to_path(folder / f"{name}.key")
    (folder / f"{name}.pem").write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))


def server_of(files, **options) -> ssl.SSLContext:
    return server_context(certificate_file=files / "server.pem", key_file=files / "server.key", **options)


async def flows(client: ssl.SSLContext, server: ssl.SSLContext):
    """What the client's end says of the connection, over which a byte went each way."""
    one, other = await tls_pair(client, server)
    async with closing(one, other):
        await one.send_all(b"x")
        assert await receive_exactly(other, 1) == b"x"
        await other.send_all(b"y")
        assert await receive_exactly(one, 1) == b"y"
        return one.info


@pytest.mark.parametrize("as_data", [True, False])
@pytest.mark.parametrize("system_cas", [True, False])
async def test_a_ca_is_trusted_beside_those_of_the_system_or_instead(files, as_data, system_cas):
    pem = files / "ca.pem"
    given = {"ca_data": pem.read_text()} if as_data else {"ca_file": pem}
    client = client_context(system_cas=system_cas, alpn=["h2", "http/1.1"], **given)
    info = await flows(client, server_of(files, alpn=["http/1.1"]))
    assert info.alpn == "http/1.1"


async def test_a_ca_that_nobody_named_is_not_trusted(files):
    with pytest.RaisesGroup(
        pytest.RaisesExc(HandshakeError, match="CA that is not trusted here"), allow_unwrapped=True
    ):
        await flows(client_context(), server_of(files))


async def test_insecure_verifies_neither_the_ca_nor_the_name(files):
    assert (await flows(client_context(insecure=True), server_of(files))).tls_version == "TLSv1.3"


async def test_an_intermediate_ca_may_be_what_is_trusted(tmp_path, ca):
    intermediate = ca.create_child_ca()
    write_certificate(tmp_path, intermediate, "server")
    intermediate.cert_pem.write_to_path(tmp_path / "ca.pem")
    await flows(client_context(ca_file=tmp_path / "ca.pem", system_cas=False), server_of(tmp_path))


async def test_a_client_certificate_is_presented_where_it_is_configured(files):
    server = server_of(files, client_ca_file=files / "ca.pem")
    client = client_context(
        ca_file=files / "ca.pem", certificate_file=files / "client.pem", key_file=files / "client.key"
    )
    await flows(client, server)


async def test_a_client_certificate_may_be_optional(files):
    server = server_of(files, client_ca_file=files / "ca.pem", client_certificate_required=False)
    await flows(client_context(ca_file=files / "ca.pem"), server)


@pytest.mark.parametrize("make", [lambda files: client_context(), server_of])
def test_no_context_allows_what_is_dangerous(files, make):
    context = make(files)
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION
    for cipher in context.get_ciphers():
        assert cipher["aead"], cipher["name"]
        assert cipher["name"].startswith(("TLS_", "ECDHE-")), cipher["name"]


def test_a_key_with_a_passphrase_is_an_error_and_no_question_on_the_terminal(files):
    key = serialization.load_pem_private_key((files / "server.key").read_bytes(), None)
    (files / "server.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ssl.SSLError, match="the private key is encrypted"):
        server_of(files)


async def test_a_renewed_certificate_serves_the_next_connection_and_the_old_one_goes_on(files):
    reloadable = ReloadableServerContext(
        certificate_file=files / "server.pem", key_file=files / "server.key", alpn=["http/1.1"]
    )
    old_ca = client_context(ca_file=files / "ca.pem", system_cas=False)
    one, other = await tls_pair(old_ca, reloadable.context)
    async with closing(one, other):
        new = trustme.CA()
        write_certificate(files, new, "server")
        reloadable.reload()
        new.cert_pem.write_to_path(files / "new-ca.pem")
        await flows(client_context(ca_file=files / "new-ca.pem", system_cas=False), reloadable.context)
        await one.send_all(b"x")
        with trio.fail_after(2):
            assert await other.receive_some() == b"x"


def test_files_that_cannot_be_used_keep_the_old_context(files):
    reloadable = ReloadableServerContext(certificate_file=files / "server.pem", key_file=files / "server.key")
    before = reloadable.context
    (files / "server.pem").write_text("not a certificate")
    with pytest.raises(ssl.SSLError):
        reloadable.reload()
    (files / "server.pem").unlink()
    with pytest.raises(FileNotFoundError):
        reloadable.reload()
    assert reloadable.context is before
