"""Runs what a page prints: its files, its scripts, and what uses them."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.support.documents import Block, sections, write_files
from tests.support.processes import run
from tests.support.server import Server

TOKEN = "a-token-of-the-reader"

_Test = TypeVar("_Test", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Case:
    """How a section of a page is run, and what has to come of it.

    Blocks whose first line names a file are written. Those without a name are one script, which
    runs after *driver*, and must print what the section's blocks of ``text`` say.
    """

    #: How many events the service gets.
    events: int = 0
    #: Arguments of a Python that uses the files, such as ``("-c", "import app; app.work()")``.
    driver: tuple[str, ...] = ()
    #: Sections of the same page whose files and scripts come before.
    after: tuple[str, ...] = ()
    #: Packages without which it is skipped.
    needs: tuple[str, ...] = ()
    #: Environment variables besides the token and the endpoint.
    environment: tuple[tuple[str, str], ...] = ()
    #: Whether the ``text`` blocks of the section are what its script prints.
    prints: bool = True
    #: Whether what it prints on stderr is of no matter; else it must be quiet.
    may_complain: bool = False


#: By page (without ``docs/`` and ``.rst``) and title of the section.
Cases = dict[tuple[str, str], Case]


def runs(page: str, *titles: str) -> Callable[[_Test], _Test]:
    """Say of a test which sections it runs; ``tests/docs/test_all.py`` counts them."""

    def mark(test: _Test) -> _Test:
        test.runs = [(page, title) for title in titles]  # type: ignore[attr-defined]
        return test

    return mark


def document(page: str) -> str:
    """The path of a page: ``howto/django`` is ``docs/howto/django.rst``."""
    return "README.rst" if page == "README" else f"docs/{page}.rst"


def blocks(page: str, *titles: str) -> list[Block]:
    """The code blocks of these sections, in this order."""
    found = sections(document(page))
    return [block for title in titles for block in found[title]]


def python(
    folder: Path,
    *arguments: str,
    quiet: bool = True,
    timeout: float = 60,
    environment: dict[str, str] | None = None,
) -> str:
    """What Python, run with *arguments* in *folder*, printed; it must end well and quietly."""
    done = run(*arguments, cwd=folder, env=environment, stdin=subprocess.DEVNULL, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    if quiet:
        assert done.stderr == "", done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return done.stdout


def objects(found: list[Block]) -> Iterator[dict[str, Any]]:
    """The JSON objects that blocks print."""
    decoder = json.JSONDecoder()
    for block in found:
        text = block.code.strip() if block.language == "json" else ""
        while text:
            one, end = decoder.raw_decode(text)
            yield one
            text = text[end:].lstrip()


def assert_arrived(server: Server, count: int, printed: list[Block]) -> None:
    """*count* events came, each once, and among them those that the page prints."""
    arrived = server.events
    assert len(arrived) == count, arrived
    keys = [it.headers["Idempotency-Key"] for it in server.requests
            if "Idempotency-Key" in it.headers]  # fmt: skip
    assert len(keys) == len(set(keys))
    for event in arrived:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", event["occured_at"])
    assert {it.headers["Authorization"] for it in server.requests} <= {f"Bearer {TOKEN}"}
    for one in objects(printed):
        alike = [it for it in arrived if {**it, "occured_at": ""} == {**one, "occured_at": ""}]
        assert len(alike) == 1, one


def run_section(page: str, title: str, case: Case, folder: Path, server: Server) -> None:
    """Run a section as its page prints it."""
    for name in case.needs:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    environment = {**os.environ, **dict(case.environment)}
    before = [it for it in blocks(page, *case.after) if it.language == "python"]
    here = blocks(page, title)
    ours = [it for it in here if it.language == "python"]
    write_files(folder, [*before, *here])
    if case.driver:
        python(folder, *case.driver, quiet=not case.may_complain, environment=environment)
    script = "\n".join(it.code for it in (*before, *ours) if it.file is None)
    if script:
        (folder / "script.py").write_text(script, "utf-8")
        output = python(folder, "script.py", quiet=not case.may_complain, environment=environment)
        if case.prints:
            texts = [it.code for it in here if it.language == "text" and it.file is None]
            assert output.splitlines() == "\n".join(texts).splitlines()
    assert script or case.driver, "nothing uses the files of this section"
    assert_arrived(server, case.events, here)
