"""OpenAPI v3, enough for ``kubectl explain`` and for what ``apply`` asks before it sends.

The documents do not offer strategic merge patches: kubectl would then
compute them from these schemas, which do not have every field, and not from its own, which do. Pure.
"""

from __future__ import annotations

import functools

from sandbox.kinds import GROUP_VERSIONS, KINDS, STORED, Kind, Object
from sandbox.schemas import JSON_TYPES, Field, about, fields_of, type_names

_PARAMETERS = [
    {"name": name, "in": "query", "schema": {"type": "string"}}
    for name in ("dryRun", "fieldManager", "fieldValidation", "force")
]


def index() -> Object:
    """The answer to ``/openapi/v3``."""
    paths = [f"apis/{group}/{version}" if group else f"api/{version}" for group, version in GROUP_VERSIONS]
    return {"paths": {path: {"serverRelativeURL": f"/openapi/v3/{path}?hash=sandbox"} for path in paths}}


@functools.cache
def document(group: str, version: str) -> Object:
    """The OpenAPI document of one group and version. Not to be altered."""
    paths: Object = {}
    kinds = [kind for kind in KINDS.values() if (kind.group, kind.version) == (group, version)]
    for kind in kinds:
        prefix = f"/apis/{group}/{version}" if group else f"/api/{version}"
        collection = (
            f"{prefix}/namespaces/{{namespace}}/{kind.plural}" if kind.is_namespaced else f"{prefix}/{kind.plural}"
        )
        paths[collection] = {"post": _operation(kind, "post")}
        if kind in STORED:
            paths[collection + "/{name}"] = {verb: _operation(kind, verb) for verb in ("get", "put", "patch", "delete")}
    return {
        "openapi": "3.0.0",
        "info": {"title": "Moorline sandbox", "version": "sandbox"},
        "paths": paths,
        "components": {"schemas": _schemas(kinds)},
    }


def _operation(kind: Kind, verb: str) -> Object:
    operation: Object = {"x-kubernetes-group-version-kind": _group_version_kind(kind), "responses": {}}
    if verb in ("post", "put", "patch"):
        media_type = "application/merge-patch+json" if verb == "patch" else "application/json"
        operation["parameters"] = _PARAMETERS
        operation["requestBody"] = {"content": {media_type: {"schema": {"type": "object"}}}}
    return operation


def _group_version_kind(kind: Kind) -> Object:
    return {"group": kind.group, "version": kind.version, "kind": kind.name}


def _schemas(kinds: list[Kind]) -> Object:
    """The schemas of the kinds, and of everything that they refer to."""
    top = {kind.name: kind for kind in kinds if kind.name in type_names()}
    wanted = [*top]
    schemas: Object = {}
    for name in wanted:
        properties: Object = {}
        for field_name, field in fields_of(name).items():
            properties[field_name] = {"description": field.description, **_schema(field)}
            if field.item in type_names() and field.item not in wanted:
                wanted.append(field.item)
        schemas[f"sandbox.{name}"] = {"type": "object", "description": about(name), "properties": properties}
        if name in top:
            schemas[f"sandbox.{name}"]["x-kubernetes-group-version-kind"] = [_group_version_kind(top[name])]
    return schemas


def _schema(field: Field) -> Object:
    schema: Object = {"type": "object"}
    if field.item in JSON_TYPES:
        schema = {"type": field.item}
    elif field.item in type_names():
        schema = {"allOf": [{"$ref": f"#/components/schemas/sandbox.{field.item}"}]}
    elif field.item != "any":
        schema = {"type": "string", "format": field.item}
    if field.shape == "list":
        return {"type": "array", "items": schema}
    return {"type": "object", "additionalProperties": schema} if field.shape == "map" else schema
