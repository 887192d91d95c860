"""What a check found."""

from __future__ import annotations

from typing import Final, NamedTuple

OK: Final = "ok"
WARN: Final = "warn"
FAIL: Final = "fail"
SKIPPED: Final = "skipped"


class Result(NamedTuple):
    """One line of ``valued doctor``."""

    check: str
    status: str
    text: str
    #: What to type or to write, in one line; empty if there is nothing to do.
    fix: str = ""


def ok(check: str, text: str) -> Result:
    return Result(check, OK, text)


def warn(check: str, text: str, fix: str) -> Result:
    return Result(check, WARN, text, fix)


def fail(check: str, text: str, fix: str) -> Result:
    return Result(check, FAIL, text, fix)


def skipped(check: str, reason: str) -> Result:
    return Result(check, SKIPPED, reason)
