"""exec, attach, cp, logs and port-forward: over WebSockets and SPDY, over both transports, and behind nginx."""

from __future__ import annotations

import hashlib
import itertools
import secrets
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio
from e2e.testbed.bed import Bed, Route
from e2e.testbed.kubectl import Kubectl, Running, assert_same
from e2e.testbed.processes import until
from e2e.testbed.relays import Reservoir
from e2e.testbed.terminal import Terminal, on_terminal

SPDY = {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "false", "KUBECTL_PORT_FORWARD_WEBSOCKETS": "false"}
SEQUENCE = "".join(f"{number}\n" for number in range(1, 2_000_001)).encode()


@pytest.fixture(scope="session", params=["websockets", "spdy"])
def streaming(request: pytest.FixtureRequest, route: Route) -> Kubectl:
    """kubectl through each route, with each of its two streaming protocols."""
    return route.kubectl if request.param == "websockets" else route.kubectl.with_environ(**SPDY)


def _exec(pod: tuple[str, str], *command: str, options: tuple[str, ...] = ()) -> tuple[str, ...]:
    return ("exec", "-n", pod[0], pod[1], *options, "--", *command)


def test_no_byte_of_a_long_output_is_lost(streaming: Kubectl, pod: tuple[str, str]) -> None:
    for _ in range(3):
        output = streaming(*_exec(pod, "seq", "1", "2000000")).stdout
        assert (
            hashlib.md5(output, usedforsecurity=False).digest() == hashlib.md5(SEQUENCE, usedforsecurity=False).digest()
        )


@pytest.mark.parametrize(
    "script",
    [
        "exit 0",
        "exit 7",
        "echo out; echo error >&2; exit 1",
        "kill -9 $$",
        "seq 1 100000 >&2; exit 3",
        "pwd; env | wc -l",
    ],
)
def test_output_and_exit_codes_are_those_of_the_command(
    direct: Kubectl, streaming: Kubectl, pod: tuple[str, str], script: str
) -> None:
    command = _exec(pod, "sh", "-c", script)
    assert_same(direct.with_environ(**streaming.environ).attempt(*command), streaming.attempt(*command))


@pytest.mark.parametrize("arguments", [("shell", "-c", "absent"), ("absent",), ("shell", "-c", "main")])
def test_what_cannot_be_executed_is_refused_as_the_api_server_does(
    direct: Kubectl, streaming: Kubectl, pod: tuple[str, str], arguments: tuple[str, ...]
) -> None:
    command = ("exec", "-n", pod[0], *arguments, "--", "/no/such/program")
    assert_same(direct.with_environ(**streaming.environ).attempt(*command), streaming.attempt(*command))


def test_standard_input_arrives_whole_and_its_end_too(streaming: Kubectl, pod: tuple[str, str]) -> None:
    content = secrets.token_bytes(20 << 20)
    result = streaming(*_exec(pod, "md5sum", options=("-i",)), stdin=content)
    assert result.text.split()[0] == hashlib.md5(content, usedforsecurity=False).hexdigest()


def test_bytes_come_back_as_they_went(streaming: Kubectl, pod: tuple[str, str]) -> None:
    content = secrets.token_bytes(5 << 20)
    assert streaming(*_exec(pod, "cat", options=("-i",)), stdin=content).stdout == content


def test_a_dialogue_is_not_held_back(streaming: Kubectl, pod: tuple[str, str]) -> None:
    with streaming.running(*_exec(pod, "cat", options=("-i",)), stdin=subprocess.PIPE) as running:
        assert running.popen.stdin is not None
        for number in range(20):
            running.popen.stdin.write(f"line {number}\n".encode())
            running.popen.stdin.flush()
            sent = time.monotonic()
            running.wait_for(rf"^line {number}$", seconds=15)
            assert number == 0 or time.monotonic() - sent < 0.5
        running.popen.stdin.close()
        assert running.wait(seconds=5) == 0


def test_a_command_that_ends_while_standard_input_is_open_ends_kubectl(
    streaming: Kubectl, pod: tuple[str, str]
) -> None:
    with streaming.running(*_exec(pod, "sh", "-c", "exit 5", options=("-i",)), stdin=subprocess.PIPE) as running:
        assert running.wait(seconds=10) == 5
        assert running.popen.stdin is not None
        running.popen.stdin.close()


def test_the_command_learns_that_kubectl_was_killed(streaming: Kubectl, pod: tuple[str, str]) -> None:
    marker = f"ended-{secrets.token_hex(4)}"
    script = f"echo ready; cat; echo yes > {marker}"
    with streaming.running(*_exec(pod, "sh", "-c", script, options=("-i",)), stdin=subprocess.PIPE) as running:
        running.wait_for("ready")
        running.popen.kill()
        killed = time.monotonic()
        until(
            lambda: streaming.attempt(*_exec(pod, "cat", marker)).returncode == 0,
            seconds=10,
            what="the command's input ends",
        )
        assert time.monotonic() - killed < 5
        assert running.popen.stdin is not None
        running.popen.stdin.close()


def _type_until_size(terminal: Terminal, wanted: str) -> None:
    """Ask for the size until it is this one: sizes travel on a stream of their own, and may come after what is typed."""
    for _ in range(50):
        terminal.type("again\n")
        if terminal.wait_for(r"(\d+ \d+)\r?\n")[1] == wanted:
            return
        time.sleep(0.1)
    pytest.fail(f"the size {wanted} did not arrive")


def test_a_terminal_has_the_callers_size_and_follows_it(streaming: Kubectl, pod: tuple[str, str]) -> None:
    script = "echo ready; while read line; do test $line = end && exit 6; stty size; done"
    command = [str(streaming.program), *_exec(pod, "sh", "-c", script, options=("-it",))]
    with on_terminal(command, streaming.full_environ(), rows=31, columns=77) as terminal:
        terminal.wait_for("ready")
        _type_until_size(terminal, "31 77")
        terminal.resize(rows=42, columns=99)
        _type_until_size(terminal, "42 99")
        terminal.type("end\n")
        assert terminal.wait() == 6


def test_attach_reaches_the_main_process(bed: Bed, streaming: Kubectl, namespace: str) -> None:
    script = "while read line; do echo got $line; test $line = end && exit 0; done"
    bed.run_pod(namespace, "reader", ["sh", "-c", script], stdin=True)
    with streaming.running("attach", "-n", namespace, "reader", "-i", stdin=subprocess.PIPE) as attached:
        assert attached.popen.stdin is not None
        for word in ("one", "two", "end"):
            attached.popen.stdin.write(f"{word}\n".encode())
            attached.popen.stdin.flush()
            attached.wait_for(f"^got {word}$")
        attached.popen.stdin.close()
        assert attached.wait(seconds=10) == 0


def test_run_with_a_standard_input_ends_as_the_command_does(streaming: Kubectl, bed: Bed, namespace: str) -> None:
    name = f"once-{secrets.token_hex(3)}"
    command = ["run", name, f"--image={bed.cluster.image}", "-n", namespace, "--rm", "-i", "--restart=Never", "--quiet"]
    result = streaming.attempt(*command, "--command", "--", "sh", "-c", "cat; exit 4", stdin=b"typed\n")
    assert (result.returncode, result.text.splitlines()[0]) == (4, "typed")


@pytest.fixture(scope="session")
def big_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 MB that do not compress."""
    path = tmp_path_factory.mktemp("cp") / "big"
    block = secrets.token_bytes(1 << 20)
    with path.open("wb") as stream:
        for number in range(200):
            stream.write(number.to_bytes(4, "big") + block[4:])
    return path


@pytest.fixture
def copying(streaming: Kubectl, route: Route, bed: Bed) -> Iterator[Kubectl]:
    """Like `streaming`, with an agent of its own that has a `Reservoir` before it: no end is lost by Kubernetes itself."""
    if bed.tunnel is None or bed.cluster.own is None:
        yield streaming
        return
    with Reservoir(upstream_port=bed.cluster.own.port).running() as port:
        served = {"kubeconfig": str(bed.cluster.own.agent_kubeconfig_at(port))}
        address = bed.tunnel.agents_address(route.name)
        with bed.tunnel.extra_agent(f"{route.name}-copies", address=address, kubernetes=served) as agent:
            yield streaming.with_kubeconfig(bed.tunnel.kubeconfig_on(route.name, agent))


@pytest.mark.timeout(240)
def test_200_megabytes_survive_cp_there_and_back(
    copying: Kubectl, bed: Bed, namespace: str, big_file: Path, tmp_path: Path
) -> None:
    bed.run_pod(namespace, "store", ["sleep", "infinity"])
    copying("cp", "-n", namespace, str(big_file), "store:copy", seconds=100)
    returned = tmp_path / "returned"
    copying("cp", "-n", namespace, "store:copy", str(returned), seconds=100)
    with big_file.open("rb") as sent, returned.open("rb") as got:
        assert hashlib.file_digest(sent, "sha1").digest() == hashlib.file_digest(got, "sha1").digest()
    returned.unlink()
    copying("exec", "-n", namespace, "store", "--", "rm", "copy")


def test_logs_are_whole(direct: Kubectl, route: Route, bed: Bed, namespace: str) -> None:
    bed.apply(bed.pod_manifest("writer", ["seq", "1", "2000000"]), namespace=namespace)
    direct("wait", "-n", namespace, "pod/writer", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s")
    assert route.kubectl("logs", "-n", namespace, "writer").stdout == SEQUENCE
    for options in ("--tail=3", "--limit-bytes=100000", "--timestamps --tail=2", "-f --tail=5", "--since=1h --tail=1"):
        command = ("logs", "-n", namespace, "writer", *options.split())
        assert_same(direct.attempt(*command), route.kubectl.attempt(*command))


def test_followed_logs_come_line_by_line_and_end_with_the_container(route: Route, bed: Bed, namespace: str) -> None:
    script = "while ! test -e go; do sleep 0.1; done; for i in 1 2 3 4 5; do echo $i; sleep 0.4; done"
    bed.run_pod(namespace, "slow", ["sh", "-c", script])
    with route.kubectl.running("logs", "-n", namespace, "-f", "slow") as follower:
        time.sleep(1)
        assert follower.stdout == ""
        route.kubectl("exec", "-n", namespace, "slow", "--", "touch", "go")
        times = []
        for number in range(1, 6):
            follower.wait_for(f"^{number}$", seconds=10)
            times.append(time.monotonic())
        assert all(0.2 < later - earlier < 0.8 for earlier, later in itertools.pairwise(times))
        assert follower.wait(seconds=10) == 0


@pytest.mark.own_cluster
@pytest.mark.timeout(180)
async def test_1000_connections_go_through_one_port_forward(streaming: Kubectl, pod: tuple[str, str]) -> None:
    async def echo(stream: trio.SocketStream) -> None:
        async with stream:
            async for data in stream:
                await stream.send_all(data)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
        backend = listener.socket.getsockname()[1]
        with streaming.running("port-forward", "-n", pod[0], pod[1], f":{backend}") as forward:
            port = int(forward.wait_for(r"127.0.0.1:(\d+) ->")[1])
            limit = trio.CapacityLimiter(50)
            done = []

            async def one(number: int) -> None:
                content = f"{number};".encode() * 500
                async with limit, await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    await stream.send_all(content)
                    await stream.send_eof()
                    received = b"".join([data async for data in stream])
                assert received == content
                done.append(number)

            with trio.fail_after(120):
                async with trio.open_nursery() as clients:
                    for number in range(1000):
                        clients.start_soon(one, number)
                    clients.start_soon(_read_along, forward, done)
            assert len(done) == 1000
            assert "error" not in forward.stderr.lower(), forward.stderr[-2000:]
            assert forward.popen.poll() is None
        nursery.cancel_scope.cancel()


async def _read_along(forward: Running, done: list[int]) -> None:
    """Read what kubectl says about each connection, so that it never waits for us."""
    while len(done) < 1000:
        _ = forward.stdout, forward.stderr
        await trio.sleep(0.05)


@pytest.mark.own_cluster
async def test_half_close_and_close_of_a_forwarded_connection_arrive_at_once(
    streaming: Kubectl, pod: tuple[str, str]
) -> None:
    seen_end = trio.Event()

    async def backend(stream: trio.SocketStream) -> None:
        async with stream:
            command = await stream.receive_some(4)
            if command == b"sum.":
                digest = hashlib.sha1(usedforsecurity=False)
                async for data in stream:
                    digest.update(data)
                await stream.send_all(digest.hexdigest().encode())
            elif command == b"bye.":
                return
            elif command == b"wait":
                async for _ in stream:
                    pass
                seen_end.set()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, backend, 0, host="127.0.0.1"))
        with streaming.running("port-forward", "-n", pod[0], pod[1], f":{listener.socket.getsockname()[1]}") as forward:
            port = int(forward.wait_for(r"127.0.0.1:(\d+) ->")[1])
            content = secrets.token_bytes(10 << 20)
            with trio.fail_after(30):
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    await stream.send_all(b"sum." + content)
                    await stream.send_eof()
                    answer = b"".join([data async for data in stream])
            assert answer.decode() == hashlib.sha1(content, usedforsecurity=False).hexdigest()
            with trio.fail_after(1):
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    await stream.send_all(b"bye.")
                    assert await stream.receive_some() == b""
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(b"wait")
            await trio.sleep(0.2)
            await stream.aclose()
            with trio.fail_after(1):
                await seen_end.wait()
        nursery.cancel_scope.cancel()


@pytest.mark.own_cluster
async def test_a_large_transfer_through_a_port_forward_is_whole_in_both_directions(
    streaming: Kubectl, pod: tuple[str, str]
) -> None:
    content = secrets.token_bytes(50 << 20)

    async def echo(stream: trio.SocketStream) -> None:
        async with stream:
            async for data in stream:
                await stream.send_all(data)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
        with streaming.running("port-forward", "-n", pod[0], pod[1], f":{listener.socket.getsockname()[1]}") as forward:
            port = int(forward.wait_for(r"127.0.0.1:(\d+) ->")[1])
            received = bytearray()
            with trio.fail_after(60):
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream, trio.open_nursery() as both:

                    async def send() -> None:
                        await stream.send_all(content)
                        await stream.send_eof()

                    both.start_soon(send)
                    async for data in stream:
                        received += data
            assert bytes(received) == content
        nursery.cancel_scope.cancel()


@pytest.mark.own_cluster
def test_a_port_that_nobody_listens_on_is_reported_and_the_forward_goes_on(
    streaming: Kubectl, pod: tuple[str, str]
) -> None:
    with streaming.running("port-forward", "-n", pod[0], pod[1], ":1") as forward:
        port = forward.wait_for(r"127.0.0.1:(\d+) ->")[1]
        subprocess.run(["curl", "--silent", "--max-time", "5", f"http://127.0.0.1:{port}/"], check=False)
        forward.wait_for("connection refused", stream="stderr")


@pytest.mark.own_cluster
def test_each_command_is_started_exactly_once(streaming: Kubectl, bed: Bed, pod: tuple[str, str]) -> None:
    assert bed.cluster.own is not None
    marker = secrets.token_hex(8)
    for _ in range(5):
        streaming(*_exec(pod, "echo", marker))
    assert [start["command"] for start in bed.cluster.own.starts()].count(["echo", marker]) == 5
