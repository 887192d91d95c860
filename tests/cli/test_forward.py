"""What passes through `valued listen` and stays: --forward-to, --events, --open."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import valued
from tests.support.cli import COMMAND, listening
from tests.support.listener import EVENT, TOKEN, Site
from tests.support.processes import until
from tests.support.server import Reply, Server
from valued.testing import Service


def test_event_is_passed_on_as_it_came_with_its_token(run_site: Callable[..., Site]) -> None:
    with Service() as other:
        site = run_site(forward_to=other.url)
        body = json.dumps(EVENT, indent=3).encode()
        assert site.post(body, key="k-1", X_Other="stays") == 204
        [request] = other.requests
        assert request.body == body
        assert request.headers["Authorization"] == f"Bearer {TOKEN}"
        assert request.headers["Idempotency-Key"] == "k-1"
        assert "X-Other" not in request.headers
        [record] = site.events()
        assert (record["status"], record["forwarded"]) == (204, 204)
        follower = site.follow()
        follower.until(1)
        assert follower.hello["forward_to"] == other.url
        assert TOKEN not in repr(follower.records) + repr(follower.hello)
        assert len(site.received) == 1


def test_answer_is_that_of_the_other_endpoint(run_site: Callable[..., Site]) -> None:
    with Service() as other:
        site = run_site(forward_to=other.url)
        other.fail(429, times=1)
        answer = site.ask("/events", "POST", json=EVENT, headers={"Authorization": "Bearer t"})
        assert answer.status_code == 429
        assert answer.json() == {"errors": ["as requested by the test"]}
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        [record] = site.events("all=1")
        assert (record["status"], record["forwarded"]) == (429, 429)
        assert record["reasons"] == [f"as {other.url} answered"]
        assert (site.received, len(other.events)) == ([], 0)
        assert site.post() == 204


def test_other_success_is_passed_back(run_site: Callable[..., Site]) -> None:
    with contextlib.closing(Server(lambda _request: Reply(202))) as server:
        site = run_site(forward_to=server.url)
        assert site.post() == 202
    [record] = site.events()
    assert (record["status"], record["forwarded"]) == (202, 202)


def test_invalid_and_failed_events_are_not_passed_on(run_site: Callable[..., Site]) -> None:
    with Service() as other:
        site = run_site(forward_to=other.url)
        site.control(fail={"status": 503, "events": 1}, drop=1)
        assert [site.post(b"{}"), site.post(), site.post()] == [400, 0, 503]
        assert other.requests == []
        assert [record["forwarded"] for record in site.events("all=1")] == [None] * 3


def test_endpoint_that_cannot_be_reached_is_502(run_site: Callable[..., Site]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/events"
        site = run_site(forward_to=url)
        assert site.post() == 502
    [record] = site.events("all=1")
    assert record["reasons"] == [f"{url} can't be reached"]
    assert record["forwarded"] is None


def test_passwords_of_this_machine_are_not_sent(
    run_site: Callable[..., Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n", "utf-8")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with Service() as other:
        assert run_site(forward_to=other.url).post() == 204
        assert other.requests[0].headers["Authorization"] == f"Bearer {TOKEN}"


def test_client_is_served_through_two_processes() -> None:
    with listening() as last, listening("--forward-to", last.url) as first:
        with valued.Client(TOKEN, first.url) as client:
            for number in range(20):
                client.action("a.b", {"user.id": number})
            assert client.flush(20)
        for lines in (first.end(), last.end()):
            assert sorted(line["event"]["user"]["id"] for line in lines) == list(range(20))
            assert TOKEN not in json.dumps(lines)
    assert TOKEN not in first.summary + last.summary


def test_file_gets_the_lines_of_json_after_what_it_has(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    printed = []
    for _ in range(2):
        with listening("--events", str(file)) as listener:
            with valued.Client(TOKEN, listener.url) as client:
                client.action("a.ü", {"user.id": 1})
            assert len(file.read_text("ascii").splitlines()) == len(printed) + 1
            printed += listener.end()
    lines = [json.loads(line) for line in file.read_text("ascii").splitlines()]
    assert lines == printed
    assert lines[0]["event"]["key"] == "a.ü"
    assert TOKEN not in file.read_text("ascii")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    ended = subprocess.run(
        [*COMMAND, "listen", "--port", "0", "--events", str(tmp_path)],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr == f"valued: can't write to {tmp_path}: Is a directory\n"


@pytest.mark.parametrize(
    "url", ["", "events", "ftp://a/b", "http://", "http://u:p@a/", "http://[a"]
)
def test_url_that_is_none_is_refused(url: str) -> None:
    ended = subprocess.run(
        [*COMMAND, "listen", "--forward-to", url],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert "expected a URL such as https://example.com/events" in ended.stderr


@pytest.fixture
def browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which a browser writes what it was told to show."""
    shown = tmp_path / "shown"
    script = tmp_path / "browser"
    script.write_text(f'#!/bin/sh\necho "$1" >> {shown}\n', "utf-8")
    script.chmod(0o700)
    monkeypatch.setenv("BROWSER", f"{script} %s")
    return shown


def test_browser_is_shown_the_page(browser: Path) -> None:
    with listening("--open") as listener:
        until(lambda: browser.exists() and browser.read_text("utf-8").endswith("\n"))
        assert browser.read_text("utf-8") == f"{listener.page}\n"
        listener.end()


def test_without_a_browser_the_page_is_named(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path), "BROWSER": "", "DISPLAY": ""}
    environment.pop("WAYLAND_DISPLAY", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "valued", "listen", "--port", "0", "--open"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    said = process.stderr.readline()
    process.terminate()
    process.communicate(timeout=10)
    assert said.startswith("valued: no browser can be opened: open http://127.0.0.1:")


def test_browser_in_the_terminal_is_not_started(browser: Path, tmp_path: Path) -> None:
    (tmp_path / "browser").rename(tmp_path / "w3m")
    environment = {**os.environ, "BROWSER": f"{tmp_path / 'w3m'} %s"}
    process = subprocess.Popen(
        [*COMMAND, "listen", "--port", "0", "--open"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    said = process.stderr.readline()
    process.terminate()
    process.communicate(timeout=10)
    assert said.startswith("valued: no browser can be opened: open http://127.0.0.1:")
    assert not browser.exists()


def test_browser_writes_into_no_stream_of_the_demo(browser: Path, tmp_path: Path) -> None:
    script = tmp_path / "browser"
    script.write_text(f"#!/bin/sh\nprintf 'x\\377'; printf 'x\\377' >&2; : > {browser}\n", "utf-8")
    process = subprocess.Popen(
        [*COMMAND, "demo", "--open", "--events", "5"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    shown = b""
    while b"The page stays at " not in shown:
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        shown += line
    until(browser.exists)
    process.send_signal(signal.SIGINT)
    rest, said = process.communicate(timeout=20)
    assert (process.returncode, rest, said) == (0, b"", b"")
    assert b"Each event arrived once, from " in shown
    assert b"\xff" not in shown


def test_demo_stays_on_its_page_until_it_is_interrupted(browser: Path) -> None:
    import requests

    process = subprocess.Popen(
        [*COMMAND, "demo", "--open", "--events", "5"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("The page stays at "):
            break
    assert lines[-2].startswith("Each event arrived once, from ")
    page = lines[-1].split()[4]
    until(lambda: browser.exists() and browser.read_text("utf-8") == f"{page}\n")
    answer = requests.get(f"{page}events", timeout=10).json()
    assert len(answer["events"]) == 55
    lanes = requests.get(f"{page}lanes", timeout=10).json()
    assert len(lanes) == 8
    assert sum(lane["repeats"] for lane in lanes) == 0
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (0, "")
    with pytest.raises(requests.ConnectionError):
        requests.get(page, timeout=10)


def test_forwarding_to_itself_is_told_at_once(run_site: Callable[..., Site]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    site = run_site(port=port, forward_to=f"http://localhost:{port}/events")
    assert site.post() == 508
    records = site.events("all=1")
    assert len(records) == 2
    assert records[0]["reasons"] == [f"http://localhost:{port}/events leads back to this server"]


@pytest.mark.parametrize("user", ["someone", ""])
def test_password_in_the_url_is_refused_and_not_repeated(user: str) -> None:
    url = f"http://{user}:a-secret-word@127.0.0.1:9/events"
    ran = subprocess.run(
        [*COMMAND, "listen", "--port", "0", "--forward-to", url],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert ran.returncode == 2
    assert "without a password" in ran.stderr
    assert "a-secret-word" not in ran.stdout + ran.stderr
