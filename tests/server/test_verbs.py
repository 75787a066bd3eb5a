"""Classification of requests, as kube-apiserver classifies them, and what a read-only role may do."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.verbs import RequestInfo, opaque_request_info, request_info
from tunnel.messages import RequestHead


def info(method: str, target: str, *, protocol: bytes | None = None) -> RequestInfo:
    return request_info(
        RequestHead(method.encode(), b"/ignored", b"kas", [], protocol=protocol), target.encode("latin-1")
    )


# The table of apiserver's own requestinfo_test.go, and what it leaves out.
@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        ("GET", "/api/v1/namespaces", "list||v1||namespaces||"),
        ("GET", "/api/v1/namespaces/other", "get||v1|other|namespaces||other"),
        ("GET", "/api/v1/namespaces/other/pods", "list||v1|other|pods||"),
        ("GET", "/api/v1/namespaces/other/pods/foo", "get||v1|other|pods||foo"),
        ("HEAD", "/api/v1/namespaces/other/pods/foo", "get||v1|other|pods||foo"),
        ("GET", "/api/v1/pods", "list||v1||pods||"),
        ("HEAD", "/api/v1/pods", "list||v1||pods||"),
        ("GET", "/api/v1/namespaces/other/pods/foo/status", "get||v1|other|pods|status|foo"),
        ("GET", "/api/v1/namespaces/other/status", "get||v1|other|namespaces|status|other"),
        ("PUT", "/api/v1/namespaces/other/finalize", "update||v1|other|namespaces|finalize|other"),
        ("GET", "/api/v1/proxy/namespaces/other/pods/foo", "proxy||v1|other|pods||foo"),
        ("GET", "/api/v1/proxy/namespaces/other/pods/foo/sub/path", "proxy||v1|other|pods||foo"),
        ("GET", "/api/v1/watch/pods", "watch||v1||pods||"),
        ("GET", "/api/v1/watch/namespaces/other/pods", "watch||v1|other|pods||"),
        ("GET", "/api/v1/watch/namespaces/other/pods/foo", "watch||v1|other|pods||foo"),
        ("GET", "/api/v1/namespaces/other/pods?watch=true", "watch||v1|other|pods||"),
        ("GET", "/api/v1/namespaces/other/pods/foo?watch=true", "get||v1|other|pods||foo"),
        ("POST", "/api/v1/namespaces/other/pods", "create||v1|other|pods||"),
        ("PUT", "/api/v1/namespaces/other/pods/foo", "update||v1|other|pods||foo"),
        ("PATCH", "/api/v1/namespaces/other/pods/foo", "patch||v1|other|pods||foo"),
        ("DELETE", "/api/v1/namespaces/other/pods/foo", "delete||v1|other|pods||foo"),
        ("DELETE", "/api/v1/namespaces/other/pods", "deletecollection||v1|other|pods||"),
        ("DELETE", "/api/v1/nodes", "deletecollection||v1||nodes||"),
        ("GET", "/apis/batch/v1/namespaces/other/jobs", "list|batch|v1|other|jobs||"),
        ("GET", "/apis/apps/v1/namespaces/x/deployments/d/scale", "get|apps|v1|x|deployments|scale|d"),
        ("GET", "/api/v1/namespaces/x/pods/p/exec", "get||v1|x|pods|exec|p"),
        ("GET", "/api/v1/namespaces/x/services/s/proxy/a/b", "get||v1|x|services|proxy|s"),
        ("GET", "/api/v1/namespaces/x/services/x/pro%78y/", "get||v1|x|services|proxy|x"),
        ("GET", "/api/v1/n%61mespaces/x/p%6fds", "list||v1|x|pods||"),
        ("BREW", "/api/v1/namespaces/x/pods", "brew||v1|x|pods||"),
    ],
)
def test_resource_requests(method, target, expected):
    found = info(method, target)

    parts = [
        found.verb,
        found.api_group,
        found.api_version,
        found.namespace,
        found.resource,
        found.subresource,
        found.name,
    ]
    assert "|".join(parts) == expected
    assert found.is_resource


@pytest.mark.parametrize(
    ("method", "target", "verb"),
    [
        ("GET", "/", "get"),
        ("GET", "/api", "get"),
        ("GET", "/api/v1", "get"),
        ("GET", "/apis/apps", "get"),
        ("GET", "/apis/apps/v1", "get"),
        ("GET", "/healthz", "get"),
        ("HEAD", "/version", "get"),
        ("POST", "/openapi/v2", "post"),
        ("GET", "/v1/namespaces/x/pods", "get"),
        ("GET", "/api/v1/watch", "get"),
    ],
)
def test_requests_that_name_no_resource(method, target, verb):
    found = info(method, target)

    assert (found.is_resource, found.verb, found.resource) == (False, verb, "")


@pytest.mark.parametrize(
    ("query", "is_watch"),
    [
        ("", False),
        ("?", False),
        ("?watch", True),
        ("?watch=", True),
        ("?watch=true", True),
        ("?watch=1", True),
        ("?watch=yes", True),
        ("?watch=false", False),
        ("?watch=FALSE", False),
        ("?watch=0", False),
        ("?watch=00", True),
        ("?watch=false&watch=true", False),
        ("?watch=true&watch=false", True),
        ("?limit=500&watch=1", True),
        ("?w%61tch=1", True),
        ("?watch=%66alse", False),
        ("?rewatch=1", False),
        ("?Watch=1", False),
        ("?watch=1;x=2", False),  # Go drops pairs with a semicolon
        ("?watch=%zz", False),  # and pairs that do not decode
        ("?watch=%", False),
        ("?a;b&watch=1", True),
        ("?+watch=1", False),
    ],
)
def test_watch_is_true_as_kubernetes_parses_booleans(query, is_watch):
    found = info("GET", f"/api/v1/pods{query}")

    assert found.is_watch is is_watch
    assert found.verb == ("watch" if is_watch else "list")
    assert found.is_long_running is is_watch


def test_a_watch_over_a_websocket_is_an_upgrade_and_not_a_framed_watch():
    found = info("GET", "/api/v1/pods?watch=1", protocol=b"websocket")

    assert (found.verb, found.is_watch, found.is_long_running, found.verb_class) == ("watch", False, True, "connect")


def test_head_is_never_a_framed_watch():
    assert not info("HEAD", "/api/v1/pods?watch=1").is_watch


@pytest.mark.parametrize(
    ("method", "target", "is_long_running", "verb_class"),
    [
        ("GET", "/api/v1/namespaces/x/pods/p/log", False, "read"),
        ("GET", "/api/v1/namespaces/x/pods/p/log?follow=true", True, "read"),
        ("GET", "/api/v1/namespaces/x/pods/p/log?follow=false", False, "read"),
        ("POST", "/api/v1/namespaces/x/pods/p/exec?command=ls", True, "connect"),
        ("POST", "/api/v1/namespaces/x/pods/p/attach", True, "connect"),
        ("POST", "/api/v1/namespaces/x/pods/p/portforward", True, "connect"),
        ("GET", "/api/v1/namespaces/x/services/s/proxy/", True, "connect"),
        ("GET", "/api/v1/proxy/nodes/n", True, "connect"),
        ("GET", "/api/v1/watch/pods", True, "watch"),
        ("GET", "/api/v1/pods", False, "read"),
        ("POST", "/api/v1/namespaces/x/pods", False, "write"),
        ("DELETE", "/api/v1/namespaces/x/pods", False, "write"),
        ("GET", "/healthz", False, "read"),
        ("POST", "/x", False, "write"),
    ],
)
def test_long_running_and_verb_classes(method, target, is_long_running, verb_class):
    found = info(method, target)

    assert (found.is_long_running, found.verb_class) == (is_long_running, verb_class)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/"),
        ("GET", "/api"),
        ("GET", "/apis/apps/v1"),
        ("GET", "/openapi/v3?hash=1"),
        ("HEAD", "/healthz"),
        ("GET", "/api/v1/namespaces/x/pods"),
        ("GET", "/api/v1/namespaces/x/pods?watch=1"),
        ("GET", "/api/v1/watch/pods"),
        ("GET", "/api/v1/namespaces/x/pods/p"),
        ("GET", "/api/v1/namespaces/x/pods/p/log?follow=1"),
        ("GET", "/api/v1/namespaces/x/pods/p/status"),
        ("GET", "/apis/apps/v1/namespaces/x/deployments/d/scale"),
        ("GET", "/api/v1/namespaces/x/pods/a%20b"),
        ("GET", "/api/v1/namespaces/x/pods/%C3%A9"),
        ("GET", "/apis/custom.metrics.k8s.io/v1beta1/namespaces/x/pods/*/http_requests"),
        ("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"),
        ("POST", "/apis/authorization.k8s.io/v1beta1/selfsubjectrulesreviews?pretty=1"),
        ("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews"),
        ("GET", "/api/v1/namespaces/x/services/proxy"),  # a Service whose name is "proxy"
    ],
)
def test_read_only_may(method, target):
    assert info(method, target).is_read_only


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", "/api/v1/namespaces/x/pods"),
        ("PUT", "/api/v1/namespaces/x/pods/p"),
        ("PATCH", "/api/v1/namespaces/x/pods/p"),
        ("DELETE", "/api/v1/namespaces/x/pods/p"),
        ("OPTIONS", "/api/v1/namespaces/x/pods"),
        ("BREW", "/api/v1/namespaces/x/pods"),
        ("get", "/api/v1/namespaces/x/pods"),
        ("GET", "/api/v1/namespaces/x/pods/p/exec"),
        ("GET", "/api/v1/namespaces/x/pods/p/attach"),
        ("GET", "/api/v1/namespaces/x/pods/p/portforward"),
        ("GET", "/api/v1/namespaces/x/pods/p/proxy"),
        ("HEAD", "/api/v1/namespaces/x/services/s/proxy/x"),
        ("GET", "/api/v1/nodes/n/proxy/logs/"),
        ("GET", "/api/v1/proxy/namespaces/x/pods/p"),
        ("GET", "/api/v1/namespaces/x/services/x/pro%78y/"),
        ("GET", "/api/v1/namespaces/x/pods/p/%65xec"),
        ("GET", "/api/v1/namespaces/x/pods/p/unknown"),
        ("GET", "/apis/subresources.kubevirt.io/v1/namespaces/x/virtualmachineinstances/v/console"),
        ("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews"),
        ("POST", "/apis/authorization.k8s.io/v1/namespaces/x/localsubjectaccessreviews"),
        ("POST", "/apis/example.com/v1/selfsubjectaccessreviews"),
        ("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews/x"),
        ("POST", "/apis/authorization.k8s.io/v1/namespaces/x/selfsubjectaccessreviews"),
        ("DELETE", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"),
        ("POST", "/apis/authentication.k8s.io/v1/tokenreviews"),
        ("POST", "/api/v1/namespaces/x/serviceaccounts/s/token"),
    ],
)
def test_read_only_may_not(method, target):
    assert not info(method, target).is_read_only


@pytest.mark.parametrize(
    "target",
    [
        "/api/v1/namespaces/x%2Fpods",
        "/api/v1/namespaces/x%2fpods",
        "/api/v1//pods",
        "//api/v1/pods",
        "/api/v1/pods/",
        "/api/v1/./pods",
        "/api/v1/../v1/pods",
        "/api/v1/%2e%2E/pods",
        "/api/v1/%2e/pods",
        "/api/v1/pods/a%00b",
        "/api/v1/pods/%ff",
        "/api/v1/pods/%C3",
        "/api/v1/pods/%zz",
        "/api/v1/pods/%4",
        "/api/v1/pods/%",
        "/api/v1/pods/%+1",
        "/%2F",
        "*",
        "",
    ],
)
def test_a_path_that_others_might_read_differently_is_dubious_and_no_read(target):
    found = info("GET", target)

    assert found.is_dubious
    assert not found.is_read_only


def test_an_upgrade_is_never_a_read():
    # exec, attach and port-forward arrive as GET with Upgrade, and any path may answer one.
    for target in ("/api/v1/namespaces/x/pods/p/log", "/api/v1/pods?watch=1", "/healthz"):
        assert not info("GET", target, protocol=b"websocket").is_read_only


def test_double_encoding_is_decoded_once():
    found = info("GET", "/api/v1/namespaces/x/pods/p/%2565xec")

    assert found.subresource == "%65xec"
    assert not found.is_read_only


_segments = st.lists(
    st.sampled_from(["api", "v1", "namespaces", "x", "pods", "p", "exec", "proxy", "watch", "log"]),
    min_size=1,
    max_size=8,
)


@given(segments=_segments, data=st.data())
@example(segments=["api", "v1", "namespaces", "x", "pods", "p", "exec"], data=None)
def test_percent_encoding_letters_changes_nothing_about_the_decision(segments, data):
    plain = "/" + "/".join(segments)
    if data is None:
        encoded = plain.replace("e", "%65")
    else:
        encoded = "".join(
            character if character == "/" or data.draw(st.booleans()) else f"%{ord(character):02x}"
            for character in plain
        )

    assert info("GET", encoded) == info("GET", plain)


@given(st.binary(max_size=60))
def test_any_bytes_are_classified_without_an_error(path):
    found = request_info(RequestHead(b"GET", b"", b"", []), b"/" + path)

    if found.is_read_only:
        assert not found.is_dubious
        assert found.subresource not in ("exec", "attach", "portforward", "proxy")


def test_other_origins_know_only_methods():
    def opaque(method, target="/v1/info", protocol=None):
        return opaque_request_info(RequestHead(method, b"", b"", [], protocol=protocol), target.encode())

    assert opaque(b"GET").is_read_only
    assert opaque(b"HEAD").is_read_only
    assert not opaque(b"POST").is_read_only
    assert not opaque(b"GET", "/a%2Fb").is_read_only
    assert not opaque(b"GET", protocol=b"websocket").is_read_only
    assert opaque(b"GET", protocol=b"websocket").is_long_running
    assert opaque(b"POST").verb_class == "write"
