"""Outbox → executor → transport, in every process.

A `Sender` is configuration and survives forks; each process builds a `ProcessSender` of its own,
with its first event.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from valued._delivery.executors import Given
from valued._delivery.memory import MemoryOutbox
from valued._delivery.process_sender import ProcessSender
from valued._options import timeout_seconds
from valued._process import fork, shutdown

if TYPE_CHECKING:
    from collections.abc import Callable

    from valued._options import Options
    from valued._typing import Outbox, Stats, Wire


class Sender:
    """Delivers accepted events by *wire*. Any thread may call, in forked children too.

    *release* is called by `close`: it frees what the transport keeps open in this process.
    """

    def __init__(
        self,
        wire: Wire,
        options: Options,
        *,
        release: Callable[[], object] = lambda: None,
        outbox: Callable[[], Outbox] | None = None,
    ) -> None:
        self._wire = wire
        self._options = options
        self._release = release
        self._outbox = outbox or self._memory
        self._given = None if options.executor is None else Given(options.executor)
        self._here = fork.PerProcess(self._build)

    def accept(self, body: bytes) -> None:
        """Accept an encoded event. Does no I/O, unless the executor runs jobs synchronously."""
        self._here.get().accept(body)

    def adopt(self) -> int:
        """See `Client.adopt`."""
        return self._here.get().adopt()

    def flush(self, timeout: float | None) -> bool:
        """See `Client.flush`."""
        deadline = _deadline(timeout)
        here = self._here.peek()
        return here is None or here.flush(deadline)

    def park(self, timeout: float | None) -> bool:
        """See `Client.park`."""
        deadline = _deadline(timeout)
        here = self._here.peek()
        return here is None or here.park(deadline)

    def close(self, timeout: float | None) -> bool:
        """See `Client.close`."""
        deadline = _deadline(timeout)
        here = self._here.peek()
        done = here is None or here.close(deadline)
        self._release()
        return done

    def stats(self) -> Stats:
        """See `Client.stats`."""
        pid, started = fork.identity()
        here = self._here.peek()
        figures = (self._outbox() if here is None else here.outbox).figures()
        stats: Stats = {**figures, "pid": pid, "started": started}  # type: ignore[typeddict-item]
        return stats

    def _memory(self) -> Outbox:
        options = self._options
        return MemoryOutbox(options.max_queue, overflow=options.overflow, block=options.timeout)

    def _build(self) -> ProcessSender:
        return ProcessSender(self._wire, self._options, self._given, self._outbox())


def flush_all(timeout: float | None) -> bool:
    """Flush all clients of this process; *timeout*: seconds for all of them together."""
    deadline = _deadline(timeout)
    # Ask each sender, even after the deadline: it may be done.
    return sum(not sender.flush(deadline) for sender in shutdown.enrolled()) == 0


def _deadline(timeout: float | None) -> float | None:
    seconds = timeout_seconds(timeout)
    return None if seconds is None else time.monotonic() + seconds
