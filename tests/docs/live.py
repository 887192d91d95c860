"""Servers, workers and consumers of a page, as real processes, and a service that answers late."""

from __future__ import annotations

import importlib.util
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.docs.support import blocks
from tests.support.documents import write_files
from tests.support.processes import run
from tests.support.programs import Program
from tests.support.server import Reply, Request, Server

#: Seconds until an answer, so that there is something left to deliver when a process ends.
DELAY = 0.05

#: The same as long as that end is far: nearly all is left then, however slow this machine is.
HELD = 6.0


class Service(Server):
    """Answers late, and very late until `ends` is set."""

    def __init__(self) -> None:
        super().__init__(self._late)
        self.ends = threading.Event()
        self.ends.set()

    def _late(self, _request: Request) -> Reply:
        if not self.ends.wait(HELD):
            return Reply()
        time.sleep(DELAY)
        return Reply()


def needs(*names: str) -> None:
    for name in names:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


def run_python(folder: Path, *arguments: str) -> str:
    """What Python, run with *arguments* in *folder*, printed; it must end well."""
    done = run(*arguments, cwd=folder, env=None)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not delivered" not in done.stderr
    return done.stdout


class Running(Program):
    """A program that runs until it is told to end; the service holds its answers until then."""

    def __init__(self, folder: Path, service: Service, *arguments: str) -> None:
        self._service = service
        service.ends.clear()
        super().__init__(folder / "log", *arguments, cwd=folder)

    def find(self, pattern: str) -> str:
        """What it has printed that matches, once it has; the first group of it."""
        found: re.Match[str] = self.wait_until(lambda: re.search(pattern, self.said()))
        return found[1]

    def tell(self, number: signal.Signals, recorded: int) -> None:
        """Signal the process itself, and none of its children; most of *recorded* is pending."""
        assert len(self._service.events) < recorded, "the end has nothing to deliver"
        self.process.send_signal(number)
        self._service.ends.set()

    def stop(self, recorded: int, number: signal.Signals = signal.SIGTERM, status: int = 0) -> None:
        """Signal it; it must end, with this status, and say nothing of what is left."""
        self.tell(number, recorded)
        assert self.process.wait(20) == status, self.said()
        assert "not delivered" not in self.said()


def whose(event: dict[str, Any]) -> tuple[str, Any, Any]:
    """The event's key, its user, its customer."""
    return event["key"], event.get("user", {}).get("id"), event.get("customer", {}).get("id")


def assert_each_has_its_user(service: Service, wanted: list[tuple[str, Any, Any]]) -> None:
    """All of *wanted* arrived, once each, with the user and the customer of its job."""
    assert sorted(map(whose, service.events), key=str) == sorted(wanted, key=str)
    for event in service.events:
        who, report = whose(event)[1:], event.get("attributes", {}).get("report")
        # What the job was given, whoever it was recorded for. 123 is the user of the pages.
        assert report is None or 123 in who or report in who, event


def write_page(folder: Path, page: str, *titles: str, **more: str) -> None:
    """The files of these sections, and *more* of the tests' own, by name without ``.py``."""
    write_files(folder, blocks(page, *titles))
    for name, code in more.items():
        (folder / f"{name}.py").write_text(code, "utf-8")
