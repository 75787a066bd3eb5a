"""The agent's token towards kas: from a file that is read again before each attempt, or from the environment."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from pathlib import Path
from typing import Protocol

from operations.values import InvalidValue, SecretFile

TOKEN_VARIABLE = "AGENTK_TOKEN"

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{1,512}=*")


class Token(Protocol):
    """Where the token comes from."""

    source: str
    """What an operator checks when kas refuses the token."""

    def read(self) -> str:
        """The token at this moment. Raises `InvalidValue`, which names the source and never the token."""
        ...


class TokenFile:
    """A token in a file; rotation needs no restart."""

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        self._file = SecretFile(path)

    def read(self) -> str:
        """See `Token.read`. The file is small and local, so it is read without a thread."""
        return _checked(self._file.read(), self.source)


class FixedToken:
    """A token that was given at the start."""

    def __init__(self, token: str, source: str) -> None:
        self.source = source
        self._token = _checked(token.strip(), source)

    def read(self) -> str:
        """See `Token.read`."""
        return self._token


def find_token(path: Path | None, environment: MutableMapping[str, str]) -> Token:
    """The token that the configuration or the environment names; the variable is removed.

    Raises `InvalidValue` where there is none, or two, or one that cannot be a token.
    """
    from_environment = environment.pop(TOKEN_VARIABLE, "").strip()
    if from_environment and path is not None:
        raise InvalidValue(f"given twice: as a file ({path}) and in {TOKEN_VARIABLE}; remove one of them")
    if from_environment:
        return FixedToken(from_environment, TOKEN_VARIABLE)
    if path is None:
        raise InvalidValue(f"is required: the file with the agent's token (flag --token-file), or {TOKEN_VARIABLE}")
    token = TokenFile(path)
    token.read()
    return token


def _checked(token: str, source: str) -> str:
    if not _TOKEN.fullmatch(token):
        raise InvalidValue(f"what {source} holds is no token: it is empty, or has white space or other characters")
    if token.startswith("mlu_"):
        raise InvalidValue(f"what {source} holds is the token of a user; agents have tokens that begin with mla_")
    return token
