"""``valued outbox``: inspects an outbox directory, and delivers what processes left in it."""

from __future__ import annotations

import datetime
import json
import os
import stat
import sys
import time
from typing import TYPE_CHECKING

import valued
from valued._service import render
from valued.cli import delivery

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

#: The states of owners whose events `send` takes over.
GONE = ("dead", "expired")


def run(arguments: argparse.Namespace) -> int:
    """Run the command in *arguments*; returns the exit status."""
    outbox = valued.Outbox(arguments.directory)
    match arguments.what:
        case "send":
            return _send(outbox, arguments)
        case "rejected":
            return _rejected(outbox, arguments)
        case "export":
            return _write(arguments.file, outbox.events())
        case "purge":
            return _purge(outbox, arguments)
        case _:
            return _status(outbox)


def _status(outbox: valued.Outbox) -> int:
    owners = outbox.owners()
    rows: list[list[object]] = [
        [
            owner.state,
            "" if owner.pid is None else owner.pid,
            owner.host or "",
            owner.events,
            owner.bytes,
            _ago(owner.oldest),
        ]
        for owner in owners
    ]
    oldest = min((owner.oldest for owner in owners if owner.oldest is not None), default=None)
    events, size = sum(owner.events for owner in owners), sum(owner.bytes for owner in owners)
    rows.append(["all", "", "", events, size, _ago(oldest)])
    render.table(sys.stdout, ["owner", "pid", "host", "events", "bytes", "oldest"], rows)
    print(f"{sum(1 for _ in outbox.rejected())} rejected")
    return 0


def _ago(moment: float | None) -> str:
    if moment is None:
        return ""
    return f"{datetime.timedelta(seconds=round(max(0.0, time.time() - moment)))} ago"


def _send(outbox: valued.Outbox, arguments: argparse.Namespace) -> int:
    """Deliver what dead owners left; 0 if all of it was delivered.

    Ends after a while without progress, if the service is down; the rest stays in the outbox.
    """
    if delivery.is_off():
        render.complain(delivery.OFF)
        return 1
    total = sum(owner.events for owner in outbox.owners() if owner.state in GONE)
    with (
        render.progress(total) as progress,
        delivery.warnings(progress),
        delivery.client(arguments.token, arguments.endpoint, outbox=arguments.directory) as client,
    ):
        interrupted = False
        finished = False
        try:
            finished = _deliver(client, outbox, progress, arguments.timeout)
        except KeyboardInterrupt:
            interrupted = True
        client.close(delivery.LAST_MOMENT)  # hands over what is pending
        stats = client.stats()
    lost = stats["failed"] + stats["dropped"]
    text = f"{stats['delivered']} delivered, {stats['failed']} rejected, {stats['dropped']} dropped"
    print(text, file=sys.stderr, flush=True)
    if interrupted:
        raise KeyboardInterrupt
    if not finished:
        left = sum(owner.events for owner in outbox.owners() if owner.state in GONE)
        render.complain(
            f"nothing was delivered for {arguments.timeout:g} s (--timeout); "
            f"{render.counted(left, 'event remains', 'events remain')} in the outbox"
        )
    return 0 if finished and not lost else 1


def _deliver(
    client: valued.Client, outbox: valued.Outbox, progress: render.Progress, timeout: float
) -> bool:
    """Deliver until nothing is left; False: there was no progress for *timeout* seconds."""
    settled, since = 0, time.monotonic()
    while True:
        client.adopt()
        stats = client.stats()
        progress.at(stats["delivered"], stats["delivered"])
        if not stats["pending"] and not _is_left(outbox):
            return True
        before, settled = settled, stats["delivered"] + stats["failed"] + stats["dropped"]
        if settled > before:
            since = time.monotonic()
        elif time.monotonic() - since >= timeout:
            return False
        time.sleep(delivery.GLANCE)


def _is_left(outbox: valued.Outbox) -> bool:
    """Whether dead owners have events left, or this process has claimed some and not read them."""
    here = ("alive", os.getpid())
    return any(
        owner.events and (owner.state in GONE or (owner.state, owner.pid) == here)
        for owner in outbox.owners()
    )


def _rejected(outbox: valued.Outbox, arguments: argparse.Namespace) -> int:
    """Show what was refused and why; or write the events to a file, to be corrected; or delete."""
    if arguments.export:
        return _write(arguments.export, (one.event for one in outbox.rejected()))
    if arguments.forget:
        outbox.forget_rejected()
        return 0
    for one in outbox.rejected():
        at = datetime.datetime.fromtimestamp(one.at).astimezone().isoformat(timespec="seconds")
        answer = f": {one.body}" if one.body else ""
        print(render.printable(f"{at} {one.reason}{answer}"))
        print(json.dumps(one.event))
    return 0


def _purge(outbox: valued.Outbox, arguments: argparse.Namespace) -> int:
    """Delete undelivered events of dead owners; 0 unless the answer was no."""
    events = sum(owner.events for owner in outbox.owners() if owner.state in GONE)
    if not arguments.yes:
        shown = render.counted(events, "event")
        print(f"Permanently delete {shown} that no process will deliver? [y/N] ", end="")
        sys.stdout.flush()
        answer = sys.stdin.readline()
        if not answer:
            print("\nvalued: no answer, so nothing was removed; pass --yes", file=sys.stderr)
            return 1
        if answer.strip().lower() not in ("y", "yes"):
            print("nothing was removed", file=sys.stderr)
            return 1
    print(f"{render.counted(outbox.purge(), 'event')} removed", file=sys.stderr)
    return 0


def _write(path: str, events: Iterable[object]) -> int:
    """Write one JSON object per line, for ``valued send``."""
    if path == "-":
        for event in events:
            print(json.dumps(event))
        return 0
    count = 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):  # else a pipe, or /dev/stdout
            # The events are private. Also restrict a file that existed already.
            os.fchmod(descriptor, 0o600)
            os.ftruncate(descriptor, 0)
        for event in events:
            file.write(json.dumps(event) + "\n")
            count += 1
    print(render.counted(count, "event"), file=sys.stderr)
    return 0
