"""The token as a text that doesn't show, and its removal from what others say."""

from __future__ import annotations

import base64
import copy
import html
import io
import json
import pickle
import pprint
import re
import reprlib
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.pretty import Pretty

from valued._redaction import SHOWN, Secret, SecretBytes, hide, redacted

TOKEN = "sk/live+ab&cd=ef\\gh%41ij~k;l"

# -- a text that doesn't show ----------------------------------------------------------------------


def rich(value: object) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(Pretty(value, max_string=12))
    return out.getvalue()


@pytest.mark.parametrize("show", [repr, ascii, reprlib.repr, pprint.pformat, rich, "{!r}".format])
@pytest.mark.parametrize(
    "make",
    [
        lambda secret: secret,
        lambda secret: secret[3:9],
        lambda secret: secret[0],
        lambda secret: list(secret),
        lambda secret: secret.strip("s"),
        lambda secret: secret.upper().lower(),
        lambda secret: secret.split("/"),
        lambda secret: secret.partition("+"),
        lambda secret: "Bearer " + secret,
        lambda secret: secret + "/",
        lambda secret: secret * 2,
        lambda secret: secret.replace("/", "-"),
        lambda secret: format(secret, "<40"),
        lambda secret: str(secret),
        lambda secret: secret.encode(),
        lambda secret: secret.encode()[2:],
        lambda secret: {"token": secret, "parts": [secret[:4]]},
        copy.deepcopy,
        lambda secret: pickle.loads(pickle.dumps(secret)),
    ],
)
def test_a_secret_and_its_pieces_show_nowhere(
    make: Callable[[Secret], Any], show: Callable[[Any], str]
) -> None:
    token = "s0mething-n0body/may+see"
    shown = show(make(Secret(token)))
    assert "secret" in shown
    text = shown.lower()
    assert not any(token[start : start + 3] in text for start in range(len(token) - 2))


def test_a_secret_does_the_work_of_a_text() -> None:
    secret = Secret("abc")
    assert secret == "abc"
    assert hash(secret) == hash("abc")
    assert f"Bearer {secret}" == "Bearer abc"
    assert "Bearer " + secret == "Bearer abc"
    assert "".join([secret]) == "abc"
    assert json.dumps([secret]) == '["abc"]'
    assert secret.encode("ascii") == b"abc"
    assert secret.encode()[0] == ord("a")
    assert secret.split("b") == ["a", "c"]
    assert secret.startswith("a")
    assert type(str.__str__(secret)) is str


def test_what_is_no_text_is_not_hidden() -> None:
    thing = object()
    assert hide(thing) is thing
    assert hide(None) is None
    assert type(hide("x")) is Secret
    assert type(hide(b"x")) is SecretBytes


# -- what others say -------------------------------------------------------------------------------


def each(character_to: Callable[[int], str]) -> str:
    return "".join(character_to(ord(character)) for character in TOKEN)


FORMS = {
    "plain": TOKEN,
    "json": json.dumps(TOKEN),
    "json with slashes": json.dumps(TOKEN).replace("/", "\\/"),
    "json in json": json.dumps(json.dumps(TOKEN)),
    "json in json in html": html.escape(json.dumps(json.dumps(TOKEN))),
    "url": urllib.parse.quote(TOKEN),
    "url, all": urllib.parse.quote(TOKEN, safe=""),
    "url, small": urllib.parse.quote(TOKEN, safe="").replace("%2F", "%2f").replace("%2B", "%2b"),
    "url, plus": urllib.parse.quote_plus(TOKEN),
    "url, twice": urllib.parse.quote(urllib.parse.quote(TOKEN, safe=""), safe=""),
    "each in url": each("%{:02x}".format),
    "each in URL": each("%{:02X}".format),
    "%u": each("%u{:04x}".format),
    "html": html.escape(TOKEN),
    "html by number": each("&#{};".format),
    "html by padded number": each("&#{:04};".format),
    "html by hex": each("&#x{:x};".format),
    "html by HEX": each("&#X{:X};".format),
    "html by name": TOKEN.replace("&", "&AMP;").replace("/", "&sol;").replace("+", "&plus;"),
    "repr": repr(TOKEN),
    "repr of bytes": repr(TOKEN.encode()),
    "\\x": each("\\x{:02x}".format),
    "\\u": each("\\u{:04X}".format),
    "\\u{}": each("\\u{{{:04x}}}".format),
    "\\u{}, short": each("\\u{{{:x}}}".format),
    "\\U": each("\\U{:08x}".format),
    "octal": each("\\{:03o}".format),
    "backslashes": each("\\{:c}".format) if TOKEN.isalpha() else TOKEN.replace("/", "\\/"),
    "hex": TOKEN.encode().hex(),
    "HEX": TOKEN.encode().hex().upper(),
    "hex:": TOKEN.encode().hex(":"),
    "large": TOKEN.upper(),
    "large, in url": urllib.parse.quote(TOKEN.upper(), safe=""),
    "small, in url": urllib.parse.quote(TOKEN, safe="").lower(),
    "two lines": f"{TOKEN[:10]}\n{TOKEN[10:]}",
    "two lines, network": f"{TOKEN[:10]}\r\n{TOKEN[10:]}",
    "two lines, repr": repr(f"{TOKEN[:10]}\r\n{TOKEN[10:]}"),
    "two lines, json in json": json.dumps(json.dumps(f"{TOKEN[:10]}\n{TOKEN[10:]}")),
    "two lines, html": f"{html.escape(TOKEN[:10])}&#10;{html.escape(TOKEN[10:])}",
    "two lines, url": urllib.parse.quote(f"{TOKEN[:10]}\n{TOKEN[10:]}", safe=""),
    "two lines, soft": f"{TOKEN[:10]}=\n{TOKEN[10:]}",
    "each on a line": "\n".join(TOKEN),
    "base64 in lines": re.sub("(.{16})", "\\1\n", base64.b64encode(TOKEN.encode()).decode()),
    "base64": base64.b64encode(TOKEN.encode()).decode(),
    "mixed": "sk%2flive&plus;ab\\u0026cd&#61;ef\\\\gh%2541ij~k;l",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("frame", ["{}", "Token <{}> unknown", "a\\n{}&", '{{"token": "{}"}}'])
def test_the_token_is_found_in_each_form(form: str, frame: str) -> None:
    shown = redacted(frame.format(form), TOKEN)
    assert SHOWN in shown
    for part in ("sk", "live", "ab", "cd", "ef", "gh", "ij", "2f", "2F", "x73", "115"):
        assert part not in shown.replace(SHOWN, "")
    before, after = frame.split("{}")
    assert shown.startswith(before.replace("{{", "{"))
    assert shown.endswith(after.replace("}}", "}"))


@pytest.mark.parametrize("before", [b"", b"x", b"xy", b"Bearer ", b"user:"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_what_shows_of_base64_gives_at_most_a_character_at_each_end(
    before: bytes, encode: Callable[[bytes], bytes]
) -> None:
    shown = redacted(encode(before + TOKEN.encode() + b"tail").decode("ascii"), TOKEN)
    assert SHOWN in shown
    left, right = shown.split(SHOWN)
    start = base64.urlsafe_b64decode(left + "=" * (-len(left) % 4)) if len(left) % 4 != 1 else b""
    assert TOKEN.encode()[:2] not in start
    assert len(right) <= len(encode(b"12tail"))


def test_a_token_that_the_end_of_the_answer_cuts_is_found() -> None:
    assert redacted(f"unknown: {TOKEN[:12]}", TOKEN) == f"unknown: {SHOWN}"
    assert redacted(TOKEN[:12], TOKEN) == SHOWN
    assert redacted("aaaaaaaab: aaaaaaaa", "aaaaaaaaab") == f"aaaaaaaab: {SHOWN}"
    assert redacted("unknown: sk%2Flive%2Bab%26c", TOKEN) == f"unknown: {SHOWN}"
    assert redacted(f"unknown: {TOKEN[:7]}", TOKEN) == f"unknown: {TOKEN[:7]}"
    assert redacted(f"{TOKEN[:12]} is none", TOKEN) == f"{TOKEN[:12]} is none"


def test_each_place_is_found_and_the_rest_is_left_as_it_is() -> None:
    text = f"100% &amp; {TOKEN}, \\u00e4 {html.escape(TOKEN)} é {TOKEN}{TOKEN}."
    expected = f"100% &amp; {SHOWN}, \\u00e4 {SHOWN} é {SHOWN}{SHOWN}."
    assert redacted(text, TOKEN) == expected
    assert redacted("nothing & %41 here", TOKEN) == "nothing & %41 here"
    assert redacted("", TOKEN) == ""


def test_what_is_at_the_ends_of_the_token_stays_though_it_does_not_count_within() -> None:
    text = f"key={TOKEN.upper()}=\n: {TOKEN.upper()}\nand:{TOKEN}:"
    assert redacted(text, TOKEN) == f"key={SHOWN}=\n: {SHOWN}\nand:{SHOWN}:"
    assert redacted("is =a:b=c: here", "=a:b=c:") == f"is {SHOWN} here"
    assert redacted("is =:=:=:=: or =:=:", "=:=:=:=:") == f"is {SHOWN} or =:=:"
    assert redacted(f"İß\N{KELVIN SIGN} {TOKEN.upper()} é", TOKEN) == f"İß\N{KELVIN SIGN} {SHOWN} é"


def test_a_token_that_ends_like_the_beginning_of_an_escape_is_found() -> None:
    assert redacted("is 0'0000&amp;\\ here", "0'0000&\\") == f"is {SHOWN} here"
    assert redacted("is 0%2F0000&amp x", "0/0000&amp") == f"is {SHOWN} x"


def test_a_short_token_is_replaced_where_it_stands_alone() -> None:
    assert (
        redacted("is any of many, any! company", "any") == f"is {SHOWN} of many, {SHOWN}! company"
    )
    assert redacted("Token t", "t") == f"Token {SHOWN}"
    assert redacted("at%20t%20", "t") == f"at%20{SHOWN}%20"
    assert redacted("any, many", "many-8ch") == "any, many"
    assert redacted("xmany-8chx", "many-8ch") == f"x{SHOWN}x"


@pytest.mark.parametrize(
    "text",
    [
        *("\\", "%", "&", "&#", "&#x2", "%41", "a", "&amp", "\\u", "%25", "sk/live+"),
        *("A", "a\n", "\n", "=", "\\n", "\\u{6", "SK/LIVE+"),
    ],
)
@pytest.mark.parametrize("token", ["\\" * 40, "a" * 50, "%41" * 30, "&#" * 40, "a" * 5000, TOKEN])
def test_the_time_is_bounded_whatever_is_said(text: str, token: str) -> None:
    said = (text * 65536)[:65536]
    began = time.perf_counter()
    redacted(said, token)
    assert time.perf_counter() - began < 2  # of some 0.05


_TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=126))


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=40), _TEXT)
def test_any_token_is_found_in_the_usual_forms(token: str, frame: str) -> None:
    for form in (
        token,
        json.dumps(token)[1:-1],
        html.escape(token),
        urllib.parse.quote(token, safe=""),
        "".join(f"&#{ord(character)};" for character in token),
    ):
        shown = redacted(f"{frame} {form} {frame}", token)
        assert SHOWN in shown
        assert form not in shown.replace(SHOWN, "\0") or form in frame


@given(_TEXT)
def test_a_text_without_the_token_stays(text: str) -> None:
    assert redacted(text, "a token that is in none") == text
