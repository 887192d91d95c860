"""The directories of the outbox and of the stats: rights, space, and what dead processes left."""

from __future__ import annotations

import os
import shlex
import shutil
from typing import TYPE_CHECKING, Final

import valued
from valued.cli.doctor.result import Result, fail, ok, skipped, warn
from valued.cli.outbox import GONE

if TYPE_CHECKING:
    from collections.abc import Iterator

_MB: Final = 1024 * 1024

#: Bytes below which an outbox soon drops events: two of its files.
LEAST: Final = 8 * _MB

#: Bytes that an outbox may take by default (`outbox_max_size`).
USUAL: Final = 1024 * _MB


def checks(directory: str | None) -> Iterator[Result]:
    """All of them, for *directory*; default ``VALUED_OUTBOX``."""
    if status := os.environ.get("VALUED_STATUS"):
        yield stats(os.path.abspath(status))
    given = directory or os.environ.get("VALUED_OUTBOX")
    if not given:
        for check in ("outbox", "space", "owners"):
            yield skipped(check, "no outbox is set (--outbox, VALUED_OUTBOX)")
        return
    path = os.path.abspath(given)
    yield (found := rights(path))
    if found.status == "fail":
        for check in ("space", "owners"):
            yield skipped(check, "the outbox can't be used")
        return
    yield space(path)
    if os.path.isdir(path):
        yield from owners(path)
    else:
        yield skipped("owners", "the outbox does not exist yet")


def rights(path: str) -> Result:
    """Whether this user can use the directory, or make it."""
    try:
        # As a client checks it; it makes no file before its first event.
        valued.Client(
            lambda _event: None,
            outbox=path,
            # Not as variables have them, which have a check of their own.
            enabled=True,
            isolate_tasks=True,
            invalid="raise",
            anonymous="raise",
        ).close(0)
        if os.path.isdir(path):
            valued.Outbox(path).owners()
    except (valued.ValidationError, OSError) as error:
        text = str(error).removeprefix("outbox: ")
        there = _there(path)
        return fail("outbox", text, _new(path) if os.path.isdir(there) else _aside(there))
    if not os.path.isdir(path):
        return ok("outbox", f"{path} does not exist yet, and a client can make it")
    return ok("outbox", f"{path} can be used by this user")


def _there(path: str) -> str:
    """*path*, or what is above it and exists."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


def _aside(path: str) -> str:
    quoted = shlex.quote(path)
    return f"mv -n {quoted} {quoted}.old"


def _new(path: str) -> str:
    return f"sudo install -d -m 0700 -o $(id -un) {shlex.quote(path)}"


def stats(path: str) -> Result:
    """Whether this user can write stats into the directory, or make it."""
    there = _there(path)
    if not os.path.isdir(there):
        return fail("stats", f"VALUED_STATUS: {there} is no directory", _aside(there))
    if not os.access(there, os.W_OK | os.X_OK):  # pragma: no cover - root may write everywhere
        text = f"VALUED_STATUS: {there} can't be written to by this user"
        # It may be shared by the users of an application.
        fix = f"sudo chmod a+rwx {shlex.quote(path)}" if there == path else _new(path)
        return fail("stats", text, fix)
    return ok("stats", f"{path} can be used by this user")


def space(path: str) -> Result:
    """How much the disk can still take."""
    there = _there(path)
    free = shutil.disk_usage(there).free
    text = f"{free / _MB:,.0f} MiB are free"
    fix = f"df -h {shlex.quote(there)}"
    if free < LEAST:
        return fail("space", f"{text}: events will be dropped", fix)
    if free < USUAL:
        return warn("space", f"{text}; an outbox may take {USUAL / _MB:,.0f} MiB by default", fix)
    return ok("space", text)


def owners(path: str) -> Iterator[Result]:
    """Whether processes that died left events, and whether the service refused some."""
    outbox = valued.Outbox(path)
    quoted = shlex.quote(path)
    left = [owner for owner in outbox.owners() if owner.state in GONE and owner.events]
    if left:
        events = sum(owner.events for owner in left)
        yield warn(
            "owners",
            f"{events} undelivered events of processes that ended; the next process that uses the "
            "outbox delivers them",
            f"valued outbox {quoted} send",
        )
    else:
        yield ok("owners", "no process left undelivered events")
    refused = sum(1 for _ in outbox.rejected())
    if refused:
        text = f"the service refused {refused} of its events, which are kept"
        yield warn("rejected", text, f"valued outbox {quoted} rejected")
