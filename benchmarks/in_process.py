"""kas, agentk, a scripted origin and callers in one event loop: where the CPU time of a request goes, by function.

``python -m benchmarks.in_process`` prints microseconds for each request; ``--profile`` adds what cProfile saw, in
calls and microseconds for
each request. Loopback only. cProfile makes small functions look dearer than they are: it ranks, it does not measure.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import trio
import trustme
import yaml

import agent.config
import server.config
from agent.agent import Agent
from agent.command_line import Settings, find_credentials
from agent.token import FixedToken
from operations.logs import LogConfig, configure_logging
from operations.values import Address
from server.kas import Kas, KasAddresses
from server.tokens import AGENT_PREFIX, USER_PREFIX, digest, new_token

LOOPBACK = Address("127.0.0.1", 0)
BODY = b"x" * 1024
ANSWER = (
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Sat, 21 Nov 2026 05:00:00 GMT\r\nContent-Type: application/json\r\n"
    b"Content-Length: 1024\r\nLast-Modified: Sat, 21 Nov 2026 04:39:00 GMT\r\nConnection: keep-alive\r\n"
    b'ETag: "6920b3a4-400"\r\nAccept-Ranges: bytes\r\n\r\n' + BODY
)


async def serve_origin(stream: trio.SocketStream) -> None:
    """Answer each request head, however it is cut, with the same bytes."""
    tail = b""
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await stream.receive_some(65_536):
                tail += data
                while b"\r\n\r\n" in tail:
                    _, _, tail = tail.partition(b"\r\n\r\n")
                    await stream.send_all(ANSWER)


async def ask(port: int, token: str, name: int, count: int) -> None:
    """One caller: ``count`` requests with unique heads on one connection."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        for number in range(count):
            request = (
                f"GET /agents/edge/k8s/api/v1/namespaces/default/pods/p?u={name}-{number} HTTP/1.1\r\nHost: 127.0.0.1:8154\r\n"
                f"Authorization: Bearer {token}\r\nUser-Agent: kubectl/v1.31.0\r\nAccept: application/json\r\n"
                f"X-Request-Id: {name}-{number}\r\n\r\n"
            )
            await stream.send_all(request.encode())
            received = b""
            while len(received) < 1024 or not received.endswith(BODY):
                data = await stream.receive_some(65_536)
                if not data:
                    raise RuntimeError(f"kas closed the connection: {received[:200]!r}")
                received += data


@contextlib.asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[int, str]]:
    """The port of the proxy listener and a user's token, for as long as the block lasts."""
    agent_token, user_token = new_token(AGENT_PREFIX), new_token(USER_PREFIX)
    access_file = folder / "access.yaml"
    grant = {"agent": "*", "as": {"user": "alice", "groups": ["developers"]}}
    access_file.write_text(
        yaml.safe_dump(
            {
                "agents": [{"id": "edge", "tokens": [{"sha256": digest(agent_token)}]}],
                "users": [{"name": "alice", "tokens": [{"sha256": digest(user_token)}], "agents": [grant]}],
            }
        )
    )
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    paths = {name: folder / name for name in ("ca.crt", "kas.crt", "kas.key", "kubeconfig")}
    authority.cert_pem.write_to_path(paths["ca.crt"])
    leaf.private_key_pem.write_to_path(paths["kas.key"])
    paths["kas.crt"].write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
    kas = Kas(
        server.config.KasConfig(
            id="kas-bench",
            agents=server.config.AgentListenerConfig(
                address=LOOPBACK,
                tls=server.config.TlsConfig(certificate_file=paths["kas.crt"], key_file=paths["kas.key"]),
            ),
            proxy=server.config.ProxyConfig(address=LOOPBACK),
            operations=server.config.OperationsConfig(address=LOOPBACK),
            access=server.config.AccessConfig(
                file=access_file, starts_per_second=1_000_000, exchanges_per_credential=10_000
            ),
        )
    )
    async with trio.open_nursery() as nursery:
        origins = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, serve_origin, origins)
        origin_port = origins[0].socket.getsockname()[1]
        paths["kubeconfig"].write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "x",
                    "clusters": [{"name": "x", "cluster": {"server": f"http://127.0.0.1:{origin_port}"}}],
                    "users": [{"name": "x", "user": {}}],
                    "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
                }
            )
        )
        addresses: KasAddresses = await nursery.start(kas.run)
        config = agent.config.AgentConfig(
            kas=agent.config.KasConfig(address=f"https://127.0.0.1:{addresses.agents.port}", ca_file=paths["ca.crt"]),
            kubernetes=agent.config.KubernetesConfig(kubeconfig=paths["kubeconfig"]),
            health=agent.config.HealthConfig(address=LOOPBACK),
        )
        settings = Settings(
            config=config,
            token=FixedToken(agent_token, "the benchmark"),
            credentials=find_credentials(config.kubernetes, {}),
        )
        await nursery.start(Agent(settings).run)
        yield addresses.proxy.port, user_token
        nursery.cancel_scope.cancel()


async def measure(connections: int, count: int, rounds: int, profile: cProfile.Profile | None) -> float:
    """Microseconds of CPU time for each request, of everything in this process, in the quietest round."""
    with tempfile.TemporaryDirectory() as folder:
        async with running(Path(folder)) as (port, token):
            async with trio.open_nursery() as warm_up:
                for name in range(connections):
                    warm_up.start_soon(ask, port, token, name, 10)
            if profile is not None:
                profile.enable()
            spent = [await one_round(port, token, connections, count, number) for number in range(rounds)]
            if profile is not None:
                profile.disable()
            return min(spent)


async def one_round(port: int, token: str, connections: int, count: int, number: int) -> float:
    """Microseconds of CPU time for each request of one round."""
    async with trio.open_nursery() as callers:
        for name in range(connections):
            callers.start_soon(ask, port, token, (number + 1) * connections + name, 1)
    started = time.process_time()
    async with trio.open_nursery() as callers:
        for name in range(connections):
            callers.start_soon(ask, port, token, (number + 1) * connections + name, count)
    return (time.process_time() - started) / connections / count * 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--requests", type=int, default=50, help="for each connection")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--lines", type=int, default=70)
    arguments = parser.parse_args()
    with open("/dev/null", "w") as sink:
        configure_logging(LogConfig(format="json"), stream=sink)
        profile = cProfile.Profile() if arguments.profile else None
        spent = trio.run(measure, arguments.connections, arguments.requests, arguments.rounds, profile)
    print(f"{spent:.1f} us of CPU time for each request")
    if profile is not None:
        total = arguments.connections * (arguments.requests + 1) * arguments.rounds
        rows = []
        profile.create_stats()
        for (file, line, name), (_, calls, own, cumulative, _) in profile.stats.items():
            where = "/".join(file.split("/")[-2:])
            rows.append((own / total * 1e6, cumulative / total * 1e6, calls / total, f"{name} ({where}:{line})"))
        rows.sort(reverse=True)
        print(f"{sum(row[2] for row in rows):.0f} calls for each request")
        print("  own us   cum us    calls  function")
        for own, cumulative, calls, name in rows[: arguments.lines]:
            print(f"{own:8.2f} {cumulative:8.2f} {calls:8.2f}  {name}")


if __name__ == "__main__":
    main()
