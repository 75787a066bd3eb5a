"""JSON and YAML: bodies of requests, and the data files of this package. Pure."""

from __future__ import annotations

import functools
import importlib.resources
import json
from typing import Any

import yaml


class _PlainLoader(yaml.SafeLoader):
    """YAML as Kubernetes means it: what looks like a date is a string."""


_PlainLoader.yaml_constructors = {
    **yaml.SafeLoader.yaml_constructors,
    "tag:yaml.org,2002:timestamp": yaml.SafeLoader.construct_yaml_str,
}


def encode(document: object) -> bytes:
    """Compact JSON."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def from_yaml(data: bytes) -> Any:
    """The document in YAML. Raises `ValueError`."""
    try:
        return yaml.load(data, _PlainLoader)  # noqa: S506 - a SafeLoader with fewer types
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


@functools.cache
def packaged(name: str) -> Any:
    """A YAML file of this package, decoded. Not to be altered."""
    return from_yaml(importlib.resources.files("sandbox").joinpath(name).read_bytes())
