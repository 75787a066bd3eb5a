"""`moorline up`: kas and agentk in one process and one nursery, on a kubeconfig.

Whoever uses `DIR/kubeconfig` acts with the rights of the kubeconfig that was given.
"""

from __future__ import annotations

import argparse
import os

import trio

from agent.command_line import find_credentials
from agent.credentials import ContextCredentials
from agent.kubeconfig import KubeconfigError
from moorline.folder import Folder
from moorline.kubeconfig import Address as KubectlAddress
from moorline.machine import kubeconfigs, own_kubeconfig
from moorline.probe import Answer
from moorline.settings import agent_config
from moorline.together import GivenCluster, Together, make_kas, prepare, run_together
from operations.configuration import ConfigurationError, exit_with_configuration_error

PROGRAM = "moorline up"


def run_up(options: argparse.Namespace) -> int:
    """Carry out the command; the exit status."""
    try:
        together = _prepare(options)
    except ConfigurationError as exc:
        exit_with_configuration_error(PROGRAM, exc)
    return run_together(PROGRAM, together, options)


def _prepare(options: argparse.Namespace) -> Together:
    """Check everything that was given, and make the folder. Raises `ConfigurationError` with all problems."""
    problems: list[str] = []
    folder, listen = prepare(options, problems)
    if path := own_kubeconfig(kubeconfigs(options.kubeconfig, os.environ), options.dir):
        problems.append(f"--kubeconfig: {path} is what this command writes, and leads into its own tunnel")
    credentials: ContextCredentials | None = None
    try:
        credentials = find_credentials(agent_config(options.kubeconfig, options.context).kubernetes, os.environ)
    except KubeconfigError as exc:
        problems += [f"--kubeconfig: {problem}" for problem in exc.problems]
    if folder is None or credentials is None or problems:
        raise ConfigurationError(problems)
    return Together(folder, make_kas(folder, listen), GivenCluster(credentials), _Greeting(folder).say)


class _Greeting:
    """What is said once kubectl works."""

    def __init__(self, folder: Folder) -> None:
        self._kubeconfig = folder.kubeconfig

    async def say(self, answer: Answer, _: KubectlAddress) -> None:
        print(f"ready: Kubernetes {answer.text} through the tunnel; Ctrl-C ends it. In another terminal:", flush=True)
        print(f"  export KUBECONFIG={self._kubeconfig.resolve()}", flush=True)
        print("  kubectl get namespaces", flush=True)
        await trio.lowlevel.checkpoint()
