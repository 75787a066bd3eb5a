"""What is done to an object before it is stored: types checked, defaults filled in, names and addresses given. Pure.

Only what would break the sandbox or surprise a person is checked. A field that nobody here knows is kept.
"""

from __future__ import annotations

import base64
import random
import re
from typing import Any

from sandbox import selectors
from sandbox.kinds import DEPLOYMENTS, NAMESPACES, NODES, PODS, REPLICA_SETS, SECRETS, SERVICES, Kind, Object
from sandbox.schemas import wrong_type
from sandbox.status import bad_request, invalid

NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
"""What generated names are made of: nothing that reads as a word."""

_POD_DEFAULTS: Object = {
    "restartPolicy": "Always",
    "terminationGracePeriodSeconds": 30,
    "dnsPolicy": "ClusterFirst",
    "serviceAccountName": "default",
    "schedulerName": "default-scheduler",
    "securityContext": {},
    "enableServiceLinks": True,
}
_DEPLOYMENT_DEFAULTS: Object = {
    "replicas": 1,
    "strategy": {"type": "RollingUpdate"},
    "revisionHistoryLimit": 10,
    "progressDeadlineSeconds": 600,
}
_ROLLING_DEFAULTS: Object = {"maxSurge": "25%", "maxUnavailable": "25%"}
_SERVICE_DEFAULTS: Object = {"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster"}
_ADDRESS_DEFAULTS: Object = {"ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"}


def suffix(randomness: random.Random, length: int = 5) -> str:
    """The end of a generated name."""
    return "".join(randomness.choices(ALPHABET, k=length))


def identify(kind: Kind, document: Any, namespace: str, name: str, randomness: random.Random) -> Object:
    """The document with kind, name and namespace as the path has them. Raises `ApiError` where they contradict it."""
    if not isinstance(document, dict) or not isinstance(document.get("metadata") or {}, dict):
        raise bad_request(f"the body of the request is not a {kind.name}")
    if document.get("kind", kind.name) != kind.name:
        raise bad_request(f"the object provided is a {document['kind']} and not a {kind.name}")
    metadata = dict(document.get("metadata") or {})
    metadata.pop("managedFields", None)
    if name:
        metadata.setdefault("name", name)
        if metadata["name"] != name:
            raise bad_request(
                f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})"
            )
    elif not metadata.get("name") and metadata.get("generateName"):
        metadata["name"] = f"{metadata['generateName']}{suffix(randomness)}"
    if metadata.setdefault("namespace", namespace) != namespace:
        message = f"the namespace of the object ({metadata['namespace']}) does not match the namespace on the request"
        raise bad_request(f"{message} ({namespace})")
    if not kind.is_namespaced:
        del metadata["namespace"]
    return kind.of({**document, "kind": kind.name, "apiVersion": kind.api_version, "metadata": metadata})


def admit(kind: Kind, document: Object, randomness: random.Random) -> Object:
    """The document with its defaults. Raises `ApiError` for what cannot be stored."""
    name = document["metadata"].get("name") or ""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise invalid(kind, str(name), "metadata.name", f'Invalid value: "{name}": a lower-case DNS name is needed')
    if problem := wrong_type(kind, document):
        raise invalid(kind, name, *problem)
    document = {key: value for key, value in document.items() if value is not None}
    if kind in (PODS, DEPLOYMENTS, REPLICA_SETS, SERVICES):
        if "spec" not in document:
            raise invalid(kind, name, "spec", "Required value")
        document["spec"] = {key: value for key, value in document["spec"].items() if value is not None}
    if kind is PODS:
        document["spec"] = _pod_spec(kind, name, "spec", document["spec"])
    elif kind in (DEPLOYMENTS, REPLICA_SETS):
        document["spec"] = _workload_spec(kind, name, document["spec"])
    elif kind is SERVICES:
        document["spec"] = _service_spec(document["spec"], randomness)
    elif kind is SECRETS and (plain := document.pop("stringData", None)) is not None:
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in plain.items()}
        document["data"] = (document.get("data") or {}) | encoded
    elif kind is NAMESPACES:
        document = {"spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}} | document
    elif kind is NODES:
        document.setdefault("spec", {})
    if kind is SECRETS:
        document.setdefault("type", "Opaque")
    return document


def _pod_spec(kind: Kind, name: str, path: str, spec: Object) -> Object:
    containers = spec.get("containers")
    if not containers:
        raise invalid(kind, name, f"{path}.containers", "Required value")
    for index, container in enumerate(containers):
        for field in ("name", "image"):
            if not container.get(field):
                raise invalid(kind, name, f"{path}.containers[{index}].{field}", "Required value")
    if len({container["name"] for container in containers}) < len(containers):
        raise invalid(kind, name, f"{path}.containers", "Duplicate value: each container needs a name of its own")
    return _POD_DEFAULTS | spec | {"containers": [_container(container) for container in containers]}


def _container(container: Object) -> Object:
    is_latest = container["image"].endswith(":latest") or ":" not in container["image"].rpartition("/")[2]
    defaults: Object = {
        "imagePullPolicy": "Always" if is_latest else "IfNotPresent",
        "resources": {},
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
    }
    container = defaults | container
    if container.get("ports"):
        container["ports"] = [{"protocol": "TCP"} | port for port in container["ports"]]
    return container


def _workload_spec(kind: Kind, name: str, spec: Object) -> Object:
    template = spec.get("template") or {}
    labels = (template.get("metadata") or {}).get("labels")
    selector = spec.get("selector")
    if not selector:
        raise invalid(kind, name, "spec.selector", "Required value")
    if not selectors.matches_labels(selector, labels):
        problem = "Invalid value: `selector` does not match template `labels`"
        raise invalid(kind, name, "spec.template.metadata.labels", problem)
    if spec.get("replicas", 0) < 0:
        raise invalid(kind, name, "spec.replicas", "Invalid value: must be greater than or equal to 0")
    pod_spec = _pod_spec(kind, name, "spec.template.spec", template.get("spec") or {})
    spec = {"replicas": 1, **spec} if kind is REPLICA_SETS else {**_DEPLOYMENT_DEFAULTS, **spec}
    strategy = spec.get("strategy") or {}
    if strategy.get("type") == "RollingUpdate":
        rolling = _ROLLING_DEFAULTS | (strategy.get("rollingUpdate") or {})
        spec["strategy"] = {**strategy, "rollingUpdate": rolling}
    return {**spec, "template": {**template, "spec": pod_spec}}


def _service_spec(spec: Object, randomness: random.Random) -> Object:
    spec = {**_SERVICE_DEFAULTS, **spec}
    if spec["type"] == "ExternalName":
        return spec
    if not spec.get("clusterIP"):
        spec["clusterIP"] = f"10.96.{randomness.randrange(1, 255)}.{randomness.randrange(1, 255)}"
    spec = {**_ADDRESS_DEFAULTS, **spec, "clusterIPs": [spec["clusterIP"]]}
    ports = []
    for port in spec.get("ports") or []:
        port = {"protocol": "TCP", "targetPort": port.get("port")} | port
        if spec["type"] in ("NodePort", "LoadBalancer") and not port.get("nodePort"):
            port["nodePort"] = randomness.randrange(30000, 32768)
        ports.append(port)
    if ports:
        spec["ports"] = ports
    return spec
