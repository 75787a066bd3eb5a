"""Files that are read again when they change: one task stats all of them each second.

Polling is right here: Kubernetes swaps a symlink two directories up, editors rename over the file, network file systems
report nothing; a stat through the path sees all of it, and costs microseconds.

A new version is loaded in a worker thread and taken over in the event loop. While it cannot be loaded, the old one
stays in force, and the log says so once per change. An empty or missing file is such a failure
too: it never means "nobody".
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import trio

T = TypeVar("T")

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0
SETTLE_SECONDS = 0.2
"""A file that was seen to change must look the same this much later, so that a half-written one is not taken."""
_SETTLE_ROUNDS = 3

_Signature = tuple[tuple[int, int, int, int] | None, ...]


class FileProblem(ValueError):
    """A watched file is missing, empty or unreadable."""


@dataclasses.dataclass(slots=True)
class _Watched:
    what: str
    paths: tuple[Path, ...]
    load: Callable[[], Any]
    apply: Callable[[Any], None]
    signature: _Signature


class WatchedFiles:
    """A set of files, and what to do when they change."""

    def __init__(self, *, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._interval_seconds = interval_seconds
        self._watched: list[_Watched] = []

    def watch(
        self,
        what: str,
        paths: Path | Sequence[Path],
        *,
        load: Callable[[], T],
        apply: Callable[[T], None],
    ) -> Callable[[], None]:
        """Load the files now, and again whenever one of them changes; returns a function that ends the watching.

        ``what`` names them in the log ("access file"). ``load`` reads and parses; it runs in a worker thread, except
        for this first time, and fails by raising. ``apply`` takes over what it returned, in the event loop, and must
        not fail. The first time, failures are raised to the caller: `FileProblem`, `OSError`, or whatever ``load``
        raises.
        """
        group = (paths,) if isinstance(paths, Path) else tuple(paths)
        watched = _Watched(what, group, load, apply, _signature(group))
        _check(group, watched.signature)
        apply(load())
        self._watched.append(watched)

        def forget() -> None:
            if watched in self._watched:
                self._watched.remove(watched)

        return forget

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch for ever. Cancelling is safe: an unfinished load is discarded."""
        task_status.started()
        while True:
            await trio.sleep(self._interval_seconds)
            for watched in list(self._watched):
                if _signature(watched.paths) != watched.signature:
                    await self._reload(watched)

    async def _reload(self, watched: _Watched) -> None:
        watched.signature = await _settled_signature(watched.paths)
        facts = {"what": watched.what, "paths": [str(path) for path in watched.paths]}
        try:
            _check(watched.paths, watched.signature)
            loaded = await trio.to_thread.run_sync(watched.load, abandon_on_cancel=True)
        except (OSError, ValueError) as exc:
            logger.error(  # noqa: TRY400 - what is wrong is in the text; a traceback says nothing to who edits the file
                "a changed file cannot be used; the version before stays in force", extra=facts | _why(exc)
            )
            return
        except Exception:
            logger.exception("loading a changed file failed; the version before stays in force", extra=facts)
            return
        if watched in self._watched:
            watched.apply(loaded)
            logger.info("a changed file was taken over", extra=facts)


def _why(exc: Exception) -> dict[str, Any]:
    return {"problems": getattr(exc, "problems", None) or [str(exc)]}


async def _settled_signature(paths: Sequence[Path]) -> _Signature:
    signature = _signature(paths)
    for _ in range(_SETTLE_ROUNDS):
        await trio.sleep(SETTLE_SECONDS)
        before, signature = signature, _signature(paths)
        if signature == before:
            break
    return signature


def _signature(paths: Sequence[Path]) -> _Signature:
    return tuple(_stat(path) for path in paths)


def _stat(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _check(paths: Sequence[Path], signature: _Signature) -> None:
    for path, found in zip(paths, signature, strict=True):
        if found is None:
            raise FileProblem(f"{path} is missing or cannot be reached")
        if found[3] == 0:
            raise FileProblem(f"{path} is empty")
