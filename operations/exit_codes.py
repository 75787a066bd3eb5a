"""The exit statuses of our commands."""

from __future__ import annotations

OK = 0
FAILURE = 1
"""It ran and failed; the last log line or the line on stderr says why."""
BAD_CONFIGURATION = 2
"""It never started: flags, configuration or installation. Every problem has a line of its own on stderr."""
INTERRUPTED = 130
"""Ended by Ctrl-C before it had started, or where there was nothing to end in order; as shells report it (128 + SIGINT)."""
READER_GONE = 141
"""Whoever read stdout has stopped, as in ``| head``; as shells report it (128 + SIGPIPE)."""
