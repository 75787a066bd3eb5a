"""The clock of this machine against the time that an answer gives."""

from __future__ import annotations

import dataclasses
import datetime
import email.utils

from moorline.doctor.findings import State
from tunnel.dialer import Answer
from tunnel.messages import field_value

NOTED = datetime.timedelta(seconds=60)
"""What clocks may differ by without a word."""

TOO_MUCH = datetime.timedelta(minutes=5)
"""From here on certificates and tokens that are valid are refused, or the other way round."""


def read_date(answer: Answer) -> datetime.datetime | None:
    """The time at which the answer was made, by the clock of who made it; None where it does not say."""
    text = (field_value(answer.head.fields, b"date") or b"").decode("latin-1")
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)


@dataclasses.dataclass(frozen=True, slots=True)
class ClockReading:
    """Two clocks at the same moment."""

    here: datetime.datetime
    there: datetime.datetime

    @property
    def difference(self) -> datetime.timedelta:
        """How far the clock here is ahead; negative where it is behind."""
        return self.here - self.there

    @property
    def state(self) -> State:
        """What that means for a step."""
        apart = abs(self.difference)
        if apart <= NOTED:
            return State.OK
        return State.WARNING if apart <= TOO_MUCH else State.FAILED

    @property
    def text(self) -> str:
        """The difference in words."""
        if self.state is State.OK:
            return f"within {NOTED.total_seconds():.0f} s of the clock of who answered"
        direction = "ahead of" if self.difference > datetime.timedelta() else "behind"
        there = f"{self.there:%Y-%m-%d %H:%M:%S} UTC"
        return f"this machine is {_in_words(abs(self.difference))} {direction} who answered, for whom it is {there}"

    @property
    def advice(self) -> tuple[str, ...]:
        """What to do."""
        if self.state is State.OK:
            return ()
        return (
            "Set the clocks (NTP): certificates and tokens are judged by them. If this one is right, set the other.",
        )


def _in_words(difference: datetime.timedelta) -> str:
    seconds = round(difference.total_seconds())
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} seconds"
