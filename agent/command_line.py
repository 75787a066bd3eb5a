"""agentk's flags, and everything that has to be right before it starts: all problems are told at once."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path

from agent.config import ENVIRONMENT_PREFIX, AgentConfig, KubernetesConfig
from agent.credentials import IN_CLUSTER, ContextCredentials, in_cluster_context, is_in_cluster
from agent.kubeconfig import KubeconfigError, KubeContext, load_kubeconfig
from agent.token import Token, find_token
from operations.command_line import CommandParser, VersionAction
from operations.configuration import ConfigurationError, Override, load_configuration
from operations.values import InvalidValue

_OVERRIDES = {
    "--kas-address": ("kas.address", "URL", "wss:// or https:// address of kas"),
    "--token-file": ("kas.token_file", "FILE", "the agent's token (or AGENTK_TOKEN)"),
    "--ca-file": ("kas.ca_file", "FILE", "certificates to trust beside the system's"),
    "--kubeconfig": ("kubernetes.kubeconfig", "FILE", "default: $KUBECONFIG, the Pod's, ~/.kube/config"),
    "--context": ("kubernetes.context", "NAME", "context of the kubeconfig"),
    "--replica": ("replica", "NAME", "name of this copy; default: $POD_NAME, the host"),
    "--health-address": ("health.address", "A", "/livez, /readyz; default 127.0.0.1:8152"),
    "--log-level": ("log.level", "LEVEL", "debug, info, warning, error"),
    "--log-format": ("log.format", "FORMAT", "auto, console, json"),
}
_REPEATABLE = {
    "--kas-header": ("kas.headers", "'N: V'", "header for the handshake; may be repeated"),
    "--access-mode": ("access.modes", "MODE", "impersonate (default), agent; may be repeated"),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that `agent.agent.Agent` needs."""

    config: AgentConfig
    token: Token
    credentials: ContextCredentials
    is_in_cluster: bool = False
    """The credentials are the Pod's own. Its kube-apiserver is reached directly: `HTTPS_PROXY` is there for kas."""


def read_settings(arguments: Sequence[str], environment: MutableMapping[str, str]) -> Settings:
    """Read flags, file, environment, token and kubeconfig. The variable with the token is removed.

    Raises `ConfigurationError` with everything that is wrong; ends the process for ``--help`` and ``--version``.
    """
    problems: list[str] = []
    path, overrides = _parse_flags(arguments, problems)
    token_variable_kept = dict(environment)
    config: AgentConfig | None = None
    try:
        config = load_configuration(
            AgentConfig, path, environment=environment, prefix=ENVIRONMENT_PREFIX, overrides=overrides
        )
    except ConfigurationError as exc:
        problems += exc.problems
    token: Token | None = None
    credentials: ContextCredentials | None = None
    if config is not None:
        try:
            token = find_token(config.kas.token_file, environment)
        except InvalidValue as exc:
            problems.append(f"kas.token_file: {exc}")
        try:
            credentials = find_credentials(config.kubernetes, token_variable_kept)
        except KubeconfigError as exc:
            problems += [f"kubernetes: {problem}" for problem in exc.problems]
    if problems or config is None or token is None or credentials is None:
        raise ConfigurationError(problems)
    return Settings(
        config=config,
        token=token,
        credentials=credentials,
        is_in_cluster=credentials.description == IN_CLUSTER,
    )


def find_credentials(config: KubernetesConfig, environment: Mapping[str, str]) -> ContextCredentials:
    """The credentials that the configuration names, or that are where one expects them. Raises `KubeconfigError`."""
    without_token = {name: value for name, value in environment.items() if name != "AGENTK_TOKEN"}
    return ContextCredentials(find_context(config, environment), environment=without_token)


def find_context(config: KubernetesConfig, environment: Mapping[str, str]) -> KubeContext:
    """The context of a kubeconfig, or the service account of the Pod. Raises `KubeconfigError`."""
    if config.kubeconfig is not None:
        return load_kubeconfig([config.kubeconfig], context=config.context)
    if named := [Path(part) for part in environment.get("KUBECONFIG", "").split(os.pathsep) if part]:
        return load_kubeconfig(named, context=config.context)
    if is_in_cluster(environment) and not config.context:
        return in_cluster_context(environment)
    home = Path(environment.get("HOME") or "/") / ".kube" / "config"
    if not home.is_file():
        raise KubeconfigError(
            [f"there is no cluster to serve: no --kubeconfig, no $KUBECONFIG, no service account of a Pod, no {home}"]
        )
    return load_kubeconfig([home], context=config.context)


def command_parser() -> CommandParser:
    """The flags of agentk."""
    parser = CommandParser(
        prog="agentk",
        usage="agentk --kas-address URL --token-file FILE [options]",
        description="Dials kas from inside a Kubernetes cluster and serves the cluster's API through that. Each key of "
        "the configuration can be set as AGENTK__SECTION__KEY; flags win over the environment, that over the file. "
        "SIGTERM drains.",
        example="agentk --kas-address wss://kas.example.com --token-file /etc/moorline/token",
        exit_on_error=False,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML or TOML; the documentation has all keys")
    for flag, (_, metavar, text) in _OVERRIDES.items():
        parser.add_argument(flag, dest=flag, metavar=metavar, help=text)
    for flag, (_, metavar, text) in _REPEATABLE.items():
        parser.add_argument(flag, dest=flag, metavar=metavar, help=text, action="append")
    parser.add_argument("--insecure-plaintext", action="store_true", help="allow ws:// and http://")
    parser.add_argument("--version", action=VersionAction)
    return parser


def _parse_flags(arguments: Sequence[str], problems: list[str]) -> tuple[Path | None, list[Override]]:
    parser = command_parser()
    try:
        given, unknown = parser.parse_known_args(arguments)
    except argparse.ArgumentError as exc:
        problems.append(f"{exc} (see agentk --help)")
        return None, []
    problems += [f"{parser.explain_stranger(argument)} (see agentk --help)" for argument in unknown]
    values = vars(given)
    overrides = [
        Override(path=path, value=values[flag], source=flag)
        for flag, (path, _, _) in (_OVERRIDES | _REPEATABLE).items()
        if values[flag] is not None
    ]
    if given.insecure_plaintext:
        overrides.append(Override(path="kas.insecure_plaintext", value=True, source="--insecure-plaintext"))
    return given.config, overrides
