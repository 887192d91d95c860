"""uWSGI itself: it forks in C, and runs none of Python's fork hooks unless it is told to.

What is compared is always the same: the ids that requests were answered with, and those that
arrived. The client is made at import, in the master unless the applications are lazy.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.hold import Hold
from tests.support.programs import BOUND
from tests.support.server import Reply, Server
from tests.support.uwsgi import UWSGI, Load, Uwsgi, ids, version

pytestmark = pytest.mark.skipif(not UWSGI.exists(), reason="no uwsgi is installed for this Python")

#: The options by which C code tells Python of its fork; there is none by default.
FORK_HOOKS = "--py-call-uwsgi-fork-hooks"
OSAFTERFORK = "--py-call-osafterfork"
HOOKS = {"as it comes": (), "fork hooks": (FORK_HOOKS,), "osafterfork": (OSAFTERFORK,)}
MOSTLY = {"as it comes": (), "fork hooks": (FORK_HOOKS,)}

#: From here on, uWSGI always lets Python's threads run; before, with an option only.
ALWAYS_THREADS = (2, 0, 27)

Start = Callable[..., Uwsgi]


@pytest.fixture
def start(tmp_path: Path, server: Server) -> Iterator[Start]:
    """Start uWSGI with the tests' application; its log is in the report of a failure."""
    with contextlib.ExitStack() as started:

        def start(*options: str, threads_by_option: bool = True, **more: Any) -> Uwsgi:
            if OSAFTERFORK in options and sys.version_info >= (3, 13):
                pytest.skip("Python 3.13 aborts: the child unlocks what nobody had locked")
            if more.get("threads", 1) > 1 and version() < ALWAYS_THREADS:
                pytest.skip(
                    "such a uWSGI with several threads hangs at a graceful end, of any program"
                )
            if threads_by_option and version() < ALWAYS_THREADS:
                options = ("--enable-threads", *options)
            environment = {"VALUED_TOKEN": "test-token", "VALUED_ENDPOINT": server.url}
            uwsgi = Uwsgi(tmp_path, *options, **{**environment, **more})
            return started.enter_context(uwsgi)

        yield start


def received(server: Server, beginning: str = "") -> list[str]:
    """The ids that arrived, sorted, each as often as it did."""
    arrived = [event["attributes"]["id"] for event in server.events]
    return sorted(id for id in arrived if id.startswith(beginning))


def senders(server: Server, beginning: str = "") -> set[int]:
    """The processes whose events arrived."""
    attributes = [event["attributes"] for event in server.events]
    return {each["pid"] for each in attributes if each["id"].startswith(beginning)}


def connections(server: Server, pid: int) -> set[int]:
    """On which connections the events of a process came."""
    return {
        request.connection
        for request in server.requests
        if request.event["attributes"]["pid"] == pid
    }


def assert_answered_are_received(load: Load, arrived: list[str]) -> None:
    """Each once. A worker that is told to end may drop a request before it has read it."""
    assert len(arrived) == len(set(arrived))
    assert set(ids(load.answers)) <= set(arrived) <= {*ids(load.answers), *load.unanswered}


@pytest.mark.parametrize(
    ("options", "threads"),
    [
        pytest.param((), 1, id="as it comes"),
        pytest.param((), 4, id="as it comes, threads"),
        pytest.param(("--lazy-apps",), 1, id="as it comes, lazy"),
        pytest.param((FORK_HOOKS,), 1, id="fork hooks"),
        pytest.param((FORK_HOOKS,), 4, id="fork hooks, threads"),
        pytest.param((FORK_HOOKS, "--lazy-apps"), 4, id="fork hooks, threads, lazy"),
        pytest.param((OSAFTERFORK,), 1, id="osafterfork"),
    ],
)
def test_as_many_events_as_requests_and_each_worker_sends_its_own(
    options: tuple[str, ...], threads: int, start: Start, server: Server
) -> None:
    uwsgi = start(*options, threads=threads, EVENTS_AT_IMPORT="1")
    workers = uwsgi.workers()
    answers = uwsgi.ask_all()
    with uwsgi.load() as load:
        load.wait_for(60)
    uwsgi.stop()
    assert load.unanswered == {}
    assert received(server) == sorted(ids(answers + load.answers) + received(server, "import"))
    assert senders(server, "request") == workers
    at_import = received(server, "import")
    importers = workers if "--lazy-apps" in options else {uwsgi.pid}
    assert senders(server, "import") == importers
    assert len(at_import) == len(set(at_import)) == len(importers)


@pytest.mark.parametrize("hooks", HOOKS.values(), ids=HOOKS)
def test_a_worker_lets_go_of_the_connections_of_the_master_before_its_first_event(
    hooks: tuple[str, ...], start: Start, server: Server
) -> None:
    uwsgi = start(*hooks, EVENTS_AT_IMPORT="1", FLUSH="1")
    workers = uwsgi.workers()
    assert [uwsgi.ports(pid, server.port) for pid in workers] == [set()] * len(workers)
    masters = uwsgi.ports(uwsgi.pid, server.port)
    assert masters == connections(server, uwsgi.pid) != set()
    answers = uwsgi.ask_all()
    server.wait_for(1 + len(answers))
    own = [uwsgi.ports(pid, server.port) for pid in workers]
    assert [len(ports) for ports in own] == [1] * len(workers)
    assert len(masters.union(*own)) == len(masters) + len(workers)
    assert uwsgi.ports(uwsgi.pid, server.port) == masters  # and nobody ended the master's
    assert uwsgi.complaints() == []


@pytest.mark.parametrize("hooks", HOOKS.values(), ids=HOOKS)
def test_no_thread_lives_in_a_master_as_its_fork_would_take_the_interpreter_s_lock_along(
    hooks: tuple[str, ...], start: Start, server: Server
) -> None:
    uwsgi = start(*hooks, EVENTS_AT_IMPORT="20")
    assert psutil.Process(uwsgi.pid).num_threads() == 1
    # Sent by the call, so they are there when the workers are.
    assert len(set(received(server, "import"))) == len(server.requests) == 20
    assert senders(server) == {uwsgi.pid}


@pytest.mark.parametrize("hooks", MOSTLY.values(), ids=MOSTLY)
def test_what_the_master_could_not_send_is_sent_by_no_worker(
    hooks: tuple[str, ...], start: Start, server: Server
) -> None:
    server.script = lambda request: (
        Reply(503, {"Retry-After": "60"})
        if request.event["attributes"]["id"].startswith("import")
        else Reply()
    )
    uwsgi = start(*hooks, EVENTS_AT_IMPORT="3")
    answers = uwsgi.ask_all() + uwsgi.ask_all()
    uwsgi.end_gracefully()
    uwsgi.wait()
    assert [line for line in uwsgi.complaints() if "1 delivery failed" not in line] == []
    assert received(server, "request") == ids(answers)
    # One attempt each, before the fork.
    assert len(set(received(server, "import"))) == len(received(server, "import")) == 3
    assert senders(server, "import") == {uwsgi.pid}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc here")
def test_no_signal_lands_on_a_thread_of_ours_whose_delivery_the_end_would_cut_off(
    start: Start, server: Server
) -> None:
    # uWSGI's handlers end the process on the thread that they are called on.
    with Hold(server):
        uwsgi = start()
        uwsgi.ask_all()
        server.wait_for(4)
        for pid in uwsgi.workers():
            threads = {thread.id for thread in psutil.Process(pid).threads()}
            assert len(threads) == 2
            (ours,) = threads - {pid}
            status = Path(f"/proc/{pid}/task/{ours}/status").read_text()
            (blocked,) = re.findall(r"^SigBlk:\t(\w+)", status, re.MULTILINE)
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
                assert int(blocked, 16) & (1 << number - 1), f"{number} in {blocked}"


@pytest.mark.parametrize("hooks", MOSTLY.values(), ids=MOSTLY)
def test_a_request_does_not_wait_for_the_service(
    hooks: tuple[str, ...], start: Start, server: Server
) -> None:
    with Hold(server):
        uwsgi = start(*hooks)
        assert [answer.pending for answer in uwsgi.ask_all()] == [1] * 4
        assert uwsgi.complaints() == []


def test_where_threads_are_off_the_caller_sends_and_each_worker_says_so_once(
    start: Start, server: Server
) -> None:
    if version() >= ALWAYS_THREADS:
        pytest.skip("threads can't be turned off since uWSGI 2.0.27")
    uwsgi = start(threads_by_option=False, EVENTS_AT_IMPORT="1")
    answers = uwsgi.ask_all() + uwsgi.ask_all()
    assert [answer.pending for answer in answers] == [0] * len(answers)
    assert received(server, "request") == ids(answers)  # now, and not later
    assert len(received(server, "import")) == 1
    uwsgi.end_gracefully()
    uwsgi.wait()
    said = uwsgi.complaints()
    assert len(said) == 4
    assert {line.partition("(")[0] for line in said} == {
        "WARNING:valued:uWSGI runs without threads "
    }
    assert len(server.requests) == len(answers) + 1


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), id="as it comes"),
        pytest.param(("--lazy-apps",), id="as it comes, lazy"),
        pytest.param((FORK_HOOKS,), id="fork hooks"),
    ],
)
def test_a_reload_under_load_loses_nothing(
    options: tuple[str, ...], start: Start, server: Server
) -> None:
    uwsgi = start(*options, EVENTS_AT_IMPORT="1")
    old = uwsgi.workers()
    with uwsgi.load() as load:
        load.wait_for(40)
        uwsgi.signal(signal.SIGHUP)
        uwsgi.wait_until(lambda: len(uwsgi.workers() - old) == 4 and not uwsgi.workers() & old)
        load.wait_for(40)
    new = uwsgi.workers()
    answers = uwsgi.ask_all()
    uwsgi.stop()
    assert_answered_are_received(load, received(server, "load"))
    assert received(server, "request") == ids(answers)
    assert senders(server, "request") == new
    at_import = received(server, "import")
    assert len(at_import) == len(set(at_import)) == (8 if "--lazy-apps" in options else 2)


def test_workers_that_are_replaced_under_load_lose_nothing(start: Start, server: Server) -> None:
    uwsgi = start("--max-requests", "10", "--min-worker-lifetime", "0", EVENTS_AT_IMPORT="1")
    old = uwsgi.workers()
    with uwsgi.load() as load:
        uwsgi.wait_until(lambda: not uwsgi.workers() & old)
    server.wait_for(1 + len(load.answers))
    assert load.unanswered == {}
    assert received(server, "load") == ids(load.answers)
    assert len(received(server, "import")) == 1
    assert uwsgi.complaints() == []


@pytest.mark.parametrize("threads", [1, 4], ids="threads={}".format)
def test_a_graceful_end_under_load_delivers_every_event_whose_request_was_answered(
    threads: int, start: Start, server: Server
) -> None:
    uwsgi = start(threads=threads)
    with uwsgi.load() as load:
        load.wait_for(60)
        uwsgi.end_gracefully()
        uwsgi.wait()
    assert uwsgi.complaints() == []
    assert_answered_are_received(load, received(server))


@pytest.mark.parametrize(
    ("number", "options"),
    [
        pytest.param(signal.SIGINT, (), id="SIGINT"),
        pytest.param(signal.SIGQUIT, (), id="SIGQUIT"),
        pytest.param(signal.SIGTERM, ("--die-on-term",), id="SIGTERM, die-on-term"),
        pytest.param(signal.SIGINT, (FORK_HOOKS,), id="SIGINT, fork hooks"),
    ],
)
def test_a_worker_that_is_stopped_between_requests_delivers_what_is_queued(
    number: int, options: tuple[str, ...], start: Start, server: Server
) -> None:
    with Hold(server) as hold:
        uwsgi = start(*options, CLIENT_OPTIONS='{"max_workers": 1}')
        answers = uwsgi.ask_all(at_exit=1) + uwsgi.ask_all() + uwsgi.ask_all()
        server.wait_for(4)
        assert len(received(server)) == 4  # a thread for each worker: all others are queued
        uwsgi.wait_until_idle()
        uwsgi.signal(number)
        uwsgi.gate.let_pass(4)  # all are in their exit handlers; ours comes next
        hold.release()
        uwsgi.wait()
    assert uwsgi.complaints() == []
    assert received(server) == ids(answers)


@pytest.mark.parametrize("hooks", MOSTLY.values(), ids=MOSTLY)
def test_the_first_event_of_a_worker_may_be_recorded_by_its_exit_handler(
    hooks: tuple[str, ...], start: Start, server: Server
) -> None:
    uwsgi = start(*hooks, EVENT_AT_EXIT="1")
    workers = uwsgi.workers()
    uwsgi.stop()
    arrived = received(server, "exit")
    assert len(arrived) == len(set(arrived))
    assert {f"exit-{pid}" for pid in workers} <= set(arrived)


def test_a_worker_that_is_stopped_in_a_request_runs_no_exit_handler_and_loses_its_own_queue_only(
    start: Start, server: Server
) -> None:
    with Hold(server) as hold, ThreadPoolExecutor(1) as caller:
        uwsgi = start(CLIENT_OPTIONS='{"max_workers": 1}', processes=2)
        answers = uwsgi.ask_all() + uwsgi.ask_all()
        server.wait_for(2)
        uwsgi.wait_until_idle()
        cut = caller.submit(uwsgi.ask, gate=1)
        with uwsgi.gate.held(1):
            uwsgi.signal(signal.SIGINT)
            with pytest.raises((OSError, http.client.HTTPException)):
                cut.result(BOUND)
        hold.release()
        uwsgi.wait()
    assert uwsgi.complaints() == []
    arrived = received(server)
    # Both had one event on its way, which had arrived, and one in the queue.
    assert len(arrived) == len(set(arrived)) == 3
    assert set(arrived) < set(ids(answers))


@pytest.mark.parametrize("hook", ["before", "after", "decorator before", "decorator after"])
def test_a_hook_of_the_application_runs_and_so_does_ours(
    hook: str, start: Start, server: Server
) -> None:
    uwsgi = start(EVENTS_AT_IMPORT="1", FLUSH="1", HOOK=hook)
    workers = uwsgi.workers()
    answers = uwsgi.ask_all()
    assert {pid for answer in answers for pid in answer.hooks} == workers
    uwsgi.stop()
    assert received(server, "hook") == sorted(f"hook-{pid}" for pid in workers)
    assert received(server, "request") == ids(answers)
    assert len(received(server, "import")) == 1
    own = [connections(server, pid) for pid in workers]
    assert connections(server, uwsgi.pid).isdisjoint(set().union(*own))
