"""The shared client: ``connect … disconnect``, the module's functions, the shared scope."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final

from valued._client import Client
from valued._errors import NotConnectedError, ValidationError
from valued._scope import Scope
from valued._serializer import Snapshot

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from valued._typing import Data, Transport


class _Link:
    """One `connect`: its client, and what the data of the shared scope hangs off meanwhile."""

    def __init__(self, client: Client, *, owned: bool) -> None:
        self.client = client
        self.owned = owned
        self.key: weakref.ref[Any] = weakref.ref(self)


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

    def __repr__(self) -> str:
        return f"<shared scope of {_link.client!r}>" if _link else "<shared scope, not connected>"

    def __reduce__(self) -> str:
        return "scope"  # the one of the process where it is unpickled

    def _client(self) -> Client:
        return _connected().client

    def _key(self) -> weakref.ref[Any]:
        return _connected().key


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
    """`Client.flush` of the shared client. Raises `NotConnectedError`."""
    return _connected().client.flush(timeout)


def nested(data: Data = None, /, **fields: Any) -> AbstractContextManager[Scope]:
    """`Scope.nested` of the shared scope. Raises `NotConnectedError`, at the call."""
    _connected()
    return scope.nested(data, **fields)


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
