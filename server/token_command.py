"""`kas token create|list|revoke`: tokens of agents and users in the access file, so that nobody edits hashes by hand.

The file is replaced in one step and keeps its mode; a lock file beside it keeps two commands from losing each other's
change. Comments stay (`access_editing`). A token is shown once, on stdout and nothing else there; what else there is to
say goes to stderr. The functions are used by `moorline` as well.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from operations.configuration import (
    ConfigurationError,
    exit_with_configuration_error,
    load_configuration,
    parse_mapping,
    structure,
)
from operations.exit_codes import FAILURE, OK
from operations.values import InvalidValue, parse_moment, parse_seconds
from server.access_editing import EMPTY_FILE, append, remove
from server.access_file import AccessFile, AgentRecord, TokenRecord, UserRecord
from server.config import ENVIRONMENT_PREFIX, KasConfig
from server.tokens import AGENT_PREFIX, USER_PREFIX, digest, new_token
from tunnel.identity import Mode, Role

Section = Literal["agents", "users"]
_NAME_KEYS: dict[Section, str] = {"agents": "id", "users": "name"}
_NEW_FILE_MODE = 0o600


def mint_user_token(path: Path, user: str, *, name: str = "default", expires: datetime.datetime | None = None) -> str:
    """Add a token to a user, who is added where the file does not know them; returns the token.

    Raises `ConfigurationError` where the file is not sound before or after (a token of that name is there already),
    `OSError` where it cannot be written. Blocks on file I/O.
    """
    return _mint(path, "users", user, USER_PREFIX, name, expires)


def mint_agent_token(
    path: Path, agent_id: str, *, name: str = "default", expires: datetime.datetime | None = None
) -> str:
    """Add a token to an agent, which is added where the file does not know it; returns the token. As above."""
    return _mint(path, "agents", agent_id, AGENT_PREFIX, name, expires)


def grant(
    path: Path,
    user: str,
    agent: str,
    *,
    mode: Mode = "impersonate",
    role: Role = "full",
    groups: Sequence[str] = (),
) -> bool:
    """Let a user use an agent; returns False, and changes nothing, where a grant for this agent or pattern is there.

    The user is added where the file does not know them. The grant goes behind the others, so it takes nothing away from
    anybody. Raises as `mint_user_token` does.
    """
    record: dict[str, Any] = {"agent": agent}
    if mode != "impersonate":
        record["mode"] = mode
    if role != "full":
        record["role"] = role
    if groups:
        record["as"] = {"groups": list(groups)}
    with _locked(path):
        text, file = _read(path)
        found = _position(file, "users", user)
        if found is None:
            text = append(text, ("users",), {"name": user, "agents": [record]}).text
        elif any(existing.agent == agent for existing in file.users[found].agents):
            return False
        else:
            text = _tell(append(text, ("users", found, "agents"), record), path)
        _write(path, text)
    return True


def revoke(path: Path, section: Section, owner: str, name: str) -> bool:
    """Take a token out; returns False where there is none of that name. What runs under it ends within two seconds."""
    with _locked(path):
        text, file = _read(path)
        found = _position(file, section, owner)
        if found is None:
            return False
        names = [token.name for token in _records(file, section)[found].tokens]
        if name not in names:
            return False
        _write(path, _tell(remove(text, (section, found, "tokens", names.index(name))), path))
    return True


def tokens(path: Path) -> Iterator[tuple[Section, str, TokenRecord]]:
    """Every token of the file, with its owner."""
    _, file = _read(path)
    sections: tuple[Section, ...] = ("agents", "users")
    for section in sections:
        for record in _records(file, section):
            owner = record.id if isinstance(record, AgentRecord) else record.name
            for token in record.tokens:
                yield section, owner, token


def _mint(path: Path, section: Section, owner: str, prefix: str, name: str, expires: datetime.datetime | None) -> str:
    token = new_token(prefix)
    record: dict[str, Any] = {"name": name, "sha256": digest(token)}
    if expires is not None:
        record["expires"] = expires.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    with _locked(path):
        text, file = _read(path)
        found = _position(file, section, owner)
        if found is None:
            edited = append(text, (section,), {_NAME_KEYS[section]: owner, "tokens": [record]})
        else:
            edited = append(text, (section, found, "tokens"), record)
        _write(path, _tell(edited, path))
    return token


def _records(file: AccessFile, section: Section) -> Sequence[AgentRecord | UserRecord]:
    return file.agents if section == "agents" else file.users


def _position(file: AccessFile, section: Section, owner: str) -> int | None:
    for index, record in enumerate(_records(file, section)):
        if (record.id if isinstance(record, AgentRecord) else record.name) == owner:
            return index
    return None


def _tell(edited: Any, path: Path) -> str:
    if not edited.layout_kept:
        print(f"{path}: written anew; its comments were lost", file=sys.stderr)  # noqa: T201
    text: str = edited.text
    return text


def _read(path: Path) -> tuple[str, AccessFile]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return EMPTY_FILE, AccessFile()
    if not any(line.strip() and not line.lstrip().startswith(b"#") for line in content.splitlines()):
        return content.decode(), AccessFile()
    return content.decode(), _checked(content, path)


def _checked(content: bytes, path: Path) -> AccessFile:
    return structure(AccessFile, parse_mapping(content, str(path)), source=str(path))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    target = path.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(
        target.with_name(f".{target.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _NEW_FILE_MODE
    )
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, text: str) -> None:
    """Replace the file in one step, once what is to be written has been found sound."""
    content = text.encode()
    _checked(content, path)
    target = path.resolve()
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            _keep_mode_and_owner(target, file.fileno())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _keep_mode_and_owner(target: Path, descriptor: int) -> None:
    try:
        found = target.stat()
    except FileNotFoundError:
        os.fchmod(descriptor, _NEW_FILE_MODE)
        return
    os.fchmod(descriptor, found.st_mode & 0o7777)
    with contextlib.suppress(PermissionError):
        os.fchown(descriptor, found.st_uid, found.st_gid)


def add_token_command(commands: Any) -> None:
    """Add ``token`` to the subcommands of ``kas``; run what was parsed with `run_token_command`."""
    parser = commands.add_parser(
        "token",
        help="make, list and revoke tokens of agents and users",
        description="Edit the tokens in the access file, which holds their hashes only. kas takes changes over by itself.",
        example="kas token list --access-file /etc/moorline/access.yaml",
    )
    actions = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="token_action")
    create = actions.add_parser(
        "create",
        help="make a token, add its hash to the access file, show it once",
        description="Make a token, add its hash to the access file, and show the token on stdout: once, and nowhere else.",
        usage="%(prog)s (--agent ID | --user NAME) [options]",
        example="kas token create --agent prod\nkas token create --user alice --grant prod --role read-only",
    )
    create.set_defaults(token_command=_create)
    _add_files(create)
    _add_owner(create, required=True)
    create.add_argument(
        "--name", metavar="NAME", default="default", help="by which the token is listed and revoked (default: default)"
    )
    create.add_argument("--expires", metavar="90d", help="how long it works, or a date; default: until it is revoked")
    create.add_argument("--grant", metavar="ID", action="append", default=[], help="let the user use this agent, too")
    create.add_argument("--role", choices=("full", "read-only"), default="full", help="of what --grant gives")
    create.add_argument("--mode", choices=("impersonate", "agent"), default="impersonate", help="of what --grant gives")
    create.add_argument(
        "--group", metavar="NAME", action="append", default=[], help="group in what --grant gives, mode impersonate"
    )
    show = actions.add_parser(
        "list",
        help="list tokens: owner, name, start of the hash, expiry",
        description="List tokens: owner, name, start of the hash, expiry.",
        example="kas token list --user alice",
    )
    show.set_defaults(token_command=_list)
    _add_files(show)
    _add_owner(show, required=False)
    end = actions.add_parser(
        "revoke",
        help="take a token out; what runs under it ends within two seconds",
        description="Take a token out of the access file; what runs under it ends within two seconds.",
        example="kas token revoke --user alice --name laptop",
    )
    end.set_defaults(token_command=_revoke)
    _add_files(end)
    _add_owner(end, required=True)
    end.add_argument("--name", metavar="NAME", default="default", help="the token's name (default: default)")


def run_token_command(options: argparse.Namespace) -> int:
    """Run what `add_token_command` made of the command line; returns the exit status."""
    try:
        status: int = options.token_command(_access_file(options), options)
    except ConfigurationError as error:
        exit_with_configuration_error("kas token", error)
    except OSError as error:
        return _fail(f"{error.filename or 'the access file'}: {error.strerror or error}")
    return status


def _add_files(parser: argparse.ArgumentParser) -> None:
    # Suppressed, because a subcommand's default would take the place of what stood before the subcommand.
    missing = argparse.SUPPRESS
    parser.add_argument("--access-file", metavar="FILE", default=missing, help="the access file")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        default=missing,
        help="the configuration of kas, which names the access file",
    )


def _add_owner(parser: argparse.ArgumentParser, *, required: bool) -> None:
    owners = parser.add_mutually_exclusive_group(required=required)
    owners.add_argument("--user", metavar="NAME", help="the user to whom the token belongs")
    owners.add_argument("--agent", metavar="ID", help="the agent to which the token belongs")


def _access_file(options: argparse.Namespace) -> Path:
    named = getattr(options, "access_file", None)
    if named is not None:
        return Path(named)
    config = getattr(options, "config", None)
    return load_configuration(KasConfig, config, environment=os.environ, prefix=ENVIRONMENT_PREFIX).access.file


def _create(path: Path, options: argparse.Namespace) -> int:
    if options.agent is not None and options.grant:
        return _fail("--grant is for users; an agent's token opens tunnels only")
    expires = _expiry(options.expires)
    if options.agent is not None:
        token = mint_agent_token(path, options.agent, name=options.name, expires=expires)
    else:
        for agent in options.grant:
            grant(path, options.user, agent, mode=options.mode, role=options.role, groups=options.group)
        token = mint_user_token(path, options.user, name=options.name, expires=expires)
    print(token)  # noqa: T201 - the answer
    return OK


def _expiry(text: str | None) -> datetime.datetime | None:
    if text is None:
        return None
    now = datetime.datetime.now(datetime.UTC)
    try:
        moment = now + datetime.timedelta(seconds=parse_seconds(text))
    except (InvalidValue, OverflowError):
        try:
            moment = parse_moment(text)
        except InvalidValue as error:
            raise ConfigurationError([f"--expires: expected a duration such as 90d, or {error}"]) from None
    if moment <= now:
        raise ConfigurationError([f"--expires: {text} is not in the future"])
    return moment


def _list(path: Path, options: argparse.Namespace) -> int:
    wanted = _owner(options)
    rows = [
        ("agent" if section == "agents" else "user", owner, token.name, token.sha256[:12], _expiry_shown(token))
        for section, owner, token in tokens(path)
        if wanted is None or wanted == (section, owner)
    ]
    header = ("KIND", "OWNER", "NAME", "SHA256", "EXPIRES")
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, *rows]:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())  # noqa: T201 - the answer
    return OK


def _owner(options: argparse.Namespace) -> tuple[Section, str] | None:
    if options.agent is not None:
        return "agents", options.agent
    return ("users", options.user) if options.user is not None else None


def _expiry_shown(token: TokenRecord) -> str:
    if token.expires is None:
        return "never"
    moment = token.expires.astimezone(datetime.UTC)
    expired = " (expired)" if moment <= datetime.datetime.now(datetime.UTC) else ""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ") + expired


def _revoke(path: Path, options: argparse.Namespace) -> int:
    wanted = _owner(options)
    assert wanted is not None
    section, owner = wanted
    if not revoke(path, section, owner, options.name):
        return _fail(
            f"{path}: {section[:-1]} {owner} has no token {options.name}; `kas token list` shows what there is"
        )
    print(f"revoked: {section[:-1]} {owner}, token {options.name}", file=sys.stderr)  # noqa: T201
    return OK


def _fail(message: str) -> int:
    print(f"kas token: {message}", file=sys.stderr)  # noqa: T201
    return FAILURE
