"""Ids of the shared scope, for what travels to another process: ids, and nothing else of a user."""

from __future__ import annotations

import valued
from valued.integrations._saying import say


def is_id(value: object) -> bool:
    """Whether *value* is an id as `valued` takes one."""
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def known(keys: tuple[str, ...], what: str) -> dict[str, int | str]:
    """The ids that the shared scope has at *keys*; none where nothing is connected.

    Raises nothing: one that can't be read is left out, which is logged; *what* goes without it.
    """
    found: dict[str, int | str] = {}
    if not valued.connected():
        return found
    for key in keys:
        value = _read(key, what)
        if is_id(value):
            found[key] = value  # type: ignore[assignment]
    return found


def _read(key: str, what: str) -> object:
    try:
        return valued.scope.get(key)
    except Exception as error:  # noqa: BLE001 - a `user` function of the application's
        # Not its words, which may hold what it was asked for.
        say("%s goes without %s: %s was raised", what, key, type(error).__name__)
        return None
