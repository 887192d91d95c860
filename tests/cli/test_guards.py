"""Who may read events and change controls: this machine, and no page of another site."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
from collections.abc import Callable

import pytest

from tests.support.cli import listening
from tests.support.listener import EVENT, Site
from valued._service.page import policy

PATHS = [
    ("GET", "/"), ("GET", "/stream"), ("GET", "/events"), ("DELETE", "/events"), ("GET", "/wait"),
    ("GET", "/control"), ("POST", "/control"), ("GET", "/lanes"),
]  # fmt: skip


def ask(site: Site, method: str, path: str, **headers: str) -> tuple[int, dict[str, str]]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    body = {"json": {}} if method == "POST" else {}
    answer = site.ask(path, method, headers=names, stream=True, **body)
    answer.close()
    return answer.status_code, dict(answer.headers)


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_page_of_another_site_gets_nothing(method: str, path: str, site: Site) -> None:
    host = f"127.0.0.1:{site.port}"
    for origin in ("https://evil.example", f"https://{host}", "http://127.0.0.1", "null", "",
                   f"http://localhost:{site.port}", f"http://{host}/"):  # fmt: skip
        status, headers = ask(site, method, path, Origin=origin)
        assert status == 403, origin
        assert not [name for name in headers if name.startswith("Access-Control")]
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    for fetched in ("cross-site", "same-site", "nonsense"):
        assert ask(site, method, path, Sec_Fetch_Site=fetched)[0] == 403, fetched


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_name_of_another_machine_gets_nothing(method: str, path: str, site: Site) -> None:
    for host in ("evil.example", f"evil.example:{site.port}", "192.168.0.7", "", "[::1"):
        assert ask(site, method, path, Host=host)[0] == 403, host
        assert ask(site, method, path, Host=host, Origin=f"http://{host}")[0] == 403, host


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_own_page_and_programs_get_all(method: str, path: str, site: Site) -> None:
    site.post()
    path += "?timeout=0" if path == "/wait" else ""
    for host in (f"127.0.0.1:{site.port}", "localhost:1", "[::1]:2", "app.localhost"):
        for headers in (
            {},
            {"Origin": f"http://{host}", "Sec_Fetch_Site": "same-origin"},
            {"Sec_Fetch_Site": "none"},
        ):
            if method == "DELETE":
                site.post()
            status, answered = ask(site, method, path, Host=host, **headers)
            assert status == (204 if method == "DELETE" else 200)
            assert answered["Cache-Control"] == "no-store"
            assert answered["X-Content-Type-Options"] == "nosniff"
            assert answered["Referrer-Policy"] == "no-referrer"
            assert answered["Cross-Origin-Resource-Policy"] == "same-origin"
            assert not [name for name in answered if name.startswith("Access-Control")]


def test_two_hosts_or_two_origins_are_none(site: Site) -> None:
    good = f"127.0.0.1:{site.port}"
    for lines in (
        f"Host: {good}\r\nHost: evil.example\r\n",
        f"Host: {good}\r\nHost: {good}\r\n",
        f"Host: {good}\r\nOrigin: http://{good}\r\nOrigin: https://evil.example\r\n",
    ):
        with socket.create_connection(("127.0.0.1", site.port), 10) as connection:
            connection.sendall(f"GET /events HTTP/1.1\r\n{lines}\r\n".encode())
            assert connection.recv(65536).startswith(b"HTTP/1.1 403 "), lines


def test_pages_of_other_sites_may_still_send_events(site: Site) -> None:
    assert site.post(Origin="https://shop.example", Sec_Fetch_Site="cross-site") == 204
    preflight = site.ask("/events", "OPTIONS", headers={"Origin": "https://shop.example"})
    assert preflight.status_code == 204
    assert preflight.headers["Access-Control-Allow-Origin"] == "*"
    assert preflight.headers["Access-Control-Allow-Methods"] == "POST, OPTIONS"


@pytest.mark.parametrize(
    "kind", [None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_form_of_a_page_changes_no_control(kind: str | None, site: Site) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    answer = site.ask("/control", "POST", data=b'{"paused": true}', headers=headers)
    assert answer.status_code == 415
    assert site.ask("/control").json()["paused"] is False


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("192.168.0.7:4567", 200),
        ("[fe80::1]:4567", 200),
        ("localhost", 200),
        ("{machine}", 200),
        ("web.internal", 200),
        ("evil.example", 403),
        ("192.168.0.7.evil.example", 403),
    ],
)
def test_where_others_can_reach_it_addresses_and_its_own_names_are_good(
    host: str, status: int, run_site: Callable[..., Site]
) -> None:
    site = run_site(host="0.0.0.0", names=["Web.internal"])
    host = host.format(machine=socket.gethostname())
    assert ask(site, "GET", "/events", Host=host)[0] == status
    assert site.post(Host="any.name") == 204


def test_page_runs_its_own_script_and_nothing_else(site: Site) -> None:
    answer = site.ask("/")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    rules = dict(
        rule.split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split("; ")
    )
    assert (rules["default-src"], rules["connect-src"]) == ("'none'", "'self'")
    assert (rules["base-uri"], rules["form-action"]) == ("'none'", "'none'")
    assert rules["frame-ancestors"] == "'none'"
    for name in ("script", "style"):
        [text] = re.findall(f"<{name}>(.*?)</{name}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[f"{name}-src"] == f"'sha256-{digest}'"
    # Neither would be run.
    assert not re.search(r"<[^>]*\s(?:on\w+|style)=", answer.text.split("<script>")[0])


def test_policy_knows_the_ends_of_lines_of_every_checkout() -> None:
    page = b"<style>a\nb</style><script>c\nd</script>"
    assert policy(page) == policy(page.replace(b"\n", b"\r\n"))


def test_listening_for_other_machines_is_said_loudly() -> None:
    for options, said in (
        (["--host", "0.0.0.0"], "read all events"),
        (["--host", "0.0.0.0", "--no-ui"], "can send"),
    ):
        with listening(*options) as listener:
            listener.end()
        assert listener.summary.startswith(
            "valued: WARNING: not only this machine can reach 0.0.0.0"
        )
        assert said in listener.summary
    with listening() as listener:
        listener.end()
    assert "WARNING" not in listener.summary


def test_event_is_never_taken_for_markup_by_type(site: Site) -> None:
    site.post({**EVENT, "key": "<script>alert(1)</script>"})
    for path in ("/events", "/lanes", "/control"):
        assert site.ask(path).headers["Content-Type"] == "application/json"
