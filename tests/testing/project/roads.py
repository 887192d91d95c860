"""The roads that events take, each in a test with the fixture. Run by pytest, not by ours."""

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ProcessPoolExecutor

import app
import pytest

import valued

NUMBERS = range(1, 9)


def users(events):
    for event in events:
        assert event["attributes"]["pid"] in events.pids
    return sorted(event["user"]["id"] for event in events)


def test_in_the_caller(valued_events):
    for number in NUMBERS:
        app.work(number)
    assert valued_events.actions == ["worked"] * len(NUMBERS)
    assert [event["user"]["id"] for event in valued_events] == list(NUMBERS)
    assert valued_events.pids == {os.getpid()}


def test_threads(valued_events):
    threads = [threading.Thread(target=app.work, args=(number,)) for number in NUMBERS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert users(valued_events) == list(NUMBERS)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork(valued_events):
    app.work(1)
    pid = os.fork()
    if pid == 0:
        app.work(2)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert users(valued_events) == [1, 2]
    assert valued_events.pids == {os.getpid(), pid}


METHODS = multiprocessing.get_all_start_methods()


TURNS = [*METHODS, "forkserver"] if "forkserver" in METHODS else METHODS  # that one stays


@pytest.mark.parametrize("method", TURNS)
def test_pool(valued_events, method):
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(app.work, NUMBERS, chunksize=1) == list(NUMBERS)
        pool.close()
        pool.join()
    assert users(valued_events) == list(NUMBERS)
    assert os.getpid() not in valued_events.pids


@pytest.mark.parametrize("method", TURNS)
def test_executor(valued_events, method):
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        assert list(pool.map(app.work, NUMBERS)) == list(NUMBERS)
    assert users(valued_events) == list(NUMBERS)
    assert os.getpid() not in valued_events.pids


def hand_over(client):
    client.action("worked", {"user.id": 1, "attributes.pid": os.getpid()})


@pytest.mark.parametrize("method", METHODS)
def test_a_client_that_is_handed_over(valued_events, method):
    process = multiprocessing.get_context(method).Process(
        target=hand_over, args=(valued.Client(os.environ.get("TOKEN")),)
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    assert users(valued_events) == [1]
    assert valued_events.pids == {process.pid}


@contextlib.contextmanager
def program(log, *arguments):
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=file, stderr=file)
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        print(log.read_text())


def find(log, pattern):
    deadline = time.monotonic() + 30
    while (found := re.search(pattern, log.read_text())) is None:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    return found


@pytest.mark.parametrize("preload", [("--preload",), ()])
def test_gunicorn(valued_events, tmp_path, preload):
    pytest.importorskip("gunicorn")
    log = tmp_path / "log"
    options = ("--bind", "127.0.0.1:0", "--no-control-socket", "--workers", "2", *preload)
    with program(log, "gunicorn", *options, "app:site") as master:
        url = find(log, r"Listening at: (\S+)")[1]
        for number in NUMBERS:
            urllib.request.urlopen(f"{url}/{number}", timeout=30).close()
        # The server goes on: what is recorded is seen at once.
        assert users(valued_events) == list(NUMBERS)
        assert not valued_events.pids & {master.pid, os.getpid()}


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_celery(valued_events, tmp_path, monkeypatch, pool):
    pytest.importorskip("celery")
    folder, log = tmp_path / "broker", tmp_path / "log"
    folder.mkdir()
    (tmp_path / "broker-control").mkdir()
    monkeypatch.setenv("FOLDER", str(folder))
    sys.modules.pop("jobs", None)
    import jobs

    for number in NUMBERS:
        jobs.work.delay(number)
    options = ("--pool", pool, "--concurrency", "2", "--loglevel", "INFO", "--without-gossip")
    more = ("--without-mingle", "--without-heartbeat")
    with program(log, "celery", "--app", "jobs", "worker", *options, *more):
        valued_events.wait(len(NUMBERS), timeout=30)
    assert users(valued_events) == list(NUMBERS)
    assert os.getpid() not in valued_events.pids


def test_nothing_is_left_of_the_others(valued_events):
    assert valued_events == []
