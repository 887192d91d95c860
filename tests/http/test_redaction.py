"""The token: a `repr` that doesn't show it, and its removal from answers that quote it."""

from __future__ import annotations

import base64
import copy
import html
import io
import json
import pickle
import pprint
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

from valued._redaction import SHOWN, RedactedBytes, RedactedStr, hide, redacted

TOKEN = "sk_live/4eC39.Hq-Ly~jWDa+rj=="

# -- strings that don't show -----------------------------------------------------------------------


def rich(value: object) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(Pretty(value, max_string=12))
    return out.getvalue()


@pytest.mark.parametrize("show", [repr, ascii, reprlib.repr, pprint.pformat, rich, "{!r}".format])
@pytest.mark.parametrize(
    "make",
    [
        lambda hidden: hidden,
        lambda hidden: hidden[3:9],
        lambda hidden: hidden[0],
        lambda hidden: hidden[2:][:8],
        lambda hidden: hidden.strip("s"),
        lambda hidden: hidden.lower(),
        lambda hidden: hidden.encode(),
        lambda hidden: hidden.encode()[2:],
        lambda hidden: {"token": hidden, "parts": [hidden[:4]]},
        copy.deepcopy,
        lambda hidden: pickle.loads(pickle.dumps(hidden)),
    ],
)
def test_a_redacted_string_and_its_slices_show_nowhere(
    make: Callable[[RedactedStr], Any], show: Callable[[Any], str]
) -> None:
    token = "s0mething-n0-l0g/may+see"
    shown = show(make(RedactedStr(token)))
    assert "secret" in shown
    text = shown.lower()
    assert not any(token[start : start + 3] in text for start in range(len(token) - 2))


def test_a_redacted_string_works_like_any_other() -> None:
    hidden = RedactedStr(" abC")
    assert hidden == " abC"
    assert hash(hidden) == hash(" abC")
    assert f"Bearer{hidden}" == "Bearer abC"
    assert "Bearer" + hidden == "Bearer abC"
    assert "".join([hidden]) == " abC"
    assert json.dumps([hidden]) == '[" abC"]'
    assert hidden.encode("ascii") == b" abC"
    assert hidden.encode()[1] == ord("a")
    assert (hidden[1:], hidden.strip(), hidden.lower()) == ("abC", "abC", " abc")
    assert hidden.split("b") == [" a", "C"]
    assert type(str(hidden)) is str


def test_hide_changes_strings_and_bytes_only() -> None:
    thing = object()
    assert hide(thing) is thing
    assert hide(None) is None
    assert type(hide("x")) is RedactedStr
    assert type(hide(b"x")) is RedactedBytes


# -- answers that quote the token ------------------------------------------------------------------


def each(character_to: Callable[[int], str]) -> str:
    return "".join(character_to(ord(character)) for character in TOKEN)


def in_json(text: str) -> str:
    return json.dumps(text)[1:-1].replace("/", "\\/")


def in_url(text: str) -> str:
    return urllib.parse.quote(text, safe="")


def in_html(text: str) -> str:
    return html.escape(text).replace("/", "&#x2F;").replace("=", "&#x3D;")


FORMS = {
    "plain": TOKEN,
    "json": in_json(TOKEN),
    "json in json": in_json(in_json(TOKEN)),
    "json in json in json": in_json(in_json(in_json(TOKEN))),
    "json in json in html": in_html(in_json(in_json(TOKEN))),
    "json in url": in_url(in_json(TOKEN)),
    "json by number": each("\\u{:04X}".format),
    "json by number in json": in_json(each("\\u{:04x}".format)),
    "url": in_url(TOKEN),
    "url, but not slashes": urllib.parse.quote(TOKEN),
    "url, lower case": in_url(TOKEN).replace("%2F", "%2f"),
    "url in url": in_url(in_url(TOKEN)),
    "url, each": each("%{:02x}".format),
    "url, by unicode": each("%u{:04x}".format),
    "html": in_html(TOKEN),
    "html in html": in_html(in_html(TOKEN)),
    "html in url": in_url(in_html(TOKEN)),
    "html in json": in_json(in_html(TOKEN)).replace("&", "\\u0026"),
    "html by number": each("&#{};".format),
    "html by padded number": each("&#{:04};".format),
    "html by hex": each("&#x{:x};".format),
    "html by HEX": each("&#X{:X};".format),
    "html by name": TOKEN.replace("/", "&sol;").replace("+", "&plus;").replace("_", "&LOWBAR;"),
    "bytes, each": each("\\x{:02x}".format),
    "upper case": TOKEN.upper(),
    "upper case in url": in_url(TOKEN.upper()),
    "octal": each("\\{:03o}".format),
    "braces": each("\\u{{{:x}}}".format),
    "padded braces": each("\\u{{{:06X}}}".format),
    "broken across lines": "\r\n  ".join(TOKEN[at : at + 10] for at in range(0, len(TOKEN), 10)),
    "hex": TOKEN.encode().hex(),
    "HEX": TOKEN.encode().hex().upper(),
    "base64": base64.b64encode(TOKEN.encode()).decode(),
    "base64 in json": in_json(base64.b64encode(TOKEN.encode()).decode()),
    "base64 in url": in_url(base64.b64encode(TOKEN.encode()).decode().rstrip("=")),
    "mixed": "sk&lowbar;live%2f4eC39\\u002eHq-Ly~jWDa&#43;rj\\u003d=",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("frame", ["{}", "Token <{}> unknown", "a\\n{} ", '{{"token": "{}"}}'])
def test_the_token_is_found_in_each_form(form: str, frame: str) -> None:
    assert redacted(frame.format(form), TOKEN) == frame.format(SHOWN)


@pytest.mark.parametrize("before", range(7))
@pytest.mark.parametrize("behind", range(4))
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes])
def test_the_token_is_found_in_base64_of_more_data_wherever_it_is_in_it(
    encode: Callable[[bytes], bytes], before: int, behind: int
) -> None:
    data = b"<user>:"[:before] + TOKEN.encode() + b"/end"[:behind]
    shown = redacted(f"Basic {encode(data).decode()} refused", TOKEN)
    # No more is left of it than the code of its neighbours, whose bits it shares.
    left = shown.replace("Basic ", "").replace(" refused", "").replace(SHOWN, "")
    assert SHOWN in shown
    assert len(left.strip()) <= (before * 8 // 6) + (behind * 8 // 6) + 3


def test_what_is_not_found_is_as_the_documents_say() -> None:
    reversed_token, part = TOKEN[::-1], TOKEN[:20]
    double = base64.b64encode(base64.b64encode(TOKEN.encode())).decode()
    for text in (reversed_token, part, double, base64.b64encode(in_url(TOKEN).encode()).decode()):
        assert redacted(text, TOKEN) == text
    assert redacted("YW55IG1hbg== 616e79", "any") == "YW55IG1hbg== 616e79"  # a short one


def test_each_place_is_found() -> None:
    text = f"100% {TOKEN}, \\u00e4 {in_url(TOKEN)} é {TOKEN}{TOKEN}."
    assert redacted(text, TOKEN) == f"100% {SHOWN}, \\u00e4 {SHOWN} é {SHOWN}{SHOWN}."


@pytest.mark.parametrize(
    "text", ["", "nothing &amp; %41 here", "sk_live%2F", "\\", "%", "&#x2", "\\u00", TOKEN[:-1]]
)
def test_a_text_without_the_token_keeps_its_escapes(text: str) -> None:
    assert redacted(text, TOKEN) == text


def test_no_escaped_control_character_becomes_a_real_one() -> None:
    text = f"{in_url(TOKEN)}%0A%1b&#10;&#x1B;\\u000a\\x0a"
    assert redacted(text, TOKEN) == SHOWN + text[len(in_url(TOKEN)) :]


@pytest.mark.parametrize("token", ["any%41more", "any&amp;more", "any\\more\\", "a\\u0041more"])
def test_a_token_that_looks_like_an_escape_is_found_as_it_is(token: str) -> None:
    assert redacted(f"no {token}.", token) == f"no {SHOWN}."
    assert redacted(f"no {in_url(token)}.", token) == f"no {SHOWN}."


def test_a_short_token_is_replaced_where_it_stands_alone() -> None:
    assert redacted("any of many, any! company", "any") == f"{SHOWN} of many, {SHOWN}! company"
    assert redacted("Token t", "t") == f"Token {SHOWN}"
    assert redacted("at%20t%20", "t") == f"at {SHOWN} "
    assert redacted("any, many", "many-8ch") == "any, many"
    assert redacted("xmany-8chx", "many-8ch") == f"x{SHOWN}x"


@pytest.mark.parametrize(
    "text",
    ["\\", "%", "&", "&#", "&#x2", "&#x0", "%41", "a", "&amp", "\\u00", "%25", "A", "a\n", "\n"],
)
@pytest.mark.parametrize("token", ["\\" * 40, "a" * 50, "%41" * 30, "&#" * 40, "a" * 5000, TOKEN])
def test_the_time_is_bounded_whatever_the_service_answers(text: str, token: str) -> None:
    answer = (text * 65536)[:65536]
    began = time.perf_counter()
    redacted(answer, token)
    assert time.perf_counter() - began < 2  # of some 0.05


@given(
    st.from_regex(r"[A-Za-z0-9._~+/-]{8,40}={0,2}", fullmatch=True),
    st.text(st.characters(min_codepoint=33, max_codepoint=126)),
)
def test_any_token_of_the_characters_of_rfc_6750_is_found(token: str, frame: str) -> None:
    for form in (
        token,
        in_json(token),
        in_html(token),
        in_url(token),
        "".join(f"&#{ord(character)};" for character in token),
        token.encode().hex(),
        base64.b64encode(token.encode()).decode(),
    ):
        shown = redacted(f"{frame} {form} {frame}", token)
        assert SHOWN in shown
        assert form not in shown.replace(SHOWN, "\0") or form in frame


@given(st.text())
def test_any_text_without_the_token_stays(text: str) -> None:
    assert redacted(text, "a token that is in none") == text
