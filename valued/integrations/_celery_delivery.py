"""Delivery through Celery's broker: `Relay` publishes events, and a task delivers them."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import math
import os
import random
import tempfile
import time
import urllib.parse
import weakref
from typing import Any, Final

from celery.exceptions import Reject, Retry  # type: ignore[import-untyped,unused-ignore]
from celery.local import Proxy  # type: ignore[import-untyped,unused-ignore]

import valued
from valued.integrations._celery_connections import Connections, connect, prepare

#: What logs and monitors show in place of the arguments: never the event.
HIDDEN: Final = "('...',)"

#: The tasks made here, and their queues; their messages carry no scope.
QUEUES: Final[dict[str, str]] = {}

#: Seconds: the bound of the first pause, and of the last ones. Celery's native delayed delivery
#: knows whole seconds only, so the first one is above 1.
FIRST_PAUSE: Final = 2.0
LONGEST_PAUSE: Final = 30.0

#: Statuses below 500 after which the same event may succeed; as for a client without a broker.
_TRANSIENT: Final = frozenset({408, 425, 429})

#: Seconds before a message goes back to the broker at once, which has no pause of its own.
_BEFORE_REQUEUE: Final = 1.0

#: The names of the tasks of each application.
_made: Final[weakref.WeakKeyDictionary[Any, set[str]]] = weakref.WeakKeyDictionary()

#: Seconds between two log lines of one kind.
_QUIET: Final = 60.0


def delivery_task(
    app: Any,
    connection: valued.Connection | None = None,
    queue: str = "valued",
    retry_for: float = 86_400,
    on_rejected: str | os.PathLike[str] | None = None,
) -> Any:
    """A task of *app*, a Celery application, that delivers the events of a `Relay`.

    >>> deliver = delivery_task(app)
    >>> valued.connect(Relay(deliver), outbox="/var/lib/myapp/valued")

    Make it in the module that makes *app*, which the publishers and the workers both import. A
    worker must read *queue*: ``celery --app tasks worker --queues valued``. *connection*: what the
    workers deliver with (default None: a `valued.Connection`, made in the worker with its first
    event; so only workers need ``VALUED_TOKEN``).

    No answer, 408, 425, 429 and 5xx: the event is tried again, after random pauses of up to 30 s,
    until *retry_for* seconds (default 86,400: a day) after it was published. Any other answer is
    final. Events that fail permanently are kept in the directory *on_rejected*, each a JSON file
    named by its idempotency key, which a person deletes. While that directory can't be written to,
    they are tried again. Without *on_rejected*, they are lost, and a log line once a minute says
    how many, never what they contain. ``task.refused()`` is their number in this process.

    A message is acknowledged when its event is settled, so a worker that dies doesn't lose it. It
    may then be delivered twice, with the same idempotency key.

    Call it once for each *app* and *queue*; a second call raises `valued.ValidationError`, as do
    wrong arguments.
    """
    if isinstance(retry_for, bool) or not isinstance(retry_for, (int, float)) or not retry_for >= 0:
        raise valued.ValidationError("retry_for: expected seconds, 0 or more, such as 86_400")
    if not isinstance(queue, str) or not queue:
        raise valued.ValidationError("queue: expected the name of a queue, such as 'valued'")
    if not hasattr(app, "task") or not hasattr(app, "connection_for_write"):
        raise valued.ValidationError(f"app: expected a Celery app, got {type(app).__name__}")
    folder = None if on_rejected is None else os.fspath(on_rejected)
    if folder is not None and (not isinstance(folder, str) or not folder or "\0" in folder):
        raise valued.ValidationError(
            "on_rejected: expected a directory, such as '/var/lib/myapp/rejected'"
        )
    if isinstance(
        app, Proxy
    ):  # such as `celery.current_app`, of which there are no weak references
        app = app._get_current_object()  # noqa: SLF001
    name = f"{queue}.deliver"
    if name in _made.setdefault(app, set()):
        raise valued.ValidationError(
            f"queue: this app has a task for {queue!r} already: use that one, or another queue"
        )
    _made[app].add(name)
    QUEUES[name] = queue
    deliveries = _Deliveries(connection, float(retry_for), folder)

    def deliver(task: Any, body: str, published: float) -> None:
        deliveries.run(task, body, published)

    task: Any = app.task(
        name=name,
        bind=True,
        shared=False,  # with no other application of the process
        acks_late=True,
        reject_on_worker_lost=True,
        # A hard time limit would acknowledge it otherwise.
        acks_on_failure_or_timeout=False,
        ignore_result=True,
        max_retries=None,
        # Not those of a base class, or of the application's other tasks.
        rate_limit=None,
        expires=None,
        autoretry_for=(),
        # As an option: set later, it would read the configuration of *app* now.
        refused=deliveries.refused,
    )(deliver)
    return task


class _NoEvent(Reject):  # type: ignore[misc] # Celery has no types
    """The message is dropped, or goes to the queue's dead letters, where RabbitMQ has such.

    A class of its own: `Reject` itself also says that a retry could not be published.
    """


class _Deliveries:
    """What the task does in a worker. Any thread may call."""

    def __init__(
        self, connection: valued.Connection | None, retry_for: float, folder: str | None
    ) -> None:
        self._connection = connection
        self._retry_for = retry_for
        self._folder = folder
        self._refused = 0
        self._said: dict[str, float] = {}  # when, by message

    def refused(self) -> int:
        """How many events failed permanently in this process."""
        return self._refused

    def run(self, task: Any, body: str, published: float) -> None:
        """Deliver once. Raises what Celery needs to try again, or to give the message back."""
        try:
            self._run(task, body, published)
        except (Retry, _NoEvent):
            raise
        except Exception as error:
            if task.request.is_eager:  # nothing waits here: the client that published tries again
                raise
            # The broker took no retry, a time limit interrupted, or the like. After any other
            # exception Celery drops the message.
            cause = type(error.reason if isinstance(error, Reject) else error).__name__
            self._say("%s: an event goes back to the broker: %s", task.name, cause)
            time.sleep(_BEFORE_REQUEUE)
            raise Reject(cause, requeue=True) from None

    def _run(self, task: Any, body: str, published: float) -> None:
        try:
            event, key = base64.b64decode(body, validate=True), task.request.id
        except (TypeError, ValueError):
            self._say("%s: a message that has no event is rejected; no Relay sent it", task.name)
            raise _NoEvent("no event", requeue=False) from None
        error = self._try(event, key)
        if error is None:
            return
        if task.request.is_eager:
            raise error
        is_over = time.time() - published > self._retry_for
        if (is_over or not _is_transient(error)) and self._settle(event, key, task, error):
            return
        self._say(
            "%s: an event was not delivered and will be tried again: %s", task.name, error.reason
        )
        task.retry(
            countdown=_pause(task.request.retries, error.retry_after),
            # Logged. The answer is left out: it may quote the event.
            exc=valued.DeliveryError(error.reason, error.status),
            max_retries=math.inf,  # whatever `task_annotations` say
            **_destination(task),
        )

    def _try(self, event: bytes, key: str) -> valued.DeliveryError | None:
        try:
            if self._connection is None:
                self._connection = valued.Connection()
            self._connection.post(event, key)
        except valued.DeliveryError as error:
            return error
        except Exception as error:  # noqa: BLE001 - no event may be lost because of it
            return valued.DeliveryError(f"{type(error).__name__}: {error}")
        return None

    def _settle(self, event: bytes, key: str, task: Any, error: valued.DeliveryError) -> bool:
        """Keep an event that failed permanently, and say so; False: it could not be kept."""
        where = "lost, as there is no on_rejected"
        if self._folder is not None:
            try:
                _keep(self._folder, event, key, task.request.retries + 1, error)
            except OSError as trouble:
                self._say("%s: a refused event could not be kept: %s", task.name, trouble)
                return False
            where = "kept in on_rejected"
        self._refused += 1
        message = "%s: events that failed permanently here so far: %d, %s; the last one: %s"
        self._say(message, task.name, self._refused, where, error.reason)
        return True

    def _say(self, message: str, *args: object) -> None:
        now = time.monotonic()
        if now - self._said.get(message, -_QUIET) >= _QUIET:
            self._said[message] = now
            logging.getLogger("valued").warning(message, *args)


def _destination(task: Any) -> dict[str, Any]:
    """Options of a publish: to the task's queue, whatever the application's routes say.

    The configuration is that of this moment, as for the worker that reads.
    """
    queue = QUEUES[task.name]
    return {
        "queue": queue,
        # The exchange that each broker has, in which a queue's name is its routing key.
        "exchange": "",
        "routing_key": queue,
        "serializer": task.app.conf.task_serializer,
        "argsrepr": HIDDEN,
        "kwargsrepr": "{}",
    }


def _is_transient(error: valued.DeliveryError) -> bool:
    status = error.status
    return status is None or status in _TRANSIENT or status >= 500


def _pause(retries: int, retry_after: float | None) -> float:
    """Seconds until the next attempt: half of the bound to all of it."""
    bound = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(retries, 10))
    pause = random.uniform(bound / 2, bound)  # noqa: S311 - nothing secret
    return min(LONGEST_PAUSE, max(pause, retry_after or 0.0))


def _keep(folder: str, event: bytes, key: str, tries: int, error: valued.DeliveryError) -> None:
    """Write a file, whole or not at all: a process may be killed within."""
    try:
        content = json.loads(event)
    except ValueError:  # no `Relay` sent it, so it may be anything
        content = event.decode("utf-8", "replace")
    record = {
        "idempotency_key": key,
        "status": error.status,
        "reason": error.reason,
        "body": error.body,
        "attempts": tries,
        "event": content,
    }
    os.makedirs(folder, mode=0o700, exist_ok=True)
    number, path = tempfile.mkstemp(dir=folder, suffix=".tmp")
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            json.dump(record, file)
        # What the key is made of came with a message.
        os.replace(path, os.path.join(folder, f"{urllib.parse.quote(key, safe='')}.json"))
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


class Relay:
    """A transport that publishes events to the broker, for the task of `delivery_task`.

    >>> valued.connect(Relay(deliver), outbox="/var/lib/myapp/valued")

    A `valued.BytesTransport`. An event counts as delivered when the broker took it; until then, the
    client keeps it and tries again as always. On Redis and RabbitMQ a publish takes about *timeout*
    of the client at most, even if the broker hangs. The id of the message is the idempotency key.
    No message has the token.

    Any thread may call. Each process has connections of its own to the broker, one for each publish
    at the same time; a forked child doesn't use those of its parent. `valued.Client.close` closes
    them. With ``task_always_eager`` the event is delivered in the publish. Raises
    `valued.ValidationError` for a task of another kind.
    """

    def __init__(self, task: Any) -> None:
        if getattr(task, "name", None) not in QUEUES:
            raise valued.ValidationError(
                f"task: expected one that delivery_task(app) made, got {type(task).__name__}"
            )
        self._task = task
        prepare(task.app)
        self._connections = Connections()
        _relays.add(self)

    def post(self, body: bytes, idempotency_key: str, timeout: float) -> None:
        """Publish an event. Raises what Celery raises where the broker doesn't take it."""
        arguments = (base64.b64encode(body).decode(), time.time())
        if self._task.app.conf.task_always_eager:
            self._task.apply(arguments, task_id=idempotency_key, throw=True)
            return
        with self._here().borrow(lambda: connect(self._task.app, timeout), timeout) as one:
            self._task.apply_async(
                arguments,
                task_id=idempotency_key,
                connection=one,
                retry=False,  # the client does
                add_to_parent=False,
                mandatory=True,  # RabbitMQ answers if the queue is gone, and does not drop it
                **_destination(self._task),
            )

    def close(self) -> None:
        """Close this process's connections to the broker. The next event opens one again."""
        self._here().close()

    def _here(self) -> Connections:
        """This process's connections; in a forked child, those of the parent are left alone."""
        found = self._connections
        if found.pid == os.getpid():
            return found
        # Kept: what their destructors do, the parent would notice.
        _inherited.append(found)
        found.disarm()
        if self._connections is found:  # pragma: no branch - else another thread was faster
            self._connections = Connections()
        return self._connections

    def __reduce__(self) -> tuple[Any, ...]:
        return Relay, (self._task,)


_relays: Final[weakref.WeakSet[Relay]] = weakref.WeakSet()  # weak: a hook can't be unregistered
_inherited: Final[list[Connections]] = []


def _in_child() -> None:
    for relay in list(_relays):
        relay._here()  # noqa: SLF001 - now: a destructor may run before anything is published


# uWSGI calls no such hooks, so a relay compares, too.
if hasattr(os, "register_at_fork"):  # pragma: no branch - not on Windows
    os.register_at_fork(after_in_child=_in_child)
