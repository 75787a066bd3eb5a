"""Tokens: 256 random bits behind a prefix that says for whom they are. Only their SHA-256 is ever stored.

A fast hash is right here: there is nothing to guess in 256 random bits.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string

USER_PREFIX = "mlu_"
AGENT_PREFIX = "mla_"

_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_LENGTH = 43  # 62**43 > 2**256
_WELL_FORMED = re.compile(r"ml[ua]_[0-9A-Za-z]{43}")


def new_token(prefix: str) -> str:
    """A new token. Letters and digits only, so that a double click selects all of it."""
    number = secrets.randbits(256)
    digits = []
    for _ in range(_LENGTH):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return prefix + "".join(digits)


def is_well_formed(token: str, prefix: str) -> bool:
    """Whether this could be a token of that kind."""
    return token.startswith(prefix) and _WELL_FORMED.fullmatch(token) is not None


def digest(token: str) -> str:
    """The SHA-256 of a token as the access file has it."""
    return hashlib.sha256(token.encode()).hexdigest()
