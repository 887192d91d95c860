"""The page on small screens, and for assistive technology."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.browser import Sender, Shown, event

pytest.importorskip("playwright")

from playwright.sync_api import expect

VIEWS = ("events", "processes", "answers", "keys")


def fill(shown: Shown, sender: Sender) -> None:
    """Some of everything: a repeat, something refused, a failure in force."""
    for number in range(30):
        sender.send(event(key=f"number.{number}.{'long' * 20}", customer={"id": "c" * 60}))
    for _ in range(2):
        sender.send(event(key="sent.twice"), Idempotency_Key="one-key")
    sender.send(event(user_id=7))
    control = shown.endpoint.replace("events", "control")
    shown.page.request.post(control, data={"fail": {"status": 503, "events": 1}})
    sender.send(event())
    shown.page.request.post(control, data={"fail": {"status": 503, "events": 5}})
    shown.wait_for(503)


@pytest.mark.parametrize("size", [{"viewport": {"width": 400, "height": 800}}], ids=["400 px"])
def test_a_small_screen_needs_no_horizontal_scrolling(shown: Shown, sender: Sender) -> None:
    page = shown.page
    width = "document.documentElement.scrollWidth"
    assert page.evaluate(width) == 400
    fill(shown, sender)
    for view in VIEWS:
        page.click(f".views [data-view={view}]")
        assert page.evaluate(width) == 400
        wider = """[...document.querySelectorAll('main button, main input, header button')]
            .filter(one => one.checkVisibility() && one.getBoundingClientRect().right > 400)
            .map(one => one.outerHTML)"""
        assert page.evaluate(wider) == []
    page.click(".views [data-view=events]")
    shown.open_event("sent.twice")
    expect(page.locator("#detail")).to_be_visible()
    assert page.evaluate(width) == 400


@pytest.mark.parametrize("width", [400, 760, 900])
def test_a_reason_can_be_read_on_a_small_screen(shown: Shown, sender: Sender, width: int) -> None:
    shown.page.set_viewport_size({"width": width, "height": 800})
    sender.send(event(user_id=7))
    reason = shown.wait_for(400).locator(".why")
    expect(reason).to_contain_text("user_id: an event has no such field; write")
    cut = "one => one.scrollWidth > one.clientWidth || one.scrollHeight > one.clientHeight"
    assert not reason.evaluate(cut)
    bottom = "one => one.getBoundingClientRect().bottom"
    assert reason.evaluate(bottom) <= shown.rows(400).evaluate(bottom)
    expect(shown.page.locator("#endpoint")).to_be_visible()


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1600, "dark")])
def test_axe_finds_no_serious_fault(
    browser: Any, shown: Shown, sender: Sender, scheme: Any, width: int
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = shown.page
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size({"width": width, "height": 900})

    def check(what: str) -> None:
        found = axe.run(page).response["violations"]
        serious = [
            (what, one["id"], [node["html"][:200] for node in one["nodes"]])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert serious == []

    check("empty")
    fill(shown, sender)
    if width == 400:
        for view in VIEWS:
            page.click(f".views [data-view={view}]")
            check(view)
        page.click(".views [data-view=events]")
    else:
        check("filled")
    shown.open_event("sent.twice")
    check("open event")
    page.click("#help")
    check("help")


def test_the_colours_can_be_chosen_and_are_remembered(shown: Shown) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    light = shown.page.evaluate(colour)
    shown.page.click("#theme")
    shown.page.click("#theme")
    expect(shown.page.locator("#theme")).to_have_text("Theme: dark")
    dark = shown.page.evaluate(colour)
    assert dark != light
    shown.page.reload()
    assert shown.page.evaluate(colour) == dark


def test_important_changes_are_announced(shown: Shown, sender: Sender) -> None:
    said = shown.page.locator("#said")
    expect(said).to_have_text("Connected.")
    sender.send(event(user_id=7))
    expect(said).to_contain_text("Event refused with 400: user_id")
