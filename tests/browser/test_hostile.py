"""Whatever is in a request is text: no markup, no script, and nothing that can't be seen."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support.browser import Sender, Shown, event

pytest.importorskip("playwright")

from playwright.sync_api import expect

MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script><svg/onload=alert(3)>'\"`${alert(4)}"
TURNED = "a\u202eb\u2066c\x00d\x1b[31me\u200bf\u2028g"
ESCAPED = "a\\u202eb\\u2066c\\u0000d\\u001b[31me\\u200bf\\u2028g"

ELEMENTS = "document.querySelectorAll('img, script, svg, iframe, object').length"


def everywhere(words: str) -> dict[str, Any]:
    """An event with *words* in every field."""
    return event(
        key=words,
        user={"id": words, words: words},
        customer={"id": words},
        attributes={words: words, "list": [words]},
    )


def test_markup_is_shown_as_text(shown: Shown, sender: Sender) -> None:
    before = shown.page.evaluate(ELEMENTS)
    headers = {"Idempotency_Key": MARKUP, "User_Agent": MARKUP}
    for _ in range(2):  # the second is a repeat
        assert sender.send(everywhere(MARKUP), **headers) == 204
    assert sender.send(event(category=MARKUP)) == 400
    assert sender.send(MARKUP.encode()) == 400
    rows = shown.wait_for(count=4)
    expect(rows.filter(has_text="<img src=x")).to_have_count(4)
    for number in range(4):
        rows.nth(number).click(position={"x": 8, "y": 8})
        expect(shown.page.locator("#detail-body")).to_contain_text("<img src=x onerror=alert(1)>")
    expect(shown.page.locator("#keys")).to_contain_text("<img src=x")
    assert shown.page.evaluate(ELEMENTS) == before


def test_invisible_characters_and_those_that_turn_the_line_are_shown_as_escapes(
    shown: Shown, sender: Sender
) -> None:
    assert sender.send(everywhere(TURNED)) == 204
    row = shown.wait_for()
    expect(row.locator(".key")).to_contain_text(ESCAPED)
    expect(row.locator(".user")).to_contain_text(ESCAPED)
    detail = shown.open_event()
    expect(detail.locator("#detail-title")).to_contain_text(ESCAPED)
    expect(detail.locator("#json")).to_contain_text(f'"id": "{ESCAPED}"')
    text = shown.page.locator("body").inner_text()
    assert not set(text) & set("\u202e\u2066\x00\x1b\u200b\u2028")


def test_strings_of_a_megabyte_are_cut_in_rows_and_in_the_open_event(
    shown: Shown, sender: Sender
) -> None:
    sent: list[tuple[dict[str, Any], str]] = [
        ({"long": "x" * 1_000_000}, "more characters"),
        ({"\u202e" * 150_000: 1}, "more characters"),
        ({str(number): "y" * 10 for number in range(30_000)}, "the rest is too long"),
        ({str(number): "\x00" * 4_000 for number in range(40)}, "the rest is too long"),
    ]
    for attributes, _ in sent:
        assert sender.send(event(key="z" * 5_000, attributes=attributes)) == 204
    rows = shown.wait_for(count=len(sent))
    for number, (_, words) in enumerate(reversed(sent)):
        rows.nth(number).click(position={"x": 8, "y": 8})
        expect(shown.page.locator("#json")).to_contain_text(words)
    assert shown.page.evaluate("document.body.textContent.length") < 400_000
    assert shown.page.evaluate("document.querySelectorAll('*').length") < 20_000


def test_names_that_javascript_knows_are_names_like_others(shown: Shown, sender: Sender) -> None:
    names = ["__proto__", "constructor", "toString", "hasOwnProperty", "length"]
    sent = event(key="__proto__", attributes={name: {name: 1} for name in names})
    assert sender.send(sent) == 204
    assert sender.send(event(user={"id": "constructor"})) == 204
    shown.wait_for(count=2)
    detail = shown.open_event("__proto__")
    for name in names:
        expect(detail).to_contain_text(f'"{name}": {{')
    expect(shown.page.locator("#keys tr")).to_have_count(2)


def test_paused_page_holds_no_more_bytes_than_it_keeps(shown: Shown, sender: Sender) -> None:
    shown.page.keyboard.press("p")
    expect(shown.page.locator("#state")).to_contain_text("paused")
    large = event(attributes={"long": "x" * 1_000_000})
    for _ in range(60):
        assert sender.send(large) == 204
    assert sender.send(event(key="the.last")) == 204
    expect(shown.page.locator("#state")).to_contain_text(re.compile(r" (49|50|51) new"))
    shown.page.keyboard.press("p")
    expect(shown.rows("the.last")).to_have_count(1)


def test_event_nested_as_deeply_as_python_reads_it_leaves_the_page_at_work(
    shown: Shown, sender: Sender
) -> None:
    for depth in (900, 970, 3_000, 9_900):
        body = '{"key": 1.0, "user": %s}' % ("[" * depth + "]" * depth)
        assert sender.send(body.encode()) == 400
    assert sender.send(event(key="the.last")) == 204
    rows = shown.wait_for(count=5)
    shown.page.locator("#text").fill("the.last")
    expect(rows).to_have_count(1)


def test_person_of_ten_thousands_of_fields_holds_up_no_other_row(
    shown: Shown, sender: Sender
) -> None:
    many = {f"f{number}": 1 for number in range(30_000)}
    for _ in range(8):
        assert sender.send(event(category="sync", key=None, user={"id": many, **many})) == 400
    assert sender.send(event(key="the.last")) == 204
    shown.wait_for(count=9)
    took = shown.page.evaluate(
        "() => { const began = performance.now(); $('key').value = 'f';"
        " set('key', 'f'); return performance.now() - began; }"
    )
    assert took < 1000
