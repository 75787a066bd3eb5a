"""The folder of `moorline up`: certificates, tokens and the access file; made where missing, and kept where not.

    ca.pem, kas.pem, kas-key.pem    see `moorline.certificates`
    agent-token, user-token         one token each, readable by their owner only
    access.yaml                     agents and users of kas; more may be added to it
    kubeconfig                      written at every start, since the port may be another one

Blocks on files; call it before the loop runs.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from moorline.certificates import CertificateFiles, ensure_certificates, write_private
from operations.configuration import ConfigurationError
from server.access_file import AccessFile, load_access_file
from server.tokens import AGENT_PREFIX, USER_PREFIX, digest, is_well_formed, new_token

AGENT_ID = "local"
USER = "owner"
TOKEN_NAME = "up"
NAMES = ["127.0.0.1", "::1", "localhost", "*.k8s.localhost"]
"""What the certificate is for; the address that kas listens on is added."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """What is in the folder, ready to be used."""

    certificates: CertificateFiles
    access_file: Path
    agent_token_file: Path
    user_token: str = dataclasses.field(repr=False)
    kubeconfig: Path


def prepare_folder(directory: Path, host: str) -> Folder:
    """Make the folder, and whatever in it is missing or no longer good.

    Raises `OSError` where it cannot be written, and `ConfigurationError` where an access file is there that cannot be
    used: it may have been edited by hand, so it is never overwritten.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    names = NAMES if host in NAMES or not host else [*NAMES, host]
    agent_token_file = directory / "agent-token"
    agent_token = _token(agent_token_file, AGENT_PREFIX)
    user_token = _token(directory / "user-token", USER_PREFIX)
    access_file = directory / "access.yaml"
    _ensure_access_file(access_file, agent_token, user_token)
    return Folder(
        certificates=ensure_certificates(directory, names),
        access_file=access_file,
        agent_token_file=agent_token_file,
        user_token=user_token,
        kubeconfig=directory / "kubeconfig",
    )


def _token(path: Path, prefix: str) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        token = ""
    if not is_well_formed(token, prefix):
        token = new_token(prefix)
        write_private(path, f"{token}\n".encode())
    return token


def _ensure_access_file(path: Path, agent_token: str, user_token: str) -> None:
    if not path.exists():
        write_private(path, _access_file(digest(agent_token), digest(user_token)).encode())
        return
    if not _knows(load_access_file(path), digest(agent_token), digest(user_token)):
        problem = (
            f"{path}: does not know the tokens in {path.parent}/agent-token and {path.parent}/user-token for agent "
            f"{AGENT_ID} and user {USER}; remove the file to have it made anew, or name another folder"
        )
        raise ConfigurationError([problem])


def _knows(access: AccessFile, agent_digest: str, user_digest: str) -> bool:
    agents = {token.sha256 for agent in access.agents if agent.id == AGENT_ID for token in agent.tokens}
    users = {token.sha256 for user in access.users if user.name == USER for token in user.tokens}
    return agent_digest in agents and user_digest in users


def _access_file(agent_digest: str, user_digest: str) -> str:
    """Agent and user; the user acts with the rights of the kubeconfig, `--as` included where these allow it."""
    return f"""\
agents:
- id: {AGENT_ID}
  tokens:
  - name: {TOKEN_NAME}
    sha256: {agent_digest}
users:
- name: {USER}
  tokens:
  - name: {TOKEN_NAME}
    sha256: {user_digest}
  agents:
  - agent: {AGENT_ID}
    mode: agent
    via_cluster: true
"""
