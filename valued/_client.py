"""`Client`: builds the event, hands it to its sender."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, cast

from valued import _options
from valued._errors import ValuedError
from valued._events import categories, converters
from valued._events.refusals import Refusals
from valued._events.serializer import Snapshot, encode
from valued._http import recording
from valued._http.transports import as_connection, posting, send_dict
from valued._options import Anonymous, Durability, Invalid, Options, Overflow
from valued._process import facts, tasks
from valued._process.pickling import check_pickle
from valued._redaction import hide
from valued._scopes.context import begin_task

if TYPE_CHECKING:
    from os import PathLike

    from typing_extensions import Self

    from valued._delivery.journal import Journal
    from valued._typing import (
        AnyTransport,
        BytesTransport,
        Data,
        Executor,
        JSONObject,
        OnError,
        Stats,
        Transport,
    )


class Client:
    """Records events, and delivers them in the background.

    >>> client = valued.Client("TOKEN", retries=10)
    >>> client.action("report.generated", {"user.id": 123})

    *token* (default ``VALUED_TOKEN``): the token, a string, or a transport: a callable that gets an
    event as a dict and raises an exception if it can't deliver it (see `valued.Transport`), or an
    object with ``post`` that gets it as bytes (see `valued.BytesTransport`).
    *endpoint* (default ``VALUED_ENDPOINT``, else the service's): an http(s) URL. Options:

    * *executor* (default None): where deliveries run: an object with ``submit(fn, *args)``, or a
      function that makes one and is called with the first event in each process. None: what
      `valued.set_executor` got, else a pool of the client's own, whose 1 to *max_workers* threads
      are started when events wait. With ``VALUED_ENV=test`` and in a test run: in the call itself.
    * *max_workers* (default 10): deliveries at the same time, at most; 1 if ``VALUED_ENV`` is
      ``development``. Ten that each wait 20 ms for their answer deliver 500 events a second.
    * *max_queue* (default 10,000): events that are accepted and not settled, at most: half a minute
      of 300 events a second, or 5 MB at 500 bytes each. They never take more than 64 MiB.
    * *overflow* (default ``"drop_newest"``): what happens to an event when the queue is full. Also
      ``"drop_oldest"``, ``"block"`` (the call waits for room, *timeout* at most, then drops the
      event) and ``"caller_runs"`` (the call delivers the event itself; while the endpoint is down,
      it drops it, but for one event that probes).
    * *timeout* (default 10.0): seconds for one attempt, from the look-up of the host's name to the
      end of the answer.
    * *retries* (default 240): attempts after the first. The pauses are random, up to bounds that
      double from 0.5 s to 30 s. All of them add up to an hour on average. An event older than an
      hour fails with its next failure. While the endpoint is down, one event probes for all.
    * *shutdown_timeout* (default None): seconds that the end of a process waits for its events.
      None: 5, half of the 10 s that supervisors leave between SIGTERM and SIGKILL; 1 with *outbox*.
    * *idle_time* (default 60.0): seconds without work after which a thread of the client's own pool
      ends. A process whose threads have ended is safe to fork.
    * *on_error* (default None): a function that is called with a `DeliveryError` and the event, a
      dict, for each event that fails permanently, on the thread whose attempt failed.
    * *outbox* (default None): a directory in which events survive their process, and from which
      other processes deliver them. None: ``VALUED_OUTBOX``, else events wait in memory. With it,
      *max_queue* bounds what is in memory, and *retries* has no effect. Not on Windows.
    * *durability* (default ``"process"``): what an event in the outbox survives. ``"power"``: a
      power failure, too; the call then waits some milliseconds for the disk.
    * *outbox_max_age* (default 604,800.0): seconds after which an event in the outbox is dropped: a
      week, longer than an outage that goes unnoticed over a weekend with holidays.
    * *outbox_max_size* (default 1,073,741,824): bytes of the outbox, of all processes together (1
      GiB: two million events of 500 bytes). A process that exceeds it drops its own oldest events.
    * *status* (default None): a directory in which each process writes its stats, once a second at
      most and at its end; `valued.Status` adds them up. None: ``VALUED_STATUS``, else the outbox.
    * *defaults* (default None): a mapping that every scope of the client starts with.
    * *isolate_tasks* (default None): whether each Celery task starts with these defaults, and what
      it sets ends with it. None: ``VALUED_ISOLATE_TASKS``, else True.
    * *enabled* (default None): False: events are checked, counted as ``disabled`` and not sent; no
      token is needed. None: False if ``VALUED_DISABLED`` is 1, else True.
    * *invalid* (default None): ``"raise"``, or ``"log"``: an event that can't be sent is counted
      and logged (its field, never the value), and the call returns. Values that can't be sent are
      left out of a scope. None: ``VALUED_INVALID``, else ``"raise"``.
    * *anonymous* (default None): ``"raise"``, or ``"drop"``: an action or a page view without the
      ids it needs is counted, and the call returns. None: ``VALUED_ANONYMOUS``, else ``"raise"``.
    * *before_send* (default None): a function that gets each event, a dict of its own, in the call,
      before it is queued. What it returns is checked and sent. If it returns None or raises, the
      event is counted as ``refused`` and not sent; an exception is logged.

    Raises `ValidationError`, which names the argument and the fix. A client starts nothing when it
    is made: each process starts its own threads and connections with its first event. So a client
    that was made before a fork works in every child. Any thread may call any method.
    """

    def __init__(
        self,
        token: str | Transport | BytesTransport | None = None,
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
        status: str | PathLike[str] | None = None,
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
        if not (token or _options.token_from_environment()) and recording.target is not None:
            enabled = False  # a test needs no token
        if defaults is not None:
            defaults = Snapshot(categories.data_of_scope(defaults, {}, "defaults"))
        given = {name: it for name, it in locals().items() if name in Options._fields}
        options = Options.of(given, unknown)
        self._build(_transport_of(token, endpoint, options), options)

    def _build(self, transport: AnyTransport | None, options: Options) -> None:
        _begin_recording()  # here, too, for a client that was unpickled
        self._transport = transport
        self._options = options
        self._refusals = Refusals(options)
        self._is_sent = bool(options.enabled)
        self._is_looked_at = options.before_send is not None or not options.enabled
        # Here, too: a receiver that connects while a signal is being sent is not called.
        tasks.listen(begin_task)
        # In this thread, with all its imports: a worker, or a forked child, imports nothing.
        from valued._delivery.sender import Sender
        from valued._status.maker import maker

        converters.prepare()
        if transport is None or not options.enabled:
            self._sender = Sender(lambda *_: None, options)
            return
        facts.prepare()
        post = posting(transport)
        send = send_dict(transport) if post is None else post.post
        release = None if post is None else post.close
        status, journal = maker(options, self._refusals.stats), _journal_maker(options)
        self._sender = Sender(send, options, release=release, journal=journal, status=status)

    def action(self, key: str, data: Data = None, /, **fields: Any) -> None:
        """Record what a user did, such as ``report.generated``.

        >>> client.action("report.generated", {"user.id": 123})

        *key*: the name of the action. *data*: a mapping with ``user.id``, ``customer.id`` or both,
        and maybe ``attributes`` and ``occured_at`` (the time, default now); also a scope, or an
        object with a converter. Dots in keys nest. *fields*: the same by keyword; they take
        precedence. All of it is copied, checked and queued. The event is sent in the background
        (in a test run, in the call itself).

        Raises `ValidationError` or `SerializationError` for input that can't be sent (see the
        options *invalid* and *anonymous*), and nothing for trouble in delivery. Any thread may
        call, a signal handler too. In a forked child, the event belongs to the child.
        """
        self._record(categories.action, data, fields, key)

    def page_view(self, url: str, data: Data = None, /, **fields: Any) -> None:
        """Record that a user looked at *url*: one with a scheme, or a path that begins with ``/``.

        *data* must have ``user.id``. All else is as for `Client.action`.
        """
        self._record(categories.page_view, data, fields, url)

    pageview = page_view

    def sync(self, data: Data = None, /, **fields: Any) -> None:
        """Send what is known of a user or a customer (exactly one); else like `Client.action`."""
        self._record(categories.sync, data, fields)

    def sync_user(self, data: Data = None, /, **fields: Any) -> None:
        """Send what is known of a user, such as ``{"id": 123, "name": "Ada"}``.

        *data*: a mapping with ``id``. All else is as for `Client.action`.
        """
        self._sync_party("user", data, fields)

    def sync_customer(self, data: Data = None, /, **fields: Any) -> None:
        """Send what is known of a customer; otherwise like `Client.sync_user`."""
        self._sync_party("customer", data, fields)

    def config(self, data: Data = None, /, **fields: Any) -> None:
        """Set goals and signals: ``goals=[{"name": …, "action_key": …}]``, ``signals`` likewise.

        *data*: a mapping, or a `valued.Config`. All else is as for `Client.action`.
        """
        self._record(categories.config, data, fields)

    def flush(self, timeout: float | None = 5.0) -> bool:
        """Wait until the events accepted so far in this process, or adopted, are settled.

        Settled means delivered, failed or dropped. *timeout*: seconds (default 5, as
        *shutdown_timeout*; None: no bound; 0: only look). True if all were settled in time. Raises
        `ValidationError` (a `ValueError`) for any other *timeout*. Trouble in delivery raises
        nothing; it shows in `Client.stats`, and *on_error* gets it. Any thread may call. In a
        forked child it waits for the child's own events only.
        """
        return self._sender.flush(timeout)

    def close(self, timeout: float | None = 5.0) -> bool:
        """Flush, then end this process's threads and close its connections.

        *timeout*: as for `Client.flush`. What waits then is dropped, counted as ``closed`` and
        logged; what is being sent is dropped only if that attempt fails. True if all was settled in
        time. May be called again; a later event starts threads again.
        """
        return self._sender.close(timeout)

    def adopt(self) -> int:
        """Take over, at once, events that dead processes left in the outbox.

        A client does so with its first event; while it has a thread, on Linux at once when another
        process dies; else at most every half minute. Call it where a process starts that may record
        nothing for long. When it returns, `Client.stats` counts the events, and `Client.flush`,
        `Client.close` and the end of the process wait for them. Takes over some 10,000 events at
        most; threads take over the rest. Returns from how many directories. Raises nothing: disk
        trouble is logged. Any thread may call. Never call before a fork.
        """
        return 0 if recording.target is not None else self._sender.adopt()

    def stats(self) -> Stats:
        """Counts of this process's events, a dict; `valued.Stats` says what each key means.

        ``accepted + adopted = delivered + failed + dropped + handed_over + pending``, at every
        moment. All counts are zero in a forked child at first. Any thread may call.
        """
        return {**self._sender.stats(), **self._refusals.stats()}  # type: ignore[typeddict-item]

    def park(self, timeout: float | None = 5.0) -> bool:
        """Flush, then end this process's threads, so that it is safe to fork.

        Call it in a process that records events and forks later, such as a preloading Gunicorn
        master: Python 3.12 and later warn if a process forks while it has threads. *timeout*: as
        for `Client.flush`. True if every event was settled and no thread of this client is left.
        (`valued.flush_on_signals` keeps a thread: call it in the children.) Nothing is dropped; the
        next event starts threads again.
        """
        return self._sender.park(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        transport = getattr(self, "_transport", None)  # there is none where the constructor raised
        connection = as_connection(transport)
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
            check_pickle(name, part)
        return _restored, (type(self), self._transport, self._options)

    def _sync_party(self, name: str, data: Data, fields: dict[str, Any]) -> None:
        try:
            data = categories.data_of_party(name, data)
        except ValuedError as error:
            if not self._refusals.tolerates(error):
                raise
        else:
            self._record(categories.sync_party, data, fields, name)

    def _record(
        self, make: Callable[..., JSONObject], data: Data, fields: dict[str, Any], *subject: object
    ) -> None:
        try:
            event = make(*subject, categories.normalize_call(data, fields))
        except ValuedError as error:
            if not self._refusals.tolerates(error):
                raise
            return
        if not tasks.listening:  # it may have been imported since then
            tasks.listen(begin_task)
        if not (self._is_looked_at or recording.target is not None or recording.blocked):
            self._sender.accept(encode(event))
            return
        recorded = recording.target is not None
        if self._is_sent or recorded:
            reviewed = self._refusals.review(event)
            if reviewed is None:
                return
            event = reviewed
        if recorded:
            recording.record(encode(event))
        if recorded or not self._is_sent:
            self._refusals.count("disabled")
            return
        connection = as_connection(self._transport)
        if recording.blocked and connection is not None:
            recording.refuse(connection.endpoint)
        self._sender.accept(encode(event))


def _begin_recording() -> None:
    """In a program that a test has started: what that asked for."""
    target, blocked = _options.recording_from_environment()
    if target is not None and recording.target is None:
        recording.begin(target)
    recording.blocked = recording.blocked or blocked


def _transport_of(
    token: AnyTransport | str | None, endpoint: str | None, options: Options
) -> AnyTransport | None:
    """What a client sends with, of what it was given; None: it sends nothing."""
    if callable(token) or hasattr(token, "post"):
        from valued._http.endpoint import check_transport

        check_transport(token, endpoint)
        return cast("AnyTransport", token)
    if not options.enabled:
        return None
    facts.refuse_isolated()  # some of what is imported next would end the process
    # Only here: it costs more than all the rest of the library.
    from valued._delivery.executors import DEFAULT_WORKERS
    from valued._http.connection import Connection

    # One more: where no thread can be started, the one that waits sends.
    size = 1 + (options.max_workers or DEFAULT_WORKERS)
    return Connection(token, endpoint, timeout=options.timeout, pool_size=size)


def differences(one: Client, other: Client) -> tuple[str, ...]:
    """The names of the arguments in which two clients differ."""
    ones, others = one._options._asdict(), other._options._asdict()  # noqa: SLF001 - of this module
    a, b = as_connection(one._transport), as_connection(other._transport)  # noqa: SLF001
    if a is None or b is None:
        ones["transport"], others["transport"] = one._transport, other._transport  # noqa: SLF001
    else:
        ones.update(token=a._token, endpoint=a.endpoint)  # noqa: SLF001
        others.update(token=b._token, endpoint=b.endpoint)  # noqa: SLF001
    return tuple(name for name in ones if ones[name] != others[name])


def _restored(cls: type[Client], transport: AnyTransport | None, options: Options) -> Client:
    client = cls.__new__(cls)
    client._build(transport, options)  # noqa: SLF001 - of the class itself
    return client


def _journal_maker(options: Options) -> Callable[[], Journal] | None:
    """What makes the journal of each process; None: events stay in memory."""
    if options.outbox is None:
        return None
    from valued._outbox.journal import maker  # one that few need, and that fails on Windows

    return cast("Callable[[], Journal]", maker(options))
