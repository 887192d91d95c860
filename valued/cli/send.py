"""``valued send``: delivers events from a file, one JSON object per line, as they are sent by HTTP.

They are recorded in chunks, and each chunk is settled before the next one is read. A chunk is far
smaller than a client's queue, so no event can be lost by overflow, and memory is bounded whatever
the size of the file.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple

import valued
from valued._service import render, strict_json
from valued.cli import delivery

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

#: Lines in a chunk: a fifth of a client's queue, and some seconds of work.
CHUNK_LINES: Final = 2000

#: Attempts after the first: a minute and a half at most, since a user waits for the result.
RETRIES: Final = 8


#: The most bytes in a chunk, and in a line. As ASCII JSON it is at most three times as large, far
#: below the 64 MiB of a queue.
CHUNK_BYTES: Final = 8 * 1024 * 1024

_BOM: Final = b"\xef\xbb\xbf"


class _Line(NamedTuple):
    number: int
    event: dict[str, Any]
    #: Bytes of the file up to its end.
    position: int
    #: Why there is no event.
    reason: str = ""


def run(arguments: argparse.Namespace) -> int:
    """Deliver the file; 0 if every line was an event and was delivered."""
    if arguments.file == "-":
        if sys.stdin is None:
            render.complain("can't read standard input: it is closed")
            return 2
        return _send(sys.stdin.buffer, "<stdin>", arguments)
    try:
        file = open(arguments.file, "rb")  # noqa: SIM115 - closed below; only this may fail so
    except OSError as error:
        render.complain(f"can't read {arguments.file}: {error.strerror}")
        return 2
    with file:
        return _send(file, arguments.file, arguments)


def _send(file: BinaryIO, name: str, arguments: argparse.Namespace) -> int:
    failures: list[tuple[valued.DeliveryError, dict[str, Any]]] = []

    def on_error(error: valued.DeliveryError, event: dict[str, Any]) -> None:
        failures.append((error, event))

    with (
        render.progress(_size(file)) as progress,
        delivery.warnings(progress),
        delivery.client(
            arguments.token, arguments.endpoint, retries=RETRIES, on_error=on_error
        ) as client,
    ):
        sending = _Sending(client, name, failures, progress)
        try:
            sending.all_of(file)
        except KeyboardInterrupt:
            client.close(delivery.LAST_MOMENT)
            sending.tell_failures()
            interrupted = True
        else:
            interrupted = False
    print(sending.summary(), file=sys.stderr, flush=True)
    if interrupted:
        raise KeyboardInterrupt
    if delivery.is_off() and not delivery.is_recorded():
        render.complain(delivery.OFF)
        return 1
    return 0 if sending.all_is_well() else 1


class _Sending:
    """The delivery of one file."""

    def __init__(
        self,
        client: valued.Client,
        name: str,
        failures: list[tuple[valued.DeliveryError, dict[str, Any]]],
        progress: render.Progress,
    ) -> None:
        self._client = client
        self._name = name
        self._failures = failures  # of this chunk; the client's threads add to it
        self._progress = progress
        self._chunk: list[_Line] = []
        self._bad = 0

    def all_of(self, file: BinaryIO) -> None:
        began_at = position = 0
        for line in _lines(file):
            self._record(line)
            position = line.position
            if len(self._chunk) >= CHUNK_LINES or position - began_at >= CHUNK_BYTES:
                self._settle(began_at, position)
                began_at = position
        self._settle(began_at, position)

    def _record(self, line: _Line) -> None:
        try:
            if line.reason:
                raise valued.ValidationError(line.reason)
            event = valued.normalize(line.event)
            _record(self._client, event)
        except valued.ValuedError as error:
            self._bad += 1
            self._progress.say(f"{self._name}:{line.number}: {error}")
        else:
            self._chunk.append(line._replace(event=event))

    def _settle(self, began_at: int, position: int) -> None:
        """Wait for the chunk's events, and print which of them failed."""
        before = self._client.stats()["pending"] if self._progress.is_shown else 0
        for _ in delivery.settle(self._client):
            if self._progress.is_shown:
                stats = self._client.stats()
                done = 1 - stats["pending"] / max(1, before, stats["pending"])
                here = began_at + round(done * (position - began_at))
                self._progress.at(here, stats["delivered"])
        self.tell_failures()
        if self._progress.is_shown:
            self._progress.at(position, self._client.stats()["delivered"])
        self._chunk.clear()

    def tell_failures(self) -> None:
        """Print the lines whose events failed permanently, in the order of the file."""
        if not self._failures:
            return
        numbers = _numbers(self._chunk)
        told = []
        for error, event in self._failures:
            # Identical lines can't be distinguished, and needn't be.
            lines = numbers.get(_identity(event)) or numbers[_identity(_untimed(event))]
            told.append((lines.pop(), str(error)))
        self._failures.clear()
        for number, reason in sorted(told):
            self._progress.say(f"{self._name}:{number}: not delivered: {reason}")

    def summary(self) -> str:
        stats = self._client.stats()
        lost = stats["accepted"] - stats["delivered"] - stats["failed"]
        bad = render.counted(self._bad, "bad line")
        text = f"{stats['delivered']} delivered, {stats['failed']} failed, {bad}"
        if stats["disabled"] and delivery.is_recorded():
            text += f", {stats['disabled']} recorded for a test"
        return f"{text}, {lost} not delivered" if lost else text

    def all_is_well(self) -> bool:
        stats = self._client.stats()
        return not self._bad and stats["delivered"] == stats["accepted"]


def _record(client: valued.Client, event: dict[str, Any]) -> None:
    """Record a normalized event, as sent by HTTP, with the method for its category."""
    valued.validate(event)
    match event["category"]:
        case "action":
            client.action(event["key"], event)
        case "pageview":
            client.page_view(event["attributes"]["source"]["url"], event)
        case "sync":
            client.sync(event)
        case _:
            # Pass all fields, so that those that a config can't have cause an error.
            rest = {name: event[name] for name in event.keys() - {"category", "data"}}
            client.config(event["data"], **rest)


def _numbers(chunk: list[_Line]) -> dict[str, list[int]]:
    """The numbers of the lines, last one first, by the events that a client makes of them."""
    made: list[dict[str, Any]] = []
    maker = valued.Client(made.append, executor=valued.ImmediateExecutor())
    numbers: dict[str, list[int]] = {}
    for line in reversed(chunk):
        _record(maker, line.event)
        event = made.pop()
        # If the line has no time, the call adds its own.
        timed = line.event.get("occured_at") is not None
        numbers.setdefault(_identity(event if timed else _untimed(event)), []).append(line.number)
    return numbers


# -- lines -----------------------------------------------------------------------------------------


def _lines(file: BinaryIO) -> Iterator[_Line]:
    position = number = 0
    while raw := file.readline(CHUNK_BYTES):
        number += 1
        position += len(raw)
        if len(raw) == CHUNK_BYTES and not raw.endswith(b"\n"):
            while not raw.endswith(b"\n") and (raw := file.readline(CHUNK_BYTES)):
                position += len(raw)
            yield _Line(number, {}, position, f"the line is longer than {CHUNK_BYTES} bytes")
            continue
        if number == 1:
            raw = raw.removeprefix(_BOM)
        if raw.strip():
            yield _parsed(number, raw, position)


def _parsed(number: int, raw: bytes, position: int) -> _Line:
    try:
        event = strict_json.parsed(raw)
    except ValueError as error:
        return _Line(number, {}, position, str(error))
    if isinstance(event, dict):
        return _Line(number, event, position)
    reason = f'expected an object, such as {{"category": …}}, got {type(event).__name__}'
    return _Line(number, {}, position, reason)


def _identity(event: object) -> str:
    return json.dumps(event, sort_keys=True)


def _untimed(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "occured_at"}


def _size(file: BinaryIO) -> int | None:
    """Bytes of a file; None if that is not known, as for a pipe."""
    status = os.fstat(file.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None
