"""What this client and others do in the same situations; run by hand, for the docs.

Each client is made as its documents say, with no option but the address, in a process of its own
that is put into one situation after the other: forks, ends, a service that is down. A server on
loopback counts what arrives. ``python -m benchmarks.peer_behaviour`` installs the other clients
into an environment of their own and prints a table for each situation.
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
import venv
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

ROOT: Final = Path(__file__).parent.parent
TOKEN: Final = "a-token"
#: By the name that it has here: the distribution.
PACKAGES: Final = {
    "posthog": "posthog",
    "segment": "segment-analytics-python",
    "rudder": "rudder-sdk-python",
    "sentry": "sentry-sdk",
    "opentelemetry": "opentelemetry-sdk",
}
MODULES: Final = {
    "valued": "valued",
    "posthog": "posthog",
    "segment": "segment.analytics.client",
    "rudder": "rudderstack.analytics.client",
    "sentry": "sentry_sdk",
    "opentelemetry": "opentelemetry.sdk._logs.export",
}
#: Seconds until a process that does not end is killed.
PATIENCE: Final = 90.0
#: How often workers are forked: what goes wrong there depends on the instant.
FORK_RUNS: Final = 5

#: Records an event with this key, and maybe a value that can't be sent.
Record: TypeAlias = Callable[..., object]
#: Made with the server's address, and how many events may wait (None: by default).
Maker: TypeAlias = Callable[[str, "int | None"], "tuple[Record, Callable[[], object]]"]


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _valued(url: str, room: int | None, **options: Any) -> tuple[Record, Callable[[], object]]:
    import valued

    if room is not None:
        options["max_queue"] = room
    client = valued.Client(TOKEN, url, **options)

    def record(key: str, **more: object) -> None:
        client.action(key, {"user.id": 123}, attributes=more or None)

    return record, lambda: client.flush(60)


def _valued_signals(url: str, room: int | None) -> tuple[Record, Callable[[], object]]:
    import valued

    made = _valued(url, room)
    valued.flush_on_signals()
    return made


def _posthog(url: str, room: int | None) -> tuple[Record, Callable[[], object]]:
    import posthog  # type: ignore[import-not-found]

    options = {} if room is None else {"max_queue_size": room}
    client = posthog.Posthog(TOKEN, host=_origin(url), **options)

    def record(key: str, **more: object) -> None:
        client.capture(key, distinct_id="123", properties=more)

    return record, client.flush


def _segment(url: str, room: int | None) -> tuple[Record, Callable[[], object]]:
    from segment.analytics.client import Client  # type: ignore[import-not-found]

    options = {} if room is None else {"max_queue_size": room}
    client = Client(TOKEN, host=_origin(url), **options)

    def record(key: str, **more: object) -> None:
        client.track("123", key, more)

    return record, client.flush


def _rudder(url: str, room: int | None) -> tuple[Record, Callable[[], object]]:
    from rudderstack.analytics.client import Client  # type: ignore[import-not-found]

    options = {} if room is None else {"max_queue_size": room}
    client = Client(TOKEN, host=_origin(url), **options)

    def record(key: str, **more: object) -> None:
        client.track("123", key, more)

    return record, client.flush


def _sentry(url: str, room: int | None) -> tuple[Record, Callable[[], object]]:
    import sentry_sdk  # type: ignore[import-not-found]

    parts = urlsplit(url)
    options = {} if room is None else {"transport_queue_size": room}
    sentry_sdk.init(dsn=f"{parts.scheme}://{TOKEN}@{parts.netloc}/1", **options)

    def record(key: str, **more: object) -> None:
        sentry_sdk.capture_message(key, extras=more)

    return record, lambda: sentry_sdk.flush(60)


def _opentelemetry(url: str, room: int | None) -> tuple[Record, Callable[[], object]]:
    from opentelemetry.exporter.otlp.proto.http import _log_exporter  # type: ignore[import-not-found]
    from opentelemetry.sdk._logs import LoggerProvider, export  # type: ignore[import-not-found]

    provider = LoggerProvider()
    options = {} if room is None else {"max_queue_size": room, "max_export_batch_size": room}
    exporter = _log_exporter.OTLPLogExporter(endpoint=f"{_origin(url)}/v1/logs")
    provider.add_log_record_processor(export.BatchLogRecordProcessor(exporter, **options))
    logger = provider.get_logger("probe")

    def record(key: str, **more: object) -> None:
        logger.emit(event_name=key, attributes={"user.id": 123, **more})

    return record, provider.force_flush


MAKERS: Final[dict[str, Maker]] = {
    "valued": _valued,
    "valued, flush_on_signals": _valued_signals,
    "posthog": _posthog,
    "segment": _segment,
    "rudder": _rudder,
    "sentry": _sentry,
    "opentelemetry": _opentelemetry,
}


# What a process does. It runs with the interpreter of the environment that has the client.


def _reap(children: list[int], seconds: float) -> int:
    """Wait for *children*; how many had to be killed."""
    deadline, hung = time.monotonic() + seconds, 0
    for child in children:
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                hung += 1
                break
            time.sleep(0.05)
    return hung


def fork(make: Maker, url: str) -> dict[str, object]:
    """Four children, forked from a process that has sent an event, record 25 events each."""
    record, finish = make(url, None)
    record("probe.p.0.x")
    finish()
    children = []
    for number in range(4):
        child = os.fork()
        if not child:
            for index in range(25):
                record(f"probe.c{number}.{index}.x")
            time.sleep(3)  # a worker that goes on
            return {}
        children.append(child)
    return {"hung": _reap(children, 30)}


def backlog(make: Maker, url: str) -> dict[str, object]:
    """A fork while 100 events of the parent wait; the child records one."""
    record, _ = make(url, None)
    for index in range(100):
        record(f"probe.p.{index}.x")
    child = os.fork()
    if not child:
        record("probe.c.0.x")
        time.sleep(3)
        return {}
    return {"hung": _reap([child], 30)}


def end(make: Maker, url: str) -> dict[str, object]:
    """500 events, and the end of the script."""
    record, _ = make(url, None)
    for index in range(500):
        record(f"probe.p.{index}.x")
    return {}


def few(make: Maker, url: str) -> dict[str, object]:
    """50 events, and the end of the script."""
    record, _ = make(url, None)
    for index in range(50):
        record(f"probe.p.{index}.x")
    return {}


def term(make: Maker, url: str) -> dict[str, object]:
    """50 events, and SIGTERM to itself."""
    few(make, url)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    return {}


def full(make: Maker, url: str) -> dict[str, object]:
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


def bad(make: Maker, url: str) -> dict[str, object]:
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


def wait(make: Maker, url: str) -> dict[str, object]:
    """50 events, and a process that goes on."""
    few(make, url)
    time.sleep(60)
    os._exit(0)


SITUATIONS: Final = {one.__name__: one for one in (fork, backlog, end, few, term, full, bad, wait)}


class Counter:
    """A server that counts the keys that it gets, each once for a request."""

    def __init__(self, *, delay: float = 0.0, down: float = 0.0) -> None:
        self.seen: dict[str, int] = {}
        self.requests = 0
        self.odd = ""
        lock, until = threading.Lock(), time.monotonic() + down

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # an answer is one write: two would wait for each other
            disable_nagle_algorithm = True
            server_counts = self

            def do_POST(self) -> None:
                body = _plain(self.rfile.read(int(self.headers["Content-Length"])))
                status = 503 if time.monotonic() < until else 200
                counts = self.server_counts
                with lock:
                    counts.requests += 1
                    if status == 200:
                        for key in set(re.findall(rb"probe\.\w+\.\d+\.x", body)):
                            counts.seen[key.decode()] = counts.seen.get(key.decode(), 0) + 1
                        odd = re.search(rb".{0,20}odd.{0,60}", body)
                        counts.odd = odd[0].decode("utf-8", "replace") if odd else counts.odd
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

        self._server = Quiet(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/events"

    def summary(self, prefix: str = "") -> str:
        """How many of the keys that begin so arrived, and how many more than once."""
        keys = [key for key in self.seen if key.startswith(f"probe.{prefix}")]
        twice = sum(1 for key in keys if self.seen[key] > 1)
        return f"{len(keys)}{f', {twice} of them more than once' if twice else ''}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _plain(body: bytes) -> bytes:
    try:
        return gzip.decompress(body)
    except (OSError, EOFError, zlib.error):
        return body


def _run(python: str, name: str, what: str, url: str) -> tuple[dict[str, Any], float, str]:
    """What the process said, how long it took, and its standard error."""
    command = [python, "-m", "benchmarks.peer_behaviour", "--as", name, "--in", what, url]
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
        lines = [line for line in output.read().splitlines() if line.startswith("{")]
        said: dict[str, Any] = {}
        for line in lines:
            said.update(json.loads(line))
        return said, ended - said.pop("done", ended), errors.read()


def _first_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return f"{len(lines)} lines, the last: {lines[-1][:200]}" if lines else "nothing"


def _import_time(python: str, module: str) -> float:
    """CPU milliseconds that the import takes, median of 7, less those of a bare interpreter."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    def once(code: str) -> float:
        start = used()
        subprocess.run([python, "-c", code], cwd=ROOT, check=True)
        return used() - start

    pairs = [(once("pass"), once(f"import {module}")) for _ in range(7)]
    return 1000 * statistics.median(more - bare for bare, more in pairs)


def behaviour(python: str, name: str) -> dict[str, str]:
    """All situations, one after the other."""
    found: dict[str, str] = {}
    runs = []
    for _ in range(FORK_RUNS):
        counter = Counter()
        said, _, errors = _run(python, name, "fork", counter.url)
        hung = f", {said['hung']} of 4 children hung" if said.get("hung") else ""
        runs.append(counter.summary("c") + hung)
        counter.close()
    found["of 100 events of 4 forked workers arrived"] = "; ".join(runs)
    found["its stderr"] = _first_line(errors)

    counter = Counter(delay=0.3)
    said, _, _ = _run(python, name, "backlog", counter.url)
    found["of 100 events that waited at a fork arrived"] = counter.summary("p")
    found["and of 1 of the child"] = counter.summary("c")
    counter.close()

    counter = Counter(delay=0.02)
    _, took, errors = _run(python, name, "end", counter.url)
    found["of 500 at a normal end, answers after 20 ms"] = f"{counter.summary()} in {took:.1f} s"
    found["requests for them"] = str(counter.requests)
    found["stderr at that end"] = _first_line(errors)
    counter.close()

    counter = Counter(delay=300)
    _, took, errors = _run(python, name, "few", counter.url)
    found["seconds of an end with 50 events, no answer"] = (
        f"{took:.1f}" if took < PATIENCE - 5 else f"killed after {PATIENCE:.0f}"
    )
    found["stderr at an end without an answer"] = _first_line(errors)

    counter = Counter(delay=0.02)
    _run(python, name, "term", counter.url)
    found["of 50 at SIGTERM"] = counter.summary()
    counter.close()

    counter = Counter(delay=300)
    said, _, errors = _run(python, name, "full", counter.url)
    found["1,000 calls where 100 may wait: raised"] = str(said.get("raised"))
    found["and stderr"] = _first_line(errors)

    counter = Counter()
    said, _, errors = _run(python, name, "bad", counter.url)
    found["a value of an unknown class"] = (
        f"raised {said.get('raised')!r}; arrived {sorted(counter.seen)}; sent {counter.odd!r}"
    )
    found["its stderr too"] = _first_line(errors)
    counter.close()

    counter = Counter(down=20)
    _run(python, name, "wait", counter.url)
    found["of 50 after an outage of 20 s (503)"] = counter.summary()
    counter.close()

    module = MODULES[name.partition(",")[0]]
    found["import, ms of CPU"] = f"{_import_time(python, module):.0f}"
    return found


def _environment(folder: Path, name: str) -> str:
    """The interpreter of an environment that has this client, and the packages that ours needs."""
    python = str(folder / name / "bin" / "python")
    if not Path(python).exists():
        venv.create(folder / name, with_pip=True)
        more = ["opentelemetry-exporter-otlp-proto-http"] if name == "opentelemetry" else []
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", PACKAGES[name], *more],
            stdout=sys.stderr, check=True,
        )  # fmt: skip
    return python


def _version(python: str, name: str) -> str:
    code = f"from importlib.metadata import version; print(version({PACKAGES[name]!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--as", dest="name", help=argparse.SUPPRESS)
    parser.add_argument("--in", dest="situation", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, default=ROOT / ".peers" / "each")
    parser.add_argument("url", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="+", default=list(MAKERS), choices=MAKERS)
    arguments = parser.parse_args()
    if arguments.situation:
        here = os.getpid()
        said = SITUATIONS[arguments.situation](MAKERS[arguments.name], arguments.url)
        if os.getpid() == here:
            print(json.dumps({**said, "done": time.time()}), flush=True)
        return
    for name in arguments.only:
        python, version = sys.executable, "this tree"
        if name in PACKAGES:
            python = _environment(arguments.folder, name)
            version = _version(python, name)
        print(f"{name} ({version}), {time.strftime('%Y-%m-%d')}, Python {sys.version.split()[0]}")
        for what, value in behaviour(python, name).items():
            print(f"    {what:<48} {value}", flush=True)


if __name__ == "__main__":
    main()
