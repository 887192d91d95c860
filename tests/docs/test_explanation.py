"""The pages about forks, delivery, losses and the outbox run as printed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.support import Case, Cases, blocks, python, run_section, runs
from tests.support.server import Reply, Request, Server

OUTBOX = "howto/outbox"

#: The directory that the page of the outbox has in its blocks.
DIRECTORY = Path("/tmp/valued-outbox")

CASES: Cases = {
    ("explanation/forks", "Two things that help"): Case(events=1),
    ("explanation/delivery", "Delivery"): Case(events=1),
    ("explanation/losses", "Delivering at SIGTERM"): Case(events=1),
}


@pytest.mark.parametrize(("page", "title"), CASES)
def test_section_runs_as_printed(page: str, title: str, shell: Path, server: Server) -> None:
    run_section(page, title, CASES[page, title], shell, server)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """An outbox of the test's own, in place of the one that the page names."""
    yield tmp_path / "outbox"
    for number in range(2):
        shutil.rmtree(tmp_path / f"outbox{number}")


@runs(OUTBOX, "Turn it on")
def test_an_event_of_a_process_that_died_is_shown_and_sent_as_printed(
    shell: Path, server: Server, directory: Path
) -> None:
    found = [it for it in blocks(OUTBOX, "Turn it on") if it.language == "python"]
    for number, block in enumerate(found):
        # One each: the first leaves the mark of a process that ended, which is shown for a while.
        code = block.code.replace(str(DIRECTORY), f"{directory}{number}")
        (shell / f"block{number}.py").write_text(code, "utf-8")
    python(shell, "block0.py")
    assert len(server.events) == 1
    died = threading.Event()

    def answer(_request: Request) -> Reply:
        died.wait(20)
        return Reply()

    server.script = answer
    done = subprocess.run([sys.executable, "block1.py"], cwd=shell, timeout=60, check=False)
    assert done.returncode == 1
    died.set()
    status = python(shell, "-m", "valued", "outbox", f"{directory}1", "status")
    found = [it for it in blocks(OUTBOX, "Turn it on") if it.language == "console"]
    looked, sending = (it.code for it in found)
    assert _shape(status) == _shape(looked.partition("status\n")[2])
    sent = subprocess.run(
        [sys.executable, "-m", "valued", "outbox", f"{directory}1", "send"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert sent.stderr.strip() == sending.splitlines()[-1]
    assert 2 <= len(server.events) <= 3  # thrice, where it was sent before the process died


def _shape(table: str) -> list[list[str]]:
    """What a table says, whatever pid, host and numbers of bytes and seconds are in it."""
    rows = [line.split() for line in table.splitlines()]
    return [
        [re.sub(r"\d+:\d\d:\d\d", "H", re.sub(r"^\d{3,}$", "N", cell)) for cell in row
         if cell not in (_host(table), "vm")]
        for row in rows
    ]  # fmt: skip


def _host(table: str) -> str:
    match = re.search(r"^dead +\d+ +(\S+)", table, re.MULTILINE)
    assert match is not None, table
    return match[1]
