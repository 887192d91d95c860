"""The page about testing an application runs as printed, section by section."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.docs.support import document, runs
from tests.support.documents import sections, write_files
from tests.support.processes import run
from tests.testing.support import assert_passed, pytest_in

PAGE = "howto/testing"
SECTIONS = sections(document(PAGE))

#: How many tests each section has, and what they need.
TESTS = {
    "pytest": (2, ()),
    "What you can ask": (1, ()),
    "unittest": (2, ()),
    "Threads, processes, live servers": (3, ("gunicorn",)),
    "Celery": (3, ("celery",)),
    "End to end": (2, ()),
    "A program of its own": (1, ()),
    "No real endpoint in tests": (2, ()),
}


def _write(folder: Path, title: str) -> None:
    write_files(folder, [it for it in SECTIONS[title] if it.language == "python"])
    # Those that have no settings of their own go with the first ones.
    settings = [it for it in SECTIONS[title] if it.language == "ini"] or SECTIONS["pytest"]
    [ini] = [it for it in settings if it.language == "ini"]
    write_files(folder, [ini])


@runs(PAGE, *TESTS)
@pytest.mark.parametrize("title", TESTS)
def test_section_runs_as_printed(tmp_path: Path, title: str) -> None:
    count, needs = TESTS[title]
    for name in needs:
        pytest.importorskip(name)
    if needs == ("gunicorn",) and not hasattr(signal, "SIGKILL"):
        pytest.skip("Gunicorn is made for Unix")
    assert all(it.file for it in SECTIONS[title] if it.language == "python")
    _write(tmp_path, title)
    # Gunicorn would have one in the user's home.
    done = pytest_in(tmp_path, "-q", GUNICORN_CMD_ARGS="--no-control-socket --graceful-timeout 10")
    assert_passed(done, count)


@runs(PAGE, "Django")
def test_section_about_django_runs_as_printed(tmp_path: Path) -> None:
    pytest.importorskip("django")
    _write(tmp_path, "Django")
    done = run("-W", "ignore", "-m", "unittest", "tests", cwd=tmp_path, env={**os.environ})
    assert done.returncode == 0, done.stderr
    assert "Ran 1 test" in done.stderr


def test_a_failure_reads_as_printed(tmp_path: Path) -> None:
    _write(tmp_path, "pytest")
    failing = "import reports\ndef test_it(valued_events):\n    reports.generate(123)\n"
    failing += "    valued_events.one('report.generated', user={'id': 2})\n"
    (tmp_path / "test_failing.py").write_text(failing, "utf-8")
    done = pytest_in(tmp_path, "-q", "test_failing.py")
    [printed] = [it for it in SECTIONS["What you can ask"] if it.language == "text"]
    shown = [line[8:] for line in done.stdout.splitlines() if line.startswith("E    ")]
    assert [line.strip() for line in shown] == [line.strip() for line in printed.code.splitlines()]
