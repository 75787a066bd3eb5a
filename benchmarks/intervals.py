"""A number with its noise: what rounds on a busy machine say about a ratio, and how sure that is.

The rounds of a run are independent as far as that can be had: each has new processes, and minutes lie between them.
Nothing is known of how their results are spread, but that a few lie far out. So the value is the median, and its
interval comes of the order of the rounds: between the k-th smallest and the k-th largest of n rounds the true median
lies with a probability of 1 - 2 P(B < k), B being binomial with n and one half. The narrowest interval is taken that
holds it with 95 %: of seven rounds that is all that they span (98 %), of nine what is left without the outermost two.

Fewer than six rounds can't give 95 % in this way. Then, as for memory, which hardly differs from round to round, the
logarithms are taken to be spread normally (Student's t); one round has no interval.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

CONFIDENCE = 0.95
_STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Quantiles of 97.5 % for so many rounds."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value, and the interval which holds the true one with 95 %; none of a single round."""

    value: float
    low: float | None = None
    high: float | None = None

    def agrees_with(self, other: Estimate) -> bool | None:
        """Whether both can be of one thing: the intervals have a value in common. None where one has no interval."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return None
        return self.low <= other.high and other.low <= self.high

    def __str__(self) -> str:
        """The value, and what lies between the ends of the interval."""
        if self.low is None or self.high is None:
            return f"{self.value:.2f}"
        return f"{self.value:.2f} [{self.low:.2f}–{self.high:.2f}]"


def estimate(values: Sequence[float]) -> Estimate:
    """The median with its interval. Raises `ValueError` for no values."""
    if not values:
        raise ValueError("an estimate needs at least one round")
    ordered = sorted(values)
    if len(ordered) == 1:
        return Estimate(ordered[0])
    if len(ordered) in _STUDENT:
        return _by_student(ordered)
    left_out = ranks_left_out(len(ordered))
    return Estimate(statistics.median(ordered), ordered[left_out], ordered[-1 - left_out])


def ranks_left_out(rounds: int) -> int:
    """How many of the smallest, and as many of the largest, lie outside of the interval."""
    left_out, outside = 0, 2.0**-rounds
    while True:
        outside += math.comb(rounds, left_out + 1) * 2.0**-rounds
        if 1 - 2 * outside < CONFIDENCE:
            return left_out
        left_out += 1


def _by_student(ordered: Sequence[float]) -> Estimate:
    middle = statistics.median(ordered)
    if ordered[0] <= 0:
        return Estimate(middle, ordered[0], ordered[-1])
    logarithms = [math.log(value) for value in ordered]
    half = _STUDENT[len(ordered)] * statistics.stdev(logarithms) / math.sqrt(len(ordered))
    centre = statistics.fmean(logarithms)
    return Estimate(middle, math.exp(centre - half), math.exp(centre + half))


def paired(own: Sequence[float], other: Sequence[float]) -> Estimate | None:
    """The estimate of the ratio, round by round; None where the other was nothing in some round."""
    if not own or len(own) != len(other) or not all(other):
        return None
    return estimate([mine / theirs for mine, theirs in zip(own, other, strict=True)])
