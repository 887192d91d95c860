"""Django's commands, as developers and deployments run them: with and without a token."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import requests

from tests.support.django_site import MODULE, Served, Site
from tests.support.processes import run
from tests.support.programs import ROOT, free_port
from tests.support.server import Server

pytest.importorskip("django")
pytest.importorskip("rest_framework")

#: All that a project adds to its settings.
LINES = """
import os
INSTALLED_APPS += ["valued.integrations.django"]
MIDDLEWARE += ["valued.integrations.django.ScopeMiddleware"]
VALUED = {"TOKEN": os.environ.get("VALUED_TOKEN"), "PAGE_VIEWS": True}
"""

_VIEWS = """
from django.contrib import admin
from django.http import HttpResponse
from django.urls import path
import valued

def report(request):
    valued.action("report.generated", attributes={"expected": request.user.get_username()})
    return HttpResponse("<p>Here it is")

urlpatterns = [path("admin/", admin.site.urls), path("report", report)]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.make(tmp_path_factory.mktemp("site"))


def manage(site: Site, *arguments: str, **valued: object) -> subprocess.CompletedProcess[str]:
    static = {"DJANGO_STATIC_ROOT": str(site.database.with_name("static"))}
    environment = {**site.environment(**valued), **static}
    return run("-m", f"{MODULE}.manage", *arguments, cwd=ROOT, env=environment)


@pytest.mark.parametrize(
    "command", [("check",), ("migrate",), ("collectstatic", "--noinput", "--verbosity", "0")]
)
def test_command_needs_no_token_and_says_that_nothing_is_sent(
    command: tuple[str, ...], site: Site
) -> None:
    done = manage(site, *command)
    assert done.returncode == 0, done.stderr
    # `collectstatic` runs the checks of static files only.
    assert ("valued.W001" in done.stderr) == (command[0] != "collectstatic")
    assert "Traceback" not in done.stderr


def test_command_says_nothing_where_it_is_turned_off(site: Site) -> None:
    done = manage(site, "check", ENABLED=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_mistake_in_the_settings_stops_a_command_and_is_named(site: Site) -> None:
    done = manage(site, "check", TOKEN="any", MAX_QUEU=5)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        "VALUED: MAX_QUEU: no such setting; did you mean MAX_QUEUE?"
    )


def test_runserver_needs_no_token_and_warns_once(site: Site, tmp_path: Path) -> None:
    port = free_port()
    served = Served(
        tmp_path,
        site.environment(),
        *("-m", f"{MODULE}.manage", "runserver", f"127.0.0.1:{port}", "--noreload"),
        port=port,
    )
    try:
        for _ in range(2):
            answer = requests.get(
                f"http://127.0.0.1:{port}/sync/page",
                cookies={"sessionid": site.sessions[11]},
                timeout=30,
            )
            assert answer.status_code == 200
        served.end(signal.SIGINT)
    finally:
        served.kill()
    assert served.said().count("nothing is sent: there is no token") == 1
    assert "Traceback" not in served.said()


def test_fresh_project_with_a_login_needs_no_more_than_six_lines(
    server: Server, tmp_path: Path
) -> None:
    assert len(LINES.split("\n")) - 2 <= 6
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore:This process",
        "VALUED_TOKEN": "any",
        "VALUED_ENDPOINT": server.url,
        "DJANGO_SUPERUSER_PASSWORD": "secret",
    }
    environment.pop("DJANGO_SETTINGS_MODULE", None)

    def command(*arguments: str) -> None:
        done = run(*arguments, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr

    command("-m", "django", "startproject", "fresh", ".")
    with (tmp_path / "fresh" / "settings.py").open("a") as settings:
        settings.write(LINES)
    (tmp_path / "fresh" / "urls.py").write_text(_VIEWS)
    command("manage.py", "migrate", "--verbosity", "0")
    command("manage.py", "createsuperuser", "--noinput", "--username=a", "--email=a@example.com")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    served = Served(
        *(tmp_path, environment, str(tmp_path / "manage.py"), "runserver"),
        *(f"127.0.0.1:{port}", "--noreload"),
        port=port,
    )
    try:
        with requests.Session() as browser:
            browser.get(f"{url}/admin/login/", timeout=30)
            token = browser.cookies["csrftoken"]
            form = {"username": "a", "password": "secret", "csrfmiddlewaretoken": token}
            form["next"] = "/admin/"
            assert browser.post(f"{url}/admin/login/", form, timeout=30).status_code == 200
            assert browser.get(f"{url}/report?secret=1", timeout=30).status_code == 200
        served.end(signal.SIGINT)
    finally:
        served.kill()
    action, view = sorted(server.events, key=lambda event: event["category"])
    assert (action["user"], view["user"]) == ({"id": 1}, {"id": 1})
    assert (action["key"], action["attributes"]) == ("report.generated", {"expected": "a"})
    assert view["attributes"]["source"]["url"] == f"{url}/report"
