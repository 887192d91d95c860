"""The tests of `fastapi_app`. They need ``pytest`` and ``httpx``, and no server::

$ python -m pytest examples/test_fastapi_app.py
"""

from __future__ import annotations

from fastapi.testclient import TestClient
from fastapi_app import app

from valued.testing import Events


def test_a_page_is_recorded_for_who_is_signed_in(valued_events: Events) -> None:
    browser = TestClient(app)
    assert browser.get("/reports/12", headers={"X-User-Id": "7"}).status_code == 200
    valued_events.one("http://testserver/reports/12", user={"id": "7"})


def test_what_a_task_does_is_recorded_for_who_started_it(valued_events: Events) -> None:
    browser = TestClient(app)
    for user in ("7", "8"):
        assert browser.post("/reports/12", headers={"X-User-Id": user}).is_success
    for user in ("7", "8"):
        valued_events.one("report.rendered", {"user.id": user}, attributes={"report": 12})


def test_a_visitor_is_answered_and_not_recorded(valued_events: Events) -> None:
    assert TestClient(app).get("/reports/12").status_code == 200
    valued_events.none()
