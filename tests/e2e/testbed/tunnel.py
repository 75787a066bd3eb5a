"""kas and agentk as processes in front of the cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from e2e.testbed.bed import Bed


class Tunnel:
    """kas, and the agents of the session."""

    def __init__(self, bed: Bed) -> None:
        self._bed = bed

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def kubeconfig(self, route: str) -> Path:
        raise NotImplementedError
