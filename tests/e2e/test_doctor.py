"""`moorline doctor` in front of a real kas, and of nginx set up in ways that keep agents out."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from e2e.testbed.nginx import Ingress
from e2e.testbed.processes import free_port, until
from e2e.testbed.tunnel import PROGRAMS, Tunnel

pytestmark = pytest.mark.tunnel


class Doctor:
    """The command with the token of an agent whose tunnel is up, and the CA of kas."""

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel

    def run(self, address: str, *, agent: str = "tcp", **options: str) -> tuple[int, dict[str, str], str]:
        """The exit status, the state of each step, and everything that was printed."""
        given = {
            "kas-address": address,
            "token-file": str(self._tunnel.directory / agent / "token"),
            "ca-file": str(self._tunnel.pki.ca_file),
            **{name.replace("_", "-"): value for name, value in options.items()},
        }
        arguments = [part for name, value in given.items() for part in (f"--{name}", value)]
        environment = {name: value for name, value in os.environ.items() if "PROXY" not in name.upper()}
        done = subprocess.run(
            [PROGRAMS / "moorline", "doctor", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment,
            check=False,
        )
        assert done.stderr == ""
        lines = [line.split() for line in done.stdout.splitlines() if line and not line.startswith(" ")]
        return done.returncode, {line[1]: line[0] for line in lines[:-1]}, done.stdout


@pytest.fixture
def doctor(tunnel: Tunnel) -> Doctor:
    return Doctor(tunnel)


@contextmanager
def ingress(tunnel: Tunnel, directory: Path, **options: Any) -> Iterator[Ingress]:
    nginx = Ingress(directory / "ingress", pki=tunnel.pki, **{"agents_port": tunnel.agents_port, **options})
    try:
        yield nginx
    finally:
        nginx.stop()


def failed(states: dict[str, str]) -> list[str]:
    return [step for step, state in states.items() if state == "failed"]


@pytest.mark.parametrize("scheme", ["https", "wss"])
def test_an_agent_that_is_connected_is_not_disturbed(tunnel: Tunnel, doctor: Doctor, scheme: str) -> None:
    registered = len(tunnel.logged("tunnel registered"))
    ended = len(tunnel.logged('"tunnel ended".*doctor-'))
    status, states, shown = doctor.run(f"{scheme}://127.0.0.1:{tunnel.agents_port}")

    assert (status, failed(states)) == (0, []), shown
    until(lambda: len(tunnel.logged('"tunnel ended".*doctor-')) == ended + 2, seconds=10, what="kas notes two ends")
    assert len(tunnel.logged("tunnel registered")) == registered
    assert tunnel.endpoint("tcp").curl("/agentk/v1/info").status == 200


def test_the_wrong_port_is_named(tunnel: Tunnel, doctor: Doctor) -> None:
    status, states, shown = doctor.run(f"https://127.0.0.1:{tunnel.proxy_port}")

    assert (status, failed(states)) == (1, ["upgrade", "WebSocket"]), shown
    assert "this is where kas takes requests of kubectl" in shown


def test_a_wrong_ca(tunnel: Tunnel, doctor: Doctor) -> None:
    # A certificate, and not that of the authority which signed kas's.
    status, states, shown = doctor.run(
        f"https://127.0.0.1:{tunnel.agents_port}", ca_file=str(tunnel.pki.directory / "nginx.crt")
    )

    assert (status, failed(states)) == (1, ["TLS"]), shown
    assert "comes from a CA that is not trusted here" in shown


def test_a_bad_token(tunnel: Tunnel, doctor: Doctor, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("mla_" + "x" * 43)
    status, states, shown = doctor.run(f"wss://127.0.0.1:{tunnel.agents_port}", token_file=str(token))

    assert (status, failed(states)) == (1, ["token"]), shown
    assert "x" * 43 not in shown


def test_an_ingress_that_only_speaks_http(tunnel: Tunnel, doctor: Doctor, tmp_path: Path) -> None:
    with ingress(tunnel, tmp_path, tls=False) as nginx:
        status, states, shown = doctor.run(f"https://127.0.0.1:{nginx.port}")

    assert (status, failed(states)) == (1, ["TLS"]), shown
    assert "received a plain HTTP answer" in shown


def test_an_ingress_that_takes_upgrades_away(tunnel: Tunnel, doctor: Doctor, tmp_path: Path) -> None:
    with ingress(tunnel, tmp_path, passes="nothing") as nginx:
        status, states, shown = doctor.run(f"https://127.0.0.1:{nginx.port}")

    assert (status, failed(states)) == (1, ["upgrade", "WebSocket"]), shown
    assert "a proxy on the way removed the Upgrade header" in shown
    assert "Neither form passes" in shown


def test_an_ingress_that_knows_websockets_only(tunnel: Tunnel, doctor: Doctor, tmp_path: Path) -> None:
    with ingress(tunnel, tmp_path, passes="websocket") as nginx:
        by_upgrade = doctor.run(f"https://127.0.0.1:{nginx.port}")
        by_websocket = doctor.run(f"wss://127.0.0.1:{nginx.port}")

    assert (by_upgrade[0], failed(by_upgrade[1])) == (1, ["upgrade"]), by_upgrade[2]
    assert f"wss://127.0.0.1:{nginx.port} works from here: use that" in by_upgrade[2]
    assert (by_websocket[0], by_websocket[1]["upgrade"]) == (0, "warning"), by_websocket[2]


def test_an_ingress_that_passes_everything(tunnel: Tunnel, doctor: Doctor, tmp_path: Path) -> None:
    with ingress(tunnel, tmp_path) as nginx:
        status, states, shown = doctor.run(f"https://127.0.0.1:{nginx.port}")

    assert (status, set(states.values())) == (0, {"ok"}), shown


def test_an_ingress_without_a_kas_behind_it(tunnel: Tunnel, doctor: Doctor, tmp_path: Path) -> None:
    with ingress(tunnel, tmp_path, agents_port=free_port()) as nginx:
        status, states, shown = doctor.run(f"https://127.0.0.1:{nginx.port}")

    assert (status, failed(states)) == (1, ["upgrade", "WebSocket"]), shown
    assert "answered 502" in shown
    # nginx says what time it is, in place of kas.
    assert states["clock"] == "ok"
