"""The client of a command: what all commands that send need."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import TYPE_CHECKING, Any

import valued

if TYPE_CHECKING:
    from collections.abc import Iterator

    from valued._service import render

#: Seconds between two looks while a command waits: how soon a progress bar moves, and how soon
#: Ctrl-C is noticed if a wait can't be interrupted (Windows).
GLANCE = 0.1

#: Seconds that an interrupted command still waits for deliveries in progress.
LAST_MOMENT = 1.0

#: The message if `is_off`.
OFF = "nothing was sent: VALUED_DISABLED is set"


@contextlib.contextmanager
def variables(**values: str) -> Iterator[None]:
    """Set environment variables in the block.

    A forked child that leaves the block keeps them: it still has events to send.
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
    """A client, closed after the block; events that are not delivered then are dropped.

    Variables that are meant for an application don't apply to the command line. It always sends in
    the background, whatever ``VALUED_ENV`` is, and ignores ``VALUED_OUTBOX``. Bad input, and an
    event without a user or customer, are errors.
    """
    # A command itself reports what happened to its events; the log would repeat it.
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
    """Wait until all events are settled; yields after each look in between."""
    while not sender.flush(GLANCE):
        yield


def is_off() -> bool:
    """Whether ``VALUED_DISABLED`` is set, which applies to commands, too."""
    # A client refuses a value that means neither on nor off.
    return os.environ.get("VALUED_DISABLED", "").strip().lower() in ("1", "true", "yes", "on")


def is_recorded() -> bool:
    """Whether a test that started this process gets the events, instead of the service."""
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
    """Show the library's warnings: that a service is down, long before an event fails permanently.

    *of_this_thread*: show only what is wrong with the calls that this thread makes.
    """
    logger = logging.getLogger("valued")
    handler = _Said(progress, threading.get_ident() if of_this_thread else None)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
