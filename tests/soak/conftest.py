"""The soak runs only where somebody asks for it by its path: it takes long.

After the tests comes a table: one line of figures for each case.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.soak.figures import Figures, Journal, table
from tests.soak.load import USERS, Who
from tests.soak.servers import Case, Site, Start, serve
from tests.support.django_site import Served
from tests.support.processes import run
from tests.support.programs import ROOT
from tests.support.server import Server

_HERE = Path(__file__).parent
_TABLES: pytest.StashKey[list[Figures]] = pytest.StashKey()


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    given = [config.invocation_params.dir / arg.partition("::")[0] for arg in config.args]
    return None if any(path.resolve().is_relative_to(_HERE) for path in given) else True


@pytest.fixture
def keep(request: pytest.FixtureRequest) -> list[Figures]:
    """Figures that are put here are printed in the end."""
    return request.config.stash.setdefault(_TABLES, [])


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    figures = config.stash.get(_TABLES, [])
    if figures:
        terminalreporter.section("figures")
        for line in table(figures):
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    pytest.importorskip("rest_framework")
    database = tmp_path_factory.mktemp("site") / "database.sqlite"
    environment = {**os.environ, "DJANGO_DATABASE": str(database), "VALUED_TOKEN": "any"}
    module = "tests.soak.apps.django_make"
    done = run("-m", module, str(len(USERS)), cwd=ROOT, env=environment, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return Site(database, json.loads(done.stdout))


@pytest.fixture
def start(tmp_path: Path, server: Server, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Start the server of a case; also, its journal, and what its visitors carry."""
    with contextlib.ExitStack() as started:

        def start(case: Case, **options: object) -> tuple[Served, Journal, Who]:
            for module in case.needs:
                pytest.importorskip(module)
            site = request.getfixturevalue("site") if case.django else None
            running = serve(case, tmp_path, server.url, site, options)
            started.enter_context(running[0])
            return running

        yield start
