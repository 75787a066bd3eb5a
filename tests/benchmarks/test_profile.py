"""What py-spy saw, by function."""

from benchmarks.profile import report, seen

RAW = """\
main (server/kas.py:10);run (tunnel/relay.py:20) 6
main (server/kas.py:10);run (tunnel/relay.py:25) 3
main (server/kas.py:10);get_events (trio/_core/_io_epoll.py:5) 90
main (server/kas.py:10);feed (tunnel/h2/receiving.py:7) 1
"""


def test_samples_are_counted_by_the_last_function_and_waiting_is_left_out():
    assert seen(RAW) == {"run (tunnel/relay.py)": 9, "feed (tunnel/h2/receiving.py)": 1}


def test_the_dearest_functions_come_first_with_their_share():
    text = report("kas", seen(RAW), lines=1)
    assert "| 90.0% | `run (tunnel/relay.py)` |" in text
    assert "feed" not in text
