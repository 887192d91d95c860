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
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import valued
from valued._delivery.queue import Queue
from valued._process import signals as _signals

URL, ROAD = sys.argv[1:]
signal.signal(signal.SIGTERM, signal.SIG_DFL)  # where coverage is measured, it has a handler there


def record(client: valued.Client, *keys: str) -> None:
    for key in keys:
        client.action(key, {"user.id": 1})


def end_of_script() -> None:
    record(valued.Client("token", URL), "one", "two")


def many() -> None:
    record(valued.Client("token", URL), *map(str, range(60)))


def sys_exit() -> None:
    record(valued.Client("token", URL), "one", "two")
    sys.exit(3)


def exception() -> None:
    record(valued.Client("token", URL), "one", "two")
    raise ZeroDivisionError


def immediate_with_a_retry() -> None:
    # The server refuses the first attempt, and there is no thread to make the second.
    record(valued.Client("token", URL, executor=valued.ImmediateExecutor()), "refused once")


def retry_pause() -> None:
    # The server refuses the first attempt for a minute; the end of the process is sooner.
    client = valued.Client("token", URL)
    record(client, "refused once")
    while client._sender._here.peek()._queue.next_due() is None:
        time.sleep(0.002)


def first_event_in_an_atexit_handler() -> None:
    client = valued.Client("token", URL)
    atexit.register(record, client, "one", "two")


def first_event_of_a_thread_that_outlives_the_main_one() -> None:
    """It may go on for days, so the end, for which a tenth of a second is allowed, is not now."""
    client = valued.Client("token", URL, shutdown_timeout=0.1)

    def work() -> None:
        threading.main_thread().join()
        record(client, "one")
        assert client.flush(10)
        record(client, "two")
        assert client.flush(10)

    threading.Thread(target=work).start()


def first_event_of_a_thread_that_outlives_the_main_one_of_a_child() -> None:
    """Nothing is called at the end of the child any more; it ends by `os._exit`, up to 3.12."""
    client = valued.Client("token", URL)

    def work() -> None:
        threading.main_thread().join()
        record(client, "one", "two")

    child = multiprocessing.get_context("fork").Process(
        target=lambda: threading.Thread(target=work).start()
    )
    child.start()
    child.join()


def event_in_an_atexit_handler_that_runs_after_ours() -> None:
    client = valued.Client("token", URL)
    atexit.register(record, client, "two")  # registered before ours, so called after it
    record(client, "one")


def executor_that_is_shut_before_atexit() -> None:
    executor = ThreadPoolExecutor(1)
    client = valued.Client("token", URL, executor=executor)
    record(client, *(f"event {number}" for number in range(20)))


def executor_that_is_shut_and_an_event_after_it() -> None:
    client = valued.Client("token", URL, executor=lambda: ThreadPoolExecutor(1))
    record(client, "one")
    atexit.register(record, client, "two")


def client_that_is_gone() -> None:
    record(valued.Client("token", URL), "one")
    record(valued.Client("token", URL), "two")
    gc.collect()


def fork_and_sys_exit() -> None:
    client = valued.Client("token", URL)
    record(client, "parent")
    pid = os.fork()
    if pid == 0:
        record(client, "child")
        sys.exit(0)
    os.waitpid(pid, 0)


def fork_and_end_of_script() -> None:
    client = valued.Client("token", URL)
    record(client, "parent")
    if pid := os.fork():
        os.waitpid(pid, 0)
    else:
        record(client, "child")


def fork_without_an_event() -> None:
    client = valued.Client("token", URL)
    record(client, "parent")
    if pid := os.fork():
        os.waitpid(pid, 0)


def fork_inside_an_atexit_handler() -> None:
    client = valued.Client("token", URL)

    def handler() -> None:
        if pid := os.fork():
            os.waitpid(pid, 0)
        else:
            record(client, "child")

    atexit.register(handler)
    record(client, "parent")


def sigint() -> None:
    record(valued.Client("token", URL), "one")
    signal.raise_signal(signal.SIGINT)


def sigterm_with_a_handler_that_exits() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
    record(valued.Client("token", URL), "one")
    signal.raise_signal(signal.SIGTERM)


def sigterm() -> None:
    valued.flush_on_signals()
    record(valued.Client("token", URL), "one")
    signal.raise_signal(signal.SIGTERM)
    time.sleep(30)  # ended by the signal, that is


def sigterm_when_the_main_thread_is_over() -> None:
    """It waits for another one, and Python 3.12 lets no thread start meanwhile."""
    valued.flush_on_signals()
    client = valued.Client("token", URL)
    said = threading.Event()

    class Handler(logging.StreamHandler):
        def emit(self, record: logging.LogRecord) -> None:
            super().emit(record)
            said.set()

    logging.getLogger("valued").addHandler(Handler())

    def work() -> None:
        threading.main_thread().join()
        record(client, "refused once")
        said.wait(30)  # that it is postponed, and then the end may well be faster than the line
        # To that thread: Python does not wake it for a signal that came to another one.
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
        time.sleep(30)

    threading.Thread(target=work).start()


def sigterm_inside_action() -> None:
    """The signal comes while its own thread holds the lock of the queue."""
    valued.flush_on_signals()
    client = valued.Client("token", URL)
    record(client, "one")
    assert client.flush(10)
    queue = client._sender._here.peek()._queue
    absorb = queue.absorb

    def interrupted() -> None:
        queue.absorb = absorb
        if threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGTERM)
        absorb()

    queue.absorb = interrupted
    record(client, "two")
    time.sleep(30)


def sigterm_inside_a_thread_start() -> None:
    """The signal comes while its own thread holds the lock that starting a thread takes."""
    valued.flush_on_signals(signal.SIGTERM)
    client = valued.Client("token", URL)
    record(client, "one")
    with threading._active_limbo_lock:
        signal.raise_signal(signal.SIGTERM)
    time.sleep(30)


def sigterm_in_a_forked_child() -> None:
    valued.flush_on_signals()
    client = valued.Client("token", URL)
    record(client, "parent")
    if pid := os.fork():
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
    else:
        record(client, "child")
        signal.raise_signal(signal.SIGTERM)
        time.sleep(30)


def sigterm_while_the_process_ends() -> None:
    valued.flush_on_signals()
    client = valued.Client("token", URL)
    record(client, "one")
    atexit.register(time.sleep, 30)  # ended by the signal, that is
    atexit.register(signal.raise_signal, signal.SIGTERM)


def sigterm_that_the_main_thread_does_not_notice() -> None:
    """It waits in C, where nothing interrupts it: the signal came an instant before."""
    valued.flush_on_signals()
    record(valued.Client("token", URL), "one")
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
    record(valued.Client("token", URL), "one")
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
    record(valued.Client("token", URL), "one")
    for number in (1, 2):
        signal.raise_signal(signal.SIGTERM)
        assert called.acquire(timeout=10)
        while sum(each.name == "valued-signals" for each in threading.enumerate()) > 1:
            time.sleep(0.002)  # the one that heard of it is about to end
        time.sleep(10 * _signals.AGAIN)  # whoever sends the signal again does so in a tenth of it
        assert len(calls) == number, calls


def stop_as_uvicorn_does(client: valued.Client, called: threading.Event) -> None:
    """Wait for the signal, record on, put the default back, and raise the signal again."""
    assert called.wait(10)
    record(client, "two")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.raise_signal(signal.SIGTERM)


def uvicorn_handler(called: threading.Event) -> Any:
    """Tells that it was called, and is taken for uvicorn's."""

    def handle_exit(*_: object) -> None:
        called.set()

    handle_exit.__module__ = "uvicorn.server"
    return handle_exit


def sigterm_that_a_server_raises_again() -> None:
    called = threading.Event()
    signal.signal(signal.SIGTERM, uvicorn_handler(called))
    valued.flush_on_signals()
    client = valued.Client("token", URL)
    record(client, "one")
    signal.raise_signal(signal.SIGTERM)
    stop_as_uvicorn_does(client, called)


def sigterm_that_a_server_raises_again_before_any_event() -> None:
    called = threading.Event()
    signal.signal(signal.SIGTERM, uvicorn_handler(called))
    valued.flush_on_signals()
    client = valued.Client("token", URL)
    signal.raise_signal(signal.SIGTERM)
    stop_as_uvicorn_does(client, called)


def sigterm_where_a_server_put_the_default_back_after_the_fork() -> None:
    valued.flush_on_signals()
    client = valued.Client("token", URL)
    if pid := os.fork():
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        record(client, "one", "two")
        signal.raise_signal(signal.SIGTERM)
        time.sleep(30)


def sigterm_where_uvicorn_put_its_handler_after_the_fork() -> None:
    valued.flush_on_signals()
    client = valued.Client("token", URL)
    if pid := os.fork():
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
    else:
        called = threading.Event()
        signal.signal(signal.SIGTERM, uvicorn_handler(called))
        record(client, "one")
        signal.raise_signal(signal.SIGTERM)
        stop_as_uvicorn_does(client, called)


def uvicorn_stops_and_restores(client: valued.Client) -> None:
    called = threading.Event()
    found = signal.signal(signal.SIGTERM, uvicorn_handler(called))
    record(client, "one")
    signal.raise_signal(signal.SIGTERM)
    assert called.wait(10)
    record(client, "two")
    signal.signal(signal.SIGTERM, found)
    signal.raise_signal(signal.SIGTERM)
    called.clear()
    called.wait(10)  # or the end of the program might come before the signal's


def sigterm_that_uvicorn_raises_again_to_the_handler_that_it_found() -> None:
    valued.flush_on_signals()
    uvicorn_stops_and_restores(valued.Client("token", URL))


def sigterm_that_uvicorn_raises_again_to_the_handler_of_the_parent() -> None:
    valued.flush_on_signals()
    client = valued.Client("token", URL)
    if pid := os.fork():
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
    else:
        uvicorn_stops_and_restores(client)


def no_warning_where_uvicorn_found_our_handler() -> None:
    """The first event is of a thread, as those of sync views are."""
    valued.flush_on_signals()
    signal.signal(signal.SIGTERM, uvicorn_handler(threading.Event()))
    client = valued.Client("token", URL)
    thread = threading.Thread(target=record, args=(client, "one"))
    thread.start()
    thread.join()


def sigterm_where_the_first_event_is_not_on_the_main_thread() -> None:
    valued.flush_on_signals()
    client = valued.Client("token", URL)
    if pid := os.fork():
        os.waitpid(pid, 0)
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for _ in range(2):
            thread = threading.Thread(target=record, args=(client, "one"))
            thread.start()
            thread.join()
        client.flush()


def sigterm_where_a_server_put_a_handler_that_exits_after_the_fork() -> None:
    valued.flush_on_signals()
    client = valued.Client("token", URL)
    if pid := os.fork():
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    else:

        def handle_exit(*_: object) -> None:
            sys.exit(7)

        signal.signal(signal.SIGTERM, handle_exit)
        thread = threading.Thread(target=record, args=(client, "one"))
        thread.start()
        thread.join()
        assert signal.getsignal(signal.SIGTERM) is handle_exit
        signal.raise_signal(signal.SIGTERM)


def sigterm_that_a_child_of_a_stopping_process_gets() -> None:
    """It was forked when SIGTERM was blocked for its parent's main thread."""
    called = threading.Event()
    signal.signal(signal.SIGTERM, uvicorn_handler(called))
    valued.flush_on_signals()
    client = valued.Client("token", URL)
    record(client, "one")
    signal.raise_signal(signal.SIGTERM)
    assert called.wait(10)
    while signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        time.sleep(0.002)
    if pid := os.fork():
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
        time.sleep(30)


def sigterm_that_a_program_started_by_a_living_process_gets() -> None:
    """The handler was not the end: what starts later can be ended as always."""
    called = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: called.set())
    valued.flush_on_signals()
    record(valued.Client("token", URL), "one")
    signal.raise_signal(signal.SIGTERM)
    assert called.wait(10)
    code = "import time; print(flush=True); time.sleep(30)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        program.stdout.readline()
        program.terminate()
        assert program.wait(10) == -signal.SIGTERM


def sigterm_with_a_handler_that_kills() -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(6))
    valued.flush_on_signals()
    record(valued.Client("token", URL), "one")
    signal.raise_signal(signal.SIGTERM)
    time.sleep(30)


def sigterm_that_is_ignored() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    valued.flush_on_signals()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    record(valued.Client("token", URL), "one")
    signal.raise_signal(signal.SIGTERM)


def os_exit() -> None:
    client = valued.Client("token", URL)
    record(client, "flushed")
    assert client.flush(10)
    Queue.take = lambda *_args, **_named: None  # the next one is never taken
    record(client, "lost")
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
    record(client, "one")

    def late() -> None:
        begun.wait(10)
        while client._sender._here.peek()._end is None:  # until the process ends
            time.sleep(0.002)
        record(client, "two")  # returns when the event is settled

    def watch() -> None:
        while client.stats()["accepted"] < 2:
            time.sleep(0.002)
        recorded.set()

    for function in (late, watch):
        threading.Thread(target=function, daemon=True).start()


def on_error_records_while_the_process_ends() -> None:
    # "one" is refused for good at the end; what `on_error` records then is delivered, too.
    def on_error(_error: valued.DeliveryError, event: dict) -> None:
        record(client, "told")

    client = valued.Client(
        "token", URL, executor=valued.ImmediateExecutor(), on_error=on_error, retries=1
    )
    record(client, "refused twice")


globals()[ROAD]()
