"""Who may come in: agents and users by their tokens, and what each user may do with which agent.

`Directory` is what the rest of kas knows. `FileDirectory` answers from a YAML file that is read again when it changes;
the HTTP API of a main application can stand in its place, which is why the methods are asynchronous. `access_file` has
the format of the file.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import trio

from operations.watched_files import WatchedFiles
from server.access_file import AccessFile, Grant, TokenRecord, load_access_file
from server.tokens import AGENT_PREFIX, USER_PREFIX, digest, is_well_formed

logger = logging.getLogger(__name__)

Ended = Callable[[frozenset[str]], None]
"""Called with the ids of credentials whose running exchanges and tunnels are to end now. Must not raise."""

_LONGEST_SLEEP_SECONDS = 60.0  # expiry is a wall-clock time, and wall clocks are set


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AgentEntry:
    """An agent that was recognised by its token."""

    agent_id: str
    credential_id: str
    expires_at: float = math.inf
    """Seconds since the epoch at which the token ends, and with it the tunnels that it opened."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A user who was recognised by a token."""

    user: str
    credential_id: str
    grants: tuple[Grant, ...] = ()
    """What the user may do with which agents; the first that matches counts."""
    expires_at: float = math.inf
    """Seconds since the epoch at which the token ends, and with it what runs under it."""


class Directory(Protocol):
    """Where kas looks up agents and users."""

    async def authenticate_agent(self, token: str) -> AgentEntry | None:
        """The agent to which the token belongs; None where it is no agent token that works now."""
        ...

    async def authenticate_user(self, token: str) -> Caller | None:
        """The user to whom the token belongs; None where it is no user token that works now."""
        ...

    async def has_agent(self, agent_id: str) -> bool:
        """Whether there is an agent of this id, connected or not."""
        ...

    def known_user(self, token: str) -> Caller | None:
        """What `authenticate_user` would answer, where that is known without waiting; else None."""
        ...

    def knows_agent(self, agent_id: str) -> bool:
        """Whether `has_agent` is known to be true without waiting."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch for what ends, for as long as kas runs."""
        ...


class FileDirectory:
    """The directory in a YAML file.

    Its asynchronous methods answer from memory, without a checkpoint. ``ended`` is called in the event loop when an
    entry or token was removed or changed, and when a token expires.
    """

    def __init__(
        self,
        path: Path,
        files: WatchedFiles,
        *,
        ended: Ended,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Load the file, now and when it changes. Raises `ConfigurationError`, `FileProblem` or `OSError`."""
        self._ended = ended
        self._wall_clock = wall_clock
        self._index = _Index(AccessFile())
        self._changed = trio.Event()
        files.watch("access file", path, load=lambda: _Index(load_access_file(path)), apply=self._take_over)

    async def authenticate_agent(self, token: str) -> AgentEntry | None:
        """The agent to which the token belongs; None where it is no agent token that works now."""
        if not is_well_formed(token, AGENT_PREFIX):
            return None
        entry = self._index.agents.get(digest(token))
        return entry if entry is not None and self._wall_clock() < entry.expires_at else None

    async def authenticate_user(self, token: str) -> Caller | None:
        """The user to whom the token belongs; None where it is no user token that works now."""
        return self.known_user(token)

    def known_user(self, token: str) -> Caller | None:
        """See `Directory.known_user`."""
        if not is_well_formed(token, USER_PREFIX):
            return None
        caller = self._index.users.get(digest(token))
        return caller if caller is not None and self._wall_clock() < caller.expires_at else None

    async def has_agent(self, agent_id: str) -> bool:
        """Whether the file lists an agent of this id."""
        return self.knows_agent(agent_id)

    def knows_agent(self, agent_id: str) -> bool:
        """See `Directory.knows_agent`."""
        return agent_id in self._index.agent_ids

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """End what runs under tokens that expire, at the time at which they do. Runs until it is cancelled."""
        task_status.started()
        before = self._wall_clock()
        while True:
            changed = self._changed
            pause = min(self._index.next_expiry(before) - self._wall_clock(), _LONGEST_SLEEP_SECONDS)
            with trio.move_on_after(max(pause, 0.0)):
                await changed.wait()
            now = self._wall_clock()
            expired = self._index.expired_between(before, now)
            before = now
            if expired:
                logger.info("tokens expired; what ran under them ends", extra={"credentials": sorted(expired)})
                self._ended(expired)

    def _take_over(self, index: _Index) -> None:
        before, self._index = self._index, index
        for user, pattern in index.grants_without_agent:
            logger.warning("a grant in the access file fits no agent", extra={"user": user, "agent": pattern})
        now = self._wall_clock()
        ended = frozenset(before.credentials.keys() - index.credentials.keys()) | frozenset(
            credential_id
            for credential_id, entry in before.credentials.items()
            if credential_id in index.credentials and _is_narrower(index.credentials[credential_id], entry, now)
        )
        changed, self._changed = self._changed, trio.Event()
        changed.set()
        if ended:
            logger.info("credentials were revoked or changed; what runs under them ends", extra={"count": len(ended)})
            self._ended(ended)


class _Index:
    """One version of the file, by digest of the token."""

    def __init__(self, file: AccessFile) -> None:
        self.agents: dict[str, AgentEntry] = {}
        self.users: dict[str, Caller] = {}
        self.agent_ids = frozenset(agent.id for agent in file.agents)
        self.grants_without_agent = list(_grants_without_agent(file))
        for agent in file.agents:
            for token in agent.tokens:
                self.agents[token.sha256] = AgentEntry(
                    agent_id=agent.id,
                    credential_id=_credential_id("agent", agent.id, token),
                    expires_at=token.expires_at,
                )
        for user in file.users:
            for token in user.tokens:
                self.users[token.sha256] = Caller(
                    user=user.name,
                    credential_id=_credential_id("user", user.name, token),
                    grants=tuple(grant.for_user(user.name) for grant in user.agents),
                    expires_at=token.expires_at,
                )
        entries: list[AgentEntry | Caller] = [*self.agents.values(), *self.users.values()]
        self.credentials = {entry.credential_id: entry for entry in entries}

    def next_expiry(self, after: float) -> float:
        """The next time at which a token ends, in seconds since the epoch; infinite where none does."""
        return min(
            (entry.expires_at for entry in self.credentials.values() if entry.expires_at > after), default=math.inf
        )

    def expired_between(self, start: float, end: float) -> frozenset[str]:
        """The credentials that ended after ``start`` and not after ``end``."""
        return frozenset(
            credential_id for credential_id, entry in self.credentials.items() if start < entry.expires_at <= end
        )


def _credential_id(kind: str, owner: str, token: TokenRecord) -> str:
    # Twelve digits of the digest tell a token from its successor of the same name, and give nothing away.
    return f"{kind}/{owner}/{token.name}/{token.sha256[:12]}"


def _is_narrower(after: AgentEntry | Caller, before: AgentEntry | Caller, now: float) -> bool:
    """Whether something was taken away. Grants that were added at the end take nothing away."""
    if after.expires_at <= now < before.expires_at:
        return True
    if isinstance(after, Caller) and isinstance(before, Caller):
        return after.grants[: len(before.grants)] != before.grants
    return False


def _grants_without_agent(file: AccessFile) -> Iterator[tuple[str, str]]:
    known = {agent.id for agent in file.agents}
    for user in file.users:
        for grant in user.agents:
            if not any(grant.matches(agent_id) for agent_id in known):
                yield user.name, grant.agent
