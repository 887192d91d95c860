"""The shared client as Django's settings want it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import valued
from valued.integrations.django._settings import Settings


class _Made:
    """What was connected here, in this process or before it was forked."""

    client: valued.Client | None = None
    lacks_token = False
    has_warned = False


def connect(settings: Settings) -> None:
    """Connect the shared client. Raises `ValidationError`. Called where the application starts."""
    token_is_set = settings.token is not None or bool(os.environ.get("VALUED_TOKEN"))
    if settings.enabled and settings.token is None and is_connected_elsewhere():
        return
    sends = settings.enabled and token_is_set
    try:
        if sends:
            client = valued.connect(settings.token, settings.endpoint, **settings.options)
        else:
            client = _connect_to_nothing(settings.options)
    except valued.ValidationError as error:
        raise valued.ValidationError(*(f"VALUED: {it}" for it in error.problems)) from None
    _Made.client = client
    _Made.lacks_token = settings.enabled and not sends


def _connect_to_nothing(options: Mapping[str, Any]) -> valued.Client:
    """Events are checked and dropped: commands, and developers, need no token."""
    unused = ("executor", "outbox")
    kept = {name: value for name, value in options.items() if name not in unused}
    with _no_outbox():
        return valued.connect(lambda _event: None, executor=valued.ImmediateExecutor(), **kept)


@contextlib.contextmanager
def _no_outbox() -> Iterator[None]:
    # What drops events must not be given those that other processes have left in an outbox.
    path = os.environ.pop("VALUED_OUTBOX", None)
    try:
        yield
    finally:
        if path is not None:
            os.environ["VALUED_OUTBOX"] = path


def is_connected_elsewhere() -> bool:
    """Whether the application has called `valued.connect` itself."""
    return valued.connected() and valued.client() is not _Made.client


def lacks_token() -> bool:
    """Whether nothing is sent, since there is no token."""
    return _Made.lacks_token and valued.connected() and valued.client() is _Made.client


def warn_where_nothing_is_sent(*, is_installed: bool) -> None:
    """Log it, once in a process. *is_installed*: whether the application is, which connects."""
    if _Made.has_warned:
        return
    if not is_installed and not valued.connected():
        _warn("nothing is connected: add 'valued.integrations.django' to INSTALLED_APPS")
    elif lacks_token():
        _warn(
            "nothing is sent: there is no token; set VALUED_TOKEN, "
            "or VALUED = {'TOKEN': …} in Django's settings"
        )


def _warn(message: str) -> None:
    _Made.has_warned = True
    logging.getLogger("valued").warning(message)
