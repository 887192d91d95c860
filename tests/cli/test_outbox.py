"""``valued outbox``: what was left, shown, sent, exported."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import types
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

import valued
from tests.support.cli import COMMAND
from tests.support.clock import Clock
from tests.support.processes import Child, run
from tests.support.server import Reply, Request, Server
from valued._service.render import Progress
from valued.cli import outbox as command

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no outbox on Windows")

Fork = Callable[..., Child]


def outbox(place: Path, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return run("-m", "valued", "outbox", str(place), *arguments, **more)


class Never:
    """An executor that takes each job and runs none."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> None:
        pass


@pytest.fixture
def place(tmp_path: Path, server: Server) -> Path:
    """An outbox in which a process that was killed left five events, and tried none of them."""
    place = tmp_path / "outbox"
    pid = os.fork()
    if pid == 0:
        client = valued.Client("t", server.url, outbox=place, executor=Never())
        for number in range(5):
            client.action("left", {"user.id": number})
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    return place


@pytest.mark.parametrize("arguments", [[], ["status"]], ids=str)
def test_status_tells_who_owns_what_and_changes_nothing(place: Path, arguments: list[str]) -> None:
    before = sorted(place.rglob("*"))
    done = outbox(place, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    head, dead, total, rejected = done.stdout.splitlines()
    assert head.split() == ["owner", "pid", "host", "events", "bytes", "oldest"]
    assert dead.split()[0] == "dead"
    assert dead.split()[3] == total.split()[1] == "5"
    assert dead.endswith("ago")
    assert rejected == "0 rejected"
    assert sorted(place.rglob("*")) == before


def test_where_events_are_disabled_send_says_so_at_once_and_leaves_all_of_it(
    place: Path, server: Server, delivery: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUED_DISABLED", "1")
    done = outbox(place, "send", *delivery, timeout=20)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "valued: nothing was sent: VALUED_DISABLED is set\n"
    assert server.requests == []
    assert sum(owner.events for owner in valued.Outbox(place).owners()) == 5


def test_send_delivers_what_the_dead_left_and_nothing_of_the_living(
    place: Path, server: Server, delivery: list[str]
) -> None:
    attempts: list[str] = []

    def script(request: Request) -> Reply:
        attempts.append(request.event["key"])
        # The first one has to be tried again.
        return Reply(503, {"Retry-After": "0"}) if len(attempts) == 1 else Reply()

    server.script = script
    client = valued.Client("t", server.url, outbox=place, executor=Never())
    client.action("living", {"user.id": 1})
    done = outbox(place, "send", *delivery)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines()[-1] == "5 delivered, 0 rejected, 0 dropped"
    assert set(attempts) == {"left"}
    assert sorted(event["user"]["id"] for event in server.events[1:]) == [0, 1, 2, 3, 4]
    client.close(0)  # hands it over
    done = outbox(place, "send", *delivery)
    assert done.stderr.splitlines()[-1] == "1 delivered, 0 rejected, 0 dropped"
    assert attempts[6:] == ["living"]
    assert outbox(place).stdout.splitlines()[1].split() == ["all", "0", "0"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Reply(503), "the service answered 503 Service Unavailable"),
        (Reply(401), "the service answered 401 Unauthorized"),
        (None, "ConnectionError"),
    ],
    ids=["down", "wrong token", "nobody there"],
)
def test_send_ends_where_nothing_can_be_delivered_and_leaves_all_of_it(
    answer: Reply | None, said: str, place: Path, server: Server, delivery: list[str]
) -> None:
    server.script = lambda _request: answer or Reply()
    url = server.url if answer else "http://127.0.0.1:9/events"
    arguments = ["send", "--token", "t", "--endpoint", url, "--timeout", "0.5"]
    done = outbox(place, *arguments, timeout=20)
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[0]
    assert done.stderr.splitlines()[-2:] == [
        "0 delivered, 0 rejected, 0 dropped",
        "valued: nothing was delivered for 0.5 s (--timeout); 5 events remain in the outbox",
    ]
    assert outbox(place, "rejected").stdout == ""
    server.script = lambda _request: Reply()
    done = outbox(place, "send", *delivery)
    assert (done.returncode, done.stderr) == (0, "5 delivered, 0 rejected, 0 dropped\n")


@pytest.mark.parametrize(
    ("pause", "delivered"), [(50.0, 5), (70.0, 0)], ids=["within it", "longer than it"]
)
def test_send_has_its_timeout_for_each_delivery(
    pause: float, delivered: int, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(0.0)

    class Slow:
        def adopt(self) -> None:
            pass

        def stats(self) -> dict[str, int]:
            done = int(clock.now / pause)
            return {"delivered": done, "failed": 0, "dropped": 0, "pending": 5 - done}

    def sleep(seconds: float) -> None:
        clock.now += seconds

    client: Any = Slow()
    directory = valued.Outbox(place)
    directory.purge()
    monkeypatch.setattr(command, "time", types.SimpleNamespace(monotonic=clock, sleep=sleep))
    finished = command._deliver(client, directory, Progress(), 60.0)
    assert (finished, client.stats()["delivered"]) == (delivered == 5, delivered)
    assert clock.now == pytest.approx(5 * pause if finished else 60.0, abs=0.2)


# A mark that is another host's may have any pid, that of who sends as well.
_SEND_BESIDE_A_NAMESAKE = """
import json, os, pathlib, sys
from valued.cli import main
[mark] = pathlib.Path(sys.argv[1]).glob("v1/owners/*")
content = {**json.loads(mark.read_text()), "pid": os.getpid(), "host": "another"}
mark.write_text(json.dumps(content))
sys.exit(main(["outbox", *sys.argv[1:]]))
"""


def test_send_does_not_wait_for_a_process_elsewhere_that_has_its_pid(
    place: Path, server: Server, delivery: list[str]
) -> None:
    arguments = [str(place), "send", *delivery, "--timeout", "10"]
    done = run("-c", _SEND_BESIDE_A_NAMESAKE, *arguments, timeout=20)
    assert (done.returncode, done.stderr) == (0, "0 delivered, 0 rejected, 0 dropped\n")
    assert server.events == []


def test_what_is_refused_is_shown_and_written_to_be_mended_and_forgotten(
    place: Path, server: Server, delivery: list[str], tmp_path: Path
) -> None:
    def script(request: Request) -> Reply:
        bad = request.event["user"]["id"] == 3
        return Reply(422, body=b"no user 3") if bad else Reply()

    server.script = script
    done = outbox(place, "send", *delivery)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "4 delivered, 1 rejected, 0 dropped"
    why, event = outbox(place, "rejected").stdout.splitlines()
    phrase = HTTPStatus(422).phrase  # another one from Python 3.13 on
    assert why.endswith(f"the service answered 422 {phrase}: no user 3")
    assert json.loads(event)["user"] == {"id": 3}
    file = tmp_path / "mend.jsonl"
    assert outbox(place, "rejected", "--export", str(file)).stderr == "1 event\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text(file.read_text().replace('"id": 3', '"id": 33'))
    sent = run("-m", "valued", "send", str(file), *delivery)
    assert sent.returncode == 0
    assert server.events[-1]["user"] == {"id": 33}
    assert outbox(place, "rejected", "--forget").returncode == 0
    assert outbox(place, "rejected").stdout == ""


@pytest.mark.parametrize("target", ["-", "/dev/stdout"])  # a pipe, which can't be made shorter
def test_export_to_standard_output_writes_a_line_for_each_event(place: Path, target: str) -> None:
    done = outbox(place, "export", target)
    assert [json.loads(line)["user"]["id"] for line in done.stdout.splitlines()] == list(range(5))
    assert done.returncode == 0


def test_export_replaces_a_file_takes_it_from_others_and_writes_what_send_takes(
    place: Path, server: Server, delivery: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "left.jsonl"
    file.write_text("what was in it before\n" * 1000)
    file.chmod(0o644)
    assert outbox(place, "export", str(file)).stderr == "5 events\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert run("-m", "valued", "send", str(file), *delivery).returncode == 0
    assert sorted(event["user"]["id"] for event in server.events) == list(range(5))


@pytest.mark.parametrize(
    ("given", "answer", "status", "said"),
    [
        ([], "y\n", 0, "5 events removed\n"),
        (["--yes"], "", 0, "5 events removed\n"),
        ([], "n\n", 1, "nothing was removed\n"),
        ([], "", 1, "\nvalued: no answer, so nothing was removed; pass --yes\n"),
    ],
    ids=str,
)
def test_purge_removes_what_the_dead_left_if_the_answer_is_yes(
    given: list[str], answer: str, status: int, said: str, place: Path
) -> None:
    done = outbox(place, "purge", *given, input=answer)
    asked = "" if given else "Permanently delete 5 events that no process will deliver? [y/N] "
    assert (done.returncode, done.stdout, done.stderr) == (status, asked, said)
    left = outbox(place, "export", "-").stdout.splitlines()
    assert len(left) == (5 if status else 0)


def test_purge_touches_nothing_of_the_living(place: Path, server: Server) -> None:
    living = place.parent / "living"
    client = valued.Client("t", server.url, outbox=living, executor=Never())
    client.action("living", {"user.id": 1})
    assert outbox(living, "purge", "--yes").stderr == "0 events removed\n"
    assert [event["key"] for event in valued.Outbox(living).events()] == ["living"]
    client.close(0)


def test_ctrl_c_leaves_the_rest_where_it_was(
    place: Path, server: Server, delivery: list[str]
) -> None:
    server.script = lambda _request: Reply(503)
    process = subprocess.Popen(
        [*COMMAND, "outbox", str(place), "send", *delivery],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        server.wait_for(1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "0 delivered, 0 rejected, 0 dropped" in said
    assert outbox(place).stdout.splitlines()[-2].split()[:2] == ["all", "5"]


def test_what_is_no_outbox_is_named(tmp_path: Path) -> None:
    done = outbox(tmp_path / "none")
    assert done.returncode == 2
    assert "there is no such directory" in done.stderr


def test_commands_that_send_ignore_the_variable(
    tmp_path: Path, delivery: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUED_OUTBOX", str(tmp_path / "outbox"))
    assert run("-m", "valued", "action", "a.b", "user.id=1", *delivery).returncode == 0
    assert not (tmp_path / "outbox").exists()
