"""The identity block: what kas writes the agent reads back, and everything else is refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.errors import RemoteProtocolError
from tunnel.identity import FIELD_NAME, MAX_BLOCK_BYTES, Identity, decode_identity, encode_identity

texts = st.text(max_size=20)


@given(
    st.builds(
        Identity,
        mode=st.sampled_from(["agent", "impersonate"]),
        user=texts,
        uid=texts,
        groups=st.lists(texts, max_size=4).map(tuple),
        extra=st.dictionaries(texts, st.lists(texts, max_size=3).map(tuple), max_size=3),
        request_id=texts,
        role=st.sampled_from(["full", "read-only"]),
    )
)
def test_what_is_encoded_is_decoded(identity: Identity) -> None:
    assert decode_identity([(b"accept", b"*/*"), (FIELD_NAME, encode_identity(identity))]) == identity


def block(**changes: Any) -> bytes:
    values = {"v": 1, "mode": "impersonate", "user": "alice", **changes}
    return encoded(json.dumps({key: value for key, value in values.items() if value is not ...}))


def encoded(text: str) -> bytes:
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=")


def test_what_is_optional_has_defaults() -> None:
    assert decode_identity([(FIELD_NAME, block())]) == Identity(mode="impersonate", user="alice")


@pytest.mark.parametrize(
    "values",
    [
        [],
        [block(), block()],
        [b""],
        [b"!!!!"],
        [block() + b"="],
        [encoded("[]")],
        [encoded("{")],
        [encoded("[" * 100_000)[:60_000]],
        [encoded('{"v":1,"mode":"agent","mode":"impersonate","user":"a"}')],
        [block(v=2)],
        [block(v=True)],
        [block(v=...)],
        [block(mode="root")],
        [block(mode=...)],
        [block(mode=["agent"])],
        [block(role="admin")],
        [block(user=1)],
        [block(uid=None)],
        [block(groups="admins")],
        [block(groups=[1])],
        [block(extra=[])],
        [block(extra={"scopes": "x"})],
        [block(admin=True)],
        [b"A" * (MAX_BLOCK_BYTES + 1)],
    ],
    ids=lambda values: repr(values)[:40],
)
def test_anything_else_is_refused(values: list[bytes]) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_identity([(FIELD_NAME, value) for value in values])
