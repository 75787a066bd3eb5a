"""What the sandbox says about itself: version, groups, resources; each resource by itself, or all at once. Pure."""

from __future__ import annotations

from sandbox.kinds import GROUPS, KINDS, Kind, Object
from sandbox.status import no_such_path

VERSION = "v1.36.0-sandbox"


def version() -> Object:
    """The answer to ``/version``."""
    answer = {"major": "1", "minor": "36", "gitVersion": VERSION, "gitCommit": "sandbox", "gitTreeState": "clean"}
    return answer | {"buildDate": "", "goVersion": "", "compiler": "", "platform": "linux/sandbox"}


def aggregated(*, is_core: bool) -> Object:
    """All groups and resources: what ``/api`` and ``/apis`` answer to those who ask for it."""
    items = []
    for group in GROUPS:
        if is_core is (group == ""):
            versions = [{"version": "v1", "resources": _resources(group), "freshness": "Current"}]
            items.append({"metadata": {"name": group} if group else {}, "versions": versions})
    return {"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items}


def core_versions() -> Object:
    """The answer to ``/api``."""
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}


def groups() -> Object:
    """The answer to ``/apis``."""
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group(name) for name in GROUPS if name]}


def group(name: str) -> Object:
    """The answer to ``/apis/<group>``. Raises `ApiError`."""
    if name not in GROUPS[1:]:
        raise no_such_path()
    version = {"groupVersion": f"{name}/v1", "version": "v1"}
    return {"kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": [version], "preferredVersion": version}


def resources(group: str) -> Object:
    """The answer to ``/api/v1`` and ``/apis/<group>/v1``. Raises `ApiError`."""
    if group not in GROUPS:
        raise no_such_path()
    entries: list[Object] = []
    for resource in _resources(group):
        scope = {"namespaced": resource.pop("scope") == "Namespaced"}
        subresources, plural = resource.pop("subresources", []), resource.pop("resource")
        names = {"name": plural, "singularName": resource.pop("singularResource")}
        entries.append(resource | names | scope | {"kind": resource.pop("responseKind")["kind"]})
        for item in subresources:
            name = {"name": f"{plural}/{item['subresource']}", "singularName": "", "verbs": item["verbs"]}
            entries.append(name | scope | item["responseKind"])
    group_version = f"{group}/v1" if group else "v1"
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": entries}


def _resources(group: str) -> list[Object]:
    return [_resource(kind) for kind in KINDS.values() if kind.group == group]


def _resource(kind: Kind) -> Object:
    own = {"group": kind.group, "version": "v1", "kind": kind.name}
    resource: Object = {"resource": kind.plural, "singularResource": kind.name.lower(), "responseKind": own}
    resource |= {"scope": "Namespaced" if kind.is_namespaced else "Cluster", "verbs": kind.verbs}
    subresources = []
    for name, facts in kind.subresources.items():
        taken = (
            own if "kind" not in facts else {"group": facts.get("group", ""), "version": "v1", "kind": facts["kind"]}
        )
        subresources.append({"subresource": name, "responseKind": taken, "verbs": facts["verbs"]})
    more = {"shortNames": kind.short_names, "categories": kind.categories, "subresources": subresources}
    return resource | {key: value for key, value in more.items() if value}
