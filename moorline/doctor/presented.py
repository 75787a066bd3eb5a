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
    def parse(cls, der: bytes) -> PresentedCertificate:
        """Read a certificate in DER. Raises `ValueError` for what is none."""
        certificate = x509.load_der_x509_certificate(der)
        try:
            alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            names: tuple[str, ...] = ()
        else:
            names = (
                *alternative.get_values_for_type(x509.DNSName),
                *map(str, alternative.get_values_for_type(x509.IPAddress)),
            )
        return cls(
            issuer=certificate.issuer.rfc4514_string(),
            names=names,
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
        )

    def is_valid_at(self, moment: datetime.datetime) -> bool:
        """Whether the time is within what the certificate says."""
        return self.not_before <= moment <= self.not_after
