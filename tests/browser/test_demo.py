"""``valued demo --open``, whose page is the picture of the README."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.browser import picture

pytest.importorskip("playwright")

from playwright.sync_api import expect

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_the_demo_shows_eight_processes_and_each_event_once(browser: Browser) -> None:
    with picture.demonstrated(browser) as page:
        for kind, count in (("accepted", "1,100"), ("repeat", "0"), ("refused", "0")):
            expect(page.locator(f"#kinds [data-kind={kind}] b")).to_have_text(count)
        expect(page.locator(".lane")).to_have_count(8)
        parent = page.locator(".lane").first.locator(".pid").inner_text().removeprefix("pid ")
        children = page.locator(".lane", has_text=f"child of {parent}")
        expect(children).to_have_count(7)
        assert len(picture.smaller(browser, page.screenshot())) < 200_000
