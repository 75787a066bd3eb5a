"""Tables, which is what ``kubectl get`` prints: the columns of each kind, and its cells. Pure.

Columns are the ones of a real cluster, ``-o wide`` ones included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from sandbox import kinds
from sandbox.kinds import Kind, Object

_NONE, _UNKNOWN = "<none>", "<unknown>"

_COLUMNS = {  # a star: only shown in wide output
    kinds.PODS: "Name Ready Status Restarts Age *IP *Node *Nominated_Node *Readiness_Gates",
    kinds.DEPLOYMENTS: "Name Ready Up-to-date Available Age *Containers *Images *Selector",
    kinds.REPLICA_SETS: "Name Desired Current Ready Age *Containers *Images *Selector",
    kinds.SERVICES: "Name Type Cluster-IP External-IP Port(s) Age *Selector",
    kinds.ENDPOINTS: "Name Endpoints Age",
    kinds.ENDPOINT_SLICES: "Name AddressType Ports Endpoints Age",
    kinds.NODES: "Name Status Roles Age Version *Internal-IP *External-IP *OS-Image *Kernel-Version *Container-Runtime",
    kinds.NAMESPACES: "Name Status Age",
    kinds.CONFIG_MAPS: "Name Data Age",
    kinds.SECRETS: "Name Type Data Age",
    kinds.SERVICE_ACCOUNTS: "Name Age",
    kinds.EVENTS: "Last_Seen Type Reason Object *Subobject *Source Message *First_Seen *Count *Name",
}
_INTEGERS = {kinds.REPLICA_SETS: ("Desired", "Current", "Ready")}


def columns(kind: Kind) -> list[Object]:
    """The column definitions of a kind."""
    return [_column(kind, text.replace("_", " ")) for text in _COLUMNS[kind].split()]


def cells(kind: Kind, document: Object, now: datetime) -> list[str | int]:
    """The cells of an object, in the order of the columns."""
    return _CELLS.get(kind, _plain)(document, now)


def age(stamp: str | None, now: datetime) -> str:
    """How long ago a timestamp was, as kubectl writes it: precise where it is short."""
    if not stamp:
        return _UNKNOWN
    seconds = int((now - datetime.fromisoformat(stamp)).total_seconds())
    if seconds < -1:
        return "<invalid>"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{max(seconds, 0)}s"
    if minutes < 180:
        return _two(minutes, "m", seconds % 60 if minutes < 10 else 0, "s")
    if hours < 48:
        return _two(hours, "h", minutes % 60 if hours < 8 else 0, "m")
    if days < 730:
        return _two(days, "d", hours % 24 if hours < 192 else 0, "h")
    return _two(days // 365, "y", days % 365 if days < 365 * 8 else 0, "d")


def pod_status(pod: Object) -> str:
    """The word that sums up a pod."""
    status = pod.get("status") or {}
    phase: str = status.get("phase") or ""
    word: str = status.get("reason") or phase
    is_running, error = False, ""
    for container in reversed(status.get("containerStatuses") or []):
        state = container.get("state") or {}
        if waiting := state.get("waiting"):
            word = waiting.get("reason") or word
        elif (terminated := state.get("terminated")) is not None:
            word = terminated.get("reason") or f"ExitCode:{terminated.get('exitCode')}"
            error = word if terminated.get("exitCode") else error
        elif container.get("ready") and "running" in state:
            is_running = True
    if word == "Completed":
        is_ready = any(item["type"] == "Ready" and item["status"] == "True" for item in status.get("conditions") or [])
        word = ("Running" if is_ready else "NotReady") if is_running else error or word
    if "deletionTimestamp" in pod["metadata"] and phase not in ("Succeeded", "Failed"):
        return "Terminating"
    return word


def _two(first: int, unit: str, second: int, second_unit: str) -> str:
    return f"{first}{unit}{second}{second_unit}" if second else f"{first}{unit}"


def _column(kind: Kind, text: str) -> Object:
    name = text.removeprefix("*")
    return {
        "name": name,
        "type": "integer" if name in _INTEGERS.get(kind, ()) else "string",
        "format": "name" if name == "Name" else "",
        "description": "",
        "priority": 1 if text.startswith("*") else 0,
    }


def _created(document: Object, now: datetime) -> str:
    return age(document["metadata"].get("creationTimestamp"), now)


def _joined(items: Iterable[object], empty: str = _NONE) -> str:
    return ",".join(map(str, items)) or empty


def _first_of(items: list[str], count: int) -> str:
    """The first few, and how many more."""
    more = f" + {len(items) - count} more..." if len(items) > count else ""
    return _joined(items[:count]) + more


def _selector(labels: Object | None) -> str:
    return _joined(f"{key}={value}" for key, value in sorted((labels or {}).items()))


def _label_selector(selector: Object) -> str:
    """A ``LabelSelector`` in the words of a query."""
    parts = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for item in selector.get("matchExpressions") or []:
        values = f" ({_joined(item.get('values') or [], '')})" if item.get("values") else ""
        parts.append(f"{item['key']} {item['operator'].lower()}{values}")
    return _joined(parts)


def _template(document: Object) -> list[str | int]:
    """The wide columns of what makes pods."""
    containers = document["spec"]["template"]["spec"]["containers"]
    names, images = (_joined(item[field] for item in containers) for field in ("name", "image"))
    return [names, images, _label_selector(document["spec"]["selector"])]


def _pod(pod: Object, now: datetime) -> list[str | int]:
    status, spec = pod.get("status") or {}, pod["spec"]
    statuses = status.get("containerStatuses") or []
    ready = sum(1 for item in statuses if item.get("ready") and "running" in (item.get("state") or {}))
    restarts = sum(item.get("restartCount", 0) for item in statuses)
    ends = [((item.get("lastState") or {}).get("terminated") or {}).get("finishedAt") or "" for item in statuses]
    restarted = f"{restarts} ({age(max(ends), now)} ago)" if restarts and any(ends) else str(restarts)
    return [
        pod["metadata"]["name"],
        f"{ready}/{len(spec['containers'])}",
        pod_status(pod),
        restarted,
        _created(pod, now),
        status.get("podIP") or _NONE,
        spec.get("nodeName") or _NONE,
        _NONE,
        _NONE,
    ]


def _deployment(document: Object, now: datetime) -> list[str | int]:
    status = document.get("status") or {}
    return [
        document["metadata"]["name"],
        f"{status.get('readyReplicas', 0)}/{document['spec'].get('replicas', 0)}",
        status.get("updatedReplicas", 0),
        status.get("availableReplicas", 0),
        _created(document, now),
        *_template(document),
    ]


def _replica_set(document: Object, now: datetime) -> list[str | int]:
    status = document.get("status") or {}
    counts = [document["spec"].get("replicas", 0), status.get("replicas", 0), status.get("readyReplicas", 0)]
    return [document["metadata"]["name"], *counts, _created(document, now), *_template(document)]


def _service(service: Object, now: datetime) -> list[str | int]:
    spec = service["spec"]
    external = {"LoadBalancer": "<pending>", "ExternalName": spec.get("externalName") or _NONE}
    ports = [
        f"{port['port']}{':' + str(port['nodePort']) if port.get('nodePort') else ''}/{port.get('protocol', 'TCP')}"
        for port in spec.get("ports") or []
    ]
    return [
        service["metadata"]["name"],
        spec.get("type", "ClusterIP"),
        spec.get("clusterIP") or _NONE,
        _joined(spec.get("externalIPs") or [], external.get(spec.get("type"), _NONE)),
        _joined(ports),
        _created(service, now),
        _selector(spec.get("selector")),
    ]


def _endpoints(document: Object, now: datetime) -> list[str | int]:
    shown: list[str] = []
    for subset in document.get("subsets") or []:
        ports = [f":{port['port']}" for port in subset.get("ports") or []] or [""]
        shown += [f"{address['ip']}{port}" for port in ports for address in subset.get("addresses") or []]
    return [document["metadata"]["name"], _first_of(shown, 3), _created(document, now)]


def _endpoint_slice(document: Object, now: datetime) -> list[str | int]:
    ports = [str(port.get("port", "*")) for port in document.get("ports") or []]
    shown = [address for endpoint in document.get("endpoints") or [] for address in endpoint.get("addresses") or []]
    kind = document.get("addressType", "IPv4")
    name = document["metadata"]["name"]
    return [name, kind, _first_of(ports, 3) if ports else "<unset>", _shown(shown), _created(document, now)]


def _shown(addresses: list[str]) -> str:
    return _first_of(addresses, 3) if addresses else "<unset>"


def _node(node: Object, now: datetime) -> list[str | int]:
    metadata, status = node["metadata"], node.get("status") or {}
    ready = next((item["status"] for item in status.get("conditions") or [] if item["type"] == "Ready"), None)
    word = {"True": "Ready", None: "Unknown"}.get(ready, "NotReady")
    prefix = "node-role.kubernetes.io/"
    labels = metadata.get("labels") or {}
    roles = sorted(label.removeprefix(prefix) for label in labels if label.startswith(prefix))
    addresses = {item["type"]: item["address"] for item in status.get("addresses") or []}
    facts = status.get("nodeInfo") or {}
    architecture = f" ({facts['architecture']})" if facts.get("architecture") else ""
    return [
        metadata["name"],
        f"{word},SchedulingDisabled" if node["spec"].get("unschedulable") else word,
        _joined(roles),
        _created(node, now),
        facts.get("kubeletVersion", ""),
        addresses.get("InternalIP", _NONE),
        addresses.get("ExternalIP", _NONE),
        facts.get("osImage") or _UNKNOWN,
        (facts.get("kernelVersion") or _UNKNOWN) + architecture,
        facts.get("containerRuntimeVersion") or _UNKNOWN,
    ]


def _plain(document: Object, now: datetime) -> list[str | int]:
    """A kind that has nothing but its name and a few facts."""
    facts: dict[str, list[str | int]] = {
        "Namespace": [(document.get("status") or {}).get("phase", "")],
        "ConfigMap": [len(document.get("data") or {}) + len(document.get("binaryData") or {})],
        "Secret": [document.get("type", ""), len(document.get("data") or {})],
    }
    return [document["metadata"]["name"], *facts.get(document["kind"], []), _created(document, now)]


def _event(event: Object, now: datetime) -> list[str | int]:
    target, source = event.get("involvedObject") or {}, event.get("source") or {}
    first = age(event.get("firstTimestamp") or event.get("eventTime"), now)
    kind, name = str(target.get("kind", "")).lower(), target.get("name")
    return [
        age(event["lastTimestamp"], now) if event.get("lastTimestamp") else first,
        event.get("type", ""),
        event.get("reason", ""),
        f"{kind}/{name}" if name else kind,
        target.get("fieldPath", ""),
        ", ".join(filter(None, [source.get("component") or event.get("reportingComponent"), source.get("host")])),
        str(event.get("message", "")).strip(),
        first,
        event.get("count") or 1,
        event["metadata"]["name"],
    ]


_CELLS: dict[Kind, Callable[[Any, datetime], list[str | int]]] = {
    kinds.PODS: _pod,
    kinds.DEPLOYMENTS: _deployment,
    kinds.REPLICA_SETS: _replica_set,
    kinds.SERVICES: _service,
    kinds.ENDPOINTS: _endpoints,
    kinds.ENDPOINT_SLICES: _endpoint_slice,
    kinds.NODES: _node,
    kinds.EVENTS: _event,
}


def table(kind: Kind, documents: Iterable[Object], now: datetime, *, with_columns: bool = True) -> Object:
    """The documents as a ``Table``; whoever sends it adds to each row the object that is asked for."""
    rows = [{"cells": cells(kind, document, now), "object": document} for document in documents]
    definitions = columns(kind) if with_columns else []
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {},
        "columnDefinitions": definitions,
        "rows": rows,
    }
