"""What a caller may do: the grant for an agent, its role, and the identity that the agent is to act for.

The order is fixed: an agent that is unknown and one that is forbidden give the same answer; then the role, on the path
decoded once; then the caller's own impersonation fields, which are refused unless the grant or the cluster allows them,
and never dropped in silence. Pure, except that a grant ``via_cluster`` asks the cluster, through a function that it is
given.

**Asking the cluster.** Whether a caller may impersonate is asked with SelfSubjectAccessReviews that travel under the
caller's own identity, as any other request of that caller. The API server evaluates the same attributes as for a
SubjectAccessReview about that user, since the agent impersonates the user, groups, uid and extras and all. But every
authenticated user may create the Self… kind (ClusterRole ``system:basic-user``), where the other one would ask for a
permission of the agent, which could then be used to find out about everybody.
"""

from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import unquote_to_bytes

from server.access_file import Grant, identity_of, may_be_asked_for
from server.directory import Caller
from server.errors import AgentForbidden, BadRequest, Forbidden
from server.verbs import RequestInfo
from tunnel.fields import impersonation_fields, normalised
from tunnel.identity import MAX_BLOCK_BYTES, Identity, encode_identity
from tunnel.messages import Fields

ACCESS_REVIEW_TARGET = b"/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
ALLOWED_FOR_SECONDS = 10.0
_ALLOWED_LIMIT = 10_000
_SERVICE_ACCOUNT = "system:serviceaccount:"
_REQUESTED_GROUPS_LIMIT = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class RequestedIdentity:
    """Whom a caller asks to be, as kube-apiserver reads ``Impersonate-*``."""

    user: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Keys in lower case, percent-decoded; with their values, in the order in which they came."""


@dataclasses.dataclass(frozen=True, slots=True)
class AccessQuestion:
    """May I do this? The attributes of one SelfSubjectAccessReview."""

    verb: str
    group: str
    resource: str
    subresource: str
    namespace: str
    name: str


AskCluster = Callable[[str, Identity, AccessQuestion], Awaitable[bool]]
"""``ask(agent_id, identity, question)``: send `access_review` to `ACCESS_REVIEW_TARGET` of that agent's cluster under
that identity, and return what `is_allowed` reads from a 201. Whatever else happens is False, or raises `ProxyError`."""


def find_grant(caller: Caller, agent_id: str) -> Grant | None:
    """The first of the caller's grants that is for this agent."""
    for grant in caller.grants:
        if grant.matches(agent_id):
            return grant
    return None


async def authorize(
    caller: Caller,
    agent_id: str,
    *,
    agent_exists: bool,
    info: RequestInfo,
    fields: Fields,
    request_id: str,
    ask_cluster: AskCluster | None = None,
) -> Identity:
    """The identity block for the exchange. Raises `Forbidden` (`AgentForbidden`) or `BadRequest`.

    ``fields`` are the caller's; they are not changed, and their ``impersonate-*`` lines must not be sent on.
    Checkpoints only where the cluster is asked.
    """
    grant = _grant_for(caller, agent_id, agent_exists=agent_exists, info=info)
    own = identity_of(grant, request_id=request_id)
    lines = impersonation_fields(fields)
    if not lines:
        return own
    if not grant.via_cluster and not _allows_any(grant):
        raise Forbidden(_impersonation_text(caller, agent_id), agent_id=agent_id)
    requested = requested_identity(lines)
    refused = not_allowed(grant, requested)
    if refused and (not grant.via_cluster or ask_cluster is None):
        raise Forbidden(f"{_impersonation_text(caller, agent_id)}: {_shown(refused[0])}", agent_id=agent_id)
    for question in refused:
        assert ask_cluster is not None
        if not await ask_cluster(agent_id, own, question):
            raise Forbidden(
                f'the cluster of agent {agent_id} does not let user "{own.user or caller.user}" impersonate '
                f"{_shown(question)}; its RBAC has to grant the verb impersonate",
                agent_id=agent_id,
            )
    return _block(own, requested)


def authorize_as_granted(
    caller: Caller, agent_id: str, *, agent_exists: bool, info: RequestInfo, request_id: str
) -> Identity:
    """What `authorize` returns where no line of the caller's asks to be somebody else. Raises as `authorize`."""
    grant = _grant_for(caller, agent_id, agent_exists=agent_exists, info=info)
    return identity_of(grant, request_id=request_id)


def _grant_for(caller: Caller, agent_id: str, *, agent_exists: bool, info: RequestInfo) -> Grant:
    """The grant under which the caller may ask this of the agent. Raises `Forbidden` (`AgentForbidden`)."""
    grant = find_grant(caller, agent_id)
    if grant is None or not agent_exists:
        raise AgentForbidden(agent_id, caller.user)
    if grant.role == "read-only" and not info.is_read_only:
        raise Forbidden(_role_text(caller, agent_id, info), agent_id=agent_id)
    return grant


def _block(own: Identity, requested: RequestedIdentity) -> Identity:
    identity = Identity(
        mode="impersonate",
        user=requested.user,
        uid=requested.uid,
        groups=requested.groups,
        extra=dict(requested.extra),
        request_id=own.request_id,
        role=own.role,
    )
    if len(encode_identity(identity)) > MAX_BLOCK_BYTES:
        raise BadRequest("the Impersonate-* fields are larger than an agent takes")
    return identity


def requested_identity(lines: Fields) -> RequestedIdentity:
    """Read ``Impersonate-*`` lines as kube-apiserver does, but refuse what it would ignore. Raises `BadRequest`.

    Keys of extras are percent-decoded and in lower case (apiserver ``unescapeExtraKey``); a user is required as soon as
    anything else is asked for. A service account without groups gets its groups from kube-apiserver.
    """
    users: list[str] = []
    uids: list[str] = []
    groups: list[str] = []
    extra: dict[str, tuple[str, ...]] = {}
    for name, value in lines:
        text = _decoded(name, value)
        if name == b"impersonate-user":
            users.append(text)
        elif name == b"impersonate-uid":
            uids.append(text)
        elif name == b"impersonate-group":
            groups.append(text)
        elif name.startswith(b"impersonate-extra-"):
            key = _extra_key(name)
            extra[key] = (*extra.get(key, ()), text)
        else:
            raise BadRequest(f"{normalised(name).decode('ascii', 'replace')}: Kubernetes has no such field")
    if len(users) > 1 or len(uids) > 1:
        raise BadRequest("Impersonate-User and Impersonate-Uid must not be repeated")
    if len(groups) > _REQUESTED_GROUPS_LIMIT:
        raise BadRequest(f"at most {_REQUESTED_GROUPS_LIMIT} Impersonate-Group lines are taken")
    if not users or not users[0]:
        raise BadRequest("requested groups, uid or extras without impersonating a user: Impersonate-User is missing")
    return RequestedIdentity(users[0], uids[0] if uids else "", tuple(groups), tuple(extra.items()))


def _decoded(name: bytes, value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest(f"{name.decode('ascii', 'replace')}: the value is not UTF-8") from None


def _extra_key(name: bytes) -> str:
    encoded = name.removeprefix(b"impersonate-extra-").lower()
    try:
        key = unquote_to_bytes(encoded).decode("utf-8").lower()
    except UnicodeDecodeError:
        key = ""
    if not key:
        raise BadRequest("Impersonate-Extra-<key>: the key is empty or not UTF-8")
    return key


def not_allowed(grant: Grant, requested: RequestedIdentity) -> list[AccessQuestion]:
    """What of the requested identity the grant does not allow by itself, as questions for the cluster."""
    allowed = grant.may_impersonate
    questions = [
        (may_be_asked_for(allowed.users, requested.user), _user_question(requested.user)),
        *(
            (may_be_asked_for(allowed.groups, group), AccessQuestion("impersonate", "", "groups", "", "", group))
            for group in requested.groups
        ),
        *(
            (
                may_be_asked_for(allowed.extras.get(key, ()), value),
                AccessQuestion("impersonate", "authentication.k8s.io", "userextras", key, "", value),
            )
            for key, values in requested.extra
            for value in values
        ),
    ]
    if requested.uid:
        question = AccessQuestion("impersonate", "authentication.k8s.io", "uids", "", "", requested.uid)
        questions.append((may_be_asked_for(allowed.uids, requested.uid), question))
    return [question for is_allowed_here, question in questions if not is_allowed_here]


def _user_question(user: str) -> AccessQuestion:
    # As apiserver's impersonation filter asks: a service account is an object in a namespace, not a user.
    if user.startswith(_SERVICE_ACCOUNT):
        namespace, _, name = user.removeprefix(_SERVICE_ACCOUNT).partition(":")
        if namespace and name and ":" not in name:
            return AccessQuestion("impersonate", "", "serviceaccounts", "", namespace, name)
    return AccessQuestion("impersonate", "", "users", "", "", user)


def access_review(question: AccessQuestion) -> bytes:
    """The body of the POST to `ACCESS_REVIEW_TARGET`, in JSON."""
    attributes = {name: value for name, value in dataclasses.asdict(question).items() if value}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    return json.dumps(review, separators=(",", ":")).encode()


def is_allowed(body: bytes) -> bool:
    """Whether the answer to an access review says yes. Anything but a clear yes is no."""
    try:
        status = json.loads(body)["status"]
        return status.get("allowed") is True and status.get("denied") is not True
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False


class RememberedAnswers:
    """An `AskCluster` that remembers each yes for ten seconds. A no is asked again: a new rule works at once."""

    def __init__(self, ask: AskCluster, *, clock: Callable[[], float], seconds: float = ALLOWED_FOR_SECONDS) -> None:
        self._ask = ask
        self._clock = clock
        self._seconds = seconds
        self._allowed: OrderedDict[tuple[object, ...], float] = OrderedDict()

    async def __call__(self, agent_id: str, identity: Identity, question: AccessQuestion) -> bool:
        """Whether the cluster allows it. Concurrent first questions are each asked."""
        key = (agent_id, *_identity_key(identity), question)
        until = self._allowed.get(key)
        if until is not None and self._clock() < until:
            return True
        if not await self._ask(agent_id, identity, question):
            self._allowed.pop(key, None)
            return False
        self._allowed[key] = self._clock() + self._seconds
        self._allowed.move_to_end(key)
        while len(self._allowed) > _ALLOWED_LIMIT:
            self._allowed.popitem(last=False)
        return True

    def __len__(self) -> int:
        """How many answers are remembered, stale ones included."""
        return len(self._allowed)


def _identity_key(identity: Identity) -> tuple[object, ...]:
    extra = tuple(sorted((key, tuple(values)) for key, values in identity.extra.items()))
    return identity.mode, identity.user, identity.uid, identity.groups, extra


def _allows_any(grant: Grant) -> bool:
    allowed = grant.may_impersonate
    return bool(allowed.users or allowed.groups or allowed.uids or allowed.extras)


def _role_text(caller: Caller, agent_id: str, info: RequestInfo) -> str:
    if info.is_dubious:
        why = "a path with encoded slashes, dot segments or empty segments is refused to this role"
    elif info.is_upgrade:
        why = "connections that are upgraded (exec, attach, port-forward) are not reading"
    elif info.resource:
        subresource = f"/{info.subresource}" if info.subresource else ""
        why = f"{info.verb} on {info.resource}{subresource} is not reading"
    else:
        why = f"{info.verb} is not reading"
    return f'user "{caller.user}" has the role read-only on agent {agent_id}: {why}'


def _impersonation_text(caller: Caller, agent_id: str) -> str:
    return f'user "{caller.user}" may not impersonate on agent {agent_id}'


def _shown(question: AccessQuestion) -> str:
    subresource = f"/{question.subresource}" if question.subresource else ""
    namespace = f"{question.namespace}/" if question.namespace else ""
    return f'{question.resource}{subresource} "{namespace}{question.name}"'


def questions_about(requested: RequestedIdentity) -> Sequence[AccessQuestion]:
    """Every question that a direct call with this identity would raise in the cluster."""
    return not_allowed(Grant(agent="*"), requested)
