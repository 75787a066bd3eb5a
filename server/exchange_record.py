"""The record of one exchange, as observers see it. Fulfils `server.access_log.ExchangeFacts`."""

from __future__ import annotations

import dataclasses
import os

from server.addressing import Address
from server.directory import Caller
from server.errors import Hop
from server.verbs import RequestInfo
from tunnel.messages import RequestHead
from tunnel.progress import Progress


class RequestIds:
    """Random ids for exchanges: 64 bits in hexadecimal. Drawn from the system in batches; they are names, no secrets."""

    __slots__ = ("_drawn",)

    def __init__(self) -> None:
        self._drawn: list[str] = []

    def take(self) -> str:
        """A new one."""
        if not self._drawn:
            text = os.urandom(8 * _IDS_AT_ONCE).hex()
            self._drawn = [text[start : start + 16] for start in range(0, len(text), 16)]
        return self._drawn.pop()


_IDS_AT_ONCE = 256


@dataclasses.dataclass(slots=True, eq=False)
class Exchange:
    """One request and its response, as far as it has got. Times are seconds of `trio.current_time`."""

    request_id: str
    request: RequestHead
    peer: str
    started_at: float
    caller: Caller | None = None
    address: Address | None = None
    info: RequestInfo | None = None
    progress: Progress = dataclasses.field(default_factory=Progress)
    head_at: float | None = None
    ended_at: float | None = None
    status: int = 0
    """What the caller got; 0 where the connection was closed without an answer."""
    outcome: str = "cancelled"
    """completed, refused, cut between events, reset, abandoned or cancelled."""
    ended_by: str = "kas"
    """caller, upstream, agent, tunnel, kas or revocation."""
    failed_hop: Hop | None = None
    error: str = ""
    """What went wrong, in words without secrets."""
    revoked: bool = False
    """The caller's credential was revoked while this ran."""

    @property
    def user(self) -> str:
        """The recognised caller, or the empty string."""
        return self.caller.user if self.caller is not None else ""

    @property
    def credential_id(self) -> str:
        """Under which credential it runs, or the empty string."""
        return self.caller.credential_id if self.caller is not None else ""

    @property
    def agent_id(self) -> str:
        """The agent that it addresses, or the empty string."""
        return self.address.agent_id if self.address is not None else ""

    @property
    def origin(self) -> bytes:
        """The origin that it addresses, or nothing."""
        return self.address.origin if self.address is not None else b""

    @property
    def method(self) -> bytes:
        """The caller's method."""
        return self.request.method

    @property
    def target(self) -> bytes:
        """As received."""
        return self.request.target

    @property
    def verb_class(self) -> str:
        """watch, connect, read or write; empty before the address is known."""
        return self.info.verb_class if self.info is not None else ""

    @property
    def request_bytes(self) -> int:
        """Bytes of the request body that were sent on."""
        return self.progress.request_bytes

    @property
    def response_bytes(self) -> int:
        """Bytes of the response body that were passed back."""
        return self.progress.response_bytes

    def completed(self) -> None:
        """The response was relayed to its end."""
        self.status = self.progress.status
        self.outcome = "cut between events" if self.progress.cut_at_boundary else "completed"
        self.ended_by = "tunnel" if self.progress.cut_at_boundary else "upstream"

    def given_up(self) -> None:
        """The caller went away, or its credential was revoked."""
        if self.revoked:
            self.failed("reset", ended_by="revocation", hop=None, error="the token was revoked or has expired")
        else:
            self.failed("cancelled", ended_by="caller", hop=None, error="")

    def failed(self, outcome: str, *, ended_by: str, hop: Hop | None, error: str) -> None:
        """It ended in another way."""
        self.status = self.progress.status
        self.outcome, self.ended_by, self.failed_hop, self.error = outcome, ended_by, hop, error
