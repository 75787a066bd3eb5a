"""Who may do what: kas refuses before the agent sees anything, and what it lets through the cluster judges by itself."""

from __future__ import annotations

import re
import secrets
import shlex
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from e2e.testbed.bed import Bed
from e2e.testbed.kubectl import Kubectl, Result, assert_same
from e2e.testbed.names import ADMIN, READER
from e2e.testbed.processes import until
from e2e.testbed.tunnel import Tunnel

pytestmark = pytest.mark.tunnel

OURS = (r" ?\[failed hop: .*?\]", "")


class Users:
    """Users of kas for one test."""

    def __init__(self, bed: Bed, tunnel: Tunnel) -> None:
        self._bed = bed
        self._tunnel = tunnel

    def add(self, grant: Mapping[str, Any] | None = None, *, agent: str = "tcp") -> tuple[str, Kubectl]:
        """A user with one grant; returns the name and kubectl as that user.

        kubectl knows the API already: while it asks for that first, it prints no text of an error in JSON.
        """
        name = f"user-{secrets.token_hex(3)}"
        token = self._tunnel.add_user(name, {"agent": agent, **(grant or {})})
        return name, self.kubectl(agent, token=token, name=name)

    def kubectl(self, agent: str, *, token: str, name: str) -> Kubectl:
        """kubectl with a token, and with an API discovery that the admin has made."""
        home = self._bed.directory / f"agents-{agent}.home"
        if not home.exists():
            admin = self._bed.direct.with_kubeconfig(self._tunnel.kubeconfig_for(agent), home=home)
            admin("get", "nodes")
        return self._bed.direct.with_kubeconfig(self._tunnel.kubeconfig_for(agent, token=token, name=name), home=home)


@pytest.fixture
def users(bed: Bed, tunnel: Tunnel) -> Users:
    return Users(bed, tunnel)


def _bind(bed: Bed, namespace: str, **subject: str) -> None:
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": f"readers-{secrets.token_hex(3)}"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": READER},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", **subject}],
    }
    bed.apply(binding, namespace=namespace)


def _request_id(result: Result) -> str:
    match = re.search(r"request id: ([\w-]+)", result.errors)
    assert match is not None, str(result)
    return match[1]


# -- what the cluster sees


def test_the_clusters_rbac_judges_the_impersonated_user(users: Users, bed: Bed, namespace: str) -> None:
    name, kubectl = users.add()
    _bind(bed, namespace, kind="User", name=name)
    for line in (
        f"get configmaps -n {namespace} -o name",
        f"get secrets -n {namespace}",
        "get configmaps -n default",
        "get nodes",
        f"create configmap x -n {namespace}",
        f"auth can-i --list -n {namespace}",
        "auth can-i get pods",
        "auth whoami",
    ):
        arguments = shlex.split(line)
        assert_same(bed.direct.attempt(*arguments, f"--as={name}"), kubectl.attempt(*arguments))


def test_groups_uid_and_extra_reach_the_cluster(users: Users, bed: Bed, namespace: str) -> None:
    extra = {"example.com/team": ["red", "blue"], "scopes": ["ünïcödé %2F"]}
    identity = {"user": "jane doe", "uid": "u/42", "groups": ["dev ops", "e2e:readers"], "extra": extra}
    _, kubectl = users.add({"as": identity})
    _bind(bed, namespace, kind="Group", name="e2e:readers")
    who = kubectl("auth", "whoami", "-o", "json").json()["status"]["userInfo"]
    assert (who["username"], who["uid"], who["extra"]) == ("jane doe", "u/42", extra)
    assert who["groups"] == ["dev ops", "e2e:readers", "system:authenticated"]
    assert kubectl("auth", "can-i", "list", "pods", "-n", namespace).text == "yes\n"


@pytest.mark.own_cluster
def test_mode_agent_acts_as_the_agent_itself(users: Users) -> None:
    _, kubectl = users.add({"mode": "agent"})
    assert kubectl("auth", "whoami", "-o", "jsonpath={.status.userInfo.username}").text == "e2e-agent"


def test_an_agent_refuses_a_mode_that_its_own_configuration_does_not_allow(users: Users, tunnel: Tunnel) -> None:
    with tunnel.extra_agent("strict", access={"modes": ["impersonate"]}) as agent:
        _, kubectl = users.add({"mode": "agent"}, agent=agent)
        result = kubectl.attempt("get", "nodes")
        assert result.returncode == 1
        assert "access mode 'agent'" in result.errors
        assert "failed hop: agent" in result.errors


# -- impersonation asked for by the caller


def test_a_callers_own_impersonation_is_refused_and_never_dropped(users: Users, tunnel: Tunnel) -> None:
    name, kubectl = users.add()
    result = kubectl.attempt("get", "nodes", "--as=somebody")
    assert result.returncode == 1
    assert "may not impersonate" in result.errors
    token = next(token for token in reversed(tunnel.tokens) if token.startswith("mlu_"))
    endpoint = tunnel.endpoint("tcp", token=token)
    for field in (
        "Impersonate-User: admin",
        "impersonate-user: admin",
        "Impersonate_User: admin",
        "IMPERSONATE-GROUP: system:masters",
        "Impersonate-Extra-scopes: x",
        "Impersonate-Uid: 1",
    ):
        for version in ("--http1.1", "--http2"):
            assert endpoint.curl("/k8s/version", version, "-H", field).status == 403, field
        assert endpoint.curl("/k8s/version", "-H", field, "-H", f"Connection: {field.split(':')[0]}").status in {
            400,
            403,
        }
    assert name


def test_what_an_entry_lists_may_be_impersonated(users: Users, bed: Bed, namespace: str) -> None:
    _, kubectl = users.add({"may_impersonate": {"users": ["ci-*"], "groups": ["auditors"]}})
    _bind(bed, namespace, kind="User", name="ci-bot")
    allowed = (
        ("auth", "whoami", "--as=ci-bot"),
        ("auth", "whoami", "--as=ci-bot", "--as-group=auditors"),
        ("auth", "can-i", "--list", "-n", namespace, "--as=ci-bot"),
        ("get", "configmaps", "-n", namespace, "-o", "name", "--as=ci-bot"),
        ("get", "secrets", "-n", namespace, "--as=ci-bot"),
    )
    for command in allowed:
        assert_same(bed.direct.attempt(*command), kubectl.attempt(*command))
    for refused in (("--as=root",), ("--as=ci-bot", "--as-group=system:masters"), ("--as=ci-bot", "--as-uid=7")):
        result = kubectl.attempt("get", "nodes", *refused)
        assert "may not impersonate" in result.errors, str(result)


def test_via_cluster_asks_the_clusters_rbac(users: Users, bed: Bed) -> None:
    name, kubectl = users.add({"via_cluster": True})
    role = f"impersonate-{secrets.token_hex(3)}"
    api = "rbac.authorization.k8s.io"
    try:
        bed.apply(
            {
                "apiVersion": f"{api}/v1",
                "kind": "ClusterRole",
                "metadata": {"name": role},
                "rules": [
                    {"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"], "resourceNames": ["bob"]}
                ],
            },
            {
                "apiVersion": f"{api}/v1",
                "kind": "ClusterRoleBinding",
                "metadata": {"name": role},
                "roleRef": {"apiGroup": api, "kind": "ClusterRole", "name": role},
                "subjects": [{"apiGroup": api, "kind": "User", "name": name}],
            },
        )
        until(
            lambda: kubectl.attempt("auth", "whoami", "--as=bob").returncode == 0, seconds=5, what="--as=bob is allowed"
        )
        command = ("auth", "whoami", "--as=bob")
        assert_same(bed.direct.attempt(*command), kubectl.attempt(*command))
        assert kubectl.attempt("get", "nodes", "--as=carol").returncode == 1
        assert kubectl.attempt("get", "nodes", "--as=bob", "--as-group=system:masters").returncode == 1
    finally:
        bed.direct("delete", "clusterrole,clusterrolebinding", role)


# -- the read-only role


@pytest.fixture
def viewer(users: Users) -> Kubectl:
    """A user whose grant is read-only, and whom the cluster itself would let do anything."""
    _, kubectl = users.add({"role": "read-only", "as": {"user": ADMIN}})
    return kubectl


@pytest.mark.own_cluster
@pytest.mark.parametrize("protocol", ["true", "false"])
def test_a_read_only_user_gets_no_shell_and_the_agent_never_hears_of_it(
    viewer: Kubectl, bed: Bed, tunnel: Tunnel, pod: tuple[str, str], protocol: str
) -> None:
    assert bed.cluster.own is not None
    marker = secrets.token_hex(8)
    kubectl = viewer.with_environ(KUBECTL_REMOTE_COMMAND_WEBSOCKETS=protocol)
    result = kubectl.attempt("exec", "-n", pod[0], pod[1], "--", "echo", marker)
    assert result.returncode == 1
    assert "read-only" in result.errors
    assert marker not in str(bed.cluster.own.starts())
    agent = tunnel.agents["tcp"].process
    assert agent is not None
    assert _request_id(result) not in agent.output()


@pytest.mark.parametrize(
    "line",
    [
        "create configmap x",
        "delete configmap kube-root-ca.crt",
        "annotate configmap kube-root-ca.crt a=b",
        "attach shell",
        "port-forward shell :80",
        "cp shell:/etc/hostname /dev/null",
        "run x --image=x",
        "debug node/node-1 --image=x",
        "drain node-1",
        "get --raw /api/v1/namespaces/default/services/x/proxy/",
        "get --raw /api/v1/namespaces/default/services/x/pro%78y/",
        "get --raw /api/v1/namespaces/default/pods/x/%65xec",
        "get --raw /api/v1/namespaces/default/pods/x%2Fexec",
        "get --raw /api/v1/namespaces/default/pods/../pods/x/exec",
        "get --raw /api/v1/nodes/node-1/proxy/logs",
    ],
)
def test_a_read_only_user_changes_nothing(viewer: Kubectl, pod: tuple[str, str], line: str) -> None:
    result = viewer.attempt(*shlex.split(line), *([] if "--raw" in line else ["-n", pod[0]]))
    assert result.returncode != 0
    assert "read-only" in result.errors, str(result)


def test_a_read_only_user_reads(viewer: Kubectl, direct: Kubectl, pod: tuple[str, str]) -> None:
    for line in (
        f"get pods -n {pod[0]}",
        f"describe pod -n {pod[0]} {pod[1]}",
        f"logs -n {pod[0]} {pod[1]}",
        "api-resources",
        "explain pods",
        "get nodes -o json",
    ):
        arguments = shlex.split(line)
        assert_same(direct.attempt(*arguments), viewer.attempt(*arguments))
    assert viewer("auth", "can-i", "get", "pods").text == "yes\n"
    assert "e2e:admin" in viewer("auth", "whoami").text


# -- agents and tokens


def test_an_unknown_agent_and_a_forbidden_one_look_the_same(users: Users, bed: Bed, tunnel: Tunnel) -> None:
    name, _ = users.add(agent="websocket")
    token = tunnel.tokens[-1]
    answers = []
    for agent in ("tcp", "no-such-agent"):
        kubectl = bed.direct.with_kubeconfig(tunnel.kubeconfig_for(agent, token=token, name=f"{name}-{agent}"))
        result = kubectl.attempt("get", "--raw", "/version")
        assert result.returncode == 1
        answers.append(re.sub(OURS[0], "", result.errors).replace(agent, "AGENT"))
    assert answers[0] == answers[1]
    assert "(Forbidden)" in answers[0]


def test_a_token_for_one_agent_does_not_open_another(tunnel: Tunnel) -> None:
    endpoint = tunnel.endpoint("tcp", token=f"pat:websocket:{tunnel.admin_token}")
    assert endpoint.curl("/k8s/version").status == 403
    assert tunnel.endpoint("websocket", token=f"pat:websocket:{tunnel.admin_token}").curl("/k8s/version").status == 200


def test_wrong_tokens_are_told_apart_from_refusals(users: Users, tunnel: Tunnel) -> None:
    agent_token = next(token for token in tunnel.tokens if token.startswith("mla_"))
    for token in ("mlu_" + "0" * 43, "nonsense", agent_token, "pat:tcp:", f"pat:{tunnel.admin_token}"):
        answer = tunnel.endpoint("tcp", token=token).curl("/k8s/version")
        assert (answer.status, b'"reason":"Unauthorized"' in answer.body.replace(b" ", b"")) == (401, True), token
    result = users.kubectl("tcp", token="mlu_wrong", name="wrong-token").attempt("get", "nodes")
    assert result.errors.startswith("error: You must be logged in to the server (")


def test_every_method_and_origin_passes_with_a_bearer_token(tunnel: Tunnel, direct: Kubectl) -> None:
    endpoint = tunnel.endpoint("tcp")
    for version in ("--http1.1", "--http2"):
        options = (
            version,
            "-X",
            "OPTIONS",
            "-H",
            "Origin: https://evil.example",
            "-H",
            "Access-Control-Request-Method: PUT",
        )
        answer = endpoint.curl("/k8s/api/v1/namespaces", *options)
        assert answer.status == 405  # the API server's own answer
        assert endpoint.curl("/k8s/version", version, "-H", "Origin: https://evil.example").status == 200
    assert direct("version").returncode == 0


def test_the_agent_says_who_it_is(tunnel: Tunnel) -> None:
    answer = tunnel.endpoint("tcp").curl("/agentk/v1/info")
    assert answer.status == 200
    assert b"tcp" in answer.body


# -- revocation


def test_revoking_a_token_ends_what_runs_under_it_within_two_seconds(
    users: Users, tunnel: Tunnel, pod: tuple[str, str]
) -> None:
    name, kubectl = users.add({"as": {"user": ADMIN}})
    watch = kubectl.running("get", "configmaps", "-A", "-w", "-o", "name")
    session = kubectl.running("exec", "-n", pod[0], pod[1], "--", "sh", "-c", "echo ready; sleep 60")
    follower = kubectl.running("logs", "-f", "-n", pod[0], pod[1])
    with watch as watching, session as executing, follower as following:
        watching.wait_for("configmap/")
        executing.wait_for("ready")
        time.sleep(0.5)
        assert following.popen.poll() is None
        tunnel.token_command("revoke", "--user", name)
        revoked = time.monotonic()
        for running in (watching, executing, following):
            running.wait(seconds=10)
        assert time.monotonic() - revoked < 2.5
    result = kubectl.attempt("get", "nodes")
    assert "You must be logged in" in result.errors


def test_revoking_one_token_leaves_the_users_other_token_alone(users: Users, tunnel: Tunnel) -> None:
    name, kubectl = users.add({"as": {"user": ADMIN}})
    tunnel.new_token("--name=second", user=name)
    with kubectl.running("get", "configmaps", "-A", "-w", "-o", "name") as watching:
        watching.wait_for("configmap/")
        tunnel.token_command("revoke", "--user", name, "--name", "second")
        time.sleep(2.5)
        assert watching.popen.poll() is None


def test_taking_rights_away_ends_what_runs_under_them(users: Users, tunnel: Tunnel, pod: tuple[str, str]) -> None:
    name, kubectl = users.add({"as": {"user": ADMIN}})
    with kubectl.running("exec", "-n", pod[0], pod[1], "--", "sh", "-c", "echo ready; sleep 60") as executing:
        executing.wait_for("ready")
        tunnel.change_access(
            {"agents": [{"agent": "tcp", "as": {"user": "e2e:admin"}, "role": "read-only"}]}, user=name
        )
        changed = time.monotonic()
        executing.wait(seconds=10)
        assert time.monotonic() - changed < 2.5
    assert kubectl("get", "nodes").returncode == 0


def test_revoking_an_agents_token_closes_its_tunnel(tunnel: Tunnel, bed: Bed) -> None:
    with tunnel.extra_agent("dismissed") as agent:
        kubectl = bed.direct.with_kubeconfig(tunnel.kubeconfig_for(agent))
        with kubectl.running("get", "configmaps", "-A", "-w", "-o", "name") as watching:
            watching.wait_for("configmap/")
            tunnel.token_command("revoke", "--agent", agent)
            revoked = time.monotonic()
            watching.wait(seconds=10)
            assert time.monotonic() - revoked < 2.5
        result = kubectl.attempt("get", "nodes")
        assert f"agent {agent} is not connected" in result.errors
        process = tunnel.agents[agent].process
        assert process is not None
        process.wait_for_line("refused the token", seconds=15)
        assert process.returncode is None


def test_a_broken_access_file_changes_nothing(tunnel: Tunnel, through: Kubectl) -> None:
    good = tunnel.access_file.read_bytes()
    try:
        for bad in (b"", b"users: [{name: 5, nonsense: true}]", b"\x00\xff{"):
            tunnel.access_file.write_bytes(bad)
            time.sleep(1.5)
            assert through("get", "nodes").returncode == 0
    finally:
        tunnel.access_file.write_bytes(good)
    time.sleep(1.5)
    assert through("get", "nodes").returncode == 0


@pytest.fixture(autouse=True)
def _settled(tunnel: Tunnel) -> Iterator[None]:
    yield
    assert tunnel.kas is not None
    assert tunnel.kas.returncode is None, tunnel.kas.tail()
