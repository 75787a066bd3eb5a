"""What a failed TLS handshake means, in words for whoever set the two ends up.

Only texts: OpenSSL's codes in, one `HandshakeError` out which says what was received and what to check.
"""

from __future__ import annotations

import ssl
from typing import Final

from tunnel.errors import HandshakeError

_Explanation = tuple[str, str]

# Codes of X509_V_ERR_… (openssl-verification-options(1)); all about the certificate that the other side presented.
_CERTIFICATE: Final[dict[int, _Explanation]] = {
    9: ("tls-not-yet-valid", "is not valid yet: check the clocks of both machines"),
    10: ("tls-expired", "has expired: renew it, and check the clock of this machine"),
    18: ("tls-unknown-ca", "is self-signed and not among the CAs that are trusted here: add it to the CA file"),
    19: ("tls-unknown-ca", "comes from a private CA that is not trusted here: add that CA to the CA file"),
    20: ("tls-unknown-ca", "comes from a CA that is not trusted here: add that CA to the CA file"),
    21: ("tls-unknown-ca", "cannot be traced to a trusted CA: present intermediate certificates with it"),
    23: ("tls-revoked", "was revoked"),
    26: ("tls-wrong-purpose", "was not issued for this purpose (server or client authentication)"),
    62: ("tls-name-mismatch", "is for other names"),
    64: ("tls-name-mismatch", "is for other addresses"),
}
_NAME_MISMATCHES = (62, 64)

_REASONS: Final[dict[str, _Explanation]] = {
    "UNSUPPORTED_PROTOCOL": ("tls-version", "it offers no TLS version that is allowed here (TLS 1.2 and newer)"),
    "UNKNOWN_PROTOCOL": ("tls-version", "it offers no TLS version that is allowed here (TLS 1.2 and newer)"),
    "TLSV1_ALERT_PROTOCOL_VERSION": ("tls-version", "it allows none of our TLS versions (TLS 1.2 and newer)"),
    "NO_SHARED_CIPHER": ("tls-cipher", "there is no cipher that both sides allow"),
    "SSLV3_ALERT_HANDSHAKE_FAILURE": (
        "tls-cipher",
        "it found no parameters that both sides allow, or asks for a client certificate",
    ),
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": (
        "tls-client-certificate",
        "it presented no client certificate, which is required here",
    ),
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": (
        "tls-client-certificate",
        "it asks for a client certificate: configure one",
    ),
    "TLSV1_ALERT_UNKNOWN_CA": (
        "tls-certificate-refused",
        "it does not trust the CA of the certificate presented here: check the CA file of the other side",
    ),
    "SSLV3_ALERT_BAD_CERTIFICATE": (
        "tls-certificate-refused",
        "it refuses the certificate presented here: check the CA file and the server name set on the other side",
    ),
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": (
        "tls-certificate-refused",
        "it refuses the certificate presented here: check the CA file and the server name set on the other side",
    ),
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": (
        "tls-certificate-refused",
        "it says that the certificate presented here has expired: renew it",
    ),
    "TLSV1_UNRECOGNIZED_NAME": ("tls-name-unknown", "it serves no such name: check the address and the server name"),
    "TLSV1_ALERT_NO_APPLICATION_PROTOCOL": ("tls-alpn", "it supports none of the protocols that were offered (ALPN)"),
}
_NOT_TLS = frozenset({"HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG"})


def explain_handshake_failure(
    error: ssl.SSLError, *, peer: str, server_side: bool, server_hostname: str | None, first_bytes: bytes
) -> HandshakeError:
    """The `HandshakeError` for an error of `ssl`; ``first_bytes`` is the beginning of what the other side sent."""
    reason, text = _explain(error, server_side, server_hostname, first_bytes)
    return HandshakeError(f"TLS handshake with {peer} failed: {text}", reason=reason)


def explain_alert(error: ssl.SSLError) -> _Explanation | None:
    """Reason word and text where the error is an alert (TLS 1.3 servers refuse client certificates afterwards)."""
    return _REASONS.get(error.reason or "")


def _explain(error: ssl.SSLError, server_side: bool, server_hostname: str | None, first_bytes: bytes) -> _Explanation:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _explain_certificate(error, server_side, server_hostname)
    reason = error.reason or ""
    if reason in _NOT_TLS or (first_bytes and first_bytes[0] not in (0x15, 0x16)):
        return _explain_not_tls(first_bytes, server_side)
    known = _REASONS.get(reason)
    if known is not None:
        return known
    return "tls-failed", reason.replace("_", " ").lower() or str(error)


def _explain_certificate(
    error: ssl.SSLCertVerificationError, server_side: bool, server_hostname: str | None
) -> _Explanation:
    whose = "its client certificate" if server_side else "its certificate"
    if error.verify_code in _NAME_MISMATCHES:
        reason, text = _CERTIFICATE[error.verify_code]
        return reason, f"{whose} {text} than {server_hostname!r}: check the address, or set the server name"
    known = _CERTIFICATE.get(error.verify_code)
    if known is not None:
        return known[0], f"{whose} {known[1]}"
    return "tls-certificate", f"{whose} was not accepted: {error.verify_message}"


def _explain_not_tls(first_bytes: bytes, server_side: bool) -> _Explanation:
    if server_side:
        what = "plain HTTP" if first_bytes[:1].isalpha() else repr(first_bytes)
        return "tls-not-tls", f"received {what} on a TLS port: the client must use https:// or wss://"
    what = "a plain HTTP answer" if first_bytes.startswith(b"HTTP/") else f"{first_bytes!r}, which is not TLS"
    return "tls-not-tls", f"received {what}: check the port, or whether the address should say http:// or ws://"
