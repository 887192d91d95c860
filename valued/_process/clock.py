"""The clock of the package, which a test of the application can't stop or move.

freezegun replaces ``time.time``, ``time.monotonic`` and their like in all modules, and for some of
them only in some modules. A deadline by the one clock, compared with the other one, is then years
away. So every deadline, pause and age of ours is measured by `CLOCK`. Only ``occured_at`` follows
``time.time``: it is what such tests are about.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple


class Clock(NamedTuple):
    """Functions without arguments; any thread may call them."""

    #: Seconds since some moment; for deadlines, pauses and ages within this process.
    monotonic: Callable[[], float]
    #: Seconds since the epoch; for what other processes read.
    wall: Callable[[], float]
    #: Seconds since some moment, with those in which the machine was asleep, where the system can
    #: tell; for connections, whose other end was awake.
    since_boot: Callable[[], float]


def _unpatched_time() -> Any:
    """A second copy of the module `time`: the first one is patched if a frozen test imports us."""
    spec = time.__spec__
    try:
        assert spec is not None
        assert spec.loader is not None
        module = spec.loader.create_module(spec)
        assert module is not None
        spec.loader.exec_module(module)
    except Exception:  # noqa: BLE001 - where it is not built in: a clock that can be patched
        return time
    return module


_time: Final = _unpatched_time()


def _since_boot() -> Callable[[], float]:
    # On macOS, CLOCK_MONOTONIC counts on while the machine sleeps, and `time.monotonic` doesn't.
    name = "CLOCK_MONOTONIC" if sys.platform == "darwin" else "CLOCK_BOOTTIME"
    number = getattr(_time, name, None)
    if number is None:  # pragma: no cover - Windows
        return _time.monotonic  # type: ignore[no-any-return]
    return functools.partial(_time.clock_gettime, number)


CLOCK: Final = Clock(monotonic=_time.monotonic, wall=_time.time, since_boot=_since_boot())
