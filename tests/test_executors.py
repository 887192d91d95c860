"""Where deliveries run: the threads of ours, the user's executors, the caller."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psutil
import pytest

import valued
from tests.support.processes import Child, until
from tests.support.server import Reply, Request, Server
from valued import ImmediateExecutor, set_executor
from valued._delivery import executors as _executors
from valued._delivery.executors import (
    AS_MANY_AS_CALLERS,
    DEFAULT_WORKERS,
    Given,
    Staffing,
    ThreadCache,
    default_pool,
    staffing,
)
from valued._options import Options

BOUND = 10.0  # seconds; bounds a failure
LONG = 3600.0  # seconds; nothing here idles so long

# It is what is tested here: a fork while threads run.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

InThread = Callable[..., "Future[Any]"]
Fork = Callable[..., Child]


def soon(seconds: float = BOUND) -> float:
    return time.monotonic() + seconds


@pytest.fixture
def cache() -> Iterator[ThreadCache]:
    cache = ThreadCache(LONG)
    yield cache
    assert cache.retire(soon())


class Job:
    """A job that says when it began, and ends when it may."""

    def __init__(self) -> None:
        self.begun, self.may_end, self.thread = threading.Event(), threading.Event(), None

    def __call__(self) -> None:
        self.thread: threading.Thread | None = threading.current_thread()
        self.begun.set()
        assert self.may_end.wait(BOUND)


def run(cache: ThreadCache) -> threading.Thread:
    """Run a job to its end, and wait until its thread idles, or has ended; that thread."""
    done: list[threading.Thread] = []
    cache.submit(lambda: done.append(threading.current_thread()))
    until(lambda: done and (not done[0].is_alive() or any_idle(cache, done[0])))
    return done[0]


def any_idle(cache: ThreadCache, thread: threading.Thread) -> bool:
    return any(worker.thread is thread for worker in list(cache._idle))


def busy(cache: ThreadCache, count: int = 1) -> list[Job]:
    jobs = [Job() for _ in range(count)]
    for job in jobs:
        cache.submit(job)
    for job in jobs:
        assert job.begun.wait(BOUND)
    return jobs


# -- threads ---------------------------------------------------------------------------------------


def test_a_job_runs_on_a_daemon_thread_with_a_name_of_ours_and_gets_its_arguments(
    cache: ThreadCache,
) -> None:
    got: list[Any] = []
    done = threading.Event()

    def job(*args: int) -> None:
        got.append((args, threading.current_thread().name, threading.current_thread().daemon))
        done.set()

    cache.submit(job, 1, 2)
    assert done.wait(BOUND)
    assert got == [((1, 2), "valued-sender-1", True)]


def test_nothing_is_started_before_the_first_job() -> None:
    before = threading.active_count()
    ThreadCache(LONG)
    assert threading.active_count() == before


def test_jobs_at_the_same_time_have_a_thread_each_however_many_they_are(
    cache: ThreadCache,
) -> None:
    jobs = busy(cache, 30)
    assert len({job.thread for job in jobs}) == 30
    for job in jobs:
        job.may_end.set()


def test_a_thread_that_idles_is_used_again(cache: ThreadCache) -> None:
    assert len({run(cache) for _ in range(20)}) == 1


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
        thread = run(cache)
        thread.join(BOUND)
        assert not thread.is_alive()
        until(lambda: not cache._workers)
        assert not cache._idle


def test_an_idle_time_of_ages_is_one() -> None:
    ages = ThreadCache(float(sys.maxsize))
    assert len({run(ages) for _ in range(3)}) == 1
    assert ages.retire(soon())


class LyingLock:
    """Says that it timed out, whatever happens, once somebody has looked at that moment."""

    def __init__(self) -> None:
        self._real = threading.Lock()
        self.timed_out, self.go_on = threading.Event(), threading.Event()

    def acquire(self, timeout: float = -1) -> bool:
        if timeout == LONG:
            self.timed_out.set()
            assert self.go_on.wait(BOUND)
            return False
        return self._real.acquire(timeout=timeout)

    def release(self) -> None:
        self._real.release()


class DoubtfulWorker(_executors._Worker):
    """A worker whose lock lies."""

    def __init__(self, job: Callable[[], object]) -> None:
        super().__init__(job)
        self.wake: Any = LyingLock()
        self.wake.acquire()


@pytest.fixture
def lying(cache: ThreadCache, monkeypatch: pytest.MonkeyPatch) -> LyingLock:
    """The lock of a worker that is at the end of its idle time, and doesn't know yet."""
    monkeypatch.setattr(_executors, "_Worker", DoubtfulWorker)
    run(cache)
    (worker,) = cache._idle
    lock: Any = worker.wake
    assert lock.timed_out.wait(BOUND)
    return lock


def test_race_between_idle_exit_and_job_assignment(cache: ThreadCache, lying: LyingLock) -> None:
    (worker,) = cache._idle
    ran: list[threading.Thread] = []
    done = threading.Event()

    def job() -> None:
        ran.append(threading.current_thread())
        done.set()

    cache.submit(job)  # taken from the list in this instant
    lying.go_on.set()
    assert done.wait(BOUND)
    assert ran == [worker.thread]
    until(lambda: not worker.thread.is_alive())  # it lies once more: this time nobody took it
    assert not cache._idle
    assert not cache._workers


def test_race_between_idle_exit_and_retirement(cache: ThreadCache, lying: LyingLock) -> None:
    (worker,) = cache._idle
    assert not cache.retire(0.0)  # takes it from the list, and has no time to wait
    assert not cache._idle
    lying.go_on.set()
    worker.thread.join(BOUND)
    assert not worker.thread.is_alive()
    assert cache.retire(soon())


def test_a_job_after_an_idle_exit_has_a_new_thread(cache: ThreadCache, lying: LyingLock) -> None:
    (worker,) = cache._idle
    lying.go_on.set()
    worker.thread.join(BOUND)
    assert run(cache) is not worker.thread
    cache._idle[0].wake.go_on.set()


def test_many_jobs_at_the_brink_of_idle_exit_run_once_each() -> None:
    cache = ThreadCache(0.000_1)
    ran: list[int] = []
    for number in range(2_000):
        cache.submit(ran.append, number)
        if number % 7 == 0:
            time.sleep(0.000_1)  # about the idle time: no order is waited for, all are welcome
    until(lambda: len(ran) == 2_000)
    assert sorted(ran) == list(range(2_000))
    assert cache.retire(soon())


# -- no thread can be started ----------------------------------------------------------------------


@pytest.fixture
def no_room() -> Iterator[Callable[[], None]]:
    """No memory for the stack of a new thread: the real thing."""
    before = threading.stack_size(1 << 46)
    yield lambda: None if threading.stack_size() == before else threading.stack_size(before)
    threading.stack_size(before)


def test_where_no_thread_can_be_started_the_job_is_refused_and_nothing_is_left(
    no_room: Callable[[], None],
) -> None:
    cache = ThreadCache(LONG)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        cache.submit(print)
    assert not cache._workers
    assert not cache._idle
    assert cache.retire(0.0)
    no_room()
    assert run(cache).name == "valued-sender-2"
    assert cache.retire(soon())


def test_a_thread_that_started_though_ctrl_c_came_meanwhile_is_not_forgotten(
    cache: ThreadCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    job = Job()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache.submit(job)
    assert job.begun.wait(BOUND)
    assert not cache.retire(0.0)
    job.may_end.set()
    assert cache.retire(soon())
    assert job.thread is not None
    assert not job.thread.is_alive()


def test_a_thread_that_had_not_come_to_life_when_ctrl_c_came_is_not_forgotten_either(
    cache: ThreadCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start
    made: list[threading.Thread] = []

    def interrupted(thread: threading.Thread) -> None:
        made.append(thread)  # the system has it, and has not let it run yet
        raise KeyboardInterrupt

    job = Job()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache.submit(job)
    start(made[0])
    assert job.begun.wait(BOUND)
    assert not cache.retire(0.0)
    job.may_end.set()
    assert cache.retire(soon())


# -- retiring --------------------------------------------------------------------------------------


def test_retire_ends_idle_threads_and_later_jobs_start_new_ones(cache: ThreadCache) -> None:
    for job in (jobs := busy(cache, 5)):
        job.may_end.set()
    until(lambda: len(cache._idle) == 5)
    assert cache.retire(soon())
    assert not any(job.thread and job.thread.is_alive() for job in jobs)
    assert not cache._workers
    assert not cache._idle
    assert run(cache).is_alive()


def test_retire_waits_for_those_at_work_until_the_deadline_and_they_end_after_it(
    cache: ThreadCache,
) -> None:
    (job,) = busy(cache)
    run(cache)
    started = time.monotonic()
    assert not cache.retire(started + 0.05)
    assert 0.05 <= time.monotonic() - started < 2
    job.may_end.set()
    assert job.thread is not None
    job.thread.join(BOUND)
    assert not job.thread.is_alive()
    assert cache.retire(0.0)


def test_retire_from_a_thread_of_the_cache_counts_that_one_and_it_ends_after_its_job(
    cache: ThreadCache,
) -> None:
    found: list[Any] = []
    idle = run(cache)
    job = Job()  # so that the next one needs a thread of its own
    cache.submit(job)
    assert job.begun.wait(BOUND)
    job.may_end.set()
    until(lambda: any_idle(cache, idle))
    other = busy(cache)[0]

    def retire() -> None:
        found.append((cache.retire(soon()), threading.current_thread()))

    other.may_end.set()
    until(lambda: any_idle(cache, idle))
    cache.submit(retire)
    until(lambda: found)
    ((all_ended, thread),) = found
    assert not all_ended
    thread.join(BOUND)
    assert not thread.is_alive()
    assert cache.retire(0.0)


class HeldUp(list[Any]):
    """The list of those who idle; `append` says when it is reached, and waits."""

    def __init__(self, *, before: bool) -> None:
        super().__init__()
        self.before = before
        self.reached, self.go_on = threading.Event(), threading.Event()

    def append(self, worker: Any) -> None:
        if not self.before:
            super().append(worker)
        self.reached.set()
        assert self.go_on.wait(BOUND)
        if self.before:
            super().append(worker)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_a_thread_that_is_about_to_idle_while_all_retire_leaves(
    cache: ThreadCache, before: bool
) -> None:
    idle = cache._idle = HeldUp(before=before)
    (job,) = busy(cache)
    job.may_end.set()
    assert idle.reached.wait(BOUND)
    assert not cache.retire(0.0)  # all but the waiting is done now
    idle.go_on.set()
    assert job.thread is not None
    job.thread.join(BOUND)
    assert not job.thread.is_alive()
    assert cache.retire(0.0)
    assert not idle


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
    job.may_end.set()
    submitted = in_thread(cache.submit, job)
    assert reached.wait(BOUND)
    assert not cache.retire(soon())  # and doesn't wait: it can't be joined yet
    go_on.set()
    submitted.result(BOUND)
    assert job.begun.wait(BOUND)
    assert job.thread is not None
    job.thread.join(BOUND)
    assert not job.thread.is_alive()
    assert cache.retire(0.0)


def test_two_who_retire_at_once_share_the_last_idle_thread(cache: ThreadCache) -> None:
    class TakenMeanwhile(list[Any]):
        def __bool__(self) -> bool:
            return True

    cache._idle = TakenMeanwhile()
    assert cache.retire(0.0)
    cache._idle = []


def test_whoever_saw_all_threads_end_is_told_so_once_the_kernel_agrees(
    cache: ThreadCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[set[int]] = []

    def still_there(ids: set[int]) -> bool:
        looks.append(ids)
        return len(looks) < 3

    monkeypatch.setattr(_executors, "has_os_threads", still_there)
    thread = run(cache)
    assert cache.retire(soon())
    assert looks == [{thread.native_id}] * 3
    looks.clear()
    monkeypatch.setattr(_executors, "has_os_threads", lambda _ids: True)
    run(cache)
    started = time.monotonic()
    assert not cache.retire(started + 0.05)
    assert time.monotonic() - started < 2


def test_greenlets_which_share_their_thread_with_the_caller_are_not_looked_for(
    cache: ThreadCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_executors, "has_os_threads", lambda ids: pytest.fail(str(ids)))
    thread = run(cache)
    monkeypatch.setattr(threading, "get_native_id", lambda: thread.native_id)
    assert cache.retire(soon())


def test_after_two_hundred_retirements_the_kernel_counted_no_thread_of_ours() -> None:
    process = psutil.Process()
    cache = ThreadCache(LONG)
    before = {thread.id for thread in process.threads()}
    for round in range(200):
        jobs = busy(cache, 1 + round % 4)
        for job in jobs:
            job.may_end.set()
        assert cache.retire(soon())
        assert {thread.id for thread in process.threads()} <= before


# -- forks -----------------------------------------------------------------------------------------


def test_a_child_that_a_job_forked_ends_with_that_job() -> None:
    cache = ThreadCache(LONG)
    forked: list[int] = []
    done = threading.Event()

    def job() -> None:
        pid = os.fork()
        if pid:
            forked.append(pid)
            done.set()

    cache.submit(job)
    assert done.wait(BOUND)
    (pid,) = forked
    ended: list[tuple[int, int]] = []

    def has_ended() -> bool:
        ended.append(os.waitpid(pid, os.WNOHANG))
        return ended[-1][0] == pid

    try:
        until(has_ended)
    except AssertionError:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        raise
    assert ended[-1][1] == 0
    assert cache.retire(soon())


def test_a_worker_of_another_process_neither_idles_nor_takes_jobs(fork: Fork) -> None:
    cache = ThreadCache(LONG)
    ran: list[int] = []

    def check() -> None:
        cache._run(_executors._Worker(lambda: ran.append(1)), 0)
        assert ran == []
        assert not cache._idle
        assert not cache._workers

    assert fork(check).wait() == 0
    assert ran == []


# -- how a process is staffed ----------------------------------------------------------------------


@pytest.fixture
def threads() -> ThreadCache:
    return ThreadCache(LONG)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, "valued")
    return lambda: [record.getMessage() for record in caplog.records]


def test_the_default_is_a_pool_of_ten_by_load(threads: ThreadCache) -> None:
    expected = Staffing(threads, DEFAULT_WORKERS, by_load=True)
    assert DEFAULT_WORKERS == 10
    assert staffing(Options(), None, threads) == expected
    assert staffing(Options(max_workers=3), None, threads).limit == 3
    assert default_pool(Options(), threads) == expected


def test_in_development_it_is_one_thread_unless_told_otherwise(
    threads: ThreadCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUED_ENV", "development")
    assert staffing(Options(), None, threads) == Staffing(threads, 1, by_load=True)
    assert staffing(Options(max_workers=4), None, threads).limit == 4


def test_in_a_test_events_are_sent_in_the_caller_unless_an_executor_is_given(
    threads: ThreadCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUED_ENV", "test")
    hired = staffing(Options(max_workers=2), None, threads)
    assert isinstance(hired.executor, ImmediateExecutor)
    assert (hired.limit, hired.immediate, hired.by_load) == (AS_MANY_AS_CALLERS, True, False)
    with ThreadPoolExecutor(1) as pool:
        assert staffing(Options(), Given(pool), threads).executor is pool


@pytest.mark.parametrize("environment", ["production", "development", "test"])
def test_in_uwsgi_without_threads_events_are_sent_in_the_caller_which_is_said(
    threads: ThreadCache,
    monkeypatch: pytest.MonkeyPatch,
    warnings: Callable[[], list[str]],
    environment: str,
) -> None:
    monkeypatch.setenv("VALUED_ENV", environment)
    uwsgi = types.SimpleNamespace(has_threads=0, masterpid=lambda: 0)
    monkeypatch.setitem(sys.modules, "uwsgi", uwsgi)  # type: ignore[arg-type]
    hired = staffing(Options(), None, threads)
    assert hired.immediate
    (warning,) = warnings()
    assert "enable-threads" in warning


def test_in_uwsgi_with_threads_nothing_is_different_in_a_worker(
    threads: ThreadCache, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    uwsgi = types.SimpleNamespace(has_threads=1, masterpid=lambda: 0)
    monkeypatch.setitem(sys.modules, "uwsgi", uwsgi)  # type: ignore[arg-type]
    assert staffing(Options(), None, threads).by_load
    assert warnings() == []


def test_in_a_uwsgi_master_the_caller_sends(
    threads: ThreadCache, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    uwsgi = types.SimpleNamespace(has_threads=1, masterpid=os.getpid)
    monkeypatch.setitem(sys.modules, "uwsgi", uwsgi)  # type: ignore[arg-type]
    assert staffing(Options(), None, threads).immediate
    assert warnings() == []


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


def test_an_instance_is_used_as_it_is_and_stays_the_users(threads: ThreadCache) -> None:
    with ThreadPoolExecutor(1) as pool:
        hired = staffing(Options(), Given(pool), threads)
        assert hired == Staffing(pool, DEFAULT_WORKERS, burst=1)
        assert staffing(Options(max_workers=2), Given(pool), threads).limit == 2


def test_a_function_and_a_class_are_factories_of_executors_that_are_ours(
    threads: ThreadCache,
) -> None:
    made: list[ThreadPoolExecutor] = []

    def factory() -> ThreadPoolExecutor:
        made.append(ThreadPoolExecutor(2))
        return made[-1]

    hired = staffing(Options(), Given(factory), threads)
    assert made == [hired.executor]
    assert hired.owned
    assert hired.burst == 1
    hired = staffing(Options(), Given(ThreadPoolExecutor), threads)
    assert isinstance(hired.executor, ThreadPoolExecutor)
    assert hired.owned
    immediate = staffing(Options(), Given(ImmediateExecutor), threads)
    assert isinstance(immediate.executor, ImmediateExecutor)
    assert immediate.immediate


def test_a_factory_that_makes_no_executor_is_named(threads: ThreadCache) -> None:
    with pytest.raises(valued.ValidationError, match="the factory made a list, which has no sub"):
        staffing(Options(), Given(list), threads)  # type: ignore[arg-type]


def test_what_a_factory_raises_is_raised(threads: ThreadCache) -> None:
    def factory() -> ThreadPoolExecutor:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        staffing(Options(), Given(factory), threads)


def test_an_instance_made_before_a_fork_is_not_used_in_the_child_which_is_said(
    threads: ThreadCache, warnings: Callable[[], list[str]], fork: Fork
) -> None:
    with ThreadPoolExecutor(1) as pool:
        given = Given(pool)
        immediate = Given(ImmediateExecutor())
        set_executor(pool)

        def check() -> None:
            assert staffing(Options(), immediate, threads).immediate  # it has no threads to miss
            assert warnings() == []
            hired = staffing(Options(), given, threads)
            assert hired == Staffing(threads, DEFAULT_WORKERS, by_load=True)
            (warning,) = warnings()
            assert "ThreadPoolExecutor" in warning
            assert "executor=lambda: ThreadPoolExecutor(5)" in warning
            assert staffing(Options(), None, threads).by_load  # the default one, likewise
            assert len(warnings()) == 2

        assert fork(check).wait() == 0
        assert staffing(Options(), given, threads).executor is pool
        assert warnings() == []


def test_the_default_executor_counts_where_a_client_names_none(threads: ThreadCache) -> None:
    with ThreadPoolExecutor(1) as pool, ThreadPoolExecutor(1) as other:
        set_executor(pool)
        assert staffing(Options(), None, threads).executor is pool
        assert staffing(Options(), Given(other), threads).executor is other
        set_executor(ImmediateExecutor)
        assert staffing(Options(), None, threads).immediate
        set_executor(lambda: other)
        assert staffing(Options(), None, threads) == Staffing(
            other, DEFAULT_WORKERS, burst=1, owned=True
        )
        set_executor(None)
        assert staffing(Options(), None, threads).by_load


@pytest.mark.parametrize("executor", [5, "pool", object(), types.SimpleNamespace(submit=5)])
def test_what_is_no_executor_is_refused_and_the_default_stays(
    executor: Any, threads: ThreadCache
) -> None:
    set_executor(ImmediateExecutor())
    with pytest.raises(valued.ValidationError, match=r"has no submit\(fn, \*args\)"):
        set_executor(executor)
    assert staffing(Options(), None, threads).immediate


def test_the_immediate_executor_calls_and_passes_on_what_that_raises() -> None:
    got: list[Any] = []
    executor = ImmediateExecutor()
    assert executor.submit(lambda *args: got.append((args, threading.get_ident())), 1, 2) is None
    assert got == [((1, 2), threading.get_ident())]
    with pytest.raises(ZeroDivisionError):
        executor.submit(divmod, 1, 0)
    assert repr(executor) == "ImmediateExecutor()"


# -- the user's executors, in a client -------------------------------------------------------------


def send(client: valued.Client, *keys: str) -> None:
    for key in keys:
        client.action(key, {"user.id": 1})


@pytest.fixture
def gate(server: Server) -> Iterator[threading.Event]:
    """The service answers once this is set."""
    opened = threading.Event()

    def wait(_request: Request) -> Reply:
        assert opened.wait(BOUND)
        return Reply()

    server.script = wait
    yield opened
    opened.set()


def test_an_executor_that_was_shut_down_before_is_replaced_with_one_warning(
    server: Server, warnings: Callable[[], list[str]]
) -> None:
    pool = ThreadPoolExecutor(2)
    pool.shutdown()
    with valued.Client("token", server.url, executor=pool) as client:
        send(client, *"abcdef")
        assert client.flush(BOUND)
        assert client.stats()["delivered"] == 6
    assert server.keys() == [*"abcdef"]
    (warning,) = warnings()
    assert "ThreadPoolExecutor" in warning
    assert "default pool" in warning


def test_an_executor_that_is_shut_down_while_events_wait_loses_none(
    server: Server, gate: threading.Event
) -> None:
    pool = ThreadPoolExecutor(2)
    with valued.Client("token", server.url, executor=pool, max_workers=2) as client:
        send(client, *"abcdef")
        server.wait_for(2)
        pool.shutdown(wait=False)
        send(client, *"gh")
        gate.set()
        assert client.flush(BOUND)
        send(client, "i")
        assert client.flush(BOUND)
    assert server.keys() == [*"abcdefghi"]


def test_jobs_that_an_executor_cancelled_lose_no_event(
    server: Server, gate: threading.Event
) -> None:
    pool = ThreadPoolExecutor(1)
    with valued.Client("token", server.url, executor=pool) as client:
        send(client, *"abcdefghijklmnopqrst")
        server.wait_for(1)  # one is being sent, nine jobs wait, ten events have none yet
        pool.shutdown(wait=False, cancel_futures=True)
        gate.set()
        assert client.flush(BOUND)
        assert client.stats()["delivered"] == 20
    assert server.keys() == [*"abcdefghijklmnopqrst"]


def test_jobs_that_an_executor_cancelled_are_one_warning(
    server: Server, gate: threading.Event, warnings: Callable[[], list[str]]
) -> None:
    pool = ThreadPoolExecutor(1)
    with valued.Client("token", server.url, executor=pool) as client:
        send(client, *"abcdef")
        server.wait_for(1)
        pool.shutdown(wait=False, cancel_futures=True)
        gate.set()
        assert client.flush(BOUND)
    (warning,) = warnings()
    assert "default pool" in warning


def test_a_factory_is_called_once_in_each_process_and_what_it_made_is_shut_down_by_close(
    server: Server, fork: Fork
) -> None:
    made: list[ThreadPoolExecutor] = []

    def factory() -> ThreadPoolExecutor:
        made.append(ThreadPoolExecutor(3))
        return made[-1]

    client = valued.Client("token", server.url, executor=factory)
    assert made == []
    send(client, *"abc")
    assert client.flush(BOUND)
    assert len(made) == 1

    def child() -> None:
        made.clear()
        send(client, *"def")
        assert client.flush(BOUND)
        send(client, "g")
        assert client.close(BOUND)
        assert len(made) == 1
        assert is_shut_down(made[0])

    assert fork(child).wait() == 0
    assert not is_shut_down(made[0])
    send(client, "h")
    assert client.close(BOUND)
    assert len(made) == 1
    assert is_shut_down(made[0])
    send(client, "i")  # a client that was closed and is used again has a new one
    assert client.close(BOUND)
    assert len(made) == 2
    assert server.keys() == [*"abcdefghi"]


def is_shut_down(pool: ThreadPoolExecutor) -> bool:
    try:
        pool.submit(int)
    except RuntimeError:
        return True
    return False


def test_an_executor_that_others_use_is_shared_fairly_and_not_shut_down(
    server: Server, gate: threading.Event
) -> None:
    with ThreadPoolExecutor(1) as pool:
        with valued.Client("token", server.url, executor=pool, max_workers=2) as client:
            send(client, *[f"event-{number:02}" for number in range(30)])
            server.wait_for(1)
            others = pool.submit(lambda: len(server.requests))
            gate.set()
            assert others.result(BOUND) <= 3  # not behind all 30
            assert client.flush(BOUND)
        assert len(server.requests) == 30
        assert pool.submit(int).result(BOUND) == 0


def test_a_child_of_a_client_with_an_instance_warns_once_and_sends(
    server: Server, fork: Fork, warnings: Callable[[], list[str]]
) -> None:
    with ThreadPoolExecutor(1) as pool:
        client = valued.Client("token", server.url, executor=pool)
        send(client, "parent")
        assert client.flush(BOUND)

        def child() -> None:
            send(client, *"abcdef")
            assert client.flush(BOUND)
            send(client, "g")
            assert client.close(BOUND)
            (warning,) = warnings()
            assert "executor=lambda" in warning

        assert fork(child).wait() == 0
        assert client.close(BOUND)
    assert server.keys() == [*"abcdefg", "parent"]
    assert warnings() == []
