"""The identity block: on whose behalf an exchange is made, and how the agent may act for it.

Every exchange carries exactly one field ``moorline-identity``: unpadded base64url of a JSON object. kas writes it, the
agent reads it, on every origin. Both are strict, because a block that is half understood is a privilege that is wrong.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from tunnel.errors import RemoteProtocolError
from tunnel.messages import Fields

FIELD_NAME = b"moorline-identity"
VERSION = 1
MAX_BLOCK_BYTES = 65_536
"""Limit on the encoded block; kas refuses a larger one when the configuration is loaded."""

_BEFORE_REQUEST_ID = b'"request_id":"'
_USUAL_REST = re.compile(rb'([0-9a-f]{16})"\}')
_REST_CHARACTERS = 24  # eighteen bytes in base64
_TO_BASE64URL = bytes.maketrans(b"+/", b"-_")
_FROM_BASE64URL = bytes.maketrans(b"-_", b"+/")

_REMEMBERED_BLOCKS = 1_024
_REMEMBERED_BYTES = 4_096
_encoded_starts: dict[tuple[object, ...], bytes] = {}
_decoded_starts: dict[bytes, Identity] = {}
# The request id is the last value of a block and the only one that differs between the requests of one caller, so both
# sides remember what is in front of it.

Mode = Literal["agent", "impersonate"]
Role = Literal["full", "read-only"]


@dataclasses.dataclass(slots=True, kw_only=True)
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

    def with_request_id(self, request_id: str) -> Identity:
        """The same for another request."""
        return Identity(
            mode=self.mode,
            user=self.user,
            uid=self.uid,
            groups=self.groups,
            extra=self.extra,
            request_id=request_id,
            role=self.role,
        )


def encode_identity(identity: Identity) -> bytes:
    """The value of the field ``moorline-identity``."""
    key = (
        identity.mode,
        identity.user,
        identity.uid,
        identity.groups,
        tuple(identity.extra.items()) if identity.extra else (),
        identity.role,
    )
    start = _encoded_starts.get(key)
    if start is None:
        start = _encode_start(identity)
        if len(start) <= _REMEMBERED_BYTES:
            if len(_encoded_starts) >= _REMEMBERED_BLOCKS:
                _encoded_starts.clear()
            _encoded_starts[key] = start
    request_id = identity.request_id
    rest = f'{request_id}"}}' if request_id.isalnum() and request_id.isascii() else json.dumps(request_id)[1:] + "}"
    return start + _base64url(rest.encode())


def _encode_start(identity: Identity) -> bytes:
    """The block up to the quotation mark before the request id, in whole groups of base64."""
    block = {
        "v": VERSION,
        "mode": identity.mode,
        "user": identity.user,
        "uid": identity.uid,
        "groups": identity.groups,
        "extra": dict(identity.extra),
        "role": identity.role,
    }
    text = json.dumps(block, separators=(",", ":")).removesuffix("}").encode() + b","
    return _base64url(text + b" " * (-len(text + _BEFORE_REQUEST_ID) % 3) + _BEFORE_REQUEST_ID)


def _base64url(data: bytes) -> bytes:
    return binascii.b2a_base64(data, newline=False).translate(_TO_BASE64URL).rstrip(b"=")


def decode_identity(fields: Fields) -> Identity:
    """The identity block of a request. Raises `RemoteProtocolError` for none, two, or one that is malformed."""
    values = [value for name, value in fields if name == FIELD_NAME]
    if len(values) != 1:
        raise RemoteProtocolError(f"{len(values)} identity blocks where exactly one is required", status=400)
    value = values[0]
    start, rest = value[:-_REST_CHARACTERS], value[-_REST_CHARACTERS:]
    request_id = _request_id_in(rest)
    known = _decoded_starts.get(start) if request_id else None
    if known is not None:
        return known.with_request_id(request_id)
    identity = _parse_block(value)
    if request_id and identity.request_id == request_id and len(start) <= _REMEMBERED_BYTES:
        _remember_decoded(start, identity)
    return identity


def _request_id_in(rest: bytes) -> str:
    """The request id, where a block ends with what kas usually writes; otherwise nothing."""
    try:
        match = _USUAL_REST.fullmatch(binascii.a2b_base64(rest.translate(_FROM_BASE64URL), strict_mode=True))
    except binascii.Error:
        return ""
    return match[1].decode() if match is not None else ""


def _remember_decoded(start: bytes, identity: Identity) -> None:
    """Keep what a block means up to its request id, if the id is certainly the last value in it.

    ``start`` was part of a valid block. It ends with an unescaped ``"request_id":"``, and the block with that one's
    value and the end of the outermost object; another value in the same place leaves all the rest as it is.
    """
    if len(start) % 4 == 0 and binascii.a2b_base64(start.translate(_FROM_BASE64URL)).endswith(_BEFORE_REQUEST_ID):
        if len(_decoded_starts) >= _REMEMBERED_BLOCKS:
            _decoded_starts.clear()
        _decoded_starts[start] = identity


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
