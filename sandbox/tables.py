"""The forms in which objects are shown: whole, as metadata alone, or as rows of a table, which ``kubectl get`` prints.

The columns of each kind, and where their cells come from, stand in ``kinds.yaml``. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from sandbox.kinds import Kind, Object
from sandbox.objects import conditions_of, is_going

_NONE, _UNKNOWN = "<none>", "<unknown>"
_ROLE = "node-role.kubernetes.io/"


def columns(kind: Kind) -> list[Object]:
    """The column definitions of a kind."""
    return [
        {
            "name": title.removeprefix("*"),
            "type": "integer" if source.endswith(" integer") else "string",
            "format": "name" if title.endswith("Name") else "",
            "description": "",
            "priority": int(title.startswith("*")),
        }
        for title, source in kind.columns.items()
    ]


def cells(kind: Kind, document: Object, now: datetime) -> list[str | int]:
    """The cells of an object, in the order of the columns."""
    return [_cell(source, document, now) for source in kind.columns.values()]


def _cell(source: str, document: Object, now: datetime) -> str | int:
    name, default, *how = [*source.split(), _NONE][:3]
    if name in _AGES:
        return age(_AGES[name](document), now)
    if name == "restarts":
        return _restarts(document, now)
    if name in _CELLS:
        return _CELLS[name](document)
    found = _values(document, name)
    if "three" in how:
        return _first_three(found) or default
    if len(found) == 1 and isinstance(found[0], int):
        return found[0]
    return ",".join(map(str, found)) or (int(default) if default.isdecimal() else default)


def _values(document: Any, path: str) -> list[Any]:
    """What a path leads to: through each item of a list, and at the end of it the words of labels."""
    found = [document]
    for part in path.split("."):
        inner = [item.get(part) for item in found if isinstance(item, dict)]
        found = [item for value in inner for item in (value if isinstance(value, list) else [value])]
    words = [
        sorted(f"{key}={word}" for key, word in item.items()) if isinstance(item, dict) else [item] for item in found
    ]
    return [word for item in words for word in item if word not in (None, "")]


def age(stamp: str | None, now: datetime) -> str:
    """How long ago a timestamp was, as kubectl writes it: precise where it is short."""
    if not stamp:
        return _UNKNOWN
    seconds = int((now - datetime.fromisoformat(stamp)).total_seconds())
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{max(seconds, 0)}s" if seconds >= -1 else "<invalid>"
    if minutes < 180:
        return _two(minutes, "m", seconds % 60 if minutes < 10 else 0, "s")
    if hours < 48:
        return _two(hours, "h", minutes % 60 if hours < 8 else 0, "m")
    if days < 730:
        return _two(days, "d", hours % 24 if hours < 192 else 0, "h")
    return _two(days // 365, "y", days % 365 if days < 365 * 8 else 0, "d")


def _two(first: int, unit: str, second: int, second_unit: str) -> str:
    return f"{first}{unit}{second}{second_unit}" if second else f"{first}{unit}"


def pod_status(pod: Object) -> str:
    """The word that sums up a pod."""
    status = pod.get("status") or {}
    phase: str = status.get("phase") or ""
    word: str = status.get("reason") or phase
    is_running = False
    for container in reversed(status.get("containerStatuses") or []):
        state = container.get("state") or {}
        if waiting := state.get("waiting"):
            word = waiting.get("reason") or word
        elif (terminated := state.get("terminated")) is not None:
            word = terminated.get("reason") or f"ExitCode:{terminated.get('exitCode')}"
        elif container.get("ready") and "running" in state:
            is_running = True
    if word == "Completed" and is_running:
        word = "Running" if conditions_of(pod).get("Ready", {}).get("status") == "True" else "NotReady"
    return "Terminating" if is_going(pod) and phase not in ("Succeeded", "Failed") else word


def _first_three(items: list[Any]) -> str:
    more = f" + {len(items) - 3} more..." if len(items) > 3 else ""
    return ",".join(map(str, items[:3])) + more


def _restarts(pod: Object, now: datetime) -> str:
    count = sum(_values(pod, "status.containerStatuses.restartCount"))
    ends = _values(pod, "status.containerStatuses.lastState.terminated.finishedAt")
    return f"{count} ({age(max(ends), now)} ago)" if count and ends else str(count)


def _ready_containers(pod: Object) -> str:
    return f"{sum(_values(pod, 'status.containerStatuses.ready'))}/{len(pod['spec']['containers'])}"


def _external_ip(service: Object) -> str:
    spec = service["spec"]
    external = {"LoadBalancer": "<pending>", "ExternalName": spec.get("externalName")}
    return ",".join(spec.get("externalIPs") or []) or external.get(spec.get("type")) or _NONE


def _service_ports(service: Object) -> str:
    shown = []
    for port in service["spec"].get("ports") or []:
        node_port = f":{port['nodePort']}" if port.get("nodePort") else ""
        shown.append(f"{port['port']}{node_port}/{port.get('protocol', 'TCP')}")
    return ",".join(shown) or _NONE


def _endpoints(document: Object) -> str:
    shown: list[str] = []
    for subset in document.get("subsets") or []:
        ports = [f":{port['port']}" for port in subset.get("ports") or []] or [""]
        shown += [f"{address['ip']}{port}" for port in ports for address in subset.get("addresses") or []]
    return _first_three(shown) or _NONE


def _node_status(node: Object) -> str:
    word = {"True": "Ready", None: "Unknown"}.get(conditions_of(node).get("Ready", {}).get("status"), "NotReady")
    return f"{word},SchedulingDisabled" if node["spec"].get("unschedulable") else word


def _internal_ip(node: Object) -> str:
    addresses = (node.get("status") or {}).get("addresses") or []
    return next((item["address"] for item in addresses if item["type"] == "InternalIP"), _NONE)


def _roles(node: Object) -> str:
    labels = node["metadata"].get("labels") or {}
    return ",".join(sorted(key.removeprefix(_ROLE) for key in labels if key.startswith(_ROLE))) or _NONE


def _ready_replicas(document: Object) -> str:
    return f"{sum(_values(document, 'status.readyReplicas'))}/{sum(_values(document, 'spec.replicas'))}"


def _event_object(event: Object) -> str:
    target = event.get("involvedObject") or {}
    return f"{str(target.get('kind', '')).lower()}/{target.get('name', '')}".rstrip("/")


_AGES: dict[str, Callable[[Object], str | None]] = {
    "age": lambda document: document["metadata"].get("creationTimestamp"),
    "first_seen": lambda event: event.get("firstTimestamp") or event.get("eventTime"),
    "last_seen": lambda event: event.get("lastTimestamp") or event.get("firstTimestamp") or event.get("eventTime"),
}
_CELLS: dict[str, Callable[[Object], str | int]] = {
    "data": lambda document: len(document.get("data") or {}) + len(document.get("binaryData") or {}),
    "endpoints": _endpoints,
    "event_object": _event_object,
    "external_ip": _external_ip,
    "internal_ip": _internal_ip,
    "pod_status": pod_status,
    "node_status": _node_status,
    "ready_containers": _ready_containers,
    "ready_replicas": _ready_replicas,
    "roles": _roles,
    "service_ports": _service_ports,
}


class View:
    """One answer in one form: ``Table``, ``PartialObjectMetadata``, or objects as they are where there is none.

    ``include`` is what goes into each row of a table: Metadata, Object or None.
    """

    def __init__(self, kind: Kind, form: str, include: str, now: Callable[[], datetime]) -> None:
        self._kind = kind
        self._form = form
        self._include = include
        self._now = now
        self._columns = columns(kind)

    def one(self, document: Object) -> Object:
        """One object. Of several tables, only the first says what its columns are."""
        if self._form == "Table":
            return self._table([document], {"resourceVersion": document["metadata"]["resourceVersion"]})
        return self._metadata(document) if self._form else document

    def many(self, documents: list[Object], metadata: Object) -> Object:
        """A list of objects."""
        if self._form == "Table":
            return self._table(documents, metadata)
        if self._form:
            name = {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1"}
            return {**name, "metadata": metadata, "items": list(map(self._metadata, documents))}
        items = [{key: value for key, value in item.items() if key not in ("kind", "apiVersion")} for item in documents]
        return self._kind.of({"metadata": metadata, "items": items}) | {"kind": f"{self._kind.name}List"}

    def bookmark(self, metadata: Object) -> Object:
        """An object that says nothing but how far a watch has come."""
        document = self._kind.of({"metadata": metadata})
        if self._form == "Table":
            return _table({}, [], [{"cells": [], "object": self._metadata(document)}])
        return self._metadata(document) if self._form else document

    def _metadata(self, document: Object) -> Object:
        return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": document["metadata"]}

    def _table(self, documents: list[Object], metadata: Object) -> Object:
        now, definitions, self._columns = self._now(), self._columns, []
        rows = []
        for document in documents:
            shown = {"Object": document, "None": None}.get(self._include, self._metadata(document))
            rows.append({"cells": cells(self._kind, document, now), "object": shown})
        return _table(metadata, definitions, rows)


def _table(metadata: Object, definitions: list[Object], rows: list[Object]) -> Object:
    kind = {"kind": "Table", "apiVersion": "meta.k8s.io/v1"}
    return {**kind, "metadata": metadata, "columnDefinitions": definitions, "rows": rows}
