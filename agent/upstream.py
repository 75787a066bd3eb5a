"""How the agent reaches what it serves: one narrow protocol, and what can go wrong before there is an answer.

Behind it stands a pool of HTTP/1.1 connections today; what calls it does not know that.
"""

from __future__ import annotations

from typing import Protocol

from tunnel.messages import RequestHead, Upstream


class UpstreamFailure(Exception):
    """No answer came from the upstream, and the caller is told so.

    ``status`` and ``word`` are answered, ``word`` in the field ``moorline-error``. The text says what failed and where.
    """

    status = 502
    word = "upstream-unreachable"


class UpstreamUnreachable(UpstreamFailure):
    """No connection could be made, or the agent has no credentials: nothing was sent."""


class UpstreamTimeout(UpstreamFailure):
    """The upstream did not accept a connection, or did not answer, in time."""

    status = 504
    word = "upstream-timeout"


class UpstreamBusy(UpstreamFailure):
    """The agent itself has no room (file descriptors): nothing was sent."""

    status = 503
    word = "busy"


class UpstreamOpener(Protocol):
    """Sends requests on."""

    async def open(self, request: RequestHead) -> Upstream:
        """Send the head of a request and return the exchange.

        Whoever gets it calls `Upstream.reset` on every way out; after a clean end that only gives the connection back.
        Raises `UpstreamFailure`. Cancelled, the connection is closed.
        """
        ...
