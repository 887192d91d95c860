"""Signals that end the process: with `flush_on_signals`, what was accepted is delivered first.

Python runs a handler on the main thread, between two steps of it. A signal that comes in the
instant before that thread begins to wait in C, for a lock of a process pool for example, is
noticed when the wait is over, which may be never: nothing interrupts it any more. So a thread waits
at the pipe into which the interpreter writes the number of each signal at once
(`signal.set_wakeup_fd`). It delivers, and then signals the main thread until the handler has run.

The handler only writes to the same pipe. It takes no lock, so it can't wait for one that the thread
which it interrupted holds.

uvicorn stops gracefully by a handler of its own, then puts the default back and raises the signal
again, so that the process dies without any exit handler. So once a signal was passed on to that
handler, it is blocked on the main thread: one that this thread raises itself waits until the exit
handlers have delivered what was recorded meanwhile. One from outside still arrives, on another
thread. Other handlers may not be the end, and what a blocked thread starts inherits that: so after
those nothing is blocked.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from valued._process import shutdown
from valued._process.fork import PerProcess, send_signal
from valued._process.reporting import log

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

#: Seconds between two signals to the main thread. It takes the first one, but for the rare instant
#: described above, and nothing tells when that has passed.
AGAIN: Final = 0.01


def flush_on_signals(*signals: int) -> None:
    """Deliver events before a signal ends this process. Off unless you call it.

    >>> with multiprocessing.Pool(initializer=valued.flush_on_signals) as pool: ...

    *signals*: default ``signal.SIGTERM``. Call it in processes that are ended by a signal and have
    no handler of their own, such as the workers of a pool above, which are terminated at the end of
    the block. When the events are delivered, or after ``shutdown_timeout`` seconds, the signal is
    sent again and does what it did before: the earlier handler, or the default, takes it. If that
    handler ends the process gracefully, events that are recorded meanwhile are delivered as the
    process ends, for ``shutdown_timeout`` seconds more at most. This holds under uvicorn, too,
    which raises SIGTERM again at its end; it gets the signal at once, so this takes no longer than
    ``shutdown_timeout`` in all. A second signal from outside takes effect at once. Ignored signals
    stay ignored; a handler in C code, which can't be called, stays the only one.

    Main thread only (`ValueError` elsewhere). May be called again. Forked children inherit it. A
    server may install other handlers after the fork, so each process checks with its first event:
    on the main thread it takes the place of the default, and of uvicorn's handler, again; on
    another thread it can't, and logs a warning with the line to write. It keeps one thread, which
    waits for the signal; so in a process that forks, call it in the children, as an initializer
    does.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ValueError("flush_on_signals works in the main thread only")
    numbers = signals or (signal.SIGTERM,)
    _arm({number: signal.getsignal(number) for number in numbers})
    _wanted.update(numbers)
    shutdown.on_first_event(_look_again)


#: The signals that were asked for, in this process or one that it was forked from.
_wanted: Final[set[int]] = set()

#: The modules of handlers after which a process ends without any exit handler: they put the default
#: back, and raise the signal once more.
_RAISING_AGAIN: Final = ("uvicorn.",)


def _arm(found: dict[int, Any]) -> None:
    """Take the place of the handlers *found*, by their signals. Main thread only."""
    handlers = {
        number: _Handler(before)
        for number, before in found.items()
        if before is signal.SIG_DFL or (callable(before) and not isinstance(before, _Handler))
    }
    if handlers:
        _here.get().unblock()
        _here.get().forget()
    _watch()  # first, or a signal that comes in this instant would not be noticed
    for number, handler in handlers.items():
        signal.signal(number, handler)
        _here.get().is_armed = True


def _look_again() -> None:
    """With the first event of a process: see whether a server has put its handlers in our place."""
    watch = _here.get()
    lost = {
        number: handler
        for number in _wanted - watch.blocked  # where it was passed on, the end delivers
        if (handler := signal.getsignal(number)) is signal.SIG_DFL
        # One that found ours in this process puts it back before it raises the signal again.
        or (_raises_again(handler) and not watch.is_armed)
    }
    if threading.current_thread() is threading.main_thread():
        _arm(lost)
    elif lost:
        log.warning(
            "%s ends this process without delivering what is pending: flush_on_signals was called, "
            "but another handler took its place after the fork. Call valued.flush_on_signals() in "
            "the main thread of each worker, as in Gunicorn's post_worker_init.",
            ", ".join(signal.Signals(number).name for number in sorted(lost)),
        )


def _raises_again(handler: object) -> bool:
    return _is_raising_again(getattr(handler, "__module__", ""))


def _is_raising_again(module: object) -> bool:
    return str(module).startswith(_RAISING_AGAIN)


def _watch() -> None:
    """Listen. Main thread only."""
    with contextlib.suppress(OSError, RuntimeError):  # then the handler tries once more
        _here.get().start(threading.Thread.start)


class _Handler:
    """What `flush_on_signals` installs, for one signal that comes.

    *before*: the handler that was there, or the default, which then takes its place again.
    """

    def __init__(self, before: Callable[[int, FrameType | None], Any] | signal.Handlers) -> None:
        self.before = before

    def __call__(self, number: int, frame: FrameType | None) -> None:
        watch = _here.get()
        if self in watch.done:
            return  # it was sent before the thread could know that this has run
        if self not in watch.heard and frame and _is_raising_again(frame.f_globals.get("__name__")):
            # Its graceful stop is over. Here and not on the thread, whose signal would meet an
            # event loop that is being closed, of which Python prints an error.
            watch.heard.add(self)
            self.deliver()
        if self in watch.heard or (_raises_again(self.before) and watch.can_block()):
            # uvicorn stops gracefully now, and the end of the process delivers, within one bound.
            self._pass_on(number, watch)
        else:
            watch.heard.add(self)
            # At the end of the process no thread can be started, and the end delivers anyway.
            if not watch.tell(number, self) and not shutdown.is_ending():
                if shutdown.main_thread_is_over():
                    self.deliver()  # here: it only waits for other threads, and holds no lock
                self._pass_on(number, watch)

    def _pass_on(self, number: int, watch: _Watch) -> None:
        watch.done.add(self)
        try:
            watch.wait_for_sender()
            signal.signal(number, self.before)
        except BaseException:  # out of another signal's handler
            watch.done.discard(self)
            raise
        finally:
            send_signal(number)  # to the handler before, or else to this one again
        # Afterwards: on another thread, that signal would not interrupt what this one waits for.
        # The handler may have run, and have called `flush_on_signals` once more.
        if _raises_again(self.before) and signal.getsignal(number) is self.before:
            watch.block_until_exit(number)

    def deliver(self) -> None:
        # Where the application has a handler, this may not be the end.
        (shutdown.leave if self.before is signal.SIG_DFL else shutdown.hurry)()


class _Watch:
    """What one process hears of signals by: a thread and a pipe, both made by `start`."""

    def __init__(self) -> None:
        #: Handlers that pass on what they are called with next, and those that have done so.
        self.heard: set[_Handler] = set()
        self.done: set[_Handler] = set()
        self.is_armed = False  # whether this process has installed one, and not its parent alone
        self._sender: int | None = None  # the thread that is sending one now
        self._listener: int | None = None  # the thread that listens
        #: Signals that the main thread must not be ended by.
        self.blocked: set[int] = set()
        self._pipe: tuple[socket.socket, socket.socket] | None = None

    def start(self, launch: Callable[[threading.Thread], object]) -> None:
        """Listen, if not done yet. Main thread only. Raises `OSError`, `RuntimeError`.

        *launch* starts the thread.
        """
        if self._pipe is None:
            # Sockets, as gevent lets others run while a greenlet reads from one.
            reader, writer = socket.socketpair()
            writer.settimeout(0)
            thread = threading.Thread(
                target=self._listen, args=(reader,), name="valued-signals", daemon=True
            )
            if self._pipe is not None:  # a signal handler was here meanwhile
                reader.close()
                writer.close()
                return
            self._pipe = reader, writer
            try:
                launch(thread)
            except BaseException:
                self._pipe = None
                reader.close()
                writer.close()
                raise
        number = self._pipe[1].fileno()
        before = signal.set_wakeup_fd(number, warn_on_full_buffer=False)
        if before not in (-1, number):
            # An event loop's. It wakes by it, and so the handler runs.
            with contextlib.suppress(OSError):  # or one of ours that a signal handler left closed
                signal.set_wakeup_fd(before, warn_on_full_buffer=False)

    def tell(self, number: int, handler: _Handler | None = None) -> bool:
        """Have the thread deliver; False: there is none, and none can be started.

        Not if *handler* is done: called once more within this call, it has passed the signal on.
        """
        try:
            self.start(_launch_from_handler)
        except (OSError, RuntimeError):
            return handler in self.done
        pipe = self._pipe  # of before that, if it comes now
        if pipe is not None and handler not in self.done:
            # Closed by that; or full: then it has more to read than it ever needs.
            with contextlib.suppress(OSError):
                pipe[1].send(bytes([number]))
        return True

    def forget(self) -> None:
        """Forget earlier signals, of which a handler that is installed again must not hear.

        Main thread only. `start` begins with another pipe, and another thread.
        """
        if self._pipe is not None:
            _, writer = self._pipe
            self._pipe = None
            _wake_no_more(writer)
            writer.close()

    def _listen(self, reader: socket.socket) -> None:
        self._listener = threading.get_native_id()
        while said := _received(reader):
            number = said[0]
            # In this order: handlers that are installed again have another listener.
            handler = signal.getsignal(number)
            if self._pipe is None or self._pipe[0] is not reader:
                break
            # Of each signal two bytes come, Python's and the handler's.
            if isinstance(handler, _Handler) and handler not in self.done:
                handler.deliver()
                self.heard.add(handler)
                while self._sent(number, handler):
                    time.sleep(AGAIN)
        reader.close()
        # A greenlet of gevent's, in a child: `threading` has forgotten it, and is to know it again.
        threading.current_thread()

    def _sent(self, number: int, handler: _Handler) -> bool:
        """Send the signal, unless *handler* has run."""
        self._sender = threading.get_native_id()
        try:
            if handler in self.done or signal.getsignal(number) is not handler:
                return False
            send_signal(number)
            return True
        finally:
            self._sender = None

    def wait_for_sender(self) -> None:
        """Return when no signal is under way to the handler that was heard of; in a handler."""
        # Greenlets share a thread: there this is the sender itself.
        while self._sender not in (None, threading.get_native_id()):
            time.sleep(AGAIN / 10)
        # What is under way arrives with the next system call.
        getattr(signal, "sigpending", set)()

    def can_block(self) -> bool:
        """Whether another thread is left to take signals from outside: greenlets are none."""
        return self._listener not in (None, threading.get_native_id())

    def block_until_exit(self, number: int) -> None:
        """Have the main thread not be ended by a signal that it raises, until all is delivered.

        Main thread only, as the next two.
        """
        if self.can_block():
            self.blocked.add(number)
            signal.pthread_sigmask(signal.SIG_BLOCK, {number})
            shutdown.hook_exit()
            shutdown.on_exit(self._end)

    def unblock(self) -> None:
        """The process goes on."""
        while self.blocked:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {self.blocked.pop()})

    def _end(self) -> None:
        # A signal that waits has the effect that it would have without us.
        for number in self.blocked:
            while isinstance(handler := signal.getsignal(number), _Handler):
                signal.signal(number, handler.before)
        with contextlib.suppress(SystemExit):  # by a handler: the process is ending already
            self.unblock()

    def let_go(self) -> None:
        """Close the parent's pipe, in a forked child; neither locks nor raises."""
        self.unblock()
        if self._pipe is None:
            return
        with contextlib.suppress(ValueError):  # on a thread that Python does not know as main
            _wake_no_more(self._pipe[1])
            for end in self._pipe:
                os.close(end.detach())


def _launch_from_handler(thread: threading.Thread) -> None:
    # Not `thread.start()` here: it takes locks, which what the handler interrupted may hold.
    _thread.start_new_thread(thread.start, ())


def _wake_no_more(writer: socket.socket) -> None:
    before = signal.set_wakeup_fd(-1)
    if before not in (-1, writer.fileno()):
        signal.set_wakeup_fd(before, warn_on_full_buffer=False)


def _received(reader: socket.socket) -> bytes:
    """The next byte; none where a fork hook closed it."""
    try:
        return reader.recv(1)
    except OSError:
        return b""


_here: Final[PerProcess[_Watch]] = PerProcess(_Watch, forget=_Watch.let_go)
