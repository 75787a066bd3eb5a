"""What the agent lets through, as tables. kas is taken to be hostile."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from agent.identity_rules import RequestRefused, check_request, impersonation_fields, request_fields
from tunnel.identity import FIELD_NAME, Identity, encode_identity
from tunnel.messages import Fields, RequestHead

ALICE = Identity(mode="impersonate", user="alice", groups=("dev", "ops"))
BOTH = ("impersonate", "agent")


def request(
    identity: Identity | bytes | None = ALICE,
    *more: tuple[bytes, bytes],
    method: bytes = b"GET",
    target: bytes = b"/api",
    protocol: bytes | None = None,
) -> RequestHead:
    fields: Fields = [(b"accept", b"*/*"), *more]
    if identity is not None:
        fields.append((FIELD_NAME, encode_identity(identity) if isinstance(identity, Identity) else identity))
    return RequestHead(method, target, b"kubernetes", fields, protocol, ended=True)


def test_an_ordinary_request_passes_and_says_who_asks():
    assert check_request(request(), ["impersonate"]) == ALICE


@pytest.mark.parametrize(
    "target", [b"/", b"/a%2Fb//c/../d?x=1;y=2&x=3&z=", b"/api/v1/pods?watch=1&labelSelector=a%20in%20(b)", b"/\xc3\xa4"]
)
def test_targets_pass_as_they_are(target):
    check_request(request(target=target), BOTH)


@pytest.mark.parametrize(
    "target", [b"", b"*", b"api", b"http://other/x", b"/a b", b"/a\tb", b"/a\r\nX: y", b"/a\x00", b"/a\x7f", b"/a\n"]
)
def test_targets_that_could_split_a_request_are_refused(target):
    with pytest.raises(RequestRefused) as caught:
        check_request(request(target=target), BOTH)

    assert (caught.value.status, caught.value.word) == (400, "bad-request")


@pytest.mark.parametrize("method", [b"", b"GET ", b"G\r\nET", b"GET/", b"G\xc3\xa4T"])
def test_methods_that_are_no_tokens_are_refused(method):
    with pytest.raises(RequestRefused) as caught:
        check_request(request(method=method), BOTH)

    assert caught.value.word == "bad-request"


@pytest.mark.parametrize("method", [b"GET", b"PATCH", b"PROPFIND", b"x-custom!"])
def test_any_token_is_a_method(method):
    check_request(request(method=method), BOTH)


@pytest.mark.parametrize("token", [b"h2c", b"TLS/1.0", b"websocket, SPDY/3.1", b"connect-udp", b""])
def test_other_upgrades_than_the_two_are_refused(token):
    with pytest.raises(RequestRefused):
        check_request(request(protocol=token), BOTH)


@pytest.mark.parametrize("token", [b"websocket", b"WebSocket", b"SPDY/3.1", b"spdy/3.1"])
def test_the_two_upgrades_pass(token):
    check_request(request(protocol=token), BOTH)


@pytest.mark.parametrize(
    "name",
    [
        b"authorization",
        b"proxy-authorization",
        b"proxy_authorization",
        b"impersonate-user",
        b"impersonate-group",
        b"impersonate-uid",
        b"impersonate-extra-scopes",
        b"impersonate_user",
        b"impersonate_extra_scopes",
        b"impersonate-",
    ],
)
@pytest.mark.parametrize("mode", BOTH)
def test_a_field_that_claims_an_identity_is_refused_in_every_mode(name, mode):
    with pytest.raises(RequestRefused) as caught:
        check_request(request(Identity(mode=mode, user="alice"), (name, b"system:admin")), BOTH)

    assert (caught.value.status, caught.value.word) == (403, "identity-refused")
    assert "system:admin" not in str(caught.value)


@pytest.mark.parametrize("name", [b"connection", b"transfer-encoding", b"upgrade", b"keep-alive", b"host"])
def test_a_field_of_one_connection_is_refused(name):
    with pytest.raises(RequestRefused) as caught:
        check_request(request(ALICE, (name, b"x")), BOTH)

    assert caught.value.word == "bad-request"


def test_a_bearer_token_among_the_subprotocols_is_refused():
    """kube-apiserver would take it for a credential, and the agent's own identity would not count."""
    field = (b"sec-websocket-protocol", b"v5.channel.k8s.io, Base64URL.bearer.authorization.k8s.io.c2VjcmV0")
    with pytest.raises(RequestRefused) as caught:
        check_request(request(ALICE, field, protocol=b"websocket"), BOTH)

    assert "c2VjcmV0" not in str(caught.value)


def block(**changes: Any) -> bytes:
    document = {"v": 1, "mode": "impersonate", "user": "alice", **changes}
    return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=")


@pytest.mark.parametrize(
    "identity",
    [None, b"", b"not base64!", base64.urlsafe_b64encode(b"[]"), block(v=2), block(mode="root"), block(user=7)],
)
def test_no_identity_or_a_malformed_one_is_refused(identity):
    with pytest.raises(RequestRefused) as caught:
        check_request(request(identity), BOTH)

    assert (caught.value.status, caught.value.word) == (403, "identity-refused")


def test_two_identities_are_refused():
    with pytest.raises(RequestRefused):
        check_request(request(ALICE, (FIELD_NAME, encode_identity(ALICE))), BOTH)


@pytest.mark.parametrize(("mode", "allowed"), [("agent", ["impersonate"]), ("impersonate", ["agent"])])
def test_a_mode_that_the_agents_own_configuration_does_not_list_is_refused(mode, allowed):
    with pytest.raises(RequestRefused, match=r"access\.modes"):
        check_request(request(Identity(mode=mode, user="alice")), allowed)


def test_impersonation_of_nobody_is_refused():
    """Without Impersonate-User the request would run with the agent's whole power."""
    with pytest.raises(RequestRefused, match="names no user"):
        check_request(request(Identity(mode="impersonate", groups=("system:masters",))), BOTH)


@pytest.mark.parametrize(
    ("method", "target", "protocol", "passes"),
    [
        (b"GET", b"/api/v1/pods", None, True),
        (b"HEAD", b"/api/v1/pods", None, True),
        (b"POST", b"/apis/authorization.k8s.io/v1/selfsubjectaccessreviews?timeout=1s", None, True),
        (b"POST", b"/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", None, True),
        (b"POST", b"/apis/authentication.k8s.io/v1/selfsubjectreviews", None, True),
        (b"POST", b"/apis/authorization.k8s.io/v1/subjectaccessreviews", None, False),
        (b"POST", b"/apis/authorization.k8s.io/v1/selfsubjectaccessreviews/", None, False),
        (b"POST", b"/api/v1/namespaces/default/pods", None, False),
        (b"OPTIONS", b"/api", None, False),
        (b"DELETE", b"/api/v1/namespaces/default/pods/p", None, False),
        (b"get", b"/api", None, False),
        (b"GET", b"/api/v1/namespaces/default/pods/p/exec?command=sh", b"websocket", False),
        (b"GET", b"/api/v1/pods?watch=1", b"websocket", False),
    ],
)
def test_a_read_only_role_reads(method, target, protocol, passes):
    identity = Identity(mode="impersonate", user="alice", role="read-only")
    asked = request(identity, method=method, target=target, protocol=protocol)
    if passes:
        check_request(asked, BOTH)
    else:
        with pytest.raises(RequestRefused, match="read-only"):
            check_request(asked, BOTH)


def test_impersonation_names_user_uid_groups_and_extras():
    identity = Identity(
        mode="impersonate",
        user="alice@example.com",
        uid="u-1",
        groups=("dev", "ops team", "größe"),
        extra={"scopes": ("a", "b"), "example.com/Team %": ("x",), "empty": ()},
    )

    assert impersonation_fields(identity) == [
        (b"impersonate-user", b"alice@example.com"),
        (b"impersonate-uid", b"u-1"),
        (b"impersonate-group", b"dev"),
        (b"impersonate-group", b"ops team"),
        (b"impersonate-group", "größe".encode()),
        (b"impersonate-extra-scopes", b"a"),
        (b"impersonate-extra-scopes", b"b"),
        (b"impersonate-extra-example.com%2fteam%20%25", b"x"),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"user": ""},
        {"user": " alice"},
        {"user": "alice\t"},
        {"user": "alice\r\nImpersonate-Group: system:masters"},
        {"user": "a\x00b"},
        {"user": "\ud800"},
        {"uid": "u\n"},
        {"groups": ("",)},
        {"groups": ("dev ",)},
        {"groups": ("a\x7f",)},
        {"extra": {"": ("x",)}},
        {"extra": {"key": ("x\ny",)}},
        {"extra": {"\ud800": ("x",)}},
    ],
    ids=str,
)
def test_a_name_that_would_become_another_one_on_the_way_is_refused(changes):
    identity = Identity(**{"mode": "impersonate", "user": "alice", **changes})
    with pytest.raises(RequestRefused) as caught:
        impersonation_fields(identity)

    assert caught.value.word == "identity-refused"


def test_the_callers_fields_keep_their_order_and_number_and_ours_come_last():
    asked = request(
        ALICE,
        (b"x-stream-protocol-version", b"v5.channel.k8s.io"),
        (b"x-stream-protocol-version", b"v4.channel.k8s.io"),
        (b"moorline-anything", b"x"),
        (b"moorline_error", b"x"),
        (b"x-remote-user", b"root"),
        (b"x_remote_group", b"system:masters"),
        (b"user-agent", b"kubectl"),
    )

    assert request_fields(asked, ALICE) == [
        (b"accept", b"*/*"),
        (b"x-stream-protocol-version", b"v5.channel.k8s.io"),
        (b"x-stream-protocol-version", b"v4.channel.k8s.io"),
        (b"user-agent", b"kubectl"),
        (b"impersonate-user", b"alice"),
        (b"impersonate-group", b"dev"),
        (b"impersonate-group", b"ops"),
    ]


def test_as_the_agent_nobody_is_impersonated():
    identity = Identity(mode="agent", user="alice", groups=("dev",))

    assert request_fields(request(identity), identity) == [(b"accept", b"*/*")]
