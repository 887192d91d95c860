"""The output of commands: plain text, or with rich on a terminal if rich is installed.

The content comes from outside, so unprintable characters are escaped: a terminal obeys control
characters.
"""

from __future__ import annotations

import contextlib
import json
import sys
import textwrap
import threading
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import Console, Group


class Shown(Protocol):
    """The parts of a received event that are shown."""

    @property
    def event(self) -> dict[str, Any]: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def process(self) -> str | None: ...
    @property
    def connection(self) -> str: ...
    @property
    def idempotency_key(self) -> str | None: ...


def printable(text: str) -> str:
    """*text* with unprintable characters escaped as in JSON; line breaks stay."""
    return "".join(
        letter if letter == "\n" or letter.isprintable() else json.dumps(letter)[1:-1]
        for letter in text
    )


def line(text: str) -> str:
    """The same on one line: a name from outside can't look like several lines of output."""
    return printable(text).replace("\n", "\\n")


def counted(count: int, one: str, many: str = "") -> str:
    """*count* and the noun: "1 event", "2 events". *many*: default *one* with an s."""
    return f"{count} {one if count == 1 else many or f'{one}s'}"


def complain(message: str) -> None:
    """Print on standard error what is wrong."""
    print(f"valued: {printable(message)}", file=sys.stderr, flush=True)


def console(stream: TextIO) -> Console | None:
    """A rich console on *stream*; None: it isn't a terminal, or rich isn't installed."""
    if not stream.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(file=stream, highlight=False, soft_wrap=True)


class EventPrinter:
    """Prints events on *stream*, each as a whole, and flushed before the call returns.

    Any thread may call. Raises what writing raises, such as `BrokenPipeError`.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._console = console(stream)
        self._lock = threading.Lock()  # held while one event is written

    def lines(self, received: Shown) -> None:
        """One line of JSON for each event."""
        line = json.dumps(
            {
                "event": received.event,
                "pid": received.pid,
                "process": received.process,
                "connection": received.connection,
                "idempotency_key": received.idempotency_key,
            }
        )
        self._write(f"{line}\n")

    def pretty(self, received: Shown) -> None:
        """A heading with the kind of event and its sender, and the event below it."""
        heading, sender, body = event_text(received)
        if self._console is None:
            self._write(f"{heading} {sender}\n{body}\n")
            return
        from rich.highlighter import JSONHighlighter
        from rich.text import Text

        text = Text.assemble((heading, "bold cyan"), " ", (sender, "dim"), "\n")
        text.append_text(JSONHighlighter()(body))
        with self._lock:
            self._console.print(text)
            self._stream.flush()

    def _write(self, text: str) -> None:
        with self._lock:
            self._stream.write(text)
            self._stream.flush()


def event_text(received: Shown) -> tuple[str, str, str]:
    """The kind of event, its sender, and the event itself."""
    event = received.event
    heading = f"{event['category']} {event.get('key') or ''}".rstrip()
    if received.pid is None:
        sender = f"from {received.connection}"
    else:
        sender = f"from {received.process} (pid {received.pid}) on {received.connection}"
    return line(heading), line(sender), printable(json.dumps(event, indent=2, ensure_ascii=False))


def _cells(
    headings: Sequence[str], rows: Sequence[Sequence[object]]
) -> tuple[list[list[str]], list[bool]]:
    """The texts of the cells, and which columns are aligned to the right."""
    texts = [[printable(str(cell)) for cell in row] for row in rows]
    right = [
        all(isinstance(row[column], int) or row[column] == "" for row in rows)
        for column in range(len(headings))
    ]
    return texts, right


def table(
    stream: TextIO,
    headings: Sequence[str],
    rows: Sequence[Sequence[object]],
    notes: Sequence[str] = (),
) -> None:
    """Print *rows*; columns of numbers are aligned to the right. The last row contains totals.

    *notes*: lines below the table.
    """
    texts, right = _cells(headings, rows)
    terminal = console(stream)
    if terminal is None:
        _plain_table(stream, headings, texts, right)
        stream.writelines(f"{printable(note)}\n" for note in notes)
        stream.flush()
        return
    terminal.print(_grid(headings, texts, right, notes))
    stream.flush()


def _grid(
    headings: Sequence[str], texts: list[list[str]], right: list[bool], notes: Sequence[str]
) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    grid = Table()
    for heading, to_right in zip(headings, right, strict=True):
        grid.add_column(heading, justify="right" if to_right else "left", overflow="fold")
    for number, row in enumerate(texts, 1):
        if number == len(texts):
            grid.add_section()
        grid.add_row(*map(Text, row))
    return Group(grid, *(Text(printable(note)) for note in notes))


@contextlib.contextmanager
def redrawn(
    stream: TextIO, headings: Sequence[str]
) -> Iterator[Callable[[Sequence[Sequence[object]], Sequence[str]], None]]:
    """A function that shows rows and notes as `table` does, in place of those before them.

    Where *stream* is no terminal, or rich isn't installed, each table follows the one before.
    """
    terminal = console(stream)
    if terminal is None:
        yield lambda rows, notes: table(stream, headings, rows, notes)
    else:
        from rich.live import Live

        with Live(console=terminal, screen=True, auto_refresh=False) as live:

            def show(rows: Sequence[Sequence[object]], notes: Sequence[str]) -> None:
                # In a `Live` on a screen of its own, long lines are cut, and not wrapped.
                lines = [line for note in notes for line in textwrap.wrap(note, terminal.width)]
                live.update(_grid(headings, *_cells(headings, rows), lines), refresh=True)

            yield show


def _plain_table(
    stream: TextIO, headings: Sequence[str], texts: list[list[str]], right: list[bool]
) -> None:
    lines = [list(headings), *texts]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    for line in lines:
        cells = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ]
        stream.write("  ".join(cells).rstrip() + "\n")
    stream.flush()


class Progress:
    """The progress of a long command, on standard error; nothing if that isn't a terminal."""

    @property
    def is_shown(self) -> bool:
        """Whether it is visible."""
        return False

    def at(self, position: int, events: int) -> None:
        """Show the progress. *position*: bytes done; *events*: how many were delivered."""

    def say(self, message: str) -> None:
        """Print a line, without disturbing the progress bar. Any thread may call."""
        print(printable(message), file=sys.stderr, flush=True)


class _Bar(Progress):
    def __init__(self, bar: Any, task: Any) -> None:
        self._bar = bar
        self._task = task

    @property
    def is_shown(self) -> bool:
        return True

    def at(self, position: int, events: int) -> None:
        self._bar.update(self._task, completed=position, events=events)

    def say(self, message: str) -> None:
        from rich.text import Text

        self._bar.console.print(Text(printable(message)))


@contextlib.contextmanager
def progress(total: int | None) -> Iterator[Progress]:
    """Show progress while the block runs. *total*: bytes; None: unknown, then count events."""
    terminal = console(sys.stderr)
    if terminal is None:
        yield Progress()
        return
    from rich import progress as bars

    columns: list[bars.ProgressColumn] = [bars.TextColumn("{task.fields[events]} delivered")]
    if total is not None:
        columns += [bars.BarColumn(), bars.TaskProgressColumn(), bars.TimeRemainingColumn()]
    columns.append(bars.TimeElapsedColumn())
    with bars.Progress(*columns, console=terminal) as bar:
        yield _Bar(bar, bar.add_task("", total=total, events=0))
