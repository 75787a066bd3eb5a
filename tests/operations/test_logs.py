"""Logs: what a line holds, that no token leaves, and that a reader who stops reading stops nothing else."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import pty
import time

import pytest

from operations import logs
from operations.logs import (
    AGENT_ID,
    REQUEST_ID,
    ConsoleFormatter,
    FactsLogger,
    JsonFormatter,
    LogConfig,
    NeverBlockingHandler,
    configure_logging,
    quote,
)


@pytest.fixture(autouse=True)
def _restored_logging(monkeypatch):
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    for name in ("logThreads", "logProcesses", "logMultiprocessing", "_srcfile"):
        monkeypatch.setattr(logging, name, getattr(logging, name))
    monkeypatch.setattr(logs.atexit, "register", lambda *_: None)
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(descriptor)


def record(event, /, level=logging.INFO, **facts):
    made = logging.LogRecord("server.registry", level, "", 0, event, (), None)
    made.__dict__.update(facts)
    return made


def read_lines(reader):
    return read_all(reader).decode().splitlines()


def read_all(reader):
    os.set_blocking(reader, False)
    chunks = []
    while True:
        try:
            chunk = os.read(reader, 1 << 20)
        except BlockingIOError:
            break
        if not chunk:
            break
        chunks.append(chunk)
    return b"".join(chunks)


def test_a_json_line_holds_time_level_logger_event_and_facts():
    made = record("tunnel registered", agent_id="edge-1", seconds=1.5)
    made.created = 1_700_000_000.25

    line = json.loads(JsonFormatter().format(made))

    assert line == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "info",
        "logger": "server.registry",
        "event": "tunnel registered",
        "agent_id": "edge-1",
        "seconds": 1.5,
    }


def test_ready_made_facts_are_taken_as_they_are():
    line = json.loads(JsonFormatter().format(record("exchange", facts={"status": 200})))

    assert line["status"] == 200
    assert "facts" not in line


def test_facts_of_any_type_and_any_text_can_be_logged(tmp_path):
    line = JsonFormatter().format(record("x", path=tmp_path, text='"\n\x1b[2J', half="\ud800"))

    assert "\n" not in line
    assert json.loads(line)["path"] == str(tmp_path)


def test_a_console_line_cannot_write_to_the_terminal():
    line = ConsoleFormatter().format(record("odd \x1b[2J event", target="/a\x1b[2Jb", name_with="two words"))

    assert "\x1b" not in line
    assert 'name_with="two words"' in line


def test_an_exception_comes_with_its_traceback():
    try:
        raise RuntimeError("boom")
    except RuntimeError as exc:
        made = record("failed", logging.ERROR)
        made.exc_info = (type(exc), exc, exc.__traceback__)

    assert "RuntimeError: boom" in json.loads(JsonFormatter().format(made))["exception"]
    assert ConsoleFormatter().format(made).splitlines()[-1] == "RuntimeError: boom"


def test_lines_are_json_where_nobody_looks_and_plain_on_a_terminal(pipe):
    reader, writer = pipe
    with os.fdopen(os.dup(writer), "w") as stream:
        configure_logging(LogConfig(), stream=stream)
        logging.getLogger("x").info("hello", extra={"n": 1})
    (line,) = read_lines(reader)
    assert json.loads(line)["n"] == 1

    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream:
        configure_logging(LogConfig(), stream=stream)
        logging.getLogger("x").info("hello", extra={"n": 1})
        terminal_line = os.read(master, 1000).decode()
    os.close(master)
    assert terminal_line.split(maxsplit=1)[1] == "INFO    hello  n=1\r\n"


def test_the_form_and_the_level_can_be_chosen(pipe):
    reader, writer = pipe
    with os.fdopen(os.dup(writer), "w") as stream:
        configure_logging(LogConfig(format="console", level="warning"), stream=stream)
        logging.getLogger("x").info("unseen")
        logging.getLogger("x").warning("seen")
    (line,) = read_lines(reader)

    assert line.split(maxsplit=1)[1] == "WARNING seen"


def test_the_task_of_a_line_is_added_from_context_variables(pipe):
    reader, writer = pipe
    tokens = AGENT_ID.set("edge-1"), REQUEST_ID.set("r-1")
    try:
        with os.fdopen(os.dup(writer), "w") as stream:
            configure_logging(LogConfig(), stream=stream)
            logging.getLogger("x").info("one")
            logging.getLogger("x").info("two", extra={"agent_id": "edge-2"})
    finally:
        AGENT_ID.reset(tokens[0])
        REQUEST_ID.reset(tokens[1])
    one, two = (json.loads(line) for line in read_lines(reader))

    assert (one["agent_id"], one["request_id"]) == ("edge-1", "r-1")
    assert two["agent_id"] == "edge-2"
    assert "tunnel_id" not in one


def test_no_token_leaves_wherever_it_stands(pipe):
    reader, writer = pipe
    canary = "canary0canary0canary0"
    with os.fdopen(os.dup(writer), "w") as stream:
        for form in ("json", "console"):
            configure_logging(LogConfig(format=form), stream=stream)
            logger = logging.getLogger("x")
            logger.info(
                "token mlu_%s", canary, extra={"header": f"Bearer {canary}", "nested": {"a": [f"mla_{canary}"]}}
            )
            try:
                raise ValueError(f"authorization: bearer {canary}")
            except ValueError:
                logger.exception("failed")
    text = "\n".join(read_lines(reader))

    assert "failed" in text
    assert canary not in text


def test_a_reader_that_stops_reading_stops_nothing_and_loses_only_what_is_too_much(pipe):
    reader, writer = pipe
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    handler = NeverBlockingHandler(writer, backlog_bytes=20_000)
    handler.setFormatter(JsonFormatter())

    started = time.monotonic()
    for number in range(1000):
        handler.emit(record("line", number=number, padding="x" * 100))
    assert time.monotonic() - started < 5, "it waited for the reader"

    seen = read_all(reader)
    handler.emit(record("after"))
    while handler._backlog:
        handler.flush_backlog(0.0)
        seen += read_all(reader)
    lines = [json.loads(line) for line in seen.decode().splitlines()]
    numbers = [line["number"] for line in lines if "number" in line]
    assert numbers == list(range(len(numbers)))
    assert [line["event"] for line in lines[-2:]] == ["log lines were lost", "after"]
    assert lines[-2]["lines"] == 1000 - len(numbers)


def test_a_line_longer_than_a_pipe_takes_at_once_arrives_whole(pipe):
    reader, writer = pipe
    handler = NeverBlockingHandler(writer)
    handler.setFormatter(JsonFormatter())

    handler.emit(record("long", padding="x" * 30_000))

    (line,) = read_lines(reader)
    assert json.loads(line)["padding"] == "x" * 30_000


def test_a_reader_that_is_gone_is_no_error_and_holds_no_memory(pipe):
    reader, writer = pipe
    os.close(reader)
    handler = NeverBlockingHandler(writer)
    handler.setFormatter(JsonFormatter())

    for _ in range(100):
        handler.emit(record("line"))

    assert handler._backlog_bytes == 0


def test_a_record_that_cannot_be_formatted_is_replaced_and_ends_nothing(pipe):
    reader, writer = pipe

    class Broken:
        def __str__(self):
            raise RuntimeError("no")

    handler = NeverBlockingHandler(writer)
    handler.setFormatter(JsonFormatter())
    handler.emit(record("x", fact=Broken()))

    assert read_lines(reader) == ["a log record of server.registry line 0 could not be formatted"]


def test_the_short_way_writes_the_same_line_as_the_long_one(pipe):
    reader, writer = pipe
    facts = {"target": '/a?b=\u00fc"', "status": 200, "token": "Bearer abcdefgh"}
    with os.fdopen(os.dup(writer), "w") as stream:
        configure_logging(LogConfig(format="json"), stream=stream)
        FactsLogger(logging.getLogger("kas.access"), "exchange").log(json.dumps(facts, ensure_ascii=False)[1:-1])
        logging.getLogger("kas.access").info("exchange", extra={"facts": facts})
    short, long = (json.loads(line) for line in read_lines(reader))

    assert short.pop("time") <= long.pop("time")
    assert short == long
    assert short["logger"] == "kas.access"
    assert short["token"] == "Bearer [redacted]"


def test_frequent_events_reach_every_handler_and_obey_the_level(pipe, caplog):
    reader, writer = pipe
    events = FactsLogger(logging.getLogger("kas.access"), "exchange")
    with os.fdopen(os.dup(writer), "w") as stream:
        configure_logging(LogConfig(format="json", level="warning"), stream=stream)
        assert not events.is_enabled
        logging.getLogger().setLevel("INFO")
        assert events.is_enabled
        logging.getLogger().addHandler(caplog.handler)
        events.log('"status": 200')
    (line,) = read_lines(reader)

    assert json.loads(line)["status"] == 200
    assert [record.facts for record in caplog.records] == [{"status": 200}]


def test_frequent_events_are_plain_lines_where_lines_are_plain(pipe):
    reader, writer = pipe
    with os.fdopen(os.dup(writer), "w") as stream:
        configure_logging(LogConfig(format="console"), stream=stream)
        FactsLogger(logging.getLogger("kas.access"), "exchange").log('"status": 200')
    (line,) = read_lines(reader)

    assert line.split(maxsplit=1)[1] == "INFO    exchange  status=200"


@pytest.mark.parametrize("text", ['"', "\\", "\n", "\x00", "\u00fc", "\ud800", '", "status": 500, "x": "', "{}%s"])
def test_what_is_quoted_is_read_back_and_stays_one_line(pipe, text):
    reader, writer = pipe
    with os.fdopen(os.dup(writer), "w") as stream:
        configure_logging(LogConfig(format="json"), stream=stream)
        FactsLogger(logging.getLogger("kas.access"), "exchange").log(f'"user": {quote(text)}, "status": 200')
    (line,) = read_lines(reader)

    assert {key: json.loads(line)[key] for key in ("user", "status")} == {"user": text, "status": 200}


def test_frequent_events_have_the_level_that_they_are_given(pipe):
    reader, writer = pipe
    with os.fdopen(os.dup(writer), "w") as stream:
        configure_logging(LogConfig(format="json", level="warning"), stream=stream)
        events = FactsLogger(logging.getLogger("kas.access"), "exchange", logging.WARNING)
        assert events.is_enabled
        events.log('"status": 200')
    (line,) = read_lines(reader)

    assert json.loads(line)["level"] == "warning"
