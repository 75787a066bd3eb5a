"""`ssl.SSLContext`s for both ends, made in one place so that none forgets an option.

Files are read here, synchronously: before the event loop starts, or in a thread.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence

from tunnel.transports.tls import ServerSideObject, remember_server_name

# RFC 9113 §9.2 for TLS 1.2; the suites of TLS 1.3 are all fine.
_TLS_1_2_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


def client_context(
    *,
    ca_file: str | os.PathLike[str] | None = None,
    ca_data: str | None = None,
    system_cas: bool = True,
    certificate_file: str | os.PathLike[str] | None = None,
    key_file: str | os.PathLike[str] | None = None,
    alpn: Sequence[str] = (),
    insecure: bool = False,
) -> ssl.SSLContext:
    """A context that verifies the server: with the system's CAs, and those in ``ca_file`` and ``ca_data`` (PEM).

    ``insecure`` verifies nothing: whoever sits between can read and change everything. Raises `OSError` and
    `ssl.SSLError` for files that cannot be read or used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _harden(context)
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        if system_cas:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        if ca_file is not None or ca_data is not None:
            context.load_verify_locations(cafile=ca_file, cadata=ca_data)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # an intermediate CA may be the one that is trusted
    if certificate_file is not None:
        context.load_cert_chain(certificate_file, key_file, _no_passphrase)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def server_context(
    *,
    certificate_file: str | os.PathLike[str],
    key_file: str | os.PathLike[str] | None = None,
    client_ca_file: str | os.PathLike[str] | None = None,
    client_certificate_required: bool = True,
    alpn: Sequence[str] = (),
) -> ssl.SSLContext:
    """A context that presents a certificate, and verifies the client's where ``client_ca_file`` is given.

    Raises `OSError` and `ssl.SSLError` for files that cannot be read or used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context)
    context.load_cert_chain(certificate_file, key_file, _no_passphrase)
    if client_ca_file is not None:
        context.verify_mode = ssl.CERT_REQUIRED if client_certificate_required else ssl.CERT_OPTIONAL
        context.load_verify_locations(cafile=client_ca_file)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    context.sslobject_class = ServerSideObject
    context.sni_callback = remember_server_name
    return context


class ReloadableServerContext:
    """A server context that can be made anew from its files while connections go on with the old one."""

    def __init__(
        self,
        *,
        certificate_file: str | os.PathLike[str],
        key_file: str | os.PathLike[str] | None = None,
        client_ca_file: str | os.PathLike[str] | None = None,
        client_certificate_required: bool = True,
        alpn: Sequence[str] = (),
    ) -> None:
        self._certificate_file = certificate_file
        self._key_file = key_file
        self._client_ca_file = client_ca_file
        self._client_certificate_required = client_certificate_required
        self._alpn = tuple(alpn)
        self.context = self._load()
        """The context for connections that are accepted from now on."""

    def reload(self) -> None:
        """Read the files again. Where they cannot be used, raises and keeps the old context."""
        self.context = self._load()

    def _load(self) -> ssl.SSLContext:
        return server_context(
            certificate_file=self._certificate_file,
            key_file=self._key_file,
            client_ca_file=self._client_ca_file,
            client_certificate_required=self._client_certificate_required,
            alpn=self._alpn,
        )


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_ciphers(_TLS_1_2_CIPHERS)


def _no_passphrase() -> str:
    # Without this OpenSSL would ask on the terminal, and a service would hang there.
    raise ssl.SSLError("the private key is encrypted: configure one without a passphrase")
