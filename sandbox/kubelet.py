"""The make-believe life of pods on their nodes: created, running, writing logs, restarting, ending.

A container whose command the sandbox's shell knows runs that command; every other one pretends to be a web server. The
annotation `FAILS_AFTER` lets one fail now and then.
"""

from __future__ import annotations

import dataclasses
import logging
import random

import trio

from sandbox.console import Console
from sandbox.kinds import PODS, Object
from sandbox.logs import Log
from sandbox.objects import condition, is_going, timestamp
from sandbox.recorder import Recorder
from sandbox.shell import Shell, is_shell, knows
from sandbox.status import ApiError, not_found
from sandbox.store import Store

logger = logging.getLogger(__name__)

FAILS_AFTER = "sandbox/fails-after-seconds"
BACK_OFF_SECONDS = (1.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0)
ENDING_SECONDS = 1.0
_LOCATIONS = ("/", "/", "/", "/healthz", "/favicon.ico", "/api/items")


@dataclasses.dataclass(slots=True, eq=False)
class Container:
    """One container, and what it has written in this life and the last."""

    spec: Object
    status: Object
    log: Log
    previous: Log | None = None
    ended: trio.Event = dataclasses.field(default_factory=trio.Event)
    """Set by whoever was attached to its shell and left it."""
    exit_code: int = 0

    @property
    def command(self) -> list[str]:
        """What it runs, as far as its specification says."""
        return [*(self.spec.get("command") or []), *(self.spec.get("args") or [])]

    @property
    def is_interactive(self) -> bool:
        """Whether it is a shell that somebody may attach to."""
        return bool(self.spec.get("stdin")) and (not self.command or is_shell(self.command[0]))


class Kubelet:
    """All nodes at once."""

    def __init__(self, store: Store, recorder: Recorder, randomness: random.Random) -> None:
        self._store = store
        self._recorder = recorder
        self._random = randomness
        self._lives: dict[str, trio.CancelScope] = {}
        self._containers: dict[str, dict[str, Container]] = {}
        self._last_address = 1

    def container(self, pod: Object, name: str) -> Container | None:
        """The container of that name, once it has been created."""
        return self._containers.get(pod["metadata"]["uid"], {}).get(name)

    async def run(self) -> None:
        """Let pods live, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                revision = self._store.revision
                placed = [pod for pod in self._store.objects(PODS) if pod["spec"].get("nodeName")]
                staying = {pod["metadata"]["uid"] for pod in placed if not is_going(pod)}
                for pod in placed:
                    uid = pod["metadata"]["uid"]
                    if uid not in self._lives and (uid in staying or not pod["metadata"].get("finalizers")):
                        self._lives[uid] = trio.CancelScope()
                        nursery.start_soon(self._live, pod, self._lives[uid], name=f"pod {pod['metadata']['name']}")
                for uid in self._lives.keys() - staying:
                    self._lives[uid].cancel()
                await self._store.wait_beyond(revision)

    async def _live(self, pod: Object, scope: trio.CancelScope) -> None:
        uid = pod["metadata"]["uid"]
        with scope:
            try:
                await trio.sleep(self._random.uniform(0.1, 0.4))
                containers = self._containers[uid] = self._create_containers(pod)
                await trio.sleep(self._random.uniform(0.6, 1.6))
                async with trio.open_nursery() as nursery:
                    for container in containers.values():
                        nursery.start_soon(self._run_container, pod, container)
            except* ApiError:
                pass  # it was removed at once, and the one that lived here has not been told yet
            except* Exception:  # one pod that makes no sense must not end the sandbox
                logger.exception("sandbox: pod %s failed", pod["metadata"]["name"])
            await trio.sleep_forever()
        for container in self._containers.pop(uid, {}).values():
            container.log.close()
        if (present := self._find(pod)) is not None:
            self._note(pod, "Killing", "Stopping the containers")
            await trio.sleep(min(present["metadata"]["deletionGracePeriodSeconds"], ENDING_SECONDS))
        if (present := self._find(pod)) is not None:  # nobody was in a greater hurry
            self._store.delete(PODS, present)
        del self._lives[uid]

    def _create_containers(self, pod: Object) -> dict[str, Container]:
        self._last_address += 1
        address = f"10.244.{self._last_address // 250 % 250}.{self._last_address % 250 + 2}"
        moment = timestamp(self._store.now())
        self._patch(pod, {"startTime": moment, "podIP": address, "podIPs": [{"ip": address}], "hostIP": "172.18.0.2"})
        containers = {}
        for spec in pod["spec"]["containers"]:
            status = {"name": spec["name"], "image": spec["image"], "imageID": "", "ready": False, "restartCount": 0}
            status |= {"started": False, "lastState": {}, "state": {"waiting": {"reason": "ContainerCreating"}}}
            containers[spec["name"]] = Container(spec, status, Log(self._store.now))
            self._note(pod, "Pulling", f'Pulling image "{spec["image"]}"')
        self._publish(pod, list(containers.values()))
        return containers

    async def _run_container(self, pod: Object, container: Container) -> None:
        """The lives of one container, until it is not to be started again."""
        uid, spec, status = pod["metadata"]["uid"], container.spec, container.status
        siblings, policy = list(self._containers[uid].values()), pod["spec"]["restartPolicy"]
        self._note(pod, "Pulled", f'Successfully pulled image "{spec["image"]}"')
        while True:
            started = timestamp(self._store.now())
            status |= {"ready": True, "started": True, "state": {"running": {"startedAt": started}}}
            status |= {
                "containerID": f"sandbox://{uid}-{status['restartCount']}",
                "imageID": f"sandbox/{spec['image']}",
            }
            self._publish(pod, siblings)
            self._note(pod, "Started", f"Started container {spec['name']}")
            code = await self._program(pod, container)
            container.log.close()
            state: Object = {"exitCode": code, "reason": "Error" if code else "Completed", "startedAt": started}
            state["finishedAt"] = timestamp(self._store.now())
            status |= {"ready": False, "started": False, "state": {"terminated": state}}
            self._publish(pod, siblings)
            if policy == "Never" or (policy == "OnFailure" and not code):
                return
            await trio.sleep(1)
            seconds = BACK_OFF_SECONDS[min(status["restartCount"], len(BACK_OFF_SECONDS) - 1)]
            message = f"back-off {seconds:g}s restarting failed container={spec['name']}"
            status["lastState"] = {"terminated": state}
            status["state"] = {"waiting": {"reason": "CrashLoopBackOff", "message": message}}
            self._publish(pod, siblings)
            self._note(pod, "BackOff", f"Back-off restarting failed container {spec['name']}", warning=True)
            await trio.sleep(seconds)
            status["restartCount"] += 1
            container.previous, container.log = container.log, Log(self._store.now)
            container.ended = trio.Event()

    async def _program(self, pod: Object, container: Container) -> int:
        """What runs in a container; returns its exit code."""
        if container.is_interactive:
            await container.ended.wait()
            return container.exit_code
        if container.command and knows(container.command[0]):
            console = Console(container.log.write)
            console.close_input()
            return await Shell(pod, container.spec, console, self._store.now).run(container.command)
        await container.log.write(f"{container.spec['image']}: make-believe server of the sandbox is up\n".encode())
        limit = (pod["metadata"].get("annotations") or {}).get(FAILS_AFTER, "")
        with trio.move_on_after(float(limit) if limit.isdecimal() else float("inf")):
            while True:
                await trio.sleep(self._random.uniform(0.5, 3))
                location, spent = self._random.choice(_LOCATIONS), self._random.randrange(1, 40)
                await container.log.write(f"GET {location} 200 {spent}ms\n".encode())
        await container.log.write(b"panic: pretending to fail, as the annotation asks\n")
        return 1

    def _publish(self, pod: Object, containers: list[Container]) -> None:
        """Write the status of a pod that follows from its containers."""
        statuses, policy = [dict(container.status) for container in containers], pod["spec"]["restartPolicy"]
        ended = [item["state"]["terminated"]["exitCode"] for item in statuses if "terminated" in item["state"]]
        phase = "Pending"
        if len(ended) == len(statuses) and (policy == "Never" or (policy == "OnFailure" and not any(ended))):
            phase = "Failed" if any(ended) else "Succeeded"
        elif any("waiting" not in item["state"] or item["lastState"] for item in statuses):
            phase = "Running"
        is_ready, moment = all(item["ready"] for item in statuses), timestamp(self._store.now())
        truths = {"PodScheduled": True, "Initialized": True, "ContainersReady": is_ready, "Ready": is_ready}
        present = self._find(pod) or pod
        conditions = [condition(present, kind, moment, is_true=truth) for kind, truth in truths.items()]
        self._patch(pod, {"phase": phase, "conditions": conditions, "containerStatuses": statuses})

    def _patch(self, pod: Object, status: Object) -> None:
        """Change the status of a pod. Raises `ApiError` where it is gone."""
        if self._find(pod) is None:
            raise not_found(PODS, pod["metadata"]["name"])
        self._store.patch(PODS, pod, {"status": status})

    def _find(self, pod: Object) -> Object | None:
        """The pod as it is by now; None where it is gone, even if there is another one of its name."""
        found = self._store.find(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"])
        return found if found is not None and found["metadata"]["uid"] == pod["metadata"]["uid"] else None

    def _note(self, pod: Object, reason: str, message: str, *, warning: bool = False) -> None:
        self._recorder.record(pod, reason, message, component="kubelet", warning=warning)
