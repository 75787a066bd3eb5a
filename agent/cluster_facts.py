"""What the agent asks its cluster on its own account: is it there, which version, which cluster is it.

Asked when somebody wants to know and remembered for a while; nothing is polled. Each question has a deadline, and a
question without an answer is an answer too: the agent works without knowing the cluster's UID.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import trio

from agent.upstream import UpstreamFailure, UpstreamOpener
from tunnel.errors import ErrorCode, TunnelError
from tunnel.messages import RequestHead

QUESTION_SECONDS = 5.0
ANSWER_BYTES = 262_144

REMEMBERED_SECONDS = 10.0
"""For how long an answer about reachability holds; probes come every few seconds, from several places."""

_UID_TARGET = b"/api/v1/namespaces/kube-system"
_VERSION_TARGET = b"/version"
_ACCEPT = [(b"accept", b"application/json"), (b"user-agent", b"moorline-agentk")]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reachability:
    """Whether the kube-apiserver can be used now."""

    is_ready: bool
    reason: str
    """Why not; "" where it can."""


class ClusterFacts:
    """What is known of one cluster."""

    def __init__(self, opener: UpstreamOpener) -> None:
        self._opener = opener
        self._lock = trio.Lock()
        self._reachability: Reachability | None = None
        self._asked_at = 0.0
        self.uid = ""
        """The UID of the namespace ``kube-system``; "" while it is not known, or may not be read."""
        self.kubernetes_version = ""
        """As ``/version`` says it, such as v1.36.0; "" while it is not known."""

    async def read_uid(self) -> None:
        """Ask for the UID, once successfully; leaves it empty where that fails. Never raises."""
        if self.uid:
            return
        try:
            status, document = await self._ask(_UID_TARGET)
        except (UpstreamFailure, TunnelError):
            return
        metadata = document.get("metadata")
        uid = metadata.get("uid") if isinstance(metadata, dict) else None
        if status == 200 and isinstance(uid, str) and uid.isascii() and uid.isprintable() and 0 < len(uid) <= 64:
            self.uid = uid

    async def reachability(self) -> Reachability:
        """Whether the kube-apiserver answers and knows the agent; at most `REMEMBERED_SECONDS` old.

        Many may ask at the same time; one question goes out. Cancelling is safe.
        """
        async with self._lock:
            now = trio.current_time()
            if self._reachability is None or now - self._asked_at >= REMEMBERED_SECONDS:
                self._reachability = await self._try()
                self._asked_at = trio.current_time()
            return self._reachability

    async def _try(self) -> Reachability:
        try:
            status, document = await self._ask(_VERSION_TARGET)
        except (UpstreamFailure, TunnelError) as exc:
            return Reachability(is_ready=False, reason=str(exc))
        if status == 401:
            return Reachability(
                is_ready=False, reason="the kube-apiserver does not accept the agent's credentials (401)"
            )
        if status >= 500:
            return Reachability(is_ready=False, reason=f"the kube-apiserver answers {status}")
        version = document.get("gitVersion")
        if isinstance(version, str):
            self.kubernetes_version = version[:64]
        return Reachability(is_ready=True, reason="")

    async def _ask(self, target: bytes) -> tuple[int, dict[str, Any]]:
        """Status and JSON object (empty for anything else) of a GET with the agent's own rights."""
        with trio.move_on_after(QUESTION_SECONDS):
            exchange = await self._opener.open(RequestHead(b"GET", target, b"", list(_ACCEPT), ended=True))
            try:
                head = await exchange.receive_head()
                while head.status < 200:
                    head = await exchange.receive_head()
                content = b""
                while data := await exchange.body.receive():
                    content += data
                    if len(content) > ANSWER_BYTES:
                        return head.status, {}
            finally:
                exchange.reset(ErrorCode.CANCEL)
            return head.status, _object(content)
        raise UpstreamFailure(f"the kube-apiserver did not answer within {QUESTION_SECONDS:g} s")


def _object(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
