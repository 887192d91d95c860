"""The README: it renders, and what it prints runs. So do the two commands, from a clone."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import docutils.nodes
import pytest

from tests.docs.support import TOKEN, Case, Cases, blocks, python, run_section, runs
from tests.support.documents import ROOT, doctree, sections
from tests.support.processes import run
from tests.support.server import Server

FIRST = "First event in a minute"

CASES: Cases = {("README", "valued-client"): Case(events=1)}


@pytest.mark.parametrize("name", ["README.rst", "CHANGELOG.rst", "CONTRIBUTING.rst"])
def test_document_renders_without_a_warning(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    doctree(name, report_level=1, highlight="long")  # which knows what languages there are
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("page", "title"), CASES)
def test_section_runs_as_printed(page: str, title: str, shell: Path, server: Server) -> None:
    run_section(page, title, CASES[page, title], shell, server)


def _commands() -> list[str]:
    """The lines of the README that are typed into a shell."""
    return [
        line.removeprefix("$ ")
        for found in sections("README.rst").values()
        for block in found
        if block.language == "console"
        for line in block.code.splitlines()
    ]


def test_ci_runs_the_tests_by_the_command_of_the_readme() -> None:
    lines = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    assert lines[:3] == ["#!/usr/bin/env bash", "set -euo pipefail", 'cd "$(dirname "$0")/.."']
    assert lines[-1] in _commands()
    assert [line for line in lines[:-1] if "tox" in line or "pytest" in line] == []
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_demo_works_as_printed(shell: Path) -> None:
    [line] = [line for line in _commands() if line.endswith("valued demo")]
    assert line.split(" && ")[-1] == ".venv/bin/valued demo"
    done = run("-m", "valued", "demo", cwd=shell)
    assert done.returncode == 0, done.stdout + done.stderr
    assert TOKEN not in done.stdout + done.stderr


@contextlib.contextmanager
def listening(command: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Run ``valued listen …`` on a free port; its URL, and, at the end, the lines it printed."""
    process = subprocess.Popen(
        [sys.executable, "-m", *shlex.split(command), "--port", "0"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines: list[str] = []
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        heading = process.stderr if "--json" in command else process.stdout
        lines += [next(heading), next(heading)]
        yield lines[0].split()[-1], lines
        process.terminate()
        lines += process.communicate(timeout=30)[0].splitlines(keepends=True)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate(timeout=10)


def _without_what_differs(text: str) -> str:
    """*text* without port, process and time."""
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", text)
    text = re.sub(r"from \S+ \(pid \d+\)", "from PROCESS", text)
    return re.sub(r'"occured_at": "[^"]+"', '"occured_at": TIME', text)


@runs("README", FIRST)
def test_first_event_is_shown_as_printed(shell: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = blocks("README", FIRST)
    [program] = [block.code for block in found if block.language == "python"]
    [shown] = [block.code for block in found if block.language == "text"]
    typed = [block.code for block in found if block.language == "console"]
    [listen], exports = ([line.removeprefix("$ ") for line in text.splitlines()] for text in typed)
    (shell / "first.py").write_text(program, "utf-8")
    with listening(listen, shell) as (url, lines):
        assert exports.pop(0) in _commands()[:2]  # activates the environment once more
        for line in exports:
            name, _, value = line.removeprefix("export ").partition("=")
            monkeypatch.setenv(name, value)
        assert _without_what_differs(os.environ["VALUED_ENDPOINT"]) == _without_what_differs(url)
        monkeypatch.setenv("VALUED_ENDPOINT", url)
        assert python(shell, "first.py") == ""
    assert _without_what_differs("".join(lines).rstrip()) == _without_what_differs(shown)


def test_its_picture_has_a_text_for_those_who_do_not_see_it() -> None:
    [picture] = doctree("README.rst").findall(docutils.nodes.image)
    assert len(picture["alt"]) > 40
