"""Kubeconfig files that lead to kas."""

from __future__ import annotations

import base64

import pytest
import yaml

from moorline.kubeconfig import Address, address_of, render_kubeconfig


@pytest.mark.parametrize(
    ("given", "server", "bearer"),
    [
        ("https://kas.example", "https://kas.example/k8s-proxy", "pat:prod:mlu_x"),
        ("https://kas.example:8443/", "https://kas.example:8443/k8s-proxy", "pat:prod:mlu_x"),
        ("https://[::1]:8443", "https://[::1]:8443/k8s-proxy", "pat:prod:mlu_x"),
        ("https://front.example/kas/k8s-proxy/", "https://front.example/kas/k8s-proxy", "pat:prod:mlu_x"),
        ("https://kas.example/clusters/", "https://kas.example/clusters", "pat:prod:mlu_x"),
        ("https://kas.example/agents/prod/k8s/", "https://kas.example/agents/prod/k8s", "mlu_x"),
        ("https://front.example/a/agents/prod/k8s", "https://front.example/a/agents/prod/k8s", "mlu_x"),
        ("https://prod.k8s.kas.example", "https://prod.k8s.kas.example", "mlu_x"),
        ("https://prod2.k8s.kas.example", "https://prod2.k8s.kas.example/k8s-proxy", "pat:prod:mlu_x"),
    ],
)
def test_the_address_follows_from_what_the_url_already_names(given: str, server: str, bearer: str) -> None:
    assert Address(server=server, bearer=bearer) == address_of("prod", "mlu_x", given)


@pytest.mark.parametrize(
    "url",
    [
        "http://kas.example",
        "kas.example:8443",
        "https://",
        "https://kas.example/agents/other/k8s",
        "https://me:secret@kas.example",
        "https://kas.example?agent=prod",
    ],
)
def test_a_url_that_leads_nowhere_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        address_of("prod", "mlu_x", url)


def test_the_file_says_where_whom_to_trust_and_who_asks() -> None:
    address = Address(server="https://kas.example/k8s-proxy", bearer="pat:prod:mlu_x")
    document = yaml.safe_load(render_kubeconfig(name="prod", user="alice", address=address, authority=b"PEM"))

    assert document["current-context"] == "prod"
    (context,) = document["contexts"]
    assert context == {"name": "prod", "context": {"cluster": "prod", "user": "alice"}}
    (cluster,) = document["clusters"]
    assert base64.b64decode(cluster["cluster"]["certificate-authority-data"]) == b"PEM"
    assert cluster["cluster"]["server"] == address.server
    assert document["users"] == [{"name": "alice", "user": {"token": "pat:prod:mlu_x"}}]


def test_without_an_authority_the_machine_decides_whom_to_trust() -> None:
    address = Address(server="https://kas.example/k8s-proxy", bearer="t")
    document = yaml.safe_load(render_kubeconfig(name="prod", user="alice", address=address))

    assert document["clusters"][0]["cluster"] == {"server": address.server}


def test_the_token_is_not_in_a_repr() -> None:
    assert "mlu_x" not in repr(address_of("prod", "mlu_x", "https://kas.example"))
