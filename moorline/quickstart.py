"""`moorline quickstart`: `moorline up`, with a sandbox for a cluster where the machine has none.

The rule looks at configuration only, never at the network: a cluster that does not answer at the moment is waited for
and named, since quietly using another one in its place would be the worse surprise.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import ssl
import subprocess
import sys
from functools import partial

import trio

from agent.address import ApiServerAddress
from agent.credentials import ContextCredentials
from agent.kubeconfig import Blob, KubeconfigError, KubeContext, User, load_kubeconfig, names_context
from agent.kubeconfig import Cluster as ClusterEntry
from moorline.certificates import write_private
from moorline.first_steps import DEPLOYMENT, POD, Files, with_curl, with_kubectl
from moorline.folder import Folder
from moorline.kubeconfig import Address as KubectlAddress
from moorline.machine import kubeconfigs, own_kubeconfig
from moorline.probe import NODES, Answer, ask_nodes
from moorline.together import Cluster, GivenCluster, Together, make_kas, prepare, run_together
from operations.configuration import ConfigurationError, exit_with_configuration_error
from sandbox.cluster import Sandbox
from tunnel.transports.tls_contexts import client_context, server_context

PROGRAM = "moorline quickstart"

FIRST_ANSWER_SECONDS = 20.0
"""How long kubectl may take for the first answer that is shown."""


def run_quickstart(options: argparse.Namespace) -> int:
    """Carry out the command; the exit status."""
    try:
        together = _prepare(options)
    except ConfigurationError as exc:
        exit_with_configuration_error(PROGRAM, exc)
    return run_together(PROGRAM, together, options)


def _prepare(options: argparse.Namespace) -> Together:
    """Check everything that was given, and choose the cluster. Raises `ConfigurationError` with all problems."""
    problems: list[str] = []
    folder, listen = prepare(options, problems)
    if options.sandbox and (options.kubeconfig is not None or options.context):
        problems.append("--sandbox: it cannot be combined with --kubeconfig or --context")
    credentials: ContextCredentials | None = None
    why = ""
    try:
        context, why = _choose(options)
        if context is not None:
            # An exec plugin has no business with the token of an agent.
            environment = {name: value for name, value in os.environ.items() if name != "AGENTK_TOKEN"}
            credentials = ContextCredentials(context, environment=environment)
    except KubeconfigError as exc:
        problems += [f"cluster: {problem} (a make-believe cluster instead: --sandbox)" for problem in exc.problems]
    if folder is None or problems:
        raise ConfigurationError(problems)
    cluster: Cluster = SandboxCluster(folder) if credentials is None else GivenCluster(credentials)
    together = Together(folder, make_kas(folder, listen), cluster, Greeting(folder, is_sandbox=credentials is None).say)
    print(f"cluster: {why}", flush=True)
    return together


def _choose(options: argparse.Namespace) -> tuple[KubeContext | None, str]:
    """The context of the machine's own cluster, or None for the sandbox; and why. Raises `KubeconfigError`."""
    sandbox = "a sandbox in this process; nothing in it is real"
    if options.sandbox:
        return None, sandbox
    paths = kubeconfigs(options.kubeconfig, os.environ)
    own = own_kubeconfig(paths, options.dir)
    if own is not None and own == options.kubeconfig:
        raise KubeconfigError([f"{own} is what this command writes, and leads into its own tunnel"])
    paths = [path for path in paths if path != own]
    if options.kubeconfig is None and not options.context and not (paths and names_context(paths)):
        where = f"{os.pathsep.join(map(str, paths))} chooses no context" if paths else "there is no kubeconfig here"
        return None, f"{sandbox} ({where})"
    if not paths:
        raise KubeconfigError(["--context: there is no kubeconfig here; name one with --kubeconfig"])
    context = load_kubeconfig(paths, context=options.context)
    address = context.cluster.address
    where = f"{address.scheme}://{address.authority.decode()}"
    return (
        context,
        f"{where}, context {context.name} of {os.pathsep.join(map(str, paths))}; --sandbox uses a make-believe one",
    )


class SandboxCluster:
    """The sandbox, with the certificate of this folder, and with a token that nobody else ever sees."""

    def __init__(self, folder: Folder) -> None:
        """Raises `ConfigurationError` where the certificate cannot be used."""
        self._authority = folder.certificates.authority
        self._token = secrets.token_urlsafe(32)
        try:
            tls = server_context(
                certificate_file=folder.certificates.certificate,
                key_file=folder.certificates.private_key,
                alpn=("http/1.1",),
            )
        except (OSError, ssl.SSLError) as exc:
            raise ConfigurationError([f"{folder.certificates.certificate}: {exc}"]) from exc
        self._sandbox = Sandbox(token=self._token, tls=lambda: tls)

    async def run(self, *, task_status: trio.TaskStatus[ContextCredentials] = trio.TASK_STATUS_IGNORED) -> None:
        """See `moorline.together.Cluster.run`. Lives until cancelled."""
        async with trio.open_nursery() as nursery:
            found = await nursery.start(self._sandbox.run)
            address = ApiServerAddress(scheme="https", host=found.host, port=found.port)
            context = KubeContext(
                name="sandbox",
                cluster=ClusterEntry(address=address, authority=Blob(path=self._authority)),
                user=User(token=self._token),
            )
            task_status.started(ContextCredentials(context, environment={}))


class Greeting:
    """What is said and shown once kubectl works: a first answer that went through the tunnel, and things to try."""

    def __init__(self, folder: Folder, *, is_sandbox: bool) -> None:
        self._folder = folder
        self._is_sandbox = is_sandbox

    async def say(self, answer: Answer, kubectl: KubectlAddress) -> None:
        """See `moorline.together.Greet`."""
        files = self._write_files(kubectl)
        program = shutil.which("kubectl")
        _say(f"ready: Kubernetes {answer.text} through the tunnel; Ctrl-C ends it", "")
        if program is not None:
            await self._show_nodes_with_kubectl(program)
            _say("", "In another terminal:")
            _say(*with_kubectl(files, is_sandbox=self._is_sandbox).lines())
        else:
            await self._show_nodes(kubectl)
            _say("", "In another terminal, with curl, since there is no kubectl on the PATH:")
            _say(*with_curl(files, is_sandbox=self._is_sandbox).lines())

    def _write_files(self, kubectl: KubectlAddress) -> Files:
        """Write what the commands need beside the kubeconfig."""
        directory = self._folder.kubeconfig.resolve().parent
        files = Files(
            kubeconfig=directory / "kubeconfig",
            authority=self._folder.certificates.authority.resolve(),
            authorization=directory / "authorization",
            deployment=directory / "hello.yaml",
            pod=directory / "hello-pod.yaml",
            server=kubectl.server,
        )
        write_private(files.authorization, f"Authorization: Bearer {kubectl.bearer}\n".encode())
        files.deployment.write_text(DEPLOYMENT, encoding="utf-8")
        files.pod.write_text(POD, encoding="utf-8")
        return files

    async def _show_nodes_with_kubectl(self, program: str) -> None:
        _say("$ kubectl get nodes")
        run = partial(
            trio.run_process,
            [program, "get", "nodes"],
            env={**os.environ, "KUBECONFIG": str(self._folder.kubeconfig.resolve())},
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            deliver_cancel=_kill,
        )
        with trio.move_on_after(FIRST_ANSWER_SECONDS):
            done: subprocess.CompletedProcess[bytes] = await run()
            print(done.stdout.decode(errors="replace"), end="", flush=True)
            print(done.stderr.decode(errors="replace"), end="", file=sys.stderr, flush=True)
            return
        print(f"{PROGRAM}: kubectl gave no answer within {FIRST_ANSWER_SECONDS:g} s", file=sys.stderr, flush=True)

    async def _show_nodes(self, kubectl: KubectlAddress) -> None:
        _say(f"GET {NODES}")
        context = client_context(ca_file=self._folder.certificates.authority, system_cas=False)
        answer = await ask_nodes(kubectl.server, kubectl.bearer, context)
        print(answer.text, file=sys.stdout if answer.status == 200 else sys.stderr, flush=True)


async def _kill(process: trio.Process) -> None:
    """End a kubectl that is no longer waited for, without its consent: Ctrl-C has two seconds."""
    process.kill()
    await trio.lowlevel.checkpoint()


def _say(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)
