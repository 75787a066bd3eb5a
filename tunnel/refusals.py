"""What an answer to an agent's handshake means that is not a 101, in one line for whoever runs the agent. Pure.

An answer with ``Moorline-Versions`` is from a kas, and its own words are worth repeating. Any other comes from
something that stands in front of kas, or in its place.
"""

from __future__ import annotations

import email.utils
import json
import re
from collections.abc import Callable
from typing import Final, NamedTuple

from tunnel.errors import HandshakeError
from tunnel.fields import list_members
from tunnel.handshake import Form, Hello
from tunnel.messages import Fields, ResponseHead, field_value

EXCERPT_CHARACTERS: Final = 200
"""How much of a foreign answer's body is shown."""

BODY_BYTES: Final = 4_096
"""How much of it is worth reading."""

_RETRY_SECONDS: Final = 86_400.0
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_TLS_ALERT_OR_HANDSHAKE: Final = (0x15, 0x16)
_UNPRINTABLE: Final = re.compile(r"[^ -~]+|\s+")


class _Answer(NamedTuple):
    status: int
    fields: Fields
    from_kas: bool
    words: str
    """What it says: kas's message, or an excerpt of the body, with who sent it; may be empty."""
    hello: Hello
    form: Form


def explain_refusal(head: ResponseHead, body: bytes, *, hello: Hello, form: Form, address: str) -> HandshakeError:
    """The error for a final answer other than 101; ``body`` is the beginning of what came behind its head."""
    from_kas = is_from_agent_listener(head)
    reason, message = _kas_body(body) if from_kas else ("", "")
    words = message or _excerpt(body, head.fields)
    answer = _Answer(head.status, head.fields, from_kas, words, hello, form)
    explain = _BY_STATUS.get(head.status, _explain_other)
    if not from_kas and field_value(head.fields, b"moorline-request-id") is not None:
        explain, words = _explain_wrong_listener, ""
    if 300 <= head.status < 400:
        words = ""  # a page for browsers, which says the same
    text, default_reason = explain(answer)
    if words:
        text = f"{text} ({words})"
    return HandshakeError(
        f"{address}: {text}",
        status=head.status,
        reason=reason or default_reason,
        retry_after=_retry_after(head.fields) if head.status in (409, 429, 503) else None,
    )


def is_from_agent_listener(head: ResponseHead) -> bool:
    """Whether a refusal is of a kas to which agents connect, and not of something in front of it."""
    return field_value(head.fields, b"moorline-versions") is not None


def explain_garbage(received: bytes, *, address: str) -> HandshakeError:
    """The error for an answer that is not HTTP, or none at all."""
    if not received:
        return HandshakeError(
            f"{address}: the connection was closed without an answer: check the port, and whether something on the way "
            "lets this kind of request through (wss:// may pass where https:// does not)",
            reason="no-answer",
        )
    if received[0] in _TLS_ALERT_OR_HANDSHAKE:
        return HandshakeError(
            f"{address}: it speaks TLS on this port: the address must say https:// or wss://", reason="is-tls"
        )
    return HandshakeError(
        f"{address}: the answer is not HTTP/1.1, it begins with {_printable(received[:60])!r}: check the port",
        reason="not-http",
    )


def explain_proxy_refusal(
    head: ResponseHead, body: bytes, *, proxy: str, authority: str, with_credentials: bool
) -> HandshakeError:
    """The error for a proxy's answer to CONNECT other than 2xx. ``proxy`` is its address without credentials."""
    reason = "proxy"
    if head.status == 407 and with_credentials:
        text, reason = "refuses our credentials (407): check user and password in HTTPS_PROXY", "proxy-authentication"
    elif head.status == 407:
        text = "asks for credentials (407): set HTTPS_PROXY=http://user:password@host:port"
        reason = "proxy-authentication"
    elif head.status == 403:
        text = f"does not allow connections to {authority} (403): have it allowed, or list the host in NO_PROXY"
    elif head.status in (502, 503, 504):
        text = f"does not reach {authority} ({head.status}): list the host in NO_PROXY if no proxy is needed"
    else:
        text = f"answered {head.status} to CONNECT {authority}: is it an HTTP proxy?"
    words = _excerpt(body, head.fields)
    message = f"proxy {proxy} {text}" + (f" ({words})" if words else "")
    return HandshakeError(message, status=head.status, reason=reason)


def _explain_wrong_listener(answer: _Answer) -> tuple[str, str]:
    return (
        f"this is where kas takes requests of kubectl ({answer.status}); agents connect to another address of kas "
        "(agents.address in its configuration, port 8150 by default)"
    ), "wrong-listener"


def _explain_ok(answer: _Answer) -> tuple[str, str]:
    other = "wss://" if answer.form is Form.UPGRADE else "https://"
    return (
        f"answered {answer.status} instead of opening a tunnel: it is not a kas agent listener, or a proxy on the way "
        f"removed the Upgrade header; check host and path, or try {other}"
    ), "not-a-kas"


def _explain_bad_request(answer: _Answer) -> tuple[str, str]:
    if answer.from_kas:
        return "kas does not understand this agent's handshake (400): are both of fitting versions?", "bad-request"
    return "answered 400: it is no kas, or a proxy on the way does not let upgrades through", "bad-request"


def _explain_unauthorized(answer: _Answer) -> tuple[str, str]:
    if answer.from_kas:
        return "kas refused the token (401): check that it is this agent's current token", "unauthorized"
    return "asks for credentials (401), and is no kas: check host and path", "unauthorized"


def _explain_forbidden(answer: _Answer) -> tuple[str, str]:
    if answer.from_kas:
        return "kas does not let this agent in (403)", "forbidden"
    return "forbidden (403) by something that is no kas: a firewall or an ingress in front of it", "forbidden"


def _explain_not_found(answer: _Answer) -> tuple[str, str]:
    if answer.from_kas:
        return "kas has no tunnels at this path (404): check the path in the address", "not-found"
    return "no kas at this host and path (404): check the address, and the ingress's routes", "not-found"


def _explain_redirect(answer: _Answer) -> tuple[str, str]:
    location = _printable(field_value(answer.fields, b"location") or b"") or "nowhere"
    return (
        f"redirects to {location} ({answer.status}), which is not followed: put the final address in the configuration"
    ), "redirect"


def _explain_proxy_authentication(answer: _Answer) -> tuple[str, str]:
    return (
        f"a proxy on the way asks for credentials ({answer.status}): "
        "set HTTPS_PROXY=http://user:password@host:port for it"
    ), "proxy-authentication"


def _explain_conflict(answer: _Answer) -> tuple[str, str]:
    if answer.from_kas:
        return "kas has a tunnel of this agent already (409)", "already-connected"
    return "answered 409, and is no kas: check host and path", "not-a-kas"


def _explain_upgrade_required(answer: _Answer) -> tuple[str, str]:
    if not answer.from_kas:
        return "asks for another protocol (426), and is no kas: check host and path", "not-a-kas"
    theirs = [int(member) for member in list_members(answer.fields, b"moorline-versions") if member.isdigit()]
    ours = answer.hello.versions
    if set(theirs) & set(ours):
        return (
            "kas got no upgrade request (426): a proxy on the way removed the Upgrade header; let it through, or try "
            + ("wss://" if answer.form is Form.UPGRADE else "https://")
        ), "upgrade-required"
    what = "kas is too old for this agent: upgrade kas"
    if theirs and min(theirs) > max(ours):
        what = "this agent is too old for kas: upgrade agentk"
    spoken = f"kas speaks {_listed(theirs) or 'none'}, agentk {_listed(ours)}"
    return f"no common version of the tunnel protocol (426): {spoken}; {what}", "no-common-version"


def _explain_try_later(answer: _Answer) -> tuple[str, str]:
    who = "kas" if answer.from_kas else "something in front of kas"
    seconds = _retry_after(answer.fields)
    when = "later" if seconds is None else f"in {seconds:g} s"
    why = "gets too many handshakes" if answer.status == 429 else "takes no tunnels now"
    return f"{who} {why} ({answer.status}): trying again {when}", "unavailable"


def _explain_gateway(answer: _Answer) -> tuple[str, str]:
    return (
        f"something in front of kas answered {answer.status}: it does not reach kas, or does not let upgrades through"
    ), "bad-gateway"


def _explain_other(answer: _Answer) -> tuple[str, str]:
    if answer.status in _REDIRECTS:
        return _explain_redirect(answer)
    if answer.status < 300:
        return _explain_ok(answer)
    who = "kas" if answer.from_kas else "something that is no kas"
    return f"{who} answered {answer.status}", "refused"


_BY_STATUS: Final[dict[int, Callable[[_Answer], tuple[str, str]]]] = {
    400: _explain_bad_request,
    401: _explain_unauthorized,
    403: _explain_forbidden,
    404: _explain_not_found,
    407: _explain_proxy_authentication,
    409: _explain_conflict,
    426: _explain_upgrade_required,
    429: _explain_try_later,
    502: _explain_gateway,
    503: _explain_try_later,
    504: _explain_gateway,
}


def _kas_body(body: bytes) -> tuple[str, str]:
    """Reason and message of a refusal, both empty where the body is not one."""
    try:
        refusal = json.loads(body)
    except (ValueError, RecursionError):
        return "", ""
    if not isinstance(refusal, dict):
        return "", ""
    reason, message = refusal.get("error"), refusal.get("message")
    if not (isinstance(reason, str) and isinstance(message, str)):
        return "", ""
    return reason[:64], f"kas says: {_printable(message)[:EXCERPT_CHARACTERS]}"


def _excerpt(body: bytes, fields: Fields) -> str:
    parts = []
    server = field_value(fields, b"server")
    if server:
        parts.append(f"Server: {_printable(server)[:80]}")
    text = _printable(body)[:EXCERPT_CHARACTERS]
    if text:
        parts.append(f"body: {text}")
    return ", ".join(parts)


def _retry_after(fields: Fields) -> float | None:
    """Seconds to wait; a date counts from the answer's own Date (RFC 9110 §10.2.3)."""
    value = (field_value(fields, b"retry-after") or b"").decode("latin-1")
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), _RETRY_SECONDS)
    try:
        then = email.utils.parsedate_to_datetime(value)
        now = email.utils.parsedate_to_datetime((field_value(fields, b"date") or b"").decode("latin-1"))
        seconds = (then - now).total_seconds()
    except (ValueError, TypeError):  # no date, or only one of the two with a zone
        return None
    return min(max(seconds, 0.0), _RETRY_SECONDS)


def _printable(text: bytes | str) -> str:
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    return _UNPRINTABLE.sub(" ", text).strip()


def _listed(versions: tuple[int, ...] | list[int]) -> str:
    return ", ".join(map(str, versions))
