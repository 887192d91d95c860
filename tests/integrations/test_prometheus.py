"""The collector for ``prometheus_client``: the counts of all processes, whichever is asked."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import valued
from tests.support.processes import Child, run

prometheus_client = pytest.importorskip("prometheus_client")

from valued.integrations.prometheus import Collector  # noqa: E402 - where it is installed

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


def record(place: Path, count: int) -> None:
    with valued.Client(lambda _event: None, status=place) as client:
        for number in range(count):
            client.action("recorded", {"user.id": number})


def test_scrape_has_the_counts_of_all_processes_the_dead_too(
    tmp_path: Path, fork: Callable[..., Child]
) -> None:
    registry = prometheus_client.CollectorRegistry()
    registry.register(Collector(tmp_path))
    assert registry.get_sample_value("valued_events_delivered_total") == 0
    for count in (2, 3):
        assert fork(record, tmp_path, count).wait() == 0
    record(tmp_path, 4)
    assert registry.get_sample_value("valued_events_delivered_total") == 9
    assert registry.get_sample_value("valued_events_dropped_total", {"reason": "exit"}) == 0
    assert registry.get_sample_value("valued_events_not_accepted_total", {"reason": "invalid"}) == 0
    assert registry.get_sample_value("valued_events_pending") == 0
    assert registry.get_sample_value("valued_processes") == 1


def test_directory_is_that_of_the_environment_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUED_STATUS", str(tmp_path))
    record(tmp_path, 2)
    (family,) = [it for it in Collector().collect() if it.name == "valued_events_delivered"]
    assert [sample.value for sample in family.samples] == [2]


_MULTIPROCESS = """
import os, sys
import valued
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from valued.integrations.prometheus import Collector

own = Counter("application_requests", "Of the application.")
for _ in range(3):
    if (pid := os.fork()) == 0:
        own.inc()
        client = valued.Client(lambda event: None, status=sys.argv[1])
        client.action("recorded", {"user.id": 1})
        client.close()
        os._exit(0)
    os.waitpid(pid, 0)
registry = CollectorRegistry()
MultiProcessCollector(registry)
registry.register(Collector(sys.argv[1]))
print(generate_latest(registry).decode())
"""


def test_multiprocess_mode_counts_each_event_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prometheus").mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "prometheus"))
    done = run("-c", _MULTIPROCESS, str(tmp_path / "status"))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines.count("application_requests_total 3.0") == 1
    assert lines.count("valued_events_delivered_total 3.0") == 1
