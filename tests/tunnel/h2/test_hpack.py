"""HPACK: the examples of RFC 7541, the `hpack` package as referee in both directions, and what must not be possible."""

from __future__ import annotations

import time

import hpack
import pytest
from hpack.table import HeaderTable
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.errors import ErrorCode, LocalProtocolError
from tunnel.h2.hpack import CompressionFault, HeaderDecoder, HeaderEncoder, LineCache, header_list_bytes
from tunnel.h2.static_table import CREDENTIAL_NAMES, STATIC_FIELDS, is_credential
from tunnel.messages import Fields


def decoder(table_bytes: int = 4_096, list_limit_bytes: int = 1_048_576, cache_bytes: int = 16_384) -> HeaderDecoder:
    return HeaderDecoder(table_bytes=table_bytes, list_limit_bytes=list_limit_bytes, cache_bytes=cache_bytes)


def referee_decode(referee: hpack.Decoder, block: bytes) -> Fields:
    return [(name, value) for name, value in referee.decode(block, raw=True)]


names = st.one_of(
    st.sampled_from([name for name, _ in STATIC_FIELDS if name and not name.startswith(b":")]),
    st.text("abcdefghijklmnopqrstuvwxyz-_0123456789", min_size=1, max_size=200).map(str.encode),
)
values = st.one_of(
    st.sampled_from([value for _, value in STATIC_FIELDS]),
    st.binary(max_size=30),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=400).map(str.encode),
    st.integers(120, 140).map(lambda length: b"v" * length),
    st.just(b"v" * 1_000),
)
blocks = st.lists(st.tuples(names, values), max_size=12)


def test_the_static_table_is_that_of_the_rfc():
    assert list(STATIC_FIELDS[1:]) == list(HeaderTable.STATIC_TABLE)


# RFC 7541, appendix C.3 to C.6: requests and responses, with and without Huffman, over a table that fills and evicts.
REQUEST_1 = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"www.example.com")]
REQUEST_2 = [*REQUEST_1, (b"cache-control", b"no-cache")]
REQUEST_3 = [
    (b":method", b"GET"),
    (b":scheme", b"https"),
    (b":path", b"/index.html"),
    (b":authority", b"www.example.com"),
    (b"custom-key", b"custom-value"),
]


@pytest.mark.parametrize(
    "wire",
    [
        (
            "828684410f7777772e6578616d706c652e636f6d",
            "828684be58086e6f2d6361636865",
            "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
        ),
        (
            "828684418cf1e3c2e5f23a6ba0ab90f4ff",
            "828684be5886a8eb10649cbf",
            "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        ),
    ],
    ids=["plain", "huffman"],
)
def test_the_requests_of_the_rfc_are_decoded(wire: tuple[str, ...]):
    subject = decoder()

    assert [subject.decode(bytes.fromhex(block)) for block in wire] == [REQUEST_1, REQUEST_2, REQUEST_3]


def test_the_responses_of_the_rfc_are_decoded_with_evictions():
    subject = decoder()
    date = b"Mon, 21 Oct 2013 20:13:21 GMT"
    tail = [(b"cache-control", b"private"), (b"date", date), (b"location", b"https://www.example.com")]
    # C.6 has a table of 256 bytes: the size update in front says so.
    wire = [
        "3fe101488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
        "4883640effc1c0bf",
    ]

    assert subject.decode(bytes.fromhex(wire[0])) == [(b":status", b"302"), *tail]
    assert subject.decode(bytes.fromhex(wire[1])) == [(b":status", b"307"), *tail]
    with pytest.raises(CompressionFault):
        subject.decode(b"\xc2")  # four entries have room, not five


@settings(deadline=None)
@given(st.lists(blocks, max_size=6), st.booleans(), st.sampled_from([0, 64, 256, 4_096]))
def test_what_another_encoder_writes_is_decoded(sequence: list[Fields], huffman: bool, table_bytes: int):
    referee = hpack.Encoder()
    subject = decoder()
    for index, fields in enumerate(sequence):
        if index == 1:
            referee.header_table_size = table_bytes
        assert subject.decode(referee.encode(fields, huffman=huffman)) == fields


@settings(deadline=None)
@given(st.lists(blocks, max_size=6))
def test_what_we_encode_is_what_another_decoder_reads(sequence: list[Fields]):
    subject = HeaderEncoder()
    referee = hpack.Decoder(max_header_list_size=2**24)
    ours = decoder(table_bytes=0)
    ours.settings_acknowledged()
    for fields in sequence:
        block = subject.encode(fields)
        assert referee_decode(referee, block) == fields
        assert ours.decode(block) == fields
    assert not referee.header_table.dynamic_entries


@settings(deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=40), blocks), max_size=4), st.binary(max_size=6))
def test_noise_is_decoded_as_the_other_decoder_does_or_refused(sequence: list[bytes | Fields], noise: bytes):
    encoder = hpack.Encoder()
    referee = hpack.Decoder(max_header_list_size=2**24)
    subject = decoder(list_limit_bytes=2**24)
    for item in sequence:
        block = (item if isinstance(item, bytes) else encoder.encode(item)) + noise
        try:
            fields = subject.decode(block)
        except CompressionFault:
            with pytest.raises(hpack.HPACKError):
                referee.decode(block, raw=True)
            return
        assert fields == referee_decode(referee, block)


def test_only_the_first_block_says_that_the_table_is_empty():
    subject = HeaderEncoder()

    assert subject.encode([(b":status", b"200")]) == b"\x20\x88"
    assert subject.encode([(b":status", b"200")]) == b"\x88"


@pytest.mark.parametrize(
    "name", [*sorted(CREDENTIAL_NAMES), b"impersonate-user", b"impersonate-extra-scopes", b"x-auth-token"]
)
def test_credentials_are_never_indexed_and_never_remembered(name: bytes):
    subject = HeaderEncoder()
    subject.encode([])
    ours = decoder()
    block = subject.encode([(name, b"secret")])
    huffman = hpack.Encoder().encode([(name, b"secret")], huffman=True)

    assert isinstance(next(iter(hpack.Decoder().decode(block))), hpack.NeverIndexedHeaderTuple)
    assert ours.decode(block) == [(name, b"secret")]
    assert ours.decode(huffman) == [(name, b"secret")]
    assert ours._cache.held_bytes == 0


def test_what_somebody_asked_for_is_not_remembered():
    ours = decoder()
    ours.decode(HeaderEncoder().encode([(b":path", b"/api/v1/secrets/name"), (b":authority", b"kubernetes")]))

    assert ours._cache.held_bytes == len(b"\x01\x0akubernetes")


def test_an_ordinary_line_is_remembered_and_keeps_its_meaning():
    subject, ours = HeaderEncoder(), decoder()
    fields = [(b"accept", b"application/json"), (b"x-thing", b"1")]
    first, second, third = (ours.decode(subject.encode(fields)) for _ in range(3))

    assert first == second == third == fields
    assert second[0] is third[0]
    assert ours._cache.held_bytes > 0


def test_the_cache_is_bounded_and_keeps_what_is_in_use():
    cache = LineCache(1_000)
    for index in range(10_000):
        cache.remember(b"line %06d" % index, (b"x", b"y"))
        if index % 20 == 0:
            assert cache.young.get(b"hot") or cache.recall(b"hot") or index == 0
            cache.remember(b"hot", (b"hot", b"1"))
        assert cache.held_bytes <= 1_000 + 12

    assert cache.recall(b"line 000001") is None


def test_a_line_of_the_old_generation_is_found_again():
    ours = decoder(cache_bytes=200)
    hot = b"\x00\x03hot\x011"
    (first,) = ours.decode(hot)
    for index in range(30):
        ours.decode(b"\x00\x04%04d\x01v" % index)
        (again,) = ours.decode(hot)
        assert again is first


def test_a_line_that_is_long_is_not_remembered():
    ours = decoder()
    ours.decode(HeaderEncoder().encode([(b"x-long", b"v" * 300)]))

    assert ours._cache.held_bytes == 0


def test_a_malformed_line_is_reported_and_never_remembered():
    ours = decoder()
    bad = b"\x00\x04Name\x01v"

    for _ in range(2):
        assert ours.decode(bad + b"\x00\x04name\x01v") == [(b"Name", b"v"), (b"name", b"v")]
        assert ours.fault == "a field name that is no lower-case token"
    ours.decode(b"\x00\x04name\x01v")
    assert ours.fault is None


def test_a_malformed_line_of_the_dynamic_table_stays_malformed():
    ours = decoder()
    ours.decode(b"\x40\x04Name\x01v")
    assert ours.fault is not None

    assert ours.decode(b"\xbe") == [(b"Name", b"v")]
    assert ours.fault is not None


def test_the_static_line_that_http2_forbids_is_malformed():
    ours = decoder()

    assert ours.decode(b"\xb9") == [(b"transfer-encoding", b"")]
    assert ours.fault == "the connection-specific field transfer-encoding"


@pytest.mark.parametrize(
    "block",
    [
        "80",  # index 0
        "be",  # the dynamic table is empty
        "ff",  # an index that is cut off
        "ffffffffffff0f",  # an index above 2^32
        "ff8080808080800f",  # an integer that never ends
        "00",  # no name
        "0003",  # no bytes of the name
        "00036162",  # a name that is cut off
        "000361626304",  # no bytes of the value
        "0003616263",  # no value
        "00036162630461",  # a value that is cut off
        "0f",  # a prefix that is cut off
        "0f2f",  # an index beyond the static table, without entry
        "007f",  # a long name that is cut off
        "00016182ffff",  # Huffman: the code of EOS
        "0001618118",  # Huffman: padding that is not of ones
        "3fe21f",  # a table of 4097 bytes
        "8220",  # a size update behind a line
        "5f",
        "4103",
    ],
)
def test_a_block_that_cannot_be_decoded_is_a_compression_error(block: str):
    with pytest.raises(CompressionFault) as caught:
        decoder().decode(bytes.fromhex(block))

    assert caught.value.code == ErrorCode.COMPRESSION_ERROR


def test_the_table_must_shrink_once_our_settings_are_acknowledged():
    ours = decoder(table_bytes=0)
    encoder = hpack.Encoder()
    # The peer may use the default until it knows better.
    assert ours.decode(encoder.encode([(b"a", b"b")])) == [(b"a", b"b")]
    ours.settings_acknowledged()

    with pytest.raises(CompressionFault):
        ours.decode(b"\xbe")
    shrunk = hpack.Encoder()
    shrunk.header_table_size = 0
    assert ours.decode(shrunk.encode([(b"a", b"b")])) == [(b"a", b"b")]
    with pytest.raises(CompressionFault, match="where 0 are allowed"):
        ours.decode(b"\x3f\x01")


def test_a_peer_without_a_table_need_not_say_that_it_has_reduced_it():
    ours = decoder(table_bytes=0)
    ours.settings_acknowledged()

    assert ours.decode(b"\x40\x01a\x01b\x82") == [(b"a", b"b"), (b":method", b"GET")]
    with pytest.raises(CompressionFault):
        ours.decode(b"\xbe")


def test_an_entry_larger_than_the_table_empties_it():
    ours = decoder()
    ours.decode(b"\x40\x01a\x01b")
    ours.decode(b"\x3f\x01" + b"\x40\x01c" + b"\x7f\x10" + b"v" * 143)  # a table of 32 bytes

    with pytest.raises(CompressionFault):
        ours.decode(b"\xbe")


def test_a_bomb_of_references_is_refused_before_it_is_unfolded():
    """1 KiB of indexes into an entry of 4,000 bytes would be 4 MB."""
    ours = decoder()
    entry = b"\x40\x01a" + b"\x7f\xa1\x1e" + b"v" * 4_000
    assert len(ours.decode(entry)) == 1

    with pytest.raises(CompressionFault, match="more than 1048576 bytes"):
        ours.decode(b"\xbe" * 1_024)


def test_a_bomb_of_static_lines_is_refused():
    with pytest.raises(CompressionFault, match="more than 1048576 bytes"):
        decoder().decode(b"\x82" * 1_000_000)


def test_a_block_of_many_literals_takes_linear_time():
    """Sixteen times the lines must not take two hundred times as long."""

    def seconds(lines: int) -> float:
        block = b"".join(b"\x40\x04%04x\x01v" % index for index in range(lines))
        ours = decoder()
        started = time.perf_counter()
        ours.decode(block)
        return time.perf_counter() - started

    assert seconds(16_000) < 100 * max(min(seconds(1_000) for _ in range(5)), 1e-4)


def test_the_bound_of_the_list_size_is_never_too_low():
    ours = decoder()
    for fields in (
        [],
        [(b":method", b"GET")],
        [(b"accept-encoding", b"gzip, deflate")] * 5,
        [(b"access-control-allow-origin", b"")],
    ):
        decoded = ours.decode(hpack.Encoder().encode(fields, huffman=True))
        assert header_list_bytes(decoded) <= ours.list_bytes_at_most


@pytest.mark.parametrize("name", [b"", b"Upper", b"sp ace", b"colon:", b":unknown", b"new\nline"])
def test_a_name_that_http2_forbids_is_a_bug_of_ours(name: bytes):
    with pytest.raises(LocalProtocolError):
        HeaderEncoder().encode([(name, b"v")])


def test_names_are_remembered_up_to_a_limit():
    subject = HeaderEncoder()
    for index in range(3_000):
        subject.encode([(b"x-generated-%d" % index, b"v")])
    from tunnel.h2 import hpack as module

    assert len(module._known_prefixes) == module._KNOWN_PREFIXES_LIMIT
    assert not any(
        is_credential(name)
        for name in module._known_prefixes.keys() - module._STATIC_PREFIXES.keys() - {b"moorline-identity"}
    )
