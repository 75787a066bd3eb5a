"""The kinds of objects that the sandbox has: names, scope, and what can be done with each. Only tables."""

from __future__ import annotations

import dataclasses
from typing import Any

Object = dict[str, Any]
"""A Kubernetes object as decoded JSON. What the store holds is never altered in place."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kind:
    """One kind of object. Compared by identity: there is one of each."""

    name: str
    plural: str
    group: str
    short_names: tuple[str, ...]
    categories: tuple[str, ...]
    subresources: tuple[str, ...]
    verbs: tuple[str, ...]
    is_namespaced: bool
    version: str = "v1"

    @property
    def api_version(self) -> str:
        """The ``apiVersion`` of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> str:
        """The name that messages use: ``deployments.apps``."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def of(self, document: Object) -> Object:
        """The document with its ``kind`` and ``apiVersion``."""
        return {"kind": self.name, "apiVersion": self.api_version, **document}


def _kind(
    name: str,
    plural: str,
    short_name: str = "",
    *,
    group: str = "",
    subresources: str = "",
    category: str = "",
    verbs: str = "create delete deletecollection get list patch update watch",
    is_namespaced: bool = True,
) -> Kind:
    return Kind(
        name=name,
        plural=plural,
        group=group,
        short_names=tuple(short_name.split()),
        categories=tuple(category.split()),
        subresources=tuple(subresources.split()),
        verbs=tuple(verbs.split()),
        is_namespaced=is_namespaced,
    )


_POD_SUBRESOURCES = "attach eviction exec log portforward status"
NAMESPACES = _kind("Namespace", "namespaces", "ns", subresources="status", is_namespaced=False)
NODES = _kind("Node", "nodes", "no", subresources="status", is_namespaced=False)
PODS = _kind("Pod", "pods", "po", subresources=_POD_SUBRESOURCES, category="all")
SERVICES = _kind("Service", "services", "svc", subresources="status", category="all")
ENDPOINTS = _kind("Endpoints", "endpoints", "ep")
CONFIG_MAPS = _kind("ConfigMap", "configmaps", "cm")
SECRETS = _kind("Secret", "secrets")
SERVICE_ACCOUNTS = _kind("ServiceAccount", "serviceaccounts", "sa")
EVENTS = _kind("Event", "events", "ev")
DEPLOYMENTS = _kind("Deployment", "deployments", "deploy", group="apps", subresources="scale status", category="all")
REPLICA_SETS = _kind("ReplicaSet", "replicasets", "rs", group="apps", subresources="scale status", category="all")
ENDPOINT_SLICES = _kind("EndpointSlice", "endpointslices", group="discovery.k8s.io")
_CORE = (NAMESPACES, NODES, PODS, SERVICES, ENDPOINTS, CONFIG_MAPS, SECRETS, SERVICE_ACCOUNTS, EVENTS)
STORED = (*_CORE, DEPLOYMENTS, REPLICA_SETS, ENDPOINT_SLICES)

ACCESS_REVIEWS, RULES_REVIEWS, SUBJECT_REVIEWS = (
    _kind(name, f"{name.lower()}s", group=group, verbs="create", is_namespaced=False)
    for name, group in (
        ("SelfSubjectAccessReview", "authorization.k8s.io"),
        ("SelfSubjectRulesReview", "authorization.k8s.io"),
        ("SelfSubjectReview", "authentication.k8s.io"),
    )
)

KINDS = {
    (kind.group, kind.version, kind.plural): kind for kind in (*STORED, ACCESS_REVIEWS, RULES_REVIEWS, SUBJECT_REVIEWS)
}
"""Every kind by group, version and plural: as a path names it."""

GROUP_VERSIONS = list(dict.fromkeys((kind.group, kind.version) for kind in KINDS.values()))
"""Every group and version, each once; the first has no group."""

SUBRESOURCES = {
    "attach": ("create get", "", "v1", "PodAttachOptions"),
    "eviction": ("create", "policy", "v1", "Eviction"),
    "exec": ("create get", "", "v1", "PodExecOptions"),
    "log": ("get", "", "", ""),
    "portforward": ("create get", "", "v1", "PodPortForwardOptions"),
    "scale": ("get patch update", "autoscaling", "v1", "Scale"),
    "status": ("get patch update", "", "", ""),
}
"""Verbs, and group, version and kind of what a subresource takes, where that is not the kind of its resource."""
