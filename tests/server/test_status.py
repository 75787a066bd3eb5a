"""Failures as Status objects: what kubectl, and what a controller that speaks protobuf, can read."""

from __future__ import annotations

import json

import pytest

from server import errors
from server.errors import (
    AgentForbidden,
    AgentNotConnected,
    Forbidden,
    ProxyError,
    TooManyExchanges,
    TunnelLost,
    Unauthenticated,
    UpstreamAnswerUnusable,
    UpstreamTimeout,
    UpstreamUnreachable,
    reason_of,
)
from server.status import (
    accepts_only_protobuf,
    encode_json_status,
    encode_protobuf_status,
    render,
    render_plain_refusal,
)
from tunnel.messages import field_value, field_values

CAUSES = [("FailedHop", "kas"), ("RequestId", "r-1")]

# Written by k8s.io/apimachinery v0.36.3, runtime/serializer/protobuf, from the same Status.
WITH_DETAILS = bytes.fromhex(
    "6b3873000a0c0a02763112065374617475731286010a060a0012001a0012074661696c7572651a1d6167656e7420656467652d3120"
    "6973206e6f7420636f6e6e6563746564221253657276696365556e617661696c61626c652a3d0a06656467652d3112001a05616765"
    "6e7422120a094661696c6564486f7012036b61731a0022120a095265717565737449641203722d311a002800320030f7031a002200"
)
WITHOUT_DETAILS = bytes.fromhex(
    "6b3873000a0c0a027631120653746174757312470a060a0012001a0012074661696c7572651a1d6167656e7420656467652d31206973"
    "206e6f7420636f6e6e6563746564221253657276696365556e617661696c61626c6530f7031a002200"
)


def test_protobuf_is_byte_for_byte_what_kubernetes_writes():
    arguments = (503, "ServiceUnavailable", "agent edge-1 is not connected")

    assert encode_protobuf_status(*arguments, name="edge-1", kind="agent", causes=CAUSES) == WITH_DETAILS
    assert encode_protobuf_status(*arguments) == WITHOUT_DETAILS


def test_json_is_a_status_object():
    assert json.loads(
        encode_json_status(503, "ServiceUnavailable", "m", name="edge-1", kind="agent", causes=CAUSES)
    ) == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": "m",
        "reason": "ServiceUnavailable",
        "details": {
            "name": "edge-1",
            "kind": "agent",
            "causes": [{"reason": "FailedHop", "message": "kas"}, {"reason": "RequestId", "message": "r-1"}],
        },
        "code": 503,
    }


def test_the_answer_says_which_agent_which_hop_and_which_request():
    head, body = render(TunnelLost("edge-1"), request_id="r-7")
    status = json.loads(body)

    assert (head.status, status["code"], status["reason"]) == (502, 502, "BadGateway")
    assert "agent edge-1" in status["message"]
    assert "failed hop: tunnel" in status["message"]
    assert "r-7" in status["message"]
    assert field_value(head.fields, b"moorline-request-id") == b"r-7"
    assert field_value(head.fields, b"moorline-failed-hop") == b"tunnel"
    assert field_value(head.fields, b"content-type") == b"application/json"
    assert field_value(head.fields, b"content-length") == b"%d" % len(body)
    assert head.content_length == len(body)
    assert field_value(head.fields, b"cache-control") == b"no-store"
    assert field_value(head.fields, b"x-content-type-options") == b"nosniff"


def test_an_answer_to_head_has_the_length_and_no_body():
    full, body = render(AgentNotConnected("edge-1"), request_id="r")
    head, nothing = render(AgentNotConnected("edge-1"), request_id="r", method=b"HEAD")

    assert nothing == b""
    assert head.ended
    assert not full.ended
    assert field_value(head.fields, b"content-length") == b"%d" % len(body)


def test_a_missing_credential_is_asked_for():
    head, _ = render(Unauthenticated("no valid credentials provided"), request_id="r")

    assert head.status == 401
    assert field_values(head.fields, b"www-authenticate") == [b'Bearer realm="kas"']


@pytest.mark.parametrize(
    ("accept", "only_protobuf"),
    [
        ([], False),
        ([b"application/json"], False),
        ([b"application/vnd.kubernetes.protobuf"], True),
        ([b"application/vnd.kubernetes.protobuf;stream=watch"], True),
        ([b"Application/vnd.kubernetes.Protobuf ; q=0.9"], True),
        ([b"application/vnd.kubernetes.protobuf,application/json"], False),
        ([b"application/vnd.kubernetes.protobuf", b"application/json"], False),
        ([b"application/vnd.kubernetes.protobuf, */*;q=0.1"], False),
        ([b"application/vnd.kubernetes.protobuf, application/json;q=0.0"], True),
        ([b"application/json;q=0"], False),
        ([b", ,"], False),
    ],
)
def test_protobuf_only_where_nothing_else_is_accepted(accept, only_protobuf):
    assert accepts_only_protobuf(accept) is only_protobuf
    head, body = render(AgentNotConnected("edge-1"), request_id="r", accept=accept)
    assert body.startswith(b"k8s\x00") is only_protobuf
    wanted = b"application/vnd.kubernetes.protobuf" if only_protobuf else b"application/json"
    assert field_value(head.fields, b"content-type") == wanted


ALL_ERRORS: list[ProxyError] = [
    errors.BadRequest("m"),
    Unauthenticated("m"),
    Forbidden("m"),
    AgentForbidden("edge-1", "alice"),
    errors.NoSuchRoute("m"),
    errors.MethodNotAllowed("m"),
    errors.FieldsTooLarge("m"),
    TooManyExchanges("edge-1", 5),
    errors.InternalFailure("edge-1"),
    TunnelLost("edge-1"),
    UpstreamUnreachable("edge-1", "connection refused"),
    errors.AgentRejected("edge-1"),
    UpstreamAnswerUnusable("edge-1", "the answer was 200 to an upgrade"),
    AgentNotConnected("edge-1", waited_seconds=5.0),
    errors.TunnelSaturated("edge-1"),
    UpstreamTimeout("edge-1", 90.0),
]


def test_every_error_is_in_the_list_above():
    def family(cls):
        return {cls}.union(*(family(child) for child in cls.__subclasses__()))

    assert {type(error) for error in ALL_ERRORS} == family(ProxyError) - {ProxyError}


@pytest.mark.parametrize("error", ALL_ERRORS, ids=lambda error: type(error).__name__)
def test_no_answer_invites_to_a_retry_and_each_reason_is_the_one_of_its_status(error):
    # client-go repeats any method, POST too, when it sees Retry-After (proxy-requirements, finding 2).
    head, body = render(error, request_id="r")

    assert not [name for name, _ in head.fields if name == b"retry-after"]
    assert b"retryAfterSeconds" not in body
    assert error.reason == reason_of(error.status)
    if error.agent_id:
        assert error.agent_id in error.message


def test_a_refusal_of_what_could_not_be_parsed_needs_no_request():
    fields, body = render_plain_refusal(431, "the head is larger than 65536 bytes")

    assert json.loads(body)["reason"] == "RequestHeaderFieldsTooLarge"
    assert field_value(fields, b"content-length") == b"%d" % len(body)
    assert json.loads(render_plain_refusal(418, "?")[1])["reason"] == "Unknown"
