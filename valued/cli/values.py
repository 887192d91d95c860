"""The values of NAME=VALUE: JSON where that keeps all that was typed, text otherwise."""

from __future__ import annotations

import decimal
import json
import math
from typing import Any, Final

#: Letters of a value that are shown, and of a number that is worth an advice.
SHOWN: Final = 60


def parsed(text: str) -> object:
    """What *text* stands for: JSON, where that is all of what was typed; else *text* itself.

    ``7`` is a number. ``007``, ``1.50`` and ``1e3`` would be written back as something else, so
    they stay text, as does a number too long for a float. ``"7"``, in quotes, is text. What is
    within ``[…]`` or ``{…}`` was meant as JSON: there it matters only that no digit is lost.
    """
    try:
        value = json.loads(
            text, parse_float=_exact, parse_constant=_refuse, object_pairs_hook=_object
        )
    except (ValueError, RecursionError):
        return text
    if isinstance(value, (dict, list)):
        return value
    is_quoted = isinstance(value, str) and text == text.strip()
    return value if is_quoted or json.dumps(value) == text else text


def remark(name: str, text: str) -> str | None:
    """What to say of a value that reads like a number, or like JSON, and is sent as text."""
    if parsed(text) != text:
        return None
    shown = json.dumps(text if len(text) <= SHOWN else f"{text[:SHOWN]}…", ensure_ascii=False)
    said = f"{name}: {shown} is sent as text, just as typed"
    if text.lstrip().startswith(("{", "[")):
        return f"{said}: it is no JSON, or would lose something as such"
    number = _number(text)
    if number is None:
        return None
    if not number:
        return f"{said}: there is no such number in JSON"
    return f"{said}: the number is written {number}; to send that, give {name}={number}"


def _number(text: str) -> str | None:
    """How JSON has the number that *text* reads like; empty: not at all. None: it is no number."""
    if not any(map(str.isdecimal, text)):
        # A word such as ``nan`` may be a name; these are what programs print.
        return "" if text in ("NaN", "Infinity", "-Infinity") else None
    for read in (int, float, _prefixed):
        try:
            number = read(text)
        except ValueError:
            continue
        if len(text) > SHOWN or (isinstance(number, float) and not math.isfinite(number)):
            return ""
        # An id is a whole number; above, a float has no digits to tell them apart.
        return str(int(number)) if abs(number) < 2**53 and number == int(number) else str(number)
    return None


def _prefixed(text: str) -> int:
    return int(text, 0)  # as 0x10


def _exact(text: str) -> float:
    number = float(text)
    return number if decimal.Decimal(repr(number)) == decimal.Decimal(text) else _refuse(text)


def _refuse(text: str) -> Any:
    raise ValueError(text)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _refuse("a name that is there twice")
