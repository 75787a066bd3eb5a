"""A stack of its own for each test: it is up in 50 ms, and nothing that one test leaves behind reaches another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.scripted_stack import Stack, open_stack


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """kas and agentk as they come, on a scripted kube-apiserver without TLS."""
    async with open_stack(tmp_path) as running:
        yield running
