"""A row of a table: ours, its yardstick, their ratio, and whether the goal is met."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from benchmarks.bench import Figures


class Goal(NamedTuple):
    """What a goal says, and whether ours meets it beside the yardstick's."""

    text: str
    is_met: Callable[[float, float], bool]


NO_GOAL: Final = Goal("", lambda *_: True)


def at_most(factor: float) -> Goal:
    return Goal(f"at most {factor:g} x", lambda ours, yardstick: ours <= factor * yardstick)


def at_least(factor: float) -> Goal:
    return Goal(f"at least {factor:g} x", lambda ours, yardstick: ours >= factor * yardstick)


@dataclasses.dataclass(frozen=True)
class Row:
    """One row. *further*: what others take, and what has no goal, by name, in the same unit."""

    what: str
    unit: str
    yardstick_name: str
    yardstick: float
    ours: float
    goal: str
    met: bool
    further: dict[str, float]
    note: str

    @property
    def ratio(self) -> float | None:
        """Ours by the yardstick."""
        return self.ours / self.yardstick if self.yardstick else None

    def as_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "ratio": self.ratio}


def row(
    what: str,
    unit: str,
    figures: Figures,
    key: str,
    yardstick: str,
    goal: Goal = NO_GOAL,
    *,
    name: str = "",
    note: str = "",
) -> Row:
    """A row of *figures*, by subject: ``valued``, the *yardstick* (shown as *name*), and others."""
    ours, theirs = figures["valued"][key], figures[yardstick][key]
    further = {
        other: found[key]
        for other, found in figures.items()
        if other not in ("valued", yardstick) and key in found
    }
    met = goal.is_met(ours, theirs)
    return Row(what, unit, name or yardstick, theirs, ours, goal.text, met, further, note)
