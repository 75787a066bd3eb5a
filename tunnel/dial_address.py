"""The address at which an agent reaches kas. Pure."""

from __future__ import annotations

import dataclasses
import re
import urllib.parse
from typing import Self

from tunnel.handshake import Form

_DEFAULT_PORTS = {"wss": 443, "https": 443, "ws": 80, "http": 80}
_HOST = re.compile(r"[A-Za-z0-9._:-]{1,253}")
_PATH = re.compile(r"[!-~]*")


@dataclasses.dataclass(slots=True, frozen=True, kw_only=True)
class DialAddress:
    """``wss://``, ``https://``, ``ws://`` or ``http://``, a host, a port, and maybe a path prefix."""

    scheme: str
    host: str
    """A name or an address, IPv6 without brackets."""
    port: int
    path_prefix: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``scheme://host[:port][/prefix]``. Raises `ValueError`, whose text says what is wrong."""
        if "@" in text:  # first, so that no message shows them
            raise ValueError("credentials have no place in the address: the agent's token has a setting of its own")
        try:
            parts = urllib.parse.urlsplit(text.strip())
            port = parts.port
        except ValueError as error:
            raise ValueError(f"{text!r} is not an address: {error}") from None
        if parts.scheme not in _DEFAULT_PORTS:
            raise ValueError(f"{text!r} must begin with wss://, https://, ws:// or http://")
        if not parts.hostname or not _HOST.fullmatch(parts.hostname):
            raise ValueError(f"{text!r} names no host")
        if parts.query or parts.fragment or not _PATH.fullmatch(parts.path):
            raise ValueError(f"{text!r}: only a path may follow the host")
        if port is None:
            port = _DEFAULT_PORTS[parts.scheme]
        return cls(scheme=parts.scheme, host=parts.hostname, port=port, path_prefix=parts.path.rstrip("/"))

    @property
    def is_encrypted(self) -> bool:
        """Whether TLS is spoken."""
        return self.scheme in ("wss", "https")

    @property
    def form(self) -> Form:
        """What the handshake asks for."""
        return Form.WEBSOCKET if self.scheme in ("wss", "ws") else Form.UPGRADE

    @property
    def authority(self) -> str:
        """The value of ``Host``: without the port where it is the scheme's own."""
        if self.port == _DEFAULT_PORTS[self.scheme]:
            return bracketed(self.host)
        return f"{bracketed(self.host)}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path_prefix}"


def bracketed(host: str) -> str:
    """The host as it stands in an authority: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host
