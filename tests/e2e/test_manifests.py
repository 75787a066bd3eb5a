"""The manifests in `deploy/`, applied as they are: what agentk's service account may do, and must not be able to.

The images of the Deployment exist nowhere here, so its Pods are created by a dry run only (a quota keeps the
Deployment from making them), and agentk runs as a process with a token of that service account.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from e2e.testbed.bed import Bed
from e2e.testbed.cluster import kubeconfig
from e2e.testbed.kubectl import Kubectl, Result, assert_same
from e2e.testbed.processes import until
from e2e.testbed.tunnel import PROGRAMS, Tunnel
from support.pages import Block, Machine, blocks_of

pytestmark = [pytest.mark.own_cluster, pytest.mark.controllers]

DEPLOY = Path(__file__).parents[2] / "deploy"
PAGE = blocks_of(DEPLOY.parent / "docs" / "install.md")
NAMESPACE = "moorline"
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:agentk"


def documents(name: str) -> list[dict[str, Any]]:
    """The objects of a file in `deploy/`."""
    return [document for document in yaml.safe_load_all((DEPLOY / name).read_text()) if document]


def shipped_configuration(name: str) -> dict[str, Any]:
    """agentk's configuration in the ConfigMap of a file."""
    (config_map,) = (document for document in documents(name) if document["kind"] == "ConfigMap")
    configuration: dict[str, Any] = yaml.safe_load(config_map["data"]["agentk.yaml"])
    return configuration


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What was applied, and kubectl with a token of the service account."""

    machine: Machine
    said: dict[str, str]
    """What each block of commands printed, by its first words."""
    pod: Result
    lax_pod: Result
    token: str
    account: Kubectl

    def may(self, *question: str) -> bool:
        """What ``kubectl auth can-i`` says to the service account itself."""
        answer = self.account.attempt("auth", "can-i", *question)
        assert answer.text in {"yes\n", "no\n"}, str(answer)
        return answer.text == "yes\n"

    def may_impersonate(self, resource: str, *, subresource: str = "", name: str = "") -> bool:
        """The same about uids and extras, whose group ``can-i`` cannot be told."""
        attributes = {"verb": "impersonate", "group": "authentication.k8s.io", "resource": resource}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {**attributes, "subresource": subresource, "name": name}},
        }
        answer = self.account(
            "create",
            "--validate=false",
            "-f",
            "-",
            "-o",
            "jsonpath={.status.allowed}",
            stdin=json.dumps(review).encode(),
        )
        assert answer.text in {"true", "false"}, str(answer)
        return answer.text == "true"


def page_block(beginning: str) -> Block:
    """The block of commands on the installation page that begins with these words."""
    (found,) = (block for block in PAGE if block.language == "sh" and block.text.startswith(beginning))
    return found


@pytest.fixture(scope="module")
def installed(bed: Bed) -> Iterator[Installed]:
    """The files of `deploy/agentk/`, applied by the commands of the installation page as they stand there."""
    direct = bed.direct
    folder = bed.directory / "installation"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "kubectl").symlink_to(bed.assets.kubectl)
    (folder / "deploy").symlink_to(DEPLOY)
    path = f"{folder / 'bin'}:{PROGRAMS}:/usr/bin:/bin"
    etc = bed.tunnel.directory if bed.tunnel is not None else folder
    machine = Machine(
        folder, {**direct.full_environ(), "PATH": path, "HOME": str(folder)}, places={"/etc/moorline": etc}
    )
    said: dict[str, str] = {}

    def run(beginning: str) -> None:
        said[beginning] = machine.run(page_block(beginning))

    try:
        with bed.tunnel.taken_over() if bed.tunnel is not None else nullcontext():
            run("(umask 077 && kas token create")
        run("kubectl apply -f deploy/agentk/1-namespace.yaml")
        pod, lax_pod = _pods_by_dry_run(direct)
        direct("create", "quota", "no-pods", "--hard=pods=0", "-n", NAMESPACE)
        run("kubectl apply -f deploy/agentk\n")
        asked = ("auth", "can-i", "impersonate", "users/alice", f"--as={ACCOUNT}")
        until(lambda: direct.attempt(*asked).returncode == 0, seconds=10, what="the rights have reached the authorizer")
        run("agentk=system:serviceaccount")
        token = direct("create", "token", "agentk", "-n", NAMESPACE, "--duration=1h").text.strip()
        account = folder / "service-account.kubeconfig"
        kubeconfig(account, server=bed.cluster.server, ca_pem=bed.cluster.ca_pem, token=token)
        if bed.tunnel is not None:
            bed.tunnel.tokens += [token, (folder / "agent-token").read_text().strip()]
        yield Installed(
            machine=machine,
            said=said,
            pod=pod,
            lax_pod=lax_pod,
            token=token,
            account=direct.with_kubeconfig(account),
        )
    finally:
        direct.attempt("delete", "-f", str(DEPLOY / "agentk"), "--ignore-not-found", "--wait=false")


def _pods_by_dry_run(direct: Kubectl) -> tuple[Result, Result]:
    """The Deployment's Pod as it is, and without the Pod's security context."""
    (deployment,) = (d for d in documents("agentk/4-deployment.yaml") if d["kind"] == "Deployment")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "agentk", "namespace": NAMESPACE}}
    spec = deployment["spec"]["template"]["spec"]
    created = ("create", "--dry-run=server", "-f", "-")
    return (
        direct.attempt(*created, stdin=json.dumps({**pod, "spec": spec}).encode()),
        direct.attempt(*created, stdin=json.dumps({**pod, "spec": {**spec, "securityContext": {}}}).encode()),
    )


def test_the_cluster_takes_every_object(installed: Installed) -> None:
    files = sorted((DEPLOY / "agentk").glob("*.yaml"))
    applied = [line for said in installed.said.values() for line in said.splitlines()]

    for document in (document for path in files for document in documents(f"agentk/{path.name}")):
        kind, name = document["kind"].lower(), document["metadata"]["name"]
        assert any(line.startswith(kind) and f"/{name} " in line and line.endswith("created") for line in applied), (
            f"{kind} {name} in {applied}"
        )


def test_the_page_says_what_the_cluster_answers_about_the_rights(installed: Installed) -> None:
    page = (DEPLOY.parent / "docs" / "install.md").read_text()

    assert installed.said["agentk=system:serviceaccount"] == "yes\nno\nno\n"
    assert "answers `yes`, `no`, `no`." in page


def test_applying_again_changes_nothing_and_warns_of_nothing(installed: Installed, bed: Bed) -> None:
    again = bed.direct("apply", "-f", str(DEPLOY / "agentk"))
    difference = bed.direct.attempt("diff", "-f", str(DEPLOY / "agentk"))

    assert again.errors == ""
    assert (difference.returncode, difference.text) == (0, ""), str(difference)


def test_a_pod_of_the_deployment_keeps_the_restricted_standard_which_the_namespace_enforces(
    installed: Installed,
) -> None:
    assert (installed.pod.returncode, installed.pod.errors) == (0, ""), str(installed.pod)
    assert installed.lax_pod.returncode == 1
    assert 'violates PodSecurity "restricted' in installed.lax_pod.errors


def test_the_example_of_a_secret_is_one(installed: Installed, bed: Bed) -> None:
    result = bed.direct("apply", "--dry-run=server", "-f", str(DEPLOY / "variants" / "token-secret.yaml"))

    assert "secret/agentk-token" in result.text
    (volume,) = (
        volume
        for document in documents("agentk/4-deployment.yaml")
        if document["kind"] == "Deployment"
        for volume in document["spec"]["template"]["spec"]["volumes"]
        if "secret" in volume
    )
    assert volume["secret"]["secretName"] == "agentk-token"


# -- rights


@pytest.mark.parametrize(
    "question",
    [
        "impersonate users/alice",
        "impersonate groups/developers",
        "get namespaces/kube-system -n kube-system",
        "get /version",
        "create selfsubjectaccessreviews.authorization.k8s.io",
    ],
)
def test_the_service_account_may(installed: Installed, question: str) -> None:
    assert installed.may(*question.split())


@pytest.mark.parametrize(
    "question",
    [
        "impersonate users/bob",
        "impersonate users/system:admin",
        "impersonate groups/system:masters",
        "impersonate groups/system:authenticated",
        "impersonate serviceaccounts/default -n kube-system",
        "get secrets -A",
        "get secrets/agentk-token -n moorline",
        "list pods -A",
        "create pods -n moorline",
        "create pods --subresource=exec -n moorline",
        "get configmaps -n moorline",
        "list namespaces -A",
        "get namespaces/default -n default",
        "get nodes",
        "get nodes --subresource=proxy",
        "create serviceaccounts --subresource=token -n moorline",
        "create tokenreviews.authentication.k8s.io",
        "create subjectaccessreviews.authorization.k8s.io",
        "bind clusterroles.rbac.authorization.k8s.io",
        "escalate clusterroles.rbac.authorization.k8s.io",
        "create clusterrolebindings.rbac.authorization.k8s.io",
        "* *",
    ],
)
def test_the_service_account_must_not_be_able_to(installed: Installed, question: str) -> None:
    assert not installed.may(*question.split())


def test_the_service_account_must_not_be_able_to_impersonate_uids_and_extras(installed: Installed) -> None:
    assert not installed.may_impersonate("uids", name="1001")
    assert not installed.may_impersonate("userextras", subresource="scopes", name="x")


@pytest.fixture
def variant(installed: Installed, bed: Bed) -> Iterator[Callable[[str], None]]:
    """Applies a file of `deploy/variants/`; afterwards everything is as it was."""
    applied = []

    def apply(name: str) -> None:
        applied.append(name)
        result = bed.direct("apply", "-f", str(DEPLOY / "variants" / name))
        assert result.errors == "", str(result)

    yield apply
    kept = {(document["kind"], document["metadata"]["name"]) for document in documents("agentk/2-rights.yaml")}
    for name in applied:
        for document in documents(f"variants/{name}"):
            kind, object_name = document["kind"], document["metadata"]["name"]
            if kind.startswith("Cluster") and (kind, object_name) not in kept:
                bed.direct("delete", kind.lower(), object_name)
    bed.direct("apply", "-f", str(DEPLOY / "agentk"))
    _until_it_may(installed, "impersonate", "users/alice")
    until(lambda: not installed.may("impersonate", "users/bob"), seconds=10, what="the rights are as they were")


def _until_it_may(installed: Installed, *question: str) -> None:
    """RBAC reaches the kube-apiserver's authorizer through a watch, a moment after it is stored."""
    until(lambda: installed.may(*question), seconds=10, what=f"the service account may {' '.join(question)}")


def test_any_user_with_named_groups_leaves_out_the_masters(
    installed: Installed, variant: Callable[[str], None]
) -> None:
    variant("any-user-named-groups.yaml")

    _until_it_may(installed, "impersonate", "users/bob")
    assert installed.may("impersonate", "groups/developers")
    assert not installed.may("impersonate", "groups/system:masters")
    assert not installed.may("get", "secrets", "-A")


def test_impersonating_anybody_is_the_whole_cluster_as_its_file_says(
    installed: Installed, variant: Callable[[str], None], bed: Bed
) -> None:
    variant("impersonate-anybody.yaml")

    _until_it_may(installed, "impersonate", "groups/system:masters")
    assert installed.may_impersonate("uids", name="1001")
    assert not installed.may_impersonate("userextras", subresource="scopes", name="x")
    assert not installed.may("get", "secrets", "-A")
    as_master = ("--as=anybody", "--as-group=system:masters")
    assert installed.account("auth", "can-i", "*", "*", *as_master).text == "yes\n"


# -- agentk with that service account


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """An agent that runs with the service account, and how to use it as somebody."""

    agent: str
    bed: Bed
    tunnel: Tunnel

    def kubectl(self, user: str, **grant: Any) -> Kubectl:
        """kubectl as a user of kas with one grant on this agent.

        The API discovery is shared: while kubectl asks for that, it loses the text of a refusal.
        """
        name = f"{user}-{secrets.token_hex(3)}"
        token = self.tunnel.add_user(name, {"agent": self.agent, **grant})
        path = self.tunnel.kubeconfig_for(self.agent, token=token, name=name)
        return self.bed.direct.with_kubeconfig(path, home=self.bed.directory / f"agents-{self.agent}.home")


@pytest.fixture
def serve(installed: Installed, bed: Bed, tunnel: Tunnel) -> Iterator[Callable[[str], Served]]:
    """Starts agentk with the configuration of a file, but for addresses and the paths inside of a Pod."""
    with ExitStack() as agents:

        def start(name: str) -> Served:
            configured = sections(installed, name)
            agent = f"pod-{secrets.token_hex(3)}"
            address = f"https://127.0.0.1:{tunnel.agents_port}"
            added = tunnel.add_agent(agent, address=address, token=tunnel.new_token(agent=agent), **configured)
            # The admin of the tests, who finds out whether other agents are connected, has no rights on this one.
            tunnel.start_agent(agent, wait=False)
            agents.callback(tunnel.stop_agent, agent)
            assert added.process is not None
            added.process.wait_for_line("connected to kas", seconds=20)
            served = Served(agent=agent, bed=bed, tunnel=tunnel)
            is_agent = configured["access"]["modes"] == ["agent"]
            first = {"mode": "agent"} if is_agent else {"as": {"user": "alice"}}
            served.kubectl("first", **first).attempt("get", "pods")
            return served

        yield start


def sections(installed: Installed, name: str) -> dict[str, Any]:
    """What a file configures agentk to, with the service account's token, and as the bed has addresses and logs."""
    shipped = shipped_configuration(name)
    for section in ("kas", "health", "log"):
        del shipped[section]
    return {**shipped, "kubernetes": {"kubeconfig": str(installed.account.kubeconfig)}}


@pytest.fixture
def reader(bed: Bed, namespace: str) -> str:
    """A namespace in which alice may read pods, and nothing else anywhere."""
    api = "rbac.authorization.k8s.io"
    bed.apply(
        {
            "apiVersion": f"{api}/v1",
            "kind": "Role",
            "metadata": {"name": "pod-reader"},
            "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}],
        },
        {
            "apiVersion": f"{api}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "alice-reads-pods"},
            "roleRef": {"apiGroup": api, "kind": "Role", "name": "pod-reader"},
            "subjects": [{"apiGroup": api, "kind": "User", "name": "alice"}],
        },
        namespace=namespace,
    )
    bed.run_pod(namespace, "shell", ["sleep", "infinity"])
    return namespace


@pytest.mark.tunnel
def test_a_user_gets_what_her_role_gives_her_and_the_clusters_own_refusal_for_the_rest(
    serve: Callable[[str], Served], reader: str, direct: Kubectl
) -> None:
    alice = serve("agentk/3-configuration.yaml").kubectl("alice", **{"as": {"user": "alice"}})

    assert alice("get", "pods", "-n", reader, "-o", "name").text == "pod/shell\n"
    assert alice("auth", "whoami", "-o", "jsonpath={.status.userInfo.username}").text == "alice"
    for line in (
        f"get pods -n {reader}",
        "get pods -n default",
        "get pods -A",
        f"get secrets -n {reader}",
        f"delete pod shell -n {reader}",
        f"exec shell -n {reader} -- true",
        f"get --raw /api/v1/namespaces/{reader}/secrets",
        "auth can-i --list",
    ):
        arguments = line.split()
        assert_same(direct.attempt("--as=alice", *arguments), alice.attempt(*arguments))
    refused = alice.attempt("get", "secrets", "-n", reader)
    assert refused.returncode == 1
    assert f'User "alice" cannot list resource "secrets" in API group "" in the namespace "{reader}"' in refused.errors
    assert "failed hop" not in refused.errors


@pytest.mark.tunnel
def test_a_user_whom_the_service_account_may_not_impersonate_is_refused_by_the_cluster(
    serve: Callable[[str], Served], reader: str
) -> None:
    served = serve("agentk/3-configuration.yaml")
    for grant, what in (
        ({"user": "bob"}, 'cannot impersonate resource "users"'),
        ({"user": "alice", "groups": ["system:masters"]}, 'cannot impersonate resource "groups"'),
    ):
        result = served.kubectl("bob", **{"as": grant}).attempt("get", "pods", "-n", reader, "-o", "name")
        assert result.returncode == 1
        assert what in result.errors, str(result)
        assert ACCOUNT in result.errors


@pytest.mark.tunnel
def test_an_agent_that_is_installed_as_shipped_lets_nobody_act_as_the_agent(
    serve: Callable[[str], Served], reader: str
) -> None:
    result = serve("agentk/3-configuration.yaml").kubectl("carol", mode="agent").attempt("get", "pods", "-n", reader)

    assert result.returncode == 1
    assert "access.modes" in result.errors


@pytest.mark.tunnel
def test_in_agent_mode_callers_have_the_service_accounts_rights(
    installed: Installed, variant: Callable[[str], None], serve: Callable[[str], Served], reader: str
) -> None:
    variant("agent-mode.yaml")
    _until_it_may(installed, "list", "pods", "-A")
    until(lambda: not installed.may("impersonate", "users/alice"), seconds=10, what="impersonation is taken away")
    served = serve("variants/agent-mode.yaml")
    carol = served.kubectl("carol", mode="agent")

    assert carol("auth", "whoami", "-o", "jsonpath={.status.userInfo.username}").text == ACCOUNT
    assert carol("get", "pods", "-n", reader, "-o", "name").text == "pod/shell\n"
    refused = carol.attempt("get", "secrets", "-n", reader)
    assert refused.returncode == 1
    assert f'User "{ACCOUNT}" cannot list resource "secrets"' in refused.errors
    assert "access mode 'impersonate'" in served.kubectl("alice").attempt("get", "pods", "-n", reader).errors


@pytest.mark.tunnel
def test_the_agent_tells_its_cluster_by_the_uid_that_it_may_read(
    serve: Callable[[str], Served], direct: Kubectl, tunnel: Tunnel
) -> None:
    served = serve("agentk/3-configuration.yaml")
    uid = direct("get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}").text

    info = json.loads(tunnel.endpoint(served.agent).curl("/agentk/v1/info").body)
    assert (info["cluster_uid"], info["access_modes"]) == (uid, ["impersonate"])


@pytest.mark.tunnel
def test_the_commands_of_the_installation_page_lead_a_user_to_what_her_role_gives_her(
    installed: Installed, tunnel: Tunnel, bed: Bed
) -> None:
    """Addresses apart: the page's kas is at kas.example.com."""
    machine, folder = installed.machine, installed.machine.folder
    token = (folder / "agent-token").read_text().strip()
    address = f"https://127.0.0.1:{tunnel.agents_port}"
    tunnel.add_agent("production", address=address, token=token, **sections(installed, "agentk/3-configuration.yaml"))
    tunnel.start_agent("production")
    try:
        with tunnel.taken_over():
            machine.run(page_block("moorline kubeconfig"))
        alice = folder / "alice.kubeconfig"
        made = yaml.safe_load(alice.read_text())
        tunnel.tokens.append(made["users"][0]["user"]["token"].rpartition(":")[2])
        cluster = made["clusters"][0]["cluster"]
        cluster["server"] = cluster["server"].replace("kas.example.com:8154", f"127.0.0.1:{tunnel.proxy_port}")
        cluster["certificate-authority"] = str(tunnel.pki.ca_file)
        alice.write_text(yaml.safe_dump(made))
        machine.run(page_block("kubectl create namespace shop"))
        bed.run_pod("shop", "till", ["sleep", "infinity"])
        said = machine.run(page_block("kubectl --kubeconfig alice.kubeconfig"))
        assert re.fullmatch(r"NAME +READY +STATUS +RESTARTS +AGE\ntill +1/1 +Running .*\nno\n", said), said
        with tunnel.taken_over():
            machine.run(page_block("kas token revoke"))
        refused = bed.direct.with_kubeconfig(alice).attempt("get", "pods", "-n", "shop")
        assert "You must be logged in to the server" in refused.errors, str(refused)
    finally:
        tunnel.stop_agent("production")
        bed.direct.attempt("delete", "namespace", "shop", "--ignore-not-found", "--wait=false")


def test_the_last_command_of_the_page_leaves_nothing(installed: Installed, bed: Bed) -> None:
    installed.machine.run(page_block("kubectl delete -f deploy/agentk"))

    left = bed.direct("get", "clusterroles,clusterrolebindings,namespaces", "-o", "name").text
    assert [line for line in left.splitlines() if "moorline" in line] == []
