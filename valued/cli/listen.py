"""``valued listen``: runs the mock server, and shows what it receives.

The first line says where it listens. Each event is written to standard output when it is received;
the totals, at the end, to standard error.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Final, NoReturn

from valued._service import render
from valued._service.history import History
from valued._service.server import Listener

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from valued._service.server import Received

#: Opens the page, but not in a browser that needs a terminal, if BROWSER names one.
_OPENS: Final = """
import os, sys, webbrowser
browser = os.path.basename(getattr(webbrowser.get(), "name", ""))
if browser in ("www-browser", "w3m", "lynx", "links", "links2", "elinks"):
    sys.exit(1)
sys.exit(not webbrowser.open(sys.argv[1]))
"""


def run(arguments: argparse.Namespace) -> int:
    """Listen until a signal ends it, or the reader of its output closes the pipe."""
    try:
        report = _report(arguments)
    except OSError as error:
        render.complain(f"can't write to {arguments.events}: {error.strerror}")
        return 1
    try:
        listener = Listener(
            report,
            arguments.host,
            arguments.port,
            delay=arguments.delay,
            failures=arguments.fail,
            names=arguments.allow_host,
            history=History() if arguments.ui else None,
            forward_to=arguments.forward_to,
        )
    except OSError as error:
        render.complain(f"can't listen on {arguments.host}:{arguments.port}: {error.strerror}")
        return 1
    with _signals_interrupt():
        try:
            _introduce(listener, arguments)
            if arguments.until_eof:
                threading.Thread(target=_stop_at_eof, args=(listener,), daemon=True).start()
            listener.serve()
        except KeyboardInterrupt:
            pass
        finally:
            listener.close()
    print(listener.summary(), file=sys.stderr, flush=True)
    if listener.trouble is not None:
        raise listener.trouble
    return 0


def _report(arguments: argparse.Namespace) -> Callable[[Received], object]:
    """What is done with each event. Raises `OSError` where the file can't be opened."""
    printer = render.EventPrinter(sys.stdout)
    show = printer.lines if arguments.json else printer.pretty
    if arguments.events is None:
        return show
    # Until the process ends. For its user alone: it has what the events say of people.
    file = open(arguments.events, "a", encoding="ascii", opener=_private)  # noqa: SIM115
    keep = render.EventPrinter(file).lines

    def both(received: Received) -> None:
        keep(received)
        show(received)

    return both


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _introduce(listener: Listener, arguments: argparse.Namespace) -> None:
    """Say where it listens, and who can reach it."""
    stream = sys.stderr if arguments.json else sys.stdout
    print(f"Listening on {listener.url}", file=stream, flush=True)
    if arguments.ui:
        print(f"Page: {listener.page}", file=stream, flush=True)
    if not listener.is_private:
        sees = "read all events, and change what senders are answered" if arguments.ui else "send"
        render.complain(
            f"WARNING: not only this machine can reach {arguments.host}: other machines can {sees}"
        )
    if arguments.open:
        show(listener.page)


def show(page: str) -> None:
    """Open *page* in a browser, or say that there is none."""
    # On a thread, since a browser may run until it is closed.
    threading.Thread(target=_open, args=(page,), daemon=True).start()


def _open(page: str) -> None:
    # In a process of its own: a browser must not write into this one's streams, or read from its
    # terminal. Without TERM, Python looks for no browser in a terminal.
    ended = subprocess.run(  # noqa: S603 - all of it is ours
        [sys.executable, "-c", _OPENS, page],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={name: value for name, value in os.environ.items() if name != "TERM"},
        check=False,
    )
    if ended.returncode:
        render.complain(f"no browser can be opened: open {page} yourself")


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """In the block, SIGINT and SIGTERM raise `KeyboardInterrupt`, once."""
    numbers = signal.SIGINT, signal.SIGTERM

    def interrupt(number: int, frame: object) -> NoReturn:
        for number in numbers:  # what follows takes a bounded time, and must not be interrupted
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _stop_at_eof(listener: Listener) -> None:
    # Not through `sys.stdin`: this thread would hold its lock at the end of the process.
    with contextlib.suppress(OSError):  # it is closed
        while os.read(0, 4096):
            pass
    listener.stop()
