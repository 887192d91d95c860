"""``valued listen``: runs the mock server, and shows what it receives.

The first line says where it listens. Each event is written to standard output when it is received;
the totals, at the end, to standard error.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

from valued._service import render
from valued._service.server import Listener

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator


def run(arguments: argparse.Namespace) -> int:
    """Listen until a signal ends it, or the reader of its output closes the pipe."""
    printer = render.EventPrinter(sys.stdout)
    try:
        listener = Listener(
            printer.lines if arguments.json else printer.pretty,
            arguments.host,
            arguments.port,
            delay=arguments.delay,
            failures=arguments.fail,
            names=arguments.allow_host,
        )
    except OSError as error:
        render.complain(f"can't listen on {arguments.host}:{arguments.port}: {error.strerror}")
        return 1
    with _signals_interrupt():
        try:
            stream = sys.stderr if arguments.json else sys.stdout
            print(f"Listening on {listener.url}", file=stream, flush=True)
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
