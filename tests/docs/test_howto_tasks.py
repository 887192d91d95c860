"""Queues, schedulers and clusters of the pages: real brokers, workers and consumers.

Each job carries the id of its user, or of its customer where it has no user, and each event is
compared with that.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docs.live import (
    Running,
    Service,
    assert_each_has_its_user,
    needs,
    run_python,
    write_page,
)
from tests.docs.support import Case, Cases, run_section, runs
from tests.support.documents import ROOT
from tests.support.processes import until
from tests.support.redis import Redis
from tests.support.server import Server

#: Calls a task as a worker does, in this process.
_EXPORT = "import exports; exports.export.apply((123,)).get()"

_LINES = "Write these lines"

CASES: Cases = {
    ("howto/celery", "Tasks without a user"): Case(),
    ("howto/celery", "Flush in a task"): Case(
        events=1, driver=("-c", _EXPORT), after=(_LINES,), needs=("celery", "redis")
    ),
    ("howto/schedulers", "Cron jobs and scripts"): Case(events=3, driver=("nightly.py",)),
}


@pytest.mark.parametrize(("page", "title"), CASES)
def test_section_runs_as_printed(page: str, title: str, shell: Path, server: Server) -> None:
    case = CASES[page, title]
    needs(*case.needs)
    run_section(page, title, case, shell, server)


# -- Celery ----------------------------------------------------------------------------------------


@runs("howto/celery", _LINES, "The user and the customer")
def test_celery_tasks_have_their_users_and_their_worker_delivers_at_its_end(
    folder: Path, service: Service, redis: Redis
) -> None:
    needs("celery", "redis")
    sender = """
import send  # the page's
import valued
from invoices import send_invoice
from tasks import generate

for number in range(50):
    with valued.isolated({"user.id": number} if number % 3 else {"customer.id": number}):
        generate.delay(number)
send_invoice.delay(7, 42)
"""
    write_page(folder, "howto/celery", _LINES, "The user and the customer", sender=sender)
    run_python(folder, "sender.py")
    # The prefork pool has tests of its own.
    command = ("-W", "ignore", "-m", "celery", "--app", "tasks", "worker", "--pool", "threads")
    options = ("--concurrency", "2", "--without-gossip", "--without-mingle", "--loglevel", "INFO")
    more_tasks = ("--include", "invoices")
    with Running(folder, service, *command, *options, *more_tasks) as worker:
        until(lambda: worker.said().count("succeeded in") == 52, 20)
        worker.stop(52)
    wanted = [
        ("report.generated", *((number, None) if number % 3 else (None, number)))
        for number in range(50)
    ]
    more = [("report.generated", 123, None), ("invoice.sent", 42, None)]
    assert_each_has_its_user(service, [*more, *wanted])


@runs("howto/celery", "Deliver through the broker")
def test_events_that_a_broker_took_are_delivered_by_its_workers(
    folder: Path, service: Service, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("celery", "redis")
    redis.clear()
    sender = """
import valued
from events import connect

connect()
for number in range(9):
    valued.action("report.generated", {"user.id": number})
"""
    write_page(folder, "howto/celery", "Deliver through the broker", sender=sender)
    page = folder / "events.py"
    # Not in the folder of the programs, where a directory "valued" may be taken for the package.
    outbox = f"{folder}/data/valued"
    page.write_text(page.read_text("utf-8").replace("/var/lib/myapp/valued", outbox), "utf-8")
    (folder / "data").mkdir()
    with monkeypatch.context() as of_the_sender:
        of_the_sender.delenv("VALUED_TOKEN")  # only workers need it
        run_python(folder, "sender.py")
    command = ("-W", "ignore", "-m", "celery", "--app", "events", "worker", "--pool", "threads")
    options = ("--queues", "valued", "--concurrency", "10", "--without-gossip", "--without-mingle")
    with Running(folder, service, *command, *options, "--loglevel", "INFO") as worker:
        until(lambda: worker.said().count("] received") == 9, 20)
        worker.stop(9)  # it ends when its tasks have delivered
    assert_each_has_its_user(service, [("report.generated", n, None) for n in range(9)])


@runs("howto/broker", "Write these lines")
def test_a_machine_hands_its_events_to_the_broker_and_ends(
    folder: Path, service: Service, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("celery", "redis")
    redis.clear()
    write_page(folder, "howto/broker", "Write these lines")
    page, outbox = folder / "shop.py", folder / "data" / "valued"
    page.write_text(page.read_text("utf-8").replace("/var/lib/myapp/valued", str(outbox)), "utf-8")
    outbox.parent.mkdir()
    with monkeypatch.context() as of_the_shop:
        of_the_shop.delenv("VALUED_TOKEN")  # only delivery workers need it
        run_python(folder, "shop.py")
    assert_each_has_its_user(service, [])
    command = ("-W", "ignore", "-m", "celery", "--app", "delivery", "worker", "--pool", "threads")
    options = ("--queues", "valued", "--concurrency", "4", "--without-gossip", "--without-mingle")
    with Running(folder, service, *command, *options, "--loglevel", "INFO") as worker:
        until(lambda: worker.said().count("] received") == 1, 20)
        worker.stop(1)  # it ends when its tasks have delivered
    assert_each_has_its_user(service, [("report.generated", 123, None)])


_SITE = """
import os

SECRET_KEY = "of a test"
INSTALLED_APPS = ["valued.integrations.django"]
MIDDLEWARE = ["valued.integrations.django.ScopeMiddleware"]
CELERY_BROKER_URL = "memory://"
CELERY_BROKER_TRANSPORT_OPTIONS = {"polling_interval": 0.05}
"""

_WORK = """
import django

django.setup()

import valued
from celery import shared_task
from celery.contrib.testing.worker import start_worker
from mysite import celery_app

@shared_task
def generate(report):
    valued.action("report.generated", {"attributes.report": report})

with start_worker(celery_app, perform_ping_check=False, shutdown_timeout=30):
    with valued.isolated({"user.id": 123}):
        generate.delay(7)
"""


@runs("howto/celery", "Django")
def test_the_user_of_djangos_scope_travels_to_a_task_without_connecting(
    folder: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("celery", "django")
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "mysite.settings")
    write_page(folder, "howto/celery", "Django", work=_WORK)
    (folder / "mysite" / "settings.py").write_text(_SITE, "utf-8")
    run_python(folder, "-W", "ignore", "work.py")
    assert_each_has_its_user(service, [("report.generated", 123, None)])


# -- RQ --------------------------------------------------------------------------------------------


@runs("howto/rq", _LINES, "A queue class of your own", "Other worker classes")
def test_rq_jobs_have_their_users_and_their_work_horses_deliver(
    folder: Path, service: Service, redis: Redis
) -> None:
    needs("rq")
    sender = """
import valued
from send import generate, queue  # the page's, which enqueues a job

for number in range(2):
    with valued.isolated({"user.id": number} if number % 2 else {"customer.id": number}):
        queue.enqueue(generate, number)
"""
    titles = (_LINES, "A queue class of your own", "Other worker classes")
    write_page(folder, "howto/rq", *titles, sender=sender)
    worker = ("-m", "rq.cli", "worker", "--url", redis.url, "--burst", "reports")
    run_python(folder, "sender.py")
    run_python(folder, *worker, "--worker-class", "valued.integrations.rq.Worker")
    run_python(folder, "own_queue.py")
    run_python(folder, *worker, "--worker-class", "workers.ValuedSpawnWorker")
    wanted: list[tuple[str, Any, Any]] = [
        ("report.generated", 123, None),
        ("report.generated", 123, None),
        ("report.generated", None, 0),
        ("report.generated", 1, None),
    ]
    assert_each_has_its_user(service, wanted)


# -- Dramatiq --------------------------------------------------------------------------------------

#: Beside the actors of the page: what is tried again, delayed, sent on, and asynchronous.
_MORE_ACTORS = """
import os
from pathlib import Path

import dramatiq
from dramatiq.middleware import AsyncIO

import valued
from actors import *

broker.add_middleware(AsyncIO())

@dramatiq.actor(max_retries=1, min_backoff=50, max_backoff=100)
def fails_once(report):
    valued.action("tried", {"attributes.report": report})
    valued.scope.user_id = valued.scope.customer_id = 99999  # is not for the second attempt
    mark = Path(f"failed-{report}")
    if not mark.exists():
        mark.touch()
        raise ValueError("as planned")

@dramatiq.actor
def sends_on(report):
    generate.send(report)

@dramatiq.actor
async def generate_async(report):
    valued.action("async", {"attributes.report": report})
"""

_SEND = """
import dramatiq
import send  # the page's
import valued
from more import *

for number in range(1, 13):
    who = {"user.id": number} if number % 3 else {"customer.id": number}
    with valued.isolated(who):
        generate.send(number)
        sends_on.send(number)
        fails_once.send(number)
        generate_async.send(number)
        generate.send_with_options(args=(number,), delay=60)
        last = generate.message_with_options(args=(number,), pipe_ignore=True)
        (generate.message(number) | last).run()

# One message, sent by two: the ids are those of each.
message = generate.message(50)
for who in ({"user.id": 50}, {"customer.id": 50}):
    with valued.isolated(who):
        broker.enqueue(message)
broker.join("default", timeout=20_000)
"""


@runs("howto/dramatiq", _LINES)
def test_a_dramatiq_message_has_its_senders_user_and_its_worker_delivers_at_its_end(
    folder: Path,
    service: Service,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs("dramatiq", "redis")
    monkeypatch.setenv("dramatiq_worker_timeout", "100")  # ms, after which it sees that it ends
    write_page(folder, "howto/dramatiq", _LINES, more=_MORE_ACTORS, sender=_SEND)
    with Running(
        folder, service, "-m", "dramatiq", "more", "--processes", "2", "--threads", "3"
    ) as worker:
        run_python(folder, "sender.py")
        worker.stop(99)
    wanted: list[tuple[str, Any, Any]] = [("report.generated", 123, None)]
    for number in range(1, 13):
        who = (number, None) if number % 3 else (None, number)
        wanted += [("report.generated", *who)] * 5
        wanted += [("tried", *who)] * 2
        wanted += [("async", *who)]
    wanted += [("report.generated", 50, None), ("report.generated", None, 50)]
    assert_each_has_its_user(service, wanted)


# -- Huey ------------------------------------------------------------------------------------------

#: A journal, and a task that says nothing of a user.
_MORE_JOBS = """
import os

import valued
from jobs import *

@huey.task()
def for_customer(report, fails):
    valued.action("for customer", {"customer.id": report, "attributes.report": report})
    if fails:
        valued.scope.customer_id = 99999
        raise ValueError("as planned")

@huey.signal("complete", "error")
def note(signal, task, exc=None):
    with open("journal", "ab", 0) as file:
        file.write(b"x")

def send():
    import send  # the page's

    for number in range(60):
        if number % 2:
            generate(number, number)
        else:
            for_customer(number, number % 4)
"""

_JOBS = [
    ("report.generated", 123, None),
    *(
        ("report.generated", number, None) if number % 2 else ("for customer", None, number)
        for number in range(60)
    ),
]


@runs("howto/huey", _LINES)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="Huey's signals, and its processes")
@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_huey_task_has_its_user_and_nothing_is_lost_when_the_consumer_ends_or_restarts(
    folder: Path, service: Service, kind: str
) -> None:
    needs("huey")
    write_page(folder, "howto/huey", _LINES, more=_MORE_JOBS)
    (folder / "journal").touch()
    run_python(folder, "-c", "import more; more.send()")
    consumer = ("-m", "huey.bin.huey_consumer", "more.huey", "--workers", "3", "-k", kind)
    with Running(folder, service, *consumer) as consuming:
        until(lambda: (folder / "journal").stat().st_size == len(_JOBS), 20)
        if kind == "thread":
            consuming.tell(signal.SIGHUP, len(_JOBS))
            # Killed at once: what it had before was delivered before it began again.
            until(lambda: consuming.said().count("Huey consumer started") == 2, 20)
            consuming.kill()
        else:
            consuming.stop(len(_JOBS))
    assert_each_has_its_user(service, _JOBS)


def test_a_huey_task_that_runs_immediately_leaves_its_callers_scope_alone(
    folder: Path, service: Service
) -> None:
    needs("huey")
    caller = """
import valued
from more import *

huey.immediate = True
with valued.isolated({"user.id": 123}):
    send()
    valued.action("caller's")
"""
    write_page(folder, "howto/huey", _LINES, more=_MORE_JOBS, caller=caller)
    run_python(folder, "caller.py")
    assert_each_has_its_user(service, [*_JOBS, ("caller's", 123, None)])


# -- schedulers ------------------------------------------------------------------------------------


@runs("howto/schedulers", "APScheduler")
def test_jobs_of_apscheduler_have_their_users(folder: Path, service: Service) -> None:
    needs("apscheduler")
    more = """
import threading

from apscheduler.events import EVENT_JOB_EXECUTED

import valued
from reminders import *

count = threading.Semaphore(0)

def for_customer(customer):
    valued.action("for customer", {"customer.id": customer})

scheduler.add_listener(lambda event: count.release(), EVENT_JOB_EXECUTED)
for number in range(40):
    scheduler.add_job(remind if number % 2 else for_customer, args=[number], misfire_grace_time=60)
for number in range(40):
    assert count.acquire(timeout=20)
scheduler.shutdown()
"""
    write_page(folder, "howto/schedulers", "APScheduler", more=more)
    run_python(folder, "more.py")
    wanted = [
        ("reminder.sent", number, None) if number % 2 else ("for customer", None, number)
        for number in range(40)
    ]
    assert_each_has_its_user(service, wanted)


def test_a_script_whose_events_are_not_delivered_can_say_so_by_its_status(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_page(folder, "howto/schedulers", "Cron jobs and scripts")
    script = (folder / "nightly.py").read_text("utf-8")
    hasty = script.replace("valued.connect()", "valued.connect(shutdown_timeout=0.2)")
    assert hasty != script
    (folder / "nightly.py").write_text(hasty, "utf-8")
    monkeypatch.setenv("VALUED_ENDPOINT", "http://127.0.0.1:9/events")
    done = subprocess.run(
        [sys.executable, "nightly.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert len(re.findall("3 events .*not delivered", done.stderr)) == 1, done.stderr


# -- what is not run -------------------------------------------------------------------------------


def _says_that_it_was_tried_by_hand(page: str, title: str) -> bool:
    text = (ROOT / "docs" / f"{page}.rst").read_text("utf-8")
    section = text.split(f"\n{title}\n{'-' * len(title)}\n")[1]
    section = re.split(r"\n.+\n-{3,}\n", section)[0]
    wanted = r"The tests do not run these two blocks\.\s+They were tried once by hand,"
    return re.search(wanted, section) is not None


@runs("howto/schedulers", "Airflow")
def test_airflow_is_not_run_here_and_the_page_says_so() -> None:
    assert _says_that_it_was_tried_by_hand("howto/schedulers", "Airflow")


@runs("howto/distributed", "Ray")
def test_ray_is_not_run_here_and_the_page_says_so() -> None:
    assert _says_that_it_was_tried_by_hand("howto/distributed", "Ray")


# -- dask ------------------------------------------------------------------------------------------

_BY_USER = [("report.generated", user, None) for user in range(20)]


@runs("howto/distributed", "dask")
@pytest.mark.filterwarnings("ignore")
def test_jobs_of_dask_have_their_users_and_their_workers_deliver_at_their_end(
    folder: Path, service: Service
) -> None:
    needs("distributed")
    write_page(folder, "howto/distributed", "dask")
    run_python(folder, "main.py")
    assert_each_has_its_user(service, _BY_USER)


def test_tasks_of_dasks_own_schedulers_have_their_users(folder: Path, service: Service) -> None:
    needs("dask")
    more = """
import dask

from work import work

if __name__ == "__main__":
    for scheduler in ("threads", "processes"):
        dask.compute(*[dask.delayed(work)(user) for user in range(20)], scheduler=scheduler)
"""
    write_page(folder, "howto/distributed", "dask", more=more)
    run_python(folder, "more.py")
    assert_each_has_its_user(service, _BY_USER * 2)
