"""When a connection counts as dead, idle or unwelcome."""

from __future__ import annotations

import pytest

from tunnel.liveness import ConnectionTimes, Liveness, Verdict

TIMES = ConnectionTimes(ping_interval=15, ping_deadline=10, idle=90, stranger=30, stranger_answers=3)


def known(now: float = 0) -> Liveness:
    liveness = Liveness(TIMES, now)
    liveness.authenticated()
    liveness.idle_since = None
    return liveness


def test_the_first_look_asks_for_a_ping() -> None:
    assert known().verdict(0) is Verdict.PING


def test_the_answer_gives_the_round_trip_and_the_next_ping_waits_its_interval() -> None:
    liveness = known()
    liveness.ping_sent(1)

    assert liveness.ponged(1.25) == pytest.approx(0.25)
    assert liveness.ponged(1.5) is None
    assert liveness.verdict(16) is Verdict.FINE
    assert liveness.due() == pytest.approx(16.25)
    assert liveness.verdict(16.25) is Verdict.PING


def test_an_unanswered_ping_and_silence_are_death() -> None:
    liveness = known()
    liveness.ping_sent(1)

    assert liveness.due() == 11
    assert liveness.verdict(10.9) is Verdict.FINE
    assert liveness.verdict(11) is Verdict.UNRESPONSIVE


def test_any_frame_is_proof_of_life() -> None:
    liveness = known()
    liveness.ping_sent(1)
    liveness.received_at = 10

    assert liveness.verdict(19.9) is Verdict.FINE
    assert liveness.verdict(20) is Verdict.UNRESPONSIVE


def test_without_streams_the_connection_becomes_idle() -> None:
    liveness = known()
    liveness.ping_sent(0)
    liveness.received_at = 89
    liveness.idle_since = 0

    assert liveness.due() == 90
    assert liveness.verdict(90) is Verdict.IDLE


def test_a_stranger_has_so_much_time_and_so_many_answers() -> None:
    liveness = Liveness(TIMES, 0)
    liveness.ping_sent(0)
    liveness.received_at = 29
    for _ in range(2):
        liveness.answered()
        assert liveness.verdict(5) is Verdict.FINE

    assert liveness.due() == 30
    assert liveness.verdict(30) is Verdict.STRANGER
    liveness.answered()
    assert liveness.verdict(5) is Verdict.STRANGER
    liveness.authenticated()
    assert liveness.verdict(5) is Verdict.FINE
