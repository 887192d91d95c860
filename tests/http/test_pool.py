"""Connections and forks: the child closes the inherited ones, those of the parent go on working."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any

import psutil
import pytest
import requests
import urllib3

from tests.support.processes import VANISHED, Child, run_program, until, vanish
from tests.support.proxy import Listener, Proxy, read_request
from tests.support.tls import Authority
from valued import Connection
from valued._http import wire
from valued._http.addresses import Addresses
from valued._http.pool import (
    IDLE_TIMEOUT,
    Adapter,
    ForkAwarePools,
    LockFreeQueue,
    checkin,
    checkout_idle,
)
from valued._http.reading import DeadlineReader
from valued._http.wire import ForkAwareConnection
from valued._process.fork import ProcessToken

BOUND = 10.0  # seconds; bounds a failure
LINKS = ["plain", "tls", "forwarded", "tunnel", "tls in tls"]

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
    # It is what is tested here: a fork while threads run.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]

InThread = Callable[..., "Future[Any]"]
Fork = Callable[..., Child]


class Service(Listener):
    """Answers when it is told; `came` is released for each request."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.came = threading.Semaphore(0)
        self.answer = threading.Event()
        super().__init__(self._answer, context)

    def _answer(self, client: socket.socket) -> None:
        with client.makefile("rb") as stream:
            while read_request(stream):
                self.came.release()
                assert self.answer.wait(BOUND)
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


@dataclasses.dataclass
class Link:
    """A connection, the service, and what the client connects to: the service, or a proxy."""

    connection: Connection
    service: Service
    first_hop: Listener


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(params=LINKS)
def link(
    request: pytest.FixtureRequest, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Link]:
    kind = request.param
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.bundle))
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.bundle))  # for the proxy behind TLS
    tls = authority.context()
    with ExitStack() as stack:
        service = stack.enter_context(Service(None if kind in ("plain", "forwarded") else tls))
        first_hop: Listener = service
        if kind not in ("plain", "tls"):
            first_hop = stack.enter_context(Proxy(tls if kind == "tls in tls" else None))
            monkeypatch.setenv("http_proxy", first_hop.url)
            monkeypatch.setenv("https_proxy", first_hop.url)
        # No connection is to be replaced here because a busy machine was slow.
        connection = Connection("token", service.url, idle_timeout=600.0)
        yield Link(connection, service, first_hop)
        service.answer.set()
        connection.close()


def begin(link: Link, in_thread: InThread, count: int) -> list[Future[Any]]:
    """So many requests at the same time, none of them answered."""
    link.service.answer.clear()
    requests = [in_thread(link.connection, {"number": number}) for number in range(count)]
    for _ in range(count):
        assert link.service.came.acquire(timeout=BOUND)
    return requests


def finish(link: Link, requests: list[Future[Any]]) -> None:
    link.service.answer.set()
    for one in requests:
        assert one.result(BOUND) is None


def towards(port: int) -> set[int]:
    """The descriptors of this process that lead to *port*."""
    process = psutil.Process()
    # psutil before 6.0 knows it by the second name only.
    connections = (getattr(process, "net_connections", None) or process.connections)("tcp")
    return {one.fd for one in connections if one.raddr and one.raddr.port == port}


class PausedChild:
    """A forked child that checks something, and then lives until `end` is called."""

    def __init__(self, fork: Fork, check: Callable[[], object]) -> None:
        self._told, tell = os.pipe()
        heard, self._say = os.pipe()

        def live() -> None:
            check()
            os.write(self._say, b"x")
            os.read(self._told, 1)

        self._tell = tell
        self.child = fork(live)
        os.close(self._say)
        # Empty where it failed: then its end says why.
        if os.read(heard, 1) == b"":
            self.child.wait()
        os.close(heard)

    def end(self) -> None:
        assert self.runs()
        os.write(self._tell, b"x")
        assert self.child.wait() == 0
        os.close(self._tell)
        os.close(self._told)

    def runs(self) -> bool:
        return psutil.Process(self.child.pid).status() != psutil.STATUS_ZOMBIE


def assert_that_nothing_leads_to(port: int) -> None:
    assert towards(port) == set()


# -- the child closes, the parent goes on ----------------------------------------------------------


@pytest.mark.parametrize("when", ["idle", "in a request"])
def test_connections_are_closed_in_the_child_and_go_on_in_the_parent(
    when: str, link: Link, fork: Fork, in_thread: InThread
) -> None:
    requests = begin(link, in_thread, 3)
    if when == "idle":
        finish(link, requests)
    port = link.first_hop.port
    assert len(towards(port)) == 3
    child = PausedChild(fork, lambda: assert_that_nothing_leads_to(port))
    finish(link, requests)
    finish(link, begin(link, in_thread, 3))
    assert len(link.first_hop.peers) == 3  # the same three
    # The child doesn't hold them open, so the parent's close ends them.
    link.connection.close()
    for _ in range(3):
        assert link.first_hop.ended.acquire(timeout=BOUND)
    child.end()


def test_the_child_makes_its_own_connection_and_both_processes_go_on(
    link: Link, fork: Fork, in_thread: InThread
) -> None:
    finish(link, begin(link, in_thread, 2))

    def send() -> None:
        link.connection({"child": 1})
        link.connection({"child": 2})
        assert len(towards(link.first_hop.port)) == 1

    child = PausedChild(fork, send)
    finish(link, begin(link, in_thread, 2))
    assert len(link.first_hop.peers) == 3
    child.end()
    finish(link, begin(link, in_thread, 2))
    assert len(link.first_hop.peers) == 3


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_connection_that_closes_with_the_answer_that_is_still_coming_is_closed_in_the_child(
    tls: bool,
    fork: Fork,
    in_thread: InThread,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.bundle))
    go_on = threading.Event()

    def serve(client: socket.socket) -> None:
        with client.makefile("rb") as stream:
            read_request(stream)
            client.sendall(b"HTTP/1.1 500 No\r\nConnection: close\r\nContent-Length: 4\r\n\r\nab")
            assert go_on.wait(BOUND)
            client.sendall(b"cd")
            assert stream.read() == b""  # the client closes

    with Listener(serve, authority.context() if tls else None) as service:
        connection = Connection("token", service.url)
        request = in_thread(connection, {})
        until(lambda: [one for one in made(service.port) if one.sock is None])
        assert len(towards(service.port)) == 1
        child = PausedChild(fork, lambda: assert_that_nothing_leads_to(service.port))
        go_on.set()
        assert request.exception(BOUND).body == "abcd"
        assert service.ended.acquire(timeout=BOUND)
        child.end()


def made(port: int) -> list[ForkAwareConnection]:
    """This process's connections to *port*."""
    return [one for one in wire._connections.get().living() if one.port == port]


def test_a_tls_handshake_under_way_is_closed_in_the_child_and_goes_on_in_the_parent(
    fork: Fork, in_thread: InThread, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.bundle))
    greeted, answer = threading.Event(), threading.Event()
    context = authority.context()

    def serve(client: socket.socket) -> None:
        assert client.recv(1, socket.MSG_PEEK)  # its hello, left where it is
        greeted.set()
        assert answer.wait(BOUND)
        with context.wrap_socket(client, server_side=True) as secure, secure.makefile("rb") as file:
            while read_request(file):
                secure.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    with Listener(serve) as service:
        connection = Connection("token", service.url.replace("http:", "https:"))
        request = in_thread(connection, {"number": 1})
        assert greeted.wait(BOUND)
        (number,) = towards(service.port)

        def check() -> None:
            assert_that_nothing_leads_to(service.port)
            gc.collect()
            connection.close()
            # The number stays in use: a greenlet in the handshake would go on with it.
            assert os.path.samestat(os.fstat(number), os.stat(os.devnull))

        child = PausedChild(fork, check)
        answer.set()
        assert request.result(BOUND) is None
        connection({"number": 2})
        assert len(service.peers) == 1
        connection.close()
        assert service.ended.acquire(timeout=BOUND)
        child.end()


@pytest.mark.parametrize("link", ["plain", "tls in tls"], indirect=True)
def test_forks_cost_the_parent_no_descriptor_and_no_thread(
    link: Link, fork: Fork, in_thread: InThread
) -> None:
    finish(link, begin(link, in_thread, 2))
    process = psutil.Process()
    before = process.num_fds(), process.num_threads()
    numbers = towards(link.first_hop.port)
    assert len(numbers) == 2
    for _ in range(30):
        pid = os.fork()
        if pid == 0:
            if any(map(is_open, numbers)):
                os._exit(1)
            vanish()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == VANISHED
    descriptors, threads = before
    assert process.num_fds() <= descriptors
    assert process.num_threads() <= threads  # of tests before this one, some may have ended
    finish(link, begin(link, in_thread, 2))
    assert len(link.first_hop.peers) == 2


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


# -- descriptor numbers that are used again --------------------------------------------------------


def take_numbers(wanted: set[int]) -> dict[int, tuple[int, int]]:
    """Open files until they have the *wanted* numbers; what each number then stands for."""
    taken: list[int] = []
    while not wanted <= set(taken):
        assert len(taken) < 1000
        taken.append(os.open(os.devnull if len(taken) % 2 else __file__, os.O_RDONLY))
    return {number: identity(number) for number in taken}


def identity(number: int) -> tuple[int, int]:
    status = os.fstat(number)
    return status.st_dev, status.st_ino


def assert_open(taken: dict[int, tuple[int, int]]) -> None:
    assert {number: identity(number) for number in taken} == taken


def test_what_the_child_opens_is_not_closed_by_what_it_inherited(
    link: Link, fork: Fork, in_thread: InThread
) -> None:
    finish(link, begin(link, in_thread, 2))
    under_way = begin(link, in_thread, 3)
    session = [link.connection.session]
    connections = made(link.first_hop.port)
    port = link.first_hop.port
    numbers = towards(port)
    assert len(numbers) == len(connections) == 3

    def check() -> None:
        assert_that_nothing_leads_to(port)
        taken = take_numbers(numbers)
        session[0].close()
        session.clear()
        for connection in connections:
            connection.close()
            connection.close_inherited()
        connections.clear()
        link.connection.close()
        gc.collect()
        assert_open(taken)

    child = fork(check)
    assert child.wait() == 0
    finish(link, under_way)
    finish(link, begin(link, in_thread, 3))
    assert len(link.first_hop.peers) == 3


def test_an_answer_that_the_child_inherited_closes_none_of_its_files(
    link: Link, fork: Fork
) -> None:
    link.service.answer.set()
    session = link.connection.session
    answers = [session.post(link.connection.endpoint, b"{}", stream=True, timeout=BOUND)]
    numbers = towards(link.first_hop.port)
    assert numbers == {answers[0].raw.fileno()}

    def check() -> None:
        taken = take_numbers(numbers)
        answers[0].raw.close()
        answers[0].close()
        answers.clear()
        gc.collect()
        assert_open(taken)

    assert fork(check).wait() == 0
    assert answers[0].content == b"ok"


def test_a_descriptor_number_that_is_another_file_by_now_is_left_alone() -> None:
    with open(__file__, "rb") as file:
        connection = a_connection()
        number = file.fileno()
        device, inode = identity(number)
        connection._descriptor = (number, device, inode + 1)
        connection.close_inherited()
        assert identity(number) == (device, inode)
        connection._descriptor = (number, device + 1, inode)
        connection.close_inherited()
        assert identity(number) == (device, inode)


def test_closing_a_descriptor_that_is_closed_already_is_no_error() -> None:
    connection = a_connection()
    ours, theirs = socket.socketpair()
    with theirs:
        number = ours.fileno()
        connection.sock = ours
        connection._descriptor = (number, *identity(number))
        os.close(number)  # such as daemons do, in the child
        connection.close_inherited()
        assert connection.sock is None
        assert ours.fileno() == -1
        connection._descriptor = (number, 0, 0)
        connection.close_inherited()
        connection.close_inherited()


def test_a_socket_that_a_greenlet_of_the_parent_makes_in_the_child_carries_nothing() -> None:
    # Only the question is replaced; real greenlets are in tests/prefork/test_gevent.py.
    class Elsewhere(ProcessToken):
        __slots__ = ()

        def is_current(self) -> bool:
            return False

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        pool = pools_of(Elsewhere()).derive(urllib3.HTTPConnectionPool)
        connection = pool.ConnectionCls("127.0.0.1", port)
        with pytest.raises(ConnectionAbortedError, match="forked"):
            connection.connect()
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(10)
            assert accepted.recv(1) == b""  # closed, and not a byte came


def pools_of(born: ProcessToken) -> ForkAwarePools:
    return ForkAwarePools(
        born, Addresses(lambda run: threading.Thread(target=run).start()), IDLE_TIMEOUT
    )


def a_connection() -> ForkAwareConnection:
    pool = pools_of(ProcessToken()).derive(urllib3.HTTPConnectionPool)("127.0.0.1", 1)
    connection = pool._new_conn()
    assert isinstance(connection, ForkAwareConnection)
    return connection


@pytest.fixture
def taken() -> Iterator[ForkAwareConnection]:
    """A connection whose number other code has closed and used again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pool = pools_of(ProcessToken()).derive(urllib3.HTTPConnectionPool)
        connection = pool("127.0.0.1", listener.getsockname()[1])._new_conn()
        connection.timeout = BOUND
        connection.connect()
        theirs = os.open(os.devnull, os.O_RDWR)
        os.dup2(theirs, connection.sock.fileno())
        number = connection.sock.fileno()
        yield connection
        connection.close()
        for one in (theirs, number):
            os.close(one)  # it is open


def test_nothing_is_written_by_a_number_that_other_code_took(taken: ForkAwareConnection) -> None:
    with pytest.raises(wire.StaleConnection, match="other code"):
        taken.exchange(b"POST", time.monotonic() + BOUND)
    with pytest.raises(ConnectionAbortedError, match="other code"):
        taken.send(b"POST")
    taken.expect_acknowledgements()  # sets nothing


def test_nothing_is_read_by_a_number_that_other_code_took() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile("rb", 0) as raw:
        theirs.sendall(b"ab")
        reader = DeadlineReader(ours, raw, time.monotonic() + BOUND, lambda: False)
        with pytest.raises(ConnectionAbortedError, match="other code"):
            reader.read(1)
        assert ours.recv(2) == b"ab"


def test_a_kept_connection_needs_no_option_of_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT", raising=False)
    a_connection().expect_acknowledgements()


# -- the end of the child --------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["nobody", "program"])
def test_a_child_ends_though_a_thread_of_its_parent_held_every_lock_of_the_session(
    link: Link, who: str
) -> None:
    link.service.answer.set()
    result = run_program(
        "exit_with_pool_locks_held.py", link.service.url, who, timeout=30, env=dict(os.environ)
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert found["status"] == 0
    assert found["locks"] >= 2  # that of the pools' container, that of the cookies
    assert len(link.first_hop.peers) == 1  # the parent's second event used it, too


# -- the queue of a pool ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [queue.LifoQueue, LockFreeQueue])
def test_the_queue_keeps_what_urllib3_relies_on(kind: type[Any]) -> None:
    stack = kind(2)
    assert isinstance(stack, queue.LifoQueue)
    assert stack.maxsize == 2
    with pytest.raises(queue.Empty):
        stack.get(block=False)
    stack.put("first")
    stack.put(None, block=False)
    assert stack.qsize() == 2
    assert [stack.get(block=False, timeout=None), stack.get(block=False)] == [None, "first"]
    with pytest.raises(queue.Empty):
        stack.get(block=False, timeout=5)


def test_the_queue_has_no_lock_and_never_waits() -> None:
    stack = LockFreeQueue(1)
    with pytest.raises(queue.Empty):
        stack.get(block=True, timeout=None)
    stack.put("only")
    stack.put(None, block=True, timeout=None)  # there is room again
    assert stack.qsize() == 1
    assert {type(value) for value in vars(stack).values()} == {int, list}


def test_a_connection_too_many_is_closed_without_a_warning() -> None:
    class Connection:
        closed = False

        def close(self) -> None:
            self.closed = True

    stack, kept, surplus = LockFreeQueue(1), Connection(), Connection()
    stack.put(kept)
    stack.put(surplus)
    assert (kept.closed, surplus.closed) == (False, True)
    assert stack.get() is kept


def test_threads_that_take_and_put_back_lose_nothing_and_double_nothing(
    in_thread: InThread,
) -> None:
    stack = LockFreeQueue(8)
    things = [object() for _ in range(8)]
    for thing in things:
        stack.put(thing)
    together = threading.Barrier(8)

    def churn() -> None:
        together.wait(BOUND)
        for _ in range(3_000):
            stack.put(stack.get(block=False))

    for one in [in_thread(churn) for _ in range(8)]:
        one.result(30)
    assert stack.qsize() == 8
    assert {stack.get() for _ in range(8)} == set(things)


# -- responses -------------------------------------------------------------------------------------


def test_a_read_waits_until_the_deadline_whatever_there_is_and_the_timeout_of_the_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile("rb", 0) as raw:
        ours.settimeout(BOUND)
        theirs.sendall(b"ab")
        now = time.monotonic()
        later, over, soon = (
            DeadlineReader(ours, raw, now + more, lambda: True) for more in (BOUND, -1, 0.1)
        )
        assert later.read(1) == b"a"
        with pytest.raises(TimeoutError, match="timed out"):
            over.read(1)
        assert later.read(1) == b"b"
        with pytest.raises(TimeoutError):
            soon.read(1)
        assert 0.1 <= time.monotonic() - now < BOUND / 2


def test_a_request_without_a_timeout_waits_for_its_response(link: Link) -> None:
    link.service.answer.set()
    answer = link.connection.session.post(link.connection.endpoint, b"{}")
    assert answer.content == b"ok"


# -- classes ---------------------------------------------------------------------------------------


def test_a_process_knows_its_connections_for_as_long_as_they_live(
    link: Link, in_thread: InThread
) -> None:
    finish(link, begin(link, in_thread, 2))
    assert len(made(link.first_hop.port)) == 2
    link.connection.close()
    gc.collect()
    assert made(link.first_hop.port) == []
    finish(link, begin(link, in_thread, 1))
    (one,) = made(link.first_hop.port)
    assert one.sock is not None


def test_every_kind_of_pool_is_derived_and_only_once() -> None:
    class Connected(urllib3.connection.HTTPConnection):
        pass

    class Special(urllib3.HTTPConnectionPool):
        ConnectionCls = Connected

    born = ProcessToken()
    pools = pools_of(born)
    derived = pools.derive(Special)
    assert issubclass(derived, Special)
    assert issubclass(derived.ConnectionCls, ForkAwareConnection)
    assert issubclass(derived.ConnectionCls, Connected)
    assert issubclass(derived.QueueCls, LockFreeQueue)
    assert derived.ConnectionCls._born is born
    assert pools.derive(derived) is derived


def test_two_threads_that_make_the_pools_of_a_proxy_at_once_both_get_ours() -> None:
    adapter = Adapter(1, IDLE_TIMEOUT)
    proxy = "http://127.0.0.1:1"
    # The other thread has made and published it, and not changed it yet.
    published = requests.adapters.HTTPAdapter.proxy_manager_for(adapter, proxy)
    manager = adapter.proxy_manager_for(proxy)
    assert manager is published
    for pool in manager.pool_classes_by_scheme.values():
        assert issubclass(pool.ConnectionCls, ForkAwareConnection)
        assert issubclass(pool.QueueCls, LockFreeQueue)
    assert adapter.proxy_manager_for(proxy).pool_classes_by_scheme == manager.pool_classes_by_scheme


@pytest.mark.parametrize("link", ["plain"], indirect=True)
def test_a_connection_that_a_fork_closes_after_its_checkout_is_stale(
    link: Link, in_thread: InThread
) -> None:
    finish(link, begin(link, in_thread, 1))
    pool = link.connection._route.get()._prepared.pool
    kept = checkout_idle(pool)
    kept.close_inherited()  # as the fork hook does, with a greenlet between the two calls
    with pytest.raises(wire.StaleConnection):
        kept.exchange(b"", time.monotonic() + BOUND)


@pytest.mark.parametrize("link", ["plain"], indirect=True)
def test_a_connection_that_is_returned_to_a_closed_pool_is_closed(
    link: Link, in_thread: InThread
) -> None:
    finish(link, begin(link, in_thread, 1))
    pool = link.connection._route.get()._prepared.pool
    kept = checkout_idle(pool)
    pool.close()
    checkin(pool, kept)
    assert kept.sock is None
    assert checkout_idle(pool) is None
