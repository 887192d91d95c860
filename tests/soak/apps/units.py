"""Whose a request is: of forty users, and every tenth of nobody."""

from __future__ import annotations

from collections.abc import Iterable


def whose(number: int) -> str | None:
    return None if number % 10 == 9 else str((number + number // 40) % 40 + 1)


def expected(numbers: Iterable[int]) -> dict[str, str | None]:
    return {f"request{number}": whose(number) for number in numbers}
