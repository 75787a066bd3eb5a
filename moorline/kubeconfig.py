"""Kubeconfig files that lead to kas. Pure: makes text; who writes it where is decided elsewhere."""

from __future__ import annotations

import base64
import dataclasses
import urllib.parse

import yaml


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where kubectl finds an agent, and which bearer token it must show there."""

    server: str
    """The URL for ``clusters[].cluster.server``."""
    bearer: str = dataclasses.field(repr=False)
    """The value for ``users[].user.token``."""


def address_of(agent_id: str, token: str, server: str) -> Address:
    """How one agent is addressed at a kas whose URL is ``server``.

    A URL without a path gets ``/k8s-proxy``, and the token names the agent; so does one with a path of its own, for a
    kas that is configured with another prefix. A URL that ends with ``/agents/<agent>/k8s``, or whose host name begins
    with ``<agent>.k8s.``, names the agent itself. Raises `ValueError` for a URL that cannot work.
    """
    parts = urllib.parse.urlsplit(server)
    path = parts.path.rstrip("/")
    if parts.scheme != "https" or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ValueError(f"{server!r} is not the URL of a kas: expected https://HOST[:PORT][/PATH]")
    if path.endswith(f"/agents/{agent_id}/k8s") or (not path and parts.hostname.startswith(f"{agent_id}.k8s.")):
        return Address(server=parts._replace(path=path).geturl(), bearer=token)
    if path.endswith("/k8s") and "/agents/" in path:
        raise ValueError(f"{server!r} leads to another agent: expected a path that ends with /agents/{agent_id}/k8s")
    return Address(server=parts._replace(path=path or "/k8s-proxy").geturl(), bearer=f"pat:{agent_id}:{token}")


def render_kubeconfig(*, name: str, user: str, address: Address, authority: bytes | None = None) -> str:
    """The text of a kubeconfig with one context, called ``name``.

    ``authority`` is the PEM of the certificates to trust; without it kubectl trusts what its machine trusts.
    """
    cluster: dict[str, str] = {"server": address.server}
    if authority is not None:
        cluster["certificate-authority-data"] = base64.b64encode(authority).decode()
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": user, "user": {"token": address.bearer}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": user}}],
    }
    return yaml.safe_dump(document, sort_keys=False)
