"""The tests of the site. They need neither a token nor a server::

python examples/django_project/manage.py test reports
"""

from contextlib import ExitStack

from django.contrib.auth import get_user_model
from django.test import TestCase

import valued.testing


class ReportsTest(TestCase):
    def setUp(self) -> None:
        stack = ExitStack()  # from Python 3.11 on, `self.enterContext` does it
        self.addCleanup(stack.close)
        self.events = stack.enter_context(valued.testing.recorded())
        self.user = get_user_model().objects.create_user("ada", password="secret")  # noqa: S106

    def test_a_page_is_recorded_for_who_is_signed_in(self) -> None:
        self.client.force_login(self.user)
        assert self.client.get("/").status_code == 200
        self.events.one("http://testserver/", user={"id": self.user.pk})

    def test_a_report_is_recorded_when_it_is_asked_for_and_when_it_is_there(self) -> None:
        self.client.force_login(self.user)
        self.client.post("/reports", {"title": "Sales"})
        assert self.events.actions == ["report.requested", "report.generated"]
        self.events.one("report.generated", user={"id": self.user.pk}, attributes={"pages": 5})

    def test_a_visitor_is_sent_to_the_login_and_not_recorded(self) -> None:
        assert self.client.get("/").status_code == 302
        self.events.none()
