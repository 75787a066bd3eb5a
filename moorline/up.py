"""`moorline up`: kas and agentk in one process and one nursery, on a kubeconfig.

Both are the same objects that the commands `kas` and `agentk` run, and they speak to each other over loopback with TLS,
so what works here works apart. Whoever uses `DIR/kubeconfig` acts with the rights of the kubeconfig that was given.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from functools import partial

import trio

from agent.agent import Agent
from agent.command_line import Settings, find_credentials
from agent.credentials import ContextCredentials
from agent.kubeconfig import KubeconfigError
from agent.token import TokenFile
from moorline.certificates import write_private
from moorline.folder import USER, Folder, prepare_folder
from moorline.kubeconfig import Address as KubectlAddress
from moorline.kubeconfig import render_kubeconfig
from moorline.probe import Answer, ask_version
from moorline.settings import agent_config, kas_config, kubectl_address
from operations.configuration import ConfigurationError, exit_with_configuration_error
from operations.exit_codes import FAILURE, OK
from operations.logs import LogConfig, configure_logging
from operations.resource_limits import raise_open_file_limit
from operations.signals import handle_signals
from operations.values import Address, InvalidValue, parse_address
from operations.watched_files import FileProblem
from server.kas import Kas, KasAddresses
from tunnel.transports.tls_contexts import client_context

PROGRAM = "moorline up"
CONTEXT = "moorline"
"""The name of the context in the kubeconfig that is written."""

END_SECONDS = 1.5
"""From Ctrl-C until whatever is left is cut: who pressed it waits at the terminal."""

FIRST_PAUSE_SECONDS = 0.05
LAST_PAUSE_SECONDS = 2.0


def run_up(options: argparse.Namespace) -> int:
    """Carry out the command; the exit status."""
    try:
        together = _prepare(options)
    except ConfigurationError as exc:
        exit_with_configuration_error(PROGRAM, exc)
    configure_logging(LogConfig(level=options.log_level, format="console"))
    together.open_files = raise_open_file_limit()
    status = OK
    try:
        trio.run(together.run)
    except* OSError as group:
        for error in _leaves(group):
            print(f"{PROGRAM}: {error}", file=sys.stderr)
        status = FAILURE
    return status


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions of nested groups, one by one."""
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _leaves(member)
    else:
        yield error


def _prepare(options: argparse.Namespace) -> Together:
    """Check everything that was given, and make the folder. Raises `ConfigurationError` with all problems."""
    problems: list[str] = []
    listen = Address("127.0.0.1", 0)
    folder: Folder | None = None
    credentials: ContextCredentials | None = None
    try:
        listen = parse_address(options.listen)
    except InvalidValue as exc:
        problems.append(f"--listen: {exc}")
    try:
        folder = prepare_folder(options.dir, listen.host)
    except ConfigurationError as exc:
        problems += exc.problems
    except OSError as exc:
        problems.append(f"--dir: {exc.filename or options.dir}: {exc.strerror}")
    kubernetes = agent_config(options.kubeconfig, options.context).kubernetes
    try:
        credentials = find_credentials(kubernetes, os.environ)
    except KubeconfigError as exc:
        problems += [f"--kubeconfig: {problem}" for problem in exc.problems]
    if folder is not None and credentials is not None and not problems:
        try:
            return Together(folder, Kas(kas_config(folder, listen)), credentials)
        except (ConfigurationError, FileProblem, OSError) as exc:  # ssl.SSLError is an OSError
            problems.append(str(exc))
    raise ConfigurationError(problems)


class Together:
    """kas, agentk, and who tells their user that kubectl will work."""

    def __init__(self, folder: Folder, kas: Kas, credentials: ContextCredentials) -> None:
        self.open_files = sys.maxsize
        """The limit on file descriptors."""
        self._folder = folder
        self._kas = kas
        self._credentials = credentials
        self._stopping = trio.Event()

    async def run(self) -> None:
        """Serve until a signal comes; a second one ends at once. Raises `OSError` where an address cannot be bound."""
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(handle_signals, drain=self._stopping.set, stop=nursery.cancel_scope.cancel))
            async with trio.open_nursery() as programs:
                addresses = await programs.start(self._kas.run)
                kubectl = self._write_kubeconfig(addresses)
                agent = Agent(self._agent_settings(addresses), environment=os.environ, open_files=self.open_files)
                programs.start_soon(agent.run)
                async with trio.open_nursery() as announcing:
                    announcing.start_soon(self._announce, kubectl)
                    await self._stopping.wait()
                    announcing.cancel_scope.cancel()
                agent.drain()
                self._kas.drain()
                programs.cancel_scope.deadline = trio.current_time() + END_SECONDS
            nursery.cancel_scope.cancel()

    def _write_kubeconfig(self, addresses: KasAddresses) -> KubectlAddress:
        address = kubectl_address(addresses.proxy, self._folder.user_token)
        authority = self._folder.certificates.authority.read_bytes()
        text = render_kubeconfig(name=CONTEXT, user=USER, address=address, authority=authority)
        write_private(self._folder.kubeconfig, text.encode())
        return address

    def _agent_settings(self, addresses: KasAddresses) -> Settings:
        return Settings(
            config=agent_config(None, "", kas=addresses.agents, authority=self._folder.certificates.authority),
            token=TokenFile(self._folder.agent_token_file),
            credentials=self._credentials,
        )

    async def _announce(self, kubectl: KubectlAddress) -> None:
        """Say ``ready`` once a request has really gone through; until then, what stands in the way, each thing once."""
        context = client_context(ca_file=self._folder.certificates.authority, system_cas=False)
        pause = FIRST_PAUSE_SECONDS
        told = ""
        while True:
            answer = await ask_version(kubectl.server, kubectl.bearer, context)
            if answer.status == 200:
                break
            if answer.text != told and pause > FIRST_PAUSE_SECONDS * 8:
                told = answer.text
                print(f"waiting: {told}", file=sys.stderr, flush=True)
            # The agent and the cluster come up in their own time, and a client can do nothing but ask again.
            await trio.sleep(pause)
            pause = min(pause * 2, LAST_PAUSE_SECONDS)
        self._say_ready(answer)

    def _say_ready(self, answer: Answer) -> None:
        kubeconfig = self._folder.kubeconfig
        print(f"ready: Kubernetes {answer.text} through the tunnel; Ctrl-C ends it. In another terminal:", flush=True)
        print(f"  export KUBECONFIG={kubeconfig.resolve()}", flush=True)
        print("  kubectl get namespaces", flush=True)
