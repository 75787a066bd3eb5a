"""Observers of exchanges, and the first of them: one line in the log for each exchange.

Observers see an exchange start, get its head and end. They run in the task of the exchange, so they are synchronous and
quick, and whatever they raise is contained by `Observers`. The line holds no credential: query values whose names speak
of one are replaced, and the target is cut off at a kilobyte.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Protocol
from urllib.parse import unquote_to_bytes

from operations.logs import FactsLogger, quote
from server.errors import Hop

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("kas.access")
_events = FactsLogger(access_logger, "exchange")

_TARGET_BYTES = 1024
_REDACTED = b"[redacted]"
_OWN_TOKEN = re.compile(rb"ml[ua]_[0-9A-Za-z]+")
_SECRET_NAME = re.compile(rb"token|secret|passw|auth|credential|signature|\bsig\b|key\b|jwt", re.IGNORECASE)


class ExchangeFacts(Protocol):
    """What observers read of an exchange. Times are those of `trio.current_time`; sizes are of message bodies."""

    @property
    def request_id(self) -> str: ...
    @property
    def user(self) -> str:
        """Empty where no caller was recognised."""
        ...

    @property
    def credential_id(self) -> str: ...
    @property
    def agent_id(self) -> str:
        """Empty where the request addressed none."""
        ...

    @property
    def peer(self) -> str:
        """Address and port from which the caller connected."""
        ...

    @property
    def origin(self) -> bytes: ...
    @property
    def method(self) -> bytes: ...
    @property
    def target(self) -> bytes:
        """As received."""
        ...

    @property
    def verb_class(self) -> str: ...
    @property
    def status(self) -> int:
        """0 where no head was sent."""
        ...

    @property
    def request_bytes(self) -> int: ...
    @property
    def response_bytes(self) -> int: ...
    @property
    def started_at(self) -> float: ...
    @property
    def head_at(self) -> float | None: ...
    @property
    def ended_at(self) -> float | None: ...
    @property
    def outcome(self) -> str:
        """One word or a few: completed, refused, reset, cut between events, …"""
        ...

    @property
    def failed_hop(self) -> Hop | None: ...
    @property
    def ended_by(self) -> str:
        """Who ended it: caller, upstream, agent, tunnel, kas, revocation, drain."""
        ...

    @property
    def error(self) -> str:
        """What went wrong, in words without secrets; empty where nothing did."""
        ...


class Observer(Protocol):
    """Somebody who watches exchanges go by."""

    def started(self, exchange: ExchangeFacts) -> None:
        """The request head is here."""
        ...

    def head_sent(self, exchange: ExchangeFacts) -> None:
        """The final response head has been handed to the caller's connection."""
        ...

    def ended(self, exchange: ExchangeFacts) -> None:
        """The exchange is over, in whatever way. Called exactly once."""
        ...


class Observers:
    """Several observers as one. What one of them raises is logged and goes no further."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)

    def started(self, exchange: ExchangeFacts) -> None:
        """Tell every observer."""
        for observer in self._observers:
            try:
                observer.started(exchange)
            except Exception:  # noqa: BLE001 - an exchange must not fail because of who watches it
                _log_failure(observer, exchange)

    def head_sent(self, exchange: ExchangeFacts) -> None:
        """Tell every observer."""
        for observer in self._observers:
            try:
                observer.head_sent(exchange)
            except Exception:  # noqa: BLE001 - an exchange must not fail because of who watches it
                _log_failure(observer, exchange)

    def ended(self, exchange: ExchangeFacts) -> None:
        """Tell every observer."""
        for observer in self._observers:
            try:
                observer.ended(exchange)
            except Exception:  # noqa: BLE001 - an exchange must not fail because of who watches it
                _log_failure(observer, exchange)


def _log_failure(observer: Observer, exchange: ExchangeFacts) -> None:
    logger.exception(  # noqa: LOG004 - called from handlers only
        "an observer of exchanges failed",
        extra={"observer": type(observer).__name__, "request_id": exchange.request_id},
    )


class AccessLog:
    """One line per exchange, when it has ended, on the logger ``kas.access``."""

    def started(self, exchange: ExchangeFacts) -> None:
        """Nothing: one line per exchange is enough."""

    def head_sent(self, exchange: ExchangeFacts) -> None:
        """Nothing: one line per exchange is enough."""

    def ended(self, exchange: ExchangeFacts) -> None:
        """Write the line."""
        if _events.is_enabled:
            _events.log(_members(exchange))


def _members(exchange: ExchangeFacts) -> str:
    """The facts as members of a JSON object. What comes from callers and agents is quoted, what is ours needs none."""
    started_at = exchange.started_at
    text = (
        f'"request_id": "{exchange.request_id}", "user": {quote(exchange.user)}, '
        f'"credential_id": {quote(exchange.credential_id)}, "agent_id": "{exchange.agent_id}", '
        f'"peer": "{exchange.peer}", "origin": {quote(exchange.origin.decode("ascii", "backslashreplace"))}, '
        f'"method": {quote(exchange.method.decode("ascii", "backslashreplace"))}, '
        f'"target": {quote(loggable_target(exchange.target))}, "verb_class": "{exchange.verb_class}", '
        f'"status": {exchange.status}, "request_bytes": {exchange.request_bytes}, '
        f'"response_bytes": {exchange.response_bytes}, "outcome": "{exchange.outcome}", '
        f'"ended_by": "{exchange.ended_by}"'
    )
    if exchange.failed_hop is not None:
        text += f', "failed_hop": "{exchange.failed_hop}"'
    if exchange.error:
        text += f', "error": {quote(exchange.error)}'
    if exchange.head_at is not None:
        text += f', "head_seconds": {exchange.head_at - started_at:.6f}'
    if exchange.ended_at is not None:
        text += f', "seconds": {exchange.ended_at - started_at:.6f}'
    return text


def loggable_target(target: bytes) -> str:
    """The target for a log line: not too long, without the values of query parameters that may be secrets, and without
    a token of ours wherever somebody has put it."""
    if b"mlu_" in target or b"mla_" in target:
        target = _OWN_TOKEN.sub(_REDACTED, target)
    path, question_mark, query = target.partition(b"?")
    if query and (b"%" in query or _SECRET_NAME.search(query)):
        target = path + question_mark + b"&".join(_without_secret(pair) for pair in query.split(b"&"))
    text = target[:_TARGET_BYTES].decode("ascii", "backslashreplace")
    return text if len(target) <= _TARGET_BYTES else f"{text}… ({len(target)} bytes)"


def _without_secret(pair: bytes) -> bytes:
    name, equals, value = pair.partition(b"=")
    if not value:
        return pair
    decoded = unquote_to_bytes(name) if b"%" in name else name
    # A second pair inside a value: servers that part pairs at ";", flags of a command in an exec.
    if _SECRET_NAME.search(decoded) or ((b";" in value or b"=" in value) and _SECRET_NAME.search(value)):
        return name + equals + _REDACTED
    return pair
