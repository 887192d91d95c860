"""The client of a command: what the commands that send have in common."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import TYPE_CHECKING, Any

import valued

if TYPE_CHECKING:
    from collections.abc import Iterator

    from valued.cli import render

#: Seconds between two looks, while a command waits: how soon a progress bar moves, and where a
#: wait can't be interrupted (Windows), how soon Ctrl-C is noticed.
GLANCE = 0.1

#: Seconds that a command which is broken off still waits for what is on its way.
LAST_MOMENT = 1.0

#: What is said where `is_off`.
OFF = "nothing was sent: VALUED_DISABLED is set"


@contextlib.contextmanager
def variables(**values: str) -> Iterator[None]:
    """Set variables of the environment in the block.

    A forked child that leaves through its end keeps them: it has events to send yet.
    """
    here = os.getpid()
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        _restore(before, here)


def _restore(before: dict[str, str | None], here: int) -> None:
    if os.getpid() != here:
        return
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@contextlib.contextmanager
def client(token: str | None, endpoint: str | None, **options: Any) -> Iterator[valued.Client]:
    """A client, closed with the block; what is not delivered then is dropped.

    It sends in the background wherever it runs: what ``VALUED_ENV`` and its like say is meant for
    an application, and the command line is one of its own. So are ``VALUED_OUTBOX``, and what is
    to become of bad input and of events of nobody: a command says that they are wrong.
    """
    # A command says itself what became of its events, and when; the log would say it again.
    logging.getLogger("valued").addHandler(logging.NullHandler())
    with variables(VALUED_ENV="production", VALUED_OUTBOX=""):
        sender = valued.Client(
            *(token, endpoint),
            shutdown_timeout=LAST_MOMENT,
            invalid="raise",
            anonymous="raise",
            **options,
        )
        try:
            yield sender
        finally:
            sender.close(LAST_MOMENT)


def settle(sender: valued.Client) -> Iterator[None]:
    """Wait until all events are settled; yields at each look in between."""
    while not sender.flush(GLANCE):
        yield


def is_off() -> bool:
    """Whether ``VALUED_DISABLED`` is set, which counts for commands, too."""
    # What is neither on nor off, a client refuses.
    return os.environ.get("VALUED_DISABLED", "").strip().lower() in ("1", "true", "yes", "on")


def is_recorded() -> bool:
    """Whether a test that started this process gets the events, in place of the service."""
    return bool(os.environ.get("VALUED_RECORD"))


class _Said(logging.Handler):
    def __init__(self, progress: render.Progress, thread: int | None) -> None:
        super().__init__(logging.WARNING)
        self._progress = progress
        self._thread = thread

    def emit(self, record: logging.LogRecord) -> None:
        if self._thread in (None, record.thread):
            self._progress.say(f"valued: {record.getMessage()}")


@contextlib.contextmanager
def warnings(progress: render.Progress, *, of_this_thread: bool = False) -> Iterator[None]:
    """Say what the library warns of: that a service is down, long before an event is given up.

    *of_this_thread*: only what is wrong with the calls that this thread makes.
    """
    logger = logging.getLogger("valued")
    handler = _Said(progress, threading.get_ident() if of_this_thread else None)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
