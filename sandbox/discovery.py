"""What the sandbox says about itself: version, groups, resources; each resource by itself, or all at once. Pure."""

from __future__ import annotations

from sandbox.kinds import GROUP_VERSIONS, KINDS, SUBRESOURCES, Kind, Object
from sandbox.status import no_such_path

VERSION = "v1.36.0-sandbox"


def version() -> Object:
    """The answer to ``/version``."""
    answer = {"major": "1", "minor": "36", "gitVersion": VERSION, "gitCommit": "sandbox", "gitTreeState": "clean"}
    return answer | {"buildDate": "", "goVersion": "", "compiler": "", "platform": "linux/sandbox"}


def aggregated(*, is_core: bool) -> Object:
    """All groups, versions and resources: what ``/api`` and ``/apis`` answer to those who ask for it."""
    items = []
    for group, version in GROUP_VERSIONS:
        if (group == "") is is_core:
            resources = [_aggregated_resource(kind) for kind in _kinds(group, version)]
            versions = [{"version": version, "resources": resources, "freshness": "Current"}]
            items.append({"metadata": {"name": group} if group else {}, "versions": versions})
    return {"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items}


def core_versions() -> Object:
    """The answer to ``/api``."""
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}


def groups() -> Object:
    """The answer to ``/apis``."""
    documents = [_group(group, version) for group, version in GROUP_VERSIONS if group]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": documents}


def group(name: str) -> Object:
    """The answer to ``/apis/<group>``. Raises `ApiError`."""
    for known, version in GROUP_VERSIONS:
        if known == name:
            return {"kind": "APIGroup", "apiVersion": "v1", **_group(known, version)}
    raise no_such_path()


def resources(group: str, version: str) -> Object:
    """The answer to ``/api/v1`` and ``/apis/<group>/<version>``. Raises `ApiError`."""
    if (group, version) not in GROUP_VERSIONS:
        raise no_such_path()
    entries: list[Object] = []
    for kind in _kinds(group, version):
        scope = {"namespaced": kind.is_namespaced}
        entry = {"name": kind.plural, "singularName": kind.name.lower(), "kind": kind.name, "verbs": list(kind.verbs)}
        entries.append({**entry, **scope, **_names(kind)})
        for name in kind.subresources:
            verbs, taken = _subresource(kind, name)
            entries.append({"name": f"{kind.plural}/{name}", "singularName": "", "verbs": verbs, **taken, **scope})
    group_version = f"{group}/{version}" if group else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": entries}


def _kinds(group: str, version: str) -> list[Kind]:
    return [kind for kind in KINDS.values() if (kind.group, kind.version) == (group, version)]


def _group(name: str, version: str) -> Object:
    preferred = {"groupVersion": f"{name}/{version}", "version": version}
    return {"name": name, "versions": [preferred], "preferredVersion": preferred}


def _names(kind: Kind) -> Object:
    names = {"shortNames": list(kind.short_names), "categories": list(kind.categories)}
    return {key: value for key, value in names.items() if value}


def _subresource(kind: Kind, name: str) -> tuple[list[str], Object]:
    """Its verbs, and the kind that it takes."""
    verbs, *taken = SUBRESOURCES[name]
    group, version, kind_name = taken if taken[-1] else (kind.group, kind.version, kind.name)
    return verbs.split(), {"group": group, "version": version, "kind": kind_name}


def _aggregated_resource(kind: Kind) -> Object:
    resource: Object = {"resource": kind.plural, "singularResource": kind.name.lower(), "verbs": list(kind.verbs)}
    resource["responseKind"] = {"group": kind.group, "version": kind.version, "kind": kind.name}
    resource["scope"] = "Namespaced" if kind.is_namespaced else "Cluster"
    for name in kind.subresources:
        verbs, taken = _subresource(kind, name)
        entry = {"subresource": name, "responseKind": taken, "verbs": verbs}
        resource.setdefault("subresources", []).append(entry)
    return resource | _names(kind)
