"""The shared client: ``connect … disconnect``, the module's functions, the shared scope."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, overload

from valued import _leaving
from valued._client import Client
from valued._context import Key, Owner
from valued._errors import NotConnectedError, ValidationError
from valued._options import Options
from valued._scope import Isolated, Scope
from valued._secret import hide
from valued._serializer import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from valued._typing import Data, Transport


class _Link(Owner):
    """One `connect`: its client, and what the data of the shared scope hangs off meanwhile."""

    __slots__ = ("owned",)

    client: Client

    def __init__(self, client: Client, *, owned: bool) -> None:
        super().__init__(client)
        self.owned = owned


_link: _Link | None = None  # read and replaced whole: threads need no lock for it


def _connected() -> _Link:
    link = _link
    if link is None:
        raise NotConnectedError(
            "the shared client is not connected: call valued.connect(token) first, "
            "for example where your application starts"
        )
    return link


class _SharedScope(Scope):
    """The scope of the shared client. A new `connect` begins with an empty one."""

    def __init__(self) -> None:
        # Without a client of its own: whichever is connected.
        self._defaults = Snapshot()

    def isolated(
        self,
        data: Data | Callable[[], object] = None,
        /,
        *,
        lazy: Mapping[str, Callable[[], object]] | None = None,
        **fields: Any,
    ) -> Isolated:
        """`Scope.isolated`; where nothing is connected, entering the unit changes nothing."""
        if _link is None:
            return Isolated(self, None, Snapshot())
        return super().isolated(data, lazy=lazy, **fields)

    def __repr__(self) -> str:
        return f"<shared scope of {_link.client!r}>" if _link else "<shared scope, not connected>"

    def __reduce__(self) -> str:
        return "scope"  # the one of the process where it is unpickled

    def _client(self) -> Client:
        return _connected().client

    def _key(self) -> Key:
        return _connected().key

    def _start(self) -> Snapshot:
        return _connected().defaults


#: The shared scope. Raises `NotConnectedError` before `connect`.
scope: Final = _SharedScope()


def connect(
    token: Client | str | Transport | None = None, endpoint: str | None = None, **options: Any
) -> Client:
    """Connect the shared client, and return it.

    Takes a `Client`, or whatever ``Client`` takes. Raises `ValidationError`, and then leaves the
    shared client as it was. Connecting again replaces the client; the previous one delivers in the
    background what it accepted. Any thread may call. Forked children are connected as their parent
    was.
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
        _link = _Link(token, owned=False)
    else:
        _link = _Link(Client(token, endpoint, **options), owned=True)
    return _link.client


def disconnect(timeout: float | None = 5.0) -> bool:
    """Disconnect the shared client; close it if `connect` made it, else only flush it.

    *timeout*: seconds, as for ``Client.close``. True if every event was settled in time. Does
    nothing where nothing is connected. Raises `ValidationError` for a bad *timeout*, and then
    leaves the shared client as it was.
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
    """Whether the shared client is connected."""
    return _link is not None


def client() -> Client:
    """The shared client. Raises `NotConnectedError`."""
    return _connected().client


def flush(timeout: float | None = 5.0) -> bool:
    """`Client.flush` of the shared client; `flush_all` for every client.

    Raises `NotConnectedError`.
    """
    return _connected().client.flush(timeout)


_OWN: Final = object()


@overload
def flush_all() -> bool: ...
@overload
def flush_all(timeout: float | None) -> bool: ...
def flush_all(timeout: Any = _OWN) -> bool:
    """Wait until the events accepted in this process are settled, of all of its clients.

    For the end of a worker, called by glue that doesn't know which clients there are. *timeout*:
    seconds for all of them (None: no bound). Without it, it does what the end of a process does:
    each client has its ``shutdown_timeout`` from now on, what waits for another attempt is tried at
    once, and what is not delivered by then is logged.

    True if all were settled in time. Raises `ValidationError` for a bad *timeout*. Any thread may
    call; in a forked child it sees the child's own events only. Nothing is closed: events that are
    recorded later are delivered as always.
    """
    if timeout is _OWN:
        return _leaving.flush_at_end()
    from valued import _sender  # as a client does

    return _sender.flush_all(timeout)


def nested(data: Data = None, /, **fields: Any) -> AbstractContextManager[Scope]:
    """`Scope.nested` of the shared scope. Raises `NotConnectedError`, at the call."""
    _connected()
    return scope.nested(data, **fields)


def isolated(
    data: Data | Callable[[], object] = None,
    /,
    *,
    lazy: Mapping[str, Callable[[], object]] | None = None,
    **fields: Any,
) -> Isolated:
    """`Scope.isolated` of the shared scope: a unit of work, such as a request, a task or a job.

    Before `connect`, entering it changes nothing; a `connect` within an open unit counts from the
    next one on.
    """
    return scope.isolated(data, lazy=lazy, **fields)


def action(key: str, data: Data = None, /, **fields: Any) -> None:
    """`Scope.action` of the shared scope. Raises `NotConnectedError`."""
    scope.action(key, data, **fields)


def page_view(url: str, data: Data = None, /, **fields: Any) -> None:
    """`Scope.page_view` of the shared scope. Raises `NotConnectedError`."""
    scope.page_view(url, data, **fields)


pageview = page_view


def sync(data: Data = None, /, **fields: Any) -> None:
    """`Scope.sync` of the shared scope. Raises `NotConnectedError`."""
    scope.sync(data, **fields)


def sync_user(data: Data = None, /, **fields: Any) -> None:
    """`Scope.sync_user` of the shared scope. Raises `NotConnectedError`."""
    scope.sync_user(data, **fields)


def sync_customer(data: Data = None, /, **fields: Any) -> None:
    """`Scope.sync_customer` of the shared scope. Raises `NotConnectedError`."""
    scope.sync_customer(data, **fields)


def config(data: Data = None, /, **fields: Any) -> None:
    """`Client.config` of the shared client. Raises `NotConnectedError`."""
    _connected().client.config(data, **fields)
