"""Nothing secret is in any log of the whole run, though everything logs at its most talkative level."""

from __future__ import annotations

import base64

import pytest
from e2e.testbed.bed import Bed
from e2e.testbed.tunnel import Tunnel


@pytest.mark.last
@pytest.mark.tunnel
def test_no_token_is_in_any_log(bed: Bed, tunnel: Tunnel) -> None:
    tokens = list(tunnel.tokens)
    if bed.cluster.own is not None:
        tokens += bed.cluster.own.tokens
    assert len(tokens) >= 5
    logs = sorted(bed.directory.rglob("logs/*.log"))
    assert {"kas.log", "agentk-tcp.log", "nginx.log"} <= {log.name for log in logs}
    for log in logs:
        content = log.read_bytes()
        for token in tokens:
            secret = token.split("_", 1)[-1].encode()
            for form in (secret, secret[-16:], base64.b64encode(token.encode()).rstrip(b"=")):
                assert form not in content, f"{log} holds a token ({token[:6]}…)"
    assert b'"debug"' in (tunnel.logs / "kas.log").read_bytes().lower()
