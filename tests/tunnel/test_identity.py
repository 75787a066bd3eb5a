"""The identity block: what kas writes the agent reads back, and everything else is refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tunnel.identity
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


HEXADECIMAL = st.text(alphabet="0123456789abcdef", min_size=16, max_size=16)


@given(
    st.lists(HEXADECIMAL, min_size=2, max_size=4), texts, st.dictionaries(texts, st.lists(texts).map(tuple), max_size=2)
)
def test_a_block_that_differs_in_its_request_id_alone_is_decoded_as_if_it_were_the_first(
    request_ids: list[str], user: str, extra: dict[str, tuple[str, ...]]
) -> None:
    for request_id in request_ids:
        identity = Identity(mode="agent", user=user, extra=extra, request_id=request_id)
        assert decode_identity([(FIELD_NAME, encode_identity(identity))]) == identity


@pytest.mark.parametrize(
    "start",
    [
        '{"v":1,"mode":"agent","extra":{"request_id":["',
        '{"v":1,"mode":"agent","request_id":"0123456789abcdef","user":"',
        '{"v":1,"mode":"agent","user":"\\\\"request_id\\\\":\\\\"',
        '{"v":1,"mode":"agent","user":"a","uid": "',
    ],
)
def test_what_stands_in_the_place_of_a_request_id_is_read_anew_each_time(start: str) -> None:
    for last in ("0123456789abcdef", "fedcba9876543210"):
        text = start + last + '"}'
        padding = " " * (-(len(start)) % 3)
        value = encoded(padding + text)
        try:
            block = json.loads(text)
        except ValueError:
            with pytest.raises(RemoteProtocolError):
                decode_identity([(FIELD_NAME, value)])
        else:
            found = decode_identity([(FIELD_NAME, value)])
            assert (found.user, found.uid, found.request_id) == (
                block.get("user", ""),
                block.get("uid", ""),
                block.get("request_id", ""),
            )


def test_a_remembered_block_does_not_let_a_malformed_end_pass() -> None:
    good = encode_identity(Identity(mode="agent", user="alice", request_id="0123456789abcdef"))
    assert decode_identity([(FIELD_NAME, good)]).request_id == "0123456789abcdef"
    start = base64.urlsafe_b64decode(good[:-24]).decode()
    for rest in ('0123456789abcdeF"}', '0123456789abcdef",', '0123456789abcd"}  ', '0123456789abc","v":2}', "x" * 18):
        try:
            expected = json.loads(start + rest).get("request_id")
        except ValueError:
            with pytest.raises(RemoteProtocolError):
                decode_identity([(FIELD_NAME, encoded(start + rest))])
        else:
            if '"v":2' in rest:
                with pytest.raises(RemoteProtocolError):
                    decode_identity([(FIELD_NAME, encoded(start + rest))])
            else:
                assert decode_identity([(FIELD_NAME, encoded(start + rest))]).request_id == expected
    with pytest.raises(RemoteProtocolError):
        decode_identity([(FIELD_NAME, good[:-1] + b"=")])


def test_what_is_remembered_of_blocks_is_bounded() -> None:
    for number in range(2_500):
        identity = Identity(mode="agent", user=f"user {number}", request_id="0123456789abcdef")
        assert decode_identity([(FIELD_NAME, encode_identity(identity))]) == identity
    assert len(tunnel.identity._encoded_starts) <= 1_024
    assert len(tunnel.identity._decoded_starts) <= 1_024


def test_a_large_block_is_not_remembered() -> None:
    identity = Identity(mode="agent", user="x" * 5_000, request_id="0123456789abcdef")
    tunnel.identity._encoded_starts.clear()
    tunnel.identity._decoded_starts.clear()
    assert decode_identity([(FIELD_NAME, encode_identity(identity))]) == identity
    assert not tunnel.identity._encoded_starts
    assert not tunnel.identity._decoded_starts
