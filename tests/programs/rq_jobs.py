"""Jobs for RQ's workers. Each is given the user that it has to have, and its event says so."""

from __future__ import annotations

import os
from typing import Any

import rq
from rq.worker import RoundRobinWorker

import valued
from valued.integrations.rq import HorseFlush, JobScope

# Where the worker doesn't import this module, the first job does, in its work horse.
valued.connect()


class Connected(HorseFlush, JobScope, rq.Worker):
    """A worker whose own process is connected, as it imports this module."""


#: Older versions of RQ have none, and the tests run one that forks.
SpawnWorker: type = getattr(rq.worker, "SpawnWorker", rq.Worker)


class Spawning(HorseFlush, JobScope, SpawnWorker):
    pass


class InTurn(HorseFlush, JobScope, RoundRobinWorker):
    pass


def record(what: str, expected: object) -> None:
    nobody = {"customer": {"id": "nobody"}} if expected is None else {}
    attributes = {"expected": expected, "pid": os.getpid()}
    valued.action(what, {"attributes": attributes, **nobody})


def has(expected: object) -> None:
    record("has", expected)


def sets(expected: object, user: int) -> None:
    record("has", expected)
    valued.scope.user = {"id": user}
    record("sets", user)


def fails(expected: object) -> None:
    record("fails", expected)
    raise RuntimeError("as it was asked to")


def fails_once(expected: object) -> None:
    record("fails", expected)
    job = rq.get_current_job()
    assert job is not None
    if job.retries_left:
        raise RuntimeError("as it was asked to")


def killed(expected: object) -> None:
    record("killed", expected)
    os.kill(os.getpid(), 9)


def succeeded(_job: Any, _connection: Any, _result: Any, *_rest: Any) -> None:
    valued.action("succeeded", {"attributes": {"expected": valued.scope.user_id}})
