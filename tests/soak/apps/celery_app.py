"""A Celery application, and what publishes its tasks: many users' requests, in several threads."""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

from celery import Celery, Task, chain, group

import valued
from tests.soak.apps.journal import record
from tests.soak.apps.units import expected, whose
from valued.integrations.celery import carry_scope

app = Celery("tests.soak.apps.celery_app", broker=os.environ["BROKER"])
app.conf.result_backend = os.environ["BROKER"]
app.conf.task_always_eager = "EAGER" in os.environ
carry_scope()
valued.connect()


@app.task
def plain(id: str, user: str | None) -> None:
    record(id, user)


@app.task(bind=True, max_retries=1)
def again(self: Task, id: str, user: str | None) -> None:
    """Runs twice."""
    record(f"{id}-{self.request.retries}", user)
    if self.request.retries < self.max_retries:
        raise self.retry(countdown=0)


@app.task
def relays(id: str, user: str | None) -> None:
    record(f"{id}-0", user)
    plain.delay(f"{id}-1", user)


def publish(number: int) -> int:
    """What the request of this number does; how many tasks that makes."""
    id, user = f"request{number}", whose(number)
    with valued.isolated({} if user is None else {"user": {"id": user, "name": "Ada"}}):
        how = number % 5
        if how == 0:
            plain.delay(id, user)
        elif how == 1:
            again.delay(id, user)
        elif how == 2:
            relays.delay(id, user)
        else:
            make = chain if how == 3 else group
            make(plain.si(f"{id}-0", user), plain.si(f"{id}-1", user))()
    return 1 if how == 0 else 2


if __name__ == "__main__":
    requests = range(int(sys.argv[1]))
    # Celery's eager tasks of one thread get into the way of another one's chains.
    with ThreadPoolExecutor(1 if "EAGER" in os.environ else 4) as threads:
        count = sum(threads.map(publish, requests))
    print(json.dumps({"tasks": count, "expected": expected(requests)}))
