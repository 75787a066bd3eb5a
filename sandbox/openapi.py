"""OpenAPI v3, enough for ``kubectl explain`` and for what ``apply`` asks before it sends.

The documents do not offer strategic merge patches: kubectl would then
compute them from these schemas, which do not have every field, and not from its own, which do. Pure.
"""

from __future__ import annotations

import functools

from sandbox.kinds import BY_NAME, GROUPS, Kind, Object
from sandbox.schemas import JSON_TYPES, MESSAGES, Field, fields_of

_PARAMETERS = [{"name": name, "in": "query"} for name in ("dryRun", "fieldManager", "fieldValidation", "force")]


def index() -> Object:
    """The answer to ``/openapi/v3``."""
    paths = [f"apis/{group}/v1" if group else "api/v1" for group in GROUPS]
    return {"paths": {path: {"serverRelativeURL": f"/openapi/v3/{path}?hash=sandbox"} for path in paths}}


@functools.cache
def document(group: str) -> Object:
    """The OpenAPI document of one group. Not to be altered."""
    kinds = [kind for kind in BY_NAME.values() if kind.group == group]
    prefix, paths = f"/apis/{group}/v1/" if group else "/api/v1/", {}
    for kind in kinds:
        # kubectl looks no further than for the kind behind a path, and for what may be asked of a patch.
        operation = {"x-kubernetes-group-version-kind": _group_version_kind(kind), "parameters": _PARAMETERS}
        operation["requestBody"] = {"content": {"application/merge-patch+json": {"schema": {"type": "object"}}}}
        scope = "namespaces/{namespace}/" if kind.is_namespaced else ""
        paths[f"{prefix}{scope}{kind.plural}/{{name}}"] = {"get": operation, "patch": operation}
    info = {"title": "Moorline sandbox", "version": "sandbox"}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": _schemas(kinds)}}


def _group_version_kind(kind: Kind) -> Object:
    return {"group": kind.group, "version": "v1", "kind": kind.name}


def _schemas(kinds: list[Kind]) -> Object:
    """The schemas of the kinds, and of everything that they refer to."""
    wanted = [kind.name for kind in kinds if kind.name in MESSAGES]
    schemas: Object = {}
    for name in wanted:
        fields = fields_of(name)
        properties = {key: {"description": field.description, **_schema(field)} for key, field in fields.items()}
        schemas[f"sandbox.{name}"] = {"type": "object", "description": MESSAGES[name][""], "properties": properties}
        if name in BY_NAME:
            schemas[f"sandbox.{name}"]["x-kubernetes-group-version-kind"] = [_group_version_kind(BY_NAME[name])]
        referred = dict.fromkeys(field.item for field in fields.values())
        wanted += [item for item in referred if item in MESSAGES and item not in wanted]
    return schemas


def _schema(field: Field) -> Object:
    schema: Object = {"type": "object"}
    if field.item in JSON_TYPES:
        schema = {"type": field.item}
    elif field.item in MESSAGES:
        schema = {"allOf": [{"$ref": f"#/components/schemas/sandbox.{field.item}"}]}
    elif field.item != "any":
        schema = {"type": "string", "format": field.item}
    if field.shape == "list":
        return {"type": "array", "items": schema}
    return {"type": "object", "additionalProperties": schema} if field.shape == "map" else schema
