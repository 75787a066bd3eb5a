"""Addresses: every form leads to the right agent, and the target behind it is not touched."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.addressing import AGENTK, KUBERNETES, Addressing, Credentials, credentials_of
from server.errors import BadRequest, Forbidden, MethodNotAllowed, NoSuchRoute, ProxyError, Unauthenticated
from tunnel.messages import RequestHead

PLAIN = Credentials(token="mlu_x", agent_id=None, fields=[])
FOR_EDGE = Credentials(token="mlu_x", agent_id="edge-1", fields=[])
ADDRESSING = Addressing(domain="Example.com")


def resolve(target, credentials=FOR_EDGE, *, authority=b"kas:443", method=b"GET", addressing=ADDRESSING, protocol=None):
    return addressing.address_of(RequestHead(method, target, authority, [], protocol=protocol), credentials)


@pytest.mark.parametrize(
    ("target", "behind"),
    [
        (b"/k8s-proxy/api/v1/pods", b"/api/v1/pods"),
        (b"/k8s-proxy/", b"/"),
        (b"/k8s-proxy", b"/"),
        (b"/k8s-proxy?a=b", b"/?a=b"),
        (b"/k8s-proxy/?", b"/?"),
        (b"/k8s-proxy/api?x=1&x=2;y&&z=%2F+", b"/api?x=1&x=2;y&&z=%2F+"),
        (b"/k8s-proxy//api/../v1/%2e%2E/a%2Fb/", b"//api/../v1/%2e%2E/a%2Fb/"),
        (b"/k8s-proxy/k8s-proxy/x", b"/k8s-proxy/x"),
        (b"/k8s-proxy/agents/other/k8s/x", b"/agents/other/k8s/x"),
    ],
)
def test_the_path_prefix_takes_the_agent_from_the_credential(target, behind):
    address = resolve(target)

    assert (address.agent_id, address.origin, address.target, address.prefix) == (
        "edge-1",
        KUBERNETES,
        behind,
        b"/k8s-proxy",
    )


@pytest.mark.parametrize(
    ("target", "origin", "behind", "prefix"),
    [
        (b"/agents/edge-1/k8s/api", KUBERNETES, b"/api", b"/agents/edge-1/k8s"),
        (b"/agents/edge-1/k8s", KUBERNETES, b"/", b"/agents/edge-1/k8s"),
        (b"/agents/edge-1/k8s?q", KUBERNETES, b"/?q", b"/agents/edge-1/k8s"),
        (b"/agents/edge-1/agentk/v1/info", AGENTK, b"/v1/info", b"/agents/edge-1/agentk"),
    ],
)
@pytest.mark.parametrize("credentials", [PLAIN, FOR_EDGE])
def test_the_agent_path_names_agent_and_origin(target, origin, behind, prefix, credentials):
    address = resolve(target, credentials)

    assert (address.agent_id, address.origin, address.target, address.prefix) == ("edge-1", origin, behind, prefix)


@pytest.mark.parametrize(
    "authority",
    [
        b"edge-1.k8s.example.com",
        b"edge-1.k8s.example.com:8443",
        b"EDGE-1.K8s.Example.COM.",
        b"edge-1.k8s.example.com.:1",
    ],
)
def test_the_host_name_leaves_the_whole_target_to_the_cluster(authority):
    address = resolve(b"/k8s-proxy/agents/x/k8s/..?q=%2F", PLAIN, authority=authority)

    assert (address.agent_id, address.origin, address.target, address.prefix) == (
        "edge-1",
        KUBERNETES,
        b"/k8s-proxy/agents/x/k8s/..?q=%2F",
        b"",
    )


def test_without_a_domain_host_names_mean_nothing():
    with pytest.raises(NoSuchRoute):
        resolve(b"/api", PLAIN, authority=b"edge-1.k8s.example.com", addressing=Addressing())


@pytest.mark.parametrize(
    "authority", [b"k8s.example.com", b"edge-1.example.com", b"edge-1.k8s.example.com.evil.org", b""]
)
def test_other_host_names_are_not_taken_for_agents(authority):
    with pytest.raises(NoSuchRoute):
        resolve(b"/api", PLAIN, authority=authority)


@pytest.mark.parametrize(
    "authority", [b".k8s.example.com", b"a.b.k8s.example.com", b"-a.k8s.example.com", b"a_b.k8s.example.com"]
)
def test_a_host_name_that_cannot_be_an_agent_is_refused(authority):
    with pytest.raises(BadRequest, match="DNS label"):
        resolve(b"/api", PLAIN, authority=authority)


@pytest.mark.parametrize(
    ("target", "authority"),
    [(b"/agents/edge-2/k8s/api", b"kas"), (b"/agents/edge-2/agentk/x", b"kas"), (b"/api", b"edge-2.k8s.example.com")],
)
def test_a_credential_for_another_agent_is_forbidden(target, authority):
    with pytest.raises(Forbidden, match='for agent "edge-1" and the address for agent "edge-2"'):
        resolve(target, FOR_EDGE, authority=authority)


@pytest.mark.parametrize(
    "target",
    [
        b"/k8s%2Dproxy/api",
        b"/k8s-proxy%2Fapi",
        b"/%6b8s-proxy",
        b"/agents/edge%2D1/k8s/api",
        b"/agents/edge-1%2Fk8s/api",
        b"/agents/edge-1/k8s%2Fapi",
        b"/agents%2Fedge-1/k8s/api",
        b"/agents/edge-1/%6b8s/api",
        b"/agents/x%2Fk8s%2Fy/k8s/api",
    ],
)
def test_a_path_that_matches_only_once_it_is_decoded_is_refused(target):
    with pytest.raises(BadRequest, match="percent-encoded"):
        resolve(target)


@pytest.mark.parametrize(
    "target",
    [
        b"/",
        b"/k8s-proxyx/api",
        b"/k8s-prox",
        b"/agents",
        b"/agents/edge-1",
        b"/agents/edge-1/",
        b"/agents/edge-1/k8sx",
        b"/agents//k8s/",
        b"/K8S-PROXY/",
    ],
)
def test_other_paths_lead_nowhere_and_the_answer_says_what_does(target):
    with pytest.raises(NoSuchRoute, match="/agents/<agent>/k8s/"):
        resolve(target)


@pytest.mark.parametrize("agent", [b"Edge-1", b"-edge", b"edge-", b"a" * 64, b"a.b", b"a_b", b"\xc3\xa9"])
def test_an_agent_that_cannot_be_one_is_refused(agent):
    with pytest.raises(BadRequest, match="DNS label"):
        resolve(b"/agents/" + agent + b"/k8s/", PLAIN)


def test_the_path_prefix_needs_an_agent_in_the_credential():
    with pytest.raises(BadRequest, match="pat:<agent>:<token>"):
        resolve(b"/k8s-proxy/api", PLAIN)


def test_other_forms_of_targets_are_refused():
    with pytest.raises(BadRequest):
        resolve(b"*", method=b"OPTIONS")
    with pytest.raises(MethodNotAllowed):
        resolve(b"kubernetes:443", method=b"CONNECT")
    assert resolve(b"/k8s-proxy/x", method=b"CONNECT", protocol=b"websocket").target == b"/x"


@pytest.mark.parametrize("prefix", ["/", "/proxy", "/proxy/", "/a/b.c/"])
def test_any_prefix_is_matched_on_a_segment_boundary(prefix):
    addressing = Addressing(path_prefix=prefix)
    base = prefix.rstrip("/").encode()

    assert resolve(base + b"/api?x", addressing=addressing).target == b"/api?x"
    assert resolve(base + b"/api?x", addressing=addressing).prefix == base
    if base:
        with pytest.raises(NoSuchRoute):
            resolve(base + b"x/api", addressing=addressing)


@given(st.binary(max_size=80).filter(lambda rest: b" " not in rest))
def test_what_is_behind_the_prefix_keeps_every_byte(rest):
    assert resolve(b"/k8s-proxy/" + rest).target == b"/" + rest
    assert resolve(b"/agents/edge-1/k8s/" + rest).target == b"/" + rest
    assert resolve(b"/" + rest, authority=b"edge-1.k8s.example.com").target == b"/" + rest


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_prefix_and_target_together_are_what_came(path, query):
    target = b"/" + path.replace(b"?", b"") + b"?" + query
    try:
        address = resolve(target)
    except ProxyError:
        return
    assert address.prefix + address.target in (target, target.replace(b"?", b"/?", 1))


# Credentials.


def bearer(value: bytes):
    return credentials_of([(b"authorization", value)])


def test_both_forms_of_bearer_tokens():
    assert (bearer(b"Bearer mlu_abc").token, bearer(b"Bearer mlu_abc").agent_id) == ("mlu_abc", None)
    for value in (b"Bearer pat:edge-1:mlu_abc", b"bearer   pat:edge-1:mlu_abc", b"BEARER pat:edge-1:mlu_abc"):
        assert (bearer(value).token, bearer(value).agent_id) == ("mlu_abc", "edge-1")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ([], "no valid credentials provided"),
        ([(b"authorization", b"Bearer a"), (b"authorization", b"Bearer a")], "expecting a single header, got 2"),
        ([(b"authorization", b"Basic dTpw")], "expecting Bearer token"),
        ([(b"authorization", b"mlu_abc")], "expecting Bearer token"),
        ([(b"authorization", b"")], "expecting Bearer token"),
        ([(b"authorization", b"Bearer")], "empty token"),
        ([(b"authorization", b"Bearer  ")], "empty token"),
        ([(b"authorization", b"Bearer a b")], "invalid value"),
        ([(b"authorization", b"Bearer \xff")], "invalid value"),
        ([(b"authorization", b"Bearer " + b"x" * 5000)], "invalid value"),
        ([(b"authorization", b"Bearer ci:1:abc")], "unknown token type"),
        ([(b"authorization", b"Bearer pat:edge-1")], "empty token"),
        ([(b"authorization", b"Bearer pat:edge-1:")], "empty token"),
        ([(b"authorization", b"Bearer pat::abc")], "failed to parse"),
        ([(b"authorization", b"Bearer pat:Edge_1:abc")], "failed to parse"),
        (
            [(b"sec-websocket-protocol", b"base64url.bearer.authorization.k8s.io.!!, v4.channel.k8s.io")],
            "exactly one base64url",
        ),
        (
            [
                (
                    b"sec-websocket-protocol",
                    b"base64url.bearer.authorization.k8s.io.YQ, base64url.bearer.authorization.k8s.io.Yg",
                )
            ],
            "exactly one base64url",
        ),
    ],
)
def test_a_credential_that_cannot_be_read_is_401_and_says_why(fields, text):
    with pytest.raises(Unauthenticated) as caught:
        credentials_of(fields)

    assert text in caught.value.message
    assert caught.value.message.startswith("Unauthorized: ")


def test_no_text_and_no_repr_has_the_token():
    canary = b"canarycanary"
    for value in (b"Basic " + canary, b"Bearer ci:1:" + canary, b"Bearer x " + canary, b"Bearer pat:NO:" + canary):
        with pytest.raises(Unauthenticated) as caught:
            bearer(value)
        assert "canary" not in str(caught.value)
    assert "canary" not in repr(bearer(b"Bearer pat:edge-1:" + canary))


@pytest.mark.parametrize("token", ["mlu_abc", "pat:edge-1:mlu_abc"])
def test_a_token_as_websocket_subprotocol_is_taken_and_taken_out(token):
    encoded = base64.urlsafe_b64encode(token.encode()).rstrip(b"=")
    fields = [
        (b"x", b"y"),
        (b"sec-websocket-protocol", b"base64url.bearer.authorization.k8s.io." + encoded + b", v4.channel.k8s.io"),
    ]

    credentials = credentials_of(fields)

    assert credentials.token == "mlu_abc"
    assert credentials.agent_id == ("edge-1" if token.startswith("pat") else None)
    assert credentials.fields == [(b"x", b"y"), (b"sec-websocket-protocol", b"v4.channel.k8s.io")]


def test_the_header_counts_before_the_subprotocol_which_is_taken_out_all_the_same():
    fields = [
        (b"authorization", b"Bearer mlu_header"),
        (b"sec-websocket-protocol", b"base64url.bearer.authorization.k8s.io.YWJj, v4.channel.k8s.io"),
    ]

    credentials = credentials_of(fields)

    assert credentials.token == "mlu_header"
    assert (b"sec-websocket-protocol", b"v4.channel.k8s.io") in credentials.fields
