"""The identity block: on whose behalf an exchange is made, and how the agent may act for it.

Every exchange carries exactly one field ``moorline-identity``: unpadded base64url of a JSON object. kas writes it, the
agent reads it, on every origin. Both are strict, because a block that is half understood is a privilege that is wrong.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

from tunnel.errors import RemoteProtocolError
from tunnel.messages import Fields

FIELD_NAME = b"moorline-identity"
VERSION = 1
MAX_BLOCK_BYTES = 65_536
"""Limit on the encoded block; kas refuses a larger one when the configuration is loaded."""

Mode = Literal["agent", "impersonate"]
Role = Literal["full", "read-only"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who asks, and in which mode the agent is to act."""

    mode: Mode
    """"agent": with the agent's own rights. "impersonate": as the user below."""
    user: str = ""
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    request_id: str = ""
    role: Role = "full"


def encode_identity(identity: Identity) -> bytes:
    """The value of the field ``moorline-identity``."""
    block = {
        "v": VERSION,
        "mode": identity.mode,
        "user": identity.user,
        "uid": identity.uid,
        "groups": identity.groups,
        "extra": dict(identity.extra),
        "request_id": identity.request_id,
        "role": identity.role,
    }
    return base64.urlsafe_b64encode(json.dumps(block, separators=(",", ":")).encode()).rstrip(b"=")


def decode_identity(fields: Fields) -> Identity:
    """The identity block of a request. Raises `RemoteProtocolError` for none, two, or one that is malformed."""
    values = [value for name, value in fields if name == FIELD_NAME]
    if len(values) != 1:
        raise RemoteProtocolError(f"{len(values)} identity blocks where exactly one is required", status=400)
    return _parse_block(values[0])


def _parse_block(value: bytes) -> Identity:
    if len(value) > MAX_BLOCK_BYTES:
        raise RemoteProtocolError(f"identity block of {len(value)} bytes, at most {MAX_BLOCK_BYTES}", status=400)
    if b"=" in value:
        raise RemoteProtocolError("identity block with padding", status=400)
    try:
        padded = value + b"=" * (-len(value) % 4)
        text = base64.b64decode(padded, altchars=b"-_", validate=True)
        block = json.loads(text, object_pairs_hook=_unique_pairs)
    except (binascii.Error, ValueError, RecursionError):
        raise RemoteProtocolError("identity block is not base64url of JSON", status=400) from None
    if not isinstance(block, dict):
        raise RemoteProtocolError("identity block is not a JSON object", status=400)
    return _structure(block)


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Two readers that disagree about which of two keys counts are a hole (CVE-2017-12635 is of this kind).
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("repeated key")
    return result


_KEYS = frozenset({"v", "mode", "user", "uid", "groups", "extra", "request_id", "role"})


def _structure(block: dict[str, Any]) -> Identity:
    if block.get("v") != VERSION or isinstance(block["v"], bool):
        raise RemoteProtocolError("identity block of an unknown version", status=400)
    unknown = block.keys() - _KEYS
    if unknown:
        raise RemoteProtocolError("identity block with unknown keys", status=400)
    mode: Any = block.get("mode")
    role: Any = block.get("role", "full")
    if mode not in get_args(Mode) or role not in get_args(Role):
        raise RemoteProtocolError("identity block with an unknown mode or role", status=400)
    texts = [block.get("user", ""), block.get("uid", ""), block.get("request_id", "")]
    groups, extra = block.get("groups", []), block.get("extra", {})
    well_formed = (
        all(isinstance(text, str) for text in texts)
        and _is_text_list(groups)
        and isinstance(extra, dict)
        and all(_is_text_list(entry) for entry in extra.values())
    )
    if not well_formed:
        raise RemoteProtocolError("identity block with a value of the wrong type", status=400)
    return Identity(
        mode=mode,
        user=texts[0],
        uid=texts[1],
        groups=tuple(groups),
        extra={key: tuple(entry) for key, entry in extra.items()},
        request_id=texts[2],
        role=role,
    )


def _is_text_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
