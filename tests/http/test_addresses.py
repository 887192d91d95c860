"""Connecting in time: addresses that don't answer, and name servers that don't."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.processes import until
from valued._http.addresses import HEAD_START, KEPT_FOR, PREFERRED_FOR, Addresses
from valued._process.descriptors import HIGH

HOST = ("service.test", 443)


def thread(run: Callable[[], None]) -> None:
    threading.Thread(target=run, daemon=True).start()


def no_thread(_run: Callable[[], None]) -> None:
    raise RuntimeError("can't start new thread")


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class NameServer:
    """Answers with *addresses*; None: it fails."""

    def __init__(self, *addresses: tuple[str, int]) -> None:
        self.addresses: tuple[tuple[str, int], ...] | None = addresses
        self.asked = 0

    def __call__(self, *_arguments: object) -> list[tuple[Any, ...]]:
        self.asked += 1
        if self.addresses is None:
            raise socket.gaierror(socket.EAI_AGAIN, "temporary failure")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", one) for one in self.addresses]


class Listeners:
    """Sockets on loopback that listen; all are closed at the end."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._listening: list[socket.socket] = []

    def answering(self) -> tuple[str, int]:
        return self._listen(16).getsockname()  # type: ignore[no-any-return]

    def silent(self) -> tuple[str, int]:
        """One whose backlog is full: the system drops what asks for a connection."""
        address: tuple[str, int] = self._listen(0).getsockname()
        for _ in range(8):
            one = self._stack.enter_context(socket.socket())
            one.settimeout(0.2)
            try:
                one.connect(address)
            except TimeoutError:
                return address
        pytest.skip("the backlog of a socket has no bound here")

    def refusing(self) -> tuple[str, int]:
        """One that nobody listens on."""
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            return one.getsockname()  # type: ignore[no-any-return]

    def close(self) -> None:
        for one in self._listening:
            one.close()

    def _listen(self, backlog: int) -> socket.socket:
        listener = self._stack.enter_context(socket.socket())
        self._listening.append(listener)
        listener.bind(("127.0.0.1", 0))
        listener.listen(backlog)
        return listener


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    with contextlib.ExitStack() as stack:
        yield Listeners(stack)


def peer_of(addresses: Addresses, timeout: float) -> Any:
    with addresses.connect(HOST, timeout) as connected:
        return connected.getpeername()


@pytest.mark.parametrize("dead", [1, 6])
def test_silent_addresses_take_no_more_than_their_head_start(
    listeners: Listeners, dead: int
) -> None:
    living = listeners.answering()
    silent = listeners.silent()
    addresses = Addresses(thread, resolve=NameServer(*[silent] * dead, living))
    assert peer_of(addresses, dead * HEAD_START + 1.0) == living


def test_the_address_that_answered_is_tried_first_for_a_while(listeners: Listeners) -> None:
    clock, living, silent = Clock(), listeners.answering(), listeners.silent()
    names = NameServer(silent, living)
    addresses = Addresses(thread, resolve=names)
    assert peer_of(addresses, 5.0) == living
    # Less time than the head start of the silent one.
    assert peer_of(addresses, HEAD_START / 2) == living
    names.addresses = (living, silent)
    other = Addresses(thread, clock, resolve=names)
    assert peer_of(other, 5.0) == living
    clock.now += PREFERRED_FOR + 1
    second = listeners.answering()
    names.addresses = (second, living)
    assert peer_of(other, 5.0) == second


def test_an_address_that_refuses_costs_no_time(listeners: Listeners) -> None:
    living = listeners.answering()
    refused = [listeners.refusing() for _ in range(20)]
    addresses = Addresses(thread, resolve=NameServer(*refused, living))
    assert peer_of(addresses, 20 * HEAD_START / 2) == living


def test_the_error_of_the_last_address_is_raised(listeners: Listeners) -> None:
    addresses = Addresses(thread, resolve=NameServer(listeners.refusing(), listeners.refusing()))
    with pytest.raises(ConnectionRefusedError):
        addresses.connect(HOST, 5.0)
    with pytest.raises(OSError, match="no address"):
        Addresses(thread, resolve=NameServer()).connect(HOST, 5.0)


def test_an_address_that_cannot_be_asked_gives_way_at_once(listeners: Listeners) -> None:
    living = listeners.answering()
    broadcast = ("255.255.255.255", 1)
    assert peer_of(Addresses(thread, resolve=NameServer(broadcast, living)), 5.0) == living
    with pytest.raises(OSError, match=r"\w"):
        Addresses(thread, resolve=NameServer(broadcast)).connect(HOST, 5.0)


def test_addresses_that_refuse_later_end_the_wait(listeners: Listeners) -> None:
    silent = [listeners.silent(), listeners.silent()]
    addresses = Addresses(thread, resolve=NameServer(*silent))
    closing = threading.Timer(2 * HEAD_START, listeners.close)
    closing.start()
    with pytest.raises(ConnectionError):  # once the system asks again, after a second or three
        addresses.connect(HOST, 20.0)
    closing.join()


def test_without_poll_addresses_are_raced_too(
    listeners: Listeners, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent, living = listeners.silent(), listeners.answering()
    monkeypatch.delattr(select, "poll")  # as eventlet does
    assert peer_of(Addresses(thread, resolve=NameServer(silent, living)), 5.0) == living


@pytest.mark.skipif(not hasattr(os, "fork"), reason="numbers are not moved here")
def test_a_number_that_other_code_took_while_it_was_connecting_is_left_alone(
    listeners: Listeners, in_thread: Callable[..., Any]
) -> None:
    silent = listeners.silent()
    before = descriptors()
    addresses = Addresses(thread, resolve=NameServer(silent, silent))
    connecting = in_thread(addresses.connect, HOST, 2.0)
    # The first is known by its device and inode once there is a second.
    until(lambda: sum(int(one) >= HIGH for one in descriptors() - before) == 2)
    number = min(int(one) for one in descriptors() - before if int(one) >= HIGH)
    theirs = os.open(os.devnull, os.O_RDWR)
    os.dup2(theirs, number)
    with pytest.raises(ConnectionAbortedError, match="other code"):
        connecting.result(20)
    for one in (theirs, number):
        os.close(one)  # it is open


def test_the_time_is_over_when_no_address_answers(listeners: Listeners) -> None:
    silent = listeners.silent()
    before = descriptors()
    addresses = Addresses(thread, resolve=NameServer(silent, silent))
    with pytest.raises(TimeoutError, match="no address"):
        addresses.connect(HOST, 0.6)
    assert descriptors() == before


def test_only_the_winner_stays_open(listeners: Listeners) -> None:
    living, silent = listeners.answering(), listeners.silent()
    before = descriptors()
    with Addresses(thread, resolve=NameServer(silent, silent, living)).connect(HOST, 5.0):
        assert len(descriptors()) == len(before) + 1


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"))


def test_the_socket_has_the_options_and_the_time_that_is_left(listeners: Listeners) -> None:
    addresses = Addresses(thread, resolve=NameServer(listeners.answering()))
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    with addresses.connect(HOST, 5.0, ("127.0.0.1", 0), options) as connected:
        assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert 0 < (connected.gettimeout() or 0) <= 5.0
        assert connected.getsockname()[0] == "127.0.0.1"


class Silent:
    """A name server that answers when it is told to."""

    def __init__(self, then: NameServer) -> None:
        self._then = then
        self.go_on = threading.Event()
        self.asked = 0

    def __call__(self, *arguments: object) -> list[tuple[Any, ...]]:
        self.asked += 1
        assert self.go_on.wait(30)
        return self._then(*arguments)


def test_a_silent_name_server_is_waited_for_no_longer_than_the_timeout(
    listeners: Listeners,
) -> None:
    living = listeners.answering()
    names = Silent(NameServer(living))
    addresses = Addresses(thread, resolve=names)
    for _ in range(3):
        with pytest.raises(TimeoutError, match="name server"):
            addresses.connect(HOST, 0.05)
    assert names.asked == 1  # so no more than one thread waits
    names.go_on.set()
    assert peer_of(addresses, 5.0) == living


def test_an_earlier_answer_serves_while_the_name_server_fails(listeners: Listeners) -> None:
    clock, living, other = Clock(), listeners.answering(), listeners.answering()
    names = NameServer(living)
    addresses = Addresses(thread, clock, resolve=names)
    peer_of(addresses, 5.0)
    names.addresses = None
    clock.now += KEPT_FOR
    assert peer_of(addresses, 5.0) == living
    clock.now += 1
    with pytest.raises(socket.gaierror):
        addresses.connect(HOST, 5.0)
    names.addresses = (other,)  # and never otherwise
    assert peer_of(addresses, 5.0) == other


def test_an_earlier_answer_serves_while_the_name_server_is_silent(listeners: Listeners) -> None:
    living = listeners.answering()
    silent = Silent(NameServer(living))
    silent.go_on.set()
    addresses = Addresses(thread, resolve=silent)
    peer_of(addresses, 5.0)
    silent.go_on.clear()
    assert peer_of(addresses, 0.5) == living
    silent.go_on.set()


def test_an_exception_that_ends_the_start_of_a_thread_leaves_nothing_to_wait_for(
    listeners: Listeners,
) -> None:
    living = listeners.answering()
    starts = iter([KeyboardInterrupt, None])

    def start(run: Callable[[], None]) -> None:
        if (error := next(starts)) is not None:
            raise error
        thread(run)

    addresses = Addresses(start, resolve=NameServer(living))
    with pytest.raises(KeyboardInterrupt):
        addresses.connect(HOST, 5.0)
    assert peer_of(addresses, 5.0) == living


def test_the_name_is_looked_up_here_where_no_thread_can_be_started(listeners: Listeners) -> None:
    living = listeners.answering()
    assert peer_of(Addresses(no_thread, resolve=NameServer(living)), 5.0) == living


def test_a_look_up_that_can_start_no_thread_of_its_own_is_made_without(
    listeners: Listeners,
) -> None:
    # gevent's is such a one, at the end of a process of Python 3.12 and later.
    def names(*_arguments: object) -> list[tuple[Any, ...]]:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    living = listeners.answering()
    addresses = Addresses(thread, resolve=names)
    with addresses.connect(living, 5.0) as connected:
        assert connected.getpeername() == living


def test_a_name_is_looked_up_in_the_families_that_the_application_allows(
    listeners: Listeners, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    living = listeners.answering()

    def names(*arguments: Any) -> list[tuple[Any, ...]]:
        asked.append(arguments[2])
        return NameServer(living)()

    monkeypatch.setattr("urllib3.util.connection.allowed_gai_family", lambda: socket.AF_INET)
    assert peer_of(Addresses(thread, resolve=names), 5.0) == living
    assert asked == [socket.AF_INET]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors can't be listed here")
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # it is closed when it is freed
@pytest.mark.parametrize("is_made", [False, True], ids=["before it is made", "once it is made"])
def test_an_exception_while_a_socket_moves_up_leaves_no_descriptor_open(
    listeners: Listeners, monkeypatch: pytest.MonkeyPatch, is_made: bool
) -> None:
    class Interrupted(socket.socket):
        """A signal handler raises as the socket with the high number is made."""

        def __init__(self, *arguments: Any, fileno: int | None = None) -> None:
            if is_made or fileno is None:
                super().__init__(*arguments, fileno=fileno)  # type: ignore[misc]
            if fileno is not None:
                raise KeyboardInterrupt

    addresses = Addresses(thread, resolve=NameServer(listeners.answering()))
    before = set(os.listdir("/proc/self/fd"))
    monkeypatch.setattr("socket.socket", Interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        addresses.connect(HOST, 5.0)
    traceback.clear_frames(caught.tb)  # as `Connection` does
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_socket_keeps_its_number_where_there_are_no_high_ones(
    listeners: Listeners, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("valued._process.descriptors.HIGH", 2**30)
    living = listeners.answering()
    assert peer_of(Addresses(thread, resolve=NameServer(living)), 5.0) == living
