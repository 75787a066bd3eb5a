"""JSON and YAML: bodies of requests, and the data files of this package."""

from __future__ import annotations

import functools
import importlib.resources
import json
from typing import Any

import yaml

from sandbox.status import ApiError, bad_request


class _PlainLoader(yaml.SafeLoader):
    """YAML as Kubernetes means it: what looks like a date is a string."""


_PlainLoader.yaml_constructors = {
    **yaml.SafeLoader.yaml_constructors,
    "tag:yaml.org,2002:timestamp": yaml.SafeLoader.construct_yaml_str,
}


def encode(document: object) -> bytes:
    """Compact JSON."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def decode(data: bytes, content_type: str) -> Any:
    """The document in a body; YAML where the media type says so. Raises `ApiError`."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type and not media_type.endswith(("json", "yaml", "*/*")):
        message = f"the body of the request was in an unknown format: {media_type}"
        raise ApiError(415, "UnsupportedMediaType", message)
    try:
        if not media_type.endswith("yaml"):
            return json.loads(data)
        return yaml.load(data, _PlainLoader)  # noqa: S506 - a SafeLoader with fewer types
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise bad_request(f"the body of the request cannot be decoded: {error}") from error


@functools.cache
def packaged(name: str) -> Any:
    """A YAML file of this package, decoded. Not to be altered."""
    text = importlib.resources.files("sandbox").joinpath(name).read_text(encoding="utf-8")
    return yaml.load(text, _PlainLoader)  # noqa: S506 - a SafeLoader with fewer types
