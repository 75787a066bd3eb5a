"""Which heads are malformed (RFC 9113 §8.2, §8.3; RFC 8441 §4), as tables."""

from __future__ import annotations

import pytest

from tunnel.h2.stream import NO_LENGTH
from tunnel.h2.validation import (
    CONNECTION_SPECIFIC,
    MalformedHead,
    check_request,
    check_response,
    check_trailers,
    is_field_name,
    line_fault,
)
from tunnel.messages import Fields

GET: Fields = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"example.com"), (b":path", b"/")]


def request(*more: tuple[bytes, bytes], without: bytes = b"", **changed: bytes) -> Fields:
    fields = [(name, changed.get(name[1:].decode(), value)) for name, value in GET if name != without]
    return fields + list(more)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"accept", b""),
        (b"accept", b"a b\tc"),
        (b"x-obs-text", b"caf\xc3\xa9"),
        (b"!#$%&'*+-.^_`|~09az", b"x"),
        (b"te", b"trailers"),
        (b"te", b"Trailers"),
        (b":method", b"M-SEARCH"),
        (b":path", b"*"),
        (b":path", b"/%2F//..;a?b=c&d#e\xff"),
        (b":authority", b""),
        (b":authority", b"[::1]:6443"),
        (b":authority", b"prometheus.monitoring:9090"),
        (b":scheme", b"https"),
        (b":status", b"200"),
        (b":status", b"599"),
        (b":protocol", b"SPDY/3.1".replace(b"/", b"-")),
        (b":protocol", b"websocket"),
    ],
)
def test_a_valid_line_has_no_fault(name: bytes, value: bytes):
    assert line_fault(name, value) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"", b"x"),
        (b"Accept", b"x"),
        (b"a b", b"x"),
        (b"a:b", b"x"),
        (b"a\x00", b"x"),
        (b"caf\xc3\xa9", b"x"),
        (b"a\n", b"x"),
        (b"accept", b" x"),
        (b"accept", b"x "),
        (b"accept", b"\tx"),
        (b"accept", b"x\t"),
        (b"accept", b" "),
        (b"accept", b"a\nb"),
        (b"accept", b"a\rb"),
        (b"accept", b"a\x00b"),
        (b"accept", b"a\n"),
        (b"accept", b"\n"),
        *((name, b"x") for name in sorted(CONNECTION_SPECIFIC)),
        (b"te", b"gzip"),
        (b"te", b"trailers, deflate"),
        (b"te", b""),
        (b":unknown", b"x"),
        (b":", b"x"),
        (b":METHOD", b"GET"),
        (b":method", b""),
        (b":method", b"GE T"),
        (b":method", b"GET\n"),
        (b":path", b""),
        (b":path", b"api"),
        (b":path", b"/a b"),
        (b":path", b"/a\tb"),
        (b":path", b"/a\x7f"),
        (b":path", b"/a\r\nX: y"),
        (b":path", b"*/"),
        (b":path", b"http://example.com/"),
        (b":authority", b"user@example.com"),
        (b":authority", b"example.com/path"),
        (b":authority", b"a b"),
        (b":authority", b"a\\b"),
        (b":authority", b"caf\xc3\xa9"),
        (b":scheme", b""),
        (b":scheme", b"1http"),
        (b":scheme", b"ht tp"),
        (b":status", b""),
        (b":status", b"20"),
        (b":status", b"2000"),
        (b":status", b"099"),
        (b":status", b"+20"),
        (b":status", b"20x"),
        (b":protocol", b""),
        (b":protocol", b"a b"),
    ],
)
def test_an_invalid_line_has_a_fault_that_quotes_no_value(name: bytes, value: bytes):
    fault = line_fault(name, value)

    assert fault is not None
    assert len(value) < 4 or value.decode("latin-1") not in fault


def test_a_value_that_is_long_is_checked_in_linear_time():
    assert line_fault(b"x", b"a" + b" " * 1_000_000) is not None
    assert line_fault(b"x", b"a" + b" " * 1_000_000 + b"b") is None


def test_field_names_are_those_that_may_be_sent():
    assert [is_field_name(name) for name in (b"accept", b":path", b":nonsense", b"Accept", b"")] == [
        True,
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        (request(), NO_LENGTH),
        (request(without=b":authority"), NO_LENGTH),
        (request((b"content-length", b"0")), 0),
        (request((b"content-length", b"00012")), 12),
        (request((b"host", b"EXAMPLE.com")), NO_LENGTH),
        (request((b"host", b"example.com"), (b"host", b"example.com")), NO_LENGTH),
        (request((b"host", b"other"), authority=b""), NO_LENGTH),
        (request(method=b"OPTIONS", path=b"*"), NO_LENGTH),
        ([(b":path", b"/"), (b":scheme", b"http"), (b":method", b"GET")], NO_LENGTH),
    ],
)
def test_a_valid_request_gives_its_length(fields: Fields, length: int):
    assert check_request(fields, extended_connect=False) == length


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(b"accept", b"x")],
        request(without=b":method"),
        request(without=b":path"),
        request(without=b":scheme"),
        request((b":path", b"/again")),
        request((b":status", b"200")),
        request((b"accept", b"x"), (b":authority", b"x"), without=b":authority"),
        request((b"accept", b"x"), (b":status", b"200")),
        request(path=b"*"),
        request((b"host", b"other.com")),
        request((b"host", b"a"), (b"host", b"b"), without=b":authority"),
        request((b"content-length", b"")),
        request((b"content-length", b"-1")),
        request((b"content-length", b"+1")),
        request((b"content-length", b"1, 1")),
        request((b"content-length", b"1"), (b"content-length", b"1")),
        request((b"content-length", b"9" * 19)),
        request(method=b"CONNECT"),
        [(b":method", b"CONNECT"), (b":authority", b"example.com:443")],
        request((b":protocol", b"websocket")),
        request((b":protocol", b"websocket"), method=b"CONNECT"),
    ],
)
def test_a_malformed_request_is_refused(fields: Fields):
    with pytest.raises(MalformedHead):
        check_request(fields, extended_connect=False)


def test_extended_connect_needs_all_of_its_pseudo_fields():
    connect = request((b":protocol", b"websocket"), method=b"CONNECT")
    assert check_request(connect, extended_connect=True) == NO_LENGTH

    for missing in (b":scheme", b":path", b":authority"):
        with pytest.raises(MalformedHead):
            check_request([field for field in connect if field[0] != missing], extended_connect=True)
    with pytest.raises(MalformedHead):
        check_request(request((b":protocol", b"websocket")), extended_connect=True)
    with pytest.raises(MalformedHead):
        check_request(request((b":protocol", b"websocket"), method=b"CONNECT", path=b"*"), extended_connect=True)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([(b":status", b"200")], (200, NO_LENGTH)),
        ([(b":status", b"103"), (b"link", b"x")], (103, NO_LENGTH)),
        ([(b":status", b"404"), (b"content-length", b"7"), (b"host", b"x")], (404, 7)),
    ],
)
def test_a_valid_response_gives_status_and_length(fields: Fields, expected: tuple[int, int]):
    assert check_response(fields) == expected


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(b"content-type", b"x"), (b":status", b"200")],
        [(b":status", b"101")],
        [(b":status", b"200"), (b":status", b"200")],
        [(b":status", b"200"), (b":path", b"/")],
        [(b":method", b"GET")],
        [(b":status", b"200"), (b"content-length", b"x")],
        [(b":status", b"200"), (b"content-length", b"1"), (b"content-length", b"2")],
    ],
)
def test_a_malformed_response_is_refused(fields: Fields):
    with pytest.raises(MalformedHead):
        check_response(fields)


def test_trailers_have_no_pseudo_fields():
    check_trailers([])
    check_trailers([(b"grpc-status", b"0")])
    with pytest.raises(MalformedHead):
        check_trailers([(b"grpc-status", b"0"), (b":status", b"200")])
