"""Write the commit of which a distribution is built into it, for `--version` (`operations.version`)."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

TARGET = "operations/commit.txt"


class CommitHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds a file with the commit. In an sdist it is there already; without git and without a repository there is none."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by Hatch before it builds."""
        if version == "editable":  # the checkout goes on changing, and git is asked each time
            return
        root = Path(self.root)
        commit = _version_module(root).commit_of(root)
        if commit:
            self._folder = tempfile.TemporaryDirectory(prefix="moorline-commit-")
            path = Path(self._folder.name) / "commit.txt"
            path.write_text(f"{commit}\n", encoding="ascii")
            build_data["force_include"][str(path)] = TARGET

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called by Hatch once it has built."""
        folder = getattr(self, "_folder", None)
        if folder is not None:
            folder.cleanup()


def _version_module(root: Path) -> ModuleType:
    """The module of this source tree, which is not installed while it is built."""
    spec = importlib.util.spec_from_file_location("moorline_version", root / "operations" / "version.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
