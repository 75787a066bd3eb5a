"""Framers: the same boundaries however the body is cut up, and never one inside an event."""

from __future__ import annotations

import json
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.watches import JsonLines, LengthPrefixed, WatchEvent, framer_for


def json_event(kind: str, version: str, *, text: str = "", before: dict | None = None) -> bytes:
    body = {"apiVersion": "v1", **(before or {}), "kind": "Pod", "metadata": {"name": "p", "resourceVersion": version}}
    return (
        json.dumps({"type": kind, "object": {**body, "spec": {"text": text}}}, separators=(",", ":")).encode() + b"\n"
    )


def delimited(field: int, content: bytes) -> bytes:
    length, encoded = len(content), bytearray()
    while length > 127:
        encoded.append(length & 127 | 128)
        length >>= 7
    encoded.append(length)
    return bytes([field << 3 | 2]) + bytes(encoded) + content


def protobuf_event(kind: str, version: str, *, text: str = "") -> bytes:
    meta = delimited(1, b"p") + delimited(2, b"") + delimited(3, b"ns") + delimited(4, b"") + delimited(5, b"uid")
    meta += delimited(6, version.encode()) + bytes([7 << 3, 3])
    unknown = delimited(1, delimited(1, b"v1") + delimited(2, b"Pod"))
    unknown += delimited(2, delimited(1, meta) + delimited(2, text.encode())) + delimited(3, b"") + delimited(4, b"")
    event = delimited(1, kind.encode()) + delimited(2, delimited(1, b"k8s\x00" + unknown))
    return struct.pack(">I", len(event)) + event


# Written by Kubernetes' own types and framer (k8s.io/api and apimachinery v0.36.3): MODIFIED, Pod "p", version 4711.
REAL_EVENT = bytes.fromhex(
    "0000007a0a084d4f444946494544126e0a6c6b3873000a090a0276311203506f6412570a220a017012001a026e7322002a03752d3132"
    "0434373131380342005a060a0161120162121c1a00320042004a0052005800600068008201008a01009a0100c201001a130a001a0022"
    "002a0032004a005a0072008801001a002200"
)

_kinds = st.sampled_from(["ADDED", "MODIFIED", "DELETED", "BOOKMARK"])
_versions = st.integers(0, 10**12).map(str)
_texts = st.one_of(st.text(max_size=30), st.just('"}\n{"metadata":{"resourceVersion":"666"}}'), st.just("x" * 3000))
_events = st.lists(st.tuples(_kinds, _versions, _texts), min_size=0, max_size=6)


@given(events=_events, data=st.data())
@pytest.mark.parametrize(("framer", "encode"), [(JsonLines, json_event), (LengthPrefixed, protobuf_event)])
def test_any_chopping_gives_the_same_boundaries(framer, encode, events, data):
    encoded = [encode(kind, version, text=text) for kind, version, text in events]
    body = b"".join(encoded)
    ends = [0]
    for event in encoded:
        ends.append(ends[-1] + len(event))
    cut = data.draw(st.integers(0, len(body)), label="cut")
    chops = sorted(data.draw(st.lists(st.integers(0, cut), max_size=12), label="chops"))

    subject = framer()
    for start, end in zip([0, *chops], [*chops, cut], strict=True):
        subject.feed(body[start:end])

    assert subject.boundary == max(end for end in ends if end <= cut)
    assert subject.at_boundary == (cut in ends)
    whole = sum(end <= cut for end in ends) - 1
    expected = WatchEvent(*events[whole - 1][:2]) if whole else None
    assert subject.last_event() == expected


@given(events=_events)
@pytest.mark.parametrize(("framer", "encode"), [(JsonLines, json_event), (LengthPrefixed, protobuf_event)])
def test_one_byte_at_a_time(framer, encode, events):
    subject = framer()
    for kind, version, text in events:
        event = encode(kind, version, text=text[:300])
        for index, byte in enumerate(event):
            subject.feed(bytes([byte]))
            assert subject.at_boundary == (index == len(event) - 1)
        assert subject.last_event() == WatchEvent(kind, version)


def test_an_event_that_kubernetes_wrote_is_read():
    framer = LengthPrefixed()
    framer.feed(REAL_EVENT * 2)

    assert framer.boundary == 2 * len(REAL_EVENT)
    assert framer.last_event() == WatchEvent("MODIFIED", "4711")


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_arbitrary_bytes_do_no_harm(chunks):
    for framer in (JsonLines(), LengthPrefixed()):
        for chunk in chunks:
            framer.feed(chunk)
        framer.last_event()
        assert framer.boundary <= sum(map(len, chunks))


def test_before_the_first_byte_is_a_boundary():
    for framer in (JsonLines(), LengthPrefixed()):
        assert framer.at_boundary
        framer.feed(b"")
        assert framer.at_boundary
        assert framer.last_event() is None


def test_an_event_over_several_lines_is_never_at_a_boundary():
    pretty = json.dumps({"type": "ADDED", "object": {"metadata": {}, "a": [{}]}}, indent=1).encode() + b"\n"
    framer = JsonLines()
    for line in pretty.splitlines(keepends=True):
        framer.feed(line)
        assert not framer.at_boundary
    whole = JsonLines()
    whole.feed(pretty)
    assert not whole.at_boundary


@pytest.mark.parametrize("garbage", [b"\n", b"  \n", b"null\n", b"[1]\n", b"<html>\n", b"{\n", b"}\n"])
def test_a_line_that_is_no_object_is_no_boundary(garbage):
    framer = JsonLines()
    framer.feed(json_event("ADDED", "1"))
    framer.feed(garbage)

    assert not framer.at_boundary
    assert framer.last_event() == WatchEvent("ADDED", "1")


def test_a_resource_version_in_a_string_or_before_metadata_is_not_taken():
    framer = JsonLines()
    framer.feed(
        json_event(
            "ADDED", "7", before={"note": '"metadata":{"resourceVersion":"666"', "involved": {"resourceVersion": "13"}}
        )
    )

    assert framer.last_event() == WatchEvent("ADDED", "7")


def test_an_error_event_has_no_resource_version():
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 410}
    framer = JsonLines()
    framer.feed(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
    assert framer.last_event() == WatchEvent("ERROR", "")

    prefixed = LengthPrefixed()
    prefixed.feed(protobuf_event("ERROR", "5"))
    assert prefixed.last_event() == WatchEvent("ERROR", "")


def test_events_that_say_little_are_events_all_the_same():
    framer = LengthPrefixed()
    framer.feed(b"\x00\x00\x00\x00")
    assert framer.at_boundary
    assert framer.last_event() == WatchEvent("", "")
    framer.feed(b"\x00\x00\x00\x02\xff\xff")
    assert framer.at_boundary
    framer.feed(b"\x7f\xff\xff\xff")
    assert not framer.at_boundary


@pytest.mark.parametrize(
    ("content_type", "content_encoding", "framer"),
    [
        (b"application/json", None, JsonLines),
        (b"application/json; charset=utf-8", b"", JsonLines),
        (b"Application/JSON;stream=watch", b"identity", JsonLines),
        (b"application/vnd.kubernetes.protobuf;stream=watch", None, LengthPrefixed),
        (b"application/vnd.kubernetes.protobuf", b" Identity ", LengthPrefixed),
        (b"application/json", b"gzip", None),
        (b"application/vnd.kubernetes.protobuf;stream=watch", b"gzip", None),
        (b"application/cbor-seq", None, None),
        (b"application/cbor", None, None),
        (b"text/plain", None, None),
        (b"application/jsonx", None, None),
        (None, None, None),
    ],
)
def test_the_framer_for_a_response(content_type, content_encoding, framer):
    found = framer_for(content_type, content_encoding)

    assert type(found) is (framer or type(None))


def test_a_framer_holds_little_whatever_the_size_of_an_event():
    for framer, event in ((JsonLines(), json_event), (LengthPrefixed(), protobuf_event)):
        body = event("ADDED", "1", text="x" * 3_000_000)
        for start in range(0, len(body), 65_536):
            framer.feed(body[start : start + 65_536])
        held = getattr(framer, "_line", framer)
        last = getattr(framer, "_last", None)
        for part in (held, last):
            for name in getattr(part, "__slots__", ()):
                value = getattr(part, name)
                assert not isinstance(value, bytes) or len(value) <= 1024
        assert framer.at_boundary


@pytest.mark.slow
def test_big_events_are_framed_at_memory_speed():
    chunk = b"x" * 65_536
    for framer, start in (
        (JsonLines(), b'{"type":"ADDED","object":{"metadata":{"resourceVersion":"1"'),
        (LengthPrefixed(), b"\x7f\xff\xff\xff"),
    ):
        framer.feed(start)
        began = time.perf_counter()
        for _ in range(1000):
            framer.feed(chunk)
        per_second = 1000 * len(chunk) / (time.perf_counter() - began)
        assert per_second > 1_000_000_000, "bytes per second"
