"""The pages in `docs/` say what the code does: generated ones are up to date, examples work, and names exist."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.pages import Block, Machine, blocks_of

import server.config
from agent.config import AgentConfig
from operations.configuration import environment_overrides, structure
from server.access_file import AccessFile
from server.config import KasConfig
from tunnel.h2.config import TUNNEL_REQUESTER, TUNNEL_RESPONDER
from tunnel.h2.engine import Engine, Role
from tunnel.handshake import Form, Welcome, decode_hello, decode_welcome
from tunnel.heads import request_fields
from tunnel.http1.heads import parse_response_head
from tunnel.http1.limits import DEFAULT_LIMITS
from tunnel.identity import FIELD_NAME, Identity, decode_identity, encode_identity
from tunnel.messages import RequestHead

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
PACKAGES = "tunnel|agent|server|bff|moorline|operations"


ALICE = Identity(mode="impersonate", user="alice", groups=("dev",), request_id="7c1f")


def page(name: str) -> str:
    return (DOCS / name).read_text()


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("generator", ["generate_configuration.py", "generate_commands.py"])
def test_a_page_that_is_generated_is_what_the_code_says(generator: str) -> None:
    program = [sys.executable, "-P", str(DOCS / generator), "--check"]
    run = subprocess.run(program, capture_output=True, text=True, timeout=60)

    assert run.returncode == 0, run.stderr


def flattened(section: dict[str, Any], name: str) -> Iterator[str]:
    """The variables of all keys in a configuration."""
    for key, value in section.items():
        variable = f"{name}__{key.upper()}"
        if isinstance(value, dict):
            yield from flattened(value, variable)
        else:
            yield variable


def documented_variables() -> dict[str, str]:
    """Each variable of the configuration page, with the default in its row; "" where there is none."""
    found: dict[str, str] = {}
    beginning = ""
    for line in page("configuration.md").splitlines():
        if match := re.fullmatch(r"Environment: `(\w+__)…`", line):
            beginning = match[1]
        elif line.startswith("#"):
            beginning = ""
        elif beginning and (row := re.match(r"\| `(\w+)` \| .*? \| (?:`([^`]*)`)?(?:required)? \|", line)):
            found[beginning + row[1].upper()] = row[2] or ""
    return found


def test_every_variable_of_the_configuration_page_is_read_and_has_its_default() -> None:
    variables = documented_variables()
    with_default = {name: value for name, value in variables.items() if value}
    enough = {"kas": {"address": "wss://kas.example.com"}}

    example = yaml.safe_load(Path(server.config.__file__).with_name("kas.example.yaml").read_text())
    assert set(flattened(example, "KAS")) <= set(variables)
    assert len(with_default) > 40
    kas = structure(KasConfig, {}, overrides=environment_overrides(with_default, "KAS"))
    agentk = structure(AgentConfig, enough, overrides=environment_overrides(with_default, "AGENTK"))
    assert (kas, agentk) == (structure(KasConfig, {}), structure(AgentConfig, enough))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_module_that_a_page_names_exists(path: Path) -> None:
    missing = []
    subprotocol = {"moorline.v1"}
    for name in set(re.findall(rf"`((?:{PACKAGES})(?:\.\w+)+)`", path.read_text())) - subprotocol:
        parts = name.split(".")
        module = next(
            (".".join(parts[:length]) for length in range(len(parts), 0, -1) if _exists(".".join(parts[:length]))),
            None,
        )
        rest = parts[len((module or "").split(".")) :]
        target: object = importlib.import_module(module) if module and "." in module else None
        for attribute in rest:
            target = getattr(target, attribute, None)
        if target is None:
            missing.append(name)

    assert sorted(missing) == []


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_file_that_a_page_names_exists(path: Path) -> None:
    named = re.findall(r"`((?:docs|tests|deploy|\.ci)/[\w./-]+)`", path.read_text())

    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", [path for path in PAGES if DOCS not in path.parents], ids=lambda path: path.name)
def test_a_link_of_a_page_outside_of_the_site_leads_to_a_file(path: Path) -> None:
    linked = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text())

    assert [name for name in linked if not (ROOT / name).exists()] == []


def test_every_decision_is_in_their_index_by_its_title() -> None:
    titles = {
        path.name: path.read_text().splitlines()[0].partition(". ")[2] for path in sorted(DOCS.glob("adr/[0-9]*.md"))
    }
    listed = re.findall(r"^\| \[(\d{4})\]\(([\w.-]+)\) \| (.+) \|$", page("adr/index.md"), re.MULTILINE)

    assert {name: title for _, name, title in listed} == titles
    assert [int(number) for number, _, _ in listed] == list(range(1, len(titles) + 1))
    assert all(name.startswith(number) for number, name, _ in listed)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_page_has_a_place_that_waits_to_be_filled(path: Path) -> None:
    assert re.findall(r"@@\w+@@|TODO|FIXME|XXX", path.read_text()) == []


def test_the_example_of_an_identity_block_is_one() -> None:
    (value,) = re.findall(r"^moorline-identity: (\S+)$", page("protocol.md"), re.MULTILINE)

    assert decode_identity([(FIELD_NAME, value.encode())]) == ALICE


def test_the_examples_of_a_handshake_are_understood() -> None:
    upgrade, websocket, welcome = (
        block.replace("\n", "\r\n").encode().removesuffix(b"\r\n") for block in blocks(page("protocol.md"), "http")
    )
    hello = decode_hello(upgrade)
    head, _ = parse_response_head(welcome, b"GET", limits=DEFAULT_LIMITS)

    assert (hello.form, hello.hello.replica) == (Form.UPGRADE, "agentk-7c9d4b5f6-x2x8q")
    assert decode_hello(websocket).form is Form.WEBSOCKET
    assert decode_hello(websocket).hello.replaces == "4be1c02a77d3e9f0"
    assert decode_welcome(head, hello=hello.hello, form=hello.form, address="kas") == Welcome(
        kas_id="kas-0", tunnel_id="4be1c02a77d3e9f0", agent_id="production", version=1
    )


def hex_block(name: str) -> bytes:
    """The bytes of a dump: pairs of hexadecimal digits up to the explanation, which is set off by two spaces."""
    (dump,) = blocks(page("protocol.md"), f'text title="{name}"')
    return bytes.fromhex("".join(re.split(r"  +(?=\S)", line.strip())[0] for line in dump.splitlines()))


def test_the_dumps_are_what_both_ends_send() -> None:
    kas, agent = Engine(Role.REQUESTER, TUNNEL_REQUESTER), Engine(Role.RESPONDER, TUNNEL_RESPONDER)
    for engine in (kas, agent):
        engine.start()
    from_kas, from_agent = b"".join(kas.gather()), b"".join(agent.gather())
    kas.receive(from_agent, 0.0)
    agent.receive(from_kas, 0.0)
    acknowledgements = {b"".join(kas.gather()), b"".join(agent.gather())}
    fields = [(b"accept", b"application/json"), (FIELD_NAME, encode_identity(ALICE))]
    kas.open_stream(request_fields(RequestHead(b"GET", b"/version", b"kubernetes", fields, ended=True)), ended=True)

    assert from_kas == hex_block("kas")
    assert from_agent == hex_block("agent")
    assert acknowledgements == {hex_block("acknowledgement")}
    assert b"".join(kas.gather()) == hex_block("request")


def test_the_examples_of_configuration_files_are_sound() -> None:
    shown = {block.title: yaml.safe_load(block.text) for block in blocks_of(DOCS / "install.md") if block.title}
    access = yaml.safe_load(blocks(page("access.md"), "yaml")[0])

    assert structure(KasConfig, shown["/etc/moorline/kas.yaml"]).proxy.address.port == 8154
    assert structure(AgentConfig, shown["/etc/moorline/agentk.yaml"]).kas.address == "wss://kas.example.com:8150"
    assert [user.name for user in structure(AccessFile, access).users] == ["alice", "dashboard"]


# -- commands


COMMAND_PAGES = ["install.md", "access.md", "operations.md", "troubleshooting.md"]
"""The pages whose commands run here, and with a cluster in `e2e/test_manifests.py`."""

ELSEWHERE = {"On one machine"}
"""Sections whose commands have a test of their own."""


def commands(name: str) -> list[Block]:
    return [block for block in blocks_of(DOCS / name) if block.language == "sh" and block.heading not in ELSEWHERE]


@pytest.mark.parametrize("name", COMMAND_PAGES)
def test_a_block_of_commands_that_does_not_run_says_why(name: str) -> None:
    for block in commands(name):
        assert block.mark != "not run" or len(block.mark_text) > 20, block
        assert block.mark != "background" or block.mark_text, block
        assert ("kubectl" in block.text) <= (block.mark in {"with a cluster", "not run"}), block


def machine(folder: Path) -> Machine:
    """A machine on which the programs are installed."""
    made = Machine(
        folder,
        {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            # The addresses of the pages belong to the machine that this runs on.
            **{f"KAS__{name}__ADDRESS": "127.0.0.1:0" for name in ("AGENTS", "PROXY", "OPERATIONS")},
            "KAS__ACCESS__FILE": str(made_access_file(folder)),
        },
    )
    made.place("/etc/moorline").mkdir(parents=True)
    return made


def made_access_file(folder: Path) -> Path:
    return folder / "etc" / "moorline" / "access.yaml"


def test_the_commands_of_the_installation_page_run_as_written(tmp_path: Path) -> None:
    here = machine(tmp_path)
    said: dict[str, str] = {}
    with contextlib.ExitStack() as background:
        for block in blocks_of(DOCS / "install.md"):
            if block.title:
                here.write(block)
        for block in commands("install.md"):
            if block.mark == "background":
                said[block.heading] = background.enter_context(here.running(block))
            elif not block.mark:
                here.run(block)
            if "moorline kubeconfig" in block.text:
                access = yaml.safe_load(made_access_file(tmp_path).read_text())
                assert [user["name"] for user in access["users"]] == ["alice"]
                assert [token["name"] for user in access["users"] for token in user["tokens"]] == ["laptop"]

    kubeconfig = yaml.safe_load((tmp_path / "alice.kubeconfig").read_text())
    access = yaml.safe_load(made_access_file(tmp_path).read_text())
    assert (tmp_path / "agent-token").read_text().startswith("mla_")
    assert [(tmp_path / name).stat().st_mode & 0o077 for name in ("agent-token", "alice.kubeconfig")] == [0, 0]
    assert kubeconfig["clusters"][0]["cluster"]["server"].startswith("https://kas.example.com")
    assert list(said) == ["kas"]
    assert [token for user in access["users"] for token in user["tokens"]] == []


@pytest.mark.parametrize("name", [name for name in COMMAND_PAGES if name != "install.md"])
def test_the_commands_of_a_page_run_as_written(name: str, tmp_path: Path) -> None:
    here = machine(tmp_path)
    for block in commands(name):
        if not block.mark:
            here.run(block)


def test_nothing_runs_where_a_command_of_a_page_fails(tmp_path: Path) -> None:
    broken = Block(heading="", language="sh", title="", mark="", mark_text="", text="kas token no-such-action\ntrue\n")

    with pytest.raises(AssertionError, match="no-such-action"):
        machine(tmp_path).run(broken)
