"""What an import takes, in milliseconds: in an interpreter that has imported nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Final

from benchmarks.bench import Bench, environment
from benchmarks.rows import Row, at_most, row

PROGRAM: Final = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def rows(bench: Bench) -> Iterator[Row]:
    subjects = {name: partial(_import, bench, name) for name in ("requests", "valued")}
    bench.in_turns(subjects, rounds=1)  # so that the byte code is there
    figures = bench.in_turns(subjects, rounds=bench.scale.imports)
    yield row("import valued", "ms", figures, "ms", "requests", at_most(1.15),
              name="import requests")  # fmt: skip


def _import(bench: Bench, module: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(module)],
        cwd=bench.folder, env=environment(), stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return {"ms": float(done.stdout) * 1e3}
