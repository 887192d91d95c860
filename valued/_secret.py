r"""The token as a text that doesn't show, and its removal from what others say.

Error trackers record the `repr` of a frame's locals, or of a slice of them, where they are long.
So `Secret` hides both. Services and proxies quote what they refuse, escaped in their way: ``%2F``,
``&#x2F;``, ``\/``, ``\u002f``. `redacted` finds the token in each of these, in Base64 and in hex,
and if it has 8 characters or more, in any case and over ends of lines. It doesn't find a part of
the token, but for one that ends the text; one with blanks or tags within it; other encodings, such
as quoted-printable, Base64 of Base64, or hex with blanks; more than three layers of escapes.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

SHOWN: Final = "<secret>"

#: Characters from which on a token is replaced wherever it occurs. A shorter one, such as the "any"
#: of somebody's tests, is part of common words: it is replaced only where it stands alone.
LONG: Final = 8

#: How often one may be escaped: JSON, in JSON, in HTML.
_LAYERS: Final = 3

#: What doesn't count in a longer one: its case, and what is at a line's end, or between bytes.
_FOLDED: Final = {**{big: big + 32 for big in range(65, 91)}, **dict.fromkeys(map(ord, "\r\n=:"))}


class Secret(str):
    """A text that does its work as one, but never shows in a `repr` (of a dict, of a frame).

    What its methods make of it doesn't either. A text that it is formatted into does.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"'{SHOWN}'"

    def __str__(self) -> str:
        return self

    def __radd__(self, other: str) -> Secret:
        return Secret(str.__add__(other, self))

    def __iter__(self) -> Iterator[str]:
        return map(Secret, super().__iter__())


class SecretBytes(bytes):
    """The same for bytes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"b'{SHOWN}'"

    def __getitem__(self, place: Any, /) -> Any:
        return hide(super().__getitem__(place))


def hide(value: Any) -> Any:
    """*value*; where it is a text, or bytes, as one that doesn't show."""
    if isinstance(value, str):
        return Secret(value)
    return SecretBytes(value) if isinstance(value, bytes) else value


def _hiding(name: str) -> Callable[..., Any]:
    method = getattr(str, name)

    def hiding(self: str, *args: Any, **options: Any) -> Any:
        made = method(self, *args, **options)
        return type(made)(map(hide, made)) if isinstance(made, (list, tuple)) else hide(made)

    hiding.__name__ = name
    return hiding


for _name in (
    "__add__", "__format__", "__getitem__", "__mod__", "__mul__", "__rmul__", "capitalize",
    "casefold", "center", "encode", "expandtabs", "format", "format_map", "join", "ljust", "lower",
    "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rjust", "rpartition",
    "rsplit", "rstrip", "split", "splitlines", "strip", "swapcase", "title", "translate", "upper",
    "zfill",
):  # fmt: skip
    setattr(Secret, _name, _hiding(_name))


#: The names that HTML has for the characters of a token. Not of `html`, which would cost each
#: import of the library a thousand names.
_NAMED: Final = {
    "amp": "&", "apos": "'", "ast": "*", "bsol": "\\", "colon": ":", "comma": ",", "commat": "@",
    "dollar": "$", "equals": "=", "excl": "!", "grave": "`", "gt": ">", "hat": "^", "lbrace": "{",
    "lbrack": "[", "lcub": "{", "lowbar": "_", "lpar": "(", "lsqb": "[", "lt": "<", "midast": "*",
    "num": "#", "percnt": "%", "period": ".", "plus": "+", "quest": "?", "quot": '"', "rbrace": "}",
    "rbrack": "]", "rcub": "}", "rpar": ")", "rsqb": "]", "semi": ";", "sol": "/", "underbar": "_",
    "verbar": "|", "vert": "|", "verticalline": "|",
}  # fmt: skip

_LINE_BREAKS: Final = {"n": "\n", "r": "\r"}

#: One character, escaped in some way.
_KINDS: Final = (
    # of URLs
    r"%u ([0-9a-f]{4}) | % ([0-9a-f]{2})",
    # of HTML
    r"""
      &\#x ([0-9a-f]{1,8}) ;?
    | &\# (?P<decimal> [0-9]{1,8} ) ;?
    | & (?P<named> NAMED ) ;
    | & (?P<bare> amp | gt | lt | quot ) ;?
    """.replace("NAMED", "|".join(_NAMED)),
    # of JSON and programming languages
    r"""
      \\U ( 0000 [0-9a-f]{4} )
    | \\u ([0-9a-f]{4})
    | \\u \{ ([0-9a-f]{1,6}) \}
    | \\x ([0-9a-f]{2})
    | \\ (?P<octal> [0-7]{3} )
    | \\ (?P<itself> . )
    """,
)

#: In one way, which alone is right beside a token that looks like an escape of another kind itself,
#: and in any of them, for those that were mixed.
_WAYS: Final = (*_KINDS, "|".join(_KINDS))


def _character(found: re.Match[str]) -> str:
    kind, digits = found.lastgroup, found[found.lastindex or 0]
    if kind == "itself":
        return _LINE_BREAKS.get(digits, digits)
    if kind in ("named", "bare"):
        return _NAMED[digits.lower()]
    number = int(digits, {"decimal": 10, "octal": 8}.get(kind or "", 16))
    return chr(number) if number < 128 else "\N{REPLACEMENT CHARACTER}"  # a token is in ASCII


def _unescaped(text: str, places: Sequence[int], escape: re.Pattern[str]) -> tuple[str, list[int]]:
    """*text* with one layer of escapes taken off; where each of its characters begins, and an end.

    *places*: the same of *text*.
    """
    parts: list[str] = []
    begins: list[int] = []
    done = 0
    for found in escape.finditer(text):
        start = found.start()
        parts += (text[done:start], _character(found))
        begins += places[done : start + 1]
        done = found.end()
    parts.append(text[done:])
    begins += places[done:]
    return "".join(parts), begins


def _found(text: str, token: str) -> Iterator[tuple[int, int]]:
    """Where *token* is in *text*; also its beginning, where *text* breaks off."""
    start = text.find(token)
    while start >= 0:
        end = start + len(token)
        beside = text[start - 1 : start], text[end : end + 1]
        if len(token) >= LONG or not any(map(str.isalnum, beside)):
            yield start, end
        start = text.find(token, end)
    start = max(-1, len(text) - len(token))
    while len(token) > LONG and (start := text.find(token[:LONG], start + 1)) >= 0:
        if token.startswith(text[start:]):
            yield start, len(text)


def _each_found(text: str, needles: set[str]) -> Iterator[tuple[int, int]]:
    for needle in needles:
        yield from _found(text, needle)
    folded = text.translate(_FOLDED)
    alike = {needle.translate(_FOLDED) for needle in needles}
    spans = [span for one in alike if len(one) >= LONG for span in _found(folded, one)]
    if spans:
        kept = [place for place, one in enumerate(text) if _FOLDED.get(ord(one), 0) is not None]
        yield from ((kept[start], kept[end - 1] + 1) for start, end in spans)


def _in_base64(token: str) -> Iterator[str]:
    """What is the same of *token* in Base64, whatever is before and behind it."""
    raw = token.encode()
    for before, unsure in ((0, 0), (1, 2), (2, 3)):
        whole = (before + len(raw)) * 8 // 6
        text = binascii.b2a_base64(bytes(before) + raw)[unsure:whole].decode("ascii")
        yield text
        yield text.replace("+", "-").replace("/", "_")


def redacted(text: str, token: str) -> str:
    """*text* with ``<secret>`` where *token* was, in whatever form it was escaped.

    The time that it takes grows with the length of *text*, and no faster.
    """
    text, token = str.__str__(text), str.__str__(token)
    needles = {token}
    if len(token) >= LONG:
        needles.update(_in_base64(token), (token.encode().hex(),))
    # Not compiled above: it takes longer than all else of this module's import.
    flags = re.VERBOSE | re.IGNORECASE | re.DOTALL | re.ASCII
    ways = [re.compile(way, flags) for way in _WAYS]
    spans = [span for escape in ways for span in _escaped(text, needles, escape)]
    parts: list[str] = []
    done = 0
    for start, end in sorted(spans):
        if start >= done:
            parts += (text[done:start], SHOWN)
        done = max(done, end)
    return "".join([*parts, text[done:]])


def _escaped(text: str, needles: set[str], escape: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """Where one of *needles* is in *text*, under up to three layers of *escape*."""
    layer, places = text, list(range(len(text) + 1))
    for _ in range(_LAYERS + 1):
        for start, end in _each_found(layer, needles):
            yield places[start], places[end]
        if not escape.search(layer):
            break
        layer, places = _unescaped(layer, places, escape)
        # A token may hold what looks like an escape itself.
        needles = needles | {_unescaped(one, range(len(one) + 1), escape)[0] for one in needles}
