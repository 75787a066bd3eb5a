"""What `moorline doctor` found: one line for each step, in words."""

from __future__ import annotations

import dataclasses
import enum
import textwrap
from collections.abc import Callable, Sequence


class State(enum.Enum):
    """How a step went."""

    OK = "ok"
    WARNING = "warning"
    """Nothing fails because of it now."""
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One step."""

    step: str
    state: State
    text: str
    advice: Sequence[str] = ()
    """What to do about it; each stands on a line of its own."""


_COLOURS = {State.OK: "32", State.WARNING: "33", State.FAILED: "1;31", State.SKIPPED: "2"}
_STATE_WIDTH = 8
_STEP_WIDTH = 10
ADVICE_WIDTH = 100


def render(finding: Finding, *, colour: bool) -> str:
    """The finding as it is printed: one line, and advice on further lines that are set in.

    Some of the text is the other side's, which has no business with the terminal: only printable characters are left.
    """
    state = finding.state.value.ljust(_STATE_WIDTH)
    if colour:
        state = f"\x1b[{_COLOURS[finding.state]}m{state}\x1b[0m"
    margin = " " * (_STATE_WIDTH + _STEP_WIDTH + 2)
    lines = [f"{state} {finding.step.ljust(_STEP_WIDTH)} {_printable(finding.text)}"]
    for advice in finding.advice:
        lines += textwrap.wrap(
            _printable(advice),
            ADVICE_WIDTH,
            initial_indent=f"{margin}- ",
            subsequent_indent=f"{margin}  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


class Findings:
    """Collects findings and hands each of them on at once, so that whoever waits sees how far it is."""

    def __init__(self, tell: Callable[[Finding], None]) -> None:
        self._tell = tell
        self._found: list[Finding] = []

    def add(self, step: str, state: State, text: str, *advice: str) -> None:
        """Note how a step went."""
        finding = Finding(step, state, text, advice)
        self._found.append(finding)
        self._tell(finding)

    def ok(self, step: str, text: str, *advice: str) -> None:
        """The step went as it should."""
        self.add(step, State.OK, text, *advice)

    def failed(self, step: str, text: str, *advice: str) -> None:
        """The step went wrong."""
        self.add(step, State.FAILED, text, *advice)

    def skipped(self, step: str, why: str) -> None:
        """The step was not tried."""
        self.add(step, State.SKIPPED, why)

    @property
    def failures(self) -> list[str]:
        """The steps that failed, in order."""
        return [finding.step for finding in self._found if finding.state is State.FAILED]
