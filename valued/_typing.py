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


class Wire(Protocol):
    """What the sender delivers an encoded event with. Raises `DeliveryError`, or anything else.

    *timeout*: seconds for the whole of this attempt.
    """

    def __call__(self, body: bytes, idempotency_key: str, timeout: float, /) -> object: ...


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
    * *started* (float): when the process was started, in seconds since the epoch.

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
    started: float
    disabled: int
    invalid: int
    anonymous: int
    refused: int


class Item(Protocol):
    """One accepted event on its way; it belongs to the process that accepted it."""

    body: bytes
    #: Attempts so far, the one under way included.
    attempts: int
    #: `time.monotonic` of the acceptance.
    accepted_at: float

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt: a proxy or the service can tell a repeat by it."""


class Outbox(Protocol):
    """Holds what one process accepted until each event is settled: delivered, failed or dropped.

    Any thread may call anything. Nothing here waits for the network.
    """

    #: Whether events wait for as long as the outbox keeps them, however often they were tried, and
    #: for the right token; False: they fail permanently after ``Options.retries``, or an hour.
    patient: bool

    def put(self, body: bytes) -> Item | None:
        """Accept an event. The item comes back where the caller is to deliver it itself."""

    def refuse(self, reason: str) -> None:
        """Count an event as accepted, and as dropped at once, whatever room there is."""

    def take(self) -> Item | None:
        """The next event that is due, for the caller to deliver and settle; None: there is none."""

    def postpone(self, item: Item, due: float) -> None:
        """Give *item* back, to be taken again at *due* (`time.monotonic`) or later."""

    def hold(self, until: float, probe: float) -> None:
        """The endpoint is down: give nothing before *until* (`time.monotonic`), then one event.

        And no other one while that one is being tried, for *probe* seconds at most.
        """

    def resume(self) -> None:
        """The endpoint answers: end what `hold` began."""

    def delivered(self, item: Item) -> None: ...

    def failed(self, item: Item, error: DeliveryError) -> None: ...

    def dropped(self, item: Item, reason: str) -> bool:
        """This process delivers *item* no more; whether it is lost by that."""

    def take_before(self, moment: float) -> Item | None:
        """An event accepted before *moment* that no worker has taken, to be settled."""

    def abandon(self, reason: str) -> int:
        """Let go of all that no worker has taken; how many are lost by that."""

    def adopt(self) -> int:
        """Look now for what processes that died have left; from how many it was taken over."""

    def rest(self) -> None:
        """Nothing is taken until the next `put`: hold no file, and let no thread wait."""

    def ready(self) -> bool:
        """Whether `take` would find something now."""

    def postponed(self) -> bool:
        """Whether an event waits for its time."""

    def wait_until_due(self) -> bool:
        """Wait until a postponed event is due, for `take`; False: none is postponed (any more)."""

    def hasten(self) -> None:
        """Make everything postponed due now."""

    def pending(self) -> int:
        """How many events that this process accepted are not settled."""

    def at_stake(self) -> int:
        """How many of those would be lost if the process ended now."""

    def mark(self) -> int:
        """A mark behind the events accepted so far, for `wait`."""

    def wait(self, mark: int, deadline: float | None) -> bool:
        """Wait until all before *mark* is settled; False: *deadline* (`time.monotonic`) came."""

    def wait_for_work(self, mark: int, deadline: float | None) -> bool:
        """The same, for one who delivers meanwhile: returns, too, when `take` finds something."""

    def overflown(self) -> int:
        """How many events were dropped as there was no room, since this was last asked."""

    def figures(self) -> dict[str, Any]: ...


class ScopeLike(ABC):
    """A scope, for code that must tell one from a mapping without importing it."""

    @abstractmethod
    def to_dict(self) -> JSONObject: ...
