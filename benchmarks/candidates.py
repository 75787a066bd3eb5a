"""A way to the origin that is measured: where it listens, which processes count, and with which it is compared."""

from __future__ import annotations

import dataclasses
import os
import urllib.request
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
LONGEST_PAUSE = "collection_longest_seconds"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """``pids`` are the processes that count: server, then agent; none for the direct way."""

    name: str
    plain: str = ""
    """Where its front without TLS is, as a URL; a path of the origin is put behind it."""
    tls: str = ""
    """The same of its front with TLS."""
    pids: tuple[int, ...] = ()
    token: str = ""
    metrics: tuple[str, ...] = ()
    """URLs of the metrics of each process, where it has some."""
    namespace: str = ""
    """The network namespace of its callers, where they need one."""

    def authorization(self) -> dict[str, str]:
        """The header of a caller, where the candidate wants one."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def cpu_seconds(self) -> list[float]:
        """CPU time of each process so far."""
        return [_cpu_seconds(pid) for pid in self.pids]

    def resident_bytes(self) -> list[int]:
        """Memory of each process now."""
        return [_resident_bytes(pid) for pid in self.pids]

    def longest_pauses(self) -> list[float]:
        """Seconds of the longest run of the garbage collector of each process that tells."""
        return [_metric(url, LONGEST_PAUSE) for url in self.metrics]


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _metric(url: str, name: str) -> float:
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    for line in lines:
        metric, _, value = line.partition(" ")
        if metric.endswith(name):
            return float(value)
    raise RuntimeError(f"{url} does not tell of {name}")
