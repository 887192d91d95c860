"""`valued.testing.recorded`, and what its events can be asked."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import datetime
import enum
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
import unittest
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import valued
from tests.support.processes import Child, run
from tests.support.server import Server
from valued.testing import Events, recorded

VARIABLE = "VALUED_RECORD"


@pytest.fixture
def events(recorder: valued.Client, sent: list[dict[str, Any]]) -> Iterator[Events]:
    """Recording, in which nothing may be sent."""
    with recorded() as events:
        yield events
    assert sent == []


def _report(client: valued.Client, user: int, **attributes: Any) -> None:
    client.action(
        "report.generated", user={"id": user}, **attributes and {"attributes": attributes}
    )


def _failure(function: Callable[..., object], *arguments: Any, **expected: Any) -> str:
    with pytest.raises(AssertionError) as failed:
        function(*arguments, **expected)
    return str(failed.value)


# -- what is recorded ------------------------------------------------------------------------------


def test_events_are_what_would_be_sent(events: Events, recorder: valued.Client) -> None:
    recorder.action("report.generated", {"user.id": 1, "attributes.plan": "pro"})
    recorder.page_view("https://example.com/reports", {"user.id": 1})
    recorder.sync_user(id=1, name="Ada")
    recorder.config(goals=[{"name": "First", "action_key": "report.generated"}])
    action, view, sync, config = events
    assert (action["key"], action["user"], action["attributes"]) == (
        "report.generated", {"id": 1}, {"plan": "pro"},
    )  # fmt: skip
    assert view["attributes"] == {"source": {"url": "https://example.com/reports"}}
    assert sync["user"] == {"id": 1, "name": "Ada"}
    assert config["category"] == "config"
    for event in events:
        valued.validate(event)
        assert datetime.datetime.fromisoformat(event["occured_at"]).tzinfo is not None
    assert events.actions == ["report.generated"]
    assert events.page_views == ["https://example.com/reports"]
    assert events.syncs == [sync]
    assert events.pids == {os.getpid()}


def test_events_are_a_live_sequence(events: Events, recorder: valued.Client) -> None:
    assert (len(events), list(events), bool(events)) == (0, [], False)
    for user in range(3):
        _report(recorder, user)
    assert _users(events)[0] == [0, 1, 2]
    assert events[-1]["user"] == {"id": 2}
    assert [event["user"]["id"] for event in events[:2]] == [0, 1]
    with pytest.raises(IndexError):
        events[3]
    assert events == [*events]
    assert events == (*events,)
    assert events != []
    assert events != 3
    with pytest.raises(TypeError):
        hash(events)
    events.clear()
    assert events == []
    _report(recorder, 3)
    assert _users(events)[0] == [3]


def test_a_bad_event_is_refused_as_ever_and_not_recorded(
    events: Events, recorder: valued.Client
) -> None:
    with pytest.raises(valued.ValidationError):
        recorder.action("report.generated")
    assert events == []


def test_a_client_of_a_real_endpoint_sends_nothing(server: Server, client: valued.Client) -> None:
    with recorded() as events:
        _report(client, 1)
        assert client.flush(5)
    assert len(events) == 1
    _report(client, 2)
    server.wait_for(1)
    assert [event["user"]["id"] for event in server.events] == [2]


def test_each_event_of_many_threads_is_recorded_once_and_whole(
    events: Events, recorder: valued.Client
) -> None:
    def record(first: int) -> None:
        for user in range(first, first + 200):
            _report(recorder, user, text="x" * user)

    threads = [threading.Thread(target=record, args=(first,)) for first in range(0, 1600, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(event["user"]["id"] for event in events) == list(range(1600))


def test_a_line_that_is_still_being_written_is_no_event_yet(recorder: valued.Client) -> None:
    with recorded() as events:
        _report(recorder, 1)
        [file] = Path(os.environ[VARIABLE]).iterdir()
        with file.open("ab") as half:
            half.write(b'{"pid":1,"event":{"cat')
        assert len(events) == 1


# -- beginnings and ends ---------------------------------------------------------------------------


def test_all_is_as_it_was_afterwards(
    recorder: valued.Client, sent: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    before = dict(os.environ)
    with contextlib.suppress(ZeroDivisionError), recorded() as events:
        home = Path(os.environ[VARIABLE])
        assert home.stat().st_mode & 0o077 == 0
        _report(recorder, 1)
        raise ZeroDivisionError
    assert dict(os.environ) == before
    assert not home.exists()
    _report(recorder, 2)
    assert _users(sent)[0] == [2]
    assert _users(events)[0] == [1]


def test_a_variable_that_was_set_is_set_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/of/another/program")
    with recorded():
        assert os.environ[VARIABLE] != "/of/another/program"
    assert os.environ[VARIABLE] == "/of/another/program"


def test_of_nested_blocks_the_inner_one_records(events: Events, recorder: valued.Client) -> None:
    _report(recorder, 1)
    with recorded() as inner:
        _report(recorder, 2)
        with recorded() as innermost:
            _report(recorder, 3)
        _report(recorder, 4)
    _report(recorder, 5)
    assert _users(events, inner, innermost) == [[1, 5], [2, 4], [3]]


def test_blocks_that_end_in_another_order_keep_the_one_that_is_left(
    recorder: valued.Client, sent: list[dict[str, Any]]
) -> None:
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        one, two = first.enter_context(recorded()), second.enter_context(recorded())
        first.close()
        _report(recorder, 1)
        second.close()
        _report(recorder, 2)
    assert (len(one), len(two), len(sent)) == (0, 1, 1)


def test_an_event_that_is_being_recorded_when_the_block_ends_is_not_sent() -> None:
    block, sent = contextlib.ExitStack(), []

    def end(event: dict[str, Any]) -> dict[str, Any]:
        block.close()
        return event

    client = valued.Client(sent.append, executor=valued.ImmediateExecutor(), before_send=end)
    events = block.enter_context(recorded())
    _report(client, 1)
    assert (len(events), sent) == (0, [])


def test_a_forked_child_writes_into_the_file_of_its_parent(
    events: Events, recorder: valued.Client, fork: Callable[..., Child]
) -> None:
    child = fork(_report, recorder, 7)
    assert child.wait() == 0
    assert events.one("report.generated")["user"] == {"id": 7}
    assert events.pids == {child.pid}


def test_a_forked_child_that_leaves_the_block_takes_nothing_from_its_parent(
    recorder: valued.Client, fork: Callable[..., Child]
) -> None:
    with contextlib.ExitStack() as block:
        events = block.enter_context(recorded())

        def leave() -> None:
            block.close()
            _report(recorder, 7)

        assert fork(leave).wait() == 0
        _report(recorder, 8)
        assert _users(events)[0] == [7, 8]


def test_a_forked_child_can_record_for_itself(
    events: Events, recorder: valued.Client, fork: Callable[..., Child]
) -> None:
    def record() -> None:
        with recorded() as own:
            _report(recorder, 1)
            assert len(own) == 1
        _report(recorder, 2)

    assert fork(record).wait() == 0
    assert _users(events)[0] == [2]


_WHO = """
import sys, valued
client = valued.Client(lambda event: print("sent"), executor=valued.ImmediateExecutor())
for line in sys.stdin:
    client.action("told", {"user.id": int(line)})
    print("told", flush=True)
"""


class Program:
    """A program that is told something by lines, and answers each by one."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def tell(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def end(self, line: str) -> str:
        return self.process.communicate(line, timeout=30)[0]


def _users(*recordings: Any) -> list[list[Any]]:
    return [[event["user"]["id"] for event in each] for each in recordings]


def test_who_outlives_a_test_never_sends_and_shows_up_in_the_recording_that_is_open() -> None:
    with recorded() as first:
        program = Program(_WHO)
        assert program.tell("1\n") == "told\n"
        first.one("told", {"user.id": 1})
        home = Path(os.environ[VARIABLE])
    assert program.tell("2\n") == "told\n"
    assert not home.exists()
    with recorded() as second:
        assert program.tell("3\n") == "told\n"
        assert len([*home.iterdir()]) == 1
    assert program.end("4\n") == "told\n"
    assert not home.exists()
    assert _users(first, second) == [[1], [3]]


def test_who_begins_to_record_between_two_tests_shows_up_in_the_second() -> None:
    late = _WHO.replace("client = ", "print('ready', flush=True); sys.stdin.readline(); client = ")
    with recorded() as first:
        program = Program(late)
        assert program.answer() == "ready\n"
    assert program.tell("make the client\n1\n") == "told\n"
    with recorded() as second:
        assert program.end("2\n") == "told\n"
    assert _users(first, second) == [[], [2]]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("outer", [False, True])
def test_a_pool_of_forked_processes_is_seen_by_each_test_that_uses_it(outer: bool) -> None:
    around: Any = recorded() if outer else contextlib.nullcontext([])
    with around as around_all, contextlib.ExitStack() as stack:
        with recorded() as first:
            pool = stack.enter_context(_forking_pool())
            pool.submit(_tell, 1).result(30)
        pool.submit(_tell, 2).result(30)
        with recorded() as second:
            pool.submit(_tell, 3).result(30)
        with recorded() as third:
            pool.submit(_tell, 4).result(30)
        with recorded() as unused:
            pass
        assert _users(first, second, third, unused) == [[1], [3], [4], []]
        assert [event["user"]["id"] for event in around_all] == ([2] if outer else [])
        assert pool.submit(_what_was_sent).result(30) == []


_told: list[dict[str, Any]] = []
_teller = valued.Client(_told.append, executor=valued.ImmediateExecutor())


def _tell(user: int) -> None:
    _teller.action("told", {"user.id": user})


def _what_was_sent() -> list[dict[str, Any]]:
    return _told


def _forking_pool() -> concurrent.futures.ProcessPoolExecutor:
    fork = multiprocessing.get_context("fork")
    return concurrent.futures.ProcessPoolExecutor(1, mp_context=fork)


_LEAVING = """
import subprocess, sys
from valued.testing import recorded
with recorded() as events:
    subprocess.Popen([sys.executable, "-c", sys.argv[1]])
    events.wait(1, timeout=30)
"""


def test_who_was_left_by_one_process_writes_into_no_recording_of_another() -> None:
    other = Program(_LEAVING, _WHO)
    with other.process, recorded() as ours:  # the end of its input ends who was left
        for user in ("1\n", "2\n"):
            assert other.tell(user) == "told\n"
            assert other.process.wait(30) == 0
        assert ours == []


@pytest.mark.parametrize("how", ["with recorded(): look()", "look()"])
def test_no_event_imports_what_a_fork_could_be_amid(tmp_path: Path, how: str) -> None:
    program = f"""
import os, sys, valued
from valued.testing import recorded
def look():
    client = valued.Client()
    before = {{*sys.modules}}
    client.action("k", {{"user.id": 1}})
    assert {{*sys.modules}} == before, {{*sys.modules}} - before
{how}
"""
    environment = {**os.environ, "VALUED_DISABLED": "1", VARIABLE: str(tmp_path)}
    done = run("-c", program, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kind", ["nothing", "empty", "of something else"])
def test_a_program_without_a_recording_to_join_drops_its_events(tmp_path: Path, kind: str) -> None:
    home = tmp_path / "home"
    if kind != "nothing":
        home.mkdir()
    if kind == "of something else":
        (home / "text").touch()
    done = run("-c", _WHO, input="1\n", env={**os.environ, VARIABLE: str(home)})
    assert (done.returncode, done.stdout, done.stderr) == (0, "told\n", "")


def test_where_no_file_can_be_made_nothing_is_recorded_and_the_next_one_is(
    recorder: valued.Client, sent: list[dict[str, Any]]
) -> None:
    before = dict(os.environ)
    full = mock.patch("os.open", side_effect=OSError("no room"))
    with full, pytest.raises(OSError):
        recorded().__enter__()
    assert dict(os.environ) == before
    _report(recorder, 1)
    assert len(sent) == 1
    with recorded() as events:
        _report(recorder, 2)
    assert len(events) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full disk here")
def test_a_full_disk_breaks_no_application(
    recorder: valued.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from valued._http import recording

    monkeypatch.setattr(recording, "target", "/dev/full")
    _report(recorder, 1)


def test_gevent_switches_while_a_test_waits() -> None:
    pytest.importorskip("gevent")
    done = run(
        "-c",
        """
from gevent import monkey; monkey.patch_all()
import gevent, valued
from valued.testing import recorded, service
client = valued.Client(lambda event: None)
with recorded() as events:
    gevent.spawn_later(0.05, client.action, "later", {"user.id": 1})
    events.wait(1, timeout=5)
with service() as listening:
    client = valued.Client()
    gevent.spawn(client.action, "sent", {"user.id": 1})
    listening.wait(1, timeout=5)
    client.close()
""",
    )
    assert (done.returncode, done.stderr) == (0, "")


# -- unittest --------------------------------------------------------------------------------------


def test_it_works_in_a_set_up_of_unittest(
    recorder: valued.Client, sent: list[dict[str, Any]]
) -> None:
    class Case(unittest.TestCase):
        def setUp(self) -> None:
            stack = contextlib.ExitStack()  # `enterContext` came with Python 3.11
            self.addCleanup(stack.close)
            self.events = stack.enter_context(recorded())

        def test_one(self) -> None:
            _report(recorder, 1)
            self.events.one("report.generated", {"user.id": 1})

        def test_other(self) -> None:
            self.events.none()
            _report(recorder, 2)
            self.events.one("report.generated", {"user.id": 3})

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Case).run(result)
    assert (result.testsRun, len(result.errors), len(result.failures)) == (2, 0, 1)
    assert "user.id: expected 3, got 2" in result.failures[0][1]
    assert sent == []


# -- waiting ---------------------------------------------------------------------------------------


def test_wait_returns_with_the_event_that_it_waits_for(
    events: Events, recorder: valued.Client
) -> None:
    thread = threading.Timer(0.1, _report, (recorder, 1))
    thread.start()
    started = time.monotonic()
    assert events.wait(1, timeout=20) is events
    assert time.monotonic() - started < 10
    assert len(events) == 1
    thread.join()


def test_wait_gives_up_and_says_what_there_is(events: Events, recorder: valued.Client) -> None:
    _report(recorder, 1)
    assert events.wait(1, timeout=0) == events.wait(0)
    text = _failure(events.wait, 2, timeout=0.05)
    assert text == (
        "1 event in 0.05 s, expected 2\nrecorded:\n    0: action report.generated user.id=1"
    )


@pytest.mark.parametrize("stopped", ["time.monotonic", "time.time"])
def test_wait_gives_up_where_the_test_has_stopped_the_clock(events: Events, stopped: str) -> None:
    with mock.patch(stopped, return_value=0.0):
        assert _failure(events.wait, 1, timeout=0.05) == (
            "0 events in 0.05 s, expected 1\nnothing was recorded"
        )


def test_events_are_seen_where_the_test_has_replaced_functions_of_the_system(
    events: Events, recorder: valued.Client
) -> None:
    thread = threading.Timer(0.2, _report, (recorder, 1))
    thread.start()
    with mock.patch("time.sleep"), mock.patch("builtins.open", mock.mock_open()):
        events.wait(1, timeout=10)
        assert events.actions == ["report.generated"]
    thread.join()


def test_wait_in_a_thread_lets_an_event_loop_go_on(events: Events, recorder: valued.Client) -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_later(0.05, _report, recorder, 1)
        await asyncio.to_thread(events.wait, 1)

    asyncio.run(main())
    assert len(events) == 1


# -- matching --------------------------------------------------------------------------------------


@pytest.fixture
def reports(events: Events, recorder: valued.Client) -> Events:
    """Reports of users 1, 2 and 3, a page view and a sync."""
    for user in (1, 2, 3):
        _report(recorder, user, pages=user * 10, format={"name": "pdf", "version": 2})
    recorder.page_view("https://example.com/reports", {"user.id": 1})
    recorder.sync_customer(id="c", name="BBC Radio")
    return events


@pytest.mark.parametrize(
    ("number", "arguments", "fields"),
    [
        pytest.param(1, ["report.generated"], {"user": {"id": 2}}, id="a field"),
        pytest.param(1, ["report.generated", {"user.id": 2}], {}, id="a dotted field"),
        pytest.param(1, [{"user.id": 2}], {}, id="without a key"),
        pytest.param(1, [], {"key": "report.generated", "user": {"id": 2}}, id="key as a field"),
        pytest.param(1, [], {"attributes": {"pages": 20}}, id="a part of the attributes"),
        pytest.param(1, [], {"attributes": {"format.version": 2, "pages": 20}}, id="dots below"),
        pytest.param(1, [{"user.id": 2, "user": {}}], {}, id="names that begin alike"),
        pytest.param(1, [{"user.id": 2}], {"customer": None}, id="a field that is missing"),
        pytest.param(1, [{"user.id": 2}], {"attributes": mock.ANY}, id="anything"),
        pytest.param(3, ["https://example.com/reports"], {"user": {"id": 1}}, id="a URL"),
        pytest.param(4, [], {"category": "sync", "customer": {"id": "c"}}, id="a category"),
        pytest.param(4, ["sync"], {}, id="a category as the key"),
    ],
)
def test_one_finds_the_event_by_what_it_holds(
    reports: Events, number: int, arguments: list[Any], fields: dict[str, Any]
) -> None:
    assert reports.one(*arguments, **fields) == reports[number]
    assert reports.all(*arguments, **fields) == [reports[number]]
    assert "expected no event that matches" in _failure(reports.none, *arguments, **fields)


def test_values_are_converted_as_those_of_events(events: Events, recorder: valued.Client) -> None:
    identity, day = uuid.uuid4(), datetime.date(2026, 1, 2)
    recorder.action("report.generated", user={"id": identity}, attributes={"day": day, "of": (1,)})
    events.one("report.generated", user={"id": identity}, attributes={"day": day, "of": (1,)})
    events.one("report.generated", user={"id": str(identity)}, attributes={"day": "2026-01-02"})
    events.none("report.generated", user={"id": uuid.uuid4()})


@pytest.mark.parametrize(
    ("held", "wanted"),
    [(1, True), (True, 1), (0, False), (False, 0.0), (1.0, True)],
)
@pytest.mark.parametrize("depth", ["plain", "listed", "in a list of mappings", "in a tuple"])
def test_true_is_not_one(
    events: Events, recorder: valued.Client, held: Any, wanted: Any, depth: str
) -> None:
    def at_depth(value: Any) -> Any:
        return {
            "plain": value,
            "listed": [["a", value]],
            "in a list of mappings": [{"b": {"c": value}, "d": 2}],
            "in a tuple": ("a", value),
        }[depth]

    recorder.action("told", {"user.id": 1}, attributes={"value": at_depth(held)})
    events.one("told", attributes={"value": at_depth(held)})
    events.none("told", attributes={"value": at_depth(wanted)})
    events.none("told", {"attributes.value": at_depth(wanted)})


class _Field(enum.Enum):
    NUMBER = "attributes.n"


@pytest.mark.parametrize(
    "wanted",
    [
        {("attributes", "n"): 1},
        {_Field.NUMBER: 1},
        {("attributes", 5): "five"},
        {"attributes": {5: "five", ("m", "k"): 2}},
        {"attributes.5": "five"},
    ],
)
def test_keys_are_those_that_the_client_takes(
    events: Events, recorder: valued.Client, wanted: dict[Any, Any]
) -> None:
    recorder.action("told", {"user.id": 1}, attributes={"n": 1, 5: "five", "m": {"k": 2}})
    assert events.one("told", wanted) == events[0]
    recorder.action("told", {"user.id": 2})
    assert events.all("told", wanted) == [events[0]]


def test_what_is_sought_reads_as_it_would_be_sent(events: Events) -> None:
    text = _failure(events.one, "told", {("attributes", "n"): 1, 5: 2})
    assert text.startswith("no event matches 'told', attributes.n=1, 5=2\n")


@pytest.mark.parametrize("key", [None, True, "", "user..id", object(), ()])
def test_a_name_that_the_client_refuses_is_refused(
    events: Events, recorder: valued.Client, key: Any
) -> None:
    for ask in (events.one, events.all, events.none):
        with pytest.raises(valued.SerializationError):
            ask("told", {key: 1})
    with pytest.raises(valued.SerializationError):
        recorder.action("told", {key: 1})


class _Key(str, enum.Enum):  # `StrEnum` came with Python 3.11
    TOLD = "told"


@dataclasses.dataclass
class _Told:
    user: dict[str, int]


def test_key_and_data_are_converted_as_those_of_events(
    events: Events, recorder: valued.Client
) -> None:
    key: Any = _Key.TOLD
    data: Any = _Told({"id": 1})
    recorder.action(key, data)
    for arguments in ((key,), (key, data), ("told", data), (data,)):
        assert events.one(*arguments) == events[0]
    events.none(key, _Told({"id": 2}))  # type: ignore[arg-type]
    with pytest.raises(valued.ValidationError, match="data: expected a mapping, got int"):
        events.one("told", 5)  # type: ignore[arg-type]


def test_what_compares_in_its_own_way_counts_at_any_depth(
    events: Events, recorder: valued.Client
) -> None:
    recorder.action("told", {"user.id": 1}, attributes={"of": [1, {"a": True, "b": 2}], "on": True})
    about = pytest.approx(1.01, abs=0.1)
    events.one(attributes={"of": [mock.ANY, {"a": mock.ANY, "b": 2}], "on": mock.ANY})
    events.one(attributes={"of": (about, mock.ANY)})
    events.none(attributes={"of": [mock.ANY, {"a": 1, "b": mock.ANY}]})
    events.none(attributes={"of": [mock.ANY]})
    events.none(attributes={"of": [about, {"a": True}]})


@pytest.mark.parametrize(
    ("fields", "difference"),
    [
        ({"user": {"id": 4}}, "user.id: expected 4, got 3"),
        ({"user.id": "3"}, "user.id: expected '3', got 3"),
        ({"customer.id": 3}, "customer.id: expected 3, got nothing"),
        ({"customer": {"id": 3}}, "customer.id: expected 3, got nothing"),
        ({"attributes": None}, "attributes: expected nothing, got {'pages': 30}"),
        ({"attributes.pages.count": 1}, "attributes.pages.count: expected 1, got nothing"),
        ({"attributes.pages": {"count": 1}}, "attributes.pages: expected {'count': 1}, got 30"),
        ({"user.id": object}, "user.id: expected <class 'object'>, got 3"),
    ],
)
def test_a_failure_names_what_differs(
    events: Events, recorder: valued.Client, fields: dict[str, Any], difference: str
) -> None:
    _report(recorder, 3, pages=30)
    lines = _failure(events.one, "report.generated", fields).splitlines()
    assert lines[0].startswith("no event matches 'report.generated', ")
    assert lines[1:] == [
        "the nearest is number 0:",
        f"    {difference}",
        "recorded:",
        "    0: action report.generated user.id=3 attributes.pages=30",
    ]
    assert events.all("report.generated", fields) == []
    events.none("report.generated", fields)


def test_a_failure_shows_the_nearest_event_and_all_others(reports: Events) -> None:
    text = _failure(reports.one, "report.generatd", user={"id": 2}, attributes={"pages": 1})
    assert (
        text
        == """\
no event matches 'report.generatd', user={'id': 2}, attributes={'pages': 1}
the nearest is number 1:
    key: expected 'report.generatd', got 'report.generated'
    attributes.pages: expected 1, got 20
recorded:
    0: action report.generated user.id=1 attributes.pages=10 attributes.format.name='pdf' \
attributes.format.version=2
    1: action report.generated user.id=2 attributes.pages=20 attributes.format.name='pdf' \
attributes.format.version=2
    2: action report.generated user.id=3 attributes.pages=30 attributes.format.name='pdf' \
attributes.format.version=2
    3: pageview https://example.com/reports user.id=1
    4: sync customer.id='c' customer.name='BBC Radio'"""
    )
    text = _failure(reports.one, "https://example.com/report")
    assert "url: expected 'https://example.com/report', got 'https://example.com/reports'" in text


def test_several_that_match_are_too_many(reports: Events) -> None:
    text = _failure(reports.one, "report.generated")
    assert text.startswith("3 events match 'report.generated', not one\nrecorded:\n    0: action")


def test_a_failure_where_nothing_was_recorded_says_so(events: Events) -> None:
    assert _failure(events.one) == "no event matches anything\nnothing was recorded"
    events.none()


def test_a_long_failure_is_cut(events: Events, recorder: valued.Client) -> None:
    for user in range(25):
        _report(recorder, user, text="x" * 1000, empty={})
    text = _failure(events.none)
    assert "attributes.empty={}" in text
    assert text.endswith("\n    … and 5 more")
    assert max(map(len, text.splitlines())) < 200
    assert repr(events).startswith("<25 events; action report.generated user.id=0 attributes.text=")
    assert len(re.findall("report.generated", repr(events))) == 20


def test_a_key_that_is_none_is_refused(events: Events) -> None:
    with pytest.raises(valued.ValidationError, match="key: expected a key or a URL, got int"):
        events.one(5)  # type: ignore[arg-type]
