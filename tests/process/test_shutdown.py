"""What is notified of the end of a process. What real ends do: tests/prefork/test_exit.py."""

from __future__ import annotations

import atexit
import gc
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import valued
from tests.support.processes import Child, run
from valued._process import shutdown
from valued._process import tasks as _celery


class Witness:
    """A listener that notes what it is notified of."""

    def __init__(self, name: str = "", calls: list[str] | None = None) -> None:
        self.name = name
        self.calls = [] if calls is None else calls
        self.exits: list[float] = []
        self.flushes: list[float] = []
        self.remaining: list[float] = []
        self.settles = True

    def on_exit(self, started: float) -> None:
        self.calls.append(self.name)
        self.exits.append(started)

    def flush_now(self, started: float) -> bool:
        self.flushes.append(started)
        return self.settles

    def log_remaining(self, started: float = 0.0) -> None:
        self.calls.append(f"{self.name} logs")
        self.remaining.append(started)

    def end_threads(self) -> None:
        self.calls.append(f"{self.name} ends its threads")

    def flush(self, deadline: float | None) -> bool:
        raise NotImplementedError


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """As in a process in which nothing has registered yet."""
    fresh = shutdown.PerProcess(shutdown._Exit)
    monkeypatch.setattr(shutdown, "_here", fresh)
    yield fresh
    atexit.unregister(shutdown._exit)
    atexit.register(shutdown._exit)  # of the clients of other tests


@pytest.mark.parametrize("ends", [True, False])
def test_all_listeners_get_the_time_of_one_beginning(fresh: Any, ends: bool) -> None:
    one, two = Witness(), Witness()
    for witness in (one, two, one):
        shutdown.register(witness)
    before = time.monotonic()
    (shutdown.notify_exit if ends else shutdown.flush_now)()
    got, other = (one.exits, one.flushes) if ends else (one.flushes, one.exits)
    assert got == (two.exits if ends else two.flushes)
    assert before <= got[0] <= time.monotonic()
    assert (len(got), other) == (1, [])


def test_an_end_that_nothing_registered_for_does_nothing(fresh: Any) -> None:
    shutdown._exit()
    shutdown.flush_now()
    assert shutdown.registered() == []
    assert fresh.peek() is None


def test_registering_does_not_keep_alive_and_keep_does_until_release(fresh: Any) -> None:
    witness = Witness()
    alive = weakref.ref(witness)
    shutdown.register(witness)
    shutdown.report_at_exit(witness)
    shutdown.keep(witness)
    del witness
    gc.collect()
    kept = alive()
    assert kept is not None
    for _ in range(2):
        shutdown.release(kept)
    del kept
    gc.collect()
    assert alive() is None


def test_the_first_event_of_each_process_is_announced_once(
    fresh: Any, fork: Callable[..., Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def function() -> None:
        calls.append("called")

    monkeypatch.setattr(shutdown, "_on_first_event", [])
    for _ in range(2):
        shutdown.on_first_event(function)
    one, two = Witness(), Witness()
    shutdown.register(one)
    shutdown.register(two)
    assert calls == ["called"]

    def child() -> None:
        shutdown.register(one)
        shutdown.register(two)
        assert calls == ["called"] * 2

    assert fork(child).wait() == 0


def test_an_incomplete_flush_at_the_end_shares_its_time_with_an_exit_that_follows(
    fresh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, done = Witness(), Witness()
    late.settles = False
    shutdown.register(late)
    shutdown.register(done)
    assert not shutdown.flush_at_end()
    assert (late.remaining, done.remaining) == (late.flushes, [])
    shutdown.notify_exit()
    assert late.exits == late.flushes
    assert done.exits[0] > done.flushes[0]
    monkeypatch.setattr(shutdown, "SAME_END", 0.0)  # that flush was for another end
    shutdown.notify_exit()
    assert late.exits[1] > late.flushes[0]
    late.settles = True
    assert shutdown.flush_at_end()
    assert len(late.remaining) == 1


def test_reports_log_after_the_listeners_and_what_may_end_the_process_comes_last(
    fresh: Any,
) -> None:
    calls: list[str] = []
    reports, listener = Witness("reports", calls), Witness("listener", calls)
    shutdown.call_last(lambda: calls.append("last"))
    shutdown.report_at_exit(reports)
    shutdown.register(listener)
    shutdown._exit()
    shutdown._exit()  # a multiprocessing child from 3.13 on: `Finalize`, then `atexit`
    once = ["listener", "reports logs"]
    assert calls == [*once, "last", *once]


def test_threads_end_with_a_subinterpreter_after_all_is_delivered(
    fresh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In the thread of a real one: test_interpreter.py.
    class Threaded(Witness):
        def end_threads(self) -> None:
            super().end_threads()
            end.set()

    def run() -> None:
        end.wait(10)
        witness.calls.append("ends")

    end = threading.Event()
    witness = Threaded("witness")
    shutdown.register(witness)
    thread = threading.Thread(target=run, name="valued-test")
    thread.start()
    monkeypatch.setattr(shutdown, "is_main_interpreter", lambda: False)
    shutdown._exit()
    assert not thread.is_alive()
    assert witness.calls == ["witness", "witness ends its threads", "ends"]


def test_a_child_that_inherited_the_exit_handler_calls_its_listeners_once() -> None:
    program = """
import os, sys
from valued._process import shutdown
class Listener:
    def on_exit(self, started):
        print("exit", flush=True)
listener = Listener()
shutdown.register(listener)
pid = os.fork()
if pid == 0:
    shutdown.register(listener)
    sys.exit()
os.waitpid(pid, 0)
"""
    done = run("-c", program)
    assert (done.stdout, done.stderr) == ("exit\nexit\n", "")


def test_a_multiprocessing_child_which_ends_without_exit_handlers_notifies() -> None:
    program = """
import multiprocessing
from valued._process import shutdown
class Listener:
    def on_exit(self, started):
        print("exit", flush=True)
listener = Listener()
process = multiprocessing.get_context("fork").Process(target=shutdown.register, args=(listener,))
process.start()
process.join()
"""
    done = run("-c", program)
    assert set(done.stdout.splitlines()) == {"exit"}, done.stderr


def test_ours_runs_after_later_handlers_and_before_urllib3_closes_connections() -> None:
    program = """
import atexit, weakref
from valued._process import shutdown
class Pool: pass
pool = Pool()
shutdown.call_last(lambda: print("ours"))
weakref.finalize(pool, print, "the connections are closed")
atexit.register(print, "the application's, which may record events")
shutdown.hook_exit()
"""
    assert run("-c", program).stdout.splitlines() == [
        "the application's, which may record events",
        "ours",
        "the connections are closed",
    ]


def test_refusals_that_were_counted_and_not_logged_are_logged_at_the_end() -> None:
    program = (
        "import valued\n"
        "client = valued.Client(print, invalid='log')\n"
        "for _ in range(3): client.action('k', {'user.id': 1, 'attributes.a': object()})\n"
    )
    done = run("-c", program)
    one, others = (line for line in done.stderr.splitlines() if "not sent" in line)
    assert one.startswith("valued: 1 time not sent: attributes.a")
    assert others.startswith("valued: 2 times not sent: attributes.a")


@pytest.mark.parametrize(("shuts_down", "is_alive"), [(True, True), (False, False)])
def test_the_main_thread_is_over_by_either_sign(
    shuts_down: bool, is_alive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With gevent and Python 3.13 the second one never comes: tests/prefork/test_gevent.py.
    main = types.SimpleNamespace(is_alive=lambda: is_alive)
    assert not shutdown.main_thread_is_over()
    monkeypatch.setattr(threading, "_SHUTTING_DOWN", shuts_down, raising=False)
    monkeypatch.setattr(threading, "main_thread", lambda: main)
    assert shutdown.main_thread_is_over()


def test_celery_is_told_once_where_it_is_there_and_calls_all(
    fresh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The signals of a process that has told Celery nothing yet; real workers:
    # tests/prefork/test_celery.py, tests/integrations/test_celery.py.
    dispatch = pytest.importorskip("celery.utils.dispatch")
    names = ("worker_process_shutdown", "task_prerun", "task_postrun")
    signals = types.SimpleNamespace(**{name: dispatch.Signal() for name in names})
    monkeypatch.setitem(sys.modules, "celery.signals", signals)
    monkeypatch.setattr(_celery, "listening", False)
    witness = Witness()
    shutdown.register(witness)
    for _ in range(2):
        valued.Client(print).action("k", {"user.id": 1})
    assert [len(getattr(signals, name).receivers) for name in names] == [1, 1, 1]
    signals.worker_process_shutdown.send(sender="worker", pid=1, exitcode=0)
    assert len(witness.exits) == 1
    assert shutdown.is_ending()  # no exit handler will run


#: Raises, as a signal handler may, once the lock of the main thread's life was asked for.
INTERRUPTED = """
import sys, threading, valued

def interrupt(frame, event, called):
    if frame.f_code.co_name == "_wait_for_tstate_lock" and event == "c_return":
        sys.setprofile(None)
        raise InterruptedError

client = valued.Client(print, shutdown_timeout=0)
sys.setprofile(interrupt)
try:
    client.action("first", {"user.id": 1})
except InterruptedError:
    pass
sys.setprofile(None)
assert threading.main_thread().is_alive()
client.action("second", {"user.id": 1})
assert client.flush()
assert client.stats()["delivered"] == 2, client.stats()
"""


def test_an_interrupt_does_not_make_a_process_look_as_if_it_ended() -> None:
    done = run("-c", INTERRUPTED)
    assert (done.returncode, done.stderr) == (0, "")
