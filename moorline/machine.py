"""Which clusters this machine has: the kubeconfigs that kubectl would read.

The service account of a Pod is not one of them: who tries something in a Pod is rarely asking for that cluster.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def kubeconfigs(given: Path | None, environment: Mapping[str, str]) -> list[Path]:
    """The file that was given, else those in ``$KUBECONFIG``, else ``~/.kube/config`` where it exists."""
    if given is not None:
        return [given]
    if named := [Path(part) for part in environment.get("KUBECONFIG", "").split(os.pathsep) if part]:
        return named
    if home := environment.get("HOME"):
        config = Path(home) / ".kube" / "config"
        return [config] if config.exists() else []
    return []


def own_kubeconfig(paths: list[Path], directory: Path) -> Path | None:
    """The one of these files that leads into the tunnel which is about to be opened, where one does."""
    own = (directory / "kubeconfig").resolve()
    return next((path for path in paths if path.resolve() == own), None)
