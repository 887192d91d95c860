"""The application: connects the shared client, and warns if nothing is sent."""

from __future__ import annotations

import threading
from typing import Any

from django.apps import AppConfig
from django.conf import settings as django_settings
from django.core import checks
from django.utils.module_loading import import_string

import valued
from valued.integrations.django import ScopeMiddleware, _connecting, _settings


class ValuedConfig(AppConfig):  # type: ignore[misc]  # Django has no types of its own
    """The application behind ``"valued.integrations.django"`` in ``INSTALLED_APPS``."""

    name = "valued.integrations.django"
    label = "valued"
    verbose_name = "Valued"

    def ready(self) -> None:
        """Connect the shared client as ``settings.VALUED`` says. Raises `ValidationError`."""
        settings = _settings.read()
        _connecting.connect(settings)
        checks.register(check)
        # Python lets no other thread handle signals.
        if settings.flush_on_signals and threading.current_thread() is threading.main_thread():
            valued.flush_on_signals()


def check(**_: Any) -> list[Any]:
    """Django's system check: settings that are wrong, or have no effect."""
    settings = _settings.read()
    problems = [_problem(name, getattr(settings, name.lower())) for name in _settings.FUNCTIONS]
    found = [checks.Error(text, id="valued.E001") for text in problems if text is not None]
    if _connecting.lacks_token():
        found.append(
            checks.Warning(
                "Nothing is sent to Valued: there is no token.",
                hint="Set VALUED_TOKEN, or VALUED = {'TOKEN': '…'} in the settings; "
                "VALUED_DISABLED=1, or VALUED = {'ENABLED': False}, silences this.",
                id="valued.W001",
            )
        )
    elif _connecting.is_connected_elsewhere() and (ignored := settings.of_client()):
        found.append(
            checks.Warning(
                f"VALUED: {', '.join(ignored)}: no effect, since valued.connect was called before.",
                hint="Give it to valued.connect(…), or don't call valued.connect.",
                id="valued.W002",
            )
        )
    if not any(map(_is_ours, django_settings.MIDDLEWARE)):
        found.append(
            checks.Warning(
                "Valued's ScopeMiddleware is not in MIDDLEWARE: events have no user of their "
                "request, and there are no page views.",
                hint="MIDDLEWARE.insert(0, 'valued.integrations.django.ScopeMiddleware')",
                id="valued.W003",
            )
        )
    return found


def _is_ours(path: str) -> bool:
    try:
        found = import_string(path)
    except ImportError:  # Django says so itself
        return False
    return isinstance(found, type) and issubclass(found, ScopeMiddleware)


def _problem(name: str, value: object) -> str | None:
    try:
        _settings.function(name, value)
    except valued.ValidationError as error:
        return str(error)
    return None
