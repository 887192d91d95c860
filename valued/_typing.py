"""The protocols of what users, or other modules, may hand in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypedDict

if TYPE_CHECKING:
    from valued._errors import DeliveryError

#: An event, or part of one: plain JSON data.
JSONObject: TypeAlias = dict[str, Any]

#: What an event method takes: a mapping, a scope, or any object whose converter gives a mapping.
Data: TypeAlias = "Mapping[Any, Any] | object | None"


class Transport(Protocol):
    """Delivers one event: a callable that gets it as a dict of its own.

    Returning means delivered; the result is ignored. Raising any exception means not delivered: the
    event is tried again later. It runs on the threads of the executor, several at a time.
    """

    def __call__(self, data: JSONObject, /) -> object: ...


class BytesTransport(Protocol):
    """Delivers one event as the bytes to send: an object with these two methods.

    An object that can be called, too, is a `Transport`; a `valued.Connection` is used with both.
    """

    def post(self, body: bytes, idempotency_key: str, timeout: float) -> object:
        """Deliver *body*, the UTF-8 JSON of one event.

        *idempotency_key*: the same in each attempt, in each process; the service tells repeats by
        it. *timeout*: seconds for this attempt; it has to keep them, nothing interrupts it.

        Returning means delivered; the result is ignored. Raising means not delivered: any
        `Exception` is tried again later. Only a `valued.DeliveryError` with a 4xx ``status`` other
        than 408, 425 and 429 is final (with an outbox 401 and 403 are tried again), or one that is
        ``permanent``. It runs on the threads of the executor, several at a time. Forked children
        call it, too: one that keeps connections open must make its own in each process.
        """

    def close(self) -> object:
        """Free what is kept open in this process; a later ``post`` opens it again.

        `Client.close` calls it, in each process that closes. Whatever it raises, `Client.close`
        raises.
        """


class SendBytes(Protocol):
    """What the pipeline sends an encoded event with. Raises `DeliveryError`, or anything else.

    *timeout*: seconds for the whole of this attempt.
    """

    def __call__(self, body: bytes, idempotency_key: str, timeout: float, /) -> object: ...


#: How events may be delivered.
AnyTransport: TypeAlias = Transport | BytesTransport


class Executor(Protocol):
    """Runs deliveries: ``submit(fn, *args)`` calls *fn* soon, on a thread of its choice.

    The executors of `concurrent.futures` are such. The result is ignored.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> object: ...


class OnError(Protocol):
    """Is called for each event that failed permanently, on the thread whose attempt failed."""

    def __call__(self, error: DeliveryError, event: JSONObject, /) -> object: ...


class Stats(TypedDict):
    """Counts of one process's events, as `Client.stats` returns them.

    ``accepted + adopted = delivered + failed + dropped + handed_over + pending``, always.

    * *accepted* (int): events that were checked and counted; also those dropped at once.
    * *delivered* (int): events that the service answered with a 2xx status.
    * *failed* (int): events that failed permanently: the service refused them, or, without an
      outbox, the *retries* are used up or they are older than an hour. Logged, and passed to
      *on_error*.
    * *dropped* (int): events that are no longer tried, for the reasons below. Logged, but not
      passed to *on_error*.
    * *pending* (int): events that wait, are being sent, or wait for a retry.
    * *retried* (int): attempts after the first, of all events.
    * *dropped_by_reason* (dict of str to int): splits *dropped*: the queue was full (``overflow``),
      the process ended (``exit``), the client was closed (``closed``); with an outbox also ``age``,
      ``size`` (older, or more, than the outbox keeps) and ``damaged`` (a file could not be read).
    * *adopted* (int): events that other processes accepted and this one took over.
    * *handed_over* (int): events that this process no longer delivers, as others are to.
    * *unsaved* (int): accepted events that the disk did not take, and that are only in memory.
      Without an outbox *adopted*, *handed_over* and *unsaved* are 0.
    * *pid* (int): the id of the process.
    * *started* (float or None): when the process was started, in seconds since the epoch; None:
      the system doesn't say, for example without ``/proc``.

    These events were not accepted, so they are in none of the counts above:

    * *disabled* (int): the client is disabled, or a test records.
    * *invalid* (int): they can't be sent, and the option *invalid* is ``"log"``.
    * *anonymous* (int): they lack an id, and the option *anonymous* is ``"drop"``.
    * *refused* (int): *before_send* returned None, or raised an exception.

    An event whose call raised is not counted.
    """

    accepted: int
    delivered: int
    failed: int
    dropped: int
    pending: int
    retried: int
    dropped_by_reason: dict[str, int]
    adopted: int
    handed_over: int
    unsaved: int
    pid: int
    started: float | None
    disabled: int
    invalid: int
    anonymous: int
    refused: int


class ScopeLike(ABC):
    """A scope, for code that must tell one from a mapping without importing it."""

    @abstractmethod
    def to_dict(self) -> JSONObject: ...
