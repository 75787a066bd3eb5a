"""When to try again, as tables: what is drawn, what the other side asked for, and when it starts over."""

from __future__ import annotations

import pytest

from agent.backoff import Backoff, BackoffTimes


def highest(low: float, high: float) -> float:
    return high


def lowest(low: float, high: float) -> float:
    return low


def test_ceilings_double_up_to_the_last_one():
    backoff = Backoff(BackoffTimes(), draw=highest)

    assert [backoff.next_wait() for _ in range(8)] == [1, 2, 4, 8, 16, 30, 30, 30]
    assert backoff.failures == 8


def test_no_wait_is_shorter_than_the_floor():
    backoff = Backoff(BackoffTimes(), draw=lowest)

    assert [backoff.next_wait() for _ in range(3)] == [0.25, 0.25, 0.25]


@pytest.mark.parametrize(
    ("asked", "at_least", "expected"),
    [
        (7.0, 0.0, 7.0),
        (0.0, 0.0, 0.25),
        (-5.0, 0.0, 0.25),
        (86_400.0, 0.0, 300.0),
        (None, 30.0, 30.0),
        (10.0, 30.0, 30.0),
        (60.0, 30.0, 60.0),
    ],
)
def test_what_the_other_side_asks_for_is_honoured_within_bounds(asked, at_least, expected):
    backoff = Backoff(BackoffTimes(), draw=lowest)

    assert backoff.next_wait(asked=asked, at_least=at_least) == expected


def test_those_who_were_told_the_same_do_not_come_back_at_the_same_time():
    assert Backoff(BackoffTimes(), draw=highest).next_wait(asked=100.0) == 105.0
    assert Backoff(BackoffTimes(), draw=highest).next_wait(asked=10.0) == 11.0


def test_success_alone_does_not_lower_the_ceiling():
    """A kas that accepts and drops at once would be dialled in a tight loop."""
    backoff = Backoff(BackoffTimes(), draw=highest)
    for _ in range(4):
        backoff.next_wait()
    backoff.succeeded()
    backoff.lasted(29.9)
    assert backoff.failures == 0
    assert backoff.next_wait() == 16
    backoff.lasted(30.0)

    assert backoff.next_wait() == 1
