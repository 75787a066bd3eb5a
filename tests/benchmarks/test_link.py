"""The slow link: bits a second, delay, and a queue that has an end."""

import pytest

from benchmarks.link import Direction

PACKET = b"x" * 1_250  # a millisecond at 10 Mbit/s


@pytest.fixture
def direction():
    return Direction(-1, bits_per_second=10_000_000, delay_seconds=0.025, queue_bytes=12_500)


def test_packets_leave_one_after_the_other_and_arrive_after_the_delay(direction):
    assert direction.enter(PACKET, 1.0)
    assert direction.enter(PACKET, 1.0)
    assert direction.next_at() == pytest.approx(1.026)
    assert list(direction.arrived(1.0259)) == []
    assert list(direction.arrived(1.0261)) == [PACKET]
    assert direction.next_at() == pytest.approx(1.027)


def test_a_link_that_was_idle_has_saved_nothing_up(direction):
    direction.enter(PACKET, 1.0)
    direction.enter(PACKET, 5.0)
    direction.enter(PACKET, 5.0)
    assert list(direction.arrived(5.0265)) == [PACKET, PACKET]


def test_what_finds_the_queue_full_is_dropped(direction):
    taken = [direction.enter(PACKET, 1.0) for _ in range(20)]
    assert taken == [True] * 11 + [False] * 9  # one on its way out, ten that wait
    assert len(list(direction.arrived(2.0))) == 11
