"""What is done to an object before it is stored: types checked, defaults filled in, names and addresses given. Pure.

Only what would break the sandbox or surprise a person is checked. A field that nobody here knows is kept.
"""

from __future__ import annotations

import base64
import json
import random
import re
from typing import Any

from sandbox import patches, selectors
from sandbox.kinds import DEPLOYMENTS, PODS, REPLICA_SETS, SECRETS, SERVICES, Kind, Object
from sandbox.objects import suffix
from sandbox.schemas import Field, wrong_type
from sandbox.status import bad_request, invalid

_NAME = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
_NAME_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    f"end with an alphanumeric character (e.g. 'example.com', regex used for validation is '{_NAME}')"
)


def identify(kind: Kind, document: Any, namespace: str, name: str, randomness: random.Random) -> Object:
    """The document with kind, name and namespace as the path has them. Raises `ApiError` where they contradict it."""
    if not isinstance(document, dict) or not isinstance(document.get("metadata") or {}, dict):
        raise bad_request(f"the body of the request is not a {kind.name}")
    if document.get("kind", kind.name) != kind.name:
        raise bad_request(f"the object provided is a {document['kind']} and not a {kind.name}")
    metadata = {key: value for key, value in (document.get("metadata") or {}).items() if key != "managedFields"}
    if not name and not metadata.get("name") and metadata.get("generateName"):
        metadata["name"] = f"{metadata['generateName']}{suffix(randomness)}"
    for field, wanted in (("name", name), ("namespace", namespace)):
        if wanted and metadata.setdefault(field, wanted) != wanted:
            problem = f"the {field} of the object ({metadata[field]}) does not match the {field} on the URL ({wanted})"
            raise bad_request(problem)
    if not kind.is_namespaced:
        metadata.pop("namespace", None)
    return kind.of({**document, "kind": kind.name, "apiVersion": kind.api_version, "metadata": metadata})


def admit(kind: Kind, document: Object, randomness: random.Random) -> Object:
    """The document with its defaults. Raises `ApiError` for what cannot be stored."""
    name = document["metadata"].get("name") or ""
    if problem := wrong_type(Field(0, kind.name), document):
        raise invalid(kind, name, *problem)
    if not re.fullmatch(_NAME, name) or len(name) > 253:
        raise invalid(
            kind, name, "metadata.name", f'Invalid value: "{name}": {_NAME_RULE}' if name else "Required value"
        )
    document = patches.merge(kind.defaults, document)
    if kind is PODS:
        document["spec"] = _pod_spec(kind, name, "spec", document["spec"])
    elif kind in (DEPLOYMENTS, REPLICA_SETS):
        document["spec"] = _workload_spec(kind, name, document["spec"])
    elif kind is SERVICES:
        document["spec"] = _service_spec(name, document["spec"], randomness)
    elif kind is SECRETS:
        encoded = {key: base64.b64encode(value.encode()) for key, value in document.pop("stringData", {}).items()}
        data = document.get("data", {}) | {key: value.decode() for key, value in encoded.items()}
        document |= {"data": data} if data else {}
    return document


def _pod_spec(kind: Kind, name: str, path: str, spec: Object) -> Object:
    containers = []
    for place, container in enumerate(spec.get("containers") or []):
        for field in ("name", "image"):
            if not container.get(field):
                raise invalid(kind, name, f"{path}.containers[{place}].{field}", "Required value")
        ports = [{"protocol": "TCP"} | port for port in container.get("ports", [])]
        containers.append({**container, "ports": ports} if ports else container)
    if not containers:
        raise invalid(kind, name, f"{path}.containers", "Required value")
    return {**spec, "containers": containers}


def _workload_spec(kind: Kind, name: str, spec: Object) -> Object:
    template, selector = spec["template"], spec.get("selector")
    if not selector:
        raise invalid(kind, name, "spec.selector", "Required value")
    labels = template.get("metadata", {}).get("labels", {})
    if not selectors.matches_labels(selector, labels):
        problem = (
            f"Invalid value: {json.dumps(labels, separators=(',', ':'))}: `selector` does not match template `labels`"
        )
        raise invalid(kind, name, "spec.template.metadata.labels", problem)
    if spec["replicas"] < 0:
        raise invalid(kind, name, "spec.replicas", "Invalid value: must be greater than or equal to 0")
    if spec.get("strategy", {}).get("type") == "Recreate":
        spec = {**spec, "strategy": {"type": "Recreate"}}
    return {**spec, "template": {**template, "spec": _pod_spec(kind, name, "spec.template.spec", template["spec"])}}


def _service_spec(name: str, spec: Object, randomness: random.Random) -> Object:
    if spec["type"] == "ExternalName":
        return spec
    address = spec.get("clusterIP") or f"10.96.{randomness.randrange(1, 255)}.{randomness.randrange(1, 255)}"
    for place, port in enumerate(spec.get("ports", [])):
        if not 0 < port.get("port", 0) < 65536:
            problem = f"Invalid value: {port.get('port', 0)}: must be between 1 and 65535, inclusive"
            raise invalid(SERVICES, name, f"spec.ports[{place}].port", problem)
    ports = [{"protocol": "TCP", "targetPort": port["port"]} | port for port in spec.get("ports", [])]
    if spec["type"] != "ClusterIP":
        ports = [{"nodePort": randomness.randrange(30000, 32768)} | port for port in ports]
    return {**spec, "clusterIP": address, "clusterIPs": [address], "ports": ports}
