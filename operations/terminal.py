"""What a command may assume of the terminal that it prints to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Stream(Protocol):
    """A stream for text, as far as this module asks."""

    def isatty(self) -> bool:
        """Whether somebody may be looking."""
        ...


def wants_colour(stream: Stream, environment: Mapping[str, str]) -> bool:
    """Whether to colour what goes to ``stream``: on a terminal that can, unless ``NO_COLOR`` is set (no-color.org)."""
    return stream.isatty() and not environment.get("NO_COLOR") and environment.get("TERM", "") not in ("", "dumb")
