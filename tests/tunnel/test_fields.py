"""Which header lines stay behind on a hop, and which a caller may not set."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tunnel.fields
from tunnel.fields import (
    allowed_trailers,
    drop_gzip_from_accept_encoding,
    impersonation_fields,
    list_members,
    normalised,
    remove_client_identity,
    strip_hop_by_hop,
    take_websocket_bearer,
    te_trailers,
)
from tunnel.messages import Fields

ORDINARY: Fields = [
    (b"accept", b"application/json;as=Table;v=v1;g=meta.k8s.io,application/json"),
    (b"x-stream-protocol-version", b"v5.channel.k8s.io"),
    (b"x-stream-protocol-version", b"v4.channel.k8s.io"),
    (b"x-custom", b"1"),
    (b"content-type", b"application/apply-patch+yaml"),
]


def test_names_compare_in_lower_case_with_underscores_as_hyphens() -> None:
    assert normalised(b"X_Remote-USER") == b"x-remote-user"


@pytest.mark.parametrize(
    "name",
    [
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-anything",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
        b"Connection",
        b"Transfer_Encoding",
        b"KEEP-ALIVE",
    ],
)
def test_a_connection_specific_line_is_stripped_and_the_others_keep_order_and_number(name: bytes) -> None:
    for position in range(len(ORDINARY) + 1):
        fields = [*ORDINARY[:position], (name, b"x"), *ORDINARY[position:]]
        before = list(fields)
        assert strip_hop_by_hop(fields) == ORDINARY
        assert fields == before


def test_every_field_that_connection_names_is_stripped_in_any_case_and_on_any_line() -> None:
    fields: Fields = [
        (b"x-a", b"1"),
        (b"connection", b"close, X-A"),
        (b"x_b", b"2"),
        (b"connection", b" , x-B,"),
        (b"content-type", b"text/plain"),
        (b"x-c", b"3"),
        (b"connection", b"Content-Type"),
    ]
    assert strip_hop_by_hop(fields) == [(b"x-c", b"3")]


def test_connection_cannot_take_away_what_is_added_after_stripping() -> None:
    caller: Fields = [(b"connection", b"impersonate-user"), (b"impersonate-user", b"root")]
    assert [*strip_hop_by_hop(caller), (b"impersonate-user", b"alice")] == [(b"impersonate-user", b"alice")]


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ([(b"te", b"trailers")], [(b"te", b"trailers")]),
        ([(b"te", b"deflate;q=0.5, Trailers")], [(b"te", b"trailers")]),
        ([(b"te", b"trailers"), (b"te", b"trailers")], [(b"te", b"trailers")]),
        ([(b"connection", b"TE"), (b"te", b"trailers")], [(b"te", b"trailers")]),
        ([(b"te", b"gzip")], []),
        ([(b"te", b"")], []),
    ],
)
def test_te_is_reduced_to_trailers(fields: Fields, kept: Fields) -> None:
    assert strip_hop_by_hop([*ORDINARY, *fields]) == [*ORDINARY, *kept]
    assert te_trailers(fields) is bool(kept)


def test_nothing_to_strip_gives_the_same_list() -> None:
    assert strip_hop_by_hop(ORDINARY) is ORDINARY
    assert remove_client_identity(ORDINARY) is ORDINARY
    assert take_websocket_bearer(ORDINARY) == (ORDINARY, None)
    assert take_websocket_bearer(ORDINARY)[0] is ORDINARY


IDENTITY_NAMES = [
    b"authorization",
    b"cookie",
    b"proxy-authorization",
    b"forwarded",
    b"x-real-ip",
    b"x-remote-user",
    b"x-remote-group",
    b"x-remote-extra-scopes",
    b"x-forwarded-for",
    b"x-forwarded-client-cert",
    b"impersonate-user",
    b"impersonate-extra-a%2fb",
    b"moorline-identity",
    b"moorline-method",
]


@pytest.mark.parametrize("name", IDENTITY_NAMES)
@pytest.mark.parametrize("spelling", [bytes, bytes.upper, bytes.title, lambda name: name.replace(b"-", b"_")])
def test_a_claim_of_identity_is_removed_however_it_is_spelt(name: bytes, spelling) -> None:
    fields = [*ORDINARY[:2], (spelling(name), b"x"), *ORDINARY[2:], (spelling(name), b"y")]
    assert remove_client_identity(fields) == ORDINARY


@given(st.lists(st.sampled_from([*IDENTITY_NAMES, b"accept", b"x-custom", b"x-stream-protocol-version"]), max_size=12))
def test_removal_keeps_exactly_the_lines_that_claim_nothing(names: list[bytes]) -> None:
    fields = [(name, b"%d" % number) for number, name in enumerate(names)]
    assert remove_client_identity(fields) == [line for line in fields if line[0] not in IDENTITY_NAMES]


def test_impersonation_is_found_in_every_spelling() -> None:
    asked: Fields = [(b"impersonate-user", b"a"), (b"Impersonate_Group", b"b"), (b"IMPERSONATE-EXTRA-x", b"c")]
    assert impersonation_fields([asked[0], *ORDINARY, *asked[1:], (b"x-impersonate-user", b"d")]) == asked
    assert impersonation_fields(ORDINARY) == []


PREFIX = b"base64url.bearer.authorization.k8s.io."
TOKEN = PREFIX + base64.urlsafe_b64encode(b"mlu_secret").rstrip(b"=")


@pytest.mark.parametrize(
    ("values", "left", "token"),
    [
        ([TOKEN + b", v4.channel.k8s.io"], [b"v4.channel.k8s.io"], b"mlu_secret"),
        ([b"v5.channel.k8s.io ,v4.channel.k8s.io, " + TOKEN], [b"v5.channel.k8s.io, v4.channel.k8s.io"], b"mlu_secret"),
        ([TOKEN], [], b"mlu_secret"),
        ([TOKEN, b"v4.channel.k8s.io"], [b"v4.channel.k8s.io"], b"mlu_secret"),
        ([TOKEN.replace(b"base64url", b"BASE64URL") + b",,x"], [b"x"], b"mlu_secret"),
        ([PREFIX + b"***, x"], [b"x"], None),
        ([PREFIX + b"A, x"], [b"x"], None),
        ([PREFIX + b", x"], [b"x"], None),
        ([TOKEN + b"," + TOKEN + b", x"], [b"x"], None),
        ([TOKEN, TOKEN], [], None),
        ([b"v4.channel.k8s.io"], [b"v4.channel.k8s.io"], None),
    ],
)
def test_a_token_among_subprotocols_is_taken_out(values: list[bytes], left: list[bytes], token: bytes | None) -> None:
    fields = [(b"sec-websocket-protocol", value) for value in values]
    expected = [(b"sec-websocket-protocol", value) for value in left]
    assert take_websocket_bearer([*ORDINARY, *fields]) == ([*ORDINARY, *expected], token)


@pytest.mark.parametrize(
    ("value", "left"),
    [
        (b"gzip", b"identity"),
        (b"gzip, deflate, br", b"deflate, br"),
        (b"deflate;q=0.5 , GZip;q=1.0", b"deflate;q=0.5"),
        (b"x-gzip, identity", b"identity"),
        (b"gzip ;q=0.1,", b"identity"),
        (b"deflate", b"deflate"),
        (b"gzipped", b"gzipped"),
        (b"", b""),
    ],
)
def test_gzip_is_dropped_from_the_accepted_codings(value: bytes, left: bytes) -> None:
    fields = [*ORDINARY, (b"accept-encoding", value)]
    assert drop_gzip_from_accept_encoding(fields) == [*ORDINARY, (b"accept-encoding", left)]


def test_trailers_about_framing_routing_and_identity_are_dropped() -> None:
    refused = [
        b"content-length",
        b"Transfer_Encoding",
        b"host",
        b"authorization",
        b"set-cookie",
        b"proxy-authenticate",
        b"impersonate-user",
        b"moorline-identity",
        b"x-forwarded-for",
        b"te",
        b":status",
        b"content-type",
    ]
    kept: Fields = [(b"grpc-status", b"0"), (b"grpc-message", b""), (b"x-checksum", b"abc")]
    assert allowed_trailers([kept[0], *((name, b"x") for name in refused), *kept[1:]]) == kept


def test_list_members_go_over_all_lines_and_leave_out_empty_ones() -> None:
    fields: Fields = [(b"connection", b"a, b\t,,"), (b"x", b"c"), (b"Connection", b"d"), (b"connectiox", b"e")]
    assert list_members(fields, b"connection") == [b"a", b"b", b"d"]


def test_what_is_remembered_of_names_is_bounded() -> None:
    for number in range(3_000):
        fields = [(b"x-made-up-%d" % number, b""), (b"x" * 100 + b"%d" % number, b""), (b"moorline_%d" % number, b"")]
        assert tunnel.fields.remove_ours(fields) == fields[:2]
    assert len(tunnel.fields._KINDS) <= 2_048
    assert max(map(len, tunnel.fields._KINDS)) <= 64


def test_without_accept_encoding_there_is_nothing_to_drop() -> None:
    fields = [(b"accept", b"gzip")]
    assert tunnel.fields.drop_gzip_from_accept_encoding(fields) is fields


_PASSED_NAMES = st.sampled_from(
    [b"accept", b"te", b"connection", b"x-hop", b"keep-alive", b"host", b"moorline-identity", b"Moorline_Error",
     b"impersonate-user", b"x-forwarded-for", b"cookie", b"sec-websocket-protocol", b"x-remote-user"]
)  # fmt: skip
_PASSED = st.lists(st.tuples(_PASSED_NAMES, st.sampled_from([b"", b"trailers", b"x-hop", b"close, X-Hop", b"gzip"])))


@given(_PASSED)
def test_what_is_passed_on_is_what_the_two_rules_leave(fields: Fields) -> None:
    before = list(fields)

    assert tunnel.fields.request_to_pass_on(fields) == remove_client_identity(strip_hop_by_hop(fields))
    assert tunnel.fields.response_to_pass_on(fields) == tunnel.fields.remove_ours(strip_hop_by_hop(fields))
    assert fields == before


def test_what_needs_no_change_is_passed_on_as_the_same_list() -> None:
    fields = [(b"accept", b"*/*"), (b"x-own", b"1")]

    assert tunnel.fields.request_to_pass_on(fields) is fields
    assert tunnel.fields.response_to_pass_on(fields) is fields


@given(_PASSED)
def test_whoever_speaks_of_identity_is_found(fields: Fields) -> None:
    speaks = bool(impersonation_fields(fields)) or any(name == b"sec-websocket-protocol" for name, _ in fields)

    assert tunnel.fields.speaks_of_identity(fields) == speaks
