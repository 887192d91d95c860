"""What an import takes, in milliseconds: in an interpreter that has imported nothing else."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.servers import ROOT
from benchmarks.subprocesses import environment

_PROGRAM = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def main(module: str) -> dict[str, float]:
    """One import, in one fresh interpreter. Byte code is there if it was imported before."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(module)],
        cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return {"ms": float(done.stdout) * 1e3}
