"""What is logged about events that were dropped, or are lost as the process ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from valued._process.reporting import Reporter, counted, log

if TYPE_CHECKING:
    from valued._delivery.queue import Queue
    from valued._delivery.status import Status
    from valued._options import Options


class Losses:
    """What the losses of one process were, and which of them are logged. Any thread may call."""

    def __init__(self, queue: Queue, options: Options, reporter: Reporter, status: Status) -> None:
        self._queue = queue
        self._status = status
        self._options = options
        self._reporter = reporter
        self._not_delivered = 0  # events, as of the latest report
        self._reported: dict[str, int] = {}  # how many dropped events were logged, by reason
        self._logged_sending = 0  # logged as lost while a thread was still trying them
        self._logged_pending: tuple[float, int] = -1.0, 0  # deadline, count

    def report(self, *, last: bool = False) -> None:
        """Log which events were dropped, and why. *last*: there may be no later opportunity.

        It is called after each attempt, so the stats are noted here, too.
        """
        self._status.note(later=last)  # at the end, the disk is written to in a bounded time only
        outcomes = self._queue.counts.outcomes
        count = sum(outcomes.values()) - outcomes["delivered"]
        if count == self._not_delivered and not last:
            return  # as after nearly every attempt
        self._not_delivered, options = count, self._options
        for reason, line, limit in (
            ("age", "%d events were dropped: they were older than outbox_max_age (%g s)",
             options.outbox_max_age),
            ("size", "%d events were dropped: the outbox is larger than outbox_max_size (%d bytes)",
             options.outbox_max_size),
            ("damaged", "%d events were dropped: the outbox %s has damaged files",
             options.outbox),
        ):  # fmt: skip
            if new := self._new(reason):
                self._reporter.warn(reason, line, limit, count=new)
        if new := self._new("overflow"):
            self._reporter.overflown(new, options.max_queue, options.overflow)
        if last:
            self._reporter.log_remaining()

    def _new(self, reason: str) -> int:
        """How many events were dropped for *reason* since this was last asked."""
        count = self._queue.counts.outcomes.get(reason, 0)
        before, self._reported[reason] = self._reported.get(reason, 0), count
        return count - before

    def pending(self, deadline: float) -> None:
        """Log how many events were not delivered until *deadline*: the process may end."""
        with self._queue.lock:
            count = self._queue.pending()
        if count > 0:
            self._logged_pending = deadline, count
            line = (
                "%d events are not delivered after %g s: if the process ends now, they are lost, "
                "unless they are in an outbox"
            )
            if count == 1:
                line = line.replace("they are", "it is")
            log.warning(counted(line, count), count, self._options.seconds_at_end())

    def lost(self, count: int, deadline: float | None) -> None:
        """Log that the process ends, at *deadline*, with *count* events that no thread is sending.

        Several threads may call, one after the other: those that record at exit, and the one that
        ends the process. What other threads are still trying is counted the first time only.
        """
        sending = self._queue.sending(unsaved=True)
        count += max(0, sending - self._logged_sending)
        self._logged_sending = max(sending, self._logged_sending)
        if self._logged_pending[0] == deadline:
            count -= self._logged_pending[1]
        if count > 0:
            self._reporter.lost(count, self._options.seconds_at_end())
