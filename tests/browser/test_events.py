"""The list of events, its filters and keys, and an event that is opened."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import Any

import pytest

import valued
from tests.support.browser import Sender, Shown, event
from tests.support.cli import Listening

pytest.importorskip("playwright")

from playwright.sync_api import expect

#: Each as a call records it, with values that another language writes in another way.
RECORDED = {
    "action": event(
        customer={"id": "usr_'\"\\9f"},
        attributes={
            "text": 'Zoë\'s "x"\n\t\\ \u202e\x00 \N{GRINNING FACE} $HOME `id` \N{SNOWMAN}',
            "none": None,
            "flags": [True, False],
            "numbers": [12345678901234567890, 1.0, -0.5, 1e300, 0],
            "nested": {"empty": {}, "list": [[], {"a": "b" * 100}]},
        },
    ),
    "pageview": {
        "category": "pageview",
        "user": {"id": 123},
        "attributes": {"source": {"url": "/reports/12?a=b&c='d'"}, "more": 1},
        "occured_at": "2026-11-23T10:00:00+01:00",
    },
    "sync": {
        "category": "sync",
        "user": {"id": 123, "name": "Josh", "location": {"country": "NZ"}},
        "occured_at": "2026-11-23T10:00:00+01:00",
    },
    "config": {
        "category": "config",
        "data": {"goals": [{"name": "First", "action_key": "a.b", "min_count": 5}], "signals": []},
        "occured_at": "2026-11-23T10:00:00+01:00",
    },
}


def copied(shown: Shown, button: str) -> str:
    shown.page.click(button)
    expect(shown.page.locator(button)).to_have_text("Copied")
    text: str = shown.page.evaluate("navigator.clipboard.readText()")
    return text


def received(shown: Shown, server: Listening) -> list[dict[str, Any]]:
    answer = shown.page.request.get(server.url)
    return [record["event"] for record in answer.json()["events"]]


def test_an_event_appears_with_who_and_what_it_is_about(
    shown: Shown, client: valued.Client
) -> None:
    client.action("report.generated", {"user.id": 123, "customer.id": 12})
    row = shown.wait_for(204, "report.generated")
    for words in ("action", "123", "12", str(os.getpid())):
        expect(row).to_contain_text(words)
    expect(shown.count("accepted")).to_have_text("1")
    expect(shown.page.locator("#keys tr")).to_contain_text(["report.generated"])


def test_before_the_first_event_the_page_says_what_to_type(shown: Shown, server: Listening) -> None:
    for place in ("#try-shell", "#try-python", "#try-demo"):
        expect(shown.page.locator(place)).to_be_visible()
    setting = shown.page.locator("#try-shell").inner_text().removeprefix("export ").split()
    line = shown.page.locator("#try-python").inner_text()
    variables = dict(each.split("=", 1) for each in setting)
    assert variables["VALUED_ENDPOINT"] == server.url
    program = line.removeprefix("python -c '").removesuffix("'")
    subprocess.run([sys.executable, "-c", program], env={**os.environ, **variables}, check=True)
    shown.wait_for("report.generated")


def test_the_newest_event_is_above(shown: Shown, sender: Sender) -> None:
    for number in range(3):
        sender.send(event(key=f"number.{number}"))
    shown.wait_for("number", count=3)
    tops = [shown.rows(f"number.{number}").bounding_box() for number in range(3)]
    assert all(tops)
    heights = [top["y"] for top in tops if top]
    assert heights == sorted(heights, reverse=True)


def test_a_reload_shows_all_that_is_kept_and_after_clearing_nothing(
    shown: Shown, sender: Sender
) -> None:
    for number in range(3):
        sender.send(event(key=f"number.{number}"))
    shown.wait_for("number", count=3)
    shown.page.reload()
    shown.wait_for("number", count=3)
    expect(shown.count("")).to_have_text("3")
    shown.page.keyboard.press("c")
    shown.wait_for(count=0)
    expect(shown.count("")).to_have_text("0")
    shown.page.reload()
    expect(shown.page.locator("#state")).to_have_text("live")
    sender.send(event(key="later.one"))
    shown.wait_for("later.one")


def test_filters_leave_what_was_asked_for(shown: Shown, sender: Sender) -> None:
    other = Sender(shown.endpoint)
    sender.send(event(key="invoice.sent", attributes={"note": "Find Me"}))
    sender.send(event(key="invoice.paid", user={"id": 7}))
    other.send(RECORDED["sync"])
    other.close()
    shown.wait_for(count=3)
    page = shown.page
    for place, value, found in (
        ("#text", "find ME", "invoice.sent"),
        ("#key", "PAID", "invoice.paid"),
        ("#user", "7", "invoice.paid"),
    ):
        page.fill(place, value)
        shown.wait_for()
        expect(shown.rows()).to_contain_text([found])
        page.click("#unfilter")
        shown.wait_for(count=3)
    page.select_option("#category", "sync")
    expect(shown.wait_for()).to_contain_text("sync")
    expect(shown.wait_for().locator(".key")).to_contain_text("user 123: name, location")
    page.fill("#text", "nothing has this")
    expect(page.get_by_text("Nothing matches")).to_be_visible()
    page.click("#reset-none")
    shown.wait_for(count=3)
    page.get_by_role("button", name="invoice.paid").click()
    expect(shown.wait_for()).to_contain_text("invoice.paid")


def test_everything_is_reached_by_the_keyboard(shown: Shown, sender: Sender) -> None:
    for number in range(3):
        sender.send(event(key=f"number.{number}"))
    shown.wait_for("number", count=3)
    page, keyboard = shown.page, shown.page.keyboard
    chosen = page.locator(".row[aria-selected=true]:not([hidden])")
    for key, words in (("j", "number.2"), ("j", "number.1"), ("j", "number.0"), ("k", "number.1")):
        keyboard.press(key)
        expect(chosen).to_contain_text(words)
    keyboard.press("Enter")
    expect(page.locator("#detail-title")).to_contain_text("number.1")
    keyboard.press("j")
    expect(page.locator("#detail-title")).to_contain_text("number.0")
    keyboard.press("Escape")
    expect(page.locator("#detail")).to_be_hidden()
    keyboard.press("/")
    keyboard.type("number.2")
    shown.wait_for()
    keyboard.press("Escape")  # leaves the field
    keyboard.press("?")
    expect(page.locator("#help-box")).to_be_visible()
    keyboard.press("Escape")
    expect(page.locator("#help-box")).to_be_hidden()
    keyboard.press("p")
    expect(page.locator("#state")).to_contain_text("paused")
    keyboard.press("p")
    keyboard.press("Control+c")  # copies, as everywhere
    expect(shown.count("")).to_have_text("3")
    keyboard.press("c")
    expect(shown.count("")).to_have_text("0")


def test_keys_without_ctrl_can_be_turned_off(shown: Shown, sender: Sender) -> None:
    sender.send(event())
    shown.wait_for()
    shown.page.keyboard.press("?")
    shown.page.uncheck("#shortcuts")
    shown.page.keyboard.press("Escape")
    shown.page.keyboard.press("c")
    shown.page.keyboard.press("p")
    expect(shown.page.locator("#state")).to_have_text("live")
    sender.send(event())
    shown.wait_for(count=2)


def test_a_pause_freezes_the_view_and_loses_nothing(shown: Shown, sender: Sender) -> None:
    sender.send(event(key="before.it"))
    shown.wait_for()
    shown.page.keyboard.press("p")
    for number in range(5):
        sender.send(event(key=f"number.{number}"))
    expect(shown.page.locator("#state")).to_contain_text("5 new")
    shown.wait_for(count=1)
    expect(shown.count("")).to_have_text("1")
    shown.page.keyboard.press("p")
    shown.wait_for(count=6)
    expect(shown.count("")).to_have_text("6")


def test_an_open_event_shows_its_json_and_headers_but_no_token(
    shown: Shown, sender: Sender
) -> None:
    sender.send(RECORDED["action"], Idempotency_Key="key-1", X_Other="yes")
    shown.wait_for()
    detail = shown.open_event("report.generated")
    for words in ('"key": "report.generated"', "12345678901234567890", "1.0", "key-1", "X-Other"):
        expect(detail).to_contain_text(words)
    expect(detail).to_contain_text("\\u202e\\u0000")
    assert "a-secret-token" not in shown.page.content()
    assert "•••" in detail.inner_text()


def test_the_copied_python_calls_record_equal_events(
    shown: Shown, server: Listening, sender: Sender
) -> None:
    variables = {**os.environ, "VALUED_TOKEN": "token"}
    for category, recorded in RECORDED.items():
        assert sender.send(recorded) == 204
        shown.wait_for(category)
        shown.open_event(category)
        program = copied(shown, "#copy-python")
        subprocess.run([sys.executable, "-c", program], env=variables, check=True)
        shown.wait_for(category, count=2)
        assert received(shown, server)[-2:] == [recorded] * 2


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl on PATH")
def test_the_copied_curl_commands_send_equal_events_with_the_token_of_the_shell(
    shown: Shown, server: Listening, sender: Sender
) -> None:
    variables = {**os.environ, "VALUED_TOKEN": "token"}
    for category, recorded in RECORDED.items():
        assert sender.send(recorded) == 204
        shown.wait_for(category)
        shown.open_event(category)
        command = copied(shown, "#copy-curl")
        assert "$VALUED_TOKEN" in command
        assert "secret" not in command
        subprocess.run(["sh", "-c", command], env=variables, check=True)
        shown.wait_for(category, count=2)
        assert received(shown, server)[-2:] == [recorded] * 2


def test_only_the_rows_that_can_be_seen_exist_and_a_reader_keeps_the_place(
    shown: Shown, sender: Sender
) -> None:
    for number in range(600):
        sender.send(event(key=f"number.{number}"))
    expect(shown.count("")).to_have_text("600")
    assert shown.page.locator(".row").count() < 100
    shown.page.locator("#rows").evaluate("element => { element.scrollTop = 6000 }")
    watched = shown.rows("number.399")
    expect(watched).to_have_count(1)
    before = watched.bounding_box()
    for number in range(600, 700):
        sender.send(event(key=f"number.{number}"))
    expect(shown.page.locator("#newer")).to_contain_text("100 new")
    assert watched.bounding_box() == before
    shown.page.click("#newer")
    shown.wait_for("number.699")


def test_a_row_that_is_pressed_is_the_one_that_opens_whatever_arrives_meanwhile(
    shown: Shown, sender: Sender
) -> None:
    sender.send(event(key="pressed"))
    box = shown.wait_for("pressed").bounding_box()
    assert box is not None
    shown.page.mouse.move(box["x"] + 8, box["y"] + 8)
    shown.page.mouse.down()
    for number in range(3):
        sender.send(event(key=f"later.{number}"))
    expect(shown.count("")).to_have_text("4")
    shown.page.mouse.up()
    expect(shown.page.locator("#detail-title")).to_contain_text("pressed")
    expect(shown.rows("later")).to_have_count(3)
