"""``valued doctor``: each check passes where all is well, and fails where it is not."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import trustme

import valued
from tests.support.cli import COMMAND, terminal
from tests.support.left import leave, make_outbox
from tests.support.processes import run
from tests.support.proxy import Listener, Proxy, read_head
from tests.support.server import Reply, Server
from tests.support.tls import Authority, TLSServer
from valued.cli import main

TOKEN = "s3cret-token-0123456789"
PASSWORD = "pr0xy-passw0rd"

Results = dict[str, dict[str, str]]
Examine = Callable[..., tuple[int, Results]]


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The current directory, which is empty; and a token."""
    for name in ("no_proxy", "NO_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VALUED_TOKEN", TOKEN)
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def examine(capsys: pytest.CaptureFixture[str]) -> Examine:
    """Run it as text and as JSON, which agree and show no secret; the status and the results."""

    def run_both(*arguments: str) -> tuple[int, Results]:
        status = main(["doctor", "--timeout", "5", "--json", *arguments])
        shown = capsys.readouterr()
        assert shown.err == ""
        found = json.loads(shown.out)
        assert found["status"] == ("fail" if status else "ok")
        assert main(["doctor", "--timeout", "5", *arguments]) == status
        text = capsys.readouterr()
        assert text.err == ""
        statuses = [line.split()[:2] for line in text.out.splitlines()]
        assert statuses == [[one["status"], one["check"]] for one in found["checks"]]
        for secret in (TOKEN, PASSWORD):
            assert secret not in shown.out + text.out
        assert status == any(one["status"] == "fail" for one in found["checks"])
        for one in found["checks"]:
            # Those that don't pass say what to do.
            assert bool(one["fix"]) == (one["status"] in ("warn", "fail")), one
        # Of several lines of a check, the worst.
        order = ["skipped", "ok", "warn", "fail"]
        lines = sorted(found["checks"], key=lambda one: order.index(one["status"]))
        return status, {one["check"]: one for one in lines}

    return run_both


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def test_all_is_well_and_no_event_is_sent(examine: Examine, server: Server) -> None:
    status, found = examine("--endpoint", server.url)
    assert status == 0
    well = ("variables", "token", "endpoint", "proxy", "dns", "connection", "answer", "clock")
    assert {name: one["status"] for name, one in found.items()} == {
        **dict.fromkeys(well, "ok"),
        **dict.fromkeys(("tls", "event", "outbox", "space", "owners"), "skipped"),
        **dict.fromkeys(("uwsgi", "gunicorn", "gevent"), "skipped"),
    }
    assert {request.method for request in server.requests} == {"HEAD"}
    # The token isn't sent either, where no event is.
    assert all("Authorization" not in request.headers for request in server.requests)
    assert "not tested" in found["event"]["text"]


def test_the_command_is_one_of_the_program(server: Server) -> None:
    done = run("-m", "valued", "doctor", "--endpoint", server.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].startswith("ok      variables ")


def test_a_terminal_shows_the_same_in_colours(server: Server) -> None:
    pytest.importorskip("rich")
    with terminal() as shown:
        command = [*COMMAND, "doctor", "--endpoint", f"http://127.0.0.1:{closed_port()}/events"]
        environment = {**os.environ, "TERM": "xterm"}
        done = subprocess.run(
            command, stdout=shown.file, stderr=shown.file, timeout=60, check=False, env=environment
        )
        text = shown.rest()
    assert done.returncode == 1
    assert "\x1b[1;31mfail" in text
    assert "connection 127.0.0.1:" in text
    assert TOKEN not in text


@pytest.mark.parametrize("seconds", ["0", "-1", "soon"])
def test_a_timeout_is_more_than_nothing(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["doctor", "--timeout", seconds])
    assert exit_info.value.code == 2
    assert "seconds" in capsys.readouterr().err


# -- settings --------------------------------------------------------------------------------------


def test_a_variable_that_cannot_be_read_fails(
    examine: Examine, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUED_INVALID", TOKEN)
    status, found = examine("--endpoint", server.url, "--send")
    assert (status, found["variables"]["fix"]) == (1, "unset VALUED_INVALID")
    assert found["event"]["status"] == "skipped"


@pytest.mark.parametrize("name", ["VALUED_DISABLED", "VALUED_RECORD", "VALUED_BLOCK"])
def test_a_variable_that_keeps_events_back_is_a_warning(
    name: str, server: Server, tmp_path: Path
) -> None:
    value = str(tmp_path) if name == "VALUED_RECORD" else "1"
    environment = {**os.environ, name: value}
    # In a process of its own: what a test records stays with this one.
    done = run(
        *("-m", "valued", "doctor", "--send", "--json", "--endpoint", server.url), env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = {one["check"]: one for one in json.loads(done.stdout)["checks"]}
    assert (found["variables"]["status"], found["variables"]["fix"]) == ("warn", f"unset {name}")
    assert found["event"]["status"] == "skipped"
    assert [request.method for request in server.requests] == ["HEAD"]


@pytest.mark.parametrize("token", [None, "", f"Bearer {TOKEN}", f"{TOKEN}\n"])
def test_a_token_without_the_form_of_one_fails(
    token: str | None, examine: Examine, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token is None:
        monkeypatch.delenv("VALUED_TOKEN")
    else:
        monkeypatch.setenv("VALUED_TOKEN", token)
    status, found = examine("--endpoint", server.url, "--send")
    assert (status, found["token"]["status"]) == (1, "fail")
    assert found["token"]["fix"].startswith("export VALUED_TOKEN=")
    assert not found["token"]["text"].startswith("token")  # as the line does
    # The way to the service can be looked at all the same.
    assert (found["answer"]["status"], found["event"]["status"]) == ("ok", "skipped")


def test_a_token_in_place_of_the_endpoint_fails_and_is_not_shown(
    examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUED_ENDPOINT", TOKEN)
    status, found = examine()
    assert (status, found["endpoint"]["status"]) == (1, "fail")
    network = ("proxy", "dns", "connection", "tls", "answer", "clock", "event")
    assert {found[name]["status"] for name in network} == {"skipped"}
    assert {found[name]["text"] for name in network} == {"the endpoint can't be used"}


def test_a_token_within_the_endpoint_is_not_shown(examine: Examine, server: Server) -> None:
    assert examine("--endpoint", f"{server.url}/{TOKEN}?token={TOKEN}")[0] == 0
    assert examine("--endpoint", f"http://{TOKEN}.invalid/{TOKEN}")[0] == 1
    status, found = examine("--token", TOKEN.upper(), "--endpoint", f"{server.url}/{TOKEN.upper()}")
    assert status == 0
    assert TOKEN.upper() not in str(found)


def test_an_endpoint_without_tls_on_another_machine_is_a_warning(
    examine: Examine, server: Server
) -> None:
    status, found = examine("--endpoint", f"http://0.0.0.0:{server.port}/events")
    assert (status, found["endpoint"]["status"]) == (0, "warn")
    assert found["endpoint"]["fix"].endswith(f"https://0.0.0.0:{server.port}/events")
    assert (
        examine("--endpoint", f"http://localhost:{server.port}/")[1]["endpoint"]["status"] == "ok"
    )
    outside = examine("--endpoint", "http://events.invalid/")[1]
    assert outside["endpoint"]["status"] == "warn"


# -- proxy -----------------------------------------------------------------------------------------


def test_a_proxy_that_answers_is_used(
    examine: Examine, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy() as proxy:
        monkeypatch.setenv("http_proxy", f"http://someone:{PASSWORD}@127.0.0.1:{proxy.port}")
        status, found = examine("--endpoint", server.url, "--send")
        assert any(head[0].startswith("HEAD") for head in proxy.heads)
    assert (status, found["event"]["status"]) == (0, "ok")
    assert found["proxy"]["text"] == f"http://127.0.0.1:{proxy.port} accepts connections"
    assert found["dns"]["text"] == "the proxy connects to the service"
    assert {request.method for request in server.requests} == {"HEAD", "POST"}


def test_tls_goes_through_a_proxy(
    examine: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.bundle))
    server = TLSServer(authority)
    with contextlib.closing(server), Proxy() as proxy:
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{proxy.port}")
        status, found = examine("--endpoint", server.url)
    assert (status, found["answer"]["status"], found["tls"]["status"]) == (0, "ok", "skipped")


def test_a_certificate_behind_a_proxy_that_is_not_trusted_fails(
    examine: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = TLSServer(Authority(tmp_path))
    with contextlib.closing(server), Proxy() as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        status, found = examine("--endpoint", server.url)
    assert (status, found["answer"]["status"]) == (1, "fail")
    assert found["answer"]["fix"].startswith("export REQUESTS_CA_BUNDLE=")


def test_a_proxy_that_wants_a_password_for_a_tunnel_fails(
    examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(client: socket.socket) -> None:
        with client.makefile("rb") as stream:
            if read_head(stream):
                client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")

    with Listener(refuse) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        status, found = examine("--endpoint", "https://events.invalid/events")
    assert (status, found["answer"]["status"]) == (1, "fail")
    assert found["answer"]["fix"].startswith("export https_proxy=http://USER:PASSWORD@")


def test_a_proxy_that_does_not_answer_fails(
    examine: Examine, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{PASSWORD}@127.0.0.1:{closed_port()}")
    status, found = examine("--endpoint", server.url)
    assert (status, found["proxy"]["status"], found["answer"]["status"]) == (1, "fail", "skipped")
    assert found["proxy"]["fix"].startswith("export http_proxy=")
    assert server.requests == []


def test_a_proxy_of_an_unknown_kind_fails(
    examine: Examine, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"gopher://x:{PASSWORD}@127.0.0.1:1")
    status, found = examine("--endpoint", server.url)
    assert (status, found["proxy"]["status"]) == (1, "fail")
    assert found["proxy"]["fix"] == "unset http_proxy"
    assert found["answer"]["text"] == "see proxy"


def test_a_proxy_that_wants_a_password_fails(
    examine: Examine, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(Server(lambda _request: Reply(407))) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        status, found = examine("--endpoint", server.url)
    assert (status, found["answer"]["status"]) == (1, "fail")
    assert found["answer"]["fix"].startswith("export http_proxy=http://USER:PASSWORD@")


# -- the way ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["nothing.invalid", f"{'a' * 64}.invalid"])
def test_a_host_without_an_address_fails(host: str, examine: Examine) -> None:
    status, found = examine("--endpoint", f"https://{host}/events")
    assert (status, found["dns"]["status"]) == (1, "fail")
    assert found["dns"]["fix"] == f"getent hosts {host}"
    assert {found[name]["status"] for name in ("connection", "tls", "answer")} == {"skipped"}


def test_a_port_that_refuses_fails(examine: Examine) -> None:
    status, found = examine("--endpoint", f"https://127.0.0.1:{closed_port()}/events")
    assert (status, found["connection"]["status"]) == (1, "fail")
    assert "refused" in found["connection"]["text"]
    assert {found[name]["status"] for name in ("tls", "answer", "clock")} == {"skipped"}


@pytest.mark.parametrize(
    ("other", "expected"), [("127.0.0.2", ["ok", "warn"]), ("255.255.255.255", ["ok", "skipped"])]
)
def test_one_address_that_cannot_be_reached_fails_nothing(
    other: str,
    expected: list[str],
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    look_up = socket.getaddrinfo

    def both(host: str, *args: Any, **kwargs: Any) -> list[Any]:
        names = ["127.0.0.1", other] if host == "two.test" else [host]
        return [one for name in names for one in look_up(name, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    url = f"http://two.test:{server.port}/events"
    assert main(["doctor", "--json", "--endpoint", url]) == 0
    found = json.loads(capsys.readouterr().out)["checks"]
    assert [one["status"] for one in found if one["check"] == "connection"] == expected
    assert [one["status"] for one in found if one["check"] == "answer"] == ["ok"]


def test_an_address_of_ipv6_is_shown_in_brackets(examine: Examine) -> None:
    _, found = examine("--endpoint", f"http://[::1]:{closed_port()}/events")
    assert found["connection"]["text"].startswith("[::1]:")


def secured(examine: Examine, context: ssl.SSLContext) -> tuple[int, Results]:
    """What is found of a server with these certificates."""

    def serve(client: socket.socket) -> None:
        with client.makefile("rb") as stream:
            if read_head(stream):
                client.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    with Listener(serve, context) as listener:
        return examine("--endpoint", listener.url)


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """One that is trusted."""
    made = Authority(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(made.bundle))
    return made


def test_a_certificate_that_is_trusted_passes(examine: Examine, authority: Authority) -> None:
    status, found = secured(examine, authority.context())
    assert (status, found["tls"]["status"], found["answer"]["status"]) == (0, "ok", "ok")
    assert found["tls"]["text"].startswith("TLSv1.")


def test_a_certificate_of_an_unknown_authority_fails(
    examine: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = Authority(tmp_path).context()
    status, found = secured(examine, context)  # with the usual authorities
    assert (status, found["tls"]["status"], found["answer"]["text"]) == (1, "fail", "see tls")
    assert found["tls"]["fix"].startswith("export REQUESTS_CA_BUNDLE=")
    (tmp_path / "none").mkdir()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none"))
    assert secured(examine, context)[1]["tls"]["status"] == "fail"


def test_a_certificate_for_another_host_fails(examine: Examine, authority: Authority) -> None:
    status, found = secured(examine, authority.context("other.test"))
    assert (status, found["tls"]["status"]) == (1, "fail")
    assert found["tls"]["fix"].startswith("openssl s_client -connect 127.0.0.1:")


def test_a_certificate_out_of_date_fails(
    examine: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    bundle = tmp_path / "bundle.pem"
    authority.cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)
    authority.issue_cert(
        "127.0.0.1", not_before=past, not_after=past + datetime.timedelta(1)
    ).configure_cert(context)
    status, found = secured(examine, context)
    assert (status, found["tls"]["fix"]) == (1, "date -u")


def test_a_port_without_tls_fails(examine: Examine, server: Server) -> None:
    status, found = examine("--endpoint", f"https://127.0.0.1:{server.port}/events")
    assert (status, found["tls"]["status"]) == (1, "fail")
    assert "without TLS" in found["tls"]["text"]


def test_a_server_that_breaks_off_the_handshake_fails(examine: Examine) -> None:
    def reset(client: socket.socket) -> None:
        client.recv(1)  # of the handshake: before it, the connection itself would fail
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with Listener(reset) as listener:
        status, found = examine("--endpoint", listener.url.replace("http:", "https:"))
    assert (status, found["tls"]["status"]) == (1, "fail")


@pytest.mark.parametrize("there", [True, False])
def test_certificates_that_cannot_be_read_fail(
    there: bool, examine: Examine, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle.pem"
    if there:
        bundle.write_text("no certificate")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    status, found = examine("--endpoint", f"https://127.0.0.1:{server.port}/events")
    assert (status, found["tls"]["status"]) == (1, "fail")
    assert str(bundle) in found["tls"]["text"]


# -- the answer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [200, 401, 405, 501])
def test_any_answer_shows_that_the_service_is_reachable(code: int, examine: Examine) -> None:
    with contextlib.closing(Server(lambda _request: Reply(code))) as server:
        status, found = examine("--endpoint", server.url)
    assert (status, found["answer"]["status"]) == (0, "ok")
    assert str(code) in found["answer"]["text"]


@pytest.mark.parametrize("code", [404, 410])
def test_a_path_that_may_be_wrong_is_a_warning(code: int, examine: Examine) -> None:
    with contextlib.closing(Server(lambda _request: Reply(code))) as server:
        status, found = examine("--endpoint", server.url)
        assert (status, found["answer"]["status"]) == (0, "warn")
        command = found["answer"]["fix"].removeprefix("valued doctor ").split()
        assert examine(*command)[0] == 1  # what it says tells


def test_a_service_with_a_problem_is_a_warning(examine: Examine) -> None:
    with contextlib.closing(Server(lambda _request: Reply(503))) as server:
        status, found = examine("--endpoint", server.url)
    assert (status, found["answer"]["status"]) == (0, "warn")


def test_a_redirect_is_a_warning_that_says_where_it_leads(examine: Examine) -> None:
    to = {"Location": f"/v2/events?token={TOKEN}"}
    with contextlib.closing(Server(lambda _request: Reply(308, to))) as server:
        status, found = examine("--endpoint", server.url)
    assert (status, found["answer"]["status"]) == (0, "warn")
    assert found["answer"]["fix"] == (
        f"export VALUED_ENDPOINT=http://127.0.0.1:{server.port}/v2/events"
    )


def test_a_connection_that_breaks_without_an_answer_fails(examine: Examine) -> None:
    with contextlib.closing(Server(lambda _request: None)) as server:
        status, found = examine("--endpoint", server.url)
    assert (status, found["answer"]["status"]) == (1, "fail")
    assert found["clock"]["text"] == "no answer has a date"


def test_no_answer_in_time_fails(examine: Examine) -> None:
    def drip(client: socket.socket) -> None:
        client.sendall(b"HTTP/1.1 204 No Content\r\n")
        while True:  # each byte is within the timeout, all of them never are
            client.sendall(b"X-More: 1\r\n")
            time.sleep(0.05)

    with Listener(drip) as listener:
        begin = time.monotonic()
        status, found = examine("--endpoint", listener.url, "--timeout", "0.5")
        assert time.monotonic() - begin < 10
    assert (status, found["answer"]["status"]) == (1, "fail")
    # Of the whole request; or of one read, on a machine that is busy.
    assert re.search(r"within 0\.5 s|timed out.*0\.5", found["answer"]["text"])


@pytest.fixture
def dated() -> Iterator[Callable[[str | None], Any]]:
    """Make servers whose answers have this date."""
    with contextlib.ExitStack() as stack:

        def make(date: str | None) -> str:
            head = "HTTP/1.1 204 No Content\r\n" + (f"Date: {date}\r\n" if date else "")

            def serve(client: socket.socket) -> None:
                with client.makefile("rb") as stream:
                    while read_head(stream):
                        client.sendall(f"{head}\r\n".encode())

            return str(stack.enter_context(Listener(serve)).url)

        yield make


@pytest.mark.parametrize(("seconds", "said"), [(-3600, "ahead of"), (3600, "behind")])
def test_a_clock_that_is_wrong_is_a_warning(
    seconds: int, said: str, examine: Examine, dated: Callable[[str | None], str]
) -> None:
    url = dated(formatdate(time.time() + seconds, usegmt=True))
    status, found = examine("--endpoint", url)
    assert (status, found["clock"]["status"]) == (0, "warn")
    assert said in found["clock"]["text"]


@pytest.mark.parametrize("date", [None, "yesterday"])
def test_a_clock_is_not_checked_without_a_date(
    date: str | None, examine: Examine, dated: Callable[[str | None], str]
) -> None:
    status, found = examine("--endpoint", dated(date))
    assert (status, found["clock"]["status"]) == (0, "skipped")


# -- an event --------------------------------------------------------------------------------------


def test_an_event_is_sent_only_when_asked_for(examine: Examine, server: Server) -> None:
    status, found = examine("--endpoint", server.url, "--send")
    assert (status, found["event"]["status"]) == (0, "ok")
    posts = [request for request in server.requests if request.method == "POST"]
    assert len(posts) == 2  # once for each run
    valued.validate(posts[0].event)
    assert posts[0].headers["Authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize("code", [401, 403, 422, 500])
def test_an_event_that_is_refused_fails(code: int, examine: Examine) -> None:
    def script(request: Any) -> Reply:
        return Reply(code if request.method == "POST" else 204, {}, f"no {TOKEN}".encode())

    with contextlib.closing(Server(script)) as server:
        status, found = examine("--endpoint", server.url, "--send")
    assert (status, found["event"]["status"]) == (1, "fail")
    assert str(code) in found["event"]["text"]
    about_token = found["event"]["fix"].startswith("export VALUED_TOKEN=")
    assert about_token == (code in (401, 403))


# -- outbox ----------------------------------------------------------------------------------------

needs_outbox = pytest.mark.skipif(os.name == "nt", reason="an outbox needs Linux or macOS")


@needs_outbox
def test_an_outbox_in_order_passes(
    examine: Examine, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = tmp_path / "outbox"
    monkeypatch.setenv("VALUED_OUTBOX", str(outbox))
    status, found = examine("--endpoint", server.url)
    assert (status, found["outbox"]["status"], found["owners"]["status"]) == (0, "ok", "skipped")
    assert not outbox.exists()
    make_outbox(outbox)
    status, found = examine("--endpoint", server.url)
    assert (status, found["outbox"]["status"], found["owners"]["status"]) == (0, "ok", "ok")
    assert found["space"]["status"] in ("ok", "warn")


@needs_outbox
@pytest.mark.parametrize("wrong", ["open to others", "a file", "below a file"])
def test_an_outbox_that_cannot_be_used_fails(
    wrong: str, examine: Examine, server: Server, tmp_path: Path
) -> None:
    outbox = tmp_path / "out box"
    if wrong == "a file":
        outbox.touch()
    elif wrong == "below a file":
        outbox.touch()
        outbox /= "outbox"
    else:
        outbox.mkdir()
        outbox.chmod(0o755)
    status, found = examine("--endpoint", server.url, "--outbox", str(outbox))
    assert (status, found["outbox"]["status"]) == (1, "fail")
    assert (found["space"]["status"], found["owners"]["status"]) == ("skipped", "skipped")
    if wrong != "open to others" or shutil.which("install"):
        # What it says helps as it is.
        fix = found["outbox"]["fix"].removeprefix("sudo ")
        subprocess.run(["sh", "-c", fix], check=True, timeout=60)
        assert examine("--endpoint", server.url, "--outbox", str(outbox))[0] == 0


def test_a_directory_for_stats_that_cannot_be_used_fails(
    examine: Examine, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "all" / "stats"
    monkeypatch.setenv("VALUED_STATUS", str(place))
    status, found = examine("--endpoint", server.url)
    assert (status, found["stats"]["status"]) == (0, "ok")
    assert not place.parent.exists()
    place.parent.touch()
    status, found = examine("--endpoint", server.url)
    assert (status, found["stats"]["status"]) == (1, "fail")
    subprocess.run(["sh", "-c", found["stats"]["fix"]], check=True, timeout=60)
    assert examine("--endpoint", server.url)[0] == 0


@needs_outbox
def test_a_directory_for_stats_that_is_not_writable_fails(
    examine: Examine, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUED_STATUS", str(tmp_path / "stats"))
    tmp_path.chmod(0o555)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("root may write everywhere")
    status, found = examine("--endpoint", server.url)
    assert (status, found["stats"]["status"]) == (1, "fail")
    assert found["stats"]["fix"].startswith("sudo install -d")


IN_A_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


@pytest.mark.parametrize(("size", "expected"), [("4m", "fail"), ("64m", "warn"), ("2g", "ok")])
def test_a_disk_that_is_nearly_full_is_found(
    size: str, expected: str, server: Server, tmp_path: Path
) -> None:
    mount = f"mount -t tmpfs -o size={size},mode=0700 tmpfs {tmp_path}"
    if (
        not shutil.which("unshare")
        or subprocess.run(
            [*IN_A_NAMESPACE, "sh", "-c", mount], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("no small file system can be mounted here")
    command = (
        f"{sys.executable} -m valued doctor --json --endpoint {server.url} --outbox {tmp_path}"
    )
    done = subprocess.run(
        [*IN_A_NAMESPACE, "sh", "-c", f"{mount} && exec {command}"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    [found] = [one for one in json.loads(done.stdout)["checks"] if one["check"] == "space"]
    assert found["status"] == expected
    assert done.returncode == (expected == "fail")
    assert bool(found["fix"]) == (expected != "ok")


@needs_outbox
def test_events_of_dead_processes_are_a_warning(
    examine: Examine, server: Server, tmp_path: Path
) -> None:
    outbox = tmp_path / "outbox"
    leave(outbox, 2, 3)
    status, found = examine("--endpoint", server.url, "--outbox", str(outbox))
    assert (status, found["owners"]["status"]) == (0, "warn")
    assert found["owners"]["text"].startswith("6 undelivered events")
    command = found["owners"]["fix"].split()
    assert command[0] == "valued"
    assert main([*command[1:], "--endpoint", server.url]) == 0  # what it says helps


@needs_outbox
def test_refused_events_are_a_warning(examine: Examine, tmp_path: Path) -> None:
    outbox = tmp_path / "outbox"
    with contextlib.closing(Server(lambda request: Reply(422))) as server:
        with valued.Client(TOKEN, server.url, outbox=outbox) as client:
            client.action("report.generated", {"user.id": 1})
            assert client.flush(10)
        status, found = examine("--endpoint", server.url, "--outbox", str(outbox))
    assert (status, found["rejected"]["status"]) == (0, "warn")
    assert found["rejected"]["fix"] == f"valued outbox {outbox} rejected"


# -- servers ---------------------------------------------------------------------------------------

OFFLINE = ("--endpoint", "no URL")  # the network is of no interest here


def of_file(examine: Examine, place: Path, name: str, text: str, *arguments: str) -> dict[str, str]:
    """What is found of the file, which is in the current directory."""
    (place / name).write_text(text)
    return examine(*OFFLINE, *arguments)[1][name.split(".")[0]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[uwsgi]\nmaster = true\nenable-threads = true\n", "ok"),
        ("[uwsgi]\nenable-threads\nmodule = app:app\nmodule = b:b\n", "ok"),
        ("[uwsgi]\nthreads = 4\nprocname = %(name)\n", "ok"),
        ("[uwsgi]\nmaster = true\n", "warn"),
        ("[uwsgi]\nenable-threads = false\n", "warn"),
        ("[other]\nenable-threads = true\n", "fail"),
        ("no ini", "fail"),
    ],
)
def test_uwsgi_has_threads(text: str, expected: str, examine: Examine, place: Path) -> None:
    assert of_file(examine, place, "uwsgi.ini", text)["status"] == expected


def test_what_it_says_about_uwsgi_helps(examine: Examine, place: Path) -> None:
    text = "[uwsgi]\nmaster = true\n"
    fix = of_file(examine, place, "uwsgi.ini", text)["fix"]
    assert of_file(examine, place, "uwsgi.ini", f"{text}{fix}\n")["status"] == "ok"


@pytest.mark.parametrize("name", ["uwsgi", "gunicorn"])
def test_a_file_that_is_not_there_fails(name: str, examine: Examine) -> None:
    found = examine(*OFFLINE, f"--{name}", "missing")[1][name]
    assert (found["status"], found["text"]) == ("fail", "missing: No such file or directory")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("workers = 4\n", "ok"),
        ("graceful_timeout = 2\ngraceful_timeout: int = 60\n", "ok"),
        ("def hook(server):\n    graceful_timeout = 1\n", "ok"),
        ("import os, multiprocessing as more\nfrom os import path\n", "ok"),
        ("graceful_timeout = 5\n", "fail"),
        ("graceful_timeout = 2.5\n", "fail"),
        ("import os\ngraceful_timeout = int(os.environ['X'])\n", "warn"),
        ("if True:\n    graceful_timeout = 60\n", "warn"),
        ("graceful_timeout = 60\ngraceful_timeout += 1\n", "warn"),
        ("from shared import *\n", "warn"),
        ("a = graceful_timeout = 60\n", "warn"),
        ("graceful_timeout: int\n", "ok"),
        ("graceful_timeout =\n", "fail"),
        ("open('ran', 'w')\n", "ok"),
    ],
)
def test_gunicorn_waits_for_deliveries(
    text: str, expected: str, examine: Examine, place: Path
) -> None:
    found = of_file(examine, place, "gunicorn.conf.py", text)
    assert found["status"] == expected, found
    if found["fix"].startswith("graceful_timeout"):  # what it says helps
        helped = of_file(examine, place, "gunicorn.conf.py", f"{text}\n{found['fix']}\n")
        assert helped["status"] == "ok"
    assert not (place / "ran").exists()  # it is read, and not run


def test_gunicorn_is_compared_with_the_clients_own_timeout(
    examine: Examine, place: Path, tmp_path: Path
) -> None:
    text = "graceful_timeout = 3\n"
    outbox = ("--outbox", str(tmp_path / "outbox"))
    assert of_file(examine, place, "gunicorn.conf.py", text)["status"] == "fail"
    assert of_file(examine, place, "gunicorn.conf.py", text, *outbox)["status"] == "ok"
    longer = ("--shutdown-timeout", "60")
    found = of_file(examine, place, "gunicorn.conf.py", text, *longer)
    assert found["fix"] == "graceful_timeout = 65"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("worker_class = 'gevent'\npreload_app = True\n", "fail"),
        ("worker_class = 'gevent'\n", "ok"),
        ("worker_class = 'gthread'\npreload_app = True\n", "ok"),
    ],
)
def test_gunicorn_with_gevent_patches_before_a_preload(
    text: str, expected: str, examine: Examine, place: Path
) -> None:
    found = of_file(examine, place, "gunicorn.conf.py", text)
    assert found["status"] == expected
    if found["fix"]:
        helped = of_file(examine, place, "gunicorn.conf.py", f"{found['fix']}\n{text}")
        assert helped["status"] == "ok"


PATCH = "from gevent import monkey; monkey.patch_all()\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import valued\n", "ok"),
        (f"{PATCH}import requests, valued\nprint('hello')\n", "ok"),
        (f"import requests\n{PATCH}", "fail"),
        (f"import valued\n{PATCH}", "warn"),
        ("import missing_module\n", "fail"),
        ("import os\nos._exit(0)\n", "fail"),
        ("import time\ntime.sleep(60)\n", "fail"),
    ],
)
def test_gevent_patches_first(text: str, expected: str, examine: Examine, place: Path) -> None:
    pytest.importorskip("gevent")
    (place / "application.py").write_text(text)
    timeout = ("--timeout", "0.5" if "sleep" in text else "60")
    found = examine(*OFFLINE, "--import", "application", *timeout)[1]["gevent"]
    assert found["status"] == expected, found
    if found["fix"].startswith("from gevent"):  # what it says helps
        (place / "application.py").write_text(f"{found['fix']}\n{text}")
        helped = examine(*OFFLINE, "--import", "application", *timeout)[1]["gevent"]
        assert helped["status"] == "ok"


def test_gevent_is_not_looked_for_where_it_is_not_installed(examine: Examine, place: Path) -> None:
    (place / "gevent.py").write_text("raise ImportError('not installed')\n")
    (place / "application.py").write_text("import valued\n")
    found = examine(*OFFLINE, "--import", "application", "--timeout", "60")[1]["gevent"]
    assert (found["status"], found["text"]) == ("skipped", "it is not installed")


def test_the_import_of_a_module_sends_no_event(
    examine: Examine, place: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUED_ENDPOINT", server.url)
    (place / "application.py").write_text(
        "import valued\nvalued.connect().action('a.b', {'user.id': 1})\nvalued.flush(10)\n"
    )
    assert examine("--import", "application", "--timeout", "60")[0] == 0
    assert {request.method for request in server.requests} == {"HEAD"}


def test_what_a_module_prints_at_its_exit_changes_no_verdict(examine: Examine, place: Path) -> None:
    pytest.importorskip("gevent")
    (place / "application.py").write_text("import atexit\natexit.register(print, 42)\n")
    found = examine(*OFFLINE, "--import", "application", "--timeout", "60")[1]["gevent"]
    assert (found["status"], found["text"]) == ("ok", "application patches nothing")
