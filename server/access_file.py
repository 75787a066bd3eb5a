"""The access file: agents, users, the hashes of their tokens, and who may do what where.

    agents:
      - id: edge-1                       # a DNS label; the name by which callers address the cluster
        tokens:
          - name: default
            sha256: <64 hexadecimal digits>   # of the token; `kas token create` makes both
            expires: 2027-01-01T00:00:00Z     # optional
    users:
      - name: alice
        tokens:
          - {name: laptop, sha256: <64 hexadecimal digits>}
        agents:                          # the first that matches counts
          - agent: edge-1                # an id, or a pattern with * and ?
            mode: impersonate            # or "agent": with the agent's own rights
            as:                          # whom the cluster sees; default: a user of the same name, no groups
              user: alice
              uid: "1234"
              groups: [developers]
              extra: {example.com/team: [red]}
            role: full                   # or "read-only"
            may_impersonate:             # what `kubectl --as` may ask for; default: nothing
              users: ["ci-*"]
              groups: [auditors]
              uids: []
              extras: {example.com/team: ["*"]}
            via_cluster: false           # or true: ask the cluster whether its RBAC lets this user impersonate

Names that begin with ``system:`` are matched in ``may_impersonate`` only where they are written out. Pure, except for
`load_access_file`.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from operations.configuration import parse_mapping, structure
from server.addressing import AGENT_ID
from tunnel.identity import MAX_BLOCK_BYTES, Identity, Mode, Role, encode_identity

_SHA256 = re.compile(r"[0-9a-f]{64}")
_AGENT_PATTERN = re.compile(r"[a-z0-9*?-]{1,63}")
_RESERVED = "system:"
_REQUEST_ID_BYTES = 128  # allowed for in the size of identity blocks


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TokenRecord:
    """One token of an agent or a user."""

    sha256: str = dataclasses.field(repr=False)
    """SHA-256 of the token, in lower-case hexadecimal digits."""
    name: str = "default"
    """By which the token is listed and revoked; one of a kind per owner."""
    expires: datetime.datetime | None = None
    """When the token stops working, and what runs under it ends. Without an offset, the time is in UTC."""

    @property
    def expires_at(self) -> float:
        """Seconds since the epoch; infinite where the token does not expire."""
        return self.expires.timestamp() if self.expires is not None else math.inf

    def problems(self, path: str) -> Iterator[tuple[str, str]]:
        """What is wrong with the record; it stands at ``path``."""
        if not _SHA256.fullmatch(self.sha256):
            # What stands there may be the token itself, so it is not repeated.
            yield f"{path}.sha256", "expected 64 hexadecimal digits in lower case, the SHA-256 of the token"
        if not self.name:
            yield f"{path}.name", "must not be empty"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AgentRecord:
    """One agent."""

    id: str
    """A DNS label, by which callers address the cluster."""
    tokens: tuple[TokenRecord, ...] = ()
    """The tokens with which agentk may connect."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImpersonatedIdentity:
    """Whom the cluster sees."""

    user: str = ""
    """Default: the user's name in this file."""
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Keys are in lower case, as Kubernetes requires."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MayImpersonate:
    """Identities for which a caller may ask. Exact names, or patterns with ``*`` and ``?``."""

    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    uids: tuple[str, ...] = ()
    extras: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """By key (exact, in lower case), the values for which the caller may ask."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a user may do with the agents that match."""

    agent: str
    """An agent id, or a pattern with ``*`` and ``?``."""
    mode: Mode = "impersonate"
    """"impersonate": the cluster's RBAC decides for the identity below. "agent": the agent's own rights."""
    identity: ImpersonatedIdentity = dataclasses.field(default_factory=ImpersonatedIdentity, metadata={"key": "as"})
    role: Role = "full"
    """"read-only" also refuses exec, attach, port-forward, proxy, and everything that is not known to be a read."""
    may_impersonate: MayImpersonate = dataclasses.field(default_factory=MayImpersonate)
    """What ``kubectl --as`` may ask for."""
    via_cluster: bool = False
    """Ask the cluster whether this user may impersonate, where ``may_impersonate`` does not allow it."""

    def matches(self, agent_id: str) -> bool:
        """Whether this grant is for the agent."""
        return matches(self.agent, agent_id)

    def for_user(self, name: str) -> Grant:
        """The same grant, with the user's own name where the file gives none."""
        if self.identity.user:
            return self
        return dataclasses.replace(self, identity=dataclasses.replace(self.identity, user=name))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UserRecord:
    """One user."""

    name: str
    tokens: tuple[TokenRecord, ...] = ()
    agents: tuple[Grant, ...] = ()
    """What the user may do where; the first that matches an agent counts."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AccessFile:
    """The whole file."""

    agents: tuple[AgentRecord, ...] = ()
    users: tuple[UserRecord, ...] = ()

    def problems(self) -> Iterator[tuple[str, str]]:
        """Rules that concern several keys, or several entries."""
        yield from _repeated("agents", "id", [agent.id for agent in self.agents])
        yield from _repeated("users", "name", [user.name for user in self.users])
        owners: dict[str, str] = {}
        for index, agent in enumerate(self.agents):
            if not AGENT_ID.fullmatch(agent.id):
                yield f"agents[{index}].id", "expected a DNS label: at most 63 of a-z, 0-9 and -, not - at an end"
            yield from _token_problems(f"agents[{index}]", agent.tokens, owners)
        for index, user in enumerate(self.users):
            if not user.name:
                yield f"users[{index}].name", "must not be empty"
            yield from _token_problems(f"users[{index}]", user.tokens, owners)
            for position, grant in enumerate(user.agents):
                yield from _grant_problems(f"users[{index}].agents[{position}]", grant.for_user(user.name))


def load_access_file(path: Path) -> AccessFile:
    """Read and check the file. Raises `ConfigurationError` with all problems, or `OSError`."""
    return structure(AccessFile, parse_mapping(path.read_bytes(), str(path)), source=str(path))


def matches(pattern: str, name: str) -> bool:
    """Whether a name matches a pattern in which ``*`` stands for any text and ``?`` for one character."""
    return pattern == name or (("*" in pattern or "?" in pattern) and _compiled(pattern).fullmatch(name) is not None)


@functools.lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = [{"*": ".*", "?": "."}.get(character, re.escape(character)) for character in pattern]
    return re.compile("".join(parts), re.DOTALL)


def may_be_asked_for(patterns: Sequence[str], name: str) -> bool:
    """Whether one of the patterns allows a name; ``system:…`` must be written out."""
    if name.startswith(_RESERVED):
        return name in patterns
    return any(matches(pattern, name) for pattern in patterns)


def _repeated(section: str, key: str, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if first.setdefault(name, index) != index:
            yield f"{section}[{index}].{key}", f"{name} is there already, as {section}[{first[name]}]"


def _token_problems(path: str, tokens: Sequence[TokenRecord], owners: dict[str, str]) -> Iterator[tuple[str, str]]:
    yield from _repeated(f"{path}.tokens", "name", [token.name for token in tokens])
    for index, token in enumerate(tokens):
        here = f"{path}.tokens[{index}]"
        yield from token.problems(here)
        if _SHA256.fullmatch(token.sha256) and owners.setdefault(token.sha256, here) != here:
            yield f"{here}.sha256", f"is the same as {owners[token.sha256]}.sha256; a token belongs to one owner"


def _grant_problems(path: str, grant: Grant) -> Iterator[tuple[str, str]]:
    if not _AGENT_PATTERN.fullmatch(grant.agent):
        yield f"{path}.agent", "expected an agent id, or a pattern of a-z, 0-9, -, * and ?"
    if grant.mode == "agent" and (grant.identity.groups or grant.identity.uid or grant.identity.extra):
        yield f"{path}.as", "has no effect with mode agent; remove it, or use mode impersonate"
    keys = [*grant.identity.extra, *grant.may_impersonate.extras]
    for key in keys:
        if key != key.lower() or not key:
            yield f"{path}", f"the extra key {key!r} must be in lower case, as Kubernetes compares it"
    size = len(encode_identity(identity_of(grant, request_id="x" * _REQUEST_ID_BYTES)))
    if size > MAX_BLOCK_BYTES:
        yield f"{path}.as", f"makes an identity block of {size} bytes; at most {MAX_BLOCK_BYTES} reach the agent"
    for kind, patterns in _impersonation_patterns(grant.may_impersonate):
        for pattern in patterns:
            if pattern.startswith(_RESERVED) and ("*" in pattern or "?" in pattern):
                yield f"{path}.may_impersonate.{kind}", f"{pattern}: names that begin with system: must be written out"


def _impersonation_patterns(allowed: MayImpersonate) -> Iterator[tuple[str, Sequence[str]]]:
    yield "users", allowed.users
    yield "groups", allowed.groups
    yield "uids", allowed.uids
    for key, values in allowed.extras.items():
        yield f"extras.{key}", values


def identity_of(grant: Grant, *, request_id: str) -> Identity:
    """The identity block for a caller who asks for nothing else than the grant says."""
    configured = grant.identity
    return Identity(
        mode=grant.mode,
        user=configured.user,
        uid=configured.uid,
        groups=configured.groups,
        extra=configured.extra,
        request_id=request_id,
        role=grant.role,
    )
