"""Descriptors that are closed, used by other code, or used up; and a system without /proc."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.outbox.conftest import New
from tests.support.left import ROOT, Sink, adopt_all, run_program
from tests.support.processes import until
from tests.support.server import Server

pytest.importorskip("resource")


def numbers(server: Server) -> list[int]:
    return sorted(event["attributes"]["number"] for event in server.events)


def test_nothing_is_written_into_what_has_the_number_of_a_closed_descriptor(
    place: Path, server: Server
) -> None:
    done = run_program("outbox_closes_descriptors", str(place), server.url)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["written"] == []
    assert (said["settled"], said["closed"]) == (True, True)
    assert said["seconds"] < 10  # no thread waits for a socket that is gone until the bound of 20
    assert numbers(server) == [*range(25)]


def test_events_survive_a_kill_after_all_descriptors_were_closed(
    place: Path, new: New, sink: Sink
) -> None:
    done = run_program("outbox_closes_descriptors", str(place), "")
    assert done.returncode == -9, done.stderr
    said = json.loads(done.stdout)
    assert said["written"] == []
    assert said["stats"]["unsaved"] == 0
    client = new()
    client.adopt()
    until(lambda: len(sink.numbers()) == 25)
    adopt_all(client, place)
    assert sink.all() == [*range(25)]


@pytest.mark.parametrize("when", ["first", "later", "pending"])
def test_nothing_raises_without_a_free_descriptor_and_what_is_pending_arrives_later(
    when: str, place: Path, server: Server
) -> None:
    done = run_program("outbox_without_descriptors", str(place), server.url, when)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    said = json.loads(done.stdout)
    assert [stats["pid"] for stats in said["seen"]] == [said["stats"]["pid"]] * 3
    arrived = set(numbers(server))
    assert 100 in arrived
    # What could not be written was in memory only, and `close` says that it is lost.
    assert len(arrived) >= said["recorded"] + 1 - said["lost"]
    for stats in (*said["seen"], said["stats"]):
        settled = stats["delivered"] + stats["failed"] + stats["dropped"] + stats["handed_over"]
        assert stats["accepted"] + stats["adopted"] == settled + stats["pending"]


WITHOUT_PROC = ["unshare", "--user", "--map-root-user", "--mount"]
HIDE_PROC = "mount -t tmpfs tmpfs /proc"


def test_nothing_raises_without_proc(place: Path, server: Server) -> None:
    tried: Any = None
    if shutil.which("unshare"):
        tried = subprocess.run(
            [*WITHOUT_PROC, "sh", "-c", HIDE_PROC], capture_output=True, check=False
        )
    if tried is None or tried.returncode:
        pytest.skip("nothing can be mounted here")
    program = shlex.join(
        [sys.executable, "-m", "tests.programs.outbox_without_proc", str(place), server.url]
    )
    done = subprocess.run(
        [*WITHOUT_PROC, "sh", "-c", f"{HIDE_PROC} && exec {program}"],
        capture_output=True, text=True, check=False, timeout=60, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    said = json.loads(done.stdout)
    assert said["stats"]["delivered"] == 10
    assert set(numbers(server)) == {*range(15)}
