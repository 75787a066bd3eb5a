"""Which way an exchange went through kas and agentk, and whether it has left anything behind."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from support.scripted_callers import Answer, Caller, CutOff
from support.scripted_stack import Stack, until

from agent.direct import DirectRequest
from agent.dispatch import ApiServerOrigin
from server.direct import DirectForwarding
from server.exchange import Pipeline


def counted_ways(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often an exchange began directly, ended so, or was handed over, at kas and at the agent."""
    counted: Counter[str] = Counter()

    def count(owner: type, name: str, key: str) -> None:
        original = getattr(owner, name)

        def counting(self: Any, *args: Any) -> Any:
            result = original(self, *args)
            if result is not False:
                counted[key] += 1
            return result

        monkeypatch.setattr(owner, name, counting)

    count(Pipeline, "begin", "kas begun")
    count(Pipeline, "_end_direct", "kas ended")
    count(DirectForwarding, "go_on", "kas handed over")
    count(ApiServerOrigin, "begin", "agent begun")
    count(DirectRequest, "take_up", "agent handed over")
    return counted


async def warm(stack: Stack, caller: Caller, ways: Counter[str]) -> None:
    """Let the agent have an idle connection, so that the next exchange begins directly there too."""
    await (await caller.get(b"/api")).content()
    await stack.settle()
    ways.clear()
    stack.cluster.requests.clear()


async def nothing_left(stack: Stack) -> None:
    """No exchange, no lease, no revocation, no deadline and no byte is left behind."""
    await stack.settle()
    pipeline = stack.kas.pipeline
    await until(lambda: len(pipeline._revocations) == 1)  # the tunnel's own
    assert all(account.held == 0 for account in pipeline._leases._accounts.values())
    assert len(pipeline._forwarder._deadlines) == 0
    assert len(stack.agent._api_server._deadlines) == 0
    await until(lambda: stack.held_bytes() == (0, 0))


def access_lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [record.facts for record in caplog.records if record.name == "kas.access"]


async def outcome(answer: Answer) -> tuple[int | str, bytes]:
    try:
        status = await answer.head()
        return status, await answer.content()
    except CutOff:
        return "cut" if answer.status else "closed", b""
