"""The limit on open files: every connection is one, and the usual soft limit of 1,024 is a leftover of select()."""

from __future__ import annotations

import logging
import resource
import sys

logger = logging.getLogger(__name__)


def raise_open_file_limit() -> int:
    """Raise the soft limit on open files to the hard one, log it, and return what is in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else max(soft, 1_048_576)
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    if soft >= wanted:
        logger.info("limit on open files", extra={"open_files": soft})
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as exc:
        logger.warning("the limit on open files could not be raised", extra={"open_files": soft, "error": str(exc)})
        return soft
    logger.info("limit on open files raised", extra={"open_files": wanted, "before": soft})
    return wanted
