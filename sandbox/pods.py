"""What can be done with a pod beside reading and writing it: logs, exec, attach, port-forward."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

import trio

from sandbox import port_forward
from sandbox.calls import Call
from sandbox.console import Console
from sandbox.documents import encode
from sandbox.kinds import PODS, Object
from sandbox.kubelet import Container, Kubelet
from sandbox.logs import LogReader
from sandbox.shell import Shell
from sandbox.status import bad_request
from sandbox.store import Store
from sandbox.websockets import WebSocket, accepted

PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
STDIN, STDOUT, STDERR, ERROR, CLOSE = b"\0", b"\1", b"\2", b"\3", b"\xff"


class PodStreams:
    """The subresources of pods that carry bytes."""

    def __init__(self, store: Store, kubelet: Kubelet) -> None:
        self._store = store
        self._kubelet = kubelet

    async def serve(self, call: Call, namespace: str, name: str, subresource: str) -> None:
        """Answer a request for one of them. Raises `ApiError`."""
        pod = self._store.get(PODS, namespace, name)
        container = self._container(call, pod)
        match subresource:
            case "log":
                await self._log(call, pod, container)
            case "exec":
                await self._exec(call, pod, container)
            case "attach":
                await self._attach(call, pod, container)
            case "portforward":
                await port_forward.forward(call, pod, container.log)

    def _container(self, call: Call, pod: Object) -> Container:
        """The container that is meant: the first one, where nothing is said. Raises `ApiError`."""
        names = [item["name"] for item in pod["spec"]["containers"]]
        name, pod_name = call.query.get("container") or names[0], pod["metadata"]["name"]
        if name not in names:
            raise bad_request(f"container {name} is not valid for pod {pod_name}")
        container = self._kubelet.container(pod, name)
        if container is None or container.status["state"].get("waiting", {}).get("reason") == "ContainerCreating":
            raise bad_request(f'container "{name}" in pod "{pod_name}" is waiting to start: ContainerCreating')
        return container

    async def _log(self, call: Call, pod: Object, container: Container) -> None:
        log = container.previous if call.is_set("previous") else container.log
        if log is None:
            place = f'"{container.spec["name"]}" in pod "{pod["metadata"]["name"]}"'
            raise bad_request(f"previous terminated container {place} not found")
        seconds, tail = call.number("sinceSeconds"), call.number("tailLines")
        since = None if seconds is None else self._store.now() - timedelta(seconds=seconds)
        follow, timestamps = call.is_set("follow"), call.is_set("timestamps")
        await call.begin("text/plain")
        reader = LogReader(log, follow=follow, tail=tail, since=since, timestamps=timestamps)
        while piece := await reader.receive():
            await call.downstream.writer.send(piece)
        await call.downstream.writer.finish()

    async def _exec(self, call: Call, pod: Object, container: Container) -> None:
        command = call.values.get("command")
        if not command:
            raise bad_request("you must specify at least one command for the container")
        if "running" not in container.status["state"]:
            raise bad_request(f"container {container.spec['name']} is not running")

        async def run(console: Console) -> int:
            return await Shell(pod, container.spec, console, self._store.now).run(command)

        await _in_socket(call, run)

    async def _attach(self, call: Call, pod: Object, container: Container) -> None:
        async def run(console: Console) -> int:
            if container.is_interactive:
                container.exit_code = await Shell(pod, container.spec, console, self._store.now).run(["sh"])
                container.ended.set()
                return container.exit_code
            reader = LogReader(container.log, follow=True, tail=0)
            while piece := await reader.receive():
                await console.write(piece.decode(errors="replace"))
            return 0

        await _in_socket(call, run)


async def _in_socket(call: Call, run: Callable[[Console], Awaitable[int]]) -> None:
    """Run a command with its streams in a WebSocket, and say how it ended."""
    is_terminal = call.is_set("tty")
    async with accepted(call, PROTOCOLS) as socket:

        async def output(data: bytes) -> None:
            await socket.send(STDOUT + data)

        async def error(data: bytes) -> None:
            await socket.send((STDOUT if is_terminal else STDERR) + data)

        console = Console(output, error, is_terminal=is_terminal)
        if not call.is_set("stdin"):
            console.close_input()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_read_input, socket, console, nursery.cancel_scope)
            code = await run(console)
            await socket.send(ERROR + encode(_outcome(code)))
            nursery.cancel_scope.cancel()


async def _read_input(socket: WebSocket, console: Console, scope: trio.CancelScope) -> None:
    while (message := await socket.receive()) is not None:
        channel, data = message[:1], message[1:]
        if channel == STDIN:
            await console.feed(data)
        elif channel == CLOSE and data == STDIN:
            console.close_input()
    scope.cancel()


def _outcome(code: int) -> Object:
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    causes = [{"reason": "ExitCode", "message": str(code)}]
    status = {"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": causes}}
    return status | {"message": f"command terminated with non-zero exit code: exit status {code}"}
