"""A stack of its own for each test: it is up in 50 ms, and nothing that one test leaves behind reaches another."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.direct_exchanges import counted_ways
from support.scripted_stack import Stack, open_stack


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """kas and agentk as they come, on a scripted kube-apiserver without TLS."""
    async with open_stack(tmp_path) as running:
        yield running


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often an exchange began directly, ended so, or was handed over, at kas and at the agent."""
    return counted_ways(monkeypatch)
