"""Celery tasks that make reports, and record an event for each.

Start the mock server in one terminal, the workers in another, and some tasks in a third. Needs a
Redis on this machine, or another broker in CELERY_BROKER_URL::

    valued listen

    export VALUED_TOKEN=any-token VALUED_ENDPOINT=http://127.0.0.1:4567/events
    celery --app celery_tasks worker --concurrency 4 --max-tasks-per-child 100

    python celery_tasks.py
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, Task
from celery.signals import worker_init

import valued

# At import, which is before Celery forks its pool. That is the right place: each child makes its
# own threads and connections with its first event, and delivers what is pending when it ends.
valued.connect()

app = Celery("celery_tasks", broker=os.environ.get("CELERY_BROKER_URL", "redis://127.0.0.1:6379/0"))
app.conf.task_ignore_result = True


@worker_init.connect
def describe(**_: Any) -> None:
    """Define the goals once, in the parent."""
    valued.config(
        goals=[{"name": "First report", "action_key": "report.generated", "min_count": 1}]
    )
    # Celery forks next. The parent's threads would do no harm, but from Python 3.12 on a fork of a
    # process with threads causes a warning. So send what there is, and end the threads.
    valued.client().park()


@app.task
def update_profile(user: int, **fields: Any) -> None:
    valued.sync_user(fields, id=user)


@app.task(bind=True, max_retries=3)
def generate(self: Task, report: int, user: int) -> None:
    # Each task has a scope of its own: its events have this user, and the next task has none.
    valued.scope.user_id = user
    try:
        pages = render(report)
    except OSError as error:
        raise self.retry(exc=error, countdown=1) from error
    # Last: everything before it may fail, and a task that is retried records its events again.
    valued.action("report.generated", attributes={"report": report, "pages": pages})


def render(report: int) -> int:
    """A placeholder for the work. Returns the number of pages."""
    return report % 7 + 1


if __name__ == "__main__":
    for number in range(1, 21):
        update_profile.delay(number % 5, name=f"User {number % 5}")
        generate.delay(number, number % 5)
