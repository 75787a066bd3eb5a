"""What travels below kubectl: targets, fields, codings, limits and sizes reach the API server and come back as they are."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import subprocess
import time

import pytest
from e2e.testbed.bed import Bed, Route
from e2e.testbed.http import Endpoint
from e2e.testbed.kubectl import Kubectl
from e2e.testbed.processes import until

VARYING = {"date", "audit-id", "content-length", "x-kubernetes-pf-flowschema-uid", "x-kubernetes-pf-prioritylevel-uid"}
OURS = {"moorline-request-id", "x-request-id"}
"""Fields that kas may add to an answer."""


@pytest.fixture(scope="session")
def straight(direct: Kubectl) -> Endpoint:
    return Endpoint.of(direct.kubeconfig)


@pytest.fixture(scope="session")
def proxied(through: Kubectl) -> Endpoint:
    return Endpoint.of(through.kubeconfig)


TARGETS = [
    "/api/v1/namespaces/default",
    "//api/v1/namespaces",
    "/api//v1/namespaces",
    "/api/v1/../v1/namespaces",
    "/api/v1/./namespaces",
    "/api/v1/namespaces/",
    "/api/v1/namespaces/default/configmaps/a%2Fb",
    "/api/v1/namespaces/default/configmaps/a%2fb",
    "/api/v1/namespaces/default/configmaps/a;b",
    "/api/v1/namespaces/default/configmaps/a%20b",
    "/api/v1/namespaces/default/configmaps/%C3%BC",
    "/api/v1/namespaces/default/configmaps/%ff",
    "/api/v1/namespaces/default/configmaps/..%2f..%2fsecrets",
    "/api/v1/namespaces/def%61ult/configmaps/x",
    "/api/v1/%6eamespaces",
    "/api/v1/namespaces?limit=1;foo=2",
    "/api/v1/namespaces?limit=1&limit=2",
    "/api/v1/namespaces?labelSelector=a%2Bb&fieldSelector=metadata.name%3Ddefault",
    "/api/v1/namespaces?labelSelector=a+in+(b,c)",
    "/api/v1/namespaces?fieldSelector=metadata.name=default&",
    "/api/v1/namespaces/default?",
    "/api/v1/namespaces/default?pretty",
    "/api/v1/namespaces/default?pretty=",
    "/api/v1/namespaces/default?x=%zz",
    "/api/v1/namespaces/default/services/none:80/proxy/a%2Fb//c",
    "/%61pi",
    "/version/",
    "/healthz/../version",
]


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_target_reaches_the_api_server_byte_for_byte(
    straight: Endpoint, proxied: Endpoint, target: str, version: str
) -> None:
    expected, got = straight.curl(target, version), proxied.curl(target, version)
    assert (got.status, _stable(got.body)) == (expected.status, _stable(expected.body))


def _stable(body: bytes) -> object:
    """A body without what differs between two moments: the version of a list."""
    try:
        document = json.loads(body)
    except ValueError:
        return body
    if isinstance(document, dict) and isinstance(document.get("metadata"), dict):
        document["metadata"].pop("resourceVersion", None)
        document["metadata"].pop("remainingItemCount", None)
        document["metadata"].pop("continue", None)
    return document


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
@pytest.mark.parametrize(
    "accept",
    [
        "application/json",
        "application/yaml",
        "application/cbor, application/json",
        "application/vnd.kubernetes.protobuf",
        "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
        "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
        "text/html",
    ],
)
def test_fields_and_bodies_of_answers_are_those_of_the_api_server(
    straight: Endpoint, proxied: Endpoint, accept: str, version: str
) -> None:
    for target in ("/api/v1/namespaces/default", "/apis/rbac.authorization.k8s.io/v1/clusterroles", "/version"):
        expected, got = (end.curl(target, version, "-H", f"Accept: {accept}") for end in (straight, proxied))
        ignored = VARYING | OURS | {"connection", "transfer-encoding"}
        assert got.status == expected.status
        assert _named(got.fields, ignored) == _named(expected.fields, ignored)
        assert got.body == expected.body or "Table" in accept


def _named(fields: tuple[tuple[str, str], ...], ignored: set[str]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in fields if name not in ignored]


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_discovery_is_not_sent_again_to_those_who_have_it(straight: Endpoint, proxied: Endpoint, version: str) -> None:
    aggregated = "Accept: application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    for target in ("/api", "/apis"):
        first = proxied.curl(target, version, "-H", aggregated)
        etag = first.field("etag")
        assert first.status == 200
        assert etag == straight.curl(target, version, "-H", aggregated).field("etag")
        again = proxied.curl(target, version, "-H", aggregated, "-H", f"If-None-Match: {etag}")
        assert (again.status, again.body) == (304, b"")
    openapi = json.loads(proxied.curl("/openapi/v3", version).body)["paths"]["api/v1"]["serverRelativeURL"]
    document = proxied.curl(openapi, version)
    again = proxied.curl(openapi, version, "-H", f"If-None-Match: {document.field('etag')}")
    assert (document.status, again.status, again.body) == (200, 304, b"")


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_compression_is_the_api_servers(proxied: Endpoint, straight: Endpoint, version: str) -> None:
    compressed = proxied.curl("/openapi/v2", version, "-H", "Accept-Encoding: gzip")
    plain = straight.curl("/openapi/v2", version)
    assert compressed.field("content-encoding") == "gzip"
    assert gzip.decompress(compressed.body) == plain.body
    assert proxied.curl("/openapi/v2", version).body == plain.body


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_a_head_request_has_no_body_and_leaves_the_connection_usable(
    proxied: Endpoint, straight: Endpoint, version: str
) -> None:
    expected = straight.curl("/version", version, "--head")
    got = proxied.curl("/version", version, "--head")
    assert (got.status, got.field("content-length")) == (expected.status, expected.field("content-length"))


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_the_front_speaks_both_versions(proxied: Endpoint, version: str) -> None:
    assert proxied.curl("/version", version).http_version == {"--http1.1": "1.1", "--http2": "2"}[version]


def test_a_connection_without_alpn_is_http1(proxied: Endpoint) -> None:
    context = ssl.create_default_context(cafile=str(proxied.ca_file))
    with (
        socket.create_connection((proxied.host, proxied.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=proxied.host) as secure,
    ):
        assert secure.selected_alpn_protocol() is None
        request = f"GET {proxied.prefix}/version HTTP/1.1\r\nHost: {proxied.host}\r\nAuthorization: Bearer {proxied.token}\r\n"
        secure.sendall(request.encode() + b"Connection: close\r\n\r\n")
        answer = b""
        while data := secure.recv(65536):
            answer += data
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"gitVersion"' in answer


LIMIT = 3 << 20
"""The largest body that the API server takes. It reads no further, so what is far larger meets a closed connection."""


def _config_map(name: str, total_bytes: int) -> bytes:
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"x": ""}}
    config["data"] = {"x": "y" * (total_bytes - len(json.dumps(config)))}
    return json.dumps(config).encode()


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
@pytest.mark.parametrize(("size", "status"), [(2 << 20, 422), (LIMIT + 1, 413)])
def test_bodies_that_are_too_large_are_refused_as_the_api_server_does(
    straight: Endpoint, proxied: Endpoint, version: str, size: int, status: int
) -> None:
    options = (version, "-H", "Content-Type: application/json")
    target = "/api/v1/namespaces/default/configmaps"
    expected, got = (end.curl(target, *options, body=_config_map("big", size)) for end in (straight, proxied))
    assert got.status == expected.status == status
    assert got.body == expected.body


def test_kubectl_reads_why_a_body_far_too_large_was_refused(through: Kubectl, namespace: str) -> None:
    result = through.attempt("create", "-n", namespace, "-f", "-", stdin=_config_map("huge", 8 << 20))
    assert result.returncode == 1
    assert "Request entity too large: limit is 3145728" in result.errors


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
@pytest.mark.parametrize(("size", "status"), [(1 << 19, 201), (LIMIT + 1, 413)])
def test_expect_100_continue_is_answered(
    proxied: Endpoint, version: str, size: int, status: int, namespace: str
) -> None:
    options = (version, "-H", "Content-Type: application/json", "-H", "Expect: 100-continue")
    began = time.monotonic()
    target = f"/api/v1/namespaces/{namespace}/configmaps"
    assert proxied.curl(target, *options, body=_config_map("expected", size), seconds=20).status == status
    assert time.monotonic() - began < 10


def test_a_config_map_of_one_megabyte_survives_the_way_there_and_back(
    route: Route, direct: Kubectl, namespace: str
) -> None:
    content = "".join(chr(0x20 + index % 0x5F) for index in range(1_000_000))
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "large"}, "data": {"content": content}}
    body = json.dumps(config).encode()
    route.kubectl("create", "-n", namespace, "-f", "-", stdin=body)
    for kubectl in (direct, route.kubectl):
        got = kubectl("get", "configmap", "large", "-n", namespace, "-o", "json").json()
        assert got["data"]["content"] == content


@pytest.fixture(scope="session")
def crowd(bed: Bed) -> str:
    """A namespace with 5,000 configmaps; it stays until the control plane goes."""
    name = "e2e-crowd"
    bed.direct("create", "namespace", name)
    until(
        lambda: (
            not bed.has_controllers or bed.direct.attempt("get", "cm", "kube-root-ca.crt", "-n", name).returncode == 0
        ),
        seconds=10,
        what="the controllers have put their configmap into a new namespace",
    )
    items = [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"member-{n:04}"},
            "data": {"n": str(n), "x": "y" * 200},
        }
        for n in range(5000)
    ]
    processes = []
    for part in range(4):
        body = "\n---\n".join(json.dumps(item) for item in items[part::4]).encode()
        process = subprocess.Popen(
            [bed.direct.program, "create", "-n", name, "-f", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=bed.direct.full_environ(),
        )
        assert process.stdin is not None
        process.stdin.write(body)
        process.stdin.close()
        processes.append(process)
    assert [process.wait(120) for process in processes] == [0, 0, 0, 0]
    return name


@pytest.mark.timeout(300)
def test_a_list_of_5000_objects_is_complete(straight: Endpoint, proxied: Endpoint, crowd: str) -> None:
    target = f"/api/v1/namespaces/{crowd}/configmaps"
    state = json.loads(straight.curl(f"{target}?limit=1").body)["metadata"]["resourceVersion"]
    target += f"?resourceVersion={state}&resourceVersionMatch=Exact"  # the cluster's own writes move it on meanwhile
    for version in ("--http1.1", "--http2"):
        expected, got = (end.curl(target, version, "-H", "Accept-Encoding: gzip") for end in (straight, proxied))
        assert got.field("content-encoding") == expected.field("content-encoding") == "gzip"
        assert gzip.decompress(got.body) == gzip.decompress(expected.body)
        assert len(json.loads(gzip.decompress(got.body))["items"]) >= 5000


@pytest.mark.timeout(300)
def test_kubectl_lists_5000_objects_in_pages_and_whole(direct: Kubectl, route: Route, crowd: str) -> None:
    for size in ("500", "0"):
        command = ("get", "configmaps", "-n", crowd, "-o", "name", f"--chunk-size={size}")
        assert route.kubectl(*command).stdout == direct(*command).stdout


@pytest.mark.timeout(300)
def test_a_watch_list_streams_all_objects_and_the_bookmark(proxied: Endpoint, crowd: str) -> None:
    query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=4"
    for version in ("--http1.1", "--http2"):
        answer = proxied.curl(f"/api/v1/namespaces/{crowd}/configmaps?{query}", version)
        events = [json.loads(line) for line in answer.body.splitlines()]
        assert answer.status == 200
        added = {event["object"]["metadata"]["name"] for event in events if event["type"] == "ADDED"}
        assert added - {"kube-root-ca.crt"} == {f"member-{n:04}" for n in range(5000)}
        marks = [event for event in events if event["type"] == "BOOKMARK"]
        assert marks[0]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


def test_kubectl_proxy_serves_behind_the_tunnel(through: Kubectl, straight: Endpoint) -> None:
    with through.running("proxy", "--port=0", "--append-server-path") as proxy:
        port = proxy.wait_for(r"Starting to serve on 127.0.0.1:(\d+)")[1]
        for target in ("/version", "/api/v1/namespaces/default", "/apis"):
            url = f"http://127.0.0.1:{port}{target}"
            got = subprocess.run(
                ["curl", "--silent", "--fail", url], capture_output=True, timeout=20, check=True
            ).stdout
            assert _stable(got) == _stable(straight.curl(target, "-H", "Accept: */*").body)


def test_a_watch_over_http1_and_http2_delivers_each_event_when_it_happens(
    proxied: Endpoint, direct: Kubectl, namespace: str
) -> None:
    for version in ("--http1.1", "--http2"):
        name = f"event{version.replace('-', '').replace('.', '')}"
        command = ["curl", "--silent", "--no-buffer", version, "--cacert", str(proxied.ca_file)]
        command += ["-H", f"Authorization: Bearer {proxied.token}", "--max-time", "30"]
        url = f"{proxied.base}/api/v1/namespaces/{namespace}/configmaps?watch=1"
        with subprocess.Popen([*command, url], stdout=subprocess.PIPE) as watch:
            assert watch.stdout is not None
            assert b"kube-root-ca.crt" in watch.stdout.readline()
            direct("create", "configmap", name, "-n", namespace)
            created = time.monotonic()
            while name.encode() not in watch.stdout.readline():
                assert time.monotonic() - created < 10
            assert time.monotonic() - created < 1
            direct("delete", "configmap", name, "-n", namespace)
            watch.terminate()


def test_many_requests_share_one_connection(proxied: Endpoint) -> None:
    for version in ("--http1.1", "--http2"):
        url = f"{proxied.base}/api/v1/namespaces/[1-40]"
        command = ["curl", "--silent", version, "--cacert", str(proxied.ca_file), "-o", "/dev/null"]
        command += ["-H", f"Authorization: Bearer {proxied.token}", "-w", "%{http_code} %{num_connects}\n", url]
        lines = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
        assert lines == ["404 1"] + ["404 0"] * 39
