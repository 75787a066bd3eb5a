"""What the benchmarks run against: an origin, and for each candidate the two processes of a tunnel to it.

Everything listens on ports of 127.0.0.1 that were free a moment ago, lives in one temporary folder, and is ended at the
end of the block by its process id.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import trustme
import yaml

from server.tokens import AGENT_PREFIX, USER_PREFIX, digest, new_token

HERE = Path(__file__).parent
START_SECONDS = 40.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass
class Candidate:
    """A way to the origin. ``pids`` are the processes that count: server, then agent; none for the direct way."""

    name: str
    url: str
    """Where requests go; a path of the origin is put behind it."""
    pids: tuple[int, ...] = ()
    token: str = ""
    reference: str = ""
    """The candidate with which it is compared."""

    @property
    def port(self) -> int:
        """The port of `url`."""
        return int(self.url.split("/")[2].rpartition(":")[2])

    @property
    def path(self) -> str:
        """What stands in front of the origin's own path."""
        return "/" + self.url.split("/", 3)[3] if self.url.count("/") > 2 else ""

    @property
    def is_tls(self) -> bool:
        """Whether its front speaks TLS."""
        return self.url.startswith("https")

    def cpu_seconds(self) -> list[float]:
        """CPU time of each process so far."""
        return [_cpu_seconds(pid) for pid in self.pids]

    def resident_bytes(self) -> list[int]:
        """Memory of each process now."""
        return [_resident_bytes(pid) for pid in self.pids]


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Stand:
    """The processes of a run."""

    def __init__(self, folder: Path, processes: contextlib.ExitStack) -> None:
        self.folder = folder
        self.load = folder / "load"
        self.reference = folder / "reference"
        self._processes = processes
        self._agent_token = new_token(AGENT_PREFIX)
        self._user_token = new_token(USER_PREFIX)
        self.candidates: dict[str, Candidate] = {}

    def build(self) -> None:
        """Compile the load generator and the reference, and make certificates and access file."""
        _run(["gcc", "-O2", "-w", "-o", str(self.load), str(HERE / "load.c")])
        environment = {**os.environ, "CGO_ENABLED": "0"}
        _run(["go", "build", "-o", str(self.reference), "."], cwd=HERE / "reference", env=environment)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.folder / "ca.crt"))
        for name in ("server", "agent"):
            leaf = authority.issue_cert("localhost", "127.0.0.1", common_name=name)
            leaf.private_key_pem.write_to_path(str(self.folder / f"{name}.key"))
            (self.folder / f"{name}.crt").write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
        users = [
            {
                "name": "alice",
                "tokens": [{"sha256": digest(self._user_token)}],
                "agents": [{"agent": "*", "as": {"user": "alice", "groups": ["developers"]}}],
            }
        ]
        agents = [{"id": "edge", "tokens": [{"sha256": digest(self._agent_token)}]}]
        (self.folder / "access.yaml").write_text(yaml.safe_dump({"agents": agents, "users": users}))

    def start(self) -> None:
        """Start the origin and every candidate."""
        plain, tls = free_port(), free_port()
        self._spawn("origin", self._reference_command("origin", plain, tls))
        self._await(plain)
        self._add(Candidate("direct", f"http://127.0.0.1:{plain}"))
        self._start_reference("reference", f"http://127.0.0.1:{plain}")
        self._start_reference("reference, origin with TLS", f"https://localhost:{tls}", tls_front=False)
        self._start_moorline("moorline", f"http://127.0.0.1:{plain}", reference="reference")
        self._start_moorline("moorline, WebSocket", f"http://127.0.0.1:{plain}", reference="moorline", scheme="wss")
        self._start_moorline(
            "moorline, origin with TLS", f"https://localhost:{tls}", reference="reference, origin with TLS"
        )
        self._start_moorline(
            "moorline, TLS front", f"http://127.0.0.1:{plain}", reference="reference, TLS front", tls_front=True
        )
        for candidate in self.candidates.values():
            self._await_answer(candidate)

    def _add(self, candidate: Candidate) -> None:
        self.candidates[candidate.name] = candidate

    def _reference_command(self, mode: str, plain: int, tls: int | None, *more: str) -> list[str]:
        command = [str(self.reference), "-mode", mode, "-front", f"127.0.0.1:{plain}", "-certs", str(self.folder)]
        return [*command, *(("-front-tls", f"127.0.0.1:{tls}") if tls else ()), *more]

    def _start_reference(self, name: str, origin: str, *, tls_front: bool = True) -> None:
        tunnel, plain, tls = free_port(), free_port(), free_port()
        where = ("-tunnel", f"127.0.0.1:{tunnel}")
        server = self._spawn(name, self._reference_command("server", plain, tls if tls_front else None, *where))
        self._await(tunnel)
        agent = self._spawn(f"{name} agent", self._reference_command("agent", plain, None, *where, "-origin", origin))
        self._add(Candidate(name, f"http://127.0.0.1:{plain}", (server, agent)))
        if tls_front:
            self._add(Candidate(f"{name}, TLS front", f"https://localhost:{tls}", (server, agent)))

    def _start_moorline(
        self, name: str, origin: str, *, reference: str, scheme: str = "https", tls_front: bool = False
    ) -> None:
        agents, proxy, operations, health = (free_port() for _ in range(4))
        certificate = {"certificate_file": f"{self.folder}/server.crt", "key_file": f"{self.folder}/server.key"}
        label = name.replace(", ", "-").replace(" ", "-")
        config = {
            "agents": {"address": f"127.0.0.1:{agents}", "tls": certificate},
            "proxy": {"address": f"127.0.0.1:{proxy}", **({"tls": certificate} if tls_front else {})},
            "operations": {"address": f"127.0.0.1:{operations}"},
            "access": {
                "file": f"{self.folder}/access.yaml",
                "starts_per_second": 1_000_000,
                "exchanges_per_credential": 100_000,
            },
        }
        (self.folder / f"{label}.yaml").write_text(yaml.safe_dump(config))
        cluster = {"server": origin, **({"certificate-authority": "ca.crt"} if origin.startswith("https") else {})}
        kubeconfig = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "x",
            "clusters": [{"name": "x", "cluster": cluster}],
            "users": [{"name": "x", "user": {}}],
            "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        }
        (self.folder / f"{label}.kubeconfig").write_text(yaml.safe_dump(kubeconfig))
        token_file = self.folder / "agent.token"
        token_file.write_text(self._agent_token)
        token_file.chmod(0o600)
        kas = self._spawn(f"{label}-kas", [sys.executable, "-m", "server", "--config", f"{label}.yaml"])
        self._await(agents)
        agentk = self._spawn(
            f"{label}-agentk",
            [
                *(sys.executable, "-m", "agent", "--kas-address", f"{scheme}://127.0.0.1:{agents}"),
                *("--token-file", "agent.token", "--ca-file", "ca.crt", "--kubeconfig", f"{label}.kubeconfig"),
                *("--health-address", f"127.0.0.1:{health}"),
            ],
        )
        url = f"{'https://localhost' if tls_front else 'http://127.0.0.1'}:{proxy}/agents/edge/k8s"
        self._add(Candidate(name, url, (kas, agentk), self._user_token, reference))

    def _spawn(self, name: str, command: list[str]) -> int:
        log = (self.folder / f"{name.replace(' ', '-')}.log").open("wb")
        paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "SSL_CERT_FILE": "ca.crt"}
        process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, env=environment)
        log.close()
        self._processes.callback(_end, process)
        return process.pid

    def _await(self, port: int) -> None:
        def listens() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return True
            return False

        _until(listens, f"nothing listens on port {port}; see the logs in {self.folder}")

    def _await_answer(self, candidate: Candidate) -> None:
        context = ssl.create_default_context(cafile=str(self.folder / "ca.crt")) if candidate.is_tls else None

        def answers() -> bool:
            request = urllib.request.Request(f"{candidate.url}/small", headers=authorization(candidate))
            with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5, context=context) as answer:
                return bool(answer.status == 200)
            return False

        _until(answers, f"{candidate.name} does not answer; see the logs in {self.folder}")


def authorization(candidate: Candidate) -> dict[str, str]:
    """The header of a caller, where the candidate wants one."""
    return {"Authorization": f"Bearer {candidate.token}"} if candidate.token else {}


@contextlib.contextmanager
def standing(folder: Path) -> Iterator[Stand]:
    """A stand that runs for the length of the block."""
    for program in ("gcc", "go", "h2load", "curl"):
        if shutil.which(program) is None:
            raise SystemExit(f"benchmarks need {program} (Debian: gcc, golang, nghttp2-client, curl)")
    with contextlib.ExitStack() as processes:
        stand = Stand(folder, processes)
        stand.build()
        stand.start()
        yield stand


def _until(condition: Callable[[], bool], failure: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(failure)
        time.sleep(0.1)


def _run(command: list[str], **options: object) -> None:
    subprocess.run(command, check=True, **options)  # type: ignore[call-overload]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
