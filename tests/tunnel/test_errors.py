"""The exceptions of the tunnel."""

from __future__ import annotations

import pytest

from tunnel.errors import ConnectionEnded, ErrorCode, StreamReset, error_code_name, first_connection_ended, first_text


@pytest.mark.parametrize(
    ("code", "name"), [(0x0, "NO_ERROR"), (ErrorCode.ENHANCE_YOUR_CALM, "ENHANCE_YOUR_CALM"), (0x42, "0x42")]
)
def test_a_code_without_a_name_is_told_by_its_number(code: int, name: str) -> None:
    assert name == error_code_name(code)


def test_a_reset_says_who_did_it_and_why() -> None:
    assert str(StreamReset(code=ErrorCode.CANCEL)) == "stream reset by the peer: CANCEL"
    assert str(StreamReset(code=0x42, remote=False)) == "stream reset by this side: 0x42"


def test_the_first_error_of_a_group_speaks_for_it() -> None:
    ended = ConnectionEnded("gone")
    group = BaseExceptionGroup("", [BaseExceptionGroup("", [ended, ConnectionEnded("later")])])

    assert first_connection_ended(group) is ended
    assert first_text(group) == "gone"
    assert first_text(BaseExceptionGroup("", [ValueError()])) == "ValueError"
