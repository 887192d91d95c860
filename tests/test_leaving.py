"""Who hears of the end of a process. What real ends do to the whole: tests/prefork/test_exit.py."""

from __future__ import annotations

import atexit
import gc
import signal
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import valued
from tests.support.processes import Child
from valued import _leaving


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
    atexit.unregister(_leaving._leave)
    atexit.register(_leaving._leave)  # of the clients of other tests


def test_all_hear_of_one_beginning(leavers: Any) -> None:
    one, two = Witness(), Witness()
    for witness in (one, two, one):
        _leaving.enroll(witness)
    before = time.monotonic()
    _leaving._leave()
    assert one.heard == two.heard
    assert before <= one.heard[0] <= time.monotonic()


def test_an_end_that_nobody_enrolled_for_does_nothing(leavers: Any) -> None:
    _leaving._leave()
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
    # A stand-in for the signal alone; real workers: tests/prefork/test_celery.py.
    connected: list[tuple[Any, dict[str, Any]]] = []
    signals = types.SimpleNamespace(
        worker_process_shutdown=types.SimpleNamespace(
            connect=lambda receiver, **how: connected.append((receiver, how))
        )
    )
    monkeypatch.setitem(sys.modules, "celery.signals", signals)
    witness = Witness()
    _leaving.enroll(witness)
    _leaving.enroll(Witness())
    [(receiver, how)] = connected
    assert how == {"weak": False, "dispatch_uid": "valued"}
    receiver(sender="worker", pid=1, exitcode=0)
    assert len(witness.heard) == 1


def test_flush_on_signals_leaves_a_handler_of_c_code_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # `signal.getsignal` answers None for one; there is none to be had without an extension.
    monkeypatch.setattr(signal, "getsignal", lambda _number: None)
    installed: list[Any] = []
    monkeypatch.setattr(signal, "signal", lambda *arguments: installed.append(arguments))
    valued.flush_on_signals(signal.SIGTERM)
    assert installed == []


def test_a_signal_is_sent_to_this_process() -> None:
    _leaving.send_signal(0)  # 0 asks whether the process is there, and does nothing to it


@pytest.fixture
def signalled(fork: Callable[..., Child], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Send a forked child SIGTERM, with *before* as its handler, and *check* what came of it."""

    def run(before: Any, check: Callable[[Witness, list[int]], None]) -> None:
        def child() -> None:
            sent: list[int] = []
            done = threading.Event()
            witness = Witness()

            def send(number: int) -> None:
                sent.append(number)
                done.set()

            # In place of the signal, which would take what this test found along.
            monkeypatch.setattr(_leaving, "send_signal", send)
            signal.signal(signal.SIGTERM, before)
            _leaving.enroll(witness)
            valued.flush_on_signals()
            valued.flush_on_signals()  # again, which changes nothing
            signal.raise_signal(signal.SIGTERM)
            assert done.wait(10)
            assert sent == [signal.SIGTERM]
            assert signal.getsignal(signal.SIGTERM) is before
            check(witness, sent)

        assert fork(child).wait() == 0

    return run


def test_the_default_ends_the_process_after_delivering(signalled: Callable[..., None]) -> None:
    def check(witness: Witness, _sent: list[int]) -> None:
        assert (len(witness.heard), len(witness.hurried)) == (1, 0)

    signalled(signal.SIG_DFL, check)


def test_a_handler_that_was_there_may_go_on(signalled: Callable[..., None]) -> None:
    def check(witness: Witness, _sent: list[int]) -> None:
        assert (len(witness.heard), len(witness.hurried)) == (0, 1)

    signalled(lambda _number, _frame: None, check)


@pytest.mark.parametrize(
    ("ending", "over", "delivers"),
    [(True, True, False), (False, True, True), (False, False, False)],
    ids=["at the end", "other threads go on", "no threads are left"],
)
def test_where_no_thread_can_be_started_the_signal_is_not_lost_but_to_an_end_under_way(
    ending: bool,
    over: bool,
    delivers: bool,
    fork: Callable[..., Child],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_thread(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    def child() -> None:
        sent: list[int] = []
        monkeypatch.setattr(_leaving, "send_signal", sent.append)
        monkeypatch.setattr(_leaving, "is_ending", lambda: ending)
        monkeypatch.setattr(_leaving, "_main_thread_is_over", lambda: over)
        witness = Witness()
        _leaving.enroll(witness)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        valued.flush_on_signals()
        with monkeypatch.context() as patch:
            patch.setattr(_leaving._thread, "start_new_thread", no_thread)
            signal.raise_signal(signal.SIGTERM)
        assert sent == ([] if ending else [signal.SIGTERM])
        assert len(witness.heard) == delivers

    assert fork(child).wait() == 0
