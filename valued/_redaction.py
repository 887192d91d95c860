r"""Keeps the token out of what is shown: `repr`, stack frames, logs, and answers that quote it.

Error trackers record the `repr` of a frame's locals, or of a slice of them if they are long.
`RedactedStr` shows neither. Services and proxies quote what they refuse, escaped in their own way:
``%2F``, ``\/``, ``\u002f``, ``&#x2F;``. `redacted` finds the token under up to three layers of such
escapes, such as JSON in JSON in HTML, in upper and lower case, broken across lines, and also where
such an answer has it in Base64 (by itself, or within more data) or in hex.

It doesn't find a part of the token, nor one in any other code, nor one whose escaped form is in
Base64 or hex. A token with ``%``, ``&`` or a backslash (RFC 6750 allows none of them) may itself
look like an escape. Then it is found as it is, but not in every escaped form. A token of fewer than
eight characters is found as a word of its own, not in Base64 or hex.
"""

from __future__ import annotations

import re
from typing import Any, Final

SHOWN: Final = "<secret>"

#: A token of so many characters is replaced wherever it occurs. A shorter one, such as "any" in
#: tests, is part of common words: it is replaced only as a word of its own.
LONG: Final = 8

#: How many times the token may be escaped.
_LAYERS: Final = 3


class RedactedStr(str):
    """A string that works like any other, but whose `repr` doesn't show it, nor a slice of it.

    The results of `encode`, `lower` and `strip` are redacted, too. ``str(it)``, a string that it is
    formatted into, and the results of other methods are not.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"'{SHOWN}'"

    def __getitem__(self, place: Any, /) -> RedactedStr:
        return RedactedStr(super().__getitem__(place))

    def encode(self, *args: Any, **options: Any) -> RedactedBytes:
        return RedactedBytes(super().encode(*args, **options))

    def lower(self) -> RedactedStr:
        return RedactedStr(super().lower())

    def strip(self, *args: Any) -> RedactedStr:
        return RedactedStr(super().strip(*args))


class RedactedBytes(bytes):
    """Bytes whose `repr` doesn't show them, nor a slice of them."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"b'{SHOWN}'"

    def __getitem__(self, place: Any, /) -> Any:
        return hide(super().__getitem__(place))


def hide(value: Any) -> Any:
    """*value*; if it is a string or bytes, as a `RedactedStr` or `RedactedBytes`."""
    if isinstance(value, str):
        return RedactedStr(value)
    return RedactedBytes(value) if isinstance(value, bytes) else value


#: The names that HTML has for characters of a token. Not from the module `html`, which would load
#: two thousand names with each import of the library.
_NAMES: Final = {
    "amp": "&", "apos": "'", "colon": ":", "equals": "=", "gt": ">", "lowbar": "_", "lt": "<",
    "period": ".", "plus": "+", "quot": '"', "sol": "/",
}  # fmt: skip

#: One escaped character: in URLs, JSON and programming languages; in HTML; after a backslash. And a
#: line break, which stands for nothing. The `re` module compiles and keeps it when it is first
#: used: at import it would cost too much.
_ESCAPE: Final = r"""
      (?: % (?:u00)? | \\u00 | \\x ) (?P<hex> [0-9a-f]{2} )
    | \\u\{ 0* (?P<braced_hex> [0-9a-f]{2} ) \}
    | \\ (?P<octal> [0-7]{3} )
    | &\#x 0* (?P<html_hex> [0-9a-f]{2} ) ;
    | &\#  0* (?P<html_decimal> [0-9]{2,3} ) ;
    | & (?P<html_name> NAMES ) ;
    | (?P<line_break> \r?\n [ \t]* )
    | \\ (?P<itself> [^a-z0-9] )
""".replace("NAMES", "|".join(_NAMES))


def redacted(text: str, token: str) -> str:
    """*text* with ``<secret>`` in place of *token*, also where that is escaped.

    If it was escaped, or broken across lines, *text* comes back without that layer of escapes of
    printable ASCII, and without line breaks.
    """
    found = layer = _replaced(str(text), token)
    for _ in range(_LAYERS):
        layer = re.sub(_ESCAPE, _unescaped, layer, flags=re.VERBOSE | re.IGNORECASE)
        replaced = _replaced(layer, token)
        if replaced != layer:
            found = layer = replaced
    return found


def _replaced(text: str, token: str) -> str:
    pattern = hide(re.escape(token))
    if len(token) < LONG:
        pattern = hide(rf"(?<![^\W_]){pattern}(?![^\W_])")
    else:
        pattern = hide("|".join([pattern, *_encoded(token.encode())]))
    return re.sub(pattern, SHOWN, text, flags=re.IGNORECASE)


def _encoded(token: bytes) -> list[Any]:
    """Patterns for *token* in hex, and in Base64: at each of three places in a group of 3 bytes."""
    import binascii  # for trouble only

    patterns = [hide(token.hex())]
    for before in range(3):
        code = hide(binascii.b2a_base64(bytes(before) + token, newline=False).decode())
        # A character is 6 bits. Those at the ends, which have bits of the neighbours, may be any.
        whole = hide(code[-(-before * 8 // 6) : (before + len(token)) * 8 // 6])
        start = r"[\w+/-]" if before else ""
        end = r"[\w+/-]={0,2}" if (before + len(token)) % 3 else ""
        patterns.append(hide(start + whole.replace("+", "[+-]").replace("/", "[/_]") + end))
    return patterns


def _unescaped(escape: re.Match[str]) -> str:
    kind, said = escape.lastgroup, escape[escape.lastindex or 0]
    if kind == "itself":
        return said
    if kind == "line_break":
        return ""
    if kind == "html_name":
        return _NAMES[said.lower()]
    code = int(said, {"html_decimal": 10, "octal": 8}.get(str(kind), 16))
    return chr(code) if 32 <= code < 127 else escape[0]  # no control character comes into a log
