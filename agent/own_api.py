"""The origin ``agentk``: what the agent says about itself. Read-only, and nothing in it is secret."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from agent.dispatch import answer_failure
from tunnel.direct import DirectExchange
from tunnel.identity import Identity
from tunnel.messages import Downstream, ResponseHead

INFO_TARGET = b"/v1/info"


class OwnApi:
    """Answers ``GET /v1/info``."""

    def __init__(self, describe: Callable[[], dict[str, Any]]) -> None:
        """``describe`` returns the facts at this moment, as what JSON knows."""
        self._describe = describe

    def begin(self, downstream: Downstream, identity: Identity) -> bool:
        """See `agent.dispatch.Origin.begin`: a task answers."""
        return False

    async def go_on(self, downstream: Downstream, direct: DirectExchange) -> None:
        """See `agent.dispatch.Origin.go_on`; never called, since nothing is begun."""

    async def serve(self, downstream: Downstream, identity: Identity) -> None:
        """See `agent.dispatch.Origin.serve`."""
        request = downstream.request
        path = request.target.partition(b"?")[0]
        if path != INFO_TARGET:
            await answer_failure(downstream, 404, "not-found", "the agent has nothing there; try GET /v1/info")
            return
        if request.method not in (b"GET", b"HEAD") or request.protocol is not None:
            await answer_failure(downstream, 405, "bad-request", "only GET and HEAD are answered there")
            return
        body = json.dumps(self._describe(), separators=(",", ":")).encode()
        head = ResponseHead(
            200,
            [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                (b"cache-control", b"no-store"),
            ],
            len(body),
        )
        await downstream.send_response(head, b"" if request.method == b"HEAD" else body, end=True)
