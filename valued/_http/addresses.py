"""Making a connection in time: looking up the addresses of a host, and racing them.

A host may have an address that doesn't answer, such as a broken IPv6 route. If all of the time were
spent on it, the others would never be tried. So each address gets a head start of a quarter of a
second, then the next one is tried beside it, as RFC 8305 recommends. The first one to answer wins,
and is tried first for a while.

The name is looked up in a thread of its own, since the system's function has no timeout.
"""

from __future__ import annotations

import _socket
import copy
import errno
import math
import os
import select
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import urllib3.util.connection

from valued._process.clock import CLOCK
from valued._process.descriptors import Identity, close, identity, new_socket

#: Seconds that an address has before the next one is tried beside it; from RFC 8305, section 5.
HEAD_START: Final = 0.25

#: Seconds for which the address that answered is tried first.
PREFERRED_FOR: Final = 600.0

#: Seconds for which an answer of the name server serves while the name server fails.
KEPT_FOR: Final = 300.0

#: Seconds that a socket gets at least: a timeout of 0 would mean not to wait at all.
MIN_TIMEOUT: Final = 0.001

#: Results of a `connect_ex` that go on.
_UNDER_WAY: Final = frozenset({errno.EINPROGRESS, errno.EWOULDBLOCK})

Host = tuple[str, int]
Resolve = Callable[..., Sequence[tuple[Any, ...]]]


class Address(NamedTuple):
    """An entry of `socket.getaddrinfo`."""

    family: int
    kind: int
    protocol: int
    name: str
    address: Any


class _LookUp:
    """One question to the name server, and its answer. Any number of threads may wait for it."""

    def __init__(self, host: Host, resolve: Resolve | None) -> None:
        self._host = host
        self._resolve = resolve or socket.getaddrinfo  # looked up now: mocks replace it
        self._done = threading.Event()
        self._addresses: list[Address] = []
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            name, port = self._host
            # Of its module, now: applications replace it, to use IPv4 only.
            family = urllib3.util.connection.allowed_gai_family()
            try:
                found = self._resolve(name, port, family, socket.SOCK_STREAM)
            except RuntimeError:
                # gevent starts a thread for it, and Python 3.12 and later refuse to at the end of
                # the process. So in this thread, without a bound.
                found = _socket.getaddrinfo(name, port, family, socket.SOCK_STREAM)
            self._addresses = [Address(*one) for one in found]
        except Exception as error:  # noqa: BLE001 - raised to those who wait
            self._error = error
        finally:
            self._done.set()

    def is_under_way(self) -> bool:
        return not self._done.is_set()

    def answer(self, timeout: float) -> Sequence[Address]:
        """The addresses. Raises `OSError`: there are none, or no answer came in time."""
        if not self._done.wait(max(0.0, timeout)):
            raise TimeoutError("the name server did not answer in time")
        if self._error is not None:
            raise copy.copy(self._error)  # several threads may raise it
        return self._addresses


class Addresses:
    """What one process knows of the addresses of hosts. Any thread may call.

    *start*: starts a thread that runs a function; raises `RuntimeError` where that is not possible.
    *clock*, in seconds, and *resolve*, in place of `socket.getaddrinfo`: given by tests only.
    """

    def __init__(
        self,
        start: Callable[[Callable[[], None]], object],
        clock: Callable[[], float] = CLOCK.monotonic,
        resolve: Resolve | None = None,
    ) -> None:
        self._start = start
        self._resolve = resolve
        self._clock = clock
        # Each entry is replaced as a whole, so that no lock is needed.
        self._look_ups: dict[Host, _LookUp] = {}
        self._answers: dict[Host, tuple[float, Sequence[Address]]] = {}
        self._preferred: dict[Host, tuple[float, Address]] = {}

    def connect(
        self,
        host: Host,
        timeout: float,
        source: tuple[str, int] | None = None,
        options: Iterable[tuple[Any, ...]] = (),
    ) -> socket.socket:
        """A socket that is connected to *host*, within *timeout* seconds. Raises `OSError`.

        *source*: the address to connect from. *options*: arguments of `socket.setsockopt`.
        """
        deadline = self._clock() + timeout
        found = self._in_order(host, self._look_up(host, deadline))
        connected, address = self._race(found, deadline, source, tuple(options))
        self._preferred[host] = self._clock(), address
        return connected

    # -- names -------------------------------------------------------------------------------------

    def _look_up(self, host: Host, deadline: float) -> Sequence[Address]:
        now = self._clock()
        asked, known = self._answers.get(host, (-KEPT_FOR, ()))
        is_known = bool(known) and now - asked <= KEPT_FOR
        # An earlier answer is of use only if time is left to connect.
        timeout = (deadline - now) / 2 if is_known else deadline - now
        try:
            addresses = self._asked(host).answer(timeout)
        except OSError:
            if not is_known:
                raise
            return known
        self._answers[host] = self._clock(), addresses
        return addresses

    def _asked(self, host: Host) -> _LookUp:
        """The question for *host* that is under way, or a new one: one thread at most waits."""
        look_up = self._look_ups.get(host)
        if look_up is None or not look_up.is_under_way():
            look_up = _LookUp(host, self._resolve)
            try:
                self._start(look_up.run)
            except RuntimeError:  # no thread can be started: in this one, without a bound
                look_up.run()
            self._look_ups[host] = look_up
        return look_up

    def _in_order(self, host: Host, addresses: Sequence[Address]) -> list[Address]:
        since, preferred = self._preferred.get(host, (0.0, None))
        if preferred is None or self._clock() - since > PREFERRED_FOR:
            return list(addresses)
        return sorted(addresses, key=lambda one: one != preferred)  # keeps the order of the others

    # -- connections -------------------------------------------------------------------------------

    def _race(
        self,
        addresses: Sequence[Address],
        deadline: float,
        source: tuple[str, int] | None,
        options: Sequence[tuple[Any, ...]],
    ) -> tuple[socket.socket, Address]:
        waiting = list(reversed(addresses))
        racing: dict[socket.socket, tuple[Address, Identity | None]] = {}
        error = OSError("the host has no address")
        next_start = self._clock()
        try:
            while waiting or racing:
                now = self._clock()
                if now >= deadline:
                    raise TimeoutError("no address of the host answered in time")
                if waiting and (now >= next_start or not racing):
                    address = waiting.pop()
                    try:
                        one = _begin(address, source, options)
                    except OSError as failure:  # no route, for example
                        error = failure
                        continue
                    racing[one] = address, identity(one.fileno())
                    next_start = now + HEAD_START
                end = min(deadline, next_start) if waiting else deadline
                for one in _ready(list(racing), max(0.0, end - now)):
                    address, known = racing[one]
                    if known is None or identity(known[0]) != known:
                        raise ConnectionAbortedError("other code closed its descriptor")
                    number = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if not number:
                        one.settimeout(max(MIN_TIMEOUT, deadline - self._clock()))
                        del racing[one]
                        return one, address
                    one.close()
                    del racing[one]
                    error = OSError(number, os.strerror(number))
                    next_start = now  # the next one need not wait any longer
            raise error
        finally:
            for one, (_, known) in racing.items():
                close(one, known)


def _begin(
    address: Address, source: tuple[str, int] | None, options: Sequence[tuple[Any, ...]]
) -> socket.socket:
    """A socket that is being connected to *address*."""
    new = new_socket(address.family, address.kind, address.protocol)
    try:
        for option in options:
            new.setsockopt(*option)
        new.settimeout(0)
        if source is not None:
            new.bind(source)
        number = new.connect_ex(address.address)
        if number and number not in _UNDER_WAY:
            raise OSError(number, os.strerror(number))
    except BaseException:
        new.close()
        raise
    return new


def _ready(sockets: Sequence[socket.socket], timeout: float) -> Sequence[socket.socket]:
    """Those that are connected, or have failed, once there are some."""
    # Looked up now: gevent and eventlet replace or remove it. No selector object: the better ones
    # have a descriptor of their own, which a forked child would inherit.
    if not hasattr(select, "poll"):
        _, ready, failed = select.select([], sockets, sockets, timeout)
        return [*ready, *failed]
    poll = select.poll()
    for one in sockets:
        poll.register(one.fileno(), select.POLLOUT)
    numbers = {number for number, _ in poll.poll(math.ceil(timeout * 1000))}
    return [one for one in sockets if one.fileno() in numbers]
