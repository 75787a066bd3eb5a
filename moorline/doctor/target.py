"""What `moorline doctor` is to reach, and as whom it asks."""

from __future__ import annotations

import dataclasses
import secrets
import ssl

from tunnel.dial_address import DialAddress
from tunnel.handshake import Hello
from tunnel.proxy_settings import ProxySettings

NO_TOKEN = "none"
"""What is sent in place of a token that cannot be used: kas refuses it, and so is seen to be there."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What agentk would dial, and with what."""

    address: DialAddress
    hello: Hello
    """With `NO_TOKEN` where there is none to try."""
    token_source: str = ""
    """Where the token is from; empty where none was given."""
    token_problem: str = ""
    """Why the token cannot be used; empty where it can."""
    tls: ssl.SSLContext
    """The context for kas, where the address is encrypted."""
    proxies: ProxySettings
    headers: tuple[tuple[str, str], ...] = ()


def probe_hello(token: str, version: str) -> Hello:
    """What the doctor says of itself: a replica and a process that no agent has, so that it replaces no tunnel."""
    return Hello(
        token=token,
        agent_version=version,
        replica=f"doctor-{secrets.token_hex(4)}",
        process=secrets.token_hex(8),
    )
