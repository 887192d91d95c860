"""The scripts that measure delivery on a bad day run, and compare what they say they compare."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import run

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def _figures(script: str, file: Path, *arguments: str) -> dict[str, Any]:
    done = run(str(BENCHMARKS / script), *arguments, "--json", str(file))
    assert "It held." in done.stdout or "It did not hold." in done.stdout, done.stderr
    figures = json.loads(file.read_text("utf-8"))
    # How flat, or how fast, is for a quiet machine to tell.
    assert done.returncode == (1 if figures["not held"] else 0)
    return figures


def test_a_small_soak_loses_nothing(tmp_path: Path) -> None:
    figures = _figures("soak.py", tmp_path / "soak.json", "--events", "800", "--seconds", "20")
    assert figures["recorded"] == figures["accepted"] == 800
    assert figures["lost"] == figures["dropped"] == figures["repeats without that"] == 0
    assert figures["failed, not refused permanently"] == figures["told twice"] == 0
    assert figures["faults"]


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no such signal here")
def test_a_short_stop_loses_nothing(tmp_path: Path) -> None:
    figures = _figures("stopped.py", tmp_path / "f.json", "--seconds", "0.5", "--around", "0.2")
    assert figures["recorded"] == figures["delivered"] > 100
    assert figures["lost"] == figures["dropped"] == figures["failed"] == 0
    assert set(figures["calls, in ms"]) >= {"event call, server stopped", "bare call, after"}
