"""The access log: one line, no secret, and never in the way of an exchange."""

from __future__ import annotations

import dataclasses
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operations.logs import JsonFormatter
from server.access_log import AccessLog, ExchangeFacts, Observers, loggable_target


@dataclasses.dataclass
class Facts:
    request_id: str = "r-1"
    user: str = "alice"
    credential_id: str = "user/alice/laptop/0123"
    agent_id: str = "edge-1"
    peer: str = "192.0.2.1:4711"
    origin: bytes = b"kubernetes"
    method: bytes = b"GET"
    target: bytes = b"/agents/edge-1/k8s/api/v1/pods?watch=1"
    verb_class: str = "watch"
    status: int = 200
    request_bytes: int = 0
    response_bytes: int = 1234
    started_at: float = 100.0
    head_at: float | None = 100.25
    ended_at: float | None = 101.5
    outcome: str = "completed"
    failed_hop: None = None
    ended_by: str = "upstream"
    error: str = ""


def line_of(exchange: ExchangeFacts, caplog) -> dict:
    caplog.set_level(logging.INFO, logger="kas.access")
    caplog.clear()
    AccessLog().ended(exchange)
    (record,) = caplog.records
    return json.loads(JsonFormatter().format(record))


def test_one_line_has_what_an_operator_asks_for(caplog):
    line = line_of(Facts(), caplog)

    del line["time"]
    assert line == {
        "level": "info",
        "logger": "kas.access",
        "event": "exchange",
        "request_id": "r-1",
        "user": "alice",
        "credential_id": "user/alice/laptop/0123",
        "agent_id": "edge-1",
        "peer": "192.0.2.1:4711",
        "origin": "kubernetes",
        "method": "GET",
        "target": "/agents/edge-1/k8s/api/v1/pods?watch=1",
        "verb_class": "watch",
        "status": 200,
        "request_bytes": 0,
        "response_bytes": 1234,
        "outcome": "completed",
        "ended_by": "upstream",
        "head_seconds": 0.25,
        "seconds": 1.5,
    }


def test_a_failed_exchange_names_the_hop_and_needs_no_head(caplog):
    line = line_of(dataclasses.replace(Facts(), failed_hop="tunnel", error="lost", status=0, head_at=None), caplog)

    assert (line["failed_hop"], line["error"]) == ("tunnel", "lost")
    assert "head_seconds" not in line


@pytest.mark.parametrize(
    ("target", "logged"),
    [
        (b"/a?access_token=canary", "/a?access_token=[redacted]"),
        (b"/a?x=1&private_token=canary&y=2", "/a?x=1&private_token=[redacted]&y=2"),
        (b"/a?ACCESS_TOKEN=canary", "/a?ACCESS_TOKEN=[redacted]"),
        (b"/a?access%5Ftoken=canary", "/a?access%5Ftoken=[redacted]"),
        (b"/a?%74oken=canary", "/a?%74oken=[redacted]"),
        (b"/a?password=canary&client_secret=canary", "/a?password=[redacted]&client_secret=[redacted]"),
        (b"/a?api_key=canary&apikey=canary", "/a?api_key=[redacted]&apikey=[redacted]"),
        (b"/a?x=1;token=canary", "/a?x=[redacted]"),
        (b"/exec?command=mysql&command=--password=canary", "/exec?command=mysql&command=[redacted]"),
        (b"/a?token", "/a?token"),
        (b"/a?token=", "/a?token="),
        (b"/a?q=b?token=canary", "/a?q=[redacted]"),
        (b"/a?b=%2F+;&&c", "/a?b=%2F+;&&c"),
        (b"/a?labelSelector=app%3Dx&limit=500", "/a?labelSelector=app%3Dx&limit=500"),
        (b"/a?", "/a?"),
        (b"/tokens?x=y", "/tokens?x=y"),
        (b"*", "*"),
        (b"", ""),
    ],
)
def test_query_values_that_may_be_secrets_are_left_out(target, logged):
    assert loggable_target(target) == logged


def test_a_long_target_is_cut_off_and_its_length_said():
    shown = loggable_target(b"/" + b"x" * 5000)

    assert len(shown) < 1100
    assert shown.endswith("(5001 bytes)")


@given(st.binary(max_size=200))
def test_any_target_can_be_logged(target):
    assert loggable_target(target).isprintable() or b"\x7f" in target or any(byte < 32 for byte in target)


def test_no_canary_in_any_part_of_a_line(caplog):
    line = line_of(dataclasses.replace(Facts(), target=b"/k8s-proxy/api?a=b&access_token=canary&jwt=canary"), caplog)

    assert "canary" not in json.dumps(line)


HOSTILE = ['"', "\\", '", "status": 500, "x": "', "\n", "\x00", "\u2028", "O'Brien \u00fc"]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_others_say_is_quoted_in_every_place(caplog, text):
    raw = text.encode("ascii", "replace")
    exchange = dataclasses.replace(
        Facts(), user=text, credential_id=text, error=text, origin=raw, method=raw, target=b"/" + raw, failed_hop="kas"
    )
    line = line_of(exchange, caplog)

    seen = raw.decode()
    assert [line[key] for key in ("user", "credential_id", "error")] == [text] * 3
    assert [line[key] for key in ("origin", "method", "target")] == [seen, seen, loggable_target(b"/" + raw)]
    assert line["status"] == 200


class Recorder:
    def __init__(self):
        self.seen = []

    def started(self, exchange):
        self.seen.append("started")

    def head_sent(self, exchange):
        self.seen.append("head")

    def ended(self, exchange):
        self.seen.append("ended")


class Failing:
    def started(self, exchange):
        raise RuntimeError("one")

    def head_sent(self, exchange):
        raise RuntimeError("two")

    def ended(self, exchange):
        raise RuntimeError("three")


def test_an_observer_that_fails_harms_neither_the_exchange_nor_the_others(caplog):
    recorder = Recorder()
    observers = Observers([Failing(), recorder])

    observers.started(Facts())
    observers.head_sent(Facts())
    observers.ended(Facts())

    assert recorder.seen == ["started", "head", "ended"]
    assert [record.observer for record in caplog.records] == ["Failing"] * 3


def test_a_log_that_is_off_costs_nothing_and_says_nothing(caplog):
    caplog.set_level(logging.WARNING, logger="kas.access")

    AccessLog().ended(Facts())

    assert not caplog.records
