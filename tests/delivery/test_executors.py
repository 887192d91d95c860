"""Where deliveries run: the threads of ours, the user's executors, the call itself."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

import valued
from tests.delivery.support import BOUND, InThread
from tests.support.processes import Child, until
from valued import ImmediateExecutor, set_executor
from valued._delivery.executors import (
    AS_MANY_AS_CALLERS,
    DEFAULT_WORKERS,
    ExecutorPlan,
    ExecutorSpec,
    plan_for,
)
from valued._delivery.threads import ThreadCache
from valued._options import Options

LONG = 3600.0  # seconds; nothing here idles so long

Fork = Callable[..., Child]


def soon(seconds: float = BOUND) -> float:
    return time.monotonic() + seconds


def retire(cache: ThreadCache, deadline: float) -> bool:
    """End the threads. Whether all had ended by then."""
    cache.dismiss()
    return cache.join(deadline)


@pytest.fixture
def cache() -> Iterator[ThreadCache]:
    cache = ThreadCache(LONG)
    yield cache
    assert retire(cache, soon())


class Job:
    """A job that notes when it began, and ends when it may."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.thread = threading.current_thread()

    def __call__(self) -> None:
        self.thread = threading.current_thread()
        self.begun.set()
        assert self.may_end.wait(BOUND)

    def end(self) -> None:
        self.may_end.set()
        self.thread.join(BOUND)
        assert not self.thread.is_alive()


def busy(cache: ThreadCache, count: int = 1) -> list[Job]:
    jobs = [Job() for _ in range(count)]
    for job in jobs:
        cache.submit(job)
    for job in jobs:
        assert job.begun.wait(BOUND)
    return jobs


def thread_of_next_job(cache: ThreadCache) -> threading.Thread:
    done: list[threading.Thread] = []
    cache.submit(lambda: done.append(threading.current_thread()))
    until(lambda: done)
    return done[0]


def until_idle(cache: ThreadCache, thread: threading.Thread) -> None:
    """Wait until *thread* takes the next job."""
    until(lambda: thread_of_next_job(cache) is thread)


# -- threads ---------------------------------------------------------------------------------------


def test_a_job_runs_on_a_daemon_thread_with_a_name_of_ours_and_gets_its_arguments(
    cache: ThreadCache,
) -> None:
    got: list[Any] = []

    def job(*args: int) -> None:
        got.append((args, threading.current_thread().name, threading.current_thread().daemon))

    cache.submit(job, 1, 2)
    until(lambda: got)
    assert got == [((1, 2), "valued-sender-1", True)]


def test_jobs_at_the_same_time_have_a_thread_each_however_many_they_are(
    cache: ThreadCache,
) -> None:
    jobs = busy(cache, 30)
    assert len({job.thread for job in jobs}) == 30
    for job in jobs:
        job.may_end.set()


def test_a_thread_that_idles_is_used_again(cache: ThreadCache) -> None:
    until_idle(cache, thread_of_next_job(cache))


def test_a_thread_that_idles_keeps_nothing_alive_of_what_it_ran(cache: ThreadCache) -> None:
    class Thing:
        gone = threading.Event()

        def __del__(self) -> None:
            self.gone.set()

    cache.submit(lambda _thing: None, Thing())
    assert Thing.gone.wait(BOUND)


@pytest.mark.parametrize("idle_time", [0.001, 0.02])
def test_a_thread_ends_when_it_has_idled_long_enough(idle_time: float) -> None:
    cache = ThreadCache(idle_time)
    for _ in range(3):
        thread = thread_of_next_job(cache)
        thread.join(BOUND)
        assert not thread.is_alive()
    assert retire(cache, 0.0)


def test_an_idle_time_of_ages_is_one() -> None:
    ages = ThreadCache(float(sys.maxsize))
    until_idle(ages, thread_of_next_job(ages))
    assert retire(ages, soon())


class LyingLock:
    """Says that it timed out, whatever happens, once the test has looked at that moment."""

    def __init__(self, instant: float = LONG) -> None:
        self.instant = instant
        self._real = threading.Lock()
        self.timed_out, self.go_on = threading.Event(), threading.Event()
        self.is_released = True

    def acquire(self, timeout: float = -1) -> bool:
        if timeout == self.instant:
            self.timed_out.set()
            assert self.go_on.wait(BOUND)
            return False
        return self._real.acquire(timeout=timeout if self.is_released else 0)

    def release(self) -> None:
        if self.is_released:
            self._real.release()


@pytest.fixture
def lying() -> Iterator[tuple[ThreadCache, LyingLock, threading.Thread]]:
    """A cache with one thread at the end of its idle time, which doesn't know that yet."""
    locks: list[Any] = []

    def new_lock() -> Any:
        locks.append(LyingLock())
        return locks[-1]

    cache = ThreadCache(LONG, new_lock)
    thread = thread_of_next_job(cache)
    assert locks[0].timed_out.wait(BOUND)
    yield cache, locks[0], thread
    for lock in locks:
        lock.go_on.set()
    assert retire(cache, soon())


def test_race_between_idle_exit_and_job_assignment(lying: Any) -> None:
    cache, lock, thread = lying
    ran: list[threading.Thread] = []
    cache.submit(lambda: ran.append(threading.current_thread()))  # it was chosen in this instant
    lock.go_on.set()
    until(lambda: ran)
    assert ran == [thread]
    thread.join(BOUND)  # the lock lies once more: this time there was no job
    assert not thread.is_alive()
    assert retire(cache, 0.0)


def test_race_between_idle_exit_and_retirement(lying: Any) -> None:
    cache, lock, thread = lying
    assert not retire(cache, 0.0)  # tells it to end, and has no time to wait
    lock.go_on.set()
    thread.join(BOUND)
    assert not thread.is_alive()
    assert retire(cache, soon())


def test_a_thread_that_was_chosen_by_a_call_that_broke_off_ends(lying: Any) -> None:
    cache, lock, thread = lying
    lock.is_released = False  # Ctrl-C came before
    cache.submit(lambda: None)
    lock.go_on.set()
    thread.join(BOUND)
    assert not thread.is_alive()


def test_a_thread_that_was_told_to_end_and_idles_for_an_instant_gets_no_job() -> None:
    locks = [LyingLock(0), LyingLock(0)]
    made: Any = iter(locks)
    cache = ThreadCache(LONG, lambda: next(made))
    (job,) = busy(cache)
    cache.dismiss()
    job.may_end.set()
    assert locks[0].timed_out.wait(BOUND)
    assert thread_of_next_job(cache) is not job.thread
    locks[0].go_on.set()
    job.end()
    assert retire(cache, soon())


def test_many_jobs_at_the_brink_of_idle_exit_run_once_each() -> None:
    cache = ThreadCache(0.000_1)
    ran: list[int] = []
    for number in range(2_000):
        cache.submit(ran.append, number)
        if number % 7 == 0:
            time.sleep(0.000_1)  # about the idle time: any order will do
    until(lambda: len(ran) == 2_000)
    assert sorted(ran) == list(range(2_000))
    assert retire(cache, soon())


@pytest.mark.parametrize("runs", [True, False], ids=["it runs", "it does not run yet"])
def test_a_thread_that_started_though_ctrl_c_came_meanwhile_is_not_forgotten(
    cache: ThreadCache, monkeypatch: pytest.MonkeyPatch, runs: bool
) -> None:
    start = threading.Thread.start
    made: list[threading.Thread] = []

    def interrupted(thread: threading.Thread) -> None:
        made.append(thread)
        if runs:
            start(thread)
        raise KeyboardInterrupt

    job = Job()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache.submit(job)
    if not runs:
        start(made[0])  # the system had it, and had not let it run
    assert job.begun.wait(BOUND)
    assert not retire(cache, 0.0)
    job.end()
    assert retire(cache, soon())


# -- retiring --------------------------------------------------------------------------------------


def test_retire_ends_idle_threads_and_later_jobs_start_new_ones(cache: ThreadCache) -> None:
    jobs = busy(cache, 5)
    for job in jobs:
        job.may_end.set()
    assert retire(cache, soon())
    assert not any(job.thread.is_alive() for job in jobs)
    assert thread_of_next_job(cache) not in [job.thread for job in jobs]


def test_retire_waits_for_those_at_work_until_the_deadline_and_they_end_after_it(
    cache: ThreadCache,
) -> None:
    (job,) = busy(cache)
    thread_of_next_job(cache)
    began = time.monotonic()
    assert not retire(cache, began + 0.05)
    assert 0.05 <= time.monotonic() - began < 5
    job.end()
    assert retire(cache, soon())


def test_a_thread_that_is_about_to_idle_while_all_retire_leaves(cache: ThreadCache) -> None:
    class Held:
        """Holds up its thread when the job is done and forgotten, just before it idles."""

        submitted, reached, go_on = threading.Event(), threading.Event(), threading.Event()
        thread = threading.current_thread()

        def __del__(self) -> None:
            Held.thread = threading.current_thread()
            self.reached.set()
            self.go_on.wait(BOUND)

    cache.submit(lambda _held: Held.submitted.wait(BOUND), Held())
    Held.submitted.set()  # from here on its thread has the only reference
    assert Held.reached.wait(BOUND)
    assert not retire(cache, 0.0)
    Held.go_on.set()
    Held.thread.join(BOUND)
    assert not Held.thread.is_alive()
    assert retire(cache, soon())


def test_a_thread_that_is_being_started_while_all_retire_leaves_after_its_job(
    cache: ThreadCache, in_thread: InThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start
    reached, go_on = threading.Event(), threading.Event()

    def held_up(thread: threading.Thread) -> None:
        if thread.name.startswith("valued-sender"):
            reached.set()
            assert go_on.wait(BOUND)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", held_up)
    job = Job()
    submitted = in_thread(cache.submit, job)
    assert reached.wait(BOUND)
    assert not retire(cache, soon())  # and doesn't wait: it can't be joined yet
    go_on.set()
    submitted.result(BOUND)
    assert job.begun.wait(BOUND)
    job.end()
    assert retire(cache, soon())


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="the kernel lists no threads")
def test_after_a_hundred_retirements_the_kernel_counted_no_thread_of_ours() -> None:
    process = psutil.Process()
    cache = ThreadCache(LONG)
    before = {thread.id for thread in process.threads()}
    for number in range(100):
        for job in busy(cache, 1 + number % 4):
            job.may_end.set()
        assert retire(cache, soon())
        assert {thread.id for thread in process.threads()} <= before


def test_retire_waits_until_the_kernel_has_forgotten_the_threads_too(
    cache: ThreadCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[object] = []
    missing = 3
    stat = os.stat

    def seen(path: Any, *args: Any, **options: Any) -> Any:
        if str(path).startswith("/proc/self/task/") and len(looks) < missing:
            looks.append(path)
            return stat("/")
        return stat(path, *args, **options)

    monkeypatch.setattr(os, "stat", seen)
    thread_of_next_job(cache)
    assert retire(cache, soon())
    assert len(looks) == 3
    missing = sys.maxsize
    thread_of_next_job(cache)
    began = time.monotonic()
    assert not retire(cache, began + 0.05)
    assert time.monotonic() - began < 5


# -- forks -----------------------------------------------------------------------------------------


def test_a_thread_that_finds_itself_in_a_child_neither_idles_nor_takes_jobs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = ThreadCache(LONG)
    threads: list[threading.Thread] = []

    def fork() -> None:
        threads.append(threading.current_thread())
        monkeypatch.setattr(os, "getpid", lambda: -1)

    cache.submit(fork)
    until(lambda: threads)
    threads[0].join(BOUND)
    assert not threads[0].is_alive()
    ran: list[int] = []
    cache.submit(ran.append, 1)  # a greenlet that the parent was just starting
    until(lambda: retire(cache, soon()))
    monkeypatch.undo()
    assert ran == []
    assert retire(cache, soon())


# -- where a process delivers ----------------------------------------------------------------------


@pytest.fixture
def threads() -> ThreadCache:
    return ThreadCache(LONG)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, "valued")
    return lambda: caplog.messages


CALLERS = AS_MANY_AS_CALLERS


@pytest.mark.parametrize(
    ("environment", "uwsgi", "limit", "warns"),
    [
        ("production", None, 10, False),
        ("development", None, 1, False),
        ("test", None, CALLERS, False),
        *((each, {"has_threads": 0}, CALLERS, True) for each in ("production", "test")),
        ("production", {"has_threads": 1}, 10, False),
        ("production", {"has_threads": 1, "masterpid": os.getpid}, CALLERS, False),
    ],
)
def test_where_events_are_sent_if_no_executor_is_given(
    environment: str,
    uwsgi: dict[str, Any] | None,
    limit: int,
    warns: bool,
    threads: ThreadCache,
    monkeypatch: pytest.MonkeyPatch,
    warnings: Callable[[], list[str]],
) -> None:
    """On a pool, or (as many as callers) in the call. Python's own names are uWSGI's here."""
    monkeypatch.setenv("VALUED_ENV", environment)
    if uwsgi is not None:
        module: Any = types.SimpleNamespace(**{"masterpid": lambda: 0, **uwsgi})
        monkeypatch.setitem(sys.modules, "uwsgi", module)
    plan = plan_for(Options(), None, threads)
    in_call = limit == CALLERS
    assert (plan.limit, plan.immediate, plan.gradual) == (limit, in_call, not in_call)
    assert isinstance(plan.executor, ImmediateExecutor if in_call else ThreadCache)
    assert ["enable-threads" in line for line in warnings()] == [True] * warns
    assert plan_for(Options(max_workers=4), None, threads).limit == (CALLERS if in_call else 4)


def test_threads_of_a_uwsgi_worker_get_no_signal_and_their_maker_keeps_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "uwsgi", types.ModuleType("uwsgi"))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    masks: list[set[int]] = []
    cache = ThreadCache(LONG)
    cache.submit(lambda: masks.append(set(signal.pthread_sigmask(signal.SIG_BLOCK, []))))
    until(lambda: masks)
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGHUP} <= masks[0]
    assert signal.SIGSEGV not in masks[0]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    assert retire(cache, soon())


@pytest.mark.parametrize("max_workers", [None, 2])
@pytest.mark.parametrize("kind", ["function", "class", "instance"])
def test_an_instance_stays_the_users_and_what_a_function_or_a_class_makes_is_ours(
    kind: str, max_workers: int | None, threads: ThreadCache
) -> None:
    with ThreadPoolExecutor(1) as pool:
        given = {"function": lambda: pool, "class": ThreadPoolExecutor, "instance": pool}[kind]
        plan = plan_for(Options(max_workers=max_workers), ExecutorSpec(given), threads)
    assert (plan.executor is pool) is (kind != "class")
    expected = ExecutorPlan(
        plan.executor, max_workers or DEFAULT_WORKERS, burst=1, owned=kind != "instance"
    )
    assert plan == expected
    assert DEFAULT_WORKERS == 10


def test_a_factory_that_makes_no_executor_is_named_and_what_it_raises_is_raised(
    threads: ThreadCache,
) -> None:
    with pytest.raises(valued.ValidationError, match="the factory made a list, which has no sub"):
        plan_for(Options(), ExecutorSpec(list), threads)  # type: ignore[arg-type]

    def factory() -> ThreadPoolExecutor:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        plan_for(Options(), ExecutorSpec(factory), threads)


def test_an_instance_made_before_a_fork_is_not_used_in_the_child_which_is_logged(
    threads: ThreadCache, warnings: Callable[[], list[str]], fork: Fork
) -> None:
    with ThreadPoolExecutor(1) as pool:
        given = ExecutorSpec(pool)
        immediate = ExecutorSpec(ImmediateExecutor())
        set_executor(pool)

        def check() -> None:
            assert plan_for(Options(), immediate, threads).immediate  # it has no threads to miss
            assert warnings() == []
            plan = plan_for(Options(), given, threads)
            assert plan == ExecutorPlan(threads, DEFAULT_WORKERS, gradual=True)
            (warning,) = warnings()
            assert "ThreadPoolExecutor" in warning
            assert "executor=lambda: ThreadPoolExecutor(5)" in warning
            assert plan_for(Options(), None, threads).gradual  # the default one, likewise
            assert len(warnings()) == 2

        assert fork(check).wait() == 0
        assert plan_for(Options(), given, threads).executor is pool
        assert warnings() == []


@pytest.mark.parametrize("executor", [5, "pool", object(), types.SimpleNamespace(submit=5)])
def test_what_is_no_executor_is_refused_and_the_default_stays(
    executor: Any, threads: ThreadCache
) -> None:
    set_executor(ImmediateExecutor())
    with pytest.raises(valued.ValidationError, match=r"has no submit\(fn, \*args\)"):
        set_executor(executor)
    assert plan_for(Options(), None, threads).immediate


def test_the_immediate_executor_calls_and_passes_on_what_that_raises() -> None:
    got: list[Any] = []
    ImmediateExecutor().submit(lambda *args: got.append((args, threading.get_ident())), 1, 2)
    assert got == [((1, 2), threading.get_ident())]
    with pytest.raises(ZeroDivisionError):
        ImmediateExecutor().submit(divmod, 1, 0)
    assert repr(ImmediateExecutor()) == "ImmediateExecutor()"
