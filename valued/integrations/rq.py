"""RQ: a scope of its own for each job, with the ids of the code that enqueued it.

>>> from valued.integrations.rq import Queue
>>> queue = Queue("reports", connection=redis)

On the command line: ``rq worker --worker-class valued.integrations.rq.Worker reports``
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import rq

import valued
from valued.integrations._ids import is_id, known

if TYPE_CHECKING:
    from rq.job import Job
    from rq.worker import BaseWorker as _Base
else:
    _Base = object

#: The entry of a job's ``meta`` that holds the ids.
META: Final = "valued"

_PARTIES: Final = ("user", "customer")


def scope_meta() -> dict[str, Any]:
    """The ids of the shared scope, for a job's ``meta``: ``queue.enqueue(f, meta=scope_meta())``.

    For applications with a queue class of their own; `Queue` adds it by itself. Returns
    ``{"valued": {"user.id": 1, "customer.id": 2}}``, with the ids that the scope has, or ``{}`` if
    it has none or nothing is connected. Raises nothing: an id that can't be read is left out, and
    that is logged. Any thread may call.
    """
    ids = known(tuple(f"{party}.id" for party in _PARTIES), "a job")
    return {META: ids} if ids else {}


class Queue(rq.Queue):
    """``rq.Queue`` whose jobs carry the ids of the shared scope, in ``job.meta["valued"]``.

    The ids are those that the scope has when the job is created, by ``enqueue``, ``enqueue_many``,
    ``enqueue_at`` or ``enqueue_in``. Retries, repetitions and dependents keep them. It takes and
    raises what ``rq.Queue`` does. A job that runs in the call itself (``is_async=False``) has the
    scope of its caller.
    """

    def create_job(self, *args: Any, **kwargs: Any) -> Job:
        job = super().create_job(*args, **kwargs)
        # Without what was copied from another job. A new one: that mapping is the caller's.
        job.meta = {key: value for key, value in job.meta.items() if key != META} | scope_meta()
        return job


class JobScope(_Base):
    """Mixin for worker classes: runs each job in a unit of work (`valued.isolated`), with its ids.

    Put it before any worker class:

    >>> class MyWorker(JobScope, rq.worker.RoundRobinWorker): ...
    """

    def perform_job(self, *args: Any, **kwargs: Any) -> Any:
        job = kwargs["job"] if "job" in kwargs else args[0]
        if not valued.connected():
            # It may be the job's module that connects, and the unit would begin too early. What
            # this raises is raised, and seen to, when RQ does the same.
            with contextlib.suppress(Exception, SystemExit):
                _ = job.func
        ids = job.meta.get(META)
        with valued.isolated():
            if isinstance(ids, dict) and valued.connected():
                for party in _PARTIES:
                    value = ids.get(f"{party}.id")
                    if is_id(value):
                        # As a whole: the defaults may know another user.
                        valued.scope[party] = {"id": value}
            return super().perform_job(*args, **kwargs)


class HorseFlush(_Base):
    """Mixin for worker classes: delivers in each work horse before it ends, after failed jobs, too.

    Work horses end by ``os._exit``, which runs no exit handlers. Put it before any worker class
    that has them: those of RQ, ``SpawnWorker`` included. If the worker itself is connected, too, it
    takes over what a killed work horse left in an outbox.
    """

    def perform_job(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().perform_job(*args, **kwargs)
        finally:
            if valued.flush_all() and valued.connected():
                # Nothing is left: the worker need not look into this process's part of an outbox.
                valued.client().close(0)

    def monitor_work_horse(self, *args: Any, **kwargs: Any) -> Any:
        super().monitor_work_horse(*args, **kwargs)  # type: ignore[misc]
        if valued.connected():
            valued.client().adopt()


class Worker(HorseFlush, JobScope, rq.Worker):
    """``rq.Worker`` whose jobs have a scope of their own, and whose work horses deliver.

    Each job starts with the scope's defaults, and with the ids that `Queue` or `scope_meta` put
    into its ``meta``. What it sets ends with it. Before a work horse ends, after a failed job, too,
    events are delivered as at the end of a process: each client has its ``shutdown_timeout``. It
    takes and raises what ``rq.Worker`` does.
    """


class SimpleWorker(JobScope, rq.SimpleWorker):
    """``rq.SimpleWorker`` whose jobs have a scope of their own, as those of `Worker`.

    Its jobs run in its own process, which delivers in the background and at its end.
    """
