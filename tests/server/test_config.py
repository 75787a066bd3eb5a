"""The configuration of kas: the example is the defaults, and what cannot work is said before anything listens."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

import server.config
from operations.configuration import ConfigurationError, load_configuration, structure
from server.config import ENVIRONMENT_PREFIX, KasConfig

EXAMPLE = Path(server.config.__file__).with_name("kas.example.yaml")
TLS = {"certificate_file": "/c", "key_file": "/k"}


def problems_of(raw):
    with pytest.raises(ConfigurationError) as caught:
        structure(KasConfig, raw)
    return caught.value.problems


def test_the_example_loads_and_equals_the_defaults():
    assert load_configuration(KasConfig, EXAMPLE) == KasConfig()


def test_the_example_has_every_key():
    def keys(cls, config, path=""):
        for field in dataclasses.fields(cls):
            value = getattr(config, field.name)
            yield f"{path}{field.name}"
            if dataclasses.is_dataclass(value) and not hasattr(value, "is_loopback"):
                yield from keys(type(value), value, f"{path}{field.name}.")

    def present(raw, path=""):
        for key, value in raw.items():
            yield f"{path}{key}"
            if isinstance(value, dict):
                yield from present(value, f"{path}{key}.")

    text = EXAMPLE.read_text()
    uncommented = yaml.safe_load(text.replace("# tls:", "tls:").replace("#   ", "  "))

    assert set(keys(KasConfig, KasConfig())) <= set(present(uncommented))


def test_every_key_is_documented_below_it():
    import ast
    import inspect

    source = ast.parse(inspect.getsource(server.config))
    for definition in (node for node in source.body if isinstance(node, ast.ClassDef)):
        for statement, following in zip(definition.body, [*definition.body[1:], None], strict=True):
            if isinstance(statement, ast.AnnAssign) and not ast.unparse(statement.annotation).endswith(
                ("Config", "Limits")
            ):
                assert isinstance(following, ast.Expr), f"{definition.name}.{ast.unparse(statement.target)}"


def test_a_listener_that_others_reach_needs_tls_or_the_word_plaintext():
    (problem,) = problems_of({"proxy": {"address": ":443"}})
    assert problem.startswith("proxy.tls: tokens would cross :443 in clear text")

    structure(
        KasConfig, {"proxy": {"address": ":443", "tls": TLS}, "agents": {"address": "0.0.0.0:8150", "plaintext": True}}
    )


def test_all_problems_are_reported_at_once():
    problems = problems_of(
        {
            "id": "a b",
            "agents": {"address": "10.0.0.1:8150", "max_connections": 0},
            "proxy": {
                "address": ":443",
                "plaintext": True,
                "tls": TLS,
                "path_prefix": "/agents/x",
                "domain": "*.x.org",
            },
            "operations": {"address": "10.0.0.1:8150"},
            "timeouts": {"upstream_head": "0s", "wait_for_agent": "1h"},
            "memory": {"buffered_bytes": "1MiB"},
            "log": {"level": "lots"},
        }
    )

    assert [problem.partition(":")[0] for problem in problems] == [
        "agents.max_connections",
        "timeouts.upstream_head",
        "timeouts.wait_for_agent",
        "memory.buffered_bytes",
        "log.level",
        "id",
        "agents.tls",
        "proxy.plaintext",
        "operations.address",
        "proxy.path_prefix",
        "proxy.domain",
    ]


@pytest.mark.parametrize(
    "prefix", ["", "k8s", "/a b/", "/a/%2e/", "/é/", "/a//b/", "/a/../b/", "/..", "/agents", "/agents/"]
)
def test_prefixes_that_cannot_work(prefix):
    (problem,) = problems_of({"proxy": {"path_prefix": prefix}})
    assert problem.startswith("proxy.path_prefix: ")


@pytest.mark.parametrize("prefix", ["/", "/k8s-proxy", "/k8s-proxy/", "/a/b.c_d~e/", "/agents-of-mine/"])
def test_prefixes_that_can(prefix):
    assert structure(KasConfig, {"proxy": {"path_prefix": prefix}}).proxy.path_prefix == prefix


def test_the_environment_reaches_every_section():
    config = load_configuration(
        KasConfig,
        environment={
            "KAS__PROXY__DOMAIN": "example.com",
            "KAS__TIMEOUTS__TUNNEL_AGE": "2h",
            "KAS_PORT": "tcp://1.2.3.4:5",
        },
        prefix=ENVIRONMENT_PREFIX,
    )

    assert config.proxy.domain == "example.com"
    assert config.timeouts.tunnel_age == 7200.0
