"""Reads JSON as it is meant between programs: no ``NaN``, and no key twice in one object.

`json` itself takes the last value of a key that occurs twice. The sender meant something else with
the first one.
"""

from __future__ import annotations

import collections
import json
from typing import Any, NoReturn


class _Duplicate(ValueError):
    """JSON, but ambiguous."""


def parsed(raw: bytes) -> Any:
    """The value of *raw*. Raises `ValueError` with the reason, which is fit for users."""
    try:
        return json.loads(raw.decode(), parse_constant=_refuse, object_pairs_hook=_object)
    except _Duplicate:
        raise
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON in UTF-8: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = collections.Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise _Duplicate(f"the key {json.dumps(twice)} occurs twice in one object")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
