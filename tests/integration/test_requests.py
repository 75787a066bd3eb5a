"""What reaches the kube-apiserver of a request: the target byte for byte, the lines that may travel, one identity."""

from __future__ import annotations

import base64
from pathlib import Path

import hypothesis
import pytest
import trio
from hypothesis import strategies as st
from support.scripted_cluster import Visit
from support.scripted_stack import CLUSTER_TOKEN, VERSIONS, Stack, Version, open_stack

PODS = b"/api/v1/pods"
ALICE = [
    (b"impersonate-user", b"alice"),
    (b"impersonate-uid", b"17"),
    (b"impersonate-group", b"developers"),
    (b"impersonate-extra-team", b"red"),
]
OURS = (b"host", b"authorization", b"content-length")


def identity(stack: Stack) -> list[tuple[bytes, bytes]]:
    """What the last request said of who sends it."""
    return [
        (name.lower(), value)
        for name, value in stack.cluster.requests[-1].fields
        if name.lower().replace(b"_", b"-").startswith((b"impersonate", b"x-remote", b"moorline"))
    ]


def carried(stack: Stack) -> list[tuple[bytes, bytes]]:
    """The lines of the last request that are the caller's."""
    return [
        (name.lower(), value)
        for name, value in stack.cluster.requests[-1].fields
        if name.lower() not in OURS and not name.lower().startswith(b"impersonate-")
    ]


# --- targets ---------------------------------------------------------------------------------------

ODD_TARGETS = [
    b"/",
    b"//",
    b"//api/v1/namespaces",
    b"/api/v1/../v1/namespaces",
    b"/api/./v1",
    b"/api/v1/",
    b"/api/v1?",
    b"/api/v1??",
    b"/api/v1/namespaces/default/configmaps/a%2Fb",
    b"/api/v1/namespaces/default/configmaps/a%2fb%2E%2e",
    b"/api/v1/services/http:web:80/proxy/a;b=c/d",
    b"/api/v1/pods?limit=1;foo=2&limit=3&&x=&=y&a+b=c%20d",
    b"/api/v1/pods?labelSelector=a%3Db%2Cc+in+(d,e)&fieldSelector=",
    b"/api/v1/pods?q=%zz%",
    b"/api/v1/pods?q='\"<>\\^`{|}[]",
    b"/%00%0d%0a",
    b"/agents/edge/k8s/api",
    b"/k8s-proxy/api",
]


@pytest.mark.parametrize("target", ODD_TARGETS)
async def test_a_target_arrives_byte_for_byte(stack: Stack, target: bytes) -> None:
    addresses: list[tuple[bytes, bytes, bytes]] = [
        (b"/agents/edge/k8s", stack.token(), b"kas.example.com"),
        (b"/k8s-proxy", b"pat:edge:" + stack.token(), b"kas.example.com"),
        (b"", stack.token(), b"edge.k8s.example.com"),
    ]
    for prefix, token, host in addresses:
        async with stack.raw() as raw:
            await raw.send(
                b"GET %b%b HTTP/1.1\r\nHost: %b\r\nAuthorization: Bearer %b\r\n\r\n" % (prefix, target, host, token)
            )
            assert (await raw.read_head()).startswith(b"HTTP/1.1 200 ")
        assert stack.cluster.requests[-1].target == target


@pytest.mark.parametrize("target", ODD_TARGETS)
async def test_a_target_arrives_byte_for_byte_over_http2(stack: Stack, target: bytes) -> None:
    async with stack.caller("http2") as caller:
        assert (await caller.get(target)).status == 200
    assert stack.cluster.requests[-1].target == target


@pytest.mark.parametrize("target", [b"/caf\xc3\xa9", b"/?\xff"])
async def test_bytes_that_no_uri_contains_are_refused_and_never_encoded(stack: Stack, target: bytes) -> None:
    async with stack.raw() as raw:
        await raw.send(stack.head(b"GET", target))
        assert (await raw.read_head()).startswith(b"HTTP/1.1 400 ")
    async with stack.caller("http2") as caller:
        assert (await caller.get(target)).status == 400
    assert stack.cluster.requests == []


async def test_an_absolute_target_loses_its_authority_and_nothing_else(stack: Stack) -> None:
    async with stack.raw() as raw:
        await raw.send(
            b"GET https://kas.example.com/agents/edge/k8s//a%%2Fb?c HTTP/1.1\r\nHost: kas.example.com\r\n"
            b"Authorization: Bearer %b\r\n\r\n" % stack.token()
        )
        assert (await raw.read_head()).startswith(b"HTTP/1.1 200 ")
    assert stack.cluster.requests[-1].target == b"//a%2Fb?c"


def test_any_target_arrives_byte_for_byte(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One stack for all examples: what Hypothesis makes is handed to it one after the other."""
    characters = st.sampled_from([bytes([code]) for code in range(0x21, 0x7F) if code != 0x23])
    pieces = st.one_of(
        characters,
        st.sampled_from([b"%2F", b"%2e", b"//", b"/../", b"/./", b";", b"+", b"?", b"&", b"=", b"%25", b"%00", b"%"]),
    )
    targets = st.lists(pieces, max_size=40).map(b"".join).map(lambda rest: b"/" + rest)
    examples: list[bytes] = []

    @hypothesis.settings(max_examples=300, deadline=None, database=None)
    @hypothesis.given(targets)
    def collect(target: bytes) -> None:
        examples.append(target)

    collect()

    async def run(folder: Path) -> None:
        async with open_stack(folder) as stack, stack.raw() as raw:
            for target in examples:
                await raw.send(stack.head(b"GET", target))
                head = await raw.read_head()
                assert head.startswith(b"HTTP/1.1 200 "), (target, head)
                assert await raw.read(2) == b"ok"
                assert stack.cluster.requests[-1].target == target

    trio.run(run, tmp_path_factory.mktemp("targets"))
    assert len(set(examples)) > 200


@pytest.mark.parametrize(
    "method", [b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"PROPFIND", b"M-X"]
)
@pytest.mark.parametrize("version", VERSIONS)
async def test_any_method_passes(stack: Stack, version: Version, method: bytes) -> None:
    async with stack.caller(version) as caller:
        answer = await caller.request(method, PODS, [(b"origin", b"https://evil.example")])
        assert await answer.head() == 200
    assert stack.cluster.requests[-1].method == method


async def test_the_api_server_sees_its_own_name(stack: Stack) -> None:
    async with stack.caller() as caller:
        await caller.get(PODS)
    assert stack.cluster.requests[-1].values(b"host") == [b"127.0.0.1:%d" % stack.cluster.port]


# --- lines -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
async def test_lines_keep_their_order_and_number(stack: Stack, version: Version) -> None:
    lines = [
        (b"x-stream-protocol-version", b"v5.channel.k8s.io"),
        (b"accept", b"application/json;as=Table;v=v1;g=meta.k8s.io,application/json"),
        (b"x-stream-protocol-version", b"v4.channel.k8s.io"),
        (b"accept", b"application/json"),
        (b"x-stream-protocol-version", b"v3.channel.k8s.io"),
        (b"x-empty", b""),
        (b"x-stream-protocol-version", b"v2.channel.k8s.io"),
        (b"kubectl-command", b"kubectl get"),
        (b"x-stream-protocol-version", b"channel.k8s.io"),
        (b"x-latin", b"caf\xe9"),
        (b"if-none-match", b'"a", W/"b"'),
        (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ]
    async with stack.caller(version) as caller:
        answer = await caller.get(PODS, lines)
        assert answer.status == 200
    assert carried(stack) == lines


@pytest.mark.parametrize("version", VERSIONS)
async def test_lines_of_an_answer_keep_their_order_and_number(stack: Stack, version: Version) -> None:
    lines = [
        (b"warning", b'299 - "one"'),
        (b"audit-id", b"1234"),
        (b"warning", b'299 - "two"'),
        (b"etag", b'"x"'),
        (b"vary", b"Accept"),
        (b"vary", b"Accept-Encoding"),
        (b"content-type", b"application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"),
        (b"x-kubernetes-pf-flowschema-uid", b"u"),
        (b"set-cookie", b"a=b"),
        (b"x-empty", b""),
    ]

    async def play(visit: Visit) -> None:
        await visit.answer(b"{}", fields=b"".join(b"%b: %b\r\n" % line for line in lines))

    stack.cluster.on(PODS, play)
    async with stack.caller(version) as caller:
        answer = await caller.get(PODS)
    names = {name for name, _ in lines}
    assert [(name.lower(), value) for name, value in answer.fields if name.lower() in names] == lines


HOP_BY_HOP = [
    b"Connection: keep-alive, X-Named",
    b"Connection: x_other",
    b"X-Named: 1",
    b"X-Other: 2",
    b"Keep-Alive: timeout=5",
    b"Proxy-Connection: keep-alive",
    b"Proxy-Authorization: Basic c2VjcmV0",
    b"TE: gzip, trailers;q=0.5",
    b"Trailer: Expires",
    b"HTTP2-Settings: AAMAAABkAAQAAP__",
    b"X-End-To-End: kept",
]


async def test_hop_by_hop_lines_and_those_that_connection_names_stay_behind(stack: Stack) -> None:
    async with stack.raw() as raw:
        await raw.send(stack.head(b"GET", PODS, *HOP_BY_HOP))
        assert (await raw.read_head()).startswith(b"HTTP/1.1 200 ")
    assert carried(stack) == [(b"x-end-to-end", b"kept")]


@pytest.mark.parametrize("version", VERSIONS)
async def test_te_trailers_is_the_only_te_that_travels(stack: Stack, version: Version) -> None:
    async with stack.caller(version) as caller:
        await caller.get(PODS, [(b"te", b"trailers")])
    # RFC 9110 §10.1.4 wants Connection to name it.
    assert carried(stack) == [(b"te", b"trailers"), (b"connection", b"TE")]


async def test_an_answers_hop_by_hop_lines_stay_behind(stack: Stack) -> None:
    async def play(visit: Visit) -> None:
        await visit.answer(
            fields=b"Connection: X-Named\r\nX-Named: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\n"
            b"Moorline-Error: upstream-unreachable\r\nMoorline_Error: busy\r\nMoorline-Failed-Hop: agent\r\n"
            b"X-Kept: 2\r\n"
        )

    stack.cluster.on(PODS, play)
    for version in VERSIONS:
        async with stack.caller(version) as caller:
            answer = await caller.get(PODS)
            assert answer.status == 200
            assert await answer.content() == b"ok"
            names = sorted(name.lower() for name, _ in answer.fields)
            assert names == [b"content-length", b"moorline-request-id", b"x-kept"]


# --- identity --------------------------------------------------------------------------------------

CLAIMS = [
    (b"x-remote-user", b"root"),
    (b"X-Remote-Group", b"system:masters"),
    (b"x_remote_user", b"root"),
    (b"X-Remote-Extra-Scopes", b"all"),
    (b"moorline-identity", b"eyJtb2RlIjoiYWdlbnQifQ"),
    (b"Moorline_Identity", b"eyJtb2RlIjoiYWdlbnQifQ"),
    (b"moorline-role", b"full"),
    (b"x-forwarded-user", b"root"),
    (b"cookie", b"session=root"),
    (b"forwarded", b"for=1.2.3.4"),
]
IMPERSONATION = [
    b"Impersonate-User",
    b"impersonate-user",
    b"IMPERSONATE-USER",
    b"Impersonate_User",
    b"impersonate-group",
    b"Impersonate_Group",
    b"Impersonate-Uid",
    b"Impersonate-Extra-Scopes",
    b"impersonate_extra_scopes",
]
CONNECTION_TRICKS = [
    b"Impersonate-User",
    b"impersonate_user",
    b"Impersonate-Group, Impersonate-Uid, Impersonate-Extra-Team",
    b"Moorline-Identity",
    b"moorline_identity",
    b"Authorization",
    b"Host",
    b"close, Moorline-Identity, Authorization, Impersonate-User, Content-Length",
]


@pytest.mark.parametrize("name", [name for name, _ in CLAIMS])
@pytest.mark.parametrize("times", [1, 2])
async def test_a_claim_to_be_somebody_is_not_passed_on(stack: Stack, name: bytes, times: int) -> None:
    value = dict(CLAIMS)[name]
    async with stack.raw() as raw:
        await raw.send(stack.head(b"GET", PODS, *[name + b": " + value] * times))
        assert (await raw.read_head()).startswith(b"HTTP/1.1 200 ")
    assert identity(stack) == ALICE
    assert carried(stack) == []


@pytest.mark.parametrize("name", [b"x-remote-user", b"x_remote_user", b"moorline-identity", b"moorline_identity"])
async def test_a_claim_to_be_somebody_is_not_passed_on_from_http2(stack: Stack, name: bytes) -> None:
    async with stack.caller("http2") as caller:
        answer = await caller.get(PODS, [(name, b"root"), (name, b"eyJtb2RlIjoiYWdlbnQifQ")])
        assert answer.status == 200
    assert identity(stack) == ALICE
    assert carried(stack) == []


@pytest.mark.parametrize("name", IMPERSONATION)
async def test_an_impersonation_that_is_not_allowed_is_refused_and_never_dropped(stack: Stack, name: bytes) -> None:
    async with stack.raw() as raw:
        await raw.send(stack.head(b"GET", PODS, name + b": root"))
        assert (await raw.read_head()).startswith(b"HTTP/1.1 403 ")
    async with stack.caller("http2") as caller:
        assert (await caller.get(PODS, [(name.lower(), b"root")])).status == 403
    assert stack.cluster.requests == []


@pytest.mark.parametrize("named", CONNECTION_TRICKS)
async def test_connection_names_take_nothing_of_ours_away(stack: Stack, named: bytes) -> None:
    async with stack.raw() as raw:
        await raw.send(stack.head(b"GET", PODS, b"Connection: " + named))
        assert (await raw.read_head()).startswith(b"HTTP/1.1 200 ")
    assert identity(stack) == ALICE
    request = stack.cluster.requests[-1]
    assert request.values(b"authorization") == [b"Bearer " + CLUSTER_TOKEN.encode()]
    assert request.values(b"host") == [b"127.0.0.1:%d" % stack.cluster.port]


@pytest.mark.parametrize("named", [b"Impersonate-User", b"impersonate_user"])
async def test_connection_does_not_hide_an_impersonation(stack: Stack, named: bytes) -> None:
    """A line that Connection names is gone, or refused; in no case does it count, and ours always does."""
    async with stack.raw() as raw:
        await raw.send(stack.head(b"GET", PODS, b"Connection: " + named, b"Impersonate-User: root"))
        head = await raw.read_head()
    if head.startswith(b"HTTP/1.1 200 "):
        assert identity(stack) == ALICE
    else:
        assert head.startswith(b"HTTP/1.1 403 ")
        assert stack.cluster.requests == []


@pytest.mark.parametrize("tricks", [[], CONNECTION_TRICKS])
async def test_a_user_in_mode_agent_has_no_impersonation_and_the_agents_credential(
    stack: Stack, tricks: list[bytes]
) -> None:
    lines = [b"Connection: " + named for named in tricks]
    async with stack.raw() as raw:
        await raw.send(stack.head(b"GET", PODS, *lines, user="admin"))
        assert (await raw.read_head()).startswith(b"HTTP/1.1 200 ")
    assert identity(stack) == []
    assert stack.cluster.requests[-1].values(b"authorization") == [b"Bearer " + CLUSTER_TOKEN.encode()]


async def test_two_credentials_or_one_for_somebody_else_do_not_reach_the_cluster(stack: Stack) -> None:
    for line in (b"Authorization: Bearer " + stack.token("admin"), b"authorization: Basic cm9vdDpyb290"):
        async with stack.raw() as raw:
            await raw.send(stack.head(b"GET", PODS, line))
            assert (await raw.read_head()).split()[1] in (b"400", b"401")
    assert stack.cluster.requests == []


async def test_a_token_among_the_subprotocols_authenticates_and_does_not_travel_on(stack: Stack) -> None:
    encoded = base64.urlsafe_b64encode(stack.token()).rstrip(b"=")
    async with stack.raw() as raw:
        await raw.send(
            b"GET /agents/edge/k8s/api/v1/pods HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            b"Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.%b, v4.channel.k8s.io\r\n\r\n" % encoded
        )
        await raw.read_head()
    request = stack.cluster.requests[-1]
    assert request.values(b"sec-websocket-protocol") == [b"v4.channel.k8s.io"]
    assert request.values(b"authorization") == [b"Bearer " + CLUSTER_TOKEN.encode()]
    assert encoded not in request.raw
    assert stack.token() not in request.raw


@pytest.mark.parametrize("user", ["alice", "admin"])
async def test_no_token_of_ours_reaches_the_cluster(stack: Stack, user: str) -> None:
    async with stack.caller("http2", user=user) as caller:
        await caller.get(PODS)
    for request in stack.cluster.requests:
        for secret in (*stack.access.tokens.values(), stack.access.agent_token):
            assert secret.encode() not in request.raw
