"""The kinds of objects that the sandbox has: names, scope, and what can be done with each. Only tables."""

from __future__ import annotations

import dataclasses
from typing import Any

Object = dict[str, Any]
"""A Kubernetes object as decoded JSON. What the store holds is never altered in place."""

STORED_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kind:
    """One kind of object. Compared by identity: there is one of each."""

    name: str
    plural: str
    group: str = ""
    version: str = "v1"
    is_namespaced: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ()
    verbs: tuple[str, ...] = STORED_VERBS

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


NAMESPACES = Kind(
    name="Namespace", plural="namespaces", is_namespaced=False, short_names=("ns",), subresources=("status",)
)
NODES = Kind(name="Node", plural="nodes", is_namespaced=False, short_names=("no",), subresources=("status",))
PODS = Kind(
    name="Pod",
    plural="pods",
    short_names=("po",),
    categories=("all",),
    subresources=("attach", "eviction", "exec", "log", "portforward", "proxy", "status"),
)
SERVICES = Kind(
    name="Service",
    plural="services",
    short_names=("svc",),
    categories=("all",),
    subresources=("proxy", "status"),
)
ENDPOINTS = Kind(name="Endpoints", plural="endpoints", short_names=("ep",))
CONFIG_MAPS = Kind(name="ConfigMap", plural="configmaps", short_names=("cm",))
SECRETS = Kind(name="Secret", plural="secrets")
SERVICE_ACCOUNTS = Kind(name="ServiceAccount", plural="serviceaccounts", short_names=("sa",))
EVENTS = Kind(name="Event", plural="events", short_names=("ev",))
DEPLOYMENTS = Kind(
    name="Deployment",
    plural="deployments",
    group="apps",
    short_names=("deploy",),
    categories=("all",),
    subresources=("scale", "status"),
)
REPLICA_SETS = Kind(
    name="ReplicaSet",
    plural="replicasets",
    group="apps",
    short_names=("rs",),
    categories=("all",),
    subresources=("scale", "status"),
)
ENDPOINT_SLICES = Kind(name="EndpointSlice", plural="endpointslices", group="discovery.k8s.io")
_CREATED_ONLY = ("create",)
ACCESS_REVIEWS = Kind(
    name="SelfSubjectAccessReview",
    plural="selfsubjectaccessreviews",
    group="authorization.k8s.io",
    is_namespaced=False,
    verbs=_CREATED_ONLY,
)
RULES_REVIEWS = Kind(
    name="SelfSubjectRulesReview",
    plural="selfsubjectrulesreviews",
    group="authorization.k8s.io",
    is_namespaced=False,
    verbs=_CREATED_ONLY,
)
SUBJECT_REVIEWS = Kind(
    name="SelfSubjectReview",
    plural="selfsubjectreviews",
    group="authentication.k8s.io",
    is_namespaced=False,
    verbs=_CREATED_ONLY,
)

STORED = (
    NAMESPACES,
    NODES,
    PODS,
    SERVICES,
    ENDPOINTS,
    CONFIG_MAPS,
    SECRETS,
    SERVICE_ACCOUNTS,
    EVENTS,
    DEPLOYMENTS,
    REPLICA_SETS,
    ENDPOINT_SLICES,
)
REVIEWS = (ACCESS_REVIEWS, RULES_REVIEWS, SUBJECT_REVIEWS)

KINDS = {(kind.group, kind.version, kind.plural): kind for kind in (*STORED, *REVIEWS)}
"""Every kind by group, version and plural: as a path names it."""

GROUP_VERSIONS = list(dict.fromkeys((kind.group, kind.version) for kind in KINDS.values()))
"""Every group and version, each once; the first has no group."""

SUBRESOURCE_VERBS = {
    "attach": ("create", "get"),
    "eviction": ("create",),
    "exec": ("create", "get"),
    "log": ("get",),
    "portforward": ("create", "get"),
    "proxy": ("get",),
    "scale": ("get", "patch", "update"),
    "status": ("get", "patch", "update"),
}
SUBRESOURCE_KINDS = {
    "attach": ("", "v1", "PodAttachOptions"),
    "eviction": ("policy", "v1", "Eviction"),
    "exec": ("", "v1", "PodExecOptions"),
    "portforward": ("", "v1", "PodPortForwardOptions"),
    "scale": ("autoscaling", "v1", "Scale"),
}
"""Group, version and kind of what a subresource takes, where that is not the kind of its resource."""
