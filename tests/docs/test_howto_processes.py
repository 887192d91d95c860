"""Processes, threads, loops and frozen functions of the pages run as printed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.docs.live import Service, assert_each_has_its_user, needs, run_python, write_page
from tests.docs.support import Case, Cases, run_section, runs
from tests.support.server import Server

#: Calls a handler, and then the process is gone: no exit handler delivers.
_FROZEN = """
import os, {0}
assert {0}.handler({{"user": 123}}, None) == {{"statusCode": 204}}
os._exit(0)
"""

CASES: Cases = {
    ("howto/multiprocessing", "Pool"): Case(events=100, driver=("work.py",)),
    ("howto/multiprocessing", "One user for each job"): Case(events=10, driver=("jobs.py",)),
    ("howto/multiprocessing", "Hand a client to a child"): Case(events=1, driver=("child.py",)),
    ("howto/multiprocessing", "os.fork"): Case(events=2, driver=("forks.py",)),
    ("howto/multiprocessing", "Threads"): Case(events=5, driver=("printing.py",)),
    ("howto/asyncio", "asyncio"): Case(events=1),
    ("howto/asyncio", "Tasks and their users"): Case(events=4),
    ("howto/asyncio", "anyio and trio"): Case(events=5, needs=("anyio",)),
    ("howto/asyncio", "gevent"): Case(events=5, driver=("greenlets.py",), needs=("gevent",)),
    ("howto/lambda", "Flush before you answer"): Case(
        events=1, driver=("-c", _FROZEN.format("handler"))
    ),
    ("howto/lambda", "Or send in the call itself"): Case(
        events=1, driver=("-c", _FROZEN.format("immediate"))
    ),
}

#: The users of a section's events, where each job has one of its own.
USERS = {
    "One user for each job": range(10),
    "Tasks and their users": range(1, 5),
    "anyio and trio": range(5),
    "gevent": range(5),
}


@pytest.mark.parametrize(("page", "title"), CASES)
def test_section_runs_as_printed(page: str, title: str, shell: Path, server: Server) -> None:
    case = CASES[page, title]
    needs(*case.needs)
    if title == "os.fork" and not hasattr(os, "fork"):
        pytest.skip("no fork here")
    run_section(page, title, case, shell, server)
    users = sorted(event["user"]["id"] for event in server.events)
    assert users == [*USERS.get(title, [123] * case.events)]


@runs("howto/multiprocessing", "joblib")
def test_jobs_of_joblib_have_their_users_and_nothing_is_lost_where_another_job_fails(
    folder: Path, service: Service
) -> None:
    needs("joblib")
    more = """
from joblib import Parallel, delayed

from tasks import task

def fail():
    raise ValueError("as planned")

def main():
    with Parallel(n_jobs=2) as parallel:
        parallel(delayed(task)(user) for user in range(20, 30))
        try:
            parallel([delayed(fail)()])
        except ValueError:
            pass
"""
    write_page(folder, "howto/multiprocessing", "joblib", more=more)
    run_python(folder, "main.py")
    run_python(folder, "-c", "import more; more.main()")
    assert_each_has_its_user(service, [("report.generated", user, None) for user in range(30)])
