"""What an agent says went wrong, in the words of kas.

An agent that cannot carry out a request answers with the field ``moorline-error: <word>`` and a short plain text. Only
the agent can set that field: it removes every ``moorline-*`` field from what upstreams send. Pure.
"""

from __future__ import annotations

import dataclasses

from server.errors import (
    BadRequest,
    Forbidden,
    NoSuchRoute,
    ProxyError,
    TunnelSaturated,
    UpstreamAnswerUnusable,
    UpstreamTimeout,
    UpstreamUnreachable,
)


@dataclasses.dataclass(frozen=True, slots=True)
class AgentReport:
    """What an agent said instead of an upstream's answer."""

    word: str
    status: int
    text: str


def agent_report(word: bytes, status: int, text: bytes) -> AgentReport:
    """An agent's words made safe to show: one line, printable."""
    shown = " ".join(text.decode("utf-8", "replace").split())
    return AgentReport(
        word=word.decode("ascii", "replace").strip().lower(),
        status=status,
        text="".join(character for character in shown if character.isprintable()),
    )


def error_for(report: AgentReport, agent_id: str) -> ProxyError:
    """The answer that the caller gets for it."""
    says = f"agent {agent_id}: {report.text or report.word}"
    match report.word:
        case "upstream-unreachable":
            return UpstreamUnreachable(agent_id, report.text)
        case "upstream-timeout":
            return UpstreamTimeout(agent_id, detail=report.text or "the cluster did not answer in time")
        case "identity-refused":
            return Forbidden(says, hop="agent", agent_id=agent_id)
        case "bad-request":
            return BadRequest(says, hop="agent", agent_id=agent_id)
        case "unknown-origin" | "not-found":
            return NoSuchRoute(says, hop="agent", agent_id=agent_id)
        case "busy":
            return TunnelSaturated(agent_id)
        case _:
            return UpstreamAnswerUnusable(
                agent_id, report.text or report.word or "the agent gave no reason", hop="agent"
            )
