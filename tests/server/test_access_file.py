"""The access file: all its problems at once, and no problem repeats what might be a token."""

from __future__ import annotations

import pytest

from operations.configuration import ConfigurationError, structure
from server.access_file import AccessFile, Grant, identity_of, load_access_file, matches, may_be_asked_for
from server.tokens import AGENT_PREFIX, USER_PREFIX, digest, is_well_formed, new_token

HASH, OTHER_HASH = "a" * 64, "b" * 64

DOCUMENTED = f"""
agents:
  - id: edge-1
    tokens:
      - name: default
        sha256: {HASH}
        expires: 2027-01-01T00:00:00Z
users:
  - name: alice
    tokens:
      - {{name: laptop, sha256: {OTHER_HASH}}}
    agents:
      - agent: edge-1
        mode: impersonate
        as:
          user: alice
          uid: "1234"
          groups: [developers]
          extra: {{example.com/team: [red]}}
        role: full
        may_impersonate:
          users: ["ci-*"]
          groups: [auditors, "system:masters"]
          uids: []
          extras: {{example.com/team: ["*"]}}
        via_cluster: false
"""


def problems_of(raw):
    with pytest.raises(ConfigurationError) as caught:
        structure(AccessFile, raw)
    return caught.value.problems


def test_the_documented_file_loads(tmp_path):
    path = tmp_path / "access.yaml"
    path.write_text(DOCUMENTED)

    file = load_access_file(path)

    assert file.agents[0].tokens[0].expires_at == 1_798_761_600.0
    assert file.users[0].agents[0].identity.extra == {"example.com/team": ("red",)}
    assert file.users[0].agents[0].may_impersonate.groups == ("auditors", "system:masters")


def test_every_problem_is_reported_at_once():
    problems = problems_of(
        {
            "agents": [
                {"id": "Edge_1", "tokens": [{"sha256": HASH}]},
                {"id": "edge-2", "tokens": [{"sha256": HASH}, {"sha256": OTHER_HASH}]},
                {"id": "edge-2"},
            ],
            "users": [
                {
                    "name": "alice",
                    "tokens": [{"name": "a", "sha256": "A" * 64}, {"name": "", "sha256": OTHER_HASH}],
                    "agents": [
                        {"agent": "Edge"},
                        {"agent": "*", "mode": "agent", "as": {"groups": ["x"]}},
                        {"agent": "*", "as": {"extra": {"Team": ["x"]}}},
                        {"agent": "*", "may_impersonate": {"groups": ["system:*"], "extras": {"a": ["system:?"]}}},
                        {"agent": "*", "as": {"groups": ["g" * 60_000]}},
                    ],
                },
                {"name": ""},
            ],
        }
    )

    assert problems == [
        "agents[2].id: edge-2 is there already, as agents[1]",
        "agents[0].id: expected a DNS label: at most 63 of a-z, 0-9 and -, not - at an end",
        "agents[1].tokens[1].name: default is there already, as agents[1].tokens[0]",
        "agents[1].tokens[0].sha256: is the same as agents[0].tokens[0].sha256; a token belongs to one owner",
        "users[0].tokens[0].sha256: expected 64 hexadecimal digits in lower case, the SHA-256 of the token",
        "users[0].tokens[1].name: must not be empty",
        "users[0].tokens[1].sha256: is the same as agents[1].tokens[1].sha256; a token belongs to one owner",
        "users[0].agents[0].agent: expected an agent id, or a pattern of a-z, 0-9, -, * and ?",
        "users[0].agents[1].as: has no effect with mode agent; remove it, or use mode impersonate",
        "users[0].agents[2]: the extra key 'Team' must be in lower case, as Kubernetes compares it",
        "users[0].agents[3].may_impersonate.groups: system:*: names that begin with system: must be written out",
        "users[0].agents[3].may_impersonate.extras.a: system:?: names that begin with system: must be written out",
        "users[0].agents[4].as: makes an identity block of 80314 bytes; at most 65536 reach the agent",
        "users[1].name: must not be empty",
    ]


def test_problems_of_single_values_come_with_their_paths():
    problems = problems_of(
        {"agents": [{"id": 5}], "users": [{"name": "a", "agents": [{"agent": "x", "role": "boss", "sees": 1}]}]}
    )

    assert problems[:2] == [
        "agents[0].id: expected text, got 5; put it in quotes",
        "users[0].agents[0].role: expected one of full, read-only, got 'boss'",
    ]
    assert problems[2].startswith("users[0].agents[0].sees: unknown key")


def test_a_token_that_was_put_in_place_of_its_hash_is_not_repeated():
    for token in (new_token(USER_PREFIX), "canary-" * 5):
        text = "\n".join(problems_of({"users": [{"name": "a", "tokens": [{"sha256": token}]}]}))
        assert token not in text


@pytest.mark.parametrize(
    ("pattern", "name", "is_match"),
    [
        ("edge-1", "edge-1", True),
        ("edge-1", "edge-12", False),
        ("edge-*", "edge-12", True),
        ("edge-?", "edge-12", False),
        ("*", "", True),
        ("a.c", "abc", False),
        ("[ab]", "a", False),
        ("*", "a\nb", True),
        ("", "x", False),
    ],
)
def test_patterns(pattern, name, is_match):
    assert matches(pattern, name) is is_match


def test_reserved_names_are_matched_only_where_they_are_written_out():
    assert may_be_asked_for(["*"], "admin")
    assert not may_be_asked_for(["*", "system*", "s*"], "system:masters")
    assert may_be_asked_for(["system:masters"], "system:masters")


def test_the_user_of_a_grant_is_the_users_own_name_by_default():
    assert identity_of(Grant(agent="*").for_user("alice"), request_id="r").user == "alice"


def test_tokens_are_256_random_bits_of_fixed_length_and_know_their_kind():
    tokens = {new_token(USER_PREFIX) for _ in range(200)}

    assert len(tokens) == 200
    assert all(is_well_formed(token, USER_PREFIX) and not is_well_formed(token, AGENT_PREFIX) for token in tokens)
    assert {len(token) for token in tokens} == {47}
    assert not is_well_formed(tokens.pop() + "\n", USER_PREFIX)
    assert not is_well_formed("mlu_short", USER_PREFIX)
    assert digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4
