"""kas, agentk and a cluster in one process and one nursery: what `moorline up` and `moorline quickstart` share.

Both ends are the same objects that the commands `kas` and `agentk` run, and they speak to each other over loopback with
TLS, so what works here works apart.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Protocol

import trio

from agent.agent import Agent
from agent.command_line import Settings
from agent.credentials import ContextCredentials
from agent.token import TokenFile
from moorline.certificates import write_private
from moorline.folder import USER, Folder, prepare_folder
from moorline.kubeconfig import Address as KubectlAddress
from moorline.kubeconfig import render_kubeconfig
from moorline.probe import Answer, ask_version
from moorline.settings import agent_config, kas_config, kubectl_address
from operations.configuration import ConfigurationError
from operations.exit_codes import FAILURE, OK
from operations.logs import LogConfig, configure_logging
from operations.resource_limits import raise_open_file_limit
from operations.signals import handle_signals
from operations.values import Address, InvalidValue, parse_address
from operations.watched_files import FileProblem
from server.kas import Kas, KasAddresses
from tunnel.transports.tls_contexts import client_context

CONTEXT = "moorline"
"""The name of the context in the kubeconfig that is written."""

END_SECONDS = 1.2
"""From Ctrl-C until whatever is left is cut: who pressed it waits at the terminal."""

FIRST_PAUSE_SECONDS = 0.05
LAST_PAUSE_SECONDS = 2.0


class Cluster(Protocol):
    """The cluster that the agent is in."""

    async def run(self, *, task_status: trio.TaskStatus[ContextCredentials] = trio.TASK_STATUS_IGNORED) -> None:
        """Start with the credentials for its kube-apiserver; return, or live until cancelled. Raises `OSError`."""
        ...


class GivenCluster:
    """A cluster that is somewhere already."""

    def __init__(self, credentials: ContextCredentials) -> None:
        self._credentials = credentials

    async def run(self, *, task_status: trio.TaskStatus[ContextCredentials] = trio.TASK_STATUS_IGNORED) -> None:
        """See `Cluster.run`. Returns at once."""
        await trio.lowlevel.checkpoint()
        task_status.started(self._credentials)


Greet = Callable[[Answer, KubectlAddress], Awaitable[None]]
"""Tells the user that kubectl works now: the answer to ``GET /version``, and the way that it took. May be cancelled."""


class Together:
    """A cluster with kas and agentk, and who tells their user that kubectl will work."""

    def __init__(self, folder: Folder, kas: Kas, cluster: Cluster, greet: Greet) -> None:
        self.open_files = sys.maxsize
        """The limit on file descriptors."""
        self._folder = folder
        self._kas = kas
        self._cluster = cluster
        self._greet = greet
        self._stopping = trio.Event()

    async def run(self) -> None:
        """Serve until a signal comes; a second one ends at once. Raises `OSError` where an address cannot be bound."""
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(handle_signals, drain=self._stopping.set, stop=nursery.cancel_scope.cancel))
            credentials = await nursery.start(self._cluster.run)
            async with trio.open_nursery() as programs:
                addresses = await programs.start(self._kas.run)
                kubectl = self._write_kubeconfig(addresses)
                settings = self._agent_settings(addresses, credentials)
                agent = Agent(settings, environment=os.environ, open_files=self.open_files)
                programs.start_soon(agent.run)
                async with trio.open_nursery() as announcing:
                    announcing.start_soon(self._announce, kubectl)
                    await self._stopping.wait()
                    announcing.cancel_scope.cancel()
                agent.drain()
                self._kas.drain()
                programs.cancel_scope.deadline = trio.current_time() + END_SECONDS
            # A cluster that lives here has no more callers, and ends with whoever waits for signals.
            nursery.cancel_scope.cancel()

    def _write_kubeconfig(self, addresses: KasAddresses) -> KubectlAddress:
        address = kubectl_address(addresses.proxy, self._folder.user_token)
        authority = self._folder.certificates.authority.read_bytes()
        text = render_kubeconfig(name=CONTEXT, user=USER, address=address, authority=authority)
        write_private(self._folder.kubeconfig, text.encode())
        return address

    def _agent_settings(self, addresses: KasAddresses, credentials: ContextCredentials) -> Settings:
        return Settings(
            config=agent_config(None, "", kas=addresses.agents, authority=self._folder.certificates.authority),
            token=TokenFile(self._folder.agent_token_file),
            credentials=credentials,
        )

    async def _announce(self, kubectl: KubectlAddress) -> None:
        """Greet once a request has really gone through; until then, say what stands in the way, each thing once."""
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
        await self._greet(answer, kubectl)


def prepare(options: argparse.Namespace, problems: list[str]) -> tuple[Folder | None, Address]:
    """The folder and the address that were asked for; adds to ``problems`` whatever is wrong with either."""
    listen = Address("127.0.0.1", 0)
    try:
        listen = parse_address(options.listen)
    except InvalidValue as exc:
        problems.append(f"--listen: {exc}")
    try:
        return prepare_folder(options.dir, listen.host), listen
    except ConfigurationError as exc:
        problems += exc.problems
    except OSError as exc:
        problems.append(f"--dir: {exc.filename or options.dir}: {exc.strerror}")
    return None, listen


def make_kas(folder: Folder, listen: Address) -> Kas:
    """The kas of this folder. Raises `ConfigurationError`."""
    try:
        return Kas(kas_config(folder, listen))
    except (FileProblem, OSError) as exc:  # ssl.SSLError is an OSError
        raise ConfigurationError([str(exc)]) from exc


def run_together(program: str, together: Together, options: argparse.Namespace) -> int:
    """Run until a signal ends it; the exit status. Raises `BrokenPipeError`, in a group, where stdout has no reader."""
    configure_logging(LogConfig(level=options.log_level, format="console"))
    together.open_files = raise_open_file_limit()
    status = OK
    try:
        trio.run(together.run)
    except* BrokenPipeError:
        raise  # whoever read what is printed has gone, which is no fault of an address
    except* OSError as group:
        for error in _leaves(group):
            print(f"{program}: {error}", file=sys.stderr)
        status = FAILURE
    return status


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions of nested groups, one by one."""
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _leaves(member)
    else:
        yield error
