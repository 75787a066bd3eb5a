"""`moorline kubeconfig`: a token for a user, its hash in the access file, and the kubeconfig that uses it.

kas reads the access file again by itself, so the kubeconfig works within two seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from moorline.certificates import write_private
from moorline.kubeconfig import address_of, render_kubeconfig
from operations.configuration import ConfigurationError, exit_with_configuration_error
from operations.exit_codes import FAILURE, OK
from server.access_file import AccessFile, load_access_file
from server.token_command import grant, mint_user_token, revoke
from tunnel.identity import Mode, Role

PROGRAM = "moorline kubeconfig"

_PEM = b"-----BEGIN CERTIFICATE-----"
_UNKNOWN_TOKEN = "token"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What was asked for on the command line."""

    agent_id: str
    user: str
    server: str
    access_file: Path
    ca_file: Path | None = None
    output: Path | None = None
    token_name: str = ""
    mode: Mode = "impersonate"
    role: Role = "full"
    groups: Sequence[str] = ()


def run_kubeconfig(options: argparse.Namespace) -> int:
    """Carry out the command; the exit status."""
    wanted = Wanted(
        agent_id=options.agent,
        user=options.user,
        server=options.server,
        access_file=options.access_file,
        ca_file=options.ca_file,
        output=options.output,
        token_name=options.token_name,
        mode=options.mode,
        role=options.role,
        groups=options.group,
    )
    try:
        make_kubeconfig(wanted)
    except ConfigurationError as exc:
        exit_with_configuration_error(PROGRAM, exc)
    except OSError as exc:
        print(f"{PROGRAM}: {exc.filename or wanted.access_file}: {exc.strerror or exc}", file=sys.stderr)
        return FAILURE
    return OK


def make_kubeconfig(wanted: Wanted) -> None:
    """Make the token, the grant where the user has none, and write the kubeconfig.

    Raises `ConfigurationError` with every problem before anything is changed, and `OSError` where a file cannot be
    written; then the token is taken out again.
    """
    authority, name = _check(wanted)
    if grant_is_new(wanted):
        grant(
            wanted.access_file,
            wanted.user,
            wanted.agent_id,
            mode=wanted.mode,
            role=wanted.role,
            groups=wanted.groups,
        )
    token = mint_user_token(wanted.access_file, wanted.user, name=name)
    try:
        address = address_of(wanted.agent_id, token, wanted.server)
        _write(wanted, render_kubeconfig(name=wanted.agent_id, user=wanted.user, address=address, authority=authority))
    except BaseException:
        revoke(wanted.access_file, "users", wanted.user, name)
        raise
    where = wanted.output or "the kubeconfig above"
    print(f"token {name} of user {wanted.user} is in {where} and nowhere else; to take it back:", file=sys.stderr)
    print(f"  kas token revoke --access-file {wanted.access_file} --user {wanted.user} --name {name}", file=sys.stderr)


def _check(wanted: Wanted) -> tuple[bytes | None, str]:
    """The certificates to trust and the name of the token. Raises `ConfigurationError` with all problems."""
    problems: list[str] = []
    try:
        address_of(wanted.agent_id, _UNKNOWN_TOKEN, wanted.server)
    except ValueError as exc:
        problems.append(f"--server: {exc}")
    authority: bytes | None = None
    if wanted.ca_file is not None:
        try:
            authority = wanted.ca_file.read_bytes()
        except OSError as exc:
            problems.append(f"--ca-file: {wanted.ca_file}: {exc.strerror}")
        else:
            if _PEM not in authority:
                problems.append(f"--ca-file: {wanted.ca_file}: holds no certificate in PEM")
    if wanted.output is not None and not wanted.output.parent.is_dir():
        problems.append(f"--output: {wanted.output.parent} is not a folder")
    name = wanted.token_name
    try:
        access = load_access_file(wanted.access_file)
    except ConfigurationError as exc:
        problems += exc.problems
    except OSError as exc:
        problems.append(f"--access-file: {wanted.access_file}: {exc.strerror}")
    else:
        known = [agent.id for agent in access.agents]
        if wanted.agent_id not in known:
            problems.append(
                f"--agent: {wanted.agent_id} is not in {wanted.access_file}; known: {', '.join(known) or 'none'}"
            )
        name = name or _free_name(access, wanted.user)
        if name in _token_names(access, wanted.user):
            problems.append(f"--token-name: user {wanted.user} has a token {name} already")
    if problems:
        raise ConfigurationError(problems)
    return authority, name


def grant_is_new(wanted: Wanted) -> bool:
    """Whether the user may not use the agent yet; a grant that is there stays as it is."""
    access = load_access_file(wanted.access_file)
    return not any(
        given.matches(wanted.agent_id) for user in access.users if user.name == wanted.user for given in user.agents
    )


def _token_names(access: AccessFile, user_name: str) -> set[str]:
    return {token.name for user in access.users if user.name == user_name for token in user.tokens}


def _free_name(access: AccessFile, user_name: str) -> str:
    taken = _token_names(access, user_name)
    number = 1
    while f"kubeconfig-{number}" in taken:
        number += 1
    return f"kubeconfig-{number}"


def _write(wanted: Wanted, text: str) -> None:
    if wanted.output is None:
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_private(wanted.output, text.encode())
