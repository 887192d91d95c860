"""What this client and others do in the same situations; run by hand, for the docs.

Each client is made as its documents say, with no option but the address, in a process of its own
that is put into one situation after the other: forks, ends, a service that is down. A server on
loopback counts what arrives. ``python -m benchmarks.peers.behaviour`` prints what was found.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import http.server
import json
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

from benchmarks.peers.clients import CLIENTS, Make, Record, environment, version
from benchmarks.servers import ROOT

#: Seconds until a process that does not end is killed.
PATIENCE: Final = 90.0
#: How often workers are forked: what goes wrong there depends on the instant.
FORK_RUNS: Final = 5


# -- what a process does, with the interpreter of the environment that has the client --------------


def _record(record: Record, events: int, process: str = "p") -> None:
    for index in range(events):
        record(f"probe.{process}.{index}.x")


def _workers(record: Record, workers: int, events: int) -> dict[str, object]:
    """Fork so many workers, which record so many events each; how many had to be killed."""
    children = []
    for number in range(workers):
        child = os.fork()
        if not child:
            _record(record, events, f"c{number}")
            time.sleep(3)  # a worker that goes on
            return {}
        children.append(child)
    deadline, hung = time.monotonic() + 30, 0
    for child in children:
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                hung += 1
                break
            time.sleep(0.05)
    return {"hung": hung}


def fork(make: Make, url: str) -> dict[str, object]:
    """Four children, forked from a process that has sent an event, record 25 events each."""
    record, finish = make(url, None)
    _record(record, 1)
    finish()
    return _workers(record, 4, 25)


def backlog(make: Make, url: str) -> dict[str, object]:
    """A fork while 100 events of the parent wait; the child records one."""
    record, _ = make(url, None)
    _record(record, 100)
    return _workers(record, 1, 1)


def end(make: Make, url: str) -> dict[str, object]:
    """500 events, and the end of the script."""
    _record(make(url, None)[0], 500)
    return {}


def few(make: Make, url: str) -> dict[str, object]:
    """50 events, and the end of the script."""
    _record(make(url, None)[0], 50)
    return {}


def term(make: Make, url: str) -> dict[str, object]:
    """50 events, and SIGTERM to itself."""
    few(make, url)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    return {}


def full(make: Make, url: str) -> dict[str, object]:
    """1,000 events where 100 may wait."""
    record, _ = make(url, 100)
    raised: dict[str, int] = {}
    for index in range(1000):
        try:
            record(f"probe.p.{index}.x")
        except Exception as error:  # noqa: BLE001, PERF203 - that is the question
            raised[type(error).__name__] = raised.get(type(error).__name__, 0) + 1
    sys.stderr.flush()
    time.sleep(1)
    print(json.dumps({"raised": raised}), flush=True)
    os._exit(0)


class Odd:
    """What no client knows."""


def bad(make: Make, url: str) -> dict[str, object]:
    """An event with a value that has no form in JSON, between two others."""
    record, finish = make(url, None)
    raised = ""
    record("probe.p.0.x")
    try:
        record("probe.p.1.x", odd=Odd())
    except Exception as error:  # noqa: BLE001 - that is the question
        raised = f"{type(error).__name__}: {error}"
    record("probe.p.2.x")
    finish()
    return {"raised": raised}


def wait(make: Make, url: str) -> dict[str, object]:
    """50 events, and a process that goes on."""
    few(make, url)
    time.sleep(60)
    os._exit(0)


SITUATIONS: Final = {one.__name__: one for one in (fork, backlog, end, few, term, full, bad, wait)}


# -- what is seen of it ----------------------------------------------------------------------------


class Counter:
    """A server that counts the keys that it gets, each once for a request."""

    def __init__(self, *, delay: float = 0.0, down: float = 0.0) -> None:
        self.seen: dict[str, int] = {}
        self.requests = 0
        self.odd = ""
        self.up_at = time.monotonic() + down
        self._lock = threading.Lock()
        counts = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # an answer is one write: two would wait for each other
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                is_zipped = self.headers["Content-Encoding"] == "gzip"
                status = counts.take(gzip.decompress(body) if is_zipped else body)
                time.sleep(delay)
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Length", "2")
                    self.end_headers()
                    self.wfile.write(b"{}")

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # a process that ended broke the connection off

        server = Quiet(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_port}/events"

    def take(self, body: bytes) -> int:
        """Count a request; the status of its answer."""
        with self._lock:
            self.requests += 1
            if time.monotonic() < self.up_at:
                return 503
            for key in set(re.findall(r"probe\.\w+\.\d+\.x", body.decode("utf-8", "replace"))):
                self.seen[key] = self.seen.get(key, 0) + 1
            if odd := re.search(rb".{0,20}odd.{0,60}", body):
                self.odd = odd[0].decode("utf-8", "replace")
            return 200

    def summary(self, prefix: str = "") -> str:
        """How many of the keys that begin so arrived, and how many more than once."""
        keys = [key for key in self.seen if key.startswith(f"probe.{prefix}")]
        twice = sum(1 for key in keys if self.seen[key] > 1)
        return f"{len(keys)}{f', {twice} of them more than once' if twice else ''}"


class Run:
    """A process in a situation: what it *said*, how long it *took* to end, its *errors*."""

    def __init__(self, python: str, name: str, situation: str, url: str) -> None:
        command = [python, "-m", "benchmarks.peers.behaviour", "--as", name, "--in", situation, url]
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=errors
            )
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            ended = time.time()
            output.seek(0)
            errors.seek(0)
            self.said: dict[str, Any] = {}
            for line in output.read().splitlines():
                if line.startswith("{"):
                    self.said.update(json.loads(line))
            self.took = ended - self.said.pop("done", ended)
            lines = [line for line in errors.read().splitlines() if line.strip()]
            self.errors = f"{len(lines)} lines, the last: {lines[-1][:200]}" if lines else "nothing"


def _import_time(python: str, module: str) -> float:
    """CPU milliseconds that the import takes, median of 7, less those of a bare interpreter."""

    def once(code: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([python, "-c", code], cwd=ROOT, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    pairs = [(once("pass"), once(f"import {module}")) for _ in range(7)]
    return 1000 * statistics.median(more - bare for bare, more in pairs)


def behaviour(python: str, name: str) -> Iterator[tuple[str, str]]:
    """All situations, one after the other: what was asked, and what was seen."""

    def run(situation: str, **options: float) -> tuple[Counter, Run]:
        counter = Counter(**options)
        return counter, Run(python, name, situation, counter.url)

    forks = []
    for _ in range(FORK_RUNS):
        counter, done = run("fork")
        hung = f", {done.said['hung']} of 4 children hung" if done.said.get("hung") else ""
        forks.append(counter.summary("c") + hung)
    yield "of 100 events of 4 forked workers arrived", "; ".join(forks)
    yield "its stderr", done.errors
    counter, _ = run("backlog", delay=0.3)
    yield "of 100 events that waited at a fork arrived", counter.summary("p")
    yield "and of 1 of the child", counter.summary("c")
    counter, done = run("end", delay=0.02)
    yield "of 500 at a normal end, answers after 20 ms", f"{counter.summary()} in {done.took:.1f} s"
    yield "requests for them", str(counter.requests)
    yield "stderr at that end", done.errors
    _, done = run("few", delay=300)
    killed = f"killed after {PATIENCE:.0f}"
    took = f"{done.took:.1f}" if done.took < PATIENCE - 5 else killed
    yield "seconds of an end with 50 events, no answer", took
    yield "stderr at an end without an answer", done.errors
    counter, _ = run("term", delay=0.02)
    yield "of 50 at SIGTERM", counter.summary()
    _, done = run("full", delay=300)
    yield "1,000 calls where 100 may wait: raised", str(done.said.get("raised"))
    yield "and stderr", done.errors
    counter, done = run("bad")
    what = f"raised {done.said.get('raised')!r}; arrived {sorted(counter.seen)}"
    yield "a value of an unknown class", f"{what}; sent {counter.odd!r}"
    yield "its stderr too", done.errors
    counter, _ = run("wait", down=20)
    yield "of 50 after an outage of 20 s (503)", counter.summary()
    yield "import, ms of CPU", f"{_import_time(python, CLIENTS[name].module):.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--as", dest="name", help=argparse.SUPPRESS)
    parser.add_argument("--in", dest="situation", help=argparse.SUPPRESS)
    parser.add_argument("url", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="+", default=list(CLIENTS), choices=CLIENTS)
    given = parser.parse_args()
    if given.situation:
        here = os.getpid()
        said = SITUATIONS[given.situation](CLIENTS[given.name].make, given.url)
        if os.getpid() == here:
            print(json.dumps({**said, "done": time.time()}), flush=True)
        return
    for name in given.only:
        python = environment(name)
        print(f"{name} ({version(python, name)}), {time.strftime('%Y-%m-%d')}, "
              f"Python {sys.version.split()[0]}")  # fmt: skip
        for what, value in behaviour(python, name):
            print(f"    {what:<48} {value}", flush=True)


if __name__ == "__main__":
    main()
