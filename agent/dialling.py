"""One attempt to open a tunnel: what the agent says of itself, with the token and the trust of this moment."""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Callable, Mapping

from agent.config import KasConfig
from agent.token import Token
from operations.values import InvalidValue
from tunnel.dial_address import DialAddress
from tunnel.dialer import dial
from tunnel.errors import HandshakeError, LocalProtocolError
from tunnel.handshake import Hello, Welcome
from tunnel.proxy_settings import ProxySettings
from tunnel.transports.base import Transport
from tunnel.transports.tls_contexts import client_context


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """This running copy of the agent, as it introduces itself."""

    version: str
    name: str
    process: str
    """Random for each start."""
    origins: tuple[str, ...]


class KasDialer:
    """Dials the configured kas."""

    def __init__(
        self,
        config: KasConfig,
        token: Token,
        replica: Replica,
        *,
        cluster_uid: Callable[[], str],
        environment: Mapping[str, str],
    ) -> None:
        """Raises `ValueError` for an address or a proxy that cannot be one."""
        self.address = DialAddress.parse(config.address)
        self._config = config
        self._token = token
        self._replica = replica
        self._cluster_uid = cluster_uid
        self._proxy = ProxySettings.from_environment(environment)
        self._headers = header_fields(config)
        self._contexts: tuple[bytes | None, ssl.SSLContext] | None = None

    async def dial(self, holds: tuple[str, ...], replaces: str | None) -> tuple[Transport, Welcome]:
        """See `agent.supervisor.Dial`. Reads the token and the CA file again each time."""
        try:
            token = self._token.read()
        except InvalidValue as exc:
            raise HandshakeError(f"the agent's token cannot be used: {exc}", reason="token") from exc
        hello = Hello(
            token=token,
            agent_version=self._replica.version,
            replica=self._replica.name,
            process=self._replica.process,
            cluster=self._cluster_uid(),
            origins=self._replica.origins,
            holds=holds,
            replaces=replaces,
        )
        try:
            return await dial(
                self.address,
                hello,
                tls=self._context() if self.address.is_encrypted else None,
                proxy=self._proxy,
                extra_headers=self._headers,
                insecure_plaintext=self._config.insecure_plaintext,
            )
        except LocalProtocolError as exc:
            raise HandshakeError(f"the handshake cannot be sent: {exc}", reason="configuration") from exc

    def _context(self) -> ssl.SSLContext:
        """The context for kas; made once, and again when the CA file has changed."""
        path = self._config.ca_file
        try:
            content = path.read_bytes() if path is not None else None
            if self._contexts is None or self._contexts[0] != content:
                self._contexts = (content, kas_context(content))
        except (OSError, ValueError) as exc:
            raise HandshakeError(f"kas.ca_file {path} cannot be used: {exc}", reason="ca-file") from exc
        return self._contexts[1]


def header_fields(config: KasConfig) -> list[tuple[str, str]]:
    """``kas.headers`` as names and values."""
    return [(name, value.strip()) for name, _, value in (line.partition(":") for line in config.headers)]


def kas_context(ca_pem: bytes | None) -> ssl.SSLContext:
    """The context for kas, which trusts ``ca_pem`` beside the system's CAs. Raises `OSError` and `ValueError`."""
    pem = ca_pem.decode("ascii", "ignore") if ca_pem is not None else None
    return client_context(ca_data=pem, alpn=("http/1.1",))
