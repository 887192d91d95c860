"""Whoever waits, waits no longer than it said: from any thread, and out of our own calls, too."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import valued
from tests.faults._raw import Peer, answer
from tests.support.processes import until

EXECUTORS: dict[str, Callable[[], Any]] = {
    "default pool": lambda: None,
    "ImmediateExecutor": valued.ImmediateExecutor,
    "factory": lambda: lambda: ThreadPoolExecutor(2),
}

#: Seconds that are waited for what does not come.
TIMEOUT = 0.1

#: Seconds more that a thread may need to hear of it. An attempt would take 20, a hang for ever.
NOISE = 0.5


class Waiter:
    """Calls *method* of a client, once; how long it took, and what it said."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._called = itertools.count()
        self.done = threading.Event()
        self.took = 0.0
        self.result: Any = None

    def __call__(self, client: valued.Client) -> None:
        if next(self._called):
            return
        started = time.monotonic()
        self.result = getattr(client, self._method)(TIMEOUT)
        self.took = time.monotonic() - started
        self.done.set()

    def assert_in_time(self, *, settled: bool) -> None:
        assert self.done.wait(20)
        assert self.result is settled
        # The last attempt of a `close` has a tenth of a second, however late it is.
        assert self.took < TIMEOUT + 0.1 + NOISE
        assert settled or self.took >= TIMEOUT


def _refusing_the_first(peer: Peer) -> None:
    """Refuses the event ``refused``, and never answers any other."""
    while (event := peer.read_request()) is not None:
        if event["key"] != "refused":
            peer.server.over.wait(30)
            return
        peer.send(answer("400 No"))


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("method", ["flush", "close", "park"])
def test_a_transport_that_waits_for_itself_is_let_go_in_time(method: str, executor: str) -> None:
    waits = Waiter(method)
    got: list[str] = []

    def transport(event: dict[str, Any]) -> None:
        waits(client)
        got.append(event["key"])

    client = valued.Client(transport, executor=EXECUTORS[executor]())
    client.action("a", {"user.id": 1})
    waits.assert_in_time(settled=False)
    client.action("b", {"user.id": 1})
    assert client.flush(20)
    assert sorted(got) == ["a", "b"]
    client.close(20)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("method", ["flush", "close", "park"])
def test_an_on_error_that_waits_for_a_service_that_is_silent_is_let_go_in_time(
    method: str, executor: str, serve: Any
) -> None:
    waits = Waiter(method)
    server = serve(_refusing_the_first)
    ready = threading.Event()

    def on_error(_error: object, _event: object) -> None:
        ready.wait(20)
        waits(client)

    client = valued.Client(
        "token", server.url, timeout=20, on_error=on_error, executor=EXECUTORS[executor]()
    )
    if executor == "ImmediateExecutor":
        ready.set()  # the caller is the one who waits, with nothing else to wait for
        client.action("refused", {"user.id": 1})
        waits.assert_in_time(settled=True)
        return
    client.action("refused", {"user.id": 1})
    client.action("silent", {"user.id": 1})
    # Who flushes has a worker added, as the first one is busy with `on_error`.
    until(lambda: client.flush(0.05) or len(server.bodies) == 2)
    ready.set()
    waits.assert_in_time(settled=False)
    client.close(0)


@pytest.fixture
def on_signal() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Call a function when SIGUSR1 comes."""
    if not hasattr(signal, "SIGUSR1"):
        pytest.skip("no such signal here")
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda function: signal.signal(signal.SIGUSR1, lambda *_: function()) and None
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("amid", ["nothing", "action", "flush"])
@pytest.mark.parametrize("executor", ["default pool", "factory"])
@pytest.mark.parametrize("method", ["flush", "close", "park"])
def test_a_signal_handler_that_waits_for_a_service_that_is_silent_is_let_go_in_time(
    method: str, executor: str, amid: str, serve: Any, on_signal: Any
) -> None:
    waits = Waiter(method)
    server = serve(_refusing_the_first)
    client = valued.Client("token", server.url, timeout=20, executor=EXECUTORS[executor]())
    on_signal(lambda: waits(client))
    client.action("silent", {"user.id": 1})
    server.wait_for(1)
    if amid == "nothing":
        signal.raise_signal(signal.SIGUSR1)
    elif amid == "action":

        class Signals:
            def to_valued_data(self) -> int:
                signal.raise_signal(signal.SIGUSR1)
                return 1

        client.action("silent", {"user.id": Signals()})
    else:
        main = threading.main_thread().ident
        assert main is not None
        # Wherever in its waiting it comes.
        timer = threading.Timer(0.02, signal.pthread_kill, (main, signal.SIGUSR1))
        timer.start()
        assert client.flush(0.1) is False
        timer.join()
    waits.assert_in_time(settled=False)
    client.close(0)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("method", ["flush", "close", "park"])
def test_a_caller_with_events_that_were_postponed_is_let_go_in_time(
    method: str, executor: str, serve: Any
) -> None:
    silent = threading.Event()

    def busy_then_silent(peer: Peer) -> None:
        while peer.read_request() is not None:
            if silent.is_set():
                peer.server.over.wait(30)
                return
            peer.send(answer("503 Busy"))

    server = serve(busy_then_silent)
    client = valued.Client("token", server.url, timeout=20, executor=EXECUTORS[executor]())
    for _ in range(3):
        client.action("a", {"user.id": 1})
    server.wait_for(3)
    silent.set()
    waits = Waiter(method)
    waits(client)
    waits.assert_in_time(settled=False)
    client.close(0)


DEATHS = [MemoryError, SystemExit, KeyboardInterrupt, GeneratorExit, RecursionError]


@pytest.mark.parametrize("executor", ["default pool", "factory"])
@pytest.mark.parametrize("death", DEATHS)
def test_a_worker_that_dies_in_a_transport_is_replaced_and_its_event_tried_again(
    death: type[BaseException], executor: str, caplog: Any
) -> None:
    got: list[str] = []
    deaths = itertools.count()

    def transport(event: dict[str, Any]) -> None:
        if next(deaths) < 3:
            raise death
        got.append(event["key"])

    client = valued.Client(transport, max_workers=1, executor=EXECUTORS[executor]())
    for key in ("a", "b", "c", "d"):
        client.action(key, {"user.id": 1})
    assert client.flush(20)
    assert sorted(got) == ["a", "b", "c", "d"]
    stats = client.stats()
    assert (stats["delivered"], stats["retried"], stats["failed"]) == (4, 3, 0)
    ended = [
        record for record in caplog.records if "exception ended a worker" in record.getMessage()
    ]
    assert bool(ended) is not issubclass(death, Exception)
    client.close(20)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_transport_that_runs_out_of_memory_for_ever_is_told(executor: str) -> None:
    told: list[valued.DeliveryError] = []

    def transport(_event: object) -> None:
        raise MemoryError("no room")

    client = valued.Client(
        transport, retries=1, on_error=lambda error, _: told.append(error),
        executor=EXECUTORS[executor](),
    )  # fmt: skip
    client.action("a", {"user.id": 1})
    assert client.flush(20)
    (error,) = told
    assert (error.attempts, error.status) == (2, None)
    assert isinstance(error.__cause__, MemoryError)
    client.close(20)
