"""Authorization: the grant, the role, and whom a caller may ask to be."""

from __future__ import annotations

import json

import pytest
import trio

from server.access_file import Grant, ImpersonatedIdentity, MayImpersonate
from server.authorization import (
    AccessQuestion,
    RememberedAnswers,
    RequestedIdentity,
    access_review,
    authorize,
    find_grant,
    is_allowed,
    questions_about,
    requested_identity,
)
from server.directory import Caller
from server.errors import AgentForbidden, BadRequest, Forbidden
from server.verbs import request_info
from tunnel.identity import Identity
from tunnel.messages import RequestHead


def caller(*grants: Grant) -> Caller:
    return Caller(user="alice", credential_id="user/alice/x", grants=tuple(grant.for_user("alice") for grant in grants))


def permission(**options) -> Grant:
    return Grant(agent="edge-1", **options)


async def decide(who, fields=(), *, method="GET", target="/api/v1/pods", agent_exists=True, ask=None, protocol=None):
    head = RequestHead(method.encode(), b"", b"", list(fields), protocol=protocol)
    return await authorize(
        who,
        "edge-1",
        agent_exists=agent_exists,
        info=request_info(head, target.encode()),
        fields=list(fields),
        request_id="r-1",
        ask_cluster=ask,
    )


def test_the_first_grant_that_matches_counts():
    first, second = Grant(agent="edge-*", role="read-only"), Grant(agent="edge-1")

    assert find_grant(caller(first, second), "edge-1").role == "read-only"
    assert find_grant(caller(second, first), "edge-1").role == "full"
    assert find_grant(caller(first), "other") is None


async def test_the_identity_is_the_one_of_the_grant():
    identity = ImpersonatedIdentity(user="alice@x", uid="7", groups=("dev",), extra={"k": ("v",)})

    assert await decide(caller(permission(identity=identity))) == Identity(
        mode="impersonate", user="alice@x", uid="7", groups=("dev",), extra={"k": ("v",)}, request_id="r-1", role="full"
    )
    assert await decide(caller(permission())) == Identity(mode="impersonate", user="alice", request_id="r-1")
    assert (await decide(caller(permission(mode="agent", role="read-only")))).mode == "agent"


async def test_an_unknown_and_a_forbidden_agent_give_the_same_answer():
    with pytest.raises(AgentForbidden) as unknown:
        await decide(caller(Grant(agent="*")), agent_exists=False)
    with pytest.raises(AgentForbidden) as forbidden:
        await decide(caller(Grant(agent="other")))
    with pytest.raises(AgentForbidden) as neither:
        await decide(caller(), agent_exists=False)

    assert unknown.value.message == forbidden.value.message == neither.value.message
    assert unknown.value.fields == forbidden.value.fields


@pytest.mark.parametrize(
    ("method", "target", "protocol", "why"),
    [
        ("POST", "/api/v1/namespaces/x/pods", None, "create on pods is not reading"),
        ("GET", "/api/v1/namespaces/x/pods/p/exec", b"websocket", "upgraded"),
        ("GET", "/api/v1/namespaces/x/services/s/pro%78y/", None, "encoded slashes"),
        ("GET", "/api/v1/namespaces/x/pods/p/vnc", None, "get on pods/vnc is not reading"),
        ("PUT", "/logs", None, "put is not reading"),
    ],
)
async def test_a_read_only_role_refuses_and_says_why(method, target, protocol, why):
    with pytest.raises(Forbidden, match=why) as caught:
        await decide(caller(permission(role="read-only")), method=method, target=target, protocol=protocol)

    assert "read-only on agent edge-1" in caught.value.message
    await decide(caller(permission(role="full")), method=method, target=target, protocol=protocol)


IMPERSONATION_FIELDS = [
    (b"impersonate-user", b"bob"),
    (b"impersonate_user", b"bob"),
    (b"Impersonate-User", b"bob"),
    (b"impersonate-group", b"system:masters"),
    (b"impersonate-extra-scopes", b"x"),
    (b"impersonate-anything", b"x"),
    (b"impersonate-", b""),
]


@pytest.mark.parametrize("field", IMPERSONATION_FIELDS)
async def test_impersonation_fields_are_refused_where_the_grant_says_nothing(field):
    with pytest.raises(Forbidden, match="may not impersonate"):
        await decide(caller(permission()), [(b"accept", b"*/*"), field])


async def test_what_the_grant_allows_takes_the_place_of_the_callers_own_identity():
    allowed = MayImpersonate(
        users=("ci-*", "system:serviceaccount:x:y"),
        groups=("auditors",),
        uids=("7",),
        extras={"example.com/team": ("*",)},
    )
    who = caller(permission(may_impersonate=allowed, role="read-only", identity=ImpersonatedIdentity(groups=("dev",))))

    identity = await decide(
        who,
        [
            (b"impersonate-user", b"ci-7"),
            (b"impersonate-group", b"auditors"),
            (b"impersonate-uid", b"7"),
            (b"impersonate-extra-example.com%2fTeam", b"red"),
            (b"impersonate-extra-example.com%2Fteam", b"blue"),
        ],
    )

    assert identity == Identity(
        mode="impersonate",
        user="ci-7",
        uid="7",
        groups=("auditors",),
        extra={"example.com/team": ("red", "blue")},
        request_id="r-1",
        role="read-only",
    )
    account = await decide(who, [(b"impersonate-user", b"system:serviceaccount:x:y")])
    assert (account.user, account.groups) == ("system:serviceaccount:x:y", ())


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ([(b"impersonate-user", b"bob")], 'users "bob"'),
        ([(b"impersonate-user", b"ci-1"), (b"impersonate-group", b"dev")], 'groups "dev"'),
        ([(b"impersonate-user", b"ci-1"), (b"impersonate-group", b"system:masters")], 'groups "system:masters"'),
        ([(b"impersonate-user", b"system:admin")], 'users "system:admin"'),
        ([(b"impersonate-user", b"system:serviceaccount:a:b")], 'serviceaccounts "a/b"'),
        ([(b"impersonate-user", b"ci-1"), (b"impersonate-uid", b"1")], 'uids "1"'),
        ([(b"impersonate-user", b"ci-1"), (b"impersonate-extra-a", b"x")], 'userextras/a "x"'),
    ],
)
async def test_what_the_grant_does_not_allow_is_refused_by_name(fields, refused):
    # "*" allows groups, and still not those that begin with system:.
    allowed = MayImpersonate(users=("ci-*", "sys*"), groups=("*auditors", "s*"))
    with pytest.raises(Forbidden) as caught:
        await decide(caller(permission(may_impersonate=allowed)), fields)

    assert refused in caught.value.message


async def test_a_star_does_not_stand_for_names_that_begin_with_system():
    everything = MayImpersonate(users=("*",), groups=("*",))
    written_out = MayImpersonate(users=("*",), groups=("system:masters",))
    fields = [(b"impersonate-user", b"bob"), (b"impersonate-group", b"system:masters")]

    with pytest.raises(Forbidden):
        await decide(caller(permission(may_impersonate=everything)), fields)
    assert (await decide(caller(permission(may_impersonate=written_out)), fields)).groups == ("system:masters",)


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ([(b"impersonate-group", b"g")], "without impersonating a user"),
        ([(b"impersonate-uid", b"g")], "without impersonating a user"),
        ([(b"impersonate-extra-a", b"g")], "without impersonating a user"),
        ([(b"impersonate-user", b"")], "without impersonating a user"),
        ([(b"impersonate-user", b"a"), (b"impersonate-user", b"b")], "repeated"),
        ([(b"impersonate-user", b"a"), (b"impersonate-uid", b"b"), (b"impersonate-uid", b"c")], "repeated"),
        ([(b"impersonate-user", b"a"), (b"impersonate_group", b"b")], "no such field"),
        ([(b"impersonate-user", b"a"), (b"impersonate-role", b"b")], "no such field"),
        ([(b"impersonate-user", b"\xff")], "not UTF-8"),
        ([(b"impersonate-user", b"a"), (b"impersonate-extra-", b"b")], "key is empty"),
        ([(b"impersonate-user", b"a"), (b"impersonate-extra-%ff", b"b")], "key is empty or not UTF-8"),
        ([(b"impersonate-user", b"a"), *[(b"impersonate-group", b"g")] * 1001], "at most 1000"),
    ],
)
def test_what_kubernetes_would_ignore_or_refuse_is_a_bad_request(lines, text):
    with pytest.raises(BadRequest, match=text):
        requested_identity(lines)


async def test_a_requested_identity_that_no_agent_would_take_is_refused():
    fields = [(b"impersonate-user", b"bob"), *[(b"impersonate-group", b"g" * 100)] * 900]

    with pytest.raises(BadRequest, match="larger than an agent takes"):
        await decide(caller(permission(may_impersonate=MayImpersonate(users=("*",), groups=("*",)))), fields)


class Cluster:
    """A cluster whose RBAC lets callers impersonate some names."""

    def __init__(self, *allowed: str) -> None:
        self.allowed = allowed
        self.asked: list[tuple[str, Identity, AccessQuestion]] = []

    async def __call__(self, agent_id, identity, question):
        await trio.lowlevel.checkpoint()
        self.asked.append((agent_id, identity, question))
        return question.name in self.allowed


async def test_the_cluster_is_asked_under_the_callers_own_identity_about_each_name():
    cluster = Cluster("bob", "dev", "1", "red", "y")
    who = caller(permission(via_cluster=True, identity=ImpersonatedIdentity(user="alice@x", groups=("ops",))))
    fields = [
        (b"impersonate-user", b"bob"),
        (b"impersonate-group", b"dev"),
        (b"impersonate-uid", b"1"),
        (b"impersonate-extra-team", b"red"),
    ]

    identity = await decide(who, fields, ask=cluster)

    assert identity.user == "bob"
    assert {(agent, asker.user, asker.groups) for agent, asker, _ in cluster.asked} == {("edge-1", "alice@x", ("ops",))}
    assert [question for _, _, question in cluster.asked] == [
        AccessQuestion("impersonate", "", "users", "", "", "bob"),
        AccessQuestion("impersonate", "", "groups", "", "", "dev"),
        AccessQuestion("impersonate", "authentication.k8s.io", "userextras", "team", "", "red"),
        AccessQuestion("impersonate", "authentication.k8s.io", "uids", "", "", "1"),
    ]


async def test_one_no_of_the_cluster_is_enough():
    with pytest.raises(Forbidden, match='does not let user "alice" impersonate groups "system:masters"'):
        await decide(
            caller(permission(via_cluster=True)),
            [(b"impersonate-user", b"bob"), (b"impersonate-group", b"system:masters")],
            ask=Cluster("bob"),
        )


async def test_what_the_grant_allows_is_not_asked_about():
    cluster = Cluster("dev")
    who = caller(permission(via_cluster=True, may_impersonate=MayImpersonate(users=("bob",))))

    await decide(who, [(b"impersonate-user", b"bob"), (b"impersonate-group", b"dev")], ask=cluster)

    assert [question.name for _, _, question in cluster.asked] == ["dev"]


async def test_without_a_way_to_ask_via_cluster_allows_nothing():
    with pytest.raises(Forbidden):
        await decide(caller(permission(via_cluster=True)), [(b"impersonate-user", b"bob")])


def test_service_accounts_are_asked_about_as_objects_in_a_namespace():
    assert questions_about(RequestedIdentity("system:serviceaccount:ns:name")) == [
        AccessQuestion("impersonate", "", "serviceaccounts", "", "ns", "name")
    ]
    for user in ("system:serviceaccount:ns", "system:serviceaccount:a:b:c", "system:serviceaccount::x"):
        assert questions_about(RequestedIdentity(user))[0].resource == "users"


def test_an_access_review_is_what_kubernetes_expects():
    question = AccessQuestion("impersonate", "authentication.k8s.io", "userextras", "team", "", "red")

    assert json.loads(access_review(question)) == {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {
            "resourceAttributes": {
                "verb": "impersonate",
                "group": "authentication.k8s.io",
                "resource": "userextras",
                "subresource": "team",
                "name": "red",
            }
        },
    }


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (b'{"status":{"allowed":true}}', True),
        (b'{"status":{"allowed":true,"denied":true}}', False),
        (b'{"status":{"allowed":false}}', False),
        (b'{"status":{"allowed":"true"}}', False),
        (b'{"status":{"allowed":1}}', False),
        (b'{"status":"Failure"}', False),
        (b'{"allowed":true}', False),
        (b"[]", False),
        (b"", False),
        (b"\xff", False),
        (b"[" * 100_000, False),
    ],
)
def test_only_a_clear_yes_is_a_yes(body, answer):
    assert is_allowed(body) is answer


async def test_a_yes_is_remembered_for_ten_seconds_and_a_no_is_not(autojump_clock):
    cluster = Cluster("bob")
    remembered = RememberedAnswers(cluster, clock=trio.current_time)
    alice, bob = Identity(mode="impersonate", user="alice", request_id="1"), Identity(mode="impersonate", user="bob")
    yes, no = (AccessQuestion("impersonate", "", "users", "", "", name) for name in ("bob", "carol"))

    assert await remembered("edge-1", alice, yes)
    assert await remembered("edge-1", Identity(mode="impersonate", user="alice", request_id="2"), yes)
    assert len(cluster.asked) == 1
    assert await remembered("edge-2", alice, yes)
    assert await remembered("edge-1", bob, yes)
    assert not await remembered("edge-1", alice, no)
    assert not await remembered("edge-1", alice, no)
    assert len(cluster.asked) == 5

    await trio.sleep(10.0)
    cluster.allowed = ()
    assert not await remembered("edge-1", alice, yes)
    assert len(remembered) == 2


async def test_what_is_remembered_is_bounded():
    async def always(*_):
        return True

    remembered = RememberedAnswers(always, clock=lambda: 0.0)
    identity = Identity(mode="impersonate", user="alice")
    for number in range(10_050):
        await remembered("edge-1", identity, AccessQuestion("impersonate", "", "users", "", "", str(number)))

    assert len(remembered) == 10_000
