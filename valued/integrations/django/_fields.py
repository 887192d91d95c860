"""Who the user of a request is, and which customer: asked for at the request's first event."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any, Final

from django.contrib.auth.signals import user_logged_in
from django.core.exceptions import SynchronousOnlyOperation

import valued

#: The attribute of a request that holds its unit of work, while there is one.
UNIT: Final = "_valued_unit"

_NOT_LOADED: Final = (
    "user: request.user isn't loaded, and an async view can't load it here; call "
    "`await request.auser()` before the first event, or give the event its user"
)
_QUERIES: Final = (
    "VALUED: USER or CUSTOMER makes a database query, which an async view can't do; let it read "
    "what is loaded already"
)


def user_of(request: Any) -> dict[str, object] | None:
    """The id of the user who is signed in, and nothing else of that user."""
    user = getattr(request, "user", None)
    if not getattr(user, "is_authenticated", False):
        return None
    key = getattr(user, "pk", None)
    if key is None:
        return None
    return {"id": key if isinstance(key, int) else str(key)}


class Field:
    """One field of one request, given by a function of the application's, or by `user_of`."""

    def __init__(self, function: Callable[[Any], object], request: Any) -> None:
        self._function = function
        self._request = request
        self.is_given = False
        #: Whether the user must be loaded first; None: it is not being found out.
        self.needs_user: bool | None = None

    def __call__(self) -> object:
        """What the function returns. Raises `ValidationError` where it can't have its user."""
        found = self._ask() if self.needs_user is None else self._try()
        self.is_given = found is not None
        return found

    def _try(self) -> object:
        try:
            return self._function(self._request)
        except SynchronousOnlyOperation:
            self.needs_user = True
        except Exception:  # noqa: BLE001 - the event that comes next raises or logs it
            return None
        return None

    def _ask(self) -> object:
        try:
            return self._function(self._request)
        except SynchronousOnlyOperation:
            if not offer_loaded_user(self._request):
                raise valued.ValidationError(_NOT_LOADED) from None
        try:
            return self._function(self._request)
        except SynchronousOnlyOperation:
            raise valued.ValidationError(_QUERIES) from None


def offer_loaded_user(request: Any) -> bool:
    """Have ``request.user`` be the user whom ``await request.auser()`` has loaded, if it has.

    Django keeps the two apart: ``request.user`` would start a query, which async views can't do.
    """
    loaded = getattr(request, "_acached_user", None)
    if loaded is None:
        return False
    request._cached_user = loaded  # noqa: SLF001 - what `django.contrib.auth` reads
    return True


def needs_user(request: Any) -> bool:
    """Whether the user of *request* must be loaded before an event of it can have one.

    It reads the scope as an event does: what the functions return is kept, and a user that the view
    has set causes no call. An exception of a function is left to the event that comes next.
    """
    _unit, fields = getattr(request, UNIT)
    if not valued.connected():
        return False
    for field in fields.values():
        field.needs_user = False
    try:
        valued.scope.to_dict()
        return any(field.needs_user for field in fields.values())
    finally:
        for field in fields.values():
            field.needs_user = None


async def load_user(request: Any) -> None:
    """Have ``request.user`` loaded, in an async view."""
    load = getattr(request, "auser", None)
    if load is not None:
        await load()
        offer_loaded_user(request)


def begin(request: Any, functions: Mapping[str, Callable[[Any], object]]) -> valued.Isolated:
    """A unit of work for *request*, whose fields are given by *functions*."""
    fields = {name: Field(function, request) for name, function in functions.items()}
    unit = valued.isolated(lazy=fields)
    setattr(request, UNIT, (unit, fields))
    return unit


@functools.cache
def follow_logins() -> None:
    """From a login on, a request's events are those of the user who has signed in."""
    user_logged_in.connect(_ask_again)
    # First: another receiver may record the login.
    with user_logged_in.lock:
        user_logged_in.receivers.insert(0, user_logged_in.receivers.pop())


def _ask_again(request: Any = None, **_signal: Any) -> None:
    if not hasattr(request, UNIT):
        return
    unit, fields = getattr(request, UNIT)
    for name, field in fields.items():
        if field.is_given:
            # Removed by the view; or disconnected meanwhile.
            with contextlib.suppress(KeyError, valued.NotConnectedError), unit.entered() as scope:
                del scope[name]
            field.is_given = False
