"""A certificate authority for one kas on one machine, and the server certificate that it signs.

The key of the authority is thrown away once the certificate is signed: whoever trusts this authority trusts one server
and nothing that could be signed later. Renewing therefore makes both anew. It is no public-key infrastructure: a kas
which others reach should get its certificate where their other servers do.
"""

from __future__ import annotations

import dataclasses
import datetime
import ipaddress
import os
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALIDITY = datetime.timedelta(days=365)
"""How long both certificates are valid."""

RENEWAL = datetime.timedelta(days=30)
"""What is valid for less than this is made anew."""

CLOCK_SKEW = datetime.timedelta(minutes=10)
"""How far back validity begins, for machines whose clocks disagree."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFiles:
    """Where the certificates of one kas lie."""

    authority: Path
    """The certificate that clients trust (PEM)."""
    certificate: Path
    """The server's certificate (PEM)."""
    private_key: Path
    """The server's key (PEM, readable by its owner only)."""


def ensure_certificates(directory: Path, names: list[str], *, now: datetime.datetime | None = None) -> CertificateFiles:
    """The certificates in a folder; made, or made anew, where they are missing, damaged, old, or for other names.

    ``names`` are DNS names and IP addresses. Raises `OSError` where the folder cannot be written.
    """
    files = CertificateFiles(
        authority=directory / "ca.pem", certificate=directory / "kas.pem", private_key=directory / "kas-key.pem"
    )
    now = now or datetime.datetime.now(datetime.UTC)
    if not _still_good(files, names, now):
        _make(files, names, now)
    return files


def _still_good(files: CertificateFiles, names: list[str], now: datetime.datetime) -> bool:
    try:
        authority = x509.load_pem_x509_certificate(files.authority.read_bytes())
        certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        # The judgement of the library that will use them: they parse, and the key belongs to the certificate.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate, files.private_key)
        certificate.verify_directly_issued_by(authority)
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except Exception:  # noqa: BLE001  whatever is wrong with the old files, the answer is to make new ones
        return False
    if set(alternative) != set(_general_names(names)):
        return False
    return all(
        cert.not_valid_before_utc <= now <= cert.not_valid_after_utc - RENEWAL for cert in (authority, certificate)
    )


def _make(files: CertificateFiles, names: list[str], now: datetime.datetime) -> None:
    authority_key = ec.generate_private_key(ec.SECP256R1())
    server_key = ec.generate_private_key(ec.SECP256R1())
    # The serial number in the name keeps two generations apart where both are trusted.
    serial = x509.random_serial_number()
    authority_name = _name(f"Moorline local authority {serial:x}"[:60])
    authority_id = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    authority = (
        _builder(authority_name, authority_name, authority_key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(authority_id, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    certificate = (
        _builder(_name("kas"), authority_name, server_key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_general_names(names)), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(server_key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority_id), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    key = server_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(files.private_key, key)
    files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files.authority.write_bytes(authority.public_bytes(serialization.Encoding.PEM))


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, now: datetime.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + VALIDITY)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_names(names: list[str]) -> list[x509.GeneralName]:
    return [_general_name(name) for name in names]


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def write_private(path: Path, data: bytes) -> None:
    """Replace a file by one that only its owner may read; at no moment is it half written or readable by others."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
