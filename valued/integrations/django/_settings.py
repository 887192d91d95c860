"""``settings.VALUED``, read and checked."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from asgiref.sync import iscoroutinefunction
from django.conf import settings as django_settings
from django.utils.module_loading import import_string

import valued

#: The settings that may be functions.
FUNCTIONS: Final = ("USER", "CUSTOMER", "PAGE_VIEWS")


class Settings(NamedTuple):
    """What ``VALUED`` says.

    The token is behind a function: error trackers show what is in the frames of an exception. So is
    the endpoint, for which a token may be mistaken. None: not given.
    """

    token: Callable[[], Any] | None = None
    endpoint: Callable[[], Any] | None = None
    enabled: bool | None = None
    user: Any = "lazy"
    customer: Any = None
    page_views: Any = False
    flush_on_signals: bool = False
    options: Mapping[str, Any] = {}

    def of_client(self) -> list[str]:
        """The names of the settings that are given to the client."""
        return ["ENDPOINT"] * (self.endpoint is not None) + [name.upper() for name in self.options]


_OWN: Final = [name.upper() for name in Settings._fields if name != "options"]


def read() -> Settings:
    """``settings.VALUED``, none if missing. Raises `ValidationError`, which names what is wrong."""
    settings = _read()
    if isinstance(settings, list):
        raise valued.ValidationError(*settings)
    return settings


def _read() -> Settings | list[str]:
    """The settings, or what is wrong. Raises nothing: its frame would show the token."""
    given = getattr(django_settings, "VALUED", None)
    if given is None:
        given = {}
    if not isinstance(given, Mapping):
        kind = type(given).__name__
        return [f"VALUED: expected a mapping, such as {{'TOKEN': '…'}}, got {kind}"]
    of_client = [
        name.upper()
        for name, parameter in inspect.signature(valued.Client).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    known = [*_OWN, *(name for name in of_client if name not in _OWN)]
    problems = [_unknown(name, known) for name in given if name not in known]
    problems += [
        f"VALUED: {name}: expected True or False, got {type(given[name]).__name__}"
        for name in ("ENABLED", "FLUSH_ON_SIGNALS")
        if not isinstance(given.get(name, False), bool | None if name == "ENABLED" else bool)
    ]
    if problems:
        return problems
    own = {name.lower(): value for name, value in given.items() if name in _OWN}
    # An empty one is what ``os.environ.get("VALUED_TOKEN", "")`` gives where it isn't set.
    for name in ("token", "endpoint"):
        own[name] = _function_of(own.get(name) or None)
    options = {name.lower(): value for name, value in given.items() if name not in _OWN}
    return Settings(**own, options=options)


def _function_of(value: object) -> Callable[[], object] | None:
    return None if value is None else lambda: value


def _unknown(name: object, known: list[str]) -> str:
    close = difflib.get_close_matches(str(name).upper(), known, 1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
    return f"VALUED: {name}: no such setting; {hint}"


def function(name: str, value: Any) -> Callable[..., object] | None:
    """The function that the setting *name* is, or whose dotted path it is; None: it is off.

    Raises `ValidationError`.
    """
    if value is None or value is False or (name, value) in (("USER", "lazy"), ("PAGE_VIEWS", True)):
        return None
    found = value
    if isinstance(value, str):
        try:
            found = import_string(value)
        except ImportError as error:
            raise valued.ValidationError(f"VALUED: {name}: {error}") from error
    if not callable(found):
        raise valued.ValidationError(
            f"VALUED: {name}: expected a function or its dotted path, got {type(found).__name__}"
        )
    if iscoroutinefunction(found):
        raise valued.ValidationError(
            f"VALUED: {name}: expected a function without async, since sync views call it, too"
        )
    return found  # type: ignore[no-any-return]
