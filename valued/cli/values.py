"""The values of NAME=VALUE: JSON if that keeps all that was typed, otherwise a string."""

from __future__ import annotations

import decimal
import json
import math
from typing import Any, Final

#: The most letters of a value that are shown, and of a number for which advice is given.
SHOWN: Final = 60


def parsed(text: str) -> object:
    """What *text* means: JSON, if that keeps all that was typed; else *text* itself.

    ``7`` is a number. ``007``, ``1.50`` and ``1e3`` would be written back differently, so they stay
    strings, as does a number too long for a float. ``"7"``, in quotes, is a string. What is in
    ``[…]`` or ``{…}`` was meant as JSON: there it only matters that no digit is lost.
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
    """A remark about a value that looks like a number or like JSON and is sent as a string."""
    if parsed(text) != text:
        return None
    shown = json.dumps(text if len(text) <= SHOWN else f"{text[:SHOWN]}…", ensure_ascii=False)
    said = f"{name}: {shown} is sent as a string, exactly as typed"
    if text.lstrip().startswith(("{", "[")):
        return f"{said}: it is not JSON, or JSON would lose a part of it"
    number = _number(text)
    if number is None:
        return None
    if not number:
        return f"{said}: JSON has no such number"
    return f"{said}: the number is written {number}; to send that, type {name}={number}"


def _number(text: str) -> str | None:
    """*text* as a number in JSON; empty: JSON has no such number. None: it isn't a number."""
    if not any(map(str.isdecimal, text)):
        # A word such as ``nan`` may be a name; these three are what programs print.
        return "" if text in ("NaN", "Infinity", "-Infinity") else None
    for read in (int, float, _prefixed):
        try:
            number = read(text)
        except ValueError:
            continue
        if len(text) > SHOWN or (isinstance(number, float) and not math.isfinite(number)):
            return ""
        # Above 2**53 a float has too few digits for whole numbers, such as ids.
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
    return found if len(found) == len(pairs) else _refuse("a name that occurs twice")
