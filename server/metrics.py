"""Counters of exchanges, and the text that Prometheus scrapes.

Labels are few and bounded: agents that are connected, verb classes, status classes, outcomes. Nothing of a URL, no user.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Iterator

from operations.collector import CollectorPauses
from server.access_log import ExchangeFacts
from server.registry import Registry

DURATION_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class ExchangeMetrics:
    """An observer that counts."""

    def __init__(self) -> None:
        self._in_flight = 0
        self._ended: Counter[tuple[str, str, str, str]] = Counter()
        self._request_bytes = 0
        self._response_bytes = 0
        self._head_counts = [0] * (len(DURATION_BOUNDS) + 1)
        self._head_sum = 0.0

    def started(self, exchange: ExchangeFacts) -> None:
        """One more under way."""
        self._in_flight += 1

    def head_sent(self, exchange: ExchangeFacts) -> None:
        """The time to the response head is known."""
        if exchange.head_at is not None:
            seconds = exchange.head_at - exchange.started_at
            self._head_sum += seconds
            self._head_counts[bisect.bisect_left(DURATION_BOUNDS, seconds)] += 1

    def ended(self, exchange: ExchangeFacts) -> None:
        """One less under way."""
        self._in_flight -= 1
        status = f"{exchange.status // 100}xx" if exchange.status else "none"
        self._ended[exchange.verb_class or "none", status, exchange.outcome, exchange.failed_hop or ""] += 1
        self._request_bytes += exchange.request_bytes
        self._response_bytes += exchange.response_bytes

    def lines(self) -> Iterator[str]:
        """The metrics in the text format of Prometheus."""
        yield "# TYPE moorline_kas_exchanges_in_flight gauge"
        yield f"moorline_kas_exchanges_in_flight {self._in_flight}"
        yield "# TYPE moorline_kas_exchanges_total counter"
        for (verb_class, status, outcome, hop), count in sorted(self._ended.items()):
            labels = _labels(verb_class=verb_class, status=status, outcome=outcome, failed_hop=hop)
            yield f"moorline_kas_exchanges_total{labels} {count}"
        yield "# TYPE moorline_kas_request_bytes_total counter"
        yield f"moorline_kas_request_bytes_total {self._request_bytes}"
        yield "# TYPE moorline_kas_response_bytes_total counter"
        yield f"moorline_kas_response_bytes_total {self._response_bytes}"
        yield "# TYPE moorline_kas_response_head_seconds histogram"
        cumulative = 0
        for bound, count in zip((*DURATION_BOUNDS, float("inf")), self._head_counts, strict=True):
            cumulative += count
            shown = "+Inf" if bound == float("inf") else f"{bound:g}"
            yield f'moorline_kas_response_head_seconds_bucket{{le="{shown}"}} {cumulative}'
        yield f"moorline_kas_response_head_seconds_sum {self._head_sum:.6f}"
        yield f"moorline_kas_response_head_seconds_count {cumulative}"


def tunnel_lines(registry: Registry) -> Iterator[str]:
    """What the tunnels that are here say of themselves."""
    tunnels = [
        (
            _labels(agent=tunnel.agent_id, replica=tunnel.hello.replica, tunnel=tunnel.tunnel_id),
            tunnel.connection.statistics(),
        )
        for tunnel in registry
    ]
    yield "# TYPE moorline_kas_tunnels gauge"
    yield f"moorline_kas_tunnels {len(tunnels)}"
    yield "# TYPE moorline_kas_tunnel_streams_open gauge"
    yield from (f"moorline_kas_tunnel_streams_open{labels} {found.open_streams}" for labels, found in tunnels)
    yield "# TYPE moorline_kas_tunnel_unsent_bytes gauge"
    yield from (f"moorline_kas_tunnel_unsent_bytes{labels} {found.unsent_bytes}" for labels, found in tunnels)
    yield "# TYPE moorline_kas_tunnel_round_trip_seconds gauge"
    for labels, found in tunnels:
        if found.round_trip_seconds is not None:
            yield f"moorline_kas_tunnel_round_trip_seconds{labels} {found.round_trip_seconds:.6f}"


def collector_lines(pauses: CollectorPauses) -> Iterator[str]:
    """How long the garbage collector has held up the process."""
    yield "# TYPE moorline_kas_collections_total counter"
    yield f"moorline_kas_collections_total {pauses.count}"
    yield "# TYPE moorline_kas_collection_seconds_total counter"
    yield f"moorline_kas_collection_seconds_total {pauses.total_seconds:.6f}"
    yield "# TYPE moorline_kas_collection_longest_seconds gauge"
    yield f"moorline_kas_collection_longest_seconds {pauses.longest_seconds:.6f}"


def _labels(**values: str) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in values.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def render(groups: Iterable[Iterable[str]]) -> bytes:
    """One scrape."""
    return "".join(f"{line}\n" for lines in groups for line in lines).encode()
