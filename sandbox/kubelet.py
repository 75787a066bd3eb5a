"""The make-believe life of pods: scheduled, created, running, writing logs, restarting, ending.

A container whose command the sandbox's shell knows runs that command; every other one pretends to be a web server. The
annotation `FAILS_AFTER` lets one fail now and then; an image with the tag ``missing`` cannot be pulled.
"""

from __future__ import annotations

import dataclasses
import logging
import random

import trio

from sandbox.console import Console
from sandbox.kinds import NODES, PODS, Object
from sandbox.logs import Log
from sandbox.recorder import Recorder
from sandbox.shell import SHELLS, Shell, knows
from sandbox.status import ApiError, not_found
from sandbox.store import Store, timestamp

logger = logging.getLogger(__name__)

FAILS_AFTER = "sandbox/fails-after-seconds"
PODS_PER_NODE = 110
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


class Kubelet:
    """All nodes at once."""

    def __init__(self, store: Store, recorder: Recorder, randomness: random.Random) -> None:
        self._store = store
        self._recorder = recorder
        self._random = randomness
        self._lives: dict[str, trio.CancelScope] = {}
        self._containers: dict[str, dict[str, Container]] = {}
        self._last_address = 1
        self._room = trio.lowlevel.ParkingLot()  # pods wait here for a node to take them

    def container(self, pod: Object, name: str) -> Container | None:
        """The container of that name, once it has been created."""
        return self._containers.get(pod["metadata"]["uid"], {}).get(name)

    async def run(self) -> None:
        """Let pods live, until cancelled."""
        nodes: list[Object] = []
        placed = 0
        async with trio.open_nursery() as nursery:
            while True:
                revision = self._store.revision
                pods = {pod["metadata"]["uid"]: pod for pod in self._store.objects(PODS)}
                placed_before, placed = placed, sum("nodeName" in pod["spec"] for pod in pods.values())
                nodes_before, nodes = nodes, self._store.objects(NODES)
                if placed < placed_before or nodes != nodes_before:
                    self._room.unpark_all()
                for uid in self._lives.keys() - pods.keys():
                    self._lives[uid].cancel()
                for uid, pod in pods.items():
                    if uid not in self._lives:
                        self._lives[uid] = trio.CancelScope()
                        nursery.start_soon(self._live, pod, self._lives[uid], name=f"pod {pod['metadata']['name']}")
                    elif "deletionTimestamp" in pod["metadata"] and not self._lives[uid].cancel_called:
                        self._lives[uid].cancel()
                        nursery.start_soon(self._end, pod)
                await self._store.wait_beyond(revision)

    async def _live(self, pod: Object, scope: trio.CancelScope) -> None:
        uid = pod["metadata"]["uid"]
        try:
            with scope:
                await trio.sleep(self._random.uniform(0.1, 0.4))
                await self._schedule(pod)
                self._create_containers(pod)
                await trio.sleep(self._random.uniform(0.6, 1.6))
                async with trio.open_nursery() as nursery:
                    for container in self._containers[uid].values():
                        nursery.start_soon(self._run_container, pod, container)
                await trio.sleep_forever()
        except* ApiError:
            pass  # it was removed at once, and the one that lived here has not been told yet
        except* Exception:  # one pod that makes no sense must not end the sandbox
            logger.exception("sandbox: pod %s failed", pod["metadata"]["name"])
        finally:
            for container in self._containers.pop(uid, {}).values():
                container.log.close()
            if self._store.find(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"]) is None:
                self._lives.pop(uid, None)

    async def _end(self, pod: Object) -> None:
        """Remove a pod that was asked to go, after a moment of grace."""
        self._note(pod, "Killing", "Stopping the containers")
        await trio.sleep(min(pod["metadata"]["deletionGracePeriodSeconds"], ENDING_SECONDS))
        metadata = pod["metadata"]
        found = self._store.find(PODS, metadata["namespace"], metadata["name"])
        if found is not None and found["metadata"]["uid"] == metadata["uid"]:
            self._store.delete(PODS, found)
        self._lives.pop(metadata["uid"], None)

    async def _schedule(self, pod: Object) -> None:
        """Find a node with room; wait until there is one."""
        store = self._store
        while not self._present(pod)["spec"].get("nodeName"):
            counts = {node["metadata"]["name"]: 0 for node in store.objects(NODES) if self._suits(node, pod)}
            for other in store.objects(PODS):
                if (name := other["spec"].get("nodeName")) in counts:
                    counts[name] += 1
            name = min(counts, key=lambda name: counts[name], default=None)
            if name is not None and counts[name] < PODS_PER_NODE:
                store.patch(PODS, pod, {"spec": {"nodeName": name}})
                message = f"Successfully assigned {pod['metadata']['namespace']}/{pod['metadata']['name']} to {name}"
                self._note(pod, "Scheduled", message, component="default-scheduler")
                return
            message = f"0/{len(store.objects(NODES))} nodes are available"
            self._publish(pod, [], scheduled=message)
            await self._room.park()

    def _suits(self, node: Object, pod: Object) -> bool:
        wanted, labels = pod["spec"].get("nodeSelector") or {}, node["metadata"].get("labels") or {}
        return not node["spec"].get("unschedulable") and wanted.items() <= labels.items()

    def _create_containers(self, pod: Object) -> None:
        self._last_address += 1
        address = f"10.244.{self._last_address // 250 % 250}.{self._last_address % 250 + 2}"
        moment = timestamp(self._store.now())
        self._store.patch(PODS, pod, {"status": {"startTime": moment, "podIP": address, "podIPs": [{"ip": address}]}})
        containers = {}
        for spec in pod["spec"]["containers"]:
            status = {"name": spec["name"], "image": spec["image"], "imageID": "", "ready": False, "restartCount": 0}
            status |= {"started": False, "lastState": {}, "state": {"waiting": {"reason": "ContainerCreating"}}}
            containers[spec["name"]] = Container(spec, status, Log(self._store.now))
            self._note(pod, "Pulling", f'Pulling image "{spec["image"]}"')
        self._containers[pod["metadata"]["uid"]] = containers
        self._publish(pod, list(containers.values()))

    async def _run_container(self, pod: Object, container: Container) -> None:
        """The lives of one container, until it is not to be started again."""
        uid, spec, status = pod["metadata"]["uid"], container.spec, container.status
        siblings = list(self._containers[uid].values())
        if spec["image"].endswith(":missing"):
            for reason in ("ErrImagePull", "ImagePullBackOff"):
                status["state"] = {"waiting": {"reason": reason, "message": "the sandbox pretends not to find it"}}
                self._publish(pod, siblings)
                self._note(pod, "Failed", f'Failed to pull image "{spec["image"]}"', warning=True)
                await trio.sleep(2)
            await trio.sleep_forever()
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
            policy = pod["spec"]["restartPolicy"]
            if policy == "Never" or (policy == "OnFailure" and not code):
                return
            seconds = BACK_OFF_SECONDS[min(status["restartCount"], len(BACK_OFF_SECONDS) - 1)]
            message = f"back-off {seconds:g}s restarting failed container={spec['name']}"
            status |= {"lastState": {"terminated": state}}
            await trio.sleep(1)
            status["state"] = {"waiting": {"reason": "CrashLoopBackOff", "message": message}}
            self._publish(pod, siblings)
            self._note(pod, "BackOff", f"Back-off restarting failed container {spec['name']}", warning=True)
            await trio.sleep(seconds)
            status["restartCount"] += 1
            container.previous, container.log = container.log, Log(self._store.now)
            container.ended = trio.Event()

    async def _program(self, pod: Object, container: Container) -> int:
        """What runs in a container; returns its exit code."""
        arguments = [*(container.spec.get("command") or []), *(container.spec.get("args") or [])]
        if container.spec.get("stdin") and (not arguments or arguments[0].rpartition("/")[2] in SHELLS):
            await container.ended.wait()
            return container.exit_code
        if arguments and knows(arguments[0]):
            console = Console(container.log.write)
            console.close_input()
            return await Shell(self._present(pod), container.spec, console, self._store.now).run(arguments)
        await container.log.write(f"{container.spec['image']}: make-believe server of the sandbox is up\n".encode())
        limit = (pod["metadata"].get("annotations") or {}).get(FAILS_AFTER, "")
        with trio.move_on_after(float(limit) if limit.isdecimal() else float("inf")):
            while True:
                await trio.sleep(self._random.uniform(0.5, 3))
                location, spent = self._random.choice(_LOCATIONS), self._random.randrange(1, 40)
                await container.log.write(f"GET {location} 200 {spent}ms\n".encode())
        await container.log.write(b"panic: pretending to fail, as the annotation asks\n")
        return 1

    def _publish(self, pod: Object, containers: list[Container], *, scheduled: str = "") -> None:
        """Write the status of a pod that follows from its containers."""
        states = [container.status["state"] for container in containers]
        ended = [state["terminated"]["exitCode"] for state in states if "terminated" in state]
        is_over = bool(states) and len(ended) == len(states) and pod["spec"]["restartPolicy"] != "Always"
        is_over = is_over and (pod["spec"]["restartPolicy"] == "Never" or not any(ended))
        is_ready = bool(states) and all(container.status["ready"] for container in containers)
        has_begun = any("waiting" not in state or container.status["restartCount"] or container.status["lastState"]
                        for state, container in zip(states, containers, strict=True))  # fmt: skip
        present = self._present(pod)
        moment = timestamp(self._store.now())
        before = {item["type"]: item for item in (present.get("status") or {}).get("conditions") or []}
        truths = {"PodScheduled": not scheduled, "Initialized": not scheduled}
        truths |= {"ContainersReady": is_ready, "Ready": is_ready}
        conditions = []
        for kind, truth in truths.items():
            value = "True" if truth else "False"
            condition: Object = {"type": kind, "status": value, "lastProbeTime": None, "lastTransitionTime": moment}
            if kind == "PodScheduled" and scheduled:
                condition |= {"reason": "Unschedulable", "message": scheduled}
            same = before.get(kind, {}).get("status") == value
            conditions.append(before[kind] if same else condition)
        phase = ("Failed" if any(ended) else "Succeeded") if is_over else "Running" if has_begun else "Pending"
        status = {"phase": phase, "conditions": conditions, "qosClass": "BestEffort", "hostIP": "172.18.0.2"}
        if containers:
            status["containerStatuses"] = [dict(container.status) for container in containers]
        self._store.patch(PODS, pod, {"status": status})

    def _present(self, pod: Object) -> Object:
        present = self._store.get(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"])
        if present["metadata"]["uid"] != pod["metadata"]["uid"]:
            raise not_found(PODS, pod["metadata"]["name"])
        return present

    def _note(
        self, pod: Object, reason: str, message: str, *, component: str = "kubelet", warning: bool = False
    ) -> None:
        self._recorder.record(pod, reason, message, component=component, warning=warning)
