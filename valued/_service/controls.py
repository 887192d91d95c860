"""What the mock server does to valid events before it takes them: fail, delay, drop, pause.

It begins with the options of ``valued listen``. The page, programs and tests change it while it
runs.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from valued._service.refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

#: Seconds that an event waits at most while all are paused: longer than most clients wait.
LONGEST_PAUSE: Final = 30.0

#: The longest delay, as of the option: a day.
LONGEST_DELAY: Final = 86_400.0

#: The most events that can be told to fail, or to be dropped.
MOST: Final = 1_000_000_000

#: Seconds between two looks at whether the sender still waits for a delayed answer.
_LOOK: Final = 1.0

BY_OPTION: Final = "as requested by --fail"
BY_PAGE: Final = "as requested by the page"


@dataclasses.dataclass
class _Failures:
    """Valid events get *status*: the next *events*, until *until*; None: without such an end."""

    status: int
    events: int | None = None
    until: float | None = None
    reason: str = BY_PAGE

    def is_over(self) -> bool:
        return self.events == 0 or (self.until is not None and self.until <= time.monotonic())


class Controls:
    """The settings. Any thread may call. *failures*: pairs of a status and a number of events."""

    def __init__(self, delay: float = 0.0, failures: Iterable[tuple[int, int]] = ()) -> None:
        # Guards all below, and is notified of changes.
        self._changed = threading.Condition()
        self._failures = collections.deque(
            _Failures(status, events, reason=BY_OPTION) for status, events in failures
        )
        self._drop = 0
        self._paused = False
        self._is_closed = False
        self.delay = delay

    # -- for the events ----------------------------------------------------------------------------

    def hold(self, is_gone: Callable[[], bool]) -> None:
        """Wait for the delay, which may change meanwhile; not for a sender who *is_gone*."""
        began_at = time.monotonic()
        while True:
            with self._changed:
                left = began_at + self.delay - time.monotonic()
                if left <= 0 or self._is_closed:
                    return
                self._changed.wait(min(left, _LOOK))
            if is_gone():
                return

    def admit(self) -> None:
        """Let a valid event pass; else raise its refusal. It waits while all are paused."""
        with self._changed:
            if self._paused:
                self._changed.wait_for(lambda: not self._paused or self._is_closed, LONGEST_PAUSE)
                if self._paused:
                    raise Refusal(503, BY_PAGE, injected=True)
            if self._drop:
                self._drop -= 1
                raise Refusal(0, BY_PAGE, injected=True)
            failures = self._next()
            if failures is None:
                return
            if failures.events is not None:
                failures.events -= 1
        raise Refusal(failures.status, failures.reason, injected=True)

    def close(self) -> None:
        """Refuse the events that wait for the end of a pause; end all delays."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    # -- for the page, for programs and for tests --------------------------------------------------

    def fail(
        self,
        status: int = 503,
        events: int | None = None,
        seconds: float | None = None,
        reason: str = BY_PAGE,
    ) -> None:
        """Answer valid events with *status*, from now on; None: without such an end."""
        until = None if seconds is None else time.monotonic() + seconds
        with self._changed:
            self._failures.clear()
            self._failures.append(_Failures(status, events, until, reason))

    def now(self) -> dict[str, Any]:
        """The settings as they are, as JSON has them."""
        with self._changed:
            failures = self._next()
            return {
                "fail": None if failures is None else _shown(failures),
                "delay": self.delay,
                "drop": self._drop,
                "paused": self._paused,
            }

    def change(self, wanted: Any) -> dict[str, Any]:
        """Change what *wanted* names, all or nothing; raises a refusal that says what is wrong."""
        changes = _checked(wanted)
        if "fail" in changes:
            with self._changed:
                self._failures.clear()
            if changes["fail"] is not None:
                self.fail(**changes["fail"])
        with self._changed:
            self.delay = changes.get("delay", self.delay)
            self._drop = changes.get("drop", self._drop)
            self._paused = changes.get("paused", self._paused)
            self._changed.notify_all()
        return self.now()

    def _next(self) -> _Failures | None:
        while self._failures and self._failures[0].is_over():
            self._failures.popleft()
        return self._failures[0] if self._failures else None


def _shown(failures: _Failures) -> dict[str, Any]:
    until = failures.until
    left = None if until is None else round(max(0.0, until - time.monotonic()), 1)
    return {"status": failures.status, "events": failures.events, "seconds": left}


def _checked(wanted: Any) -> dict[str, Any]:
    if not isinstance(wanted, dict):
        raise Refusal(400, 'expected an object, such as {"fail": {"status": 503}}')
    checks: dict[str, Callable[[Any], Any]] = {
        "fail": _fail, "delay": _delay, "drop": _count, "paused": _flag,
    }  # fmt: skip
    return _each(wanted, checks, "")


def _each(
    wanted: Mapping[str, Any], checks: Mapping[str, Callable[[Any], Any]], path: str
) -> dict[str, Any]:
    checked, wrong = {}, []
    for name, value in wanted.items():
        if name not in checks:
            wrong.append(f"{path}{name}: unknown; there are {', '.join(checks)}")
            continue
        try:
            checked[name] = checks[name](value)
        except ValueError as error:
            wrong.append(f"{path}{name}: {error}")
        except Refusal as refusal:
            wrong += refusal.reasons
    if wrong:
        raise Refusal(400, *wrong)
    return checked


def _fail(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError(  # noqa: TRY004 - it says what JSON has to be there
            'expected null or an object, such as {"status": 503, "events": 3}'
        )
    checks = {"status": _status, "events": _optional(_count), "seconds": _optional(_delay)}
    return _each(value, checks, "fail.")


def _optional(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value)


def _status(value: Any) -> int:
    if _is_whole(value) and 300 <= value <= 599:
        return int(value)
    raise ValueError("expected a status, 300 to 599")


def _count(value: Any) -> int:
    if _is_whole(value) and 0 <= value <= MOST:
        return int(value)
    raise ValueError(f"expected a whole number, 0 to {MOST}")


def _delay(value: Any) -> float:
    with contextlib.suppress(OverflowError):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            seconds = float(value)
            if math.isfinite(seconds) and 0 <= seconds <= LONGEST_DELAY:
                return seconds
    raise ValueError(f"expected seconds, 0 to {LONGEST_DELAY:.0f}")


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("expected true or false")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
