"""What runs under which credential, so that revoking one ends it within seconds.

A table from credential id to the ways of ending what it opened: exchanges and tunnels enter themselves for as long as
they run. Nothing here knows why a credential was revoked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

End = Callable[[], None]


class Revocations:
    """Ends what runs under revoked credentials."""

    def __init__(self) -> None:
        self._running: dict[str, set[End]] = {}

    def enter(self, credential_id: str, end: End) -> None:
        """From now on, revoking ``credential_id`` calls ``end`` (synchronous; must not raise). `leave` on every way out."""
        ends = self._running.get(credential_id)
        if ends is None:
            self._running[credential_id] = {end}
        else:
            ends.add(end)

    def leave(self, credential_id: str, end: End) -> None:
        """It runs no more. Idempotent."""
        ends = self._running.get(credential_id)
        if ends is not None:
            ends.discard(end)
            if not ends:
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
