"""Who a caller is and what the caller may do: whoever they say, and everything. Pure."""

from __future__ import annotations

from sandbox.calls import Call
from sandbox.kinds import ACCESS_REVIEWS, RULES_REVIEWS, Kind, Object

DEFAULT_USER = "sandbox-admin"


def review(call: Call, kind: Kind, document: Object) -> Object:
    """The document with its ``status``. What it asks makes no difference, whether it was understood or not."""
    call.warnings.clear()
    if kind is ACCESS_REVIEWS:
        status: Object = {"allowed": True, "reason": "everybody may do everything in the sandbox"}
    elif kind is RULES_REVIEWS:
        status = {
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
            "incomplete": False,
        }
    else:
        status = {"userInfo": user_info(call)}
    return kind.of({"metadata": {}} | document) | {"status": status}


def user_info(call: Call) -> Object:
    """The user of a call: who it impersonates, or the one user that there is."""
    user = call.field(b"impersonate-user")
    if not user:
        return {"username": DEFAULT_USER, "groups": ["system:masters", "system:authenticated"]}
    info: Object = {"username": user, "groups": [*call.field_lines(b"impersonate-group"), "system:authenticated"]}
    if uid := call.field(b"impersonate-uid"):
        info["uid"] = uid
    extra: dict[str, list[str]] = {}
    for name, value in call.downstream.request.fields:
        if name.startswith(b"impersonate-extra-"):
            extra.setdefault(name.removeprefix(b"impersonate-extra-").decode("latin-1"), []).append(
                value.decode("latin-1")
            )
    return info | ({"extra": extra} if extra else {})
