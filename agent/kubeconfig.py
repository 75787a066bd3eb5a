"""Read a kubeconfig: which kube-apiserver, and with which credentials.

As much of the format as an agent needs, with client-go's rules: several files are merged and the first that sets a
value wins; paths inside a file are relative to it. Everything that is wrong is reported at once. Nothing is dialled or
run here (`agent.credentials` does that); what an agent must not do quietly (impersonation, legacy auth providers) is
refused with the reason.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from agent.address import ApiServerAddress, parse_server

EXEC_API_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class KubeconfigError(Exception):
    """A kubeconfig that cannot be used; ``problems`` lists everything that is wrong with it."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """PEM that is either written in the kubeconfig or in a file of its own (read again when it changes)."""

    data: bytes | None = dataclasses.field(default=None, repr=False)
    path: Path | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """How to reach the kube-apiserver, and how to know it."""

    address: ApiServerAddress
    authority: Blob | None = None
    """Certificates that are trusted; None: those of the system."""
    tls_server_name: str | None = None
    skip_tls_verify: bool = False
    proxy_url: str | None = None
    extension: Any = None
    """Given to exec plugins as ``spec.cluster.config``."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExecPlugin:
    """A program that prints credentials."""

    api_version: str
    command: str
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    install_hint: str = ""
    provide_cluster_info: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Who the agent is towards the kube-apiserver."""

    certificate: Blob | None = None
    key: Blob | None = None
    token: str | None = dataclasses.field(default=None, repr=False)
    token_path: Path | None = None
    basic: tuple[str, str] | None = dataclasses.field(default=None, repr=False)
    plugin: ExecPlugin | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KubeContext:
    """One context of a kubeconfig with everything it refers to."""

    name: str
    cluster: Cluster
    user: User


class _Section:
    """A mapping with a place in the file; what is wrong with a value goes to the common list of problems."""

    def __init__(self, value: Any, place: str, problems: list[str], folder: Path) -> None:
        if value is not None and not isinstance(value, dict):
            problems.append(f"{place}: a mapping is expected, found {type(value).__name__}")
        self.values: dict[Any, Any] = value if isinstance(value, dict) else {}
        self.place = place
        self.problems = problems
        self.folder = folder

    def complain(self, key: str, text: str) -> None:
        self.problems.append(f"{self.place}.{key}: {text}")

    def text(self, key: str) -> str:
        value = self.values.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            self.complain(key, f"a text is expected, found {type(value).__name__}")
            return ""
        return value

    def flag(self, key: str) -> bool:
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            self.complain(key, "true or false is expected")
            return False
        return value

    def sequence(self, key: str) -> list[Any]:
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            self.complain(key, f"a list is expected, found {type(value).__name__}")
            return []
        return value

    def section(self, key: str) -> _Section:
        return _Section(self.values.get(key), f"{self.place}.{key}", self.problems, self.folder)

    def path(self, key: str) -> Path | None:
        value = self.text(key)
        return self.folder / value if value else None

    def blob(self, key: str) -> Blob | None:
        """``<key>-data`` (base64), which wins, or ``<key>`` (a path)."""
        encoded = self.text(f"{key}-data")
        if encoded:
            try:
                return Blob(data=base64.b64decode("".join(encoded.split()), validate=True))
            except (binascii.Error, ValueError):
                self.complain(f"{key}-data", "it is not base64")
                return None
        path = self.path(key)
        if path is None:
            return None
        if not path.is_file():
            self.complain(key, f"there is no file {path}")
        return Blob(path=path)


def load_kubeconfig(paths: Sequence[Path], *, context: str = "") -> KubeContext:
    """The context of this name (else ``current-context``) from one or more files.

    Missing files are skipped where there are several, as for ``$KUBECONFIG``. Raises `KubeconfigError`.
    """
    problems: list[str] = []
    files = [section for path in paths if (section := _read(path, problems, optional=len(paths) > 1)) is not None]
    if not files and not problems:
        problems.append(f"none of these files exists: {', '.join(map(str, paths))}")
    if problems:
        raise KubeconfigError(problems)
    name = context or next((text for file in files if (text := file.text("current-context"))), "")
    found = _find_context(files, name, problems)
    if found is None or problems:
        raise KubeconfigError(problems)
    return found


def names_context(paths: Sequence[Path]) -> bool:
    """Whether one of these files has a ``current-context``. Raises `KubeconfigError` as `load_kubeconfig` does."""
    problems: list[str] = []
    files = [section for path in paths if (section := _read(path, problems, optional=len(paths) > 1)) is not None]
    found = any(file.text("current-context") for file in files)
    if problems:
        raise KubeconfigError(problems)
    return found


def _read(path: Path, problems: list[str], *, optional: bool) -> _Section | None:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        if not optional:
            problems.append(f"{path}: there is no such file")
        return None
    except OSError as exc:
        problems.append(f"{path}: cannot be read: {exc.strerror}")
        return None
    try:
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader, in C where there is one
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark is not None else ""
        problems.append(f"{path}: it is not YAML{where}")
        return None
    return _Section(document, str(path), problems, path.absolute().parent)


def _find_context(files: list[_Section], name: str, problems: list[str]) -> KubeContext | None:
    if not name:
        problems.append("no context is chosen: there is no current-context, so name one with --context")
        return None
    entry = _find_entry(files, "contexts", "context", name)
    if entry is None:
        names = ", ".join(sorted(_names(files, "contexts"))) or "none"
        problems.append(f"there is no context {name!r}; the contexts are: {names}")
        return None
    cluster_name, user_name = entry.text("cluster"), entry.text("user")
    cluster = user = None
    cluster_entry = _find_entry(files, "clusters", "cluster", cluster_name)
    if cluster_entry is None:
        problems.append(f"{entry.place}.cluster: there is no cluster {cluster_name!r}")
    else:
        cluster = _parse_cluster(cluster_entry)
    user_entry = _find_entry(files, "users", "user", user_name) if user_name else None
    if user_entry is not None:
        user = _parse_user(user_entry)
    elif user_name:
        problems.append(f"{entry.place}.user: there is no user {user_name!r}")
    else:
        user = User()
    if cluster is None or user is None:
        return None
    return KubeContext(name=name, cluster=cluster, user=user)


def _names(files: list[_Section], kind: str) -> set[str]:
    return {
        str(item["name"]) for file in files for item in file.sequence(kind) if isinstance(item, dict) and "name" in item
    }


def _find_entry(files: list[_Section], kind: str, key: str, name: str) -> _Section | None:
    for file in files:
        for item in file.sequence(kind):
            if isinstance(item, dict) and item.get("name") == name:
                return _Section(item.get(key), f"{file.place}: {kind}[{name}].{key}", file.problems, file.folder)
    return None


def _parse_cluster(section: _Section) -> Cluster | None:
    address: ApiServerAddress | None = None
    server = section.text("server")
    if not server:
        section.complain("server", "it is missing")
    else:
        try:
            address = parse_server(server)
        except ValueError as exc:
            section.complain("server", f"{server!r}: {exc}")
    authority = section.blob("certificate-authority")
    skip = section.flag("insecure-skip-tls-verify")
    if skip and authority is not None:
        section.complain("insecure-skip-tls-verify", "it contradicts certificate-authority")
    proxy_url = section.text("proxy-url") or None
    if proxy_url is not None and not proxy_url.startswith(("http://", "https://")):
        section.complain("proxy-url", "only http:// and https:// proxies are supported")
    extension = next(
        (
            item.get("extension")
            for item in section.sequence("extensions")
            if isinstance(item, dict) and item.get("name") == "client.authentication.k8s.io/exec"
        ),
        None,
    )
    if address is None:
        return None
    return Cluster(
        address=address,
        authority=authority,
        tls_server_name=section.text("tls-server-name") or None,
        skip_tls_verify=skip,
        proxy_url=proxy_url,
        extension=extension,
    )


def _parse_user(section: _Section) -> User:
    for name in ("as", "as-uid", "as-groups", "as-user-extra"):
        if section.values.get(name):
            section.complain(
                name,
                "impersonation in the kubeconfig is not supported: the agent impersonates the caller of each request. "
                "Give the agent credentials of its own",
            )
    if section.values.get("auth-provider"):
        section.complain("auth-provider", "Kubernetes removed auth providers in 1.26; use an exec plugin")
    certificate, key = section.blob("client-certificate"), section.blob("client-key")
    if (certificate is None) != (key is None):
        section.complain("client-certificate", "client-certificate and client-key belong together")
    username, password = section.text("username"), section.text("password")
    token, token_path = section.text("token") or None, section.path("tokenFile")
    if token_path is not None and not token_path.is_file():
        section.complain("tokenFile", f"there is no file {token_path}")
    plugin = _parse_plugin(section.section("exec")) if section.values.get("exec") else None
    if plugin is not None and (token or token_path or username):
        section.complain("exec", "it cannot be combined with token, tokenFile or username")
    if username and (token or token_path):
        section.complain("username", "it cannot be combined with token or tokenFile")
    return User(
        certificate=certificate,
        key=key,
        token=token,
        token_path=token_path,
        basic=(username, password) if username else None,
        plugin=plugin,
    )


def _parse_plugin(section: _Section) -> ExecPlugin:
    api_version, command = section.text("apiVersion"), section.text("command")
    if api_version not in EXEC_API_VERSIONS:
        section.complain("apiVersion", f"{api_version!r} is not one of {', '.join(EXEC_API_VERSIONS)}")
    if not command:
        section.complain("command", "it is missing")
    elif "/" in command:
        # As for kubectl: a command with a slash is relative to the kubeconfig, one without is looked up in $PATH.
        command = str(section.folder / command)
    mode = section.text("interactiveMode")
    if mode == "Always":
        section.complain("interactiveMode", "the plugin wants a terminal, and an agent has none")
    elif mode not in ("", "Never", "IfAvailable"):
        section.complain("interactiveMode", f"{mode!r} is not one of Never, IfAvailable, Always")
    elif not mode and api_version == EXEC_API_VERSIONS[0]:
        section.complain("interactiveMode", "it is required with apiVersion v1")
    arguments = section.sequence("args")
    if not all(isinstance(argument, str) for argument in arguments):
        section.complain("args", "all arguments must be texts")
        arguments = []
    environment: list[tuple[str, str]] = []
    for index, item in enumerate(section.sequence("env")):
        variable = _Section(item, f"{section.place}.env[{index}]", section.problems, section.folder)
        environment.append((variable.text("name"), variable.text("value")))
        if not environment[-1][0]:
            variable.complain("name", "it is missing")
    return ExecPlugin(
        api_version=api_version,
        command=command,
        arguments=tuple(arguments),
        environment=tuple(environment),
        install_hint=section.text("installHint"),
        provide_cluster_info=section.flag("provideClusterInfo"),
    )
