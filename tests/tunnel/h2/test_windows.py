"""How windows grow, and what a process can afford."""

from __future__ import annotations

import dataclasses

import pytest

from tunnel.h2.config import KIB, MIB, TUNNEL_RESPONDER
from tunnel.h2.stream import Stream
from tunnel.h2.windows import CreditPolicy, WindowBudget


def new_stream(window_bytes: int = 64 * KIB) -> Stream:
    return Stream(1, send_window_bytes=65_535, receive_window_bytes=window_bytes, now=0.0)


def take(policy: CreditPolicy, stream: Stream, size: int, now: float) -> int:
    """The peer sends, the consumer takes, credit is announced."""
    stream.receive_window_bytes -= size
    stream.uncredited_bytes += size
    return policy.increment(stream, now)


def test_the_first_half_that_is_taken_raises_the_window():
    account = WindowBudget().open_account()
    policy = CreditPolicy(TUNNEL_RESPONDER, account)
    stream = new_stream()

    assert take(policy, stream, 32 * KIB, 1.0) == 32 * KIB + 192 * KIB
    assert stream.window_target_bytes == stream.receive_window_bytes == 256 * KIB
    assert account.used_bytes == 192 * KIB


def test_without_a_round_trip_it_stays_there():
    policy = CreditPolicy(TUNNEL_RESPONDER, WindowBudget().open_account())
    stream = new_stream()
    for moment in range(1, 10):
        take(policy, stream, 32 * KIB, moment / 1e6)

    assert stream.window_target_bytes == 256 * KIB


def test_a_window_that_limits_the_sender_doubles_up_to_the_limit():
    account = WindowBudget().open_account()
    policy = CreditPolicy(TUNNEL_RESPONDER, account)
    policy.note_round_trip(0.1)
    stream = new_stream()
    targets = []
    now = 0.0
    for _ in range(8):
        now += 0.05
        take(policy, stream, stream.window_target_bytes // 2 + KIB, now)
        targets.append(stream.window_target_bytes)

    assert targets == [256 * KIB, 512 * KIB, 1 * MIB, 2 * MIB, 4 * MIB, 8 * MIB, 8 * MIB, 8 * MIB]
    assert account.used_bytes == 8 * MIB - 64 * KIB
    assert stream.receive_window_bytes == stream.window_target_bytes


def test_a_window_that_does_not_limit_the_sender_stays():
    policy = CreditPolicy(TUNNEL_RESPONDER, WindowBudget().open_account())
    policy.note_round_trip(0.1)
    stream = new_stream()
    for step in range(1, 20):
        take(policy, stream, 128 * KIB, step * 0.15)

    assert stream.window_target_bytes == 256 * KIB


def test_the_round_trip_follows_the_least_at_once_and_longer_ones_slowly():
    policy = CreditPolicy(TUNNEL_RESPONDER, WindowBudget().open_account())
    policy.note_round_trip(0.1)
    policy.note_round_trip(5.0)
    assert policy.round_trip_seconds == pytest.approx(0.125)

    policy.note_round_trip(0.01)
    assert policy.round_trip_seconds == 0.01


def test_an_initial_window_above_the_limit_is_not_shrunk():
    config = dataclasses.replace(TUNNEL_RESPONDER, max_window_bytes=1 * MIB)
    policy = CreditPolicy(config, WindowBudget().open_account())
    policy.note_round_trip(1.0)
    stream = new_stream(4 * MIB)

    assert take(policy, stream, 2 * MIB, 0.001) == 2 * MIB
    assert stream.window_target_bytes == 4 * MIB


def test_over_the_budget_no_window_grows_and_credit_still_returns():
    budget = WindowBudget(1 * MIB)
    account = budget.open_account()
    other = budget.open_account()
    other.charge(900 * KIB)
    policy = CreditPolicy(TUNNEL_RESPONDER, account)
    stream = new_stream()

    assert take(policy, stream, 40 * KIB, 1.0) == 40 * KIB
    assert stream.window_target_bytes == 64 * KIB
    other.charge(-900 * KIB)
    assert take(policy, stream, 40 * KIB, 2.0) == 232 * KIB


def test_over_twice_the_budget_those_above_their_share_shed():
    budget = WindowBudget(100)
    small, large = budget.open_account(), budget.open_account()
    small.charge(80)
    large.charge(120)
    assert not large.must_shed

    large.charge(1)
    assert large.must_shed
    assert not small.must_shed


def test_a_closed_account_gives_everything_back_once():
    budget = WindowBudget(100)
    account, other = budget.open_account(), budget.open_account()
    account.charge(30)
    other.charge(5)

    account.close()
    account.close()
    account.charge(-30)

    assert (budget.used_bytes, budget.accounts, account.used_bytes) == (5, 1, 0)
