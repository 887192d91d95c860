"""Signals that end the process. What real ones do: tests/prefork/test_exit.py."""

from __future__ import annotations

import contextlib
import functools
import inspect
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import valued
from tests.process.test_shutdown import Witness
from tests.support.processes import Child, until
from valued._process import shutdown
from valued._process import signals as _signals


def test_a_signal_is_sent_to_this_process() -> None:
    _signals.send_signal(0)  # 0 asks whether the process is there, and does nothing to it


class Sent(list[int]):
    """In place of the signal, which would take along what the tests found."""

    def __call__(self, number: int) -> None:
        self.append(number)


def in_child(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a forked child, since signals and their handlers are a whole process's."""

    def run(fork: Callable[..., Child], **fixtures: Any) -> None:
        assert fork(functools.partial(test, **fixtures)).wait() == 0

    own = inspect.signature(test).parameters.values()
    mine = inspect.Parameter("fork", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = inspect.Signature([*own, mine])  # type: ignore[attr-defined]
    run.__name__, run.__module__ = test.__name__, test.__module__
    return run


@in_child
def test_flush_on_signals_leaves_a_handler_of_c_code_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # `signal.getsignal` answers None for one; there is none to be had without an extension.
    monkeypatch.setattr(signal, "getsignal", lambda _number: None)
    installed: list[Any] = []
    monkeypatch.setattr(signal, "signal", lambda *arguments: installed.append(arguments))
    valued.flush_on_signals(signal.SIGTERM)
    assert installed == []


def warm_up() -> None:
    """Have coverage know the files that a signal is waited for in.

    Of each new one it asks Python code, and a handler that interrupts that is not traced.
    """
    until(lambda: True)


def heard_of_all(listener: Any) -> None:
    """Return when the thread has read all that was written for it until now."""
    assert listener.wake(signal.SIGUSR1)  # which no handler of ours waits for
    until(lambda: not readable(listener))


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    sent = Sent()
    monkeypatch.setattr(_signals, "send_signal", sent)
    return sent


@pytest.mark.parametrize(
    ("before", "notices"),
    [(signal.SIG_DFL, (1, 0)), (lambda _number, _frame: None, (0, 1))],
    ids=["the default ends the process", "a handler may go on"],
)
@in_child
def test_a_signal_delivers_and_the_handler_that_was_there_gets_it(
    before: Any, notices: tuple[int, int], sent: Sent
) -> None:
    witness = Witness()
    signal.signal(signal.SIGTERM, before)
    shutdown.register(witness)
    valued.flush_on_signals()
    valued.flush_on_signals()  # again, which changes nothing
    signal.raise_signal(signal.SIGTERM)
    until(lambda: sent)  # to the main thread, again and again: the handler is to run
    assert (len(witness.exits), len(witness.flushes)) == notices
    handler: Any = signal.getsignal(signal.SIGTERM)
    if handler is not before:  # else it ran after the thread, which had delivered
        handler(signal.SIGTERM, None)
    assert signal.getsignal(signal.SIGTERM) is before
    for _ in range(2):  # it listens on
        heard_of_all(_signals._here.get())


@in_child
def test_a_handler_is_called_once_though_another_wake_up_is_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send, receive = _signals.send_signal, _signals._receive
    calls: list[int] = []

    def received(reader: socket.socket) -> bytes:
        said = receive(reader)
        until(lambda: _signals._here.get().delivered)  # the signal itself has come to the handler
        return said

    def send_twice(number: int) -> None:
        send(number)
        if threading.current_thread() is not threading.main_thread():
            # The handler runs, and the thread that wakes it doesn't know yet.
            until(lambda: _signals._here.get().passed_on)
            send(number)

    warm_up()
    monkeypatch.setattr(_signals, "send_signal", send_twice)
    monkeypatch.setattr(_signals, "_receive", received)
    signal.signal(signal.SIGTERM, lambda number, _frame: calls.append(number))
    valued.flush_on_signals()
    [listening] = [one for one in threading.enumerate() if one.name == "valued-signals"]
    signal.raise_signal(signal.SIGTERM)
    until(lambda: calls)
    heard_of_all(_signals._here.get())
    assert listening.is_alive()
    assert calls == [signal.SIGTERM]


def test_a_handler_that_ran_waits_until_no_signal_is_under_way_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listener = _signals._Listener()
    listener._sender = -1  # no thread's number
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        listener._sender = None

    monkeypatch.setattr(_signals, "time", SimpleNamespace(sleep=sleep))
    listener.wait_for_sender()
    assert slept == [_signals.AGAIN / 10]


@in_child
def test_a_signal_that_is_still_under_way_is_not_passed_on_a_second_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    arrived: list[int] = []

    def arrive() -> set[int]:  # the kernel hands it over with a system call
        if not arrived:
            arrived.append(1)
            signal.raise_signal(signal.SIGTERM)
        return set()

    warm_up()
    signal.signal(signal.SIGTERM, lambda number, _frame: calls.append(number))
    valued.flush_on_signals()
    monkeypatch.setattr(signal, "sigpending", arrive)
    signal.raise_signal(signal.SIGTERM)
    until(lambda: calls)
    assert arrived
    assert calls == [signal.SIGTERM]


@in_child
def test_what_is_left_of_a_signal_does_not_count_for_a_handler_that_is_installed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    receive, get = _signals._receive, signal.getsignal
    calls: list[int] = []
    read: list[bytes] = []
    looking = threading.Event()
    handlers: set[Any] = set()

    def on_term(number: int, _frame: object) -> None:
        calls.append(number)
        assert looking.wait(10)
        valued.flush_on_signals()
        handlers.add(get(number))

    def received(reader: socket.socket) -> bytes:
        read.append(receive(reader))
        return read[-1]

    def get_late(number: int) -> Any:
        # The thread has read the second byte of the signal, while that is passed on.
        if threading.current_thread() is listening and len(read) == 2:
            looking.set()
            until(lambda: len(handlers) == 2)
        return get(number)

    warm_up()
    signal.signal(signal.SIGTERM, on_term)
    monkeypatch.setattr(_signals, "_receive", received)
    valued.flush_on_signals()
    handlers.add(get(signal.SIGTERM))
    [listening] = [one for one in threading.enumerate() if one.name == "valued-signals"]
    monkeypatch.setattr(signal, "getsignal", get_late)
    signal.raise_signal(signal.SIGTERM)
    listening.join(10)
    assert not listening.is_alive()
    assert calls == [signal.SIGTERM]


@in_child
def test_a_signal_that_is_passed_on_within_the_handler_leaves_nothing_for_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, receive = _signals._Listener.start, _signals._receive
    calls: list[int] = []

    def received(reader: socket.socket) -> bytes:
        said = receive(reader)
        until(lambda: _signals._here.get().delivered)  # the signal itself has come to the handler
        return said

    def on_term(number: int, _frame: object) -> None:
        calls.append(number)
        valued.flush_on_signals()

    def start_slowly(listener: _signals._Listener, launch: Callable[..., object]) -> None:
        start(listener, launch)
        if listener.delivered and not calls:
            until(lambda: calls)  # the thread sends the signal again, and the handler runs here

    warm_up()
    signal.signal(signal.SIGTERM, on_term)
    monkeypatch.setattr(_signals, "_receive", received)
    valued.flush_on_signals()
    monkeypatch.setattr(_signals._Listener, "start", start_slowly)
    signal.raise_signal(signal.SIGTERM)
    until(lambda: calls)
    heard_of_all(_signals._here.get())
    assert calls == [signal.SIGTERM]


@in_child
def test_a_signal_that_another_one_s_handler_breaks_off_is_passed_on_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wait = _signals._Listener.wait_for_sender
    calls: list[int] = []
    interrupted: list[int] = []

    def interrupt(listener: _signals._Listener) -> None:
        if not interrupted:
            interrupted.append(1)
            raise LookupError
        wait(listener)

    warm_up()
    signal.signal(signal.SIGTERM, lambda number, _frame: calls.append(number))
    valued.flush_on_signals()
    monkeypatch.setattr(_signals._Listener, "wait_for_sender", interrupt)
    with pytest.raises(LookupError):  # noqa: PT012 - wherever the handler runs
        signal.raise_signal(signal.SIGTERM)
        until(lambda: calls)
    until(lambda: calls)
    assert calls == [signal.SIGTERM]


@in_child
def test_a_second_signal_does_what_it_did_before_at_once(sent: Sent) -> None:
    delivering = threading.Event()

    class Slow(Witness):
        def on_exit(self, started: float) -> None:
            delivering.set()
            threading.Event().wait(30)  # much longer than the test

    witness = Slow()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    shutdown.register(witness)
    valued.flush_on_signals()
    signal.raise_signal(signal.SIGTERM)
    assert delivering.wait(10)
    assert sent == []
    signal.raise_signal(signal.SIGTERM)
    assert sent == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For the tests after it, no signals were asked for in this process, and no thread listens."""
    monkeypatch.setattr(_signals, "_wanted", set())
    monkeypatch.setattr(shutdown, "_on_first_event", [])
    yield
    _signals._here.get().stop()
    until(lambda: "valued-signals" not in [thread.name for thread in threading.enumerate()])


@pytest.mark.usefixtures("forgotten")
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
    sent: Sent,
) -> None:
    def no_thread(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    def child() -> None:
        witness = Witness()
        with monkeypatch.context() as patch:
            patch.setattr(shutdown, "is_ending", lambda: ending)
            patch.setattr(shutdown, "main_thread_is_over", lambda: over)
            patch.setattr(_signals._thread, "start_new_thread", no_thread)
            patch.setattr(threading.Thread, "start", no_thread)
            shutdown.register(
                witness
            )  # the first event; that no thread can listen is no trouble yet
            handler(signal.SIGTERM, None)
        assert sent == ([] if ending else [signal.SIGTERM])
        assert len(witness.exits) == delivers

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    valued.flush_on_signals()
    # Of the parent: where coverage is measured, the child has another one in front of it.
    handler: Any = signal.getsignal(signal.SIGTERM)
    try:
        assert fork(child).wait() == 0
    finally:
        signal.signal(signal.SIGTERM, before)


@in_child
def test_a_signal_that_comes_while_the_pipe_is_being_made_finds_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listener = _signals._Listener()
    make = socket.socketpair

    def interrupted() -> tuple[socket.socket, socket.socket]:
        monkeypatch.setattr(socket, "socketpair", make)
        assert listener.wake(signal.SIGUSR1)  # as the handler does
        return make()

    monkeypatch.setattr(socket, "socketpair", interrupted)
    listener.start(threading.Thread.start)
    until(lambda: not readable(listener))
    assert listener._pipe is not None
    assert signal.set_wakeup_fd(-1) == listener._pipe[1].fileno()


@in_child
def test_an_event_loop_keeps_what_it_is_woken_by() -> None:
    reader, writer = socket.socketpair()
    with reader, writer:
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        valued.flush_on_signals()
        _signals._here.get().close_inherited()  # as in a child of this one
        assert signal.set_wakeup_fd(-1) == writer.fileno()


@in_child
def test_what_a_server_raises_again_is_delivered_there_and_wakes_no_loop_that_is_closing(
    sent: Sent,
) -> None:
    witness = Witness()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    shutdown.register(witness)
    valued.flush_on_signals()
    listener = _signals._here.get()
    told: list[Any] = []
    listener.wake = lambda *arguments: bool(told.append(arguments))  # type: ignore
    server = {"__name__": "uvicorn.server", "signal": signal}
    exec("signal.raise_signal(signal.SIGTERM)", server)
    # The thread may hear of it, too, where there is no loop; then it is sent twice.
    assert (len(witness.exits), told, set(sent)) == (1, [], {signal.SIGTERM})
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_child_closes_the_pipe_of_its_parent_and_has_its_own(fork: Callable[..., Child]) -> None:
    def grandchild(pipe: tuple[socket.socket, socket.socket]) -> None:
        assert [end.fileno() for end in pipe] == [-1, -1]
        assert signal.set_wakeup_fd(-1) == -1
        shutdown.register(Witness())
        assert signal.set_wakeup_fd(-1) == _signals._here.get()._pipe[1].fileno()

    def child() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        valued.flush_on_signals()
        assert fork(grandchild, _signals._here.get()._pipe).wait() == 0

    assert fork(child).wait() == 0


@in_child
def test_what_is_not_on_the_main_thread_closes_and_starts_nothing(
    in_thread: Callable[..., Any],
) -> None:
    valued.flush_on_signals()
    listener = _signals._here.get()
    # A fork in C on a thread: Python calls another one main.
    in_thread(listener.close_inherited).result(10)
    in_thread(_signals._install_again).result(10)
    for _ in range(2):
        heard_of_all(listener)
    _signals._Listener().close_inherited()  # one that never listened


def test_a_pipe_that_a_fork_hook_closed_says_nothing_more() -> None:
    # With gevent, the listener lives on in a child: tests/prefork/test_gevent.py, where coverage
    # counts no line of a greenlet.
    reader, writer = socket.socketpair()
    with reader, writer:
        writer.send(b"\x0f")
        assert _signals._receive(reader) == b"\x0f"
        reader.close()
        assert _signals._receive(reader) == b""


def readable(listener: Any) -> bool:
    return bool(select.select([listener._pipe[0]], [], [], 0)[0])


@in_child
def test_a_pipe_that_is_full_is_read_anyway() -> None:
    listener = _signals._Listener()
    reader, writer = socket.socketpair()
    writer.settimeout(0)
    listener._pipe = reader, writer
    with contextlib.suppress(BlockingIOError):
        while True:
            writer.send(bytes(65536))
    assert listener.wake(signal.SIGTERM)


@in_child
def test_a_signal_is_not_blocked_where_no_other_thread_would_take_it() -> None:
    listener = _signals._Listener()
    listener.block_until_exit(signal.SIGTERM)  # nothing listens
    listener._thread = threading.get_native_id()  # a greenlet of this thread does
    listener.block_until_exit(signal.SIGTERM)
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.parametrize("goes_on", [False, True], ids=["at the end", "the process goes on"])
@in_child
def test_a_signal_that_waited_has_the_effect_that_it_has_without_us(goes_on: bool) -> None:
    def before(*_: object) -> None: ...

    signal.signal(signal.SIGTERM, before)
    valued.flush_on_signals()  # as a server puts it back that found it
    listener = _signals._here.get()
    until(listener.can_block)
    listener.block_until_exit(signal.SIGTERM)
    if goes_on:
        signal.signal(signal.SIGTERM, before)
        valued.flush_on_signals()
        assert listener.blocked == set()
    else:
        listener._unblock_at_exit()
        assert signal.getsignal(signal.SIGTERM) is before
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
