"""The plugin for pytest: the fixtures ``valued_events`` and ``valued_service``, and two settings.

In ``pytest.ini``, or where your settings of pytest are:

* ``valued_disabled = true`` sets ``VALUED_DISABLED=1``, unless it is set, before your application
  is imported: clients need no token, and send nothing.
* ``valued_block = true`` makes an event for an endpoint that is not on this machine an error
  (`valued.testing.RealEndpointError`), raised by the call that records the event.

Both end with the run of pytest. A suite that uses none of these is not affected.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from valued.testing import Events, Service


@pytest.fixture
def valued_events() -> Iterator[Events]:
    """The events that are recorded during the test, a `valued.testing.Events`; none is sent.

    It is `valued.testing.recorded` as a fixture: every client, thread, forked child and program
    that the test starts is seen.
    """
    from valued.testing import recorded

    with recorded() as events:
        yield events


@pytest.fixture
def valued_service() -> Iterator[Service]:
    """A `valued.testing.Service`, a mock server; clients that are made after it send to it.

    It is `valued.testing.service` as a fixture: the environment variables lead to it.
    """
    from valued.testing import service

    with service() as made:
        yield made


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the settings ``valued_disabled`` and ``valued_block``."""
    parser.addini(
        "valued_disabled",
        "set VALUED_DISABLED=1 for the tests: clients need no token, and send nothing",
        "bool",
        default=False,
    )
    parser.addini(
        "valued_block",
        "make an event for an endpoint of valued that isn't on this machine an error",
        "bool",
        default=False,
    )


# A wrapper, since it comes before the hooks of all plugins: some import the application there.
@pytest.hookimpl(hookwrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Iterator[None]:
    """Apply the settings before an application is imported."""
    _apply(early_config)
    yield


def pytest_configure(config: pytest.Config) -> None:
    """Apply the settings where the plugin was named by a conftest, which is later."""
    _apply(config)


_applied = pytest.StashKey[bool]()


def _apply(config: pytest.Config) -> None:
    if config.stash.get(_applied, False):
        return
    config.stash[_applied] = True
    until_the_end = pytest.MonkeyPatch()
    config.add_cleanup(until_the_end.undo)
    for setting in ("valued_disabled", "valued_block"):
        if config.getini(setting) and setting.upper() not in os.environ:
            until_the_end.setenv(setting.upper(), "1")
    if config.getini("valued_block"):
        from valued._http import recording

        until_the_end.setattr(recording, "blocked", True)
