"""Which HTTP proxy to dial through, from ``HTTPS_PROXY``, ``HTTP_PROXY`` and ``NO_PROXY``. Pure.

``NO_PROXY`` means what it means to Go programs, since those are the others in the cluster: a name also stands for its
subdomains, one with a leading dot for its subdomains only.
"""

from __future__ import annotations

import base64
import dataclasses
import ipaddress
import urllib.parse
from collections.abc import Mapping
from typing import Self

from tunnel.dial_address import DialAddress, bracketed

_DEFAULT_PORTS = {"http": 80, "https": 443}

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclasses.dataclass(slots=True, frozen=True, kw_only=True)
class ProxyUrl:
    """An HTTP proxy that understands CONNECT."""

    scheme: str
    """``http``, or ``https`` for a proxy to which TLS is spoken."""
    host: str
    port: int
    user: str = dataclasses.field(default="", repr=False)
    password: str = dataclasses.field(default="", repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``[http[s]://][user:password@]host[:port]``. Raises `ValueError`, which never shows the credentials."""
        try:
            parts = urllib.parse.urlsplit(text if "://" in text else f"http://{text}")
            port = parts.port
        except ValueError:  # its text may show the credentials
            raise ValueError("a proxy's address is malformed: [http[s]://][user:password@]host[:port]") from None
        if parts.scheme not in _DEFAULT_PORTS:
            raise ValueError(f"a proxy's address must begin with http:// or https://, and not with {parts.scheme}://")
        if not parts.hostname:
            raise ValueError("a proxy's address names no host")
        return cls(
            scheme=parts.scheme,
            host=parts.hostname,
            port=_DEFAULT_PORTS[parts.scheme] if port is None else port,
            user=urllib.parse.unquote(parts.username or ""),
            password=urllib.parse.unquote(parts.password or ""),
        )

    @property
    def basic_credentials(self) -> bytes | None:
        """The value of ``Proxy-Authorization``, or None where the address holds no user."""
        if not self.user:
            return None
        return b"Basic " + base64.b64encode(f"{self.user}:{self.password}".encode())

    def __str__(self) -> str:
        return f"{self.scheme}://{bracketed(self.host)}:{self.port}"


@dataclasses.dataclass(slots=True, frozen=True)
class _Exemption:
    """One member of ``NO_PROXY``."""

    name: str = ""
    subdomains_only: bool = False
    network: _Network | None = None
    port: int | None = None

    def covers(self, host: str, address: _Address | None, port: int) -> bool:
        if self.port is not None and self.port != port:
            return False
        if self.network is not None:
            return address is not None and address in self.network
        if address is not None:
            return False
        return host.endswith("." + self.name) or (host == self.name and not self.subdomains_only)


@dataclasses.dataclass(slots=True, frozen=True, kw_only=True)
class ProxySettings:
    """Which proxy, and what is reached without one."""

    https_proxy: ProxyUrl | None = None
    """For encrypted addresses."""
    http_proxy: ProxyUrl | None = None
    """For plaintext addresses."""
    no_proxy: str = ""
    """Names, addresses, networks, each with or without a port, or ``*``; separated by commas or spaces."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read the usual variables; the lower-case ones come first. Raises `ValueError` which names the variable."""

        def proxy(name: str) -> ProxyUrl | None:
            value = (environment.get(name.lower()) or environment.get(name) or "").strip()
            try:
                return ProxyUrl.parse(value) if value else None
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None

        no_proxy = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
        return cls(https_proxy=proxy("HTTPS_PROXY"), http_proxy=proxy("HTTP_PROXY"), no_proxy=no_proxy)

    def for_address(self, address: DialAddress) -> ProxyUrl | None:
        """The proxy to dial through, or None to dial directly."""
        proxy = self.https_proxy if address.is_encrypted else self.http_proxy
        if proxy is None or self._is_exempt(address.host, address.port):
            return None
        return proxy

    def _is_exempt(self, host: str, port: int) -> bool:
        host = host.lower().rstrip(".")
        address = _address(host)
        if host == "localhost" or (address is not None and address.is_loopback):
            return True
        members = self.no_proxy.replace(",", " ").split()
        return "*" in members or any(_exemption(member).covers(host, address, port) for member in members)


NO_PROXIES = ProxySettings()
"""Dial everything directly."""


def _address(text: str) -> _Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _exemption(member: str) -> _Exemption:
    """Read one member; what cannot be read covers nothing, as with everybody else who reads this variable."""
    member = member.lower()
    try:
        return _Exemption(network=ipaddress.ip_network(member, strict=False))
    except ValueError:
        pass
    host, port = _split_port(member)
    address = _address(host)
    if address is not None:
        return _Exemption(network=ipaddress.ip_network(address), port=port)
    name = host.removeprefix("*")
    return _Exemption(name=name.strip("."), subdomains_only=name.startswith("."), port=port)


def _split_port(member: str) -> tuple[str, int | None]:
    if member.startswith("["):
        host, _, port = member[1:].partition("]")
        port = port.removeprefix(":")
    else:
        host, _, port = member.partition(":")
    return host, int(port) if port.isascii() and port.isdigit() else None
