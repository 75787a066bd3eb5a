"""Reading protobuf."""

from __future__ import annotations

import base64
import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox import protobuf
from sandbox.status import ApiError


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*result, value])


def field(number: int, value: bytes | str | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def envelope(api_version: str, kind: str, raw: bytes) -> bytes:
    return b"k8s\x00" + field(1, field(1, api_version) + field(2, kind)) + field(2, raw)


def decoded(kind: str, raw: bytes) -> tuple[dict[str, Any], list[str]]:
    document, dropped = protobuf.decode(envelope("v1", kind, raw))
    assert document["kind"] == kind
    return document, dropped


METADATA = field(1, field(1, "x") + field(3, "n") + field(11, field(1, "k") + field(2, "v")) + field(8, b""))


def test_a_config_map_with_metadata_and_maps() -> None:
    document, dropped = decoded(
        "ConfigMap", METADATA + field(2, field(1, "a") + field(2, "b")) + field(2, field(1, "e"))
    )
    assert document["metadata"] == {"name": "x", "namespace": "n", "labels": {"k": "v"}}
    assert document["data"] == {"a": "b", "e": ""}
    assert dropped == []


def test_bytes_are_base64_in_json() -> None:
    document, _ = decoded("Secret", field(2, field(1, "a") + field(2, b"\xff\x00")))
    assert base64.b64decode(document["data"]["a"]) == b"\xff\x00"


def test_a_service_with_numbers_and_names_of_ports() -> None:
    ports = [field(1, field(3, 80) + field(4, field(1, 0) + field(2, 8080)) + field(5, 0))]
    ports.append(field(1, field(3, 81) + field(4, field(1, 1) + field(2, 0) + field(3, "http"))))
    document, _ = decoded("Service", field(2, b"".join(ports)))
    assert document["spec"]["ports"] == [{"port": 80, "targetPort": 8080}, {"port": 81, "targetPort": "http"}]


def test_noughts_are_kept_where_they_say_something() -> None:
    assert protobuf.decode(envelope("apps/v1", "Deployment", field(2, field(1, 0) + field(5, 0))))[0]["spec"] == {
        "replicas": 0
    }


def test_times_and_negative_numbers() -> None:
    document, _ = decoded("Event", field(6, field(1, 1_700_000_000)) + field(8, -2))
    assert (document["firstTimestamp"], document["count"]) == ("2023-11-14T22:13:20Z", -2)


def test_what_is_not_known_is_named() -> None:
    spec = field(2, field(1, "c") + field(15, field(2, 1))) + field(14, field(1, b"x"))
    _, dropped = decoded("Pod", field(2, spec))
    assert dropped == ["field 15 of Container", "field 14 of PodSpec"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"k8s\x00",
        b"k8s\x00\xff",
        envelope("v1", "Pod", b"\x0a\x7f"),
        envelope("v1", "Pod", field(2, 5)),
        envelope("v1", "Pod", b"\x0d\x01\x02\x03\x04"),
    ],
)
def test_what_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(ApiError):
        protobuf.decode(data)


@settings(deadline=None)
@given(st.sampled_from(["Pod", "Service", "Secret", "Event", "DeleteOptions", "Nonsense"]), st.binary(max_size=200))
def test_no_input_brings_it_down(kind: str, data: bytes) -> None:
    with contextlib.suppress(ApiError):
        protobuf.decode(envelope("v1", kind, data))
