"""Signals that end the process: with `flush_on_signals`, what was accepted is delivered first.

Python runs a signal handler on the main thread, between two steps of it. While that thread waits in
C, for a lock of a process pool for example, a signal interrupts the wait; but one that comes in the
instant before the wait begins doesn't, and the handler may never run. So a thread, the listener,
reads the pipe into which the interpreter writes the number of each signal at once
(`signal.set_wakeup_fd`). It delivers, and then signals the main thread until the handler has run.

The handler only writes to the same pipe. It takes no lock, since the code that it interrupted may
hold it.

uvicorn stops gracefully by a handler of its own, then restores the default and raises the signal
again, so that the process dies without any exit handler. So once a signal was passed on to that
handler, it is blocked on the main thread: if this thread raises it, it waits until the exit
handlers have delivered what was recorded meanwhile. One from outside still arrives, on another
thread. After other handlers nothing is blocked: they may not end the process, and programs that a
blocked thread starts inherit that.
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
from valued._process.facts import is_main_interpreter
from valued._process.fork import PerProcess, send_signal
from valued._process.reporting import log

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

#: Seconds between two signals to the main thread. The first one is enough, except in the rare
#: instant described above, and nothing tells when that has passed.
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

    Main thread of the main interpreter only (`ValueError` elsewhere). May be called again. Forked
    children inherit it. A server may install other handlers after the fork, so each process checks
    with its first event: on the main thread it takes the place of the default, and of uvicorn's
    handler, again; on another thread it can't, and logs a warning with the line to write. It keeps
    one thread, which waits for the signal; so in a process that forks, call it in the children, as
    an initializer does.
    """
    if not is_main_interpreter() or threading.current_thread() is not threading.main_thread():
        raise ValueError("flush_on_signals works in the main thread of the main interpreter only")
    numbers = signals or (signal.SIGTERM,)
    _install({number: signal.getsignal(number) for number in numbers})
    _wanted.update(numbers)
    shutdown.on_first_event(_install_again)


#: The signals that were asked for, in this process or one that it was forked from.
_wanted: Final[set[int]] = set()

#: The modules of handlers after which a process ends without any exit handler: they restore the
#: default, and raise the signal again.
_RAISING_AGAIN: Final = ("uvicorn.",)


def _install(found: dict[int, Any]) -> None:
    """Replace the handlers *found*, by their signals. Main thread only."""
    handlers = {
        number: _Handler(before)
        for number, before in found.items()
        if before is signal.SIG_DFL or (callable(before) and not isinstance(before, _Handler))
    }
    listener = _here.get()
    if handlers:
        listener.unblock()
        listener.stop()
    # First, or a signal that comes in this instant would not be noticed. If it fails, the handler
    # tries again.
    with contextlib.suppress(OSError, RuntimeError):
        listener.start(threading.Thread.start)
    for number, handler in handlers.items():
        signal.signal(number, handler)
        listener.is_installed = True


def _install_again() -> None:
    """With the first event of a process: see whether a server has replaced our handlers."""
    listener = _here.get()
    lost = {
        number: handler
        for number in _wanted - listener.blocked  # where it was passed on, the exit delivers
        if (handler := signal.getsignal(number)) is signal.SIG_DFL
        # One that found ours in this process restores it before it raises the signal again.
        or (_raises_again(handler) and not listener.is_installed)
    }
    if threading.current_thread() is threading.main_thread():
        _install(lost)
    elif lost:
        log.warning(
            "%s ends this process without delivering what is pending: flush_on_signals was called, "
            "but another handler took its place after the fork. Call valued.flush_on_signals() in "
            "the main thread of each worker, as in Gunicorn's post_worker_init.",
            ", ".join(signal.Signals(number).name for number in sorted(lost)),
        )


def _raises_again(handler: object) -> bool:
    return str(getattr(handler, "__module__", "")).startswith(_RAISING_AGAIN)


def _is_raised_again(frame: FrameType | None) -> bool:
    """Whether the code that a signal interrupted, *frame*, has raised it itself."""
    return frame is not None and str(frame.f_globals.get("__name__")).startswith(_RAISING_AGAIN)


class _Handler:
    """What `flush_on_signals` installs, for one signal that comes.

    *before*: the handler that was there, or the default, which is then restored.
    """

    def __init__(self, before: Callable[[int, FrameType | None], Any] | signal.Handlers) -> None:
        self.before = before

    def __call__(self, number: int, frame: FrameType | None) -> None:
        listener = _here.get()
        if self in listener.passed_on:
            return  # the listener sent it before it could know that this has run
        if self not in listener.delivered and _is_raised_again(frame):
            # Its graceful stop is over. Here and not on the listener, whose signal would meet an
            # event loop that is being closed, of which Python prints an error.
            listener.delivered.add(self)
            self.deliver()
        if self in listener.delivered or (_raises_again(self.before) and listener.can_block()):
            # uvicorn stops gracefully now, and the exit delivers, within one bound.
            self._pass_on(number, listener)
        else:
            listener.delivered.add(self)
            # At the end of the process no thread can be started, and the exit delivers anyway.
            if not listener.wake(number, self) and not shutdown.is_ending():
                if shutdown.main_thread_is_over():
                    self.deliver()  # here: it only waits for other threads, and holds no lock
                self._pass_on(number, listener)

    def _pass_on(self, number: int, listener: _Listener) -> None:
        listener.passed_on.add(self)
        try:
            listener.wait_for_sender()
            signal.signal(number, self.before)
        except BaseException:  # out of another signal's handler
            listener.passed_on.discard(self)
            raise
        finally:
            send_signal(number)  # to the handler before, or else to this one again
        # Afterwards: on another thread, that signal would not interrupt what this one waits for.
        # The handler may have run, and have called `flush_on_signals` again.
        if _raises_again(self.before) and signal.getsignal(number) is self.before:
            listener.block_until_exit(number)

    def deliver(self) -> None:
        # Where the application has a handler, this may not be the end.
        (shutdown.notify_exit if self.before is signal.SIG_DFL else shutdown.flush_now)()


class _Listener:
    """The thread of one process that reads the signals from a pipe, and what was done for each."""

    def __init__(self) -> None:
        self.delivered: set[_Handler] = set()  # they pass on the next signal
        self.passed_on: set[_Handler] = set()
        self.is_installed = False  # whether this process has installed one, and not its parent only
        self.blocked: set[int] = set()  # signals that the main thread must not be ended by
        self._pipe: tuple[socket.socket, socket.socket] | None = None
        self._thread: int | None = None  # the native id of the thread that listens
        self._sender: int | None = None  # and of the one that is sending a signal now

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

    def wake(self, number: int, handler: _Handler | None = None) -> bool:
        """Have the thread deliver; False: there is none, and none can be started.

        Not if *handler* was called again within this call, and has passed the signal on.
        """
        try:
            self.start(_launch_from_handler)
        except (OSError, RuntimeError):
            return handler in self.passed_on
        pipe = self._pipe  # before the look at `passed_on`, after which it may be another one
        if pipe is not None and handler not in self.passed_on:
            # Closed by that; or full: then it has more to read than it ever needs.
            with contextlib.suppress(OSError):
                pipe[1].send(bytes([number]))
        return True

    def stop(self) -> None:
        """Forget earlier signals, which a handler that is installed again must not get.

        Main thread only. `start` makes another pipe, and another thread.
        """
        if self._pipe is not None:
            _, writer = self._pipe
            self._pipe = None
            _reset_wakeup_fd(writer)
            writer.close()

    def _listen(self, reader: socket.socket) -> None:
        self._thread = threading.get_native_id()
        while received := _receive(reader):
            number = received[0]
            # In this order: handlers that are installed again have another listener.
            handler = signal.getsignal(number)
            if self._pipe is None or self._pipe[0] is not reader:
                break
            # Of each signal two bytes come, Python's and the handler's.
            if isinstance(handler, _Handler) and handler not in self.passed_on:
                handler.deliver()
                self.delivered.add(handler)
                while self._sent(number, handler):
                    time.sleep(AGAIN)
        reader.close()
        # In a child this may be a greenlet of gevent's, which `threading` has forgotten: asked for
        # the current thread, it lists it again, and the greenlet ends without a traceback.
        threading.current_thread()

    def _sent(self, number: int, handler: _Handler) -> bool:
        """Send the signal, unless *handler* has run."""
        self._sender = threading.get_native_id()
        try:
            if handler in self.passed_on or signal.getsignal(number) is not handler:
                return False
            send_signal(number)
            return True
        finally:
            self._sender = None

    def wait_for_sender(self) -> None:
        """Return when no signal is under way to the handler that calls this."""
        # Greenlets share a thread: there this is the sender itself.
        while self._sender not in (None, threading.get_native_id()):
            time.sleep(AGAIN / 10)
        # What is under way arrives with the next system call.
        getattr(signal, "sigpending", set)()

    def can_block(self) -> bool:
        """Whether another thread is left to take signals from outside: greenlets are none."""
        return self._thread not in (None, threading.get_native_id())

    def block_until_exit(self, number: int) -> None:
        """Block a signal that the main thread raises itself, until the exit has delivered.

        Main thread only, as the next two.
        """
        if self.can_block():
            self.blocked.add(number)
            signal.pthread_sigmask(signal.SIG_BLOCK, {number})
            shutdown.call_last(self._unblock_at_exit)

    def unblock(self) -> None:
        """The process goes on."""
        while self.blocked:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {self.blocked.pop()})

    def _unblock_at_exit(self) -> None:
        # A signal that waits has the effect that it would have without us.
        for number in self.blocked:
            while isinstance(handler := signal.getsignal(number), _Handler):
                signal.signal(number, handler.before)
        with contextlib.suppress(SystemExit):  # by a handler: the process is ending already
            self.unblock()

    def close_inherited(self) -> None:
        """Close the parent's pipe, in a forked child; neither locks nor raises."""
        self.unblock()
        if self._pipe is None:
            return
        with contextlib.suppress(ValueError):  # on a thread that Python does not know as main
            _reset_wakeup_fd(self._pipe[1])
            for end in self._pipe:
                os.close(end.detach())


def _launch_from_handler(thread: threading.Thread) -> None:
    # Not `thread.start()` here: it takes locks, which the code that the handler interrupted may
    # hold.
    _thread.start_new_thread(thread.start, ())


def _reset_wakeup_fd(writer: socket.socket) -> None:
    """Have the interpreter write no more into *writer*; another one, an event loop's, stays."""
    before = signal.set_wakeup_fd(-1)
    if before not in (-1, writer.fileno()):
        signal.set_wakeup_fd(before, warn_on_full_buffer=False)


def _receive(reader: socket.socket) -> bytes:
    """The next byte; none where a fork hook closed it."""
    try:
        return reader.recv(1)
    except OSError:
        return b""


_here: Final[PerProcess[_Listener]] = PerProcess(_Listener, forget=_Listener.close_inherited)
