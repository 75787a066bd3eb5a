"""Editing the access file: what people wrote stays, and the data is exactly what was asked for."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from server.access_editing import append, remove

TOKEN = {"name": "laptop", "sha256": "ab" * 32}

COMMENTED = """\
# Who may come in.
agents:
  - id: edge-1  # in the cellar
    tokens:
      # made on Monday
      - name: default
        sha256: aa

users:
  # the first of us
  - name: alice
    tokens: [{name: old, sha256: bb}]  # one line
    agents:
      - agent: "*"   # everything
"""


def test_appending_to_a_block_list_keeps_comments_and_neighbours():
    edited = append(COMMENTED, ("agents", 0, "tokens"), TOKEN)

    assert edited.layout_kept
    assert edited.text == COMMENTED.replace(
        "        sha256: aa\n", f"        sha256: aa\n      - {{name: laptop, sha256: {'ab' * 32}}}\n"
    )


def test_appending_to_a_flow_list_stays_on_its_line():
    edited = append(COMMENTED, ("users", 0, "tokens"), TOKEN)

    assert edited.layout_kept
    assert f"[{{name: old, sha256: bb}}, {{name: laptop, sha256: {'ab' * 32}}}]  # one line\n" in edited.text


def test_appending_an_owner_comes_last():
    edited = append(COMMENTED, ("users",), {"name": "bob", "tokens": [TOKEN]})

    assert edited.layout_kept
    assert edited.text.startswith(COMMENTED)
    assert yaml.safe_load(edited.text)["users"][1] == {"name": "bob", "tokens": [TOKEN]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# only a comment\n",
        "users: []\n",
        "users: []  # nobody yet\nagents: []\n",
        "users:\nagents:\n  - id: x\n",
        "agents: []\nusers:\n",
        "agents:\n- id: x\n  tokens: []",
        "{agents: [], users: []}",
        "{agents: []}",
        "agents: [{id: x}]\nusers: [{name: a}]\n# end\n",
        "---\nagents:\n  - id: x # c\n",
        "users:\n  - name: a\n    tokens:\n    - {name: t, sha256: 'x'}\n",
    ],
)
def test_an_owner_can_be_added_to_any_shape_of_file(text):
    edited = append(text, ("users",), {"name": "bob", "tokens": [TOKEN]})

    assert edited.layout_kept
    assert yaml.safe_load(edited.text)["users"][-1] == {"name": "bob", "tokens": [TOKEN]}
    for line in text.splitlines():
        if "#" in line:
            assert line[line.index("#") :] in edited.text


@pytest.mark.parametrize(
    "entry",
    [
        "  - name: a",
        "  - name: a\n    tokens: []",
        "  - name: a\n    tokens:",
        "  - {name: a}",
        "  - {name: a, tokens: []}",
    ],
)
def test_a_token_can_be_added_to_any_shape_of_owner(entry):
    text = f"users:\n{entry}\n  # the next one\n  - name: b\n"

    edited = append(text, ("users", 0, "tokens"), TOKEN)

    assert edited.layout_kept
    assert "# the next one" in edited.text
    assert yaml.safe_load(edited.text) == {"users": [{"name": "a", "tokens": [TOKEN]}, {"name": "b"}]}


def test_removing_an_item_of_a_block_list_leaves_the_others_alone():
    text = "tokens:\n  - name: a\n    sha256: x\n  # about b\n  - name: b\n  - name: c  # last\n"

    edited = remove(text, ("tokens", 1))

    assert edited.layout_kept
    assert edited.text == "tokens:\n  - name: a\n    sha256: x\n  # about b\n  - name: c  # last\n"


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize(
    "text",
    ["t: [{a: 1}, {a: 2}, {a: 3}]\n", "t:\n- a: 1\n- a: 2\n- {a: 3}\nu: 1\n", "t:\n  - a: 1\n  -  a: 2\n  - a: 3"],
)
def test_each_item_can_be_removed(text, index):
    edited = remove(text, ("t", index))

    wanted = yaml.safe_load(text)
    del wanted["t"][index]
    assert edited.layout_kept
    assert yaml.safe_load(edited.text) == wanted


@pytest.mark.parametrize("text", ["t: [{a: 1}] # c\n", "t:\n  - a: 1 # c\nu: 2\n"])
def test_the_last_item_leaves_an_empty_list(text):
    edited = remove(text, ("t", 0))

    assert yaml.safe_load(edited.text)["t"] == []
    assert "# c" in edited.text


def test_what_cannot_be_edited_in_place_is_written_anew_and_said_to_be():
    text = "base: &base\n  tokens: []\nusers:\n  - <<: *base\n    name: a\n"

    edited = append(text, ("users", 0, "tokens"), TOKEN)

    assert not edited.layout_kept
    assert yaml.safe_load(edited.text)["users"] == [{"name": "a", "tokens": [TOKEN]}]


_names = st.text(alphabet="abz019-", min_size=1, max_size=6)
_token = st.fixed_dictionaries({"name": _names, "sha256": _names})
_user = st.fixed_dictionaries({"name": _names}, optional={"tokens": st.lists(_token, max_size=3), "agents": st.none()})


@given(
    users=st.lists(_user, min_size=1, max_size=3),
    flow=st.sampled_from([True, False, None]),
    indent=st.integers(2, 6),
    data=st.data(),
)
def test_any_file_says_what_was_asked_for(users, flow, indent, data):
    text = yaml.safe_dump({"users": users}, default_flow_style=flow, indent=indent, sort_keys=False)
    index = data.draw(st.integers(0, len(users) - 1))

    edited = append(text, ("users", index, "tokens"), TOKEN)

    users[index]["tokens"] = [*(users[index].get("tokens") or []), TOKEN]
    assert yaml.safe_load(edited.text) == {"users": users}
    removed = remove(edited.text, ("users", index, "tokens", len(users[index]["tokens"]) - 1))
    users[index]["tokens"].pop()
    assert yaml.safe_load(removed.text) == {"users": users}
