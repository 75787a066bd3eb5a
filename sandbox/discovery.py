"""What the sandbox says about itself: version, groups, resources; each resource by itself, or all at once. Pure."""

from __future__ import annotations

from sandbox.kinds import GROUP_VERSIONS, KINDS, SUBRESOURCE_KINDS, SUBRESOURCE_VERBS, Kind, Object
from sandbox.status import no_such_path

VERSION = "v1.36.0-sandbox"


def version() -> Object:
    """The answer to ``/version``."""
    return {
        "major": "1",
        "minor": "36",
        "gitVersion": VERSION,
        "gitCommit": "sandbox",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "none",
        "platform": "linux/sandbox",
    }


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
    entries = []
    for kind in _kinds(group, version):
        entry = {
            "name": kind.plural,
            "singularName": kind.name.lower(),
            "namespaced": kind.is_namespaced,
            "kind": kind.name,
            "verbs": list(kind.verbs),
        }
        if kind.short_names:
            entry["shortNames"] = list(kind.short_names)
        if kind.categories:
            entry["categories"] = list(kind.categories)
        entries.append(entry)
        for name in kind.subresources:
            taken_group, taken_version, taken_kind = _subresource_kind(kind, name)
            entries.append(
                {
                    "name": f"{kind.plural}/{name}",
                    "singularName": "",
                    "namespaced": kind.is_namespaced,
                    "group": taken_group,
                    "version": taken_version,
                    "kind": taken_kind,
                    "verbs": list(SUBRESOURCE_VERBS[name]),
                }
            )
    group_version = f"{group}/{version}" if group else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": entries}


def _kinds(group: str, version: str) -> list[Kind]:
    return [kind for kind in KINDS.values() if (kind.group, kind.version) == (group, version)]


def _group(name: str, version: str) -> Object:
    preferred = {"groupVersion": f"{name}/{version}", "version": version}
    return {"name": name, "versions": [preferred], "preferredVersion": preferred}


def _subresource_kind(kind: Kind, subresource: str) -> tuple[str, str, str]:
    return SUBRESOURCE_KINDS.get(subresource, (kind.group, kind.version, kind.name))


def _response_kind(group: str, version: str, kind: str) -> Object:
    return {"group": group, "version": version, "kind": kind}


def _aggregated_resource(kind: Kind) -> Object:
    resource: Object = {
        "resource": kind.plural,
        "responseKind": _response_kind(kind.group, kind.version, kind.name),
        "scope": "Namespaced" if kind.is_namespaced else "Cluster",
        "singularResource": kind.name.lower(),
        "verbs": list(kind.verbs),
    }
    if kind.short_names:
        resource["shortNames"] = list(kind.short_names)
    if kind.categories:
        resource["categories"] = list(kind.categories)
    if kind.subresources:
        resource["subresources"] = [
            {
                "subresource": name,
                "responseKind": _response_kind(*_subresource_kind(kind, name)),
                "verbs": list(SUBRESOURCE_VERBS[name]),
            }
            for name in kind.subresources
        ]
    return resource
