"""Credentials that rotate, plugins that fail, and service accounts."""

from __future__ import annotations

import json
import os
import ssl
import sys
import textwrap
from pathlib import Path

import pytest
import trio
import trustme

from agent.address import parse_server
from agent.credentials import LOOK_SECONDS, ContextCredentials, in_cluster_context, is_in_cluster
from agent.exec_plugin import CredentialsUnavailable, parse_credential
from agent.kubeconfig import Blob, Cluster, ExecPlugin, KubeconfigError, KubeContext, User

CA = trustme.CA()
PLUGIN = ExecPlugin(api_version="client.authentication.k8s.io/v1", command="plugin")


def credentials(user: User, *, authority: Blob | None = None, server: str = "https://api.test", wall_clock=lambda: 0.0):
    cluster = Cluster(address=parse_server(server), authority=authority or Blob(data=CA.cert_pem.bytes()))
    context = KubeContext(name="test", cluster=cluster, user=user)
    return ContextCredentials(context, environment=dict(os.environ), wall_clock=wall_clock)


async def bearer(subject: ContextCredentials) -> bytes:
    access = await subject.current()
    return access.fields[0][1]


async def test_a_fixed_token():
    assert await bearer(credentials(User(token="t"))) == b"Bearer t"


async def test_user_and_password():
    assert await bearer(credentials(User(basic=("u", "p:w")))) == b"Basic dTpwOnc="


async def test_a_client_certificate_needs_no_authorization(tmp_path):
    leaf = CA.issue_cert("agent")
    user = User(
        certificate=Blob(data=b"".join(blob.bytes() for blob in leaf.cert_chain_pems)),
        key=Blob(data=leaf.private_key_pem.bytes()),
    )
    access = await credentials(user).current()

    assert access.fields == []
    assert access.context is not None


async def test_http_needs_no_context():
    access = await credentials(User(token="t"), server="http://127.0.0.1:8080").current()

    assert access.context is None


@pytest.mark.parametrize(
    "user",
    [
        User(token="has white space"),
        User(token="zeilen\nende"),
        User(token="ümlaut"),
        User(certificate=Blob(data=b"no pem"), key=Blob(data=b"no pem")),
        User(token_path=Path("/nope/token")),
    ],
)
def test_credentials_that_cannot_be_used_are_found_at_the_start(user):
    with pytest.raises(KubeconfigError, match="context test"):
        credentials(user)


def test_a_ca_that_is_none_is_found_at_the_start():
    with pytest.raises(KubeconfigError):
        credentials(User(token="t"), authority=Blob(data=b"no pem"))


async def test_a_token_that_rotates_is_read_again(tmp_path, autojump_clock):
    path = tmp_path / "token"
    path.write_text("old\n")
    subject = credentials(User(token_path=path))
    first = await subject.current()
    assert await subject.current() is first
    path.write_text("newer\n")
    await trio.sleep(LOOK_SECONDS + 0.1)

    assert await bearer(subject) == b"Bearer newer"
    assert (await subject.current()).context is not None


async def test_a_mounted_secret_rotates_by_a_symlink_and_the_times_may_be_equal(tmp_path, autojump_clock):
    for name in ("v1", "v2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "token").write_text(f"token-{name}")
        os.utime(tmp_path / name / "token", (1000, 1000))
    (tmp_path / "..data").symlink_to("v1")
    (tmp_path / "token").symlink_to("..data/token")
    subject = credentials(User(token_path=tmp_path / "token"))
    await subject.current()
    (tmp_path / "new").symlink_to("v2")
    (tmp_path / "new").rename(tmp_path / "..data")
    await trio.sleep(LOOK_SECONDS + 0.1)

    assert await bearer(subject) == b"Bearer token-v2"


@pytest.mark.parametrize("damage", ["empty", "missing", "malformed"])
async def test_a_token_file_that_breaks_leaves_the_old_token_and_says_so_once(tmp_path, autojump_clock, caplog, damage):
    path = tmp_path / "token"
    path.write_text("good")
    subject = credentials(User(token_path=path))
    if damage == "missing":
        path.unlink()
    else:
        path.write_text("" if damage == "empty" else "two words")
    for _ in range(5):
        await trio.sleep(LOOK_SECONDS + 0.1)
        assert await bearer(subject) == b"Bearer good"
    assert len(caplog.records) == 1
    assert "two words" not in caplog.text
    path.write_text("better")
    await trio.sleep(LOOK_SECONDS + 0.1)

    assert await bearer(subject) == b"Bearer better"


async def test_a_ca_that_rotates_makes_a_new_context(tmp_path, autojump_clock):
    path = tmp_path / "ca.crt"
    path.write_bytes(CA.cert_pem.bytes())
    subject = credentials(User(token="t"), authority=Blob(path=path))
    first = await subject.current()
    path.write_bytes(trustme.CA().cert_pem.bytes())
    await trio.sleep(LOOK_SECONDS + 0.1)
    second = await subject.current()

    assert second.context is not first.context
    assert second.context.get_ca_certs() != first.context.get_ca_certs()


async def test_a_change_is_not_forgotten_because_another_file_was_missing_at_that_moment(tmp_path, autojump_clock):
    ca, token = tmp_path / "ca.crt", tmp_path / "token"
    ca.write_bytes(CA.cert_pem.bytes())
    token.write_text("t")
    subject = credentials(User(token_path=token), authority=Blob(path=ca))
    first = await subject.current()
    ca.write_bytes(trustme.CA().cert_pem.bytes())
    token.rename(tmp_path / "away")
    await trio.sleep(LOOK_SECONDS + 0.1)
    assert await subject.current() is first
    (tmp_path / "away").rename(token)
    await trio.sleep(LOOK_SECONDS + 0.1)

    assert (await subject.current()).context is not first.context


async def test_after_a_401_the_files_are_looked_at_at_once(tmp_path):
    path = tmp_path / "token"
    path.write_text("old")
    subject = credentials(User(token_path=path))
    await subject.current()
    path.write_text("rotated")
    subject.rejected()

    assert await bearer(subject) == b"Bearer rotated"


def write_plugin(folder: Path, body: str) -> ExecPlugin:
    program = folder / "plugin"
    program.write_text(f"#!{sys.executable} -S\n" + textwrap.dedent(body))
    program.chmod(0o755)
    return ExecPlugin(api_version="client.authentication.k8s.io/v1", command=str(program), environment=(("N", "v"),))


PRINTS = """
    import json, os, pathlib
    count = pathlib.Path(__file__).with_name("count")
    runs = int(count.read_text()) + 1 if count.exists() else 1
    count.write_text(str(runs))
    info = json.loads(os.environ["KUBERNETES_EXEC_INFO"])
    assert os.environ["N"] == "v" and info["spec"]["interactive"] is False
    print(json.dumps({"kind": "ExecCredential", "apiVersion": info["apiVersion"],
        "status": {"token": f"run-{runs}", "expirationTimestamp": "1970-01-01T00:01:00Z"}}))
"""


async def test_a_plugin_runs_once_until_its_token_expires(tmp_path):
    now = 0.0
    subject = credentials(User(plugin=write_plugin(tmp_path, PRINTS)), wall_clock=lambda: now)
    assert [await bearer(subject) for _ in range(3)] == [b"Bearer run-1"] * 3
    now = 59.0
    assert await bearer(subject) == b"Bearer run-1"
    now = 60.0

    assert await bearer(subject) == b"Bearer run-2"


async def test_many_requests_at_the_same_time_run_a_plugin_once(tmp_path, nursery):
    subject = credentials(User(plugin=write_plugin(tmp_path, PRINTS)))
    seen: list[bytes] = []

    async def ask() -> None:
        seen.append(await bearer(subject))

    async with trio.open_nursery() as askers:
        for _ in range(10):
            askers.start_soon(ask)

    assert seen == [b"Bearer run-1"] * 10


async def test_after_a_401_a_plugin_runs_again_but_not_for_every_request(tmp_path):
    subject = credentials(User(plugin=write_plugin(tmp_path, PRINTS)))
    assert await bearer(subject) == b"Bearer run-1"
    subject.rejected()
    assert await bearer(subject) == b"Bearer run-2"
    subject.rejected()

    assert await bearer(subject) == b"Bearer run-2"


async def test_a_plugin_that_fails_says_why_and_does_not_run_for_every_request(tmp_path):
    body = """
        import pathlib, sys
        with pathlib.Path(__file__).with_name("runs").open("a") as runs:
            runs.write("x")
        print("log in first", file=sys.stderr)
        sys.exit(3)
    """
    subject = credentials(User(plugin=write_plugin(tmp_path, body)))
    for _ in range(5):
        with pytest.raises(CredentialsUnavailable, match="status 3: log in first"):
            await subject.current()

    assert (tmp_path / "runs").read_text() == "x"


async def test_a_plugin_that_is_not_installed_shows_its_hint():
    plugin = ExecPlugin(api_version="client.authentication.k8s.io/v1", command="/nope/login", install_hint="apt get it")
    with pytest.raises(CredentialsUnavailable, match="apt get it"):
        await credentials(User(plugin=plugin)).current()


async def test_a_plugin_that_does_not_end_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("agent.exec_plugin.PLUGIN_SECONDS", 0.2)
    subject = credentials(User(plugin=write_plugin(tmp_path, "import time\ntime.sleep(100)")))
    with trio.fail_after(5), pytest.raises(CredentialsUnavailable, match="did not end"):
        await subject.current()


async def test_a_plugin_may_print_a_certificate(tmp_path):
    leaf = CA.issue_cert("agent")
    status = {
        "clientCertificateData": leaf.cert_chain_pems[0].bytes().decode(),
        "clientKeyData": leaf.private_key_pem.bytes().decode(),
    }
    document = {"kind": "ExecCredential", "apiVersion": PLUGIN.api_version, "status": status}
    (tmp_path / "answer").write_text(json.dumps(document))
    body = "import pathlib\nprint(pathlib.Path(__file__).with_name('answer').read_text())"
    subject = credentials(User(plugin=write_plugin(tmp_path, body)))
    access = await subject.current()

    assert access.fields == []
    assert isinstance(access.context, ssl.SSLContext)
    assert await subject.current() is access


def answer(**status: object) -> bytes:
    return json.dumps({"kind": "ExecCredential", "apiVersion": PLUGIN.api_version, "status": status}).encode()


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (b"", "not JSON"),
        (b"[1]", "no ExecCredential"),
        (b'{"kind": "Pod"}', "no ExecCredential"),
        (b'{"kind": "ExecCredential", "apiVersion": "v9"}', "apiVersion 'v9'"),
        (answer(), "neither a token nor"),
        (answer(token=7), "not text"),
        (answer(clientCertificateData="x"), "neither a token nor"),
        (answer(token="secret", expirationTimestamp="soon"), "no time"),
        (b" " * 2_000_000, "at most"),
    ],
)
def test_what_a_plugin_must_not_print(output, said):
    with pytest.raises(CredentialsUnavailable, match=said) as caught:
        parse_credential(output, PLUGIN)

    assert "secret" not in str(caught.value)


def test_expiry_in_another_time_zone():
    assert parse_credential(answer(token="t", expirationTimestamp="1970-01-01T01:00:30+01:00"), PLUGIN).expires_at == 30


def test_a_service_account(tmp_path):
    (tmp_path / "token").write_text("sa")
    (tmp_path / "ca.crt").write_bytes(CA.cert_pem.bytes())
    environment = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}

    assert is_in_cluster(environment, tmp_path)
    assert str(in_cluster_context(environment, tmp_path).cluster.address) == "https://[fd00::1]"
    assert not is_in_cluster({}, tmp_path)


def test_a_service_account_that_is_not_mounted_says_everything_that_is_missing(tmp_path):
    with pytest.raises(KubeconfigError) as caught:
        in_cluster_context({"KUBERNETES_SERVICE_PORT": "x"}, tmp_path)

    assert len(caught.value.problems) == 4
