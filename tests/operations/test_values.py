"""Durations, sizes, addresses, secrets: what is taken, and what the refusal says."""

from __future__ import annotations

import datetime
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operations.values import (
    Address,
    InvalidValue,
    SecretFile,
    format_byte_count,
    format_seconds,
    parse_address,
    parse_byte_count,
    parse_moment,
    parse_path,
    parse_seconds,
    redact,
    shown,
)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("30s", 30.0),
        ("5m", 300.0),
        ("2h", 7200.0),
        ("1h30m", 5400.0),
        ("1h 30m", 5400.0),
        ("250ms", 0.25),
        ("1.5s", 1.5),
        ("90d", 7_776_000.0),
        ("0s", 0.0),
        ("12", 12.0),
        (12, 12.0),
        (0.5, 0.5),
        ("never", math.inf),
        (math.inf, math.inf),
    ],
)
def test_durations(written, seconds):
    assert parse_seconds(written) == seconds


@pytest.mark.parametrize("written", ["", "s", "30 parsecs", "-5s", -5, math.nan, True, None, "1s2", [], "30s\n40s"])
def test_what_is_no_duration_is_refused_with_examples(written):
    with pytest.raises(InvalidValue, match="30s, 5m, 1h30m or never"):
        parse_seconds(written)


@given(st.one_of(st.integers(0, 10**7), st.sampled_from([0.25, 0.5, 1.5, math.inf])))
def test_a_formatted_duration_reads_back(seconds):
    assert parse_seconds(format_seconds(seconds)) == seconds


@pytest.mark.parametrize(
    ("written", "count"),
    [("64KiB", 65_536), ("64 kib", 65_536), ("3MB", 3_000_000), ("1GiB", 2**30), (17, 17), ("17", 17), ("0", 0)],
)
def test_sizes(written, count):
    assert parse_byte_count(written) == count


@pytest.mark.parametrize("written", ["", "KiB", "1.5MiB", "-1", -1, "3 quarts", None, 1.5, True])
def test_what_is_no_size_is_refused_with_examples(written):
    with pytest.raises(InvalidValue, match="64KiB, 3MB"):
        parse_byte_count(written)


@given(st.integers(0, 2**40))
def test_a_formatted_size_reads_back(count):
    assert parse_byte_count(format_byte_count(count)) == count


@pytest.mark.parametrize(
    ("written", "host", "port"),
    [
        ("127.0.0.1:8154", "127.0.0.1", 8154),
        ("[::1]:8154", "::1", 8154),
        (":443", "", 443),
        ("*:443", "", 443),
        ("kas.example.com:0", "kas.example.com", 0),
    ],
)
def test_addresses(written, host, port):
    assert parse_address(written) == Address(host, port)


@pytest.mark.parametrize(
    "written",
    ["", "8154", "host", "host:", "host:65536", "host:http", "::1:80", "[::1:80", "a b:80", "h:٣", 8154, None],
)
def test_what_is_no_address_is_refused_with_examples(written):
    with pytest.raises(InvalidValue, match=r"127\.0\.0\.1:8154"):
        parse_address(written)


def test_addresses_read_back_and_know_loopback():
    for text in ("127.0.0.1:1", "[::1]:2", "kas:3", ":4"):
        assert parse_address(str(parse_address(text))) == parse_address(text)
    assert [parse_address(text).is_loopback for text in ("127.0.0.1:1", "[::1]:2", "localhost:3")] == [True] * 3
    assert [parse_address(text).is_loopback for text in (":1", "10.0.0.1:2", "kas:3", "[::]:4")] == [False] * 4


@pytest.mark.parametrize(
    ("written", "moment"),
    [
        ("2027-01-31T00:00:00Z", datetime.datetime(2027, 1, 31, tzinfo=datetime.UTC)),
        ("2027-01-31", datetime.datetime(2027, 1, 31, tzinfo=datetime.UTC)),
        (datetime.date(2027, 1, 31), datetime.datetime(2027, 1, 31, tzinfo=datetime.UTC)),
        (datetime.datetime(2027, 1, 31), datetime.datetime(2027, 1, 31, tzinfo=datetime.UTC)),  # noqa: DTZ001
        ("2027-01-31T02:00:00+02:00", datetime.datetime(2027, 1, 31, tzinfo=datetime.UTC)),
    ],
)
def test_moments_without_offset_are_in_utc(written, moment):
    assert parse_moment(written) == moment
    assert parse_moment(written).tzinfo is not None


@pytest.mark.parametrize("written", ["soon", 5, None, ""])
def test_what_is_no_moment_is_refused(written):
    with pytest.raises(InvalidValue, match="2027-01-31T00:00:00Z"):
        parse_moment(written)


def test_paths_must_say_something():
    assert parse_path("/etc/x") == Path("/etc/x")
    assert parse_path("~/x") == Path.home() / "x"
    for written in ("", " ", None, 3, "a\0b"):
        with pytest.raises(InvalidValue, match="path of a file"):
            parse_path(written)


def test_a_secret_file_is_read_and_never_shown(tmp_path):
    file = tmp_path / "token"
    file.write_text("canary-secret\n")
    secret = SecretFile(file)

    assert secret.read() == "canary-secret"
    assert "canary-secret" not in repr(secret)


def test_a_secret_file_that_cannot_be_used_says_which_and_why(tmp_path):
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, why in (("missing", "No such file"), ("empty", "is empty"), ("binary", "is not a text file")):
        with pytest.raises(InvalidValue, match=why) as caught:
            SecretFile(tmp_path / name).read()
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("got mlu_0123456789abcdef here", "got mlu_[redacted] here"),
        ("mla_0123456789abcdef", "mla_[redacted]"),
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer [redacted]"),
        ("authorization=BEARER xyz, next", "authorization=BEARER [redacted], next"),
        ("pat:edge:mlu_0123456789abcdef", "pat:edge:mlu_[redacted]"),
        ("<html> small bearings", "<html> small bearings"),
    ],
)
def test_what_looks_like_a_token_is_redacted(text, redacted):
    assert redact(text) == redacted


def test_a_shown_value_is_short_and_holds_no_token():
    assert "canary" not in shown("mlu_canarycanarycanary")
    assert len(shown("x" * 1000)) <= 80
    assert shown({"a": 1}) == "a mapping"
    assert shown(None) == "nothing"
