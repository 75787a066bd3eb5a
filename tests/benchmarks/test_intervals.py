"""How sure a ratio is."""

import math
import random

import pytest

from benchmarks.intervals import Estimate, estimate, paired, ranks_left_out


@pytest.mark.parametrize(("rounds", "left_out"), [(6, 0), (7, 0), (8, 0), (9, 1), (11, 1), (12, 2), (20, 5)])
def test_as_many_rounds_are_left_out_as_the_tables_of_order_statistics_say(rounds, left_out):
    assert ranks_left_out(rounds) == left_out


@pytest.mark.parametrize("rounds", [3, 5, 7, 9])
def test_the_interval_holds_the_true_median_as_often_as_it_says(rounds):
    chance = random.Random(1)
    runs = 2_000
    held = 0
    for _ in range(runs):
        found = estimate([chance.lognormvariate(0.5, 0.2) for _ in range(rounds)])
        held += found.low <= math.exp(0.5) <= found.high
    assert held / runs >= 0.94


def test_one_round_has_no_interval_and_agrees_with_nothing():
    single = estimate([0.5])
    assert (single.low, single.high) == (None, None)
    assert single.agrees_with(Estimate(0.5, 0.4, 0.6)) is None


def test_two_runs_agree_where_their_intervals_meet():
    assert Estimate(0.5, 0.4, 0.6).agrees_with(Estimate(0.7, 0.6, 0.8)) is True
    assert Estimate(0.5, 0.4, 0.6).agrees_with(Estimate(0.8, 0.7, 0.9)) is False
    assert Estimate(0.8, 0.7, 0.9).agrees_with(Estimate(0.5, 0.4, 0.6)) is False


def test_a_ratio_is_taken_round_by_round():
    assert paired([2.0, 40.0, 6.0], [1.0, 10.0, 2.0]).value == 3.0
    assert paired([1.0], [0.0]) is None
    assert paired([], []) is None
