"""What the benchmarks run against: an origin, and for each candidate the two processes of a tunnel to it.

Everything listens on ports of 127.0.0.1 that were free a moment ago, lives in one temporary folder, and is ended at the
end of the block by its process id.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import trustme
import yaml

from benchmarks.candidates import Candidate
from server.tokens import AGENT_PREFIX, USER_PREFIX, digest, new_token

HERE = Path(__file__).parent
START_SECONDS = 60.0
PROGRAMS = {"gcc": "gcc", "go": "golang", "h2load": "nghttp2-client", "curl": "curl"}
"""What must be there, and the package of Debian in which it is."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """How the two processes of a candidate are set up."""

    name: str
    is_reference: bool = False
    scheme: str = "https"
    has_tls_front: bool = False
    """The reference always has both fronts, kas has one."""
    has_tls_origin: bool = False
    is_far: bool = False
    """The agent and the origin are at the other end of a slow link."""


KINDS = {
    kind.name: kind
    for kind in (
        Kind("reference", is_reference=True),
        Kind("reference, origin with TLS", is_reference=True, has_tls_origin=True),
        Kind("moorline"),
        Kind("moorline, WebSocket", scheme="wss"),
        Kind("moorline, origin with TLS", has_tls_origin=True),
        Kind("moorline, TLS front", has_tls_front=True),
        Kind("reference, TLS at both ends", is_reference=True, has_tls_origin=True),
        Kind("moorline, TLS at both ends", has_tls_front=True, has_tls_origin=True),
        Kind("reference, slow link", is_reference=True, is_far=True),
        Kind("moorline, slow link", is_far=True),
    )
}


@dataclasses.dataclass(frozen=True)
class Place:
    """A network namespace, and the address by which the others reach it."""

    namespace: str = ""
    address: str = "127.0.0.1"

    def inside(self, command: list[str]) -> list[str]:
        """The command, run there."""
        return ["ip", "netns", "exec", self.namespace, *command] if self.namespace else command


HERE_AND_NOW = Place()


class Stand:
    """Builds the programs, and starts and ends what is measured."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.load = folder / "load"
        self.reference = folder / "reference"
        self._agent_token = new_token(AGENT_PREFIX)
        self.user_token = new_token(USER_PREFIX)
        self._started = 0

    def build(self) -> None:
        """Compile the load generator and the reference, and make certificates and access file."""
        _run(["gcc", "-O2", "-w", "-o", str(self.load), str(HERE / "load.c")])
        environment = {**os.environ, "CGO_ENABLED": "0"}
        _run(["go", "build", "-o", str(self.reference), "."], cwd=HERE / "reference", env=environment)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.folder / "ca.crt"))
        for name in ("server", "agent"):
            leaf = authority.issue_cert("localhost", "127.0.0.1", "10.111.0.1", "10.111.0.2", common_name=name)
            leaf.private_key_pem.write_to_path(str(self.folder / f"{name}.key"))
            (self.folder / f"{name}.crt").write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
        users = [
            {
                "name": "alice",
                "tokens": [{"sha256": digest(self.user_token)}],
                "agents": [{"agent": "*", "as": {"user": "alice", "groups": ["developers"]}}],
            }
        ]
        agents = [{"id": "edge", "tokens": [{"sha256": digest(self._agent_token)}]}]
        (self.folder / "access.yaml").write_text(yaml.safe_dump({"agents": agents, "users": users}))
        token_file = self.folder / "agent.token"
        token_file.write_text(self._agent_token)
        token_file.chmod(0o600)

    @contextlib.contextmanager
    def running(
        self, names: Iterable[str], *, near: Place = HERE_AND_NOW, far: Place = HERE_AND_NOW
    ) -> Iterator[dict[str, Candidate]]:
        """An origin and the candidates of these names, new ones, each with its tunnel up, for the length of the block.

        The origin and the agents are at the far place, the servers and the callers at the near one.
        """
        with contextlib.ExitStack() as processes:
            pairs = _Pairs(self, processes, near, far)
            candidates = {"direct": pairs.start_origin()}
            starting = {name: pairs.start_server(KINDS[name]) for name in names if name != "direct"}
            for started in starting.values():
                pairs.start_agent(started)
            for name, started in starting.items():
                candidates[name] = pairs.candidate(started)
            for candidate in candidates.values():
                self.await_answer(candidate, near)
            yield candidates

    def command(self, mode: str, *more: str) -> list[str]:
        """The reference program in one of its modes."""
        return [str(self.reference), "-mode", mode, "-certs", str(self.folder), *more]

    def environment(self) -> dict[str, str]:
        """That of every program that is started."""
        paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        settings = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "SSL_CERT_FILE": str(self.folder / "ca.crt")}
        return {**os.environ, **settings, "GODEBUG": "http2xconnect=1"}

    def await_answer(self, candidate: Candidate, near: Place = HERE_AND_NOW) -> None:
        """Until a request is answered with 200 through the candidate."""
        url = f"{candidate.plain or candidate.tls}/small"
        command = ["curl", "-sf", "-m", "5", "-o", str(self.folder / "answer"), "--cacert", str(self.folder / "ca.crt")]
        for name, value in candidate.authorization().items():
            command += ["-H", f"{name}: {value}"]
        deadline = time.monotonic() + START_SECONDS
        while subprocess.run(near.inside([*command, url]), check=False, capture_output=True).returncode:
            if time.monotonic() > deadline:
                raise SystemExit(f"{candidate.name} does not answer; see the logs in {self.folder}{self.last_words()}")
            time.sleep(0.05)

    def last_words(self) -> str:
        """The ends of the logs that say something; the folder is gone when somebody wants to read them."""
        said = []
        for log in sorted(self.folder.glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()[-3:]
            said += [f"\n{log.stem}: {line}" for line in lines]
        return "".join(said)

    def log_file(self, name: str) -> Path:
        """A file for what a process says, unlike every other one."""
        self._started += 1
        return self.folder / f"{self._started:03}-{name.replace(', ', '-').replace(' ', '-')}.log"


@dataclasses.dataclass
class _Started:
    kind: Kind
    server: subprocess.Popen[bytes]
    tunnel: str
    ports: dict[str, int]
    pids: tuple[int, ...] = ()


class _Pairs:
    """Starts the processes of one `Stand.running`."""

    def __init__(self, stand: Stand, processes: contextlib.ExitStack, near: Place, far: Place) -> None:
        self._stand, self._processes, self._near, self._far = stand, processes, near, far
        self._origin = self._tls_origin = ""

    def start_origin(self) -> Candidate:
        plain, tls = free_port(), free_port()
        address = self._far.address
        where = ("-front", f"{address}:{plain}", "-front-tls", f"{address}:{tls}")
        process = self._spawn("origin", self._stand.command("origin", *where), self._far)
        for port in (plain, tls):
            self._await(process, port)
        self._origin, self._tls_origin = f"http://{address}:{plain}", f"https://{address}:{tls}"
        return Candidate("direct", self._origin, self._tls_origin, namespace=self._near.namespace)

    def start_server(self, kind: Kind) -> _Started:
        ports = {name: free_port() for name in ("tunnel", "plain", "tls", "operations", "health")}
        tunnel = f"{self._near.address}:{ports['tunnel']}"
        if kind.is_reference:
            fronts = ("-front", f"127.0.0.1:{ports['plain']}", "-front-tls", f"127.0.0.1:{ports['tls']}")
            command = self._stand.command("server", "-tunnel", tunnel, *fronts)
        else:
            config = self._kas_config(kind, tunnel, ports)
            command = [sys.executable, "-m", "server", "--config", str(config)]
        return _Started(kind, self._spawn(f"{kind.name} server", command, self._near), tunnel, ports)

    def start_agent(self, started: _Started) -> None:
        kind = started.kind
        self._await(started.server, started.ports["tunnel"])
        origin = self._tls_origin if kind.has_tls_origin else self._origin
        if kind.is_reference:
            command = self._stand.command("agent", "-tunnel", started.tunnel, "-origin", origin)
        else:
            kubeconfig = self._kubeconfig(kind, origin)
            command = [
                *(sys.executable, "-m", "agent", "--kas-address", f"{kind.scheme}://{started.tunnel}"),
                *("--token-file", "agent.token", "--ca-file", "ca.crt", "--kubeconfig", str(kubeconfig)),
                *("--health-address", f"127.0.0.1:{started.ports['health']}"),
            ]
        started.pids = (started.server.pid, self._spawn(f"{kind.name} agent", command, self._far).pid)

    def candidate(self, started: _Started) -> Candidate:
        kind, ports = started.kind, started.ports
        plain, tls = f"http://127.0.0.1:{ports['plain']}", f"https://127.0.0.1:{ports['tls']}"
        if kind.is_reference:
            return Candidate(kind.name, plain, tls, started.pids, namespace=self._near.namespace)
        path = "/agents/edge/k8s"
        return Candidate(
            kind.name,
            "" if kind.has_tls_front else plain + path,
            tls + path if kind.has_tls_front else "",
            started.pids,
            self._stand.user_token,
            tuple(f"http://127.0.0.1:{ports[name]}/metrics" for name in ("operations", "health")),
            self._near.namespace,
        )

    def _kas_config(self, kind: Kind, tunnel: str, ports: dict[str, int]) -> Path:
        folder = self._stand.folder
        certificate = {"certificate_file": f"{folder}/server.crt", "key_file": f"{folder}/server.key"}
        front = ports["tls" if kind.has_tls_front else "plain"]
        config = {
            "agents": {"address": tunnel, "tls": certificate},
            "proxy": {"address": f"127.0.0.1:{front}", **({"tls": certificate} if kind.has_tls_front else {})},
            "operations": {"address": f"127.0.0.1:{ports['operations']}"},
            "access": {
                "file": f"{folder}/access.yaml",
                "starts_per_second": 1_000_000,
                "exchanges_per_credential": 100_000,
            },
        }
        path = folder / f"{front}.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    def _kubeconfig(self, kind: Kind, origin: str) -> Path:
        cluster = {"server": origin, **({"certificate-authority": "ca.crt"} if kind.has_tls_origin else {})}
        kubeconfig = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "x",
            "clusters": [{"name": "x", "cluster": cluster}],
            "users": [{"name": "x", "user": {}}],
            "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        }
        path = self._stand.folder / f"{kind.name.replace(', ', '-').replace(' ', '-')}.kubeconfig"
        path.write_text(yaml.safe_dump(kubeconfig))
        return path

    def _spawn(self, name: str, command: list[str], place: Place) -> subprocess.Popen[bytes]:
        stand = self._stand
        with stand.log_file(name).open("wb") as log:
            process = subprocess.Popen(
                place.inside(command), cwd=stand.folder, stdout=log, stderr=log, env=stand.environment()
            )
        self._processes.callback(_end, process)
        return process

    def _await(self, process: subprocess.Popen[bytes], port: int) -> None:
        """Until something listens on the port in the network namespace of the process."""
        deadline = time.monotonic() + START_SECONDS
        wanted = f":{port:04X}"
        while True:
            with contextlib.suppress(OSError):
                rows = [line.split() for line in Path(f"/proc/{process.pid}/net/tcp").read_text().splitlines()[1:]]
                if any(row[1].endswith(wanted) and row[3] == "0A" for row in rows):
                    return
            if time.monotonic() > deadline or process.poll() is not None:
                raise SystemExit(f"nothing listens on port {port}{self._stand.last_words()}")
            time.sleep(0.02)


_given: set[int] = set()


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens now, which nobody has been given yet.

    It is below those that Linux gives to connections that go out, of which there are tens of thousands here.
    """
    while True:
        port = random.randrange(15_000, 32_000)
        if port in _given:
            continue
        _given.add(port)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def check_programs() -> None:
    """End the process where a program is missing that the benchmarks need."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        packages = ", ".join(PROGRAMS[program] for program in missing)
        raise SystemExit(f"benchmarks need {', '.join(missing)} (Debian: {packages})")


def _run(command: list[str], **options: object) -> None:
    subprocess.run(command, check=True, **options)  # type: ignore[call-overload]


def _end(process: subprocess.Popen[bytes]) -> None:
    # Without asking first: there is nothing to save, and kas would wait for what still runs.
    process.kill()
    process.wait()
