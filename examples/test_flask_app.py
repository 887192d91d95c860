"""The tests of `flask_app`. They need ``pytest``, and no server::

$ python -m pytest examples/test_flask_app.py
"""

from __future__ import annotations

from flask_app import app

from valued.testing import Events


def test_a_page_is_recorded_for_who_is_signed_in(valued_events: Events) -> None:
    browser = app.test_client()
    assert browser.get("/reports/12?page=2", headers={"X-User-Id": "7"}).status_code == 200
    assert valued_events.page_views == ["http://localhost/reports/12"]
    valued_events.one("http://localhost/reports/12", user={"id": "7"})


def test_a_report_is_recorded_with_its_format(valued_events: Events) -> None:
    headers = {"X-User-Id": "7", "X-Request-Id": "a1"}
    assert app.test_client().post("/reports", headers=headers).status_code == 201
    valued_events.one(
        "report.generated", {"user.id": "7", "attributes": {"format": "pdf", "id": "a1"}}
    )


def test_a_visitor_is_answered_and_not_recorded(valued_events: Events) -> None:
    browser = app.test_client()
    assert browser.get("/reports/12").status_code == 200
    assert browser.post("/reports").status_code == 201
    valued_events.none()
