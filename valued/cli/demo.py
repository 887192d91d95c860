"""``valued demo``: one client, made before all forks, used by this process and all its children.

A mock server is started in its own process. Then this process records events, goes on recording in
threads while it forks four workers, and starts a pool and a spawned process. Each event has an id,
so that what was sent can be compared with what arrived, process by process. With ``--open``, the
browser shows the mock server's page meanwhile, and until Ctrl-C.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

import valued
from valued._service import render
from valued.cli import delivery, listen

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator
    from multiprocessing.synchronize import Barrier

WORKERS: Final = 4
THREADS: Final = 3
POOL: Final = 2

#: Number of tasks into which the events of the pool are split.
TASKS: Final = 10 * POOL

#: Seconds that the mock server has to end.
PATIENCE: Final = 10.0

#: Variables that may be set for the applications of this machine. Their outbox, for example, may
#: contain events that must not go to the demo's mock server.
_UNSET: Final = dict.fromkeys(
    (
        *("VALUED_OUTBOX", "VALUED_DISABLED", "VALUED_INVALID", "VALUED_ANONYMOUS"),
        *("VALUED_RECORD", "VALUED_BLOCK"),
    ),
    "",
)

_HEADINGS: Final = ("process", "pid", "sent", "arrived", "lost", "duplicated", "connections")


class Sent(NamedTuple):
    """What one process recorded: the ids of its events. *status*: its exit status."""

    name: str
    pid: int
    ids: list[str]
    status: int = 0


def run(arguments: argparse.Namespace) -> int:
    """Run all senders; 0 if each event arrived once, from the process that recorded it."""
    count = arguments.events
    began_at = time.monotonic()
    with (
        delivery.variables(VALUED_ENV="production", no_proxy="127.0.0.1", **_UNSET),
        tempfile.TemporaryFile("w+", encoding="ascii") as output,
        _listener(output, has_page=arguments.open) as listener,
    ):
        if arguments.open:
            listen.show(listener.page)
        # The options matter with 10,000 events and more: here, waiting is better than dropping.
        client = valued.Client("demo", listener.endpoint, overflow="block", shutdown_timeout=30.0)
        sent = [*_family(client, count), *_pool(client, count), _spawned(client, count)]
        client.close(None)
        if not arguments.open:
            _end(listener.process, os.getpid())
        # This leaves the file at its end, where the listener goes on to write.
        output.seek(0)
        status = _conclude(sent, [json.loads(line) for line in output], began_at)
        if arguments.open:
            with contextlib.suppress(KeyboardInterrupt):
                print(f"The page stays at {listener.page} until you press Ctrl-C.", flush=True)
                listener.process.wait()
    return status


def _conclude(sent: list[Sent], received: list[dict[str, Any]], began_at: float) -> int:
    rows, troubles = compare(sent, received)
    render.table(sys.stdout, _HEADINGS, rows)
    for trouble in troubles:
        render.complain(trouble)
    if troubles:
        return 1
    if again := repeats(received):
        print(
            f"{render.counted(again, 'request', 'requests')} came again with the same "
            "Idempotency-Key, as after a late answer. The service counts such an event once."
        )
    seconds = time.monotonic() - began_at
    print(f"Each event arrived once, from {len(sent)} processes, in {seconds:.1f} s.")
    return 0


class _Listener(NamedTuple):
    """``valued listen`` in a process of its own."""

    process: subprocess.Popen[str]
    endpoint: str
    page: str


@contextlib.contextmanager
def _listener(output: IO[str], *, has_page: bool) -> Iterator[_Listener]:
    """Run it, with or without its page. It writes to *output*."""
    here = os.getpid()
    command = [sys.executable, "-m", "valued", "listen", "--port", "0", "--json", "--until-eof"]
    process = subprocess.Popen(  # noqa: S603 - all of it is ours
        command if has_page else [*command, "--no-ui"],
        stdin=subprocess.PIPE,  # so it ends with this process, even if this one is killed
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        if not said.startswith("Listening on "):
            said += process.stderr.read()
            raise OSError(f"the mock server did not start: {said}".rstrip())
        page = process.stderr.readline().split()[-1] if has_page else ""
        yield _Listener(process, said.split()[-1], page)
    finally:
        _end(process, here)


def _end(process: subprocess.Popen[str], parent: int) -> None:
    if os.getpid() != parent:  # a forked worker, which leaves the block of its parent
        return
    if process.returncode is not None:  # it was ended before
        return
    process.terminate()
    try:
        process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


# -- the senders -----------------------------------------------------------------------------------


def _record(client: valued.Client, name: str, ids: Iterable[str]) -> None:
    for identity in ids:
        client.action(
            "demo.recorded",
            {"user.id": name, "attributes.id": identity, "attributes.pid": os.getpid()},
        )


def _ids(name: str, count: int) -> list[str]:
    return [f"{name}-{number}" for number in range(1, count + 1)]


def _family(client: valued.Client, count: int) -> list[Sent]:
    """Record in this process, in its threads, and in workers forked while the threads record."""
    names = ["parent", *(f"thread {number}" for number in range(1, THREADS + 1))]
    ids = {name: _ids(name, count) for name in names}
    _record(client, "parent", ids["parent"])
    threads = [
        threading.Thread(target=_record, args=(client, name, ids[name])) for name in names[1:]
    ]
    for thread in threads:
        thread.start()
    workers = []
    if hasattr(os, "fork"):
        for number in range(1, WORKERS + 1):
            name = f"worker {number}"
            ids[name] = _ids(name, count)
            pid = os.fork() or _work(client, name, ids[name], flushes=number == WORKERS)
            workers.append(Sent(name, pid, ids.pop(name)))
    for thread in threads:
        thread.join()
    own = Sent(f"parent, {THREADS} threads", os.getpid(), [*itertools.chain(*ids.values())])
    return [own, *(worker._replace(status=_status(worker.pid)) for worker in workers)]


def _work(client: valued.Client, name: str, ids: list[str], *, flushes: bool) -> NoReturn:
    """Run a worker that was just forked."""
    try:
        _record(client, name, ids)
        if flushes:  # necessary before `os._exit`, which nothing can notice
            os._exit(0 if client.flush(None) else 1)
    except BaseException:  # noqa: BLE001 - it must not go on as a second parent
        traceback.print_exc()
        os._exit(1)
    # No flush is needed here: the library delivers when the process exits.
    sys.exit(0)


def _status(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


_pooled: valued.Client  # these two are set in each process of the pool
_all_at_work: Barrier


def _adopt(client: valued.Client, all_at_work: Barrier) -> None:
    global _pooled, _all_at_work
    _pooled, _all_at_work = client, all_at_work


def _task(number: int, ids: list[str]) -> tuple[int, list[str]]:
    if number < POOL:  # else one process may be so quick that it takes all tasks
        _all_at_work.wait(PATIENCE)
    _record(_pooled, "pool", ids)
    return os.getpid(), ids


def _pool(client: valued.Client, count: int) -> list[Sent]:
    """Record in the processes of a pool, which are forked if that is possible."""
    forks = "fork" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if forks else "spawn")
    ids = _ids("pool", count * POOL)
    tasks = [(number, ids[number::TASKS]) for number in range(TASKS)]
    recorded: dict[int, list[str]] = {}
    with context.Pool(POOL, _adopt, (client, context.Barrier(POOL))) as pool:
        for pid, share in pool.starmap(_task, tasks, chunksize=1):
            recorded.setdefault(pid, []).extend(share)
        # Before the end of the block, which would terminate the processes, and lose what they
        # recorded last.
        pool.close()
        pool.join()
    return [
        Sent(f"pool {number}", pid, share)
        for number, (pid, share) in enumerate(recorded.items(), 1)
    ]


def _spawned(client: valued.Client, count: int) -> Sent:
    """Record in a process that shares nothing with this one: it gets the client by pickle."""
    ids = _ids("spawned", count)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_record, args=(client, "spawned", ids))
    process.start()
    process.join()
    return Sent("spawned", process.pid or 0, ids, process.exitcode or 0)


# -- the result ------------------------------------------------------------------------------------


def compare(
    sent: list[Sent], received: list[dict[str, Any]]
) -> tuple[list[tuple[object, ...]], list[str]]:
    """The table's rows, with totals, and what is wrong.

    *received*: objects as ``valued listen --json`` prints them.
    """
    keys: dict[str, set[str]] = collections.defaultdict(set)  # of each event; one is no duplicate
    connections: dict[int, set[str]] = collections.defaultdict(set)
    for line in received:
        attributes = line["event"]["attributes"]
        keys[attributes["id"]].add(line["idempotency_key"])
        connections[attributes["pid"]].add(line["connection"])
    rows: list[tuple[Any, ...]] = []
    for name, pid, ids, _ in sent:
        arrived = sum(identity in keys for identity in ids)
        again = sum(len(keys[identity]) for identity in ids if identity in keys) - arrived
        lost = len(ids) - arrived
        rows.append((name, pid, len(ids), arrived, lost, again, len(connections[pid])))
    totals = [sum(column) for column in list(zip(*rows, strict=True))[2:]]
    rows.append(("total", "", *totals))
    return rows, list(_troubles(sent, received, lost=totals[2], duplicated=totals[3]))


def repeats(received: list[dict[str, Any]]) -> int:
    """How many requests had come before, with the same key: what a service tells and drops."""
    return len(received) - len({line["idempotency_key"] for line in received})


def _troubles(
    sent: list[Sent], received: list[dict[str, Any]], *, lost: int, duplicated: int
) -> Iterator[str]:
    if lost or duplicated:
        were = render.counted(lost, "event was", "events were")
        yield f"{were} lost, {duplicated} arrived more than once"
    for name, pid, _, status in sent:
        if status:
            yield f"{name} (pid {pid}) ended with status {status}"
    pids = {identity: pid for _, pid, ids, _ in sent for identity in ids}
    # If the system doesn't tell the process of a connection, only the event's pid is compared.
    strays = sum(
        pids.get(attributes["id"]) != attributes["pid"]
        or line["pid"] not in (None, attributes["pid"])
        for line in received
        for attributes in [line["event"]["attributes"]]
    )
    if strays:
        came = render.counted(strays, "event")
        yield f"{came} came from another process than the one that recorded them"
