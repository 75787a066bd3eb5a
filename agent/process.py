"""agentk as a process of its own: configuration, logs, limits, signals, exit status."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence

import trio

from agent.agent import Agent
from agent.command_line import read_settings
from operations.collector import spare_the_collector
from operations.configuration import ConfigurationError, exit_with_configuration_error
from operations.exit_codes import FAILURE, OK
from operations.logs import configure_logging
from operations.resource_limits import raise_open_file_limit
from operations.signals import handle_signals

logger = logging.getLogger(__name__)


def run_process(arguments: Sequence[str]) -> int:
    """Run until a signal; returns the exit status. Ends the process for bad configuration."""
    try:
        settings = read_settings(arguments, os.environ)
    except ConfigurationError as exc:
        exit_with_configuration_error("agentk", exc)
    configure_logging(settings.config.log)
    try:
        agent = Agent(settings, environment=os.environ, open_files=raise_open_file_limit())
    except ValueError as exc:
        exit_with_configuration_error("agentk", ConfigurationError([str(exc)]))
    status = OK
    spare_the_collector()
    try:
        trio.run(_run_under_signals, agent)
    except* OSError as group:
        status = FAILURE
        logger.error("agentk cannot run", extra={"error": _first_text(group)})  # noqa: TRY400 - no bug, no traceback
    if status == OK:
        logger.info("agentk has ended")
    return status


async def _run_under_signals(agent: Agent) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(functools.partial(handle_signals, drain=agent.drain, stop=nursery.cancel_scope.cancel))
        await agent.run()
        nursery.cancel_scope.cancel()


def _first_text(group: BaseExceptionGroup[BaseException]) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)
