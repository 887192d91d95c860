"""Processes that end, each by a road of its own, with events that nobody flushed: URL ROAD."""

import atexit
import gc
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import valued
from valued._delivery.queue import Queue
from valued._process import signals as _signals

URL, ROAD = sys.argv[1:]
signal.signal(signal.SIGTERM, signal.SIG_DFL)  # where coverage is measured, it has a handler there


def made(**options: Any) -> valued.Client:
    return valued.Client("token", URL, **options)


def record(*keys: str, by: valued.Client | None = None) -> None:
    for key in keys:
        (by or client).action(key, {"user.id": 1})


client = made()  # nothing is registered for it before its first event


def in_child(function: Callable[[], object], status: int = 0) -> None:
    """Fork; the child calls *function*, and ends as any program, with this *status*."""
    if pid := os.fork():
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert ended == status, ended
    else:
        function()


def on_a_thread(function: Callable[..., object], *args: Any) -> None:
    thread = threading.Thread(target=function, args=args)
    thread.start()
    thread.join()


def end_of_script() -> None:
    record("one", "two")


def many() -> None:
    record(*map(str, range(60)))


def sys_exit() -> None:
    record("one", "two")
    sys.exit(3)


def exception() -> None:
    record("one", "two")
    raise ZeroDivisionError


def immediate_with_a_retry() -> None:
    # The server refuses the first attempt, and there is no thread to make the second.
    record("refused once", by=made(executor=valued.ImmediateExecutor()))


def retry_pause() -> None:
    # The server refuses the first attempt for a minute; the end of the process is sooner.
    record("refused once")
    while client._sender._here.peek()._queue.next_due() is None:
        time.sleep(0.002)


def first_event_in_an_atexit_handler() -> None:
    atexit.register(record, "one", "two")


def first_event_of_a_thread_that_outlives_the_main_one() -> None:
    """It may go on for days, so the end, for which a tenth of a second is allowed, is not now."""
    hasty = made(shutdown_timeout=0.1)

    def work() -> None:
        threading.main_thread().join()
        for key in ("one", "two"):
            record(key, by=hasty)
            assert hasty.flush(10)

    threading.Thread(target=work).start()


def first_event_of_a_thread_that_outlives_the_main_one_of_a_child() -> None:
    """Nothing is called at the end of the child any more; it ends by `os._exit`, up to 3.12."""

    def work() -> None:
        threading.main_thread().join()
        record("one", "two")

    child = multiprocessing.get_context("fork").Process(
        target=lambda: threading.Thread(target=work).start()
    )
    child.start()
    child.join()


def event_in_an_atexit_handler_that_runs_after_ours() -> None:
    atexit.register(record, "two")  # registered before ours, so called after it
    record("one")


def executor_that_is_shut_before_atexit() -> None:
    keys = (f"event {number}" for number in range(20))
    record(*keys, by=made(executor=ThreadPoolExecutor(1)))


def executor_that_is_shut_and_an_event_after_it() -> None:
    client = made(executor=lambda: ThreadPoolExecutor(1))
    record("one", by=client)
    atexit.register(record, "two", by=client)


def client_that_is_gone() -> None:
    record("one", by=made())
    record("two", by=made())
    gc.collect()


def fork_and_sys_exit() -> None:
    record("parent")
    in_child(lambda: record("child") or sys.exit(0))


def fork_and_end_of_script() -> None:
    record("parent")
    in_child(lambda: record("child"))


def fork_without_an_event() -> None:
    record("parent")
    in_child(lambda: None)


def fork_inside_an_atexit_handler() -> None:
    atexit.register(in_child, lambda: record("child"))
    record("parent")


# -- signals ---------------------------------------------------------------------------------------


def end_by_sigterm() -> None:
    signal.raise_signal(signal.SIGTERM)
    time.sleep(30)  # ended by the signal, that is


def sigint() -> None:
    record("one")
    signal.raise_signal(signal.SIGINT)


def sigterm_with_a_handler_that_exits() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
    record("one")
    signal.raise_signal(signal.SIGTERM)


def sigterm() -> None:
    valued.flush_on_signals()
    record("one")
    end_by_sigterm()


def first_event_at_the_end_without_threads() -> None:
    """As on Python 3.12; the service does not answer."""
    late = made(shutdown_timeout=0.5)

    def at_the_end() -> None:
        threading.stack_size(1 << 46)  # for which there is no memory
        record("one", by=late)

    logging.disable()
    atexit.register(at_the_end)


def no_thread_can_be_started_when_the_main_thread_is_over() -> None:
    """As on Python 3.12. A server, for example, may go on for days."""

    def work() -> None:
        threading.main_thread().join()
        threading.stack_size(1 << 46)  # for which there is no memory
        record("one")
        record("two")
        # Each call has sent its event, as nothing else could before the end.
        assert client.stats()["delivered"] == 2, client.stats()
        assert not client.stats()["pending"]

    logging.disable()  # where the version of Python is no reason, it is logged
    threading.Thread(target=work).start()


def sigterm_when_the_main_thread_is_over() -> None:
    """It waits for another one, and Python 3.12 lets no thread start meanwhile."""
    valued.flush_on_signals()
    said = threading.Event()

    class Handler(logging.StreamHandler):
        def emit(self, record: logging.LogRecord) -> None:
            super().emit(record)
            said.set()

    logging.getLogger("valued").addHandler(Handler())

    def work() -> None:
        threading.main_thread().join()
        record("refused once")
        said.wait(30)  # that it is postponed, and then the end may well be faster than the line
        # To that thread: Python does not wake it for a signal that came to another one.
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
        time.sleep(30)

    threading.Thread(target=work).start()


def sigterm_inside_action() -> None:
    """The signal comes while its own thread holds the lock of the queue."""
    valued.flush_on_signals()
    record("one")
    assert client.flush(10)
    queue = client._sender._here.peek()._queue
    absorb = queue.absorb

    def interrupted() -> None:
        queue.absorb = absorb
        if threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGTERM)
        absorb()

    queue.absorb = interrupted
    record("two")
    time.sleep(30)


def sigterm_inside_a_thread_start() -> None:
    """The signal comes while its own thread holds the lock that starting a thread takes."""
    valued.flush_on_signals(signal.SIGTERM)
    record("one")
    with threading._active_limbo_lock:
        signal.raise_signal(signal.SIGTERM)
    time.sleep(30)


def sigterm_in_a_forked_child() -> None:
    valued.flush_on_signals()
    record("parent")
    in_child(lambda: record("child") or end_by_sigterm(), -signal.SIGTERM)


def sigterm_while_the_process_ends() -> None:
    valued.flush_on_signals()
    record("one")
    atexit.register(end_by_sigterm)


def sigterm_that_the_main_thread_does_not_notice() -> None:
    """It waits in C, where nothing interrupts it: the signal came an instant before."""
    valued.flush_on_signals()
    record("one")
    lock = threading.Lock()
    main = threading.main_thread().ident

    def signalling(line: int) -> None:
        while sys._current_frames()[main].f_lineno != line:
            time.sleep(0.001)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    lock.acquire()
    waits = sys._getframe().f_lineno + 2
    threading.Thread(target=signalling, args=(waits,)).start()
    lock.acquire()


def sigterm_with_a_handler_that_was_there() -> None:
    called = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: called.set())
    valued.flush_on_signals()
    record("one")
    signal.raise_signal(signal.SIGTERM)
    assert called.wait(10)


def sigterm_with_a_handler_that_readies_itself_for_the_next_one() -> None:
    called = threading.Semaphore(0)

    def on_term(*_: object) -> None:
        calls.append(1)
        valued.flush_on_signals()
        called.release()

    calls: list[int] = []
    signal.signal(signal.SIGTERM, on_term)
    valued.flush_on_signals()
    record("one")
    for number in (1, 2):
        signal.raise_signal(signal.SIGTERM)
        assert called.acquire(timeout=10)
        while sum(each.name == "valued-signals" for each in threading.enumerate()) > 1:
            time.sleep(0.002)  # the one that heard of it is about to end
        time.sleep(10 * _signals.AGAIN)  # a signal that is sent again comes in a tenth of it
        assert len(calls) == number, calls


def handle_as_uvicorn() -> tuple[threading.Event, Any]:
    """Set a handler that tells that it was called, and is taken for uvicorn's; the one before."""
    called = threading.Event()

    def handle_exit(*_: object) -> None:
        called.set()

    handle_exit.__module__ = "uvicorn.server"
    return called, signal.signal(signal.SIGTERM, handle_exit)


def stop_as_uvicorn_does(called: threading.Event, before: Any = signal.SIG_DFL) -> None:
    """A signal comes; record on, put the handler *before* back, and raise the signal again."""
    signal.raise_signal(signal.SIGTERM)
    assert called.wait(10)
    record("two")
    signal.signal(signal.SIGTERM, before)
    signal.raise_signal(signal.SIGTERM)


def sigterm_that_a_server_raises_again() -> None:
    called, _ = handle_as_uvicorn()
    valued.flush_on_signals()
    record("one")
    stop_as_uvicorn_does(called)


def sigterm_that_a_server_raises_again_before_any_event() -> None:
    called, _ = handle_as_uvicorn()
    valued.flush_on_signals()
    stop_as_uvicorn_does(called)


def sigterm_where_a_server_put_the_default_back_after_the_fork() -> None:
    valued.flush_on_signals()

    def child() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        record("one", "two")
        end_by_sigterm()

    in_child(child, -signal.SIGTERM)


def sigterm_where_uvicorn_put_its_handler_after_the_fork() -> None:
    valued.flush_on_signals()

    def child() -> None:
        called, _ = handle_as_uvicorn()
        record("one")
        stop_as_uvicorn_does(called)

    in_child(child, -signal.SIGTERM)


def sigterm_that_uvicorn_raises_again_to_the_handler_that_it_found() -> None:
    valued.flush_on_signals()
    called, found = handle_as_uvicorn()
    record("one")
    stop_as_uvicorn_does(called, found)
    time.sleep(10)  # or the end of the program might come before the signal's


def sigterm_where_the_first_event_is_not_on_the_main_thread() -> None:
    valued.flush_on_signals()

    def child() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for _ in range(2):
            on_a_thread(record, "one")
        client.flush()

    in_child(child)


def sigterm_where_a_server_put_a_handler_that_exits_after_the_fork() -> None:
    valued.flush_on_signals()

    def child() -> None:
        def handle_exit(*_: object) -> None:
            sys.exit(7)

        signal.signal(signal.SIGTERM, handle_exit)
        on_a_thread(record, "one")
        assert signal.getsignal(signal.SIGTERM) is handle_exit
        signal.raise_signal(signal.SIGTERM)

    in_child(child, 7)


def sigterm_that_a_child_of_a_stopping_process_gets() -> None:
    """It was forked when SIGTERM was blocked for its parent's main thread."""
    called, _ = handle_as_uvicorn()
    valued.flush_on_signals()
    record("one")
    signal.raise_signal(signal.SIGTERM)
    assert called.wait(10)
    while signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        time.sleep(0.002)

    def child() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        end_by_sigterm()

    in_child(child, -signal.SIGTERM)


def sigterm_that_a_program_started_by_a_living_process_gets() -> None:
    """The handler was not the end: what starts later can be ended as always."""
    sigterm_with_a_handler_that_was_there()
    code = "import time; print(flush=True); time.sleep(30)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        program.stdout.readline()
        program.terminate()
        assert program.wait(10) == -signal.SIGTERM


def sigterm_with_a_handler_that_kills() -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(6))
    valued.flush_on_signals()
    record("one")
    end_by_sigterm()


def sigterm_that_is_ignored() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    valued.flush_on_signals()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    record("one")
    signal.raise_signal(signal.SIGTERM)


# -- and the rest ----------------------------------------------------------------------------------


def os_exit() -> None:
    record("flushed")
    assert client.flush(10)
    Queue.take = lambda *_args, **_named: None  # the next one is never taken
    record("lost")
    os._exit(0)


def another_thread_records_while_the_process_ends() -> None:
    connection = valued.Connection("token", URL)
    begun, recorded = threading.Event(), threading.Event()

    def transport(event: dict) -> None:
        if event["key"] == "one":
            begun.set()
            assert recorded.wait(10)
        connection(event)

    client = valued.Client(transport, max_workers=1)
    record("one", by=client)

    def late() -> None:
        begun.wait(10)
        while client._sender._here.peek()._end is None:  # until the process ends
            time.sleep(0.002)
        record("two", by=client)  # returns when the event is settled

    def watch() -> None:
        while client.stats()["accepted"] < 2:
            time.sleep(0.002)
        recorded.set()

    for function in (late, watch):
        threading.Thread(target=function, daemon=True).start()


def on_error_records_while_the_process_ends() -> None:
    # "one" is refused for good at the end; what `on_error` records then is delivered, too.
    def on_error(_error: valued.DeliveryError, event: dict) -> None:
        record("told", by=client)

    client = made(executor=valued.ImmediateExecutor(), on_error=on_error, retries=1)
    record("refused twice", by=client)


globals()[ROAD]()
