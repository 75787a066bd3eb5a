"""What an HTTP/1.1 end accepts, and how long it waits. Only numbers."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(slots=True, frozen=True, kw_only=True)
class Http1Limits:
    """Limits of one HTTP/1.1 connection. Durations are seconds."""

    request_head_bytes: int = 65_536
    """The whole head of a request; above it 431."""
    request_head_lines: int = 200
    """Field lines of a request; above it 431."""
    target_bytes: int = 32_768
    """The request target; above it 414."""
    response_head_bytes: int = 131_072
    """The whole head of a response; above it the upstream has failed (502)."""
    response_head_lines: int = 1_000
    """Field lines of a response; above it the upstream has failed (502)."""
    interim_responses: int = 16
    """1xx responses before the final one; above it the upstream has failed (502)."""
    body_buffer_bytes: int = 65_536
    """A server stops reading once this much of a request body is waiting for the handler (one read may go beyond)."""

    first_request_seconds: float = 10.0
    """From the start of the connection to the end of the first request head."""
    head_seconds: float = 10.0
    """From the first byte of a later request head to its end."""
    idle_seconds: float = 75.0
    """Between two requests."""
    unauthenticated_answers: int = 100
    """Answers on a connection on which no exchange was authenticated; the last of them closes it."""
    unauthenticated_seconds: float = 30.0
    """The age at which a connection closes on which no exchange was authenticated."""
    linger_seconds: float = 2.0
    """After an answer that came before the end of the request: how long to read on and throw away, so that a reset
    does not destroy the answer on its way."""
    linger_bytes: int = 16_777_216
    """The same, in bytes."""


DEFAULT_LIMITS = Http1Limits()
