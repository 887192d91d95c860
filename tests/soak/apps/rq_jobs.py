"""Jobs for RQ, and what enqueues them: many users' requests, in several threads."""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import redis
import rq

import valued
from tests.soak.apps.journal import record
from tests.soak.apps.units import expected, whose
from valued.integrations.rq import Queue

valued.connect()

# By name, as this module is another one where it is run as a program.
_JOBS = "tests.soak.apps.rq_jobs"


def plain(id: str, user: str | None) -> None:
    record(id, user)


def again(id: str, user: str | None) -> None:
    """Fails at first."""
    job = rq.get_current_job()
    assert job is not None
    left = job.retries_left or 0
    record(f"{id}-{left}", user)
    if left:
        raise RuntimeError("on purpose")


def enqueue(queue: Queue, number: int) -> int:
    """What the request of this number does; how many events that makes."""
    id, user = f"request{number}", whose(number)
    with valued.isolated({} if user is None else {"user": {"id": user, "name": "Ada"}}):
        if number % 5:
            queue.enqueue(f"{_JOBS}.plain", id, user)
            return 1
        queue.enqueue(f"{_JOBS}.again", id, user, retry=rq.Retry(max=1))
        return 2


if __name__ == "__main__":
    queue = Queue("soak", connection=redis.Redis.from_url(os.environ["BROKER"]))
    requests = range(int(sys.argv[1]))
    with ThreadPoolExecutor(4) as threads:
        count = sum(threads.map(lambda number: enqueue(queue, number), requests))
    print(json.dumps({"tasks": count, "expected": expected(requests)}))
