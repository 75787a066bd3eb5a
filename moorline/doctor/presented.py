"""What stands in the certificate that a server presented, for somebody who wonders why it was not accepted."""

from __future__ import annotations

import dataclasses
import datetime

from cryptography import x509


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PresentedCertificate:
    """A server's certificate."""

    issuer: str
    names: tuple[str, ...]
    """DNS names and IP addresses for which it is valid."""
    not_before: datetime.datetime
    not_after: datetime.datetime

    @classmethod
    def parse(cls, der: bytes | None) -> PresentedCertificate | None:
        """Read a certificate in DER; None where there is none, or one that only OpenSSL can read."""
        try:
            certificate = x509.load_der_x509_certificate(der or b"")
            return cls(
                issuer=certificate.issuer.rfc4514_string(),
                names=_names(certificate),
                not_before=certificate.not_valid_before_utc,
                not_after=certificate.not_valid_after_utc,
            )
        except (ValueError, x509.DuplicateExtension):
            return None


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    dns, addresses = (alternative.get_values_for_type(kind) for kind in (x509.DNSName, x509.IPAddress))
    return (*dns, *map(str, addresses))
