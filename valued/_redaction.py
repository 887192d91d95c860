r"""The token as a string that isn't shown, and its removal from answers and error messages.

Error trackers record the `repr` of a frame's locals, or of a slice of them if they are long. So
`Secret` hides both. Services and proxies quote what they refuse, escaped in their own way: ``%2F``,
``&#x2F;``, ``\/``, ``\u002f``. `redacted` finds the token in each of these, in Base64 and in hex,
and if it has 8 characters or more, in upper and lower case and across line breaks. It doesn't find
a part of the token, except at the end of the text; a token with spaces or tags in it; other
encodings, such as quoted-printable, Base64 of Base64, or hex with spaces; more than three layers of
escapes.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

SHOWN: Final = "<secret>"

#: A token of so many characters is replaced wherever it occurs. A shorter one, such as "any" in
#: tests, is part of common words: it is replaced only as a word of its own.
LONG: Final = 8

#: How many times a token may be escaped: JSON, in JSON, in HTML.
_LAYERS: Final = 3

#: What is ignored in a longer token: upper and lower case, and characters at the end of a line or
#: between bytes.
_FOLDED: Final = {**{big: big + 32 for big in range(65, 91)}, **dict.fromkeys(map(ord, "\r\n=:"))}


class Secret(str):
    """A string that works like any other, but is never shown in a `repr` (of a dict, of a frame).

    The results of its methods aren't shown either. A string that it is formatted into is shown.
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
    """`Secret` for bytes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"b'{SHOWN}'"

    def __getitem__(self, place: Any, /) -> Any:
        return hide(super().__getitem__(place))


def hide(value: Any) -> Any:
    """*value*; if it is a string or bytes, as a `Secret` or `SecretBytes`."""
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


#: HTML's names for the characters of a token. Not taken from the module `html`, which would load
#: thousands of names with each import of the library.
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

#: One kind of escapes alone, which is right for a token that itself looks like an escape of another
#: kind; and all kinds together, for mixed escapes.
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
    """*text* without one layer of escapes, and where each of its characters began, plus the end.

    *places*: the same for the characters of *text*.
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
    """Where *token* is in *text*; also a first part of it at the very end of *text*."""
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
    """The part of *token* in Base64 that doesn't depend on what comes before and after it."""
    raw = token.encode()
    for before, unsure in ((0, 0), (1, 2), (2, 3)):
        whole = (before + len(raw)) * 8 // 6
        text = binascii.b2a_base64(bytes(before) + raw)[unsure:whole].decode("ascii")
        yield text
        yield text.replace("+", "-").replace("/", "_")


def redacted(text: str, token: str) -> str:
    """*text* with ``<secret>`` in place of *token*, in whatever form that was escaped.

    The time that this takes is proportional to the length of *text*.
    """
    text, token = str.__str__(text), str.__str__(token)
    needles = {token}
    if len(token) >= LONG:
        needles.update(_in_base64(token), (token.encode().hex(),))
    # Not compiled at import: that would take longer than the rest of the module.
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
        # A token may itself contain what looks like an escape.
        needles = needles | {_unescaped(one, range(len(one) + 1), escape)[0] for one in needles}
