"""The shared client: ``connect … disconnect``, the module's functions, the shared scope."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, overload

from valued._client import Client, differences
from valued._errors import NotConnectedError, ValidationError
from valued._events.serializer import Snapshot
from valued._options import Options
from valued._process import shutdown
from valued._redaction import hide
from valued._scope import Isolated, Scope
from valued._scopes.context import Owner, Unit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from valued._typing import BytesTransport, Data, Transport


class _Link(Owner):
    """One `connect`: its client, and what the data of the shared scope hangs off meanwhile."""

    __slots__ = ("owned",)

    client: Client

    def __init__(self, client: Client, *, owned: bool) -> None:
        super().__init__(client)
        self.owned = owned


_link: _Link | None = None  # read and replaced whole: threads need no lock for it

#: What was logged of clients that another one replaced: the arguments in which they differed.
_logged: Final[set[tuple[str, ...]]] = set()


def _connected() -> _Link:
    link = _link
    if link is None:
        raise NotConnectedError(
            "the shared client is not connected: call valued.connect(token) first, "
            "for example where your application starts"
        )
    return link


class _SharedScope(Scope):
    """The scope of the shared client: data that goes along with each of its events.

    >>> valued.scope.user_id = 123
    >>> valued.scope["attributes.plan"] = "pro"
    >>> valued.action("report.generated")  # of user 123, with the plan

    After each `valued.connect` it starts with the client's *defaults*. While nothing is connected
    it raises `NotConnectedError`. All else is as for a `Scope`.
    """

    def __init__(self) -> None:
        pass  # without a client of its own: it has the one that is connected

    def isolated(
        self,
        data: Data | Callable[[], object] = None,
        /,
        *,
        lazy: Mapping[str, Callable[[], object]] | None = None,
        **fields: Any,
    ) -> Isolated:
        """As `valued.isolated`."""
        if _link is None:
            return Isolated(self, None, Unit(Snapshot()))
        return super().isolated(data, lazy=lazy, **fields)

    def __repr__(self) -> str:
        return f"<shared scope of {_link.client!r}>" if _link else "<shared scope, not connected>"

    def __reduce__(self) -> str:
        return "scope"  # the one of the process where it is unpickled

    def _owner(self) -> Owner:
        return _connected()


scope: Final = _SharedScope()


def connect(
    token: Client | str | Transport | BytesTransport | None = None,
    endpoint: str | None = None,
    **options: Any,
) -> Client:
    """Connect the shared client, and return it.

    >>> valued.connect()  # reads VALUED_TOKEN
    >>> valued.action("report.generated", {"user.id": 123})

    Takes a `Client`, or the arguments of ``Client``: the token (default ``VALUED_TOKEN``) or a
    transport, the endpoint (default ``VALUED_ENDPOINT``, else the service's), and the options.
    Raises `ValidationError`, and then leaves the shared client as it was. A second call replaces
    the client, and the shared scope starts again with the new client's *defaults*; the previous
    client delivers in the background what it accepted. If the two differ, a warning that names the
    arguments is logged, once; call `disconnect` before, if it is meant. Any thread may call. Forked
    children are connected as their parent was.
    """
    global _link
    # Error trackers show the variables of frames that raise; any of these may be a token.
    token, endpoint = hide(token), hide(endpoint)
    known = Options._fields
    options = {name: it if name in known else hide(it) for name, it in options.items()}
    if isinstance(token, Client):
        if endpoint is not None or options:
            raise ValidationError(
                "connect: a client has its endpoint and options already; give them to Client(…)"
            )
        link = _Link(token, owned=False)
    else:
        link = _Link(Client(token, endpoint, **options), owned=True)
    before, _link = _link, link
    changed = differences(before.client, link.client) if before else ()
    if changed and changed not in _logged:
        from valued._process.reporting import log  # imported already, by the client

        _logged.add(changed)
        log.warning(
            "connect was called again, and the shared client was replaced, with all its options: "
            "the new one has another %s. Connect in one place, or call valued.disconnect() before. "
            "This is logged once.",
            ", ".join(changed),
        )
    return link.client


def disconnect(timeout: float | None = 5.0) -> bool:
    """Disconnect the shared client; close it if `connect` made it, else only flush it.

    *timeout*: seconds (default 5; None: no bound). True if every event was settled in time, or if
    nothing was connected. Raises `ValidationError` for a bad *timeout*, and then leaves the shared
    client as it was. Any thread may call.
    """
    global _link
    link, _link = _link, None
    if link is None:
        return True
    try:
        return link.client.close(timeout) if link.owned else link.client.flush(timeout)
    except ValidationError:  # of *timeout*, before anything was done
        _link = link
        raise


def connected() -> bool:
    """Whether the shared client is connected. Any thread may call."""
    return _link is not None


def client() -> Client:
    """The shared client. Raises `NotConnectedError` if nothing is connected."""
    return _connected().client


def flush(timeout: float | None = 5.0) -> bool:
    """Wait until the events that the shared client accepted so far are settled.

    Settled means delivered, failed or dropped. *timeout*: seconds (default 5; None: no bound; 0:
    only look). True if all were settled in time. Raises `NotConnectedError` if nothing is
    connected, and `ValidationError` for a bad *timeout*. Any thread may call. In a forked child it
    waits for the child's own events only. `flush_all` does the same for every client.
    """
    return _connected().client.flush(timeout)


_OWN: Final = object()


@overload
def flush_all() -> bool: ...
@overload
def flush_all(timeout: float | None) -> bool: ...
def flush_all(timeout: Any = _OWN) -> bool:
    """Wait until the events accepted in this process are settled, of all of its clients.

    Call it at the end of a worker, in code that doesn't know which clients there are. *timeout*:
    seconds for all of them together (None: no bound). Without *timeout* it does what the end of a
    process does: each client has its ``shutdown_timeout`` from now on, events that wait for a retry
    are tried at once, and events that are not delivered by then are logged.

    True if all were settled in time. Raises `ValidationError` for a bad *timeout*. Any thread may
    call. In a forked child it waits for the child's own events only. Nothing is closed: events that
    are recorded later are delivered as usual.
    """
    if timeout is _OWN:
        return shutdown.flush_at_end()
    from valued._delivery import sender  # as a client does

    return sender.flush_all(timeout)


def nested(data: Data = None, /, **fields: Any) -> AbstractContextManager[Scope]:
    """A block in which the shared scope has *data* and *fields*, too.

    >>> with valued.nested({"customer.id": 12}):
    ...     valued.action("report.generated")  # of customer 12

    What changes in the block ends with it, after an exception, too. Yields the scope. Raises
    `NotConnectedError` at the call if nothing is connected. `Scope.nested` says more.
    """
    _connected()
    return scope.nested(data, **fields)


def isolated(
    data: Data | Callable[[], object] = None,
    /,
    *,
    lazy: Mapping[str, Callable[[], object]] | None = None,
    **fields: Any,
) -> Isolated:
    """A unit of work of the shared scope, such as a request, a task or a job.

    >>> with valued.isolated({"user.id": 123}):
    ...     valued.action("report.generated")  # of user 123

    It starts with the client's *defaults*, and *data* and *fields* merged in, never with what this
    thread held before. What is set in it ends with it. *lazy*: functions by the name of their
    field, such as ``{"user": current_user}``, called when an event lacks that field.
    `Scope.isolated` and `Isolated` say more. Raises `ValidationError` and `SerializationError`.

    If nothing is connected, entering the unit changes nothing; a `connect` in an open unit takes
    effect with the next unit. Any thread may call.
    """
    return scope.isolated(data, lazy=lazy, **fields)


def action(key: str, data: Data = None, /, **fields: Any) -> None:
    """Record what a user did, with the shared client and the data of its scope.

    >>> valued.action("report.generated", {"user.id": 123}, attributes={"format": "pdf"})

    *key*: the name of the action. *data*: a mapping with what the event has: ``user.id`` or
    ``customer.id`` (if the scope has neither), ``attributes``, ``occured_at`` (the time, default
    now). Dots in keys nest. *fields*: the same by keyword. *fields* take precedence over *data*,
    and *data* over the scope. The call checks, copies and queues the event; the event is sent in
    the background (in a test run, in the call itself).

    Raises `ValidationError` or `SerializationError` for input that can't be sent (see the options
    *invalid* and *anonymous* of `Client`) and `NotConnectedError` before `connect`. Trouble in
    delivery raises nothing. Any thread may call. In a forked child, the event belongs to the child.
    """
    scope.action(key, data, **fields)


def page_view(url: str, data: Data = None, /, **fields: Any) -> None:
    """Record that a user looked at a page, with the shared client and the data of its scope.

    >>> valued.page_view("https://example.com/reports", {"user.id": 123})

    *url*: one with a scheme, or a path that begins with ``/``. *data* and *fields*: a mapping, and
    the same by keyword; ``user.id`` is required, in them or in the scope. What is raised, and which
    threads may call, is as for `action`.
    """
    scope.page_view(url, data, **fields)


pageview = page_view


def sync(data: Data = None, /, **fields: Any) -> None:
    """Send what the shared scope knows of its user and its customer: one event for each.

    >>> valued.scope.user = {"id": 123, "name": "Ada"}
    >>> valued.sync()

    A user or a customer of which only the id is known is left out. *data* and *fields* are merged
    in for this call. If one of the two can't be sent, neither is. What is raised, and which threads
    may call, is as for `action`.
    """
    scope.sync(data, **fields)


def sync_user(data: Data = None, /, **fields: Any) -> None:
    """Send what is known of a user: *data* and *fields*, merged over the shared scope's user.

    >>> valued.sync_user(id=123, name="Ada", email="ada@example.com")

    *data*: a mapping with the user's ``id`` (if the scope has none), ``name`` and so on, or an
    object with a converter. What is raised, and which threads may call, is as for `action`.
    """
    scope.sync_user(data, **fields)


def sync_customer(data: Data = None, /, **fields: Any) -> None:
    """Send what is known of a customer: *data* and *fields*, over the shared scope's customer.

    >>> valued.sync_customer(id=12, name="BBC Radio")

    *data*: a mapping with the customer's ``id`` (if the scope has none), ``name`` and so on, or an
    object with a converter. What is raised, and which threads may call, is as for `action`.
    """
    scope.sync_customer(data, **fields)


def config(data: Data = None, /, **fields: Any) -> None:
    """Set goals and signals, with the shared client.

    >>> valued.config(goals=[{"name": "First report", "action_key": "report.generated"}])

    *data*: a mapping with ``goals``, ``signals`` or both (lists of mappings, each with ``name`` and
    ``action_key``), or a `Config`. The scope's data is not used. What is raised, and which threads
    may call, is as for `action`.
    """
    _connected().client.config(data, **fields)
