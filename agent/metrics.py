"""The counters of the agent in Prometheus' text format, made when somebody asks."""

from __future__ import annotations

from agent.dispatch import Dispatcher
from agent.pool import ConnectionPool
from agent.supervisor import Supervisor
from operations.collector import PAUSES

_PREFIX = "moorline_agent_"


def render_metrics(supervisor: Supervisor, pool: ConnectionPool, dispatcher: Dispatcher) -> str:
    """All counters of this moment."""
    tunnels = supervisor.tunnels
    upstream = pool.statistics()
    rows: list[tuple[str, str, str, float]] = [
        ("connected", "gauge", "1 while a tunnel takes requests", float(supervisor.current is not None)),
        ("tunnels", "gauge", "Tunnels that are up, old ones included", len(tunnels)),
        ("tunnels_opened_total", "counter", "Tunnels opened since the start", supervisor.opened),
        ("dial_failures_total", "counter", "Attempts to open a tunnel that failed", supervisor.failed),
        ("open_streams", "gauge", "Requests that run", sum(tunnel.connection.open_streams for tunnel in tunnels)),
        ("requests_refused_total", "counter", "Requests of kas that were not sent on", dispatcher.refused),
        ("upstream_busy_connections", "gauge", "Connections to the kube-apiserver in use", upstream.busy),
        ("upstream_idle_connections", "gauge", "Connections to the kube-apiserver kept", upstream.idle),
        ("upstream_dials_total", "counter", "Connections made to the kube-apiserver", upstream.dialled),
        ("upstream_dial_failures_total", "counter", "Connections that could not be made", upstream.failed_dials),
        ("upstream_reuses_total", "counter", "Requests on a connection that was kept", upstream.reused),
        ("upstream_repeats_total", "counter", "Requests sent once more on a new connection", upstream.repeated),
        ("collections_total", "counter", "Runs of the garbage collector", PAUSES.count),
        ("collection_seconds_total", "counter", "How long all of them took", PAUSES.total_seconds),
        ("collection_longest_seconds", "gauge", "How long the longest of them took", PAUSES.longest_seconds),
    ]
    lines: list[str] = []
    for name, kind, text, value in rows:
        lines += [f"# HELP {_PREFIX}{name} {text}.", f"# TYPE {_PREFIX}{name} {kind}", f"{_PREFIX}{name} {value:g}"]
    round_trips = [
        (tunnel.welcome.kas_id, tunnel.connection.round_trip_seconds)
        for tunnel in tunnels
        if tunnel.connection.round_trip_seconds is not None
    ]
    if round_trips:
        name = f"{_PREFIX}tunnel_round_trip_seconds"
        lines += [f"# HELP {name} The last measured round trip to kas.", f"# TYPE {name} gauge"]
        lines += [f'{name}{{kas="{_escaped(kas)}"}} {seconds:.6f}' for kas, seconds in dict(round_trips).items()]
    return "\n".join(lines) + "\n"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
