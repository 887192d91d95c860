"""Every fault mode in several settings: what happens, is counted, logged, and told to on_error.

A setting is where deliveries run, and on which side of a fork the event was recorded: before it,
in the parent, or across it, in the child, by the client that it inherited.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import valued
from tests.faults._raw import RawServer
from tests.faults.modes import MODES, SLOW, Mode, Outcome, Script
from tests.support.processes import VANISHED, vanish
from tests.support.tls import Authority
from valued._delivery import retry as _retry

EXECUTORS: dict[str, Callable[[], Any]] = {
    "default pool": lambda: None,
    "ImmediateExecutor": valued.ImmediateExecutor,
    "factory": lambda: lambda: ThreadPoolExecutor(2),
}

#: Seconds that bound a failure.
BOUND = 20.0

#: Seconds; what stands here for the two minutes that the service can make us wait.
LONGEST_RETRY_AFTER = 0.04

DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "faults.rst"


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_retry, "LONGEST_RETRY_AFTER", LONGEST_RETRY_AFTER)


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a server behind TLS: the right one, and the wrong ones by their modes."""
    ours = Authority(tmp_path_factory.mktemp("ours"))
    strangers = Authority(tmp_path_factory.mktemp("strangers"))
    return {
        "bundle": str(ours.bundle),
        "good": ours.context(),
        "has a certificate of an unknown authority": strangers.context(),
        "has a certificate of another host": ours.context("example.org"),
    }


class Setting:
    """A client of a server that misbehaves, and the side of a fork on which it is used."""

    def __init__(self, script: Script, server: RawServer, client: Any, fork: Any) -> None:
        self.script = script
        self.server = server
        self.client = client
        self._fork = fork

    def before(self, misbehave: float, check: Callable[[], object]) -> None:
        """Record; fork while that is under way; look at it in the parent."""
        self.script.left = misbehave
        self.client.record("a")
        assert self._fork(vanish).wait() == VANISHED
        check()

    def across(self, misbehave: float, check: Callable[[], object]) -> None:
        """Fork with a connection in use; record, and look at it, in the child."""
        self.client.record("warm")
        assert self.client.flush(BOUND)
        self.script.attempts = 0
        self.script.left = misbehave

        def child() -> None:
            self.client.record("a")
            check()

        assert self._fork(child).wait(BOUND) == 0
        stats = self.client.stats()
        assert (stats["accepted"], stats["delivered"], self.client.told) == (1, 1, [])


@pytest.fixture
def setting(
    name: str,
    executor: str,
    serve: Any,
    connect: Any,
    fork: Any,
    contexts: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Setting]:
    def make(retries: int) -> Setting:
        mode = MODES[name]
        tls: list[ssl.SSLContext] = []
        if mode.tls:
            tls = [contexts["good"], contexts[name]]
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", contexts["bundle"])
        script = Script(mode, *tls)
        server = serve(script)
        if mode.tls:
            server.url = server.url.replace("http:", "https:")
        client = connect(
            server,
            retries=retries,
            timeout=SLOW if mode.slow else BOUND,
            executor=EXECUTORS[executor](),
        )
        return Setting(script, server, client, fork)

    return make


def _lines(caplog: Any) -> list[str]:
    lines = [record.getMessage() for record in caplog.records if record.name == "valued"]
    assert not any("s3cret" in line or "user" in line for line in lines)
    return lines


def _assert_lines(caplog: Any, mode: Mode, *beginnings: str) -> None:
    lines = _lines(caplog)
    assert len(lines) == len(beginnings), lines
    for line, beginning in zip(lines, beginnings, strict=True):
        assert line.startswith(beginning)
        assert mode.says in line


def _assert_figures(client: Any, **expected: int) -> None:
    stats = client.stats()
    figures = {name: stats[name] for name in expected}
    assert figures == expected
    assert stats["accepted"] == stats["delivered"] + stats["failed"]
    assert stats["pending"] == stats["dropped"] == 0


#: A promise that is tested once for each mode is tested with each executor, on both sides.
EACH = [("default pool", "across"), ("ImmediateExecutor", "before"), ("factory", "across")]
#: One that is tested twice, in half of that each time.
HALVES = (
    [("default pool", "across"), ("ImmediateExecutor", "before")],
    [("default pool", "before"), ("factory", "across")],
)


def everywhere(name: Any, settings: list[tuple[str, str]]) -> Any:
    """Run a test by these modes in these settings."""
    modes = pytest.mark.parametrize("name", name)
    return lambda test: modes(pytest.mark.parametrize(("executor", "fork_is"), settings)(test))


def _names(*outcomes: Outcome) -> list[str]:
    return [name for name, mode in MODES.items() if mode.outcome in outcomes]


@everywhere(_names(Outcome.RETRY), HALVES[0])
def test_a_fault_that_passes_costs_an_attempt_and_one_log_line(
    name: str, executor: str, fork_is: str, setting: Any, caplog: Any
) -> None:
    here = setting(retries=100)
    mode = MODES[name]

    def check() -> None:
        assert here.client.flush(BOUND)
        _assert_lines(caplog, mode, "1 delivery failed and will be retried; ")
        assert here.client.told == []
        if not mode.slow:  # else a good answer might have been too slow for it, too
            _assert_figures(here.client, delivered=1, failed=0, retried=mode.times)

    getattr(here, fork_is)(mode.times, check)
    if not mode.slow:
        assert here.script.attempts == mode.times + 1
    mine = [n for n, key in enumerate(here.server.keys) if key == "a"]
    assert len({here.server.headers[n]["idempotency-key"] for n in mine}) == 1


@everywhere(_names(Outcome.RETRY), HALVES[1])
def test_a_fault_that_lasts_is_given_up_counted_logged_and_told(
    name: str, executor: str, fork_is: str, setting: Any, caplog: Any
) -> None:
    here = setting(retries=1)
    mode = MODES[name]

    def check() -> None:
        assert here.client.flush(BOUND)
        ((error, event),) = here.client.given_up(1)
        assert (error.status, error.attempts, event["key"]) == (mode.status, 2, "a")
        assert mode.says in error.reason
        if mode.waits:
            assert error.age >= LONGEST_RETRY_AFTER
        if mode.slow:
            assert 2 * SLOW <= error.age < 2 * SLOW + 3.0
        _assert_lines(
            caplog, mode, "1 delivery failed and will be retried", "1 event failed permanently; "
        )
        _assert_figures(here.client, delivered=0, failed=1, retried=1)

    getattr(here, fork_is)(math.inf, check)
    assert here.script.attempts == 2


@everywhere(_names(Outcome.FINAL), EACH)
def test_a_permanent_refusal_fails_at_once_and_is_counted_logged_and_told(
    name: str, executor: str, fork_is: str, setting: Any, caplog: Any
) -> None:
    here = setting(retries=100)
    mode = MODES[name]

    def check() -> None:
        assert here.client.flush(BOUND)
        ((error, event),) = here.client.given_up(1)
        assert (error.status, error.attempts, event["key"]) == (mode.status, 1, "a")
        assert mode.says in error.reason
        assert 0 < len(error.body) <= 500
        _assert_lines(caplog, mode, "1 event failed permanently; ")
        _assert_figures(here.client, delivered=0, failed=1, retried=0)

    getattr(here, fork_is)(math.inf, check)
    assert here.script.attempts == 1


@everywhere(_names(Outcome.SUCCESS), EACH)
def test_what_goes_wrong_after_a_success_changes_nothing_and_is_not_said(
    name: str, executor: str, fork_is: str, setting: Any, caplog: Any
) -> None:
    here = setting(retries=100)
    mode = MODES[name]
    closed = Closing(here.script)

    def check() -> None:
        assert here.client.flush(BOUND)
        closed.wait()
        here.client.record("b")
        assert here.client.flush(BOUND)
        _assert_lines(caplog, mode)
        assert here.client.told == []
        _assert_figures(here.client, delivered=2, failed=0, retried=0)

    with closed:
        getattr(here, fork_is)(1, check)
    assert [key for key in here.server.keys if key != "warm"] == ["a", "b"]


class Closing:
    """Tells across a fork that the server has closed the connection that it misbehaved on."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._ends: tuple[int, int] = os.pipe()

    def wait(self) -> None:
        assert os.read(self._ends[0], 1)

    def __enter__(self) -> None:
        fault = self._script.fault

        def closing(peer: Any) -> bool:
            with contextlib.suppress(OSError):  # a client that has read enough closes first
                fault(peer)
            peer.sock.close()
            os.write(self._ends[1], b".")
            return False

        self._script.fault = closing

    def __exit__(self, *_error: object) -> None:
        for end in self._ends:
            os.close(end)


def test_each_mode_has_its_row_and_each_row_its_mode() -> None:
    text = DOCUMENT.read_text("utf-8")
    table = text.partition("\nFault modes\n")[2].partition("\nAddresses and names\n")[0]
    rows = re.findall(r"^   \* - (.+)$", table, re.MULTILINE)
    named = [name.strip("`") for row in rows[1:] for name in row.split("; ")]
    assert sorted(named) == sorted(MODES)
