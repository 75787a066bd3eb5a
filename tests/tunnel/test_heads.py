"""Heads as HTTP/2 field lists and back."""

from __future__ import annotations

import pytest

from tunnel.errors import RemoteProtocolError
from tunnel.heads import request_fields, request_head, response_fields, response_head
from tunnel.messages import RequestHead, ResponseHead


def test_a_request_keeps_its_target_and_its_lines() -> None:
    head = RequestHead(
        b"PATCH",
        b"/api/a%2Fb?x=1;y&z=%20",
        b"kas:1",
        [(b"accept", b"a"), (b"accept", b"b"), (b"content-length", b"3")],
        content_length=3,
        http_version=(2, 0),
    )

    assert request_head(request_fields(head), ended=False) == head


def test_a_method_of_somebody_elses_is_carried() -> None:
    head = RequestHead(b"PROPFIND", b"/", b"kas", [], ended=True, http_version=(2, 0))

    assert request_head(request_fields(head), ended=True) == head


def test_host_stands_in_for_a_missing_authority_and_is_no_field() -> None:
    fields = [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"), (b"host", b"kas"), (b"a", b"b")]

    head = request_head(fields, ended=True)

    assert (head.authority, head.fields) == (b"kas", [(b"a", b"b")])


@pytest.mark.parametrize(("method", "token"), [(b"GET", b"websocket"), (b"POST", b"SPDY/3.1")])
def test_an_upgrade_is_an_extended_connect_that_remembers_its_method(method: bytes, token: bytes) -> None:
    head = RequestHead(
        method,
        b"/exec?command=ls",
        b"kubernetes",
        [(b"content-length", b"0"), (b"x-a", b"1")],
        protocol=token,
        ended=True,
    )

    fields = request_fields(head)

    assert fields[:2] == [(b":method", b"CONNECT"), (b":protocol", token)]
    assert not [name for name, _ in fields if name in (b"content-length", b"connection", b"upgrade")]
    back = request_head(fields, ended=False)
    assert (back.method, back.protocol, back.target, back.fields) == (method, token, head.target, [(b"x-a", b"1")])
    assert back.ended


@pytest.mark.parametrize("extra", [[], [(b"moorline-method", b"GET"), (b"moorline-method", b"POST")]])
def test_an_upgrade_without_exactly_one_method_is_refused(extra: list[tuple[bytes, bytes]]) -> None:
    fields = [(b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"https"), (b":path", b"/"), *extra]

    with pytest.raises(RemoteProtocolError):
        request_head(fields, ended=False)


def test_101_travels_as_200() -> None:
    assert response_fields(ResponseHead(101, [(b"upgrade", b"x")]))[0] == (b":status", b"200")


def test_a_response_keeps_its_lines_and_length() -> None:
    head = ResponseHead(418, [(b"warning", b"a"), (b"content-length", b"7"), (b"warning", b"b")], 7, False)

    assert response_head(response_fields(head), ended=False) == head


def test_an_unusual_status_is_carried() -> None:
    assert response_head(response_fields(ResponseHead(799, [])), ended=True) == ResponseHead(799, [], None, True)
