"""`moorline doctor` on the command line: what agentk would be configured to dial, and the report.

The configuration is read as agentk reads it: file, then `AGENTK__SECTION__KEY`, then flags.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import MutableMapping
from functools import partial
from pathlib import Path
from typing import Any

import trio

from agent.config import ENVIRONMENT_PREFIX, AgentConfig, KasConfig
from agent.dialling import header_fields, kas_context
from agent.token import TOKEN_VARIABLE, find_token
from moorline.doctor.checks import Doctor
from moorline.doctor.findings import Finding, Findings, render
from moorline.doctor.target import NO_TOKEN, Target, probe_hello
from operations.configuration import ConfigurationError, Override, exit_with_configuration_error, load_configuration
from operations.exit_codes import FAILURE, OK
from operations.terminal import wants_colour
from operations.values import InvalidValue, parse_seconds
from operations.version import version
from tunnel.dial_address import DialAddress
from tunnel.errors import LocalProtocolError
from tunnel.handshake import Form, encode_hello
from tunnel.proxy_settings import NO_PROXIES, ProxySettings

PROGRAM = "moorline doctor"

SHORTEST_STEP_SECONDS = 2.0
"""The body of a refusal, which makes the message better, is waited for for a second."""

LONGEST_STEP_SECONDS = 10.0
"""agentk itself waits no longer."""

_FLAGS = {
    "kas_address": ("--kas-address", "kas.address"),
    "token_file": ("--token-file", "kas.token_file"),
    "ca_file": ("--ca-file", "kas.ca_file"),
    "kas_header": ("--kas-header", "kas.headers"),
    "insecure_plaintext": ("--insecure-plaintext", "kas.insecure_plaintext"),
}


def run_doctor(options: argparse.Namespace) -> int:
    """Check and report; the exit status: 0 where nothing failed, 1 where a step did."""
    problems: list[str] = []
    try:
        seconds = _step_seconds(options.timeout)
    except InvalidValue as exc:
        problems.append(f"--timeout: {exc}")
        seconds = LONGEST_STEP_SECONDS
    try:
        target = read_target(options, os.environ)
    except ConfigurationError as exc:
        exit_with_configuration_error(PROGRAM, ConfigurationError([*problems, *exc.problems]))
    if problems:
        exit_with_configuration_error(PROGRAM, ConfigurationError(problems))
    colour = wants_colour(sys.stdout, os.environ)

    def tell(finding: Finding) -> None:
        print(render(finding, colour=colour), flush=True)

    findings = Findings(tell)
    trio.run(partial(Doctor(target, findings, step_seconds=seconds).run))
    print(_conclusion(findings, target))
    return FAILURE if findings.failures else OK


def read_target(options: argparse.Namespace, environment: MutableMapping[str, str]) -> Target:
    """What flags, file and environment say. The variable with the token is removed.

    Raises `ConfigurationError` with everything that is wrong, except with the token: that is a step of the report.
    """
    given: dict[str, Any] = {name: getattr(options, name) for name in _FLAGS}
    overrides = [Override(path, given[name], flag) for name, (flag, path) in _FLAGS.items() if given[name]]
    problems: list[str] = []
    config = KasConfig()
    try:
        config = load_configuration(
            AgentConfig, options.config, environment=environment, prefix=ENVIRONMENT_PREFIX, overrides=overrides
        ).kas
    except ConfigurationError as exc:
        problems += exc.problems
    proxies = NO_PROXIES
    try:
        proxies = ProxySettings.from_environment(environment)
    except ValueError as exc:
        problems.append(str(exc))
    # Where the rest cannot be used, the flag is still worth a look.
    ca_file = config.ca_file or (Path(options.ca_file) if options.ca_file else None)
    try:
        context = kas_context(ca_file.read_bytes() if ca_file is not None else None)
    except (OSError, ValueError) as exc:
        raise ConfigurationError([*problems, f"kas.ca_file: {ca_file} cannot be used: {exc}"]) from None
    headers = header_fields(config)
    try:
        encode_hello(probe_hello(NO_TOKEN, version()), form=Form.UPGRADE, authority="", extra_headers=headers)
    except LocalProtocolError as exc:
        problems.append(f"kas.headers: {exc}")
    if problems:
        raise ConfigurationError(problems)
    token, source, problem = _read_token(config, environment)
    return Target(
        address=DialAddress.parse(config.address),
        hello=probe_hello(token, version()),
        token_source=source,
        token_problem=problem,
        tls=context,
        proxies=proxies,
        headers=tuple(headers),
    )


def _read_token(config: KasConfig, environment: MutableMapping[str, str]) -> tuple[str, str, str]:
    """The token to try, where it is from, and why it cannot be tried."""
    if config.token_file is None and not environment.get(TOKEN_VARIABLE, "").strip():
        return NO_TOKEN, "", ""
    try:
        token = find_token(config.token_file, environment)
        return token.read(), token.source, ""
    except InvalidValue as exc:
        return NO_TOKEN, str(config.token_file or TOKEN_VARIABLE), str(exc)


def _step_seconds(text: str) -> float:
    seconds = parse_seconds(text)
    if not SHORTEST_STEP_SECONDS <= seconds <= LONGEST_STEP_SECONDS:
        raise InvalidValue(
            f"expected {SHORTEST_STEP_SECONDS:g}s to {LONGEST_STEP_SECONDS:g}s: agentk itself waits no longer"
        )
    return seconds


def _conclusion(findings: Findings, target: Target) -> str:
    failures = findings.failures
    if failures:
        rest = f", and then {', '.join(failures[1:])}" if failures[1:] else ""
        return f"\nagentk would not get through from here as configured: {failures[0]} failed{rest}."
    if not target.token_source:
        return f"\nkas is reached at {target.address}; without a token it opens no tunnel."
    return f"\nAll is well: agentk can open a tunnel to {target.address} from here."
