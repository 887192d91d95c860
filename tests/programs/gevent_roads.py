"""Programs whose threads are greenlets: URL ORDER ROAD.

ORDER says what was there when the standard library was patched. What a road found out it prints, as
JSON.
"""

import atexit
import gc
import json
import os
import signal
import socket
import sys
import threading
import time
import warnings

import gevent
import gevent.monkey

URL, ORDER, ROAD = sys.argv[1:]
OPTIONS = {
    # Where a process forks, the events behind the one that is held are to be queued.
    "max_workers": 1 if "fork" in ROAD else 10,
    "idle_time": 0.1 if ROAD == "fork_with_an_idle_thread" else 60.0,
    "shutdown_timeout": float(os.environ.get("SHUTDOWN_TIMEOUT", "5")),
}

warnings.simplefilter("ignore", gevent.monkey.MonkeyPatchWarning)  # of the orders that are bad
if ORDER == "patched first":
    gevent.monkey.patch_all()
import valued  # noqa: E402 - the order is what is tested
from valued._delivery import monitor as _monitor  # noqa: E402
from valued._http import wire  # noqa: E402

_monitor.LONGEST_WAIT = 0.1  # until a greenlet that a child inherited notices where it is

if ORDER == "client first":
    client = valued.Client("token", URL, **OPTIONS)
if ORDER != "patched first":
    gevent.monkey.patch_all()
if ORDER != "client first":
    client = valued.Client("token", URL, **OPTIONS)

#: Seconds between two ticks of whoever measures the pauses of the loop.
TICK = 0.001


def record(key: str) -> None:
    client.action(key, {"user.id": 1, "attributes.pid": os.getpid()})


def pauses() -> None:
    """1,000 events, of greenlets that take turns, for a server that answers none of them."""
    found = {"worst": 0.0, "ticks": 0}

    def tick() -> None:
        last = time.perf_counter()
        while True:
            gevent.sleep(TICK)
            now = time.perf_counter()
            found["ticks"] += 1
            found["worst"] = max(found["worst"], now - last - TICK)
            last = now

    def visitor() -> None:
        for _ in range(100):
            record("visit")
            gevent.sleep(0)

    ticker = gevent.spawn(tick)
    gevent.joinall([gevent.spawn(visitor) for _ in range(10)], raise_error=True)
    ticker.kill()
    print(json.dumps({**found, "pending": client.stats()["pending"]}), flush=True)
    os._exit(0)  # nobody answers: there is nothing to wait for


def events() -> None:
    def visitor(number: int) -> None:
        for page in range(10):
            record(f"{number}-{page}")
            gevent.sleep(0)

    gevent.joinall([gevent.spawn(visitor, number) for number in range(20)], raise_error=True)
    assert client.flush(10)
    assert client.stats()["delivered"] == 200


def scopes() -> None:
    """Each greenlet has a scope of its own, however they take turns."""
    scope = valued.Scope(client, {"attributes.shared": True})

    def visitor(number: int) -> None:
        with scope.nested({"user.id": number}):
            gevent.sleep(0)
            with scope.nested({"customer.id": -number}):
                gevent.sleep(0)
                scope.action(f"both-{number}")
            gevent.sleep(0)
            scope.action(f"user-{number}")

    gevent.joinall([gevent.spawn(visitor, number) for number in range(1, 11)], raise_error=True)
    assert scope.to_dict() == {"attributes": {"shared": True}}
    assert client.flush(10)


def end() -> None:
    """With events that nobody flushed."""
    gevent.joinall([gevent.spawn(record, f"event-{number}") for number in range(50)])


def first_event_in_an_atexit_handler() -> None:
    atexit.register(record, "one")
    atexit.register(record, "two")


def first_event_of_a_thread_that_outlives_the_main_one() -> None:
    def work() -> None:
        main = threading.main_thread()
        while main.is_alive() and not threading._SHUTTING_DOWN:
            time.sleep(TICK)
        record("one")
        record("two")

    threading.Thread(target=work).start()


def ours() -> list[gevent.Greenlet]:
    """The greenlets that are threads of the client."""
    found = [each for each in gc.get_objects() if isinstance(each, gevent.Greenlet)]
    return [each for each in found if not each.dead and "valued-" in repr(each)]


def fork(inherited: list[gevent.Greenlet], fork_it=os.fork) -> None:
    """The child records, too. It inherits these greenlets of its parent, and they live.

    At once, it makes sockets of its own, which get the numbers that have become free.
    """
    assert inherited
    pid = fork_it()
    if pid:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert client.flush(10)
        return
    pairs = [socket.socketpair() for _ in range(8)]
    figures = client.stats()
    assert (figures["accepted"], figures["pid"]) == (0, os.getpid()), figures
    gevent.joinall(inherited, timeout=10)
    assert all(each.dead for each in inherited), inherited
    gc.collect()
    for one, other in [*pairs, *(pair[::-1] for pair in pairs)]:
        one.sendall(b"!")
        other.settimeout(10)
        assert other.recv(100) == b"!"  # and nothing that was meant for somebody else
    gevent.joinall([gevent.spawn(record, f"child-{number}") for number in range(5)])
    assert client.flush(10)
    assert client.stats()["delivered"] == 5
    record("child-at-end")
    sys.exit(0)


def warm() -> None:
    record("warm")
    assert client.flush(10)
    while not client._sender._here.peek()._workers._threads._idle:
        gevent.sleep(TICK)


def fork_while_the_server_is_waited_for(fork_it=os.fork) -> None:
    warm()
    record("held")
    record("queued")
    gevent.sleep(0)  # the greenlet sends the first, and waits
    fork(ours(), fork_it)


def fork_by_gevent() -> None:
    fork_while_the_server_is_waited_for(gevent.fork)


def fork_with_an_idle_thread() -> None:
    warm()
    fork(ours())


def fork_with_a_job_handed_over() -> None:
    warm()
    inherited = ours()  # looking for them lets them take their turns
    record("handed-over")  # the greenlet is woken, and takes its turn in both processes
    fork(inherited)


def fork_before_a_connection_is_there() -> None:
    look_up = gevent.monkey.get_original("socket", "getaddrinfo")

    def slow_look_up(*args, **more):
        gevent.sleep(0.05)  # a timer, so it ends in both processes
        return look_up(*args, **more)

    socket.getaddrinfo = slow_look_up
    record("unconnected")
    fork(ours())


def fork_of_a_child_that_dies() -> None:
    record("parent")
    assert client.flush(10)
    pid = os.fork()
    if not pid:
        for number in range(5):
            record(f"child-{number}")
        os._exit(0)
    os.waitpid(pid, 0)
    assert client.adopt() == 1
    while client.stats()["delivered"] < 6:
        gevent.sleep(TICK)
    assert client.close(10)


def fork_in_a_tls_handshake() -> None:
    record("held")
    while not [one for one in wire._connections.get().living() if one._descriptor]:
        gevent.sleep(TICK)
    fork(ours())


def fork_while_a_greenlet_listens_for_signals() -> None:
    valued.flush_on_signals()
    record("parent")
    assert client.flush(10)
    gevent.sleep(TICK)
    (listener,) = [each for each in ours() if "valued-signals" in repr(each)]
    pid = os.fork()
    if pid:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        return
    pairs = [socket.socketpair() for _ in range(8)]  # with the numbers that have become free
    for each in (each for pair in pairs for each in pair):
        each.sendall(bytes([signal.SIGTERM]))
    gevent.joinall([listener], timeout=10)
    assert listener.dead
    for pair in pairs:
        for each in pair:
            each.settimeout(10)
            assert each.recv(100) == bytes([signal.SIGTERM])  # nobody else read from it
    record("child")
    sys.exit(0)


globals()[ROAD]()
