"""The arithmetic of the budgets. What they do to a connection is in `test_floods`."""

from __future__ import annotations

import pytest

from tunnel.errors import ErrorCode
from tunnel.h2.config import FRONT_RESPONDER, TUNNEL_RESPONDER, UNLIMITED, Budget
from tunnel.h2.defences import BudgetExceeded, Defences, ResetsAgainstWork, TokenBucket


def test_a_bucket_gives_its_burst_and_refills_up_to_it():
    bucket = TokenBucket("things", Budget(burst=3, per_second=2), 10.0)
    assert [bucket.try_take(10.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.try_take(10.5) for _ in range(2)] == [True, False]
    assert [bucket.try_take(100.0) for _ in range(4)] == [True, True, True, False]


def test_small_steps_of_time_are_not_lost():
    bucket = TokenBucket("things", Budget(burst=1, per_second=1), 0.0)
    assert bucket.try_take(0.0)
    taken = sum(bucket.try_take(step / 100) for step in range(1, 1_001))

    assert taken == 10


def test_an_empty_bucket_names_itself():
    bucket = TokenBucket("things", Budget(burst=0, per_second=0), 0.0)

    with pytest.raises(BudgetExceeded, match="over the budget of things") as caught:
        bucket.take(1.0)
    assert caught.value.code == ErrorCode.ENHANCE_YOUR_CALM


def test_no_limit_is_no_limit():
    bucket = TokenBucket("things", UNLIMITED, 0.0)
    for moment in (0.0, 1.0, 1.0, 5.0):
        bucket.take(moment)


def test_resets_are_measured_against_the_peak_of_work():
    resets = ResetsAgainstWork(10, 10.0, 0.0)
    resets.note_unfinished(5)
    resets.note_unfinished(3)
    for _ in range(20):
        resets.take(0, 1.0)

    with pytest.raises(BudgetExceeded, match="resets beyond the work"):
        resets.take(0, 2.0)


def test_a_new_span_of_time_forgets_resets_and_peak():
    resets = ResetsAgainstWork(10, 10.0, 0.0)
    resets.note_unfinished(1_000)
    for _ in range(2_000):
        resets.take(0, 9.0)
    for _ in range(12):
        resets.take(1, 10.0)

    with pytest.raises(BudgetExceeded):
        resets.take(1, 11.0)


def test_data_earns_window_updates():
    defences = Defences(FRONT_RESPONDER, 0.0)
    for _ in range(10_000):
        defences.take_window_update(10_000 * 1_024, 0.0)
    for _ in range(2_000):
        defences.take_window_update(10_000 * 1_024, 0.0)

    with pytest.raises(BudgetExceeded, match="WINDOW_UPDATE"):
        defences.take_window_update(10_000 * 1_024, 0.0)


def test_the_front_has_flat_budgets_for_resets_and_tunnels_have_none():
    front, tunnel = Defences(FRONT_RESPONDER, 0.0), Defences(TUNNEL_RESPONDER, 0.0)
    tunnel.work.note_unfinished(10_000)
    for _ in range(20_000):
        tunnel.take_reset(0, 0.0)

    for _ in range(500):
        front.take_reset(250, 0.0)
    with pytest.raises(BudgetExceeded, match=r"budget of resets$"):
        front.take_reset(250, 0.0)
