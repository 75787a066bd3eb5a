"""What runs under which credential, so that revoking one ends it within seconds.

A table from credential id to the ways of ending what it opened: exchanges and tunnels enter themselves for as long as
they run. Nothing here knows why a credential was revoked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

End = Callable[[], None]


class Revocations:
    """Ends what runs under revoked credentials."""

    def __init__(self) -> None:
        self._running: dict[str, set[End]] = {}

    @contextlib.contextmanager
    def entered(self, credential_id: str, end: End) -> Iterator[None]:
        """While the block runs, revoking ``credential_id`` calls ``end`` (synchronous; must not raise)."""
        ends = self._running.setdefault(credential_id, set())
        ends.add(end)
        try:
            yield
        finally:
            ends.discard(end)
            if not ends and self._running.get(credential_id) is ends:
                del self._running[credential_id]

    def revoke(self, credential_ids: Iterable[str]) -> int:
        """End everything that runs under these credentials; returns how many things that were."""
        ended = 0
        for credential_id in credential_ids:
            for end in list(self._running.get(credential_id, ())):
                end()
                ended += 1
        return ended

    def __len__(self) -> int:
        """How many credentials have something running."""
        return len(self._running)

    def running(self, credential_id: str) -> int:
        """How many things run under one credential."""
        return len(self._running.get(credential_id, ()))
