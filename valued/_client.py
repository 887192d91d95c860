"""`Client`: builds the event, hands it to its sender."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from valued import _celery, _converters, _events, _options, _recording
from valued._errors import PicklingError, ValidationError, ValuedError
from valued._fork import import_psutil, trial_pickle
from valued._options import Anonymous, Durability, Invalid, Options, Overflow
from valued._refusals import Refusals
from valued._secret import hide
from valued._serializer import Snapshot, encode

if TYPE_CHECKING:
    from os import PathLike
    from types import TracebackType

    from typing_extensions import Self

    from valued._connection import Connection
    from valued._typing import Data, Executor, JSONObject, OnError, Stats, Transport, Wire


class Client:
    """Records events, and delivers them in the background.

    *token*: the token (default ``VALUED_TOKEN``), or a transport: a callable that takes an event, a
    dict, and raises where it can't deliver it. *endpoint*: an http(s) URL (default
    ``VALUED_ENDPOINT``, else the service's). The rest are options:

    * *executor*: where deliveries run: an object with ``submit(fn, *args)``, or a factory of one,
      called in each process. Default: `valued.set_executor`'s, else a pool of 1 to *max_workers*
      threads, by load; one thread where the environment is ``development``; in the caller where it
      is ``test``.
    * *max_workers* (default 10): deliveries at the same time, at most.
    * *max_queue* (default 10,000): events accepted and not settled, at most; at most 64 MiB, too.
    * *overflow* (default ``"drop_newest"``): what happens past that; also ``"drop_oldest"``,
      ``"block"`` (the caller waits, *timeout* at most) and ``"caller_runs"`` (it delivers).
    * *timeout* (default 10.0): seconds for one attempt.
    * *retries* (default 240): attempts after the first, with growing pauses of up to 30 s: an hour.
    * *shutdown_timeout* (default None): seconds that the end of the process may wait; None: 5, or 1
      with an outbox.
    * *idle_time* (default 60.0): seconds after which a thread of the default pool that has nothing
      to do ends.
    * *on_error* (default None): called with a `DeliveryError` and the event, a dict, for each event
      that is given up, on the thread that tried it last.
    * *outbox* (default None): a directory in which events outlive their process, and from which
      whoever is left delivers them; None: ``VALUED_OUTBOX``, else they wait in memory. *max_queue*
      then bounds what is in memory, and *retries* nothing.
    * *durability* (default ``"process"``): what an event in the outbox outlives; ``"power"``: the
      call waits for the disk.
    * *outbox_max_age* (default 604,800.0): seconds after which an event in the outbox is dropped.
    * *outbox_max_size* (default 1,073,741,824): bytes of the outbox, of all its processes; past
      them the oldest events are dropped.
    * *defaults* (default None): a mapping that every scope of the client starts from.
    * *isolate_tasks* (default None): whether each task of Celery's starts with those defaults, and
      what it sets ends with it; None: ``VALUED_ISOLATE_TASKS``, else True.

    * *enabled* (default None): False: events are checked and not sent, and no token is needed;
      None: False where ``VALUED_DISABLED`` is 1, else True.
    * *invalid* (default None): ``"raise"``, or ``"log"``: an event that can't be sent is counted
      and logged, by its field and never its value, and the call returns. What can't be sent of a
      scope's data is left out likewise. None: ``VALUED_INVALID``, else ``"raise"``.
    * *anonymous* (default None): ``"raise"``, or ``"drop"``: an action, or a page view, that lacks
      the ids it needs is counted, and the call returns. None: ``VALUED_ANONYMOUS``, else
      ``"raise"``.
    * *before_send* (default None): called with each event, a dict of its own, in the caller, before
      it is queued. What it returns is checked and sent. The event is counted as ``refused`` where
      that is None, and where it raises, which is logged.

    Raises `ValidationError`, which names the argument and the fix. Making a client starts nothing:
    threads and connections come with the first event, in each process its own, so a client made
    before a fork works in every child. Any thread may call anything.
    """

    def __init__(
        self,
        token: str | Transport | None = None,
        endpoint: str | None = None,
        *,
        executor: Executor | Callable[[], Executor] | None = None,
        max_workers: int | None = None,
        max_queue: int = 10_000,
        overflow: Overflow = "drop_newest",
        timeout: float = 10.0,
        retries: int = 240,
        shutdown_timeout: float | None = None,
        idle_time: float = 60.0,
        on_error: OnError | None = None,
        outbox: str | PathLike[str] | None = None,
        durability: Durability = "process",
        outbox_max_age: float = 604_800.0,
        outbox_max_size: int = 1_073_741_824,
        defaults: Data = None,
        isolate_tasks: bool | None = None,
        enabled: bool | None = None,
        invalid: Invalid | None = None,
        anonymous: Anonymous | None = None,
        before_send: Callable[[JSONObject], JSONObject | None] | None = None,
        **unknown: NoReturn,
    ) -> None:
        # Error trackers show the variables of frames that raise, and any of these may be a token.
        token, endpoint, unknown = hide(token), hide(endpoint), dict.fromkeys(unknown)  # type: ignore[assignment]
        _begin_recording()
        if not (token or _options.token_from_environment()) and _recording.target is not None:
            enabled = False  # a test needs no token
        options = Options.of(
            {
                "executor": executor,
                "max_workers": max_workers,
                "max_queue": max_queue,
                "overflow": overflow,
                "timeout": timeout,
                "retries": retries,
                "shutdown_timeout": shutdown_timeout,
                "idle_time": idle_time,
                "on_error": on_error,
                "outbox": outbox,
                "durability": durability,
                "outbox_max_age": outbox_max_age,
                "outbox_max_size": outbox_max_size,
                "defaults": _defaults(defaults),
                "isolate_tasks": isolate_tasks,
                "enabled": enabled,
                "invalid": invalid,
                "anonymous": anonymous,
                "before_send": before_send,
            },
            unknown,
        )
        if callable(token):
            if endpoint is not None:
                raise ValidationError("endpoint: a transport has its own; give a token with it")
            self._build(token, options)
        elif options.enabled:
            # Only here: it costs more than all the rest of the library.
            from valued._connection import Connection
            from valued._executors import DEFAULT_WORKERS

            # One more: at the end of a process its main thread delivers beside the workers.
            size = 1 + (options.max_workers or DEFAULT_WORKERS)
            connection = Connection(token, endpoint, timeout=options.timeout, pool_size=size)
            self._build(connection, options)
        else:
            self._build(None, options)

    def _build(self, transport: Connection | Transport | None, options: Options) -> None:
        _begin_recording()  # here, too, for a client that was unpickled
        self._transport = transport
        self._options = options
        self._refusals = Refusals(options)
        self._is_sent = bool(options.enabled)
        self._is_looked_at = options.before_send is not None or not options.enabled
        # Here, too: who connects while a signal is being sent is not called.
        _celery.listen()
        # In this thread, with all that it imports: a worker, or a forked child, imports nothing.
        from valued._sender import Sender

        _converters.prepare()
        if transport is None or not options.enabled:
            self._sender = Sender(lambda *_: None, options)
            return
        import_psutil()
        outbox = None
        if options.outbox is not None:
            # Only here: it costs an import that few need, and needs what Windows doesn't have.
            from valued._durable import durable

            outbox = durable(options)
        connection = _as_connection(transport)
        if connection is not None:
            release = connection.close
            self._sender = Sender(connection.post, options, release=release, outbox=outbox)
        else:
            self._sender = Sender(_wire(transport), options, outbox=outbox)

    # -- events ------------------------------------------------------------------------------------

    def action(self, key: str, data: Data = None, /, **fields: Any) -> None:
        """Record that somebody did something, such as ``report.generated``.

        *data*: a mapping (or a scope, or an object that converts to one) with ``user.id``,
        ``customer.id`` or both, and whatever else is to be sent; *fields* win over it. It is
        copied, checked and queued; nothing is sent in the caller unless the environment is
        ``test``. Raises `ValidationError` and `SerializationError` for bad input (but see
        *invalid* and *anonymous*); trouble in delivery raises nothing. Any thread may call, signal
        handlers too. A forked child's events are its own.
        """
        self._record(_events.action, data, fields, key)

    def page_view(self, url: str, data: Data = None, /, **fields: Any) -> None:
        """Record that a user looked at *url*; ``user.id`` is required. Otherwise like `action`."""
        self._record(_events.page_view, data, fields, url)

    pageview = page_view

    def sync(self, data: Data = None, /, **fields: Any) -> None:
        """Send what is known of a user, or of a customer: one of them. Otherwise like `action`."""
        self._record(_events.sync, data, fields)

    def sync_user(self, data: Data = None, /, **fields: Any) -> None:
        """Send what is known of a user: *data* with its ``id``. Otherwise like `action`."""
        self._sync_party("user", data, fields)

    def sync_customer(self, data: Data = None, /, **fields: Any) -> None:
        """Send what is known of a customer: *data* with its ``id``. Otherwise like `action`."""
        self._sync_party("customer", data, fields)

    def config(self, data: Data = None, /, **fields: Any) -> None:
        """Set goals and signals: ``goals=[{"name": …, "action_key": …}]``, ``signals`` likewise.

        *data*: a mapping, or a `valued.Config` built step by step. Otherwise like `action`.
        """
        self._record(_events.config, data, fields)

    # -- delivery ----------------------------------------------------------------------------------

    def flush(self, timeout: float | None = 5.0) -> bool:
        """Wait until the events accepted so far in this process are settled.

        *timeout*: seconds (default 5, as ``shutdown_timeout``; None: no bound; 0: only look).
        True if all were settled in time. Raises `ValidationError` (a `ValueError`) if *timeout* is
        no such number; trouble in delivery raises nothing, it shows in `stats` and ``on_error``.
        Any thread may call. In a forked child it sees the child's own events only.
        """
        return self._sender.flush(timeout)

    def close(self, timeout: float | None = 5.0) -> bool:
        """Flush, then end this process's threads and close its connections.

        *timeout*: as for `flush`. What is not settled by then is dropped, counted as ``closed`` and
        logged. True if nothing was. May be called again; an event recorded later starts anew.
        """
        return self._sender.close(timeout)

    def adopt(self) -> int:
        """Take over at once what processes that died have left in the outbox.

        A client does so with its first event, and then each half minute; call this where a process
        starts that may have no event for long, such as a new worker. Returns from how many it was
        taken over; 0 where events wait in memory. Raises nothing: trouble with the disk is logged.
        Any thread may call. Never before a fork: a child takes over nothing of its parent's.
        """
        return 0 if _recording.target is not None else self._sender.adopt()

    def stats(self) -> Stats:
        """This process's figures, a dict.

        ``accepted + adopted = delivered + failed + dropped + left + pending``, at every moment.
        ``adopted`` counts events that other processes accepted, ``left`` those that others are to
        deliver, ``unsaved`` those that could not be written to the outbox (all are 0 without one);
        ``retried`` attempts after the first; ``dropped_by_reason`` splits ``dropped``; ``pid`` and
        ``started`` (seconds since the epoch) say which process this is. Zero in a forked child at
        first.

        Not accepted, and so in none of these: ``disabled`` (the client is, or a test records),
        ``invalid``, ``anonymous`` and ``refused`` (by *before_send*). What raised is not counted.
        """
        return {**self._sender.stats(), **self._refusals.figures()}  # type: ignore[typeddict-item]

    def park(self, timeout: float | None = 5.0) -> bool:
        """Flush, then end this process's threads, so that it is safe to fork.

        For a process that records events and then forks, such as a preloading Gunicorn master:
        Python 3.12 and later warn of a fork that other threads live through. *timeout*: as for
        `flush`. True if every event was settled and no thread of this client is left; nothing is
        dropped otherwise. The next event starts threads anew. May be called again.
        """
        return self._sender.park(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        transport = getattr(self, "_transport", None)  # there is none where the constructor raised
        connection = _as_connection(transport)
        if connection is not None:
            return f"Client(endpoint={connection.endpoint!r})"
        if transport is None:
            return "Client(enabled=False)"
        return f"Client(transport={type(transport).__name__})"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _memo: object) -> Self:
        return self  # it stands for one queue and one set of threads, wherever it is held

    def __reduce__(self) -> tuple[Any, ...]:
        """Its configuration: transport and options. Raises `PicklingError`, which names the part.

        A token gets into a pickle only while multiprocessing is starting a child with it. One that
        came from ``VALUED_TOKEN`` is left out, and read again where this is unpickled.
        """
        for name, part in {"transport": self._transport, **self._options._asdict()}.items():
            _check_pickle(name, part)
        return _restored, (type(self), self._transport, self._options)

    def _sync_party(self, name: str, data: Data, fields: dict[str, Any]) -> None:
        try:
            data = _events.data_of_party(name, data)
        except ValuedError as error:
            if not self._refusals.tolerates(error):
                raise
        else:
            self._record(_events.sync_party, data, fields, name)

    def _record(
        self, make: Callable[..., JSONObject], data: Data, fields: dict[str, Any], *subject: object
    ) -> None:
        try:
            event = make(*subject, _events.gather(data, fields))
        except ValuedError as error:
            if not self._refusals.tolerates(error):
                raise
            return
        if not _celery.listening:  # it may have been imported since then
            _celery.listen()
        if not (self._is_looked_at or _recording.target is not None or _recording.blocked):
            self._sender.accept(encode(event))
            return
        recorded = _recording.target is not None
        if self._is_sent or recorded:
            reviewed = self._refusals.review(event)
            if reviewed is None:
                return
            event = reviewed
        if recorded:
            _recording.record(encode(event))
        if recorded or not self._is_sent:
            self._refusals.count("disabled")
            return
        connection = _as_connection(self._transport)
        if _recording.blocked and connection is not None:
            _recording.refuse(connection.endpoint)
        self._sender.accept(encode(event))


def _begin_recording() -> None:
    """In a program that a test has started: what that asked for."""
    target, blocked = _options.recording_from_environment()
    if target is not None and _recording.target is None:
        _recording.begin(target)
    _recording.blocked = _recording.blocked or blocked


def _as_connection(transport: object) -> Connection | None:
    # Importing the class is costly. Where it isn't imported, there is no connection.
    module = sys.modules.get("valued._connection")
    return transport if module and isinstance(transport, module.Connection) else None


def _defaults(given: Data) -> Snapshot | None:
    return None if given is None else Snapshot(_events.mapping(given, "defaults"))


def _check_pickle(name: str, part: object) -> None:
    try:
        trial_pickle(part)
    except PicklingError:
        raise
    except Exception as error:
        raise PicklingError(
            f"{name}: a {type(part).__name__} can't be pickled ({error}); use a function or a "
            "class of a module, or make the client in the child"
        ) from error


def _restored(
    cls: type[Client], transport: Connection | Transport | None, options: Options
) -> Client:
    client = cls.__new__(cls)
    client._build(transport, options)  # noqa: SLF001 - of the class itself
    return client


def _wire(transport: Transport) -> Wire:
    """*transport* as the sender calls one: with a dict of its own, decoded from what is sent."""

    def deliver(body: bytes, _idempotency_key: str, _timeout: float) -> None:
        transport(json.loads(body))

    return deliver
