"""Refused requests, and answers that fail because the page asked for it."""

from __future__ import annotations

import pytest

import valued
from tests.support.browser import Sender, Shown, event

pytest.importorskip("playwright")

from playwright.sync_api import expect


def test_refused_requests_are_shown_with_their_reasons(shown: Shown, sender: Sender) -> None:
    sender.send(event())
    assert sender.send(event(user_id=7)) == 400
    assert sender.send(b"{not json") == 400
    assert sender.send(event(), Authorization="a-secret-token") == 401
    shown.wait_for(count=4)
    shown.wait_for(400, "user_id: an event has no such field")
    shown.wait_for(401, "expected 'Bearer TOKEN'")
    expect(shown.count("refused")).to_have_text("3")
    shown.page.click("#kinds [data-kind=refused]")
    shown.wait_for(count=3)
    expect(shown.page.locator("#meaning")).to_contain_text("Refused")
    expect(shown.open_event("{not json")).to_contain_text("{not json")
    detail = shown.open_event("user_id")
    expect(detail).to_contain_text("Refused with 400")
    expect(detail).to_contain_text("user_id: an event has no such field")
    expect(shown.page.locator(".lane")).to_contain_text("3 refused")
    assert "a-secret-token" not in shown.page.content()


def test_answers_that_fail_on_request_are_retried_until_accepted(
    shown: Shown, client: valued.Client
) -> None:
    page = shown.page
    page.fill("#fail-status", "503")
    page.fill("#fail-count", "2")
    page.locator("#set-fail button").click()
    expect(page.locator("#alert")).to_contain_text("503 for the next 2 events")
    client.action("report.generated", {"user.id": 123})
    assert client.flush(20)
    shown.wait_for(count=3)
    shown.wait_for(503, "as you asked under Answers", count=2)
    accepted = shown.wait_for(204)
    expect(accepted.locator(".attempt")).to_have_text("3")
    expect(shown.count("simulated")).to_have_text("2")
    expect(shown.count("accepted")).to_have_text("1")
    expect(page.locator("#alert")).to_be_hidden()
    shown.open_event(204)
    expect(page.locator(".attempts li")).to_contain_text(["503", "503", "204"])


def test_what_the_client_does_next_depends_on_the_status(shown: Shown, sender: Sender) -> None:
    control = shown.endpoint.replace("events", "control")
    for status, next_step in ((401, "does not send it again"), (429, "tries again, for an hour")):
        shown.page.request.post(control, data={"fail": {"status": status, "events": 1}})
        assert sender.send(event()) == status
        shown.wait_for(status)
        detail = shown.open_event(status)
        expect(detail).to_contain_text(f"Simulated: answered {status}")
        expect(detail).to_contain_text(next_step)
    expect(shown.page.locator(".lane")).to_contain_text("2 simulated")


def test_a_failure_for_some_seconds_can_be_ended(shown: Shown, sender: Sender) -> None:
    page = shown.page
    page.fill("#fail-status", "500")
    page.fill("#fail-count", "300")
    page.select_option("#fail-unit", "seconds")
    page.locator("#set-fail button").click()
    expect(page.locator("#force li")).to_contain_text("500 for")
    assert sender.send(event()) == 500
    page.get_by_role("button", name="End all").click()
    expect(page.locator("#force")).to_contain_text("nothing")
    assert sender.send(event()) == 204


def test_dropped_connections_are_shown_and_the_event_arrives(
    shown: Shown, client: valued.Client
) -> None:
    page = shown.page
    page.fill("#drop", "1")
    page.locator("#set-drop button").click()
    expect(page.locator("#force li")).to_contain_text("next 1 connection dropped")
    client.action("report.generated", {"user.id": 123})
    assert client.flush(20)
    shown.wait_for("cut", "connection dropped on purpose")
    expect(shown.wait_for(204).locator(".attempt")).to_have_text("2")


def test_answers_are_held_until_they_are_resumed(shown: Shown, client: valued.Client) -> None:
    page = shown.page
    page.click("#hold")
    expect(page.locator("#hold")).to_have_text("Resume")
    client.action("report.generated", {"user.id": 123})
    assert not client.flush(0.5)
    page.click("#hold")
    assert client.flush(20)
    shown.wait_for(204)


def test_a_delay_is_in_force_until_it_is_ended(shown: Shown, client: valued.Client) -> None:
    page = shown.page
    page.fill("#delay", "0.3")
    page.locator("#set-delay button").click()
    expect(page.locator("#force li")).to_contain_text("0.3 s late")
    client.action("report.generated", {"user.id": 123})
    assert not client.flush(0.1)
    page.get_by_role("button", name="End: ").click()
    expect(page.locator("#alert")).to_be_hidden()
    assert client.flush(20)


def test_what_the_server_refuses_to_do_is_said(shown: Shown) -> None:
    shown.page.route("**/control", lambda route: route.abort())
    shown.page.locator("#set-delay button").click()
    expect(shown.page.locator("#alert")).to_contain_text("That did not work")
    shown.troubles.clear()  # the browser writes of the request that failed
