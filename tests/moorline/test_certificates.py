"""The certificates that `moorline up` makes for itself."""

from __future__ import annotations

import datetime
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509

from moorline.certificates import RENEWAL, VALIDITY, CertificateFiles, ensure_certificates, write_private

NAMES = ["127.0.0.1", "localhost", "*.k8s.localhost"]


def contents(files: CertificateFiles) -> list[bytes]:
    return [path.read_bytes() for path in (files.authority, files.certificate, files.private_key)]


def test_the_private_key_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    files = ensure_certificates(tmp_path, NAMES)

    assert stat.S_IMODE(files.private_key.stat().st_mode) == 0o600


def test_no_key_of_the_authority_is_left_behind(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, NAMES)

    assert {path.name for path in tmp_path.iterdir()} == {"ca.pem", "kas.pem", "kas-key.pem"}
    assert sum(b"PRIVATE KEY" in path.read_bytes() for path in tmp_path.iterdir()) == 1


def test_the_authority_says_that_it_is_one_and_the_server_that_it_is_none(tmp_path: Path) -> None:
    files = ensure_certificates(tmp_path, NAMES)
    authority = x509.load_pem_x509_certificate(files.authority.read_bytes())
    server = x509.load_pem_x509_certificate(files.certificate.read_bytes())

    for certificate, is_authority in ((authority, True), (server, False)):
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
        assert constraints.critical
        assert constraints.value.ca is is_authority
        assert usage.critical
        assert usage.value.key_cert_sign is is_authority
    issued_by = server.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert issued_by == authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest


def handshake(files: CertificateFiles, server_name: str) -> None:
    """A TLS handshake in memory; raises what the client thinks of the server's certificate."""
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_context.load_cert_chain(files.certificate, files.private_key)
    client_context = ssl.create_default_context(cafile=str(files.authority))
    client_context.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=server_name)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    pending = [client, server]
    while pending:
        for end in tuple(pending):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            pending.remove(end)


@pytest.mark.parametrize("server_name", ["127.0.0.1", "localhost", "up.k8s.localhost"])
def test_a_client_that_trusts_the_authority_accepts_the_server(tmp_path: Path, server_name: str) -> None:
    handshake(ensure_certificates(tmp_path, NAMES), server_name)


@pytest.mark.parametrize("server_name", ["127.0.0.2", "kas.example", "k8s.localhost"])
def test_a_name_that_was_not_asked_for_is_refused(tmp_path: Path, server_name: str) -> None:
    files = ensure_certificates(tmp_path, NAMES)

    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(files, server_name)


def test_a_second_start_keeps_what_is_good(tmp_path: Path) -> None:
    first = contents(ensure_certificates(tmp_path, NAMES))

    assert contents(ensure_certificates(tmp_path, list(reversed(NAMES)))) == first


def test_what_ends_soon_or_is_for_other_names_is_made_anew(tmp_path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    first = contents(ensure_certificates(tmp_path, NAMES, now=now))

    almost = now + VALIDITY - RENEWAL
    assert contents(ensure_certificates(tmp_path, NAMES, now=almost - datetime.timedelta(minutes=1))) == first
    second = contents(ensure_certificates(tmp_path, NAMES, now=almost + datetime.timedelta(minutes=1)))
    third = contents(ensure_certificates(tmp_path, [*NAMES, "kas.example"], now=almost))
    assert not set(first) & set(second)
    assert not set(second) & set(third)


@pytest.mark.parametrize("damaged", ["ca.pem", "kas.pem", "kas-key.pem"])
def test_a_damaged_or_missing_file_is_replaced_with_the_others(tmp_path: Path, damaged: str) -> None:
    first = contents(ensure_certificates(tmp_path, NAMES))
    (tmp_path / damaged).write_bytes(b"not a certificate\n")
    second = contents(ensure_certificates(tmp_path, NAMES))
    (tmp_path / damaged).unlink()
    third = contents(ensure_certificates(tmp_path, NAMES))

    assert not set(first) & set(second)
    assert not set(second) & set(third)


def test_an_authority_that_did_not_sign_the_certificate_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    files = ensure_certificates(tmp_path, NAMES)
    other = ensure_certificates(tmp_path / "other", NAMES)
    files.authority.write_bytes(other.authority.read_bytes())

    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(files, "localhost")
    handshake(ensure_certificates(tmp_path, NAMES), "localhost")


def test_a_private_file_that_others_could_read_is_not_written_into(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, b"secret")

    assert path.read_bytes() == b"secret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]
