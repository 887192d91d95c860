"""The plugin, in runs of pytest of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import run
from tests.support.server import Server
from tests.testing.support import assert_passed, outcomes, pytest_in, write

NO_TOKEN = "valued_disabled = true"


@pytest.mark.parametrize("token", ["with a token", "without a token"])
def test_events_are_seen_on_whichever_road_they_come(
    tmp_path: Path, server: Server, token: str
) -> None:
    write(tmp_path, "app.py", "jobs.py", "roads.py")
    # A worker of Celery's takes seconds to end; one pool each.
    if token == "without a token":
        write(tmp_path, ini=NO_TOKEN)
        roads = ("roads.py", "--deselect", "roads.py::test_celery[threads]")
        done = pytest_in(tmp_path, "-q", *roads)
    else:
        roads = ("roads.py", "--deselect", "roads.py::test_celery[prefork]")
        done = pytest_in(tmp_path, "-q", *roads, TOKEN="a-token", ENDPOINT=server.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(outcomes(done)) <= {"passed", "skipped", "deselected"}
    assert outcomes(done)["passed"] >= 14
    assert server.requests == []


def test_workers_of_xdist_see_none_of_each_others_events(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    write(tmp_path, "app.py", "apart.py", ini=NO_TOKEN)
    assert_passed(pytest_in(tmp_path, "-q", "-n", "2", "apart.py", MET=str(tmp_path)), 2)


def test_two_runs_at_the_same_time_see_none_of_each_others_events(tmp_path: Path) -> None:
    write(tmp_path, "app.py", "apart.py", ini=NO_TOKEN)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "apart.py"]
    runs = [
        subprocess.Popen(
            [*command, "-k", f"{number}-"],
            cwd=tmp_path,
            env={**os.environ, "MET": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in (1, 2)
    ]
    said = [run.communicate(timeout=60)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert all("1 passed" in each for each in said)


_OLDER = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
import app, valued

def flush(number):
    app.work(number)
    return valued.flush(10)

pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
pool.submit(int).result()

def test_it(valued_events):
    assert pool.submit(flush, 1).result(30)
    assert valued_events == []
    pool.shutdown()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("disabled", [True, False])
def test_a_pool_that_is_older_than_the_fixture_sends_nothing_where_valued_is_disabled(
    tmp_path: Path, server: Server, disabled: bool
) -> None:
    ini = NO_TOKEN if disabled else ""
    write(tmp_path, "app.py", ini=ini, test_it=_OLDER)
    done = pytest_in(tmp_path, "-q", "-W", "ignore", TOKEN="a-token", ENDPOINT=server.url)
    assert_passed(done, 1)
    assert len(server.requests) == (0 if disabled else 1)  # as the document says


# -- settings --------------------------------------------------------------------------------------

_SAYS = """
import os
VARIABLES = {name: os.environ.get(name) for name in ("VALUED_DISABLED", "VALUED_BLOCK")}
"""

#: An application that is imported by a plugin, before any conftest, as `pytest-django` does.
_EARLY = """
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests():
    import app
"""


@pytest.mark.parametrize("by", ["a test", "a conftest", "a plugin"])
def test_without_a_token_an_application_can_be_imported_where_valued_disabled_says_so(
    tmp_path: Path, by: str
) -> None:
    test = (
        "import app\ndef test_one(valued_events):\n    app.work(1)\n    valued_events.one('worked')"
    )
    write(tmp_path, "app.py", ini=NO_TOKEN, test_app=test)
    if by == "a conftest":
        write(tmp_path, conftest="import app")
    if by == "a plugin":
        write(tmp_path, early=_EARLY)
    options = ("-p", "early") if by == "a plugin" else ()
    path = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    assert_passed(pytest_in(tmp_path, "-q", *options, **path), 1)
    write(tmp_path, ini="")
    done = pytest_in(tmp_path, "-q", *options, **path)
    assert done.returncode != 0
    assert "token" in done.stdout + done.stderr


@pytest.mark.parametrize("given", ["0", "1", None])
def test_valued_disabled_leaves_a_variable_that_is_set(tmp_path: Path, given: str | None) -> None:
    wanted = {"VALUED_DISABLED": given or "1", "VALUED_BLOCK": None}
    test = f"from says import *\ndef test_one():\n    assert VARIABLES == {wanted}"
    write(tmp_path, ini=NO_TOKEN, says=_SAYS, test_it=test)
    more = {} if given is None else {"VALUED_DISABLED": given}
    assert_passed(pytest_in(tmp_path, "-q", **more), 1)


_RUNS = """
import os, sys
import pytest, valued
from valued._http import recording
assert pytest.main(sys.argv[1:]) == 0
assert not [name for name in os.environ if name.startswith("VALUED_")]
assert not recording.blocked
"""


def test_all_is_as_it_was_when_pytest_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {"VALUED_DISABLED": "1", "VALUED_BLOCK": "1"}
    test = f"from says import *\ndef test_one():\n    assert VARIABLES == {wanted}"
    ini = f"{NO_TOKEN}\nvalued_block = true\nfilterwarnings = error"
    write(tmp_path, ini=ini, says=_SAYS, test_it=test, runs=_RUNS)
    monkeypatch.delenv("VALUED_ENV")
    done = run("runs.py", "-q", "-p", "no:cacheprovider", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


@pytest.mark.parametrize("name", ["a conftest", "an option"])
def test_settings_count_where_the_plugin_is_named_by_a_conftest(tmp_path: Path, name: str) -> None:
    test = "from says import *\ndef test_one():\n    assert VARIABLES['VALUED_DISABLED'] == '1'"
    write(tmp_path, ini="", says=_SAYS, test_it=test)
    if name == "a conftest":
        write(tmp_path, conftest="pytest_plugins = ['valued.pytest_plugin']")
    plugin = ("-p", "no:valued") if name == "a conftest" else ()
    assert_passed(pytest_in(tmp_path, "-q", "-o", NO_TOKEN.replace(" ", ""), plugin=plugin), 1)


_BLOCKED = """
import os, subprocess, sys
import pytest, valued
from valued.testing import RealEndpointError

REAL = "https://events.example.com/events"

def record(endpoint):
    client = valued.Client("token", endpoint, retries=0, shutdown_timeout=0)
    client.action("worked", {"user.id": 1})

@pytest.mark.parametrize("endpoint", [REAL, None, "http://10.0.0.1/events", "http://127.example/"])
def test_a_real_endpoint_is_refused(endpoint):
    with pytest.raises(RealEndpointError, match="the fixture valued_events") as refused:
        record(endpoint)
    assert refused.value.host in str(refused.value)
    assert isinstance(refused.value, (valued.ValuedError, RuntimeError))

def test_the_fixture_is_the_way_out(valued_events):
    record(REAL)
    assert valued_events.actions == ["worked"]

def test_a_service_of_this_machine_is_none(valued_service):
    record(None)
    valued_service.wait(1)
    record(valued_service.url.replace("127.0.0.1", "localhost"))
    valued_service.wait(2)

HOSTS = ["127.0.0.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "a.localhost:1"]

@pytest.mark.parametrize("host", HOSTS)
def test_addresses_of_this_machine_are_none(host):
    record(f"http://{host}/events")

def test_a_transport_is_no_endpoint():
    sent = []
    client = valued.Client(sent.append, executor=valued.ImmediateExecutor())
    client.action("worked", {"user.id": 1})
    assert len(sent) == 1

def test_a_program_is_refused_too():
    program = "import valued; valued.Client('token').action('worked', {'user.id': 1})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "valued.testing.RealEndpointError: a test would send" in done.stderr
"""


def test_valued_block_makes_a_real_endpoint_an_error(tmp_path: Path) -> None:
    write(tmp_path, ini="valued_block = true", test_blocked=_BLOCKED)
    assert_passed(pytest_in(tmp_path, "-q"), 12)


def test_an_endpoint_is_no_error_without_valued_block(tmp_path: Path, server: Server) -> None:
    write(tmp_path, "app.py", test_it="import app\ndef test_one():\n    app.work(1)")
    done = pytest_in(tmp_path, "-q", TOKEN="a-token", ENDPOINT=server.url)
    assert_passed(done, 1)
    assert len(server.requests) == 1


# -- at home in pytest -----------------------------------------------------------------------------


def test_a_failure_shows_what_was_recorded_and_the_line_of_the_test(tmp_path: Path) -> None:
    test = """
import app

def test_it(valued_events):
    app.work(1)
    valued_events.one("worked", user={"id": 2})
"""
    write(tmp_path, "app.py", ini=NO_TOKEN, test_it=test)
    done = pytest_in(tmp_path, "-q")
    assert outcomes(done) == {"failed": 1}
    assert '>       valued_events.one("worked", user={"id": 2})' in done.stdout
    assert "E           user.id: expected 2, got 1" in done.stdout
    assert "E           0: action worked user.id=1 attributes.pid=" in done.stdout
    assert "valued/" not in done.stdout  # none of our lines


def test_a_suite_that_uses_none_of_it_notices_nothing(tmp_path: Path, server: Server) -> None:
    test = """
import os, sys

def test_it(request):
    assert not [name for name in os.environ if name.startswith("VALUED")]
    assert not [name for name in request.fixturenames if "valued" in name]
    assert "valued.testing" not in sys.modules
    assert "valued.cli" not in sys.modules
"""
    write(tmp_path, test_it=test)
    assert_passed(pytest_in(tmp_path, "-q"), 1)


def test_a_suite_can_do_without_the_plugin(tmp_path: Path) -> None:
    write(tmp_path, test_it="def test_it():\n    pass")
    assert_passed(pytest_in(tmp_path, "-q", plugin=("-p", "no:valued")), 1)
    write(tmp_path, test_it="def test_it(valued_events):\n    pass")
    done = pytest_in(tmp_path, "-q", plugin=("-p", "no:valued"))
    assert "fixture 'valued_events' not found" in done.stdout


def test_the_plugin_says_what_it_offers(tmp_path: Path) -> None:
    done = pytest_in(tmp_path, "--help")
    assert "valued_disabled (bool)" in done.stdout
    assert "valued_block (bool)" in done.stdout
    said = pytest_in(tmp_path, "--fixtures").stdout
    assert "valued_events" in said
    assert "valued_service" in said


def test_a_test_of_a_plugin_can_run_pytest_within_pytest(tmp_path: Path) -> None:
    test = """
import os, app, pytest

pytest_plugins = "pytester"

@pytest.mark.parametrize("how", ["inprocess", "subprocess"])
def test_it(pytester, valued_events, how):
    app.work(1)
    pytester.makeini("[pytest]\\nvalued_disabled = true")
    pytester.makepyfile(test_inner='''
        import valued
        def test_inner(valued_events):
            valued.Client().action("inner", {"user.id": 1})
            assert valued_events.actions == ["inner"]
    ''')
    pytester._method = how
    pytester.runpytest("-W", "error").assert_outcomes(passed=1)
    app.work(2)
    assert valued_events.actions == ["worked", "worked"]
"""
    write(tmp_path, "app.py", ini=NO_TOKEN, test_it=test)
    assert_passed(pytest_in(tmp_path, "-q"), 2)


def test_importing_the_plugin_brings_in_what_the_library_does_and_pytest() -> None:
    program = """
import json, sys, pytest, {first}
before = set(sys.modules)
import {second}
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    environment = {name: os.environ[name] for name in os.environ if "COV" not in name}
    done = run("-c", program.format(first="valued", second="valued.pytest_plugin"), env=environment)
    assert json.loads(done.stdout) == ["valued.pytest_plugin"], done.stderr
