"""Task queues: each event once, and under the user in whose request the task was published."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.soak.figures import Figures, Journal, compare
from tests.support.celery import Worker
from tests.support.processes import run
from tests.support.programs import ROOT, Program
from tests.support.redis import Redis
from tests.support.server import Reply, Request, Server
from tests.support.tls import Authority, TLSServer

#: Requests, of which come that many tasks or jobs, and more.
CELERY, CELERY_TASKS = 300, 500
RQ, RQ_JOBS = 84, 100

POOLS = {
    "prefork": ("--concurrency", "4", "--max-tasks-per-child", "20"),
    "threads": ("--concurrency", "8"),
    "solo": (),
    "gevent": ("--concurrency", "20"),
}

# By its module's name, so that others of this folder can be imported.
_CELERY_APP = ROOT / "tests.soak.apps.celery_app.py"


def published(module: str, count: int, environment: dict[str, str]) -> tuple[int, dict[str, Any]]:
    """How many tasks there are; and whom each request is of."""
    done = run(
        *("-m", module, str(count)),
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "ignore:This process", **environment},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "valued" not in done.stderr
    told = json.loads(done.stdout)
    return told["tasks"], told["expected"]


def slowly(_request: Request) -> Reply:
    time.sleep(0.005)
    return Reply()


def check(found: Figures, tasks: int) -> None:
    assert (found.lost, found.twice, found.wrong, found.anonymous) == (0, 0, 0, 0), found
    assert found.recorded == tasks


@pytest.mark.parametrize("pool", [*POOLS, "eager"])
def test_each_celery_task_has_the_user_of_its_request(
    pool: str, server: Server, redis_server: Redis, tmp_path: Path, keep: list[Figures]
) -> None:
    pytest.importorskip("celery")
    server.script = slowly
    environment = {
        "BROKER": redis_server.url,
        "VALUED_TOKEN": "test-token",
        "VALUED_ENDPOINT": server.url,
        "JOURNAL": str(tmp_path / "journal"),
    }
    journal = Journal(tmp_path / "journal")
    began = time.monotonic()
    module = _CELERY_APP.stem
    if pool == "eager":
        tasks, expected = published(module, CELERY, {**environment, "EAGER": "1"})
    else:
        if pool == "gevent":
            pytest.importorskip("gevent")
        options = ("--pool", pool, *POOLS[pool])
        with Worker(_CELERY_APP, tmp_path, *options, environment=environment) as worker:
            tasks, expected = published(module, CELERY, environment)
            worker.wait_until(lambda: len(journal.notes()) >= tasks, 120)
            assert worker.stop() == 0
            assert worker.complaints() == []
    assert tasks >= CELERY_TASKS
    found = compare(f"Celery, {pool}", journal, server.events, expected)
    found.seconds = time.monotonic() - began
    keep.append(found)
    check(found, tasks)
    if pool == "prefork":
        assert found.processes >= tasks / 20
    assert len(set(expected.values())) == 41


def partly_far_away(request: Request) -> Reply:
    """As a service that takes half a second for a fifth of the events."""
    if request.event["attributes"]["id"].partition("-")[0].endswith(("3", "8")):
        time.sleep(0.5)
    return Reply()


@pytest.mark.parametrize("kind", ["Worker", "SimpleWorker"])
def test_each_rq_job_has_the_user_of_its_request(
    kind: str, redis_server: Redis, tmp_path: Path, keep: list[Figures]
) -> None:
    pytest.importorskip("rq")
    authority = Authority(tmp_path)
    server = TLSServer(authority, partly_far_away)
    journal = Journal(tmp_path / "journal")
    log = tmp_path / "log"
    environment = {
        "BROKER": redis_server.url,
        "VALUED_TOKEN": "test-token",
        "VALUED_ENDPOINT": server.url,
        "JOURNAL": str(journal.path),
        "REQUESTS_CA_BUNDLE": str(authority.bundle),
    }
    began = time.monotonic()
    try:
        jobs, expected = published("tests.soak.apps.rq_jobs", RQ, environment)
        assert jobs >= RQ_JOBS
        with Program(
            log,
            *("-m", "rq.cli", "worker", "--url", redis_server.url),
            *("--worker-class", f"valued.integrations.rq.{kind}", "soak"),
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        ) as worker:
            worker.wait_until(
                lambda: journal.path.exists() and len(journal.notes()) >= jobs, timeout=180
            )
            worker.process.terminate()
            assert worker.process.wait(30) == 0
    finally:
        server.close()
    found = compare(f"RQ, {kind}, TLS", journal, server.events, expected)
    found.seconds = time.monotonic() - began
    keep.append(found)
    check(found, jobs)
    assert "not delivered" not in log.read_text()
