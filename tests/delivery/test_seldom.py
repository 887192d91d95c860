"""What happens seldom: a job that is run again, a file that is lost meanwhile, no journal."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import valued
from valued._delivery.entry import Spilled
from valued._delivery.journal import HANDED_OVER, Batch, NoFile, NullJournal
from valued._delivery.queue import Queue


class RunsTwice:
    """An executor that runs each job on two threads."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(4)

    def submit(self, fn: Any, /, *args: Any) -> object:
        self.pool.submit(fn, *args)
        return self.pool.submit(fn, *args)

    def shutdown(self, *, wait: bool = True) -> None:
        self.pool.shutdown(wait)


def test_an_executor_that_runs_a_job_again_sends_no_event_twice() -> None:
    got: Counter[str] = Counter()

    def transport(event: dict[str, Any]) -> None:
        time.sleep(0.002)  # long enough for the other thread to be in it, too
        got[event["key"]] += 1

    with valued.Client(transport, executor=RunsTwice) as client:
        for number in range(50):
            client.action(str(number), {"user.id": 1})
        assert client.flush(20)
    assert got == dict.fromkeys(map(str, range(50)), 1)


def test_an_event_on_the_disk_whose_file_is_lost_meanwhile_is_not_pending() -> None:
    queue, file = Queue(time.monotonic, on_disk=True), NoFile()
    file.lost = HANDED_OVER
    queue.inbox.append(Spilled(file, 100))
    stats = queue.figures()
    assert (stats["accepted"], stats["handed_over"], stats["pending"]) == (1, 1, 0)


def test_without_an_outbox_nothing_is_stored_and_nothing_is_to_be_done() -> None:
    journal, file = NullJournal(), NoFile()
    assert journal.append(b"{}", spill=False) is None
    journal.settled(file, 1)
    journal.reject("key", b"{}", valued.DeliveryError("no"))
    journal.loaded(cast("Batch", None))
    journal.unwatch()
    assert (journal.load(1, 1), journal.next_due(), journal.claimed()) == (None, None, 0)
    assert (*journal.claim(1), *journal.maintain(), *journal.release()) == ()
    looks = journal.is_untidy(), journal.is_claim_due(), journal.watch()
    assert not any((*looks, journal.wait_for_deaths(0.0)))
