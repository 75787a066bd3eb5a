"""kas and agentk as processes in front of the cluster: the console scripts, with files such as operators write."""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from e2e.testbed.cluster import Pki, kubeconfig
from e2e.testbed.http import CurlError, Endpoint
from e2e.testbed.names import ADMIN, DOMAIN
from e2e.testbed.nginx import Nginx
from e2e.testbed.processes import BedError, Process, free_port, until

if TYPE_CHECKING:
    from e2e.testbed.bed import Bed

PROGRAMS = Path(sys.executable).parent
FAST = {"reconnect": "2s", "drain": "2s"}


@dataclass(slots=True, kw_only=True)
class Agent:
    """One agentk: how it is configured, and the process while there is one."""

    name: str
    config: Path
    health_port: int
    process: Process | None = None
    starts: int = field(default=0)


class Tunnel:
    """kas, and the agents of the session."""

    def __init__(self, bed: Bed) -> None:
        self._bed = bed
        self.directory = bed.directory / "tunnel"
        self.logs = bed.directory / "logs"
        self.access_file = self.directory / "access.yaml"
        self.pki = Pki(self.directory / "pki")
        self.tokens: list[str] = []
        self.agents: dict[str, Agent] = {}
        self.kas: Process | None = None
        self.nginx: Nginx | None = None
        self.agents_port = free_port()
        self.proxy_port = free_port()
        self.operations_port = free_port()
        self.admin_token = ""

    # -- kas

    def start(self) -> None:
        """Start kas, nginx and an agent for each route; return when all of them are connected."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.pki.issue("kas", "127.0.0.1", "localhost", f"*.k8s.{DOMAIN}", f"kas.{DOMAIN}")
        grant = {
            "agent": "*",
            "as": {"user": ADMIN},
            "may_impersonate": {"users": ["*"], "groups": ["*"], "uids": ["*"], "extras": {"scopes": ["*"]}},
        }
        self.access_file.write_text(
            yaml.safe_dump({"agents": [], "users": [{"name": ADMIN, "tokens": [], "agents": [grant]}]}),
            encoding="utf-8",
        )
        self.admin_token = self.new_token(user=ADMIN)
        tokens = {name: self.new_token(agent=name) for name in ("tcp", "websocket", "nginx")}
        self.start_kas()
        self.nginx = Nginx(
            self._bed.directory / "nginx", pki=self.pki, agents_port=self.agents_port, proxy_port=self.proxy_port
        )
        for name, token in tokens.items():
            self.add_agent(name, address=self.agents_address(name), token=token)
            self.start_agent(name, wait=False)
        for name in tokens:
            self.wait_connected(name)

    def start_kas(self) -> None:
        """Start kas, on the same ports each time, and wait until it is ready."""
        tls = {"certificate_file": str(self.pki.directory / "kas.crt"), "key_file": str(self.pki.directory / "kas.key")}
        config = {
            "agents": {"address": f"127.0.0.1:{self.agents_port}", "tls": tls},
            "proxy": {"address": f"127.0.0.1:{self.proxy_port}", "tls": tls, "domain": DOMAIN},
            "operations": {"address": f"127.0.0.1:{self.operations_port}"},
            "access": {"file": str(self.access_file)},
            "timeouts": {"drain": "2s"},
            "log": {"level": "debug", "format": "json"},
        }
        path = self.directory / "kas.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        self.kas = Process("kas", [PROGRAMS / "kas", "--config", path], log=self.logs / "kas.log")
        self.kas.wait_for_line("kas is ready", seconds=20)

    def stop(self) -> None:
        """End everything, agents first."""
        for name in list(self.agents):
            self.stop_agent(name)
        if self.nginx is not None:
            self.nginx.stop()
        if self.kas is not None:
            self.kas.stop()

    # -- access

    def new_token(self, *options: str, user: str | None = None, agent: str | None = None) -> str:
        """Make a token with ``kas token create``; it works when this returns."""
        owner = ["--user", user] if user is not None else ["--agent", str(agent)]
        with self.taken_over():
            token = self.token_command("create", *owner, *options).strip()
        self.tokens.append(token)
        return token

    @contextmanager
    def taken_over(self) -> Iterator[None]:
        """Change the access file inside the block; at its end, a kas that runs has taken the change over."""
        pattern = "a changed file was taken over"
        before = len(self.logged(pattern)) if self.kas is not None else 0
        yield
        if self.kas is not None:
            until(lambda: len(self.logged(pattern)) > before, seconds=5, what="kas takes a changed access file over")

    def token_command(self, *arguments: str) -> str:
        """``kas token …``, which must succeed; what it prints on stdout."""
        command = [str(PROGRAMS / "kas"), "token", arguments[0], "--access-file", str(self.access_file), *arguments[1:]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode != 0:
            raise BedError(f"kas token {' '.join(arguments)}: status {done.returncode}: {done.stderr}")
        return done.stdout

    def change_access(self, change: Mapping[str, Any], *, user: str) -> None:
        """Replace keys of a user's entry in the access file, in one step, as an editor does; adds an unknown user."""
        document = yaml.safe_load(self.access_file.read_text(encoding="utf-8"))
        entry = next((entry for entry in document["users"] if entry["name"] == user), None)
        if entry is None:
            entry = {"name": user}
            document["users"].append(entry)
        entry.update(change)
        new = self.access_file.with_suffix(".new")
        new.write_text(yaml.safe_dump(document), encoding="utf-8")
        new.chmod(0o600)
        new.replace(self.access_file)

    def add_user(self, name: str, *grants: Mapping[str, Any]) -> str:
        """A user with these grants, in effect when this returns; returns the token."""
        alphabet = string.ascii_letters + string.digits
        token = "mlu_" + "".join(secrets.choice(alphabet) for _ in range(43))
        self.tokens.append(token)
        record = {"name": "default", "sha256": hashlib.sha256(token.encode()).hexdigest()}
        with self.taken_over():
            self.change_access({"tokens": [record], "agents": list(grants)}, user=name)
        return token

    # -- ways in

    def kubeconfig(self, route: str) -> Path:
        """The kubeconfig of a route: each addresses its agent in another way."""
        if route == "tcp":
            return self._write_kubeconfig(
                "tcp", server=f"https://127.0.0.1:{self.proxy_port}/k8s-proxy", token=f"pat:tcp:{self.admin_token}"
            )
        return self.kubeconfig_on(route, route)

    def agents_address(self, route: str) -> str:
        """Where the agent of a route finds kas."""
        if route == "nginx":
            assert self.nginx is not None
            return f"wss://localhost:{self.nginx.port}"
        return f"{'wss' if route == 'websocket' else 'https'}://127.0.0.1:{self.agents_port}"

    def kubeconfig_on(self, route: str, agent: str) -> Path:
        """A kubeconfig for an agent by its path, through nginx where the route goes through it."""
        if route != "nginx":
            return self.kubeconfig_for(agent)
        assert self.nginx is not None
        server = f"https://localhost:{self.nginx.port}/agents/{agent}/k8s"
        return self._write_kubeconfig(agent, server=server, token=self.admin_token)

    def kubeconfig_for(self, agent: str, *, token: str | None = None, name: str | None = None) -> Path:
        """A kubeconfig for an agent by its path, with the admin's token or another."""
        return self._write_kubeconfig(
            name or agent,
            server=f"https://127.0.0.1:{self.proxy_port}/agents/{agent}/k8s",
            token=token or self.admin_token,
        )

    def _write_kubeconfig(self, name: str, *, server: str, token: str) -> Path:
        path = self._bed.directory / f"{name}.kubeconfig"
        return kubeconfig(path, server=server, ca_pem=self.pki.ca_file.read_bytes(), token=token)

    def endpoint(self, agent: str, *, token: str | None = None) -> Endpoint:
        """Plain HTTP to an agent by its path, without ``k8s`` or ``agentk`` at the end."""
        base = f"https://127.0.0.1:{self.proxy_port}/agents/{agent}"
        return Endpoint(base=base, token=token or self.admin_token, ca_file=self.pki.ca_file)

    # -- agents

    def add_agent(self, name: str, *, address: str, token: str, **sections: Any) -> Agent:
        """Write the configuration of an agent; ``sections`` replaces or adds sections of it."""
        directory = self.directory / name
        directory.mkdir()
        (directory / "token").write_text(token, encoding="ascii")
        own = self._bed.cluster.own
        served = own.agent_kubeconfig if own is not None else self._bed.cluster.kubeconfig
        health_port = free_port()
        config: dict[str, Any] = {
            "kas": {"address": address, "token_file": str(directory / "token"), "ca_file": str(self.pki.ca_file)},
            "kubernetes": {"kubeconfig": str(served)},
            "access": {"modes": ["impersonate", "agent"]},
            "health": {"address": f"127.0.0.1:{health_port}"},
            "timeouts": FAST,
            "log": {"level": "debug", "format": "json"},
            "replica": name,
        }
        config.update(sections)
        (directory / "agentk.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        agent = Agent(name=name, config=directory / "agentk.yaml", health_port=health_port)
        self.agents[name] = agent
        return agent

    def start_agent(self, name: str, *, wait: bool = True, environ: Mapping[str, str] | None = None) -> None:
        """Start an agent's process, and wait until kas has its tunnel."""
        agent = self.agents[name]
        agent.process = Process(
            f"agentk {name}",
            [PROGRAMS / "agentk", "--config", agent.config],
            log=self.logs / f"agentk-{name}.log",
            environ=environ,
        )
        agent.starts += 1
        if wait:
            self.wait_connected(name)

    def kill_agent(self, name: str) -> None:
        """SIGKILL, as a crash or a lost node."""
        process = self.agents[name].process
        assert process is not None
        process.kill()

    def stop_agent(self, name: str) -> None:
        """SIGTERM, and forget the process."""
        process, self.agents[name].process = self.agents[name].process, None
        if process is not None:
            process.stop()

    def wait_connected(self, name: str, *, seconds: float = 30) -> None:
        """Wait until kas reaches the agent itself."""
        endpoint = self.endpoint(name)
        process = self.agents[name].process

        def connected() -> bool:
            if process is not None and process.returncode is not None:
                raise BedError(f"{process.name} ended with status {process.returncode}{process.tail()}")
            try:
                return endpoint.curl("/agentk/v1/info").status == 200
            except CurlError as error:
                raise BedError(f"kas does not answer: {error}{self.kas.tail() if self.kas else ''}") from None

        try:
            until(connected, seconds=seconds, what=f"agent {name} is connected")
        except BedError as error:
            raise BedError(f"{error}{process.tail() if process else ''}") from None

    @contextmanager
    def extra_agent(self, prefix: str, *, address: str | None = None, **sections: Any) -> Iterator[str]:
        """A connected agent of one test alone; it is stopped at the end of the block."""
        name = f"{prefix}-{secrets.token_hex(3)}"
        token = self.new_token(agent=name)
        self.add_agent(name, address=address or f"https://127.0.0.1:{self.agents_port}", token=token, **sections)
        self.start_agent(name)
        try:
            yield name
        finally:
            self.stop_agent(name)

    def logged(self, pattern: str) -> list[str]:
        """Lines of kas's log that match."""
        assert self.kas is not None
        return [line for line in self.kas.output().splitlines() if re.search(pattern, line)]
