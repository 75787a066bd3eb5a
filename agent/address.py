"""Where the kube-apiserver is: the ``server`` of a kubeconfig, or the service that the cluster announces. Pure."""

from __future__ import annotations

import dataclasses
from urllib.parse import urlsplit

_DEFAULT_PORTS = {"https": 443, "http": 80}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ApiServerAddress:
    """A kube-apiserver, as one dials it and as one names it."""

    scheme: str
    """"https" or "http"."""
    host: str
    """A name or an address, without brackets."""
    port: int
    prefix: bytes = b""
    """The path of the URL without a trailing slash; put in front of every target."""

    @property
    def authority(self) -> bytes:
        """The value of ``Host``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.port == _DEFAULT_PORTS[self.scheme]:
            return host.encode("ascii")
        return f"{host}:{self.port}".encode("ascii")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority.decode()}{self.prefix.decode()}"


def parse_server(server: str) -> ApiServerAddress:
    """The address that a kubeconfig's ``server`` names. Raises `ValueError` whose text says what is wrong with it.

    Without a scheme, http is meant, as for kubectl.
    """
    text = server if "://" in server else f"http://{server}"
    parts = urlsplit(text)
    if parts.scheme not in _DEFAULT_PORTS:
        raise ValueError(f"the scheme is {parts.scheme!r}, and must be https or http")
    if parts.username is not None or parts.password is not None:
        raise ValueError("it contains a user name or password; put credentials into the user entry")
    if parts.query or parts.fragment:
        raise ValueError("it has a query or a fragment")
    if not parts.hostname:
        raise ValueError("it names no host")
    try:
        port = parts.port
    except ValueError:
        raise ValueError("its port is not a number between 0 and 65535") from None
    try:
        host = parts.hostname.encode("ascii").decode()
        prefix = parts.path.rstrip("/").encode("ascii")
    except UnicodeEncodeError:
        raise ValueError("host and path must be ASCII") from None
    if any(byte <= 0x20 or byte == 0x7F for byte in prefix + host.encode()):
        raise ValueError("it contains white space or control characters")
    return ApiServerAddress(scheme=parts.scheme, host=host, port=port or _DEFAULT_PORTS[parts.scheme], prefix=prefix)
