"""What is read from a kubeconfig, and everything that is wrong with one, at once."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from agent.address import parse_server
from agent.kubeconfig import Blob, KubeconfigError, load_kubeconfig

MINIMAL = """
current-context: c
contexts: [{name: c, context: {cluster: k, user: u, namespace: n}}]
clusters: [{name: k, cluster: {server: "https://api.test:6443"}}]
users: [{name: u, user: {token: secret}}]
preferences: {}
"""


def write(folder: Path, text: str, name: str = "config") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def with_parts(folder: Path, *, cluster: str = '{server: "https://api.test"}', user: str = "{token: t}") -> Path:
    return write(
        folder,
        f"""
current-context: c
contexts: [{{name: c, context: {{cluster: k, user: u}}}}]
clusters: [{{name: k, cluster: {cluster}}}]
users: [{{name: u, user: {user}}}]
""",
    )


def problems(path: Path, context: str = "") -> list[str]:
    with pytest.raises(KubeconfigError) as caught:
        load_kubeconfig([path], context=context)
    return caught.value.problems


def test_a_minimal_one(tmp_path):
    context = load_kubeconfig([write(tmp_path, MINIMAL)])

    assert context.name == "c"
    assert str(context.cluster.address) == "https://api.test:6443"
    assert context.user.token == "secret"
    assert "secret" not in repr(context)


@pytest.mark.parametrize(
    ("server", "authority", "prefix", "port"),
    [
        ("https://api.test", b"api.test", b"", 443),
        ("https://api.test:443/", b"api.test", b"", 443),
        ("https://api.test:6443", b"api.test:6443", b"", 6443),
        ("https://rancher.test/k8s/clusters/c-1/", b"rancher.test", b"/k8s/clusters/c-1", 443),
        ("https://[fd00::1]:6443", b"[fd00::1]:6443", b"", 6443),
        ("https://[fd00::1]", b"[fd00::1]", b"", 443),
        ("http://127.0.0.1:8080", b"127.0.0.1:8080", b"", 8080),
        ("localhost:8080", b"localhost:8080", b"", 8080),
    ],
)
def test_servers(server, authority, prefix, port):
    address = parse_server(server)

    assert (address.authority, address.prefix, address.port) == (authority, prefix, port)


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ("ftp://api.test", "scheme"),
        ("https://user:pw@api.test", "credentials"),
        ("https://api.test?x=1", "query"),
        ("https://api.test:99999", "port"),
        ("https:///path", "no host"),
        ("https://äpi.test", "ASCII"),
        ("https://api.test/a b", "white space"),
    ],
)
def test_servers_that_are_none(server, said):
    with pytest.raises(ValueError, match=said):
        parse_server(server)


def test_another_context_can_be_chosen(tmp_path):
    text = MINIMAL.replace("contexts: [", "contexts: [{name: other, context: {cluster: k, user: v}}, ")
    text = text.replace("users: [", "users: [{name: v, user: {token: other-token}}, ")

    assert load_kubeconfig([write(tmp_path, text)], context="other").user.token == "other-token"


def test_a_context_that_is_not_there_names_those_that_are(tmp_path):
    (problem,) = problems(write(tmp_path, MINIMAL), "prod")

    assert "'prod'" in problem
    assert "the contexts are: c" in problem


def test_without_a_current_context_one_must_be_named(tmp_path):
    (problem,) = problems(write(tmp_path, MINIMAL.replace("current-context: c", "")))

    assert "--context" in problem


def test_files_are_merged_and_the_first_that_names_something_wins(tmp_path):
    first = write(tmp_path, "users: [{name: u, user: {token: first}}]", "first")
    second = write(tmp_path, MINIMAL, "second")

    assert load_kubeconfig([first, tmp_path / "missing", second]).user.token == "first"


def test_paths_are_relative_to_the_file_that_names_them(tmp_path):
    folder = tmp_path / "below"
    folder.mkdir()
    for name in ("ca.crt", "c.crt", "c.key", "token"):
        (folder / name).write_text("x")
    path = with_parts(
        folder,
        cluster='{server: "https://a", certificate-authority: ca.crt, tls-server-name: b}',
        user="{client-certificate: c.crt, client-key: c.key, tokenFile: token}",
    )
    context = load_kubeconfig([path])

    assert context.cluster.authority == Blob(path=folder / "ca.crt")
    assert context.cluster.tls_server_name == "b"
    assert context.user.certificate == Blob(path=folder / "c.crt")
    assert context.user.token_path == folder / "token"


def test_data_wins_over_a_path(tmp_path):
    encoded = base64.b64encode(b"PEM").decode()
    path = with_parts(
        tmp_path,
        cluster=f'{{server: "https://a", certificate-authority: /nope, certificate-authority-data: {encoded}}}',
    )

    assert load_kubeconfig([path]).cluster.authority == Blob(data=b"PEM")


def test_an_exec_plugin(tmp_path):
    path = with_parts(
        tmp_path,
        user="{exec: {apiVersion: client.authentication.k8s.io/v1, command: ./login, args: [a, b], "
        "env: [{name: N, value: v}], interactiveMode: IfAvailable, provideClusterInfo: true, installHint: get it}}",
    )
    plugin = load_kubeconfig([path]).user.plugin

    assert plugin is not None
    assert Path(plugin.command) == tmp_path / "login"
    assert plugin.arguments == ("a", "b")
    assert plugin.environment == (("N", "v"),)
    assert plugin.provide_cluster_info


@pytest.mark.parametrize(
    ("cluster", "user", "said"),
    [
        ("{}", "{}", "server: it is missing"),
        ("{server: 7}", "{}", "a text is expected"),
        ('{server: "ftp://x"}', "{}", "scheme"),
        ('{server: "https://a", certificate-authority: /nope/ca.crt}', "{}", "there is no file /nope/ca.crt"),
        ('{server: "https://a", certificate-authority-data: "%%"}', "{}", "not base64"),
        ('{server: "https://a", certificate-authority-data: QQ==, insecure-skip-tls-verify: true}', "{}", "contradict"),
        ('{server: "https://a", insecure-skip-tls-verify: "yes"}', "{}", "true or false"),
        ('{server: "https://a", proxy-url: "socks5://p"}', "{}", "only http:// and https://"),
        ('{server: "https://a"}', "{as: admin}", "impersonation in the kubeconfig is not supported"),
        ('{server: "https://a"}', "{as-groups: [g]}", "impersonation in the kubeconfig is not supported"),
        ('{server: "https://a"}', "{auth-provider: {name: gcp}}", "exec plugin"),
        ('{server: "https://a"}', "{client-certificate-data: QQ==}", "belong together"),
        ('{server: "https://a"}', "{tokenFile: /nope/token}", "there is no file /nope/token"),
        ('{server: "https://a"}', "{token: t, username: u}", "cannot be combined"),
        ('{server: "https://a"}', "{token: t, exec: {command: x}}", "cannot be combined"),
        ('{server: "https://a"}', "{exec: {apiVersion: v9, command: x}}", "is not one of"),
        (
            '{server: "https://a"}',
            "{exec: {apiVersion: client.authentication.k8s.io/v1beta1}}",
            "command: it is missing",
        ),
        ('{server: "https://a"}', "{exec: {apiVersion: client.authentication.k8s.io/v1, command: x}}", "is required"),
        (
            '{server: "https://a"}',
            "{exec: {apiVersion: client.authentication.k8s.io/v1, command: x, interactiveMode: Always}}",
            "wants a terminal",
        ),
        (
            '{server: "https://a"}',
            "{exec: {apiVersion: client.authentication.k8s.io/v1beta1, command: x, args: [1]}}",
            "must be texts",
        ),
        (
            '{server: "https://a"}',
            "{exec: {apiVersion: client.authentication.k8s.io/v1beta1, command: x, env: [{value: v}]}}",
            "name: it is missing",
        ),
        ("[]", "{}", "a mapping is expected"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, cluster, user, said):
    found = problems(with_parts(tmp_path, cluster=cluster, user=user))

    assert any(said in problem for problem in found), found
    assert all(str(tmp_path) in problem for problem in found)


def test_all_problems_are_said_at_once(tmp_path):
    found = problems(with_parts(tmp_path, cluster='{server: "ftp://x", proxy-url: "socks5://p"}', user="{as: admin}"))

    assert len(found) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "not YAML at line"),
        ("- a", "a mapping is expected"),
        ("current-context: c", "there is no context 'c'; the contexts are: none"),
        ("current-context: c\ncontexts: 7", "a list is expected"),
        (MINIMAL.replace("cluster: k", "cluster: gone"), "there is no cluster 'gone'"),
        (MINIMAL.replace("user: u", "user: gone"), "there is no user 'gone'"),
    ],
)
def test_files_that_are_no_kubeconfig(tmp_path, text, said):
    assert any(said in problem for problem in problems(write(tmp_path, text)))


def test_a_missing_file_and_several_missing_files(tmp_path):
    assert "no such file" in problems(tmp_path / "gone")[0]
    with pytest.raises(KubeconfigError, match="none of these files exists"):
        load_kubeconfig([tmp_path / "a", tmp_path / "b"])


def test_a_context_without_a_user_is_anonymous(tmp_path):
    context = load_kubeconfig([write(tmp_path, MINIMAL.replace(", user: u", ""))])

    assert context.user.token is None
