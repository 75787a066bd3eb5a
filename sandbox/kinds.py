"""The kinds of objects that the sandbox has (``kinds.yaml``): names, scope, and what can be done with each. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from sandbox.documents import packaged

Object = dict[str, Any]
"""A Kubernetes object as decoded JSON. What the store holds is never altered in place."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kind:
    """One kind of object. Compared by identity: there is one of each."""

    name: str
    plural: str
    group: str = ""
    short_names: Sequence[str] = ()
    categories: Sequence[str] = ()
    subresources: dict[str, Object] = dataclasses.field(default_factory=dict)
    verbs: Sequence[str] = ("create", "delete", "get", "list", "patch", "update", "watch")
    is_namespaced: bool = True
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    defaults: Object = dataclasses.field(default_factory=dict)
    answer: Object | None = None

    @property
    def api_version(self) -> str:
        """The ``apiVersion`` of its objects."""
        return f"{self.group}/v1" if self.group else "v1"

    @property
    def resource(self) -> str:
        """The name that messages use: ``deployments.apps``."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def of(self, document: Object) -> Object:
        """The document with its ``kind`` and ``apiVersion``."""
        return {"kind": self.name, "apiVersion": self.api_version, **document}


BY_NAME = {name: Kind(name=name, **fields) for name, fields in packaged("kinds.yaml").items()}
KINDS = {(kind.group, kind.plural): kind for kind in BY_NAME.values()}
"""Every kind by group and plural: as a path names it."""

STORED = [kind for kind in BY_NAME.values() if kind.columns]
GROUPS = list(dict.fromkeys(kind.group for kind in BY_NAME.values()))
"""Every group once; the first has no name. All have one version, v1."""

NAMESPACES, NODES, PODS = BY_NAME["Namespace"], BY_NAME["Node"], BY_NAME["Pod"]
SERVICES, ENDPOINTS, ENDPOINT_SLICES = BY_NAME["Service"], BY_NAME["Endpoints"], BY_NAME["EndpointSlice"]
DEPLOYMENTS, REPLICA_SETS = BY_NAME["Deployment"], BY_NAME["ReplicaSet"]
CONFIG_MAPS, SECRETS, EVENTS = BY_NAME["ConfigMap"], BY_NAME["Secret"], BY_NAME["Event"]
