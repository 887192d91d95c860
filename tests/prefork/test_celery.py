"""Celery for real: its pools, with a real broker, and a client that was made in the parent.

What the tasks recorded is in a journal that the application writes. The service must have got just
that: each event once, with the pid of the process that recorded it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

import valued
from tests.support.celery import CELERY_GRACE, Worker, gate, is_billiards
from tests.support.cli import Listening
from tests.support.processes import PROGRAMS, run
from tests.support.redis import Redis
from tests.support.server import Reply, Request, Server

pytest.importorskip("celery")
if not hasattr(os, "fork"):
    pytest.skip("Celery has no prefork pool here", allow_module_level=True)

Start = Callable[..., Worker]


class Holding:
    """A service's script: it answers nothing until it is told to.

    A process that sends one event at a time then has its first one under way, and those behind it
    can't arrive unless it lives until the service answers.
    """

    def __init__(self) -> None:
        self._let_go = threading.Event()

    def __call__(self, _request: Request) -> Reply:
        self._let_go.wait(30)
        return Reply()

    def let_go(self) -> None:
        self._let_go.set()

    def let_go_when_only_we_can_deliver(self, worker: Worker, leaving: int) -> None:
        """Answer when that many children have begun to leave, and those left alone would be dead.

        Each goes on for a second after its signal, in which its threads live, too: an event that
        arrived by then would prove nothing.
        """
        worker.wait_until(lambda: len(worker.left()) >= leaving)
        time.sleep(CELERY_GRACE + 0.3)
        self.let_go()


@pytest.fixture
def holding() -> Iterator[Holding]:
    holding = Holding()
    yield holding
    holding.let_go()


@pytest.fixture
def service(holding: Holding) -> Iterator[Server]:
    """A service that answers when `holding` lets it."""
    service = Server(holding)
    yield service
    holding.let_go()
    service.close()


@pytest.fixture
def start(broker: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Start a worker whose events go to a server; it is ended after the test."""
    with contextlib.ExitStack() as workers:

        def start(
            server: Server,
            *options: str,
            tasks: Sequence[tuple[Any, ...]] = (),
            **environment: str,
        ) -> Worker:
            variables = {"VALUED_TOKEN": "test-token", "VALUED_ENDPOINT": server.url, **broker}
            return workers.enter_context(
                Worker(
                    PROGRAMS / "celery_app.py",
                    *(tmp_path, *options),
                    environment={**variables, **environment},
                    tasks=tasks,
                )
            )

        yield start


def assert_each_once(worker: Worker, server: Server) -> None:
    """What was recorded is what arrived, each once, from the process that recorded it."""
    assert worker.process.poll() is not None  # or something could still come
    assert worker.complaints() == []
    arrived = [event["attributes"] for event in server.events]
    assert Counter(event["id"] for event in arrived) == Counter(worker.recorded())
    assert {event["pid"] for event in arrived} == worker.pids()


ONE_AT_A_TIME = {"MAX_WORKERS": "1"}  # see `Holding`
EXAMPLE = Path(__file__).parents[2] / "examples" / "celery_tasks.py"
PREFORK = ("--pool", "prefork", "--concurrency")


def test_children_that_are_replaced_after_five_tasks_send_each_event_once(
    start: Start, server: Server, broker: dict[str, str]
) -> None:
    # A task that is tried again sends a message while the worker reads: see `Worker`.
    again = 0 if "FOLDER" in broker else 2
    tasks = [("work",)] * (20 - 3 * again) + [("retry",)] * again  # the latter run three times
    worker = start(server, *PREFORK, "2", "--max-tasks-per-child", "5", tasks=tasks)

    worker.wait_until(lambda: len(worker.recorded()) == 20)
    # A warm shutdown just as a child has done its last task makes Celery wait half a minute for it.
    worker.wait_until(lambda: worker.pids(at_least=5) <= worker.left())
    assert worker.stop() == 0

    once, thrice = worker.ids[: 20 - 3 * again], worker.ids[20 - 3 * again :]
    assert worker.recorded() == sorted([*once, *(f"{id} {n}" for id in thrice for n in range(3))])
    assert len(worker.pids()) >= 4  # or none was replaced
    assert worker.pid not in worker.pids()
    assert_each_once(worker, server)


#: What ``py-spy`` says of a parent that waits for the lock of its results, its last child dead.
RESULTS = """Process 24136: python -m celery worker
Thread 24136 (idle): "MainThread"
    SemLock.__enter__ (billiard/synchronize.py:115)
    SimpleQueue.send_payload (billiard/queues.py:407)
    _SimpleQueue.put (billiard/queues.py:371)
    Pool._set_result_sentinel (billiard/pool.py:1751)
    Pool._terminate_pool (billiard/pool.py:1776)
    Finalize.__call__ (multiprocessing/util.py:224)
Thread 24162 (idle): "valued-sender-1"
    wait_until_due (valued/_delivery/memory.py:259)
"""
#: And of its tasks.
TASKS = """Process 28303: python -m celery worker
Thread 28303 (idle): "MainThread"
    Pool._help_stuff_finish (billiard/pool.py:1744)
    Pool._terminate_pool (billiard/pool.py:1768)
    Finalize.__call__ (multiprocessing/util.py:224)
"""
#: A child that waits for the lock of the results, which another one has taken along.
CHILD = """Process 11242: python -m celery worker
Thread 11242 (idle): "Thread-2"
    SemLock.__enter__ (billiard/synchronize.py:115)
    SimpleQueue.send_payload (billiard/queues.py:407)
    Worker.workloop (billiard/pool.py:362)
"""
#: One that waits for a task is well where another one reads, and so has the lock.
IDLE = """Process 11243: python -m celery worker
Thread 11243 (idle): "MainThread"
    SemLock.__enter__ (billiard/synchronize.py:115)
    SimpleQueue.get_payload (billiard/queues.py:398)
"""
READER = """Process 11244: python -m celery worker
Thread 11244 (idle): "MainThread"
    _recv (billiard/connection.py:470)
    SimpleQueue.get_payload (billiard/queues.py:400)
"""
OURS = """Process 24181: python -m celery worker
Thread 24181 (idle): "Thread-2"
    leave (valued/_process/shutdown.py:159)
"""


@pytest.mark.parametrize(
    ("stacks", "whose"),
    [
        ([RESULTS], True),
        ([TASKS], True),
        ([IDLE, CHILD], True),
        ([IDLE], True),
        ([IDLE, READER], False),
        ([RESULTS, OURS], False),
        ([TASKS, OURS], False),
        (
            [
                TASKS.replace(
                    "    Finalize", "    leave (valued/_process/shutdown.py:159)\n    Finalize"
                )
            ],
            False,
        ),
        (["Process 24136: sleeping, 2 threads"], False),
    ],
)
def test_a_worker_that_hangs_is_billiards_fault_only_where_its_stack_says_so(
    stacks: list[str], whose: bool
) -> None:
    assert is_billiards(stacks) == whose


def test_a_child_that_celery_replaces_delivers_before_it_ends(
    start: Start, service: Server, holding: Holding
) -> None:
    options = (*PREFORK, "1", "--max-tasks-per-child", "5")
    worker = start(service, *options, tasks=[("work",)] * 5, **ONE_AT_A_TIME)

    holding.let_go_when_only_we_can_deliver(worker, leaving=1)
    assert worker.stop() == 0

    assert len(worker.recorded()) == 5
    assert_each_once(worker, service)


def test_an_event_recorded_as_a_child_is_told_to_leave_is_delivered(
    start: Start, service: Server, holding: Holding
) -> None:
    worker = start(service, *PREFORK, "2", RECORDS="worker_process_shutdown", **ONE_AT_A_TIME)
    worker.wait_until_ready()
    worker.process.terminate()

    holding.let_go_when_only_we_can_deliver(worker, leaving=2)
    assert worker.wait() == 0

    # They have done nothing before: it is their first event, and the one behind it.
    assert len(worker.recorded()) == 4
    assert_each_once(worker, service)


@pytest.mark.parametrize(("pool", "tasks"), [("prefork", 2), ("threads", 2), ("solo", 1)])
def test_a_warm_shutdown_in_mid_work_loses_nothing(
    pool: str, tasks: int, start: Start, service: Server, holding: Holding
) -> None:
    with gate() as at_work:
        given = [*[("wait", at_work.port)] * tasks, ("work",), ("work",)]
        options = ("--pool", pool, "--concurrency", "2")
        worker = start(service, *options, tasks=given, **ONE_AT_A_TIME)
        pids = at_work.wait_for(tasks)
        worker.process.terminate()
        worker.wait_until(lambda: "Warm shutdown" in worker.said())
        at_work.open()

    if pool == "prefork":
        holding.let_go_when_only_we_can_deliver(worker, leaving=2)
    else:
        worker.wait_until(lambda: worker.notes("stopped"))  # what follows is the end of a program
        holding.let_go()
    assert worker.wait() == 0

    assert set(pids) <= worker.pids()
    assert (worker.pid in worker.pids()) == (pool != "prefork")
    assert len(worker.recorded()) >= 2 * tasks  # some of the others may have run, too
    assert_each_once(worker, service)


def test_events_pending_in_the_parent_at_the_fork_are_sent_by_the_parent_once(
    start: Start, service: Server, holding: Holding
) -> None:
    worker = start(
        service,
        *(*PREFORK, "2"),
        tasks=[("work",)],
        RECORDS="celeryd_init worker_init worker_process_init",
        **ONE_AT_A_TIME,
    )
    worker.wait_until(lambda: len(worker.recorded()) == 5)
    holding.let_go()  # the children were forked, and have recorded, while the parent's were pending
    assert worker.stop() == 0

    assert {n["id"] for n in worker.notes("recorded") if n["pid"] == worker.pid} == {
        "celeryd_init",
        "worker_init",
    }
    assert len(worker.pids()) == 3
    assert_each_once(worker, service)


def test_children_that_are_spawned_send_each_event_once(
    start: Start, service: Server, holding: Holding
) -> None:
    options = (*PREFORK, "2")
    tasks = [("work",)] * 6
    worker = start(service, *options, tasks=tasks, START_METHOD="spawn", **ONE_AT_A_TIME)
    worker.wait_until(lambda: len(worker.recorded()) == 6)
    worker.process.terminate()

    holding.let_go_when_only_we_can_deliver(worker, leaving=len(worker.pids()))
    assert worker.wait() == 0

    assert worker.pid not in worker.pids()
    assert_each_once(worker, service)


def test_a_child_that_gets_sigterm_itself_delivers_before_it_ends(
    start: Start, service: Server, holding: Holding
) -> None:
    with gate() as at_work:
        tasks = [("work",), ("wait", at_work.port)]
        worker = start(service, *PREFORK, "1", tasks=tasks, **ONE_AT_A_TIME)
        [pid] = at_work.wait_for(1)
        os.kill(pid, signal.SIGTERM)
        holding.let_go_when_only_we_can_deliver(worker, leaving=1)
        assert worker.stop() == 0

    assert [note["id"].split()[1:] for note in worker.notes("recorded")] == [[], ["begins"]]
    assert Counter(e["attributes"]["id"] for e in service.events) == Counter(worker.recorded())


def test_a_child_leaves_in_time_when_the_service_never_answers(
    start: Start, service: Server
) -> None:
    options = (*PREFORK, "1", "--max-tasks-per-child", "1")
    worker = start(service, *options, tasks=[("work",)], SHUTDOWN_TIMEOUT="0.5")
    worker.wait_until(lambda: worker.notes("leaving"))
    [leaving] = worker.notes("leaving")
    worker.wait_until(lambda: has_ended(leaving["pid"]))
    took = time.monotonic() - leaving["at"]
    assert worker.stop() == 0

    # An attempt alone would take 10 s. Celery may end the child before its second is over. The last
    # 2 s are for the machine.
    assert 0.5 <= took < 0.5 + CELERY_GRACE + 2.0
    [complaint] = worker.complaints()
    assert "the process ends with 1 event not delivered" in complaint


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_celery_is_not_imported_where_it_is_not_used(server: Server) -> None:
    done = run("-c", _NO_CELERY, server.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "[]\n" * 2
    server.wait_for(2)
    assert server.keys() == ["child", "parent"]


_NO_CELERY = """
import multiprocessing, sys, valued

client = valued.Client("test-token", sys.argv[1])

def work(key):
    client.action(key, {"user.id": 1})
    client.flush()
    families = {name.partition(".")[0] for name in sys.modules}
    print(sorted(families & {"billiard", "celery", "kombu"}), flush=True)

work("parent")
child = multiprocessing.get_context("fork").Process(target=work, args=("child",))
child.start()
child.join()
"""


def test_processes_of_billiard_deliver_before_they_end(server: Server) -> None:
    """Tasks start those, since children of a pool may not have any of `multiprocessing`."""
    done = run("-c", _BILLIARD, server.url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert server.keys() == [str(number) for number in range(5)]


_BILLIARD = """
import billiard, sys, valued

client = valued.Client("test-token", sys.argv[1], max_workers=1)

def work():
    for number in range(5):
        client.action(str(number), {"user.id": 1})

child = billiard.get_context("fork").Process(target=work)
child.start()
child.join()
"""


def test_the_example_records_each_task_once(
    redis_server: Redis, listener: Listening, tmp_path: Path
) -> None:
    environment = {
        "VALUED_TOKEN": "test-token",
        "VALUED_ENDPOINT": listener.url,
        "CELERY_BROKER_URL": redis_server.url,
        # Of a fork beside threads, from Python 3.12 on: the parent parks its client before.
        "PYTHONWARNINGS": "always:This process",
    }
    options = (*PREFORK, "2", "--max-tasks-per-child", "10")
    with Worker(EXAMPLE, tmp_path, *options, environment=environment) as worker:
        filled = run(str(EXAMPLE), env={**os.environ, **environment})
        assert (filled.returncode, filled.stdout, filled.stderr) == (0, "", "")
        worker.wait_until(lambda: worker.said().count(" succeeded in ") == 40)
        assert worker.stop() == 0
    received = listener.end()

    assert worker.complaints() == []
    events = [line["event"] for line in received]
    assert Counter(event["category"] for event in events) == {
        "config": 1,
        "sync": 20,
        "action": 20,
    }
    actions = [event for event in events if event["category"] == "action"]
    reports = [event["attributes"]["report"] for event in actions]
    assert sorted(reports) == list(range(1, 21))
    assert [event["user"] for event in actions] == [{"id": report % 5} for report in reports]
    [parent] = [line["pid"] for line in received if line["event"]["category"] == "config"]
    assert parent == worker.pid
    children = Counter(line["pid"] for line in received if line["event"]["category"] != "config")
    assert parent not in children
    assert len(children) >= 40 / 10
    assert max(children.values()) <= 10


def test_what_a_child_that_was_killed_had_recorded_is_delivered_from_its_outbox(
    start: Start, server: Server, tmp_path: Path
) -> None:
    server.script = lambda _request: Reply(503)
    place = tmp_path / "outbox"
    worker = start(
        server, *PREFORK, "2", tasks=[("work",)] * 8,
        VALUED_OUTBOX=str(place), SHUTDOWN_TIMEOUT="0",
    )  # fmt: skip
    worker.wait_until(lambda: len(worker.recorded()) == 8)
    os.kill(min(worker.pids()), signal.SIGKILL)
    worker.stop()
    server.requests.clear()
    server.script = lambda _request: Reply()
    client = valued.Client("test-token", server.url, outbox=place)
    assert client.adopt() >= 1
    server.wait_for(8)
    assert client.close(10)
    arrived = [event["attributes"] for event in server.events]
    assert Counter(event["id"] for event in arrived) == Counter(worker.recorded())
