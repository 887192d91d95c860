"""Who hears of the end of a process. What real ends do to the whole: tests/prefork/test_exit.py."""

from __future__ import annotations

import atexit
import gc
import sys
import time
import types
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

import valued
from valued._process import celery as _celery
from valued._process import shutdown as _leaving


class Witness:
    """Somebody who has something to finish."""

    def __init__(self) -> None:
        self.heard: list[float] = []
        self.hurried: list[float] = []

    def leave(self, started: float) -> None:
        self.heard.append(started)

    def hurry(self, started: float) -> None:
        self.hurried.append(started)


@pytest.fixture
def leavers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """As in a process that nobody enrolled in yet."""
    fresh = _leaving.PerProcess(_leaving._Leavers)
    monkeypatch.setattr(_leaving, "_here", fresh)
    yield fresh
    atexit.unregister(_leaving.leave)
    atexit.register(_leaving.leave)  # of the clients of other tests


def test_all_hear_of_one_beginning(leavers: Any) -> None:
    one, two = Witness(), Witness()
    for witness in (one, two, one):
        _leaving.enroll(witness)
    before = time.monotonic()
    _leaving.leave()
    assert one.heard == two.heard
    assert before <= one.heard[0] <= time.monotonic()


def test_an_end_that_nobody_enrolled_for_does_nothing(leavers: Any) -> None:
    _leaving.leave()
    assert leavers.peek() is None


def test_enrolling_does_not_keep_alive_and_keep_does_until_release(leavers: Any) -> None:
    witness = Witness()
    alive = weakref.ref(witness)
    _leaving.enroll(witness)
    _leaving.keep(witness)
    del witness
    gc.collect()
    kept = alive()
    assert kept is not None
    _leaving.release(kept)
    _leaving.release(kept)
    del kept
    gc.collect()
    assert alive() is None


def test_celery_is_told_once_where_it_is_there_and_calls_all(
    leavers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The signals of a process that has told Celery nothing yet; real workers:
    # tests/prefork/test_celery.py, tests/integrations/test_celery.py.
    dispatch = pytest.importorskip("celery.utils.dispatch")
    names = ("worker_process_shutdown", "task_prerun", "task_postrun")
    signals = types.SimpleNamespace(**{name: dispatch.Signal() for name in names})
    monkeypatch.setitem(sys.modules, "celery.signals", signals)
    monkeypatch.setattr(_celery, "listening", False)
    witness = Witness()
    _leaving.enroll(witness)
    for _ in range(2):
        valued.Client(print).action("k", {"user.id": 1})
    assert [len(getattr(signals, name).receivers) for name in names] == [1, 1, 1]
    signals.worker_process_shutdown.send(sender="worker", pid=1, exitcode=0)
    assert len(witness.heard) == 1
