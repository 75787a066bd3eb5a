"""Logs: constant event texts with facts beside them, as lines for people on a terminal and as JSON otherwise.

``logger.info("tunnel registered", extra={"agent_id": …})`` is the only form. A filter adds the agent, tunnel and
request that the current task works for, from context variables. What looks like a token is replaced before a line
leaves, as a net under the rule that no secret is logged in the first place.

**Whoever reads stderr may stop reading, and that must not stop the event loop.** A line is written only when the
operating system says that it will be taken at once; otherwise it waits in a backlog of 1 MiB, which goes out before
the next line. A full backlog loses its newest lines and says how many. A thread would do the same with more memory and
would lose the last lines of a process that dies. The one wait is at exit: half a second for the backlog.
"""

from __future__ import annotations

import atexit
import collections
import contextvars
import dataclasses
import datetime
import errno
import json
import logging
import os
import select
import sys
import time
from typing import Any, Literal, TextIO

from operations.values import redact

LogFormat = Literal["auto", "console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

AGENT_ID: contextvars.ContextVar[str] = contextvars.ContextVar("agent_id")
TUNNEL_ID: contextvars.ContextVar[str] = contextvars.ContextVar("tunnel_id")
REQUEST_ID: contextvars.ContextVar[str] = contextvars.ContextVar("request_id")
_CONTEXT = (AGENT_ID, TUNNEL_ID, REQUEST_ID)

BACKLOG_BYTES = 1_048_576
FLUSH_AT_EXIT_SECONDS = 0.5
_CHUNK_BYTES = 4096  # POSIX PIPE_BUF on Linux: a pipe that polls as writable takes this much without blocking


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """What is logged, and in which form."""

    level: LogLevel = "info"
    """The least severe level that is logged."""
    format: LogFormat = "auto"
    """"auto" writes lines for people to a terminal and JSON lines elsewhere."""


class ContextFilter(logging.Filter):
    """Adds the context variables above to each record that does not carry the fact itself."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always lets the record through."""
        facts = record.__dict__
        for variable in _CONTEXT:
            if variable.name not in facts:
                value = variable.get(None)
                if value is not None:
                    facts[variable.name] = value
        return True


_STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    ready_made = record.__dict__.get("facts")
    if ready_made is not None:  # for what is logged thousands of times a second: `extra={"facts": {…}}`, taken as it is
        facts: dict[str, Any] = ready_made
        return facts
    return {name: value for name, value in record.__dict__.items() if name not in _STANDARD}


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time, level, logger, event, then the facts."""

    def __init__(self) -> None:
        super().__init__()
        self._encode = json.JSONEncoder(default=str, ensure_ascii=False, check_circular=False).encode

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        facts = _facts(record)
        if record.exc_info:
            facts = facts | {"exception": self.formatException(record.exc_info)}
        return self.format_facts(record.created, record.levelname, record.name, record.getMessage(), facts)

    def format_facts(self, created: float, level: str, logger: str, event: str, facts: dict[str, Any]) -> str:
        """The line of a record that consists of these."""
        head = f'{{"time": "{_timestamp(created)}", "level": "{level.lower()}", "logger": {quote(logger)}, "event": '
        return f"{head}{quote(event)}, {self._encode(facts)[1:]}" if facts else f"{head}{quote(event)}}}"


class ConsoleFormatter(logging.Formatter):
    """Time of day, level, event, then the facts as ``name=value``; a traceback on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line for people."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        facts = "".join(f"  {name}={_quoted(value)}" for name, value in _facts(record).items())
        line = f"{clock} {record.levelname:<7} {_printable(record.getMessage())}{facts}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _quoted(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if not text or " " in text or not text.isprintable() else text


def _printable(text: str) -> str:
    # A control character in a fact must not be able to write to the operator's terminal.
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


class _Timestamps:
    """RFC 3339 in UTC with milliseconds; the part down to the second is computed once per second."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def __call__(self, moment: float) -> str:
        second = int(moment)
        if second != self._second:
            self._text = datetime.datetime.fromtimestamp(second, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._second = second
        return f"{self._text}.{int((moment - second) * 1000):03d}Z"


_timestamp = _Timestamps()


quote = json.encoder.encode_basestring
"""A string as JSON, with its quotation marks."""


class NeverBlockingHandler(logging.Handler):
    """Writes lines to a file descriptor without ever waiting for its reader. The module docstring has the reasons."""

    def __init__(self, file_descriptor: int, *, backlog_bytes: int = BACKLOG_BYTES) -> None:
        super().__init__()
        self._file_descriptor = file_descriptor
        self._poll = select.poll()
        self._poll.register(file_descriptor, select.POLLOUT)
        self._backlog: collections.deque[bytes] = collections.deque()
        self._backlog_bytes = 0
        self._backlog_limit = backlog_bytes
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or put it into the backlog, or count it as lost. Raises nothing."""
        try:
            line = redact(self.format(record)).encode("utf-8", "backslashreplace") + b"\n"
        except Exception:  # noqa: BLE001 - a record that cannot be formatted must not end what it reports about
            line = f"a log record of {record.name} line {record.lineno} could not be formatted\n".encode()
        self._write(line)

    def emit_json(self, members: str) -> None:
        """`emit` for what is logged thousands of times a second: a line of these members behind the time."""
        text = f'{{"time": "{_timestamp(time.time())}", {members}}}\n'
        self.acquire()
        try:
            self._write(redact(text).encode("utf-8", "backslashreplace"))
        finally:
            self.release()

    def _write(self, line: bytes) -> None:
        if self._backlog:
            self._write_backlog(0.0)
        self._append(line)
        self._write_backlog(0.0)

    def flush_backlog(self, seconds: float) -> None:
        """Write what waits, and give up after so many seconds without a reader."""
        self.acquire()
        try:
            self._write_backlog(seconds)
        finally:
            self.release()

    def _append(self, line: bytes) -> None:
        if self._backlog_bytes + len(line) > self._backlog_limit:
            self._lost += 1
            return
        if self._lost:
            # The handler's own report has no formatter's facts, so that it is the same in both formats.
            report = json.dumps({"level": "warning", "event": "log lines were lost", "lines": self._lost}).encode()
            self._lost = 0
            self._backlog.append(report + b"\n")
            self._backlog_bytes += len(report) + 1
        self._backlog.append(line)
        self._backlog_bytes += len(line)

    def _write_backlog(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds if seconds else 0.0
        while self._backlog:
            wait_seconds = max(deadline - time.monotonic(), 0.0) if seconds else 0.0
            if not self._poll.poll(wait_seconds * 1000):
                return
            line = self._backlog[0]
            try:
                written = os.write(self._file_descriptor, line[:_CHUNK_BYTES])
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno != errno.EINTR:
                    self._backlog.clear()  # nobody will ever read these: EPIPE, EBADF, ENOSPC
                    self._backlog_bytes = 0
                return
            self._backlog_bytes -= written
            if written == len(line):
                self._backlog.popleft()
            else:
                self._backlog[0] = line[written:]


class FactsLogger:
    """A logger for one kind of event that comes thousands of times a second.

    Where its records would meet nothing but one `NeverBlockingHandler` that writes JSON, no record is made: that takes
    longer than all else. Otherwise it does what any logger does.
    """

    __slots__ = ("_event", "_head", "_level", "_logger")

    def __init__(self, logger: logging.Logger, event: str, level: int = logging.INFO) -> None:
        self._logger = logger
        self._event = event
        self._level = level
        name = logging.getLevelName(level).lower()
        self._head = f'"level": "{name}", "logger": {quote(logger.name)}, "event": {quote(event)}, '

    @property
    def is_enabled(self) -> bool:
        """Whether `log` would do anything."""
        return self._logger.isEnabledFor(self._level)

    def log(self, members: str) -> None:
        """Log the event, whatever the level of the logger. ``members`` are its facts, as the members of a JSON object."""
        handler = self._only_handler()
        if handler is not None and isinstance(handler.formatter, JsonFormatter):
            handler.emit_json(self._head + members)
        else:
            self._logger.log(self._level, self._event, extra={"facts": json.loads(f"{{{members}}}")})

    def _only_handler(self) -> NeverBlockingHandler | None:
        found: logging.Handler | None = None
        logger: logging.Logger | None = self._logger
        while logger is not None:
            if logger.handlers:
                if found is not None or len(logger.handlers) > 1:
                    return None
                found = logger.handlers[0]
            logger = logger.parent if logger.propagate else None
        if not isinstance(found, NeverBlockingHandler) or self._logger.filters or found.level > self._level:
            return None
        return found


def configure_logging(config: LogConfig, *, stream: TextIO | None = None) -> None:
    """Send the records of every logger to ``stream`` (default: stderr) in the configured form. Call once, at start."""
    target = stream if stream is not None else sys.stderr
    on_terminal = target.isatty()
    as_json = config.format == "json" or (config.format == "auto" and not on_terminal)
    handler = NeverBlockingHandler(target.fileno())
    handler.setFormatter(JsonFormatter() if as_json else ConsoleFormatter())
    handler.addFilter(ContextFilter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(config.level.upper())
    _skip_facts_nobody_reads()
    logging.captureWarnings(capture=True)
    atexit.register(handler.flush_backlog, FLUSH_AT_EXIT_SECONDS)


def _skip_facts_nobody_reads() -> None:
    # The logging HOWTO's own list ("Optimization"): finding the caller's line costs more than all else in a record.
    logging.logThreads = False
    logging.logProcesses = False
    logging.logMultiprocessing = False
    vars(logging)["_srcfile"] = None
    if hasattr(logging, "logAsyncioTasks"):
        vars(logging)["logAsyncioTasks"] = False
