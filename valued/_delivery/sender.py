"""What a client sends with: configuration, and one `Pipeline` for each process.

A `Sender` survives forks; each process builds a pipeline of its own, with its first event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from valued._delivery.executors import ExecutorSpec
from valued._delivery.journal import NullJournal
from valued._delivery.pipeline import Pipeline
from valued._delivery.status import StatusMaker, no_status
from valued._options import timeout_seconds
from valued._process import shutdown
from valued._process.clock import CLOCK
from valued._process.facts import identity
from valued._process.fork import PerProcess

if TYPE_CHECKING:
    from collections.abc import Callable

    from valued._delivery.journal import Journal
    from valued._options import Options
    from valued._typing import SendBytes, Stats


class Sender:
    """Delivers accepted events by *send*. Any thread may call, in forked children too.

    *release* is called by `close`: it frees what the transport keeps open in this process.
    *journal* makes the journal of each process, *status* what writes its stats for others.
    """

    def __init__(
        self,
        send: SendBytes,
        options: Options,
        *,
        release: Callable[[], object] | None = None,
        journal: Callable[[], Journal] | None = None,
        status: StatusMaker | None = None,
    ) -> None:
        self._send = send
        self._options = options
        self._release = release
        self._journal: Callable[[], Any] = journal or NullJournal
        self._status = status or no_status
        self._spec = None if options.executor is None else ExecutorSpec(options.executor)
        self._here: PerProcess[Pipeline] = PerProcess(self._build)

    def accept(self, body: bytes) -> None:
        """Accept an encoded event. See `Pipeline.accept`."""
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
        if self._release is not None:
            self._release()
        return done

    def stats(self) -> Stats:
        """See `Client.stats`."""
        pid, started = identity()
        here = self._here.peek() or self._build()
        stats: Stats = {**here.stats(), "pid": pid, "started": started}  # type: ignore[typeddict-item]
        return stats

    def _build(self) -> Pipeline:
        return Pipeline(self._send, self._options, self._spec, self._journal(), self._status)


def flush_all(timeout: float | None) -> bool:
    """Flush all clients of this process; *timeout*: seconds for all of them together."""
    deadline = _deadline(timeout)
    # Ask each pipeline, even after the deadline: it may be done.
    return sum(not each.flush(deadline) for each in shutdown.registered()) == 0


def _deadline(timeout: float | None) -> float | None:
    seconds = timeout_seconds(timeout)
    return None if seconds is None else CLOCK.monotonic() + seconds
