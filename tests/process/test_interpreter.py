"""Subinterpreters, real ones: threads end with theirs, and isolated ones are refused."""

from __future__ import annotations

import os
import sys

import pytest

from tests.support.processes import run
from valued._process import facts

#: Makes a subinterpreter by what the standard library of each version has, runs CODE, ends it.
PROGRAM = """
import importlib, sys
how, code = sys.argv[1], sys.stdin.read()
if how == "capi":  # as mod_wsgi does, by `Py_NewInterpreter` and `Py_EndInterpreter`
    importlib.import_module("_testcapi").run_in_subinterp(code)
else:
    name = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    interpreters = importlib.import_module(name)
    if how == "isolated":
        made = interpreters.create()
    elif sys.version_info >= (3, 13):
        made = interpreters.create("legacy")
    else:
        made = interpreters.create(isolated=False)
    failed = interpreters.run_string(made, code)
    assert not failed, failed
    interpreters.destroy(made)
print("goes on")
"""

RECORDS = """
import threading, valued
def deliver(event):
    if event["key"] == "last":
        recorded.wait(10)
    print(event["key"], flush=True)
recorded = threading.Event()
client = valued.Client(deliver)
client.action("first", {"user.id": 1})
client.flush(10)
client.action("last", {"user.id": 1})
threading.Timer(0.1, recorded.set).start()
"""

#: Its end would have to wait for a thread that hangs in a look-up.
LOOKS_UP = """
import socket, threading, valued
server = socket.create_server(("127.0.0.1", 0))
asked = []
real = socket.getaddrinfo
def getaddrinfo(*arguments):
    asked.append(threading.current_thread() is threading.main_thread())
    return real(*arguments)
socket.getaddrinfo = getaddrinfo
url = f"http://127.0.0.1:{server.getsockname()[1]}/events"
try:
    valued.Connection("t0ken-of-tests", url, timeout=0.2).post(b"{}")
except valued.DeliveryError as error:
    print(asked, flush=True)
"""

REFUSED = """
import valued
for make in (lambda: valued.Client(print), lambda: valued.Client("t0ken-of-tests")):
    try:
        make()
    except valued.ValuedError as error:
        print(error, flush=True)
"""

SIGNALS = """
import threading, valued
try:
    valued.flush_on_signals()
except ValueError as error:
    print(error, flush=True)
assert threading.active_count() == 1
"""


def in_subinterpreter(how: str, code: str) -> list[str]:
    """The lines that *code* prints, run in a subinterpreter of a new process."""
    module = "_testcapi"
    if how != "capi":
        module = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    pytest.importorskip(module, reason=f"this Python has no {module}")
    # Without coverage, which each new interpreter would start, and can't.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = run("-c", PROGRAM, how, input=code, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("how", ["capi", "legacy"])
def test_a_subinterpreter_delivers_and_ends_its_threads_as_it_ends(how: str) -> None:
    if how == "legacy" and sys.version_info < (3, 12):
        pytest.skip("this module ends no interpreter with threads, and asks none to end them")
    assert in_subinterpreter(how, RECORDS) == ["first", "last", "goes on"]


def test_a_client_that_is_gone_leaves_no_thread_to_the_end_of_its_subinterpreter() -> None:
    lines = in_subinterpreter("capi", RECORDS + "del client\n")
    assert lines == ["first", "last", "goes on"]


def test_a_subinterpreter_looks_up_names_without_a_thread() -> None:
    assert in_subinterpreter("capi", LOOKS_UP) == ["[True]", "goes on"]


def test_an_isolated_subinterpreter_is_refused_as_a_client_is_made() -> None:
    if sys.version_info < (3, 12):
        pytest.skip("before 3.12, no public function makes one")
    *refused, last = in_subinterpreter("isolated", REFUSED)
    line = (
        "this is an isolated subinterpreter, which allows no daemon threads: record events in the "
        "main interpreter, or in a process of its own"
    )
    assert (refused, last) == ([line, line], "goes on")


def test_signals_belong_to_the_main_interpreter() -> None:
    assert in_subinterpreter("capi", SIGNALS) == [
        "flush_on_signals works in the main thread of the main interpreter only",
        "goes on",
    ]


def test_which_interpreter_is_main() -> None:
    code = "from valued._process import facts\nprint(facts.is_main_interpreter(), flush=True)\n"
    assert in_subinterpreter("capi", code) == ["False", "goes on"]
    assert facts.is_main_interpreter()


def test_a_python_without_subinterpreters_has_the_main_one_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("_thread._is_main_interpreter", raising=False)
    monkeypatch.setitem(sys.modules, "_xxsubinterpreters", None)
    assert facts.is_main_interpreter()
