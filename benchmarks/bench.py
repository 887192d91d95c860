"""How measurements run: each in a fresh process, in turns with its yardstick."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.servers import ROOT, Server

LONGEST: Final = 1800.0  # seconds that one measurement may take

Figures = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Scale:
    """Rounds of each measurement, and its size."""

    rounds: int = 5
    calls: int = 5_000
    events: int = 3_000
    slow_events: int = 1_500
    warm_up: int = 200
    waiting: int = 5_000
    queued: int = 10_000
    in_flight: int = 10
    forks: int = 100
    children: int = 30
    imports: int = 20
    idle: float = 5.0
    left: int = 100_000
    directories: int = 20_000
    crowd_seconds: float = 10.0
    workers: tuple[int, ...] = (1, 2, 4, 8)
    profiled: int = 100_000
    worker_profiled: int = 10_000
    phases: tuple[tuple[float, float], ...] = ((0.0, 4.0), (0.02, 5.0), (0.0, 5.0))
    growth: tuple[tuple[str, tuple[int, ...]], ...] = (
        ("attributes", (4, 40, 400)),
        ("nesting", (1, 5, 10, 20, 50)),
        ("queue length", (10, 100, 1_000, 10_000, 100_000)),
        ("nested scopes", (1, 5, 10, 20)),
        ("converters", (1, 10, 100, 1_000)),
    )


FULL: Final = Scale()
#: Only so much that it can be seen to run.
QUICK: Final = Scale(
    rounds=1, calls=50, events=20, slow_events=10, warm_up=1, waiting=50, queued=20, in_flight=1,
    forks=2, children=1, imports=1, idle=0.1, left=100, directories=5, crowd_seconds=0.3,
    workers=(1, 2), profiled=5_000, worker_profiled=2_000,
    phases=((0.0, 0.3), (0.02, 0.3), (0.0, 0.3)),
    growth=tuple((part, sizes[:1]) for part, sizes in FULL.growth),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Bench:
    """What a measurement needs: its size, a server that answers at once, and which client it is.

    *folder*: ``valued`` and ``benchmarks`` are imported from there. *peers*: other clients that are
    measured, by name, each with the *python* that has it, for `turns`.
    """

    scale: Scale
    server: Server
    folder: Path = ROOT
    peers: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def measure(self, module: str, *, python: str = sys.executable, **arguments: Any) -> Any:
        """What ``main(**arguments)`` of *module* returns in a process of its own."""
        with (
            tempfile.TemporaryDirectory(
                prefix="valued-benchmarks-", ignore_cleanup_errors=True
            ) as folder,
            self.start(module, python=python, temporary=folder, **arguments) as process,
        ):
            try:
                said, _ = process.communicate(timeout=LONGEST)
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            raise SystemExit(f"{module} {arguments}: ended with {process.returncode}")
        return json.loads(said.splitlines()[-1])

    def start(
        self, module: str, *, python: str = sys.executable, temporary: str = "", **arguments: Any
    ) -> subprocess.Popen[str]:
        """Such a process, with pipes as its standard input and output.

        *temporary*: the folder for its temporary files, if it is to be another than ours.
        """
        return subprocess.Popen(
            [python, "-m", f"benchmarks.{module}", json.dumps(arguments)], cwd=self.folder,
            env={**environment(), **({"TMPDIR": temporary} if temporary else {})},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def turns(
        self, module: str, subjects: Mapping[str, Mapping[str, Any]], /, **arguments: Any
    ) -> Figures:
        """Medians by the name of the subject, whose arguments come on top of *arguments*.

        In each round every subject has its turn. The ``main`` of *module* is told its name, unless
        its arguments say another *subject*.
        """

        def run(name: str, own: Mapping[str, Any]) -> Callable[[], dict[str, Any]]:
            return lambda: self.measure(module, **{"subject": name, **arguments, **own})

        return self.in_turns({name: run(name, own) for name, own in subjects.items()})

    def in_turns(
        self, subjects: Mapping[str, Callable[[], dict[str, Any]]], rounds: int | None = None
    ) -> Figures:
        """The medians of some rounds, in each of which every subject has its turn."""
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in subjects}
        for _ in range(rounds or self.scale.rounds):
            for name, subject in subjects.items():
                found[name].append(subject())
        return {
            name: {key: statistics.median(one[key] for one in results) for key in results[0]}
            for name, results in found.items()
        }


def environment() -> dict[str, str]:
    """The environment without what would change what is measured."""
    without = ("VALUED_", "COVERAGE", "COV_", "PYTHONDONTWRITEBYTECODE", "PYTHONWARNINGS")
    return {
        name: value for name, value in os.environ.items() if not name.upper().startswith(without)
    }


def serve(main: Callable[..., Any]) -> None:
    """Be such a process: call *main*, and print what it returns."""
    print(json.dumps(main(**json.loads(sys.argv[1]))), flush=True)
    # What is still pending, as it was meant to be, would hold up the end.
    os._exit(0)
