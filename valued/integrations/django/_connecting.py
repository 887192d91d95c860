"""The shared client as Django's settings want it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
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
    lacks_token = settings.token is None and not os.environ.get("VALUED_TOKEN")
    if settings.enabled is not False and settings.token is None and is_connected_elsewhere():
        return
    enabled = settings.enabled
    # Commands, and developers, need no token. What VALUED_DISABLED says is left to the client, as
    # it may be neither on nor off.
    if lacks_token and not (enabled is None and _is_disabled()):
        enabled = False
    options = {**settings.options, "enabled": enabled}
    try:
        client = valued.connect(_value(settings.token), _value(settings.endpoint), **options)
    except valued.ValidationError as error:
        raise valued.ValidationError(*(f"VALUED: {it}" for it in error.problems)) from None
    except valued.SerializationError as error:
        raise valued.ValidationError(f"VALUED: defaults: {error}") from error
    _Made.client = client
    _Made.lacks_token = lacks_token and settings.enabled is not False and not _is_disabled()


def _value(setting: Callable[[], Any] | None) -> Any:
    return None if setting is None else setting()


def _is_disabled() -> bool:
    said = os.environ.get("VALUED_DISABLED", "").strip().lower()
    return said not in ("", "0", "false", "no", "off")


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
            "or VALUED = {'TOKEN': '…'} in Django's settings, or VALUED_DISABLED=1 if that is meant"
        )


def _warn(message: str) -> None:
    _Made.has_warned = True
    logging.getLogger("valued").warning(message)
