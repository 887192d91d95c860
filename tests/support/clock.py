"""A clock for what waits: time passes when a test says so."""

from __future__ import annotations


class Clock:
    """Stands still, until a test moves it."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
