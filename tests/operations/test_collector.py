"""The pauses of the garbage collector, as the metrics tell of them."""

import gc

from operations.collector import CollectorPauses
from server.metrics import collector_lines


def test_pauses_are_counted_added_up_and_the_longest_is_kept():
    times = iter([1.0, 1.5, 10.0, 10.25])  # a collection of half a second, and one of a quarter
    pauses = CollectorPauses(clock=lambda: next(times))
    for phase in ("start", "stop", "start", "stop"):
        pauses.note(phase, {})
    assert (pauses.count, pauses.total_seconds, pauses.longest_seconds) == (2, 0.75, 0.5)


def test_the_collector_calls_as_it_starts_and_ends():
    pauses = CollectorPauses()
    gc.callbacks.append(pauses.note)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(pauses.note)
    assert pauses.count >= 1
    assert pauses.total_seconds >= pauses.longest_seconds > 0


def test_kas_has_its_pauses_among_the_metrics():
    pauses = CollectorPauses()
    pauses.count, pauses.total_seconds, pauses.longest_seconds = 3, 0.5, 0.25
    lines = list(collector_lines(pauses))
    assert "moorline_kas_collections_total 3" in lines
    assert "moorline_kas_collection_seconds_total 0.500000" in lines
    assert "moorline_kas_collection_longest_seconds 0.250000" in lines
