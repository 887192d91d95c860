"""Each measurement runs in a fresh process: a module of this package, with arguments as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.servers import ROOT

LONGEST = 600.0  # seconds that one measurement may take


def measure(module: str, python: str = sys.executable, /, **arguments: Any) -> Any:
    """What ``main(**arguments)`` of *module* of this package returns in a process of its own."""
    command = [python, "-m", f"benchmarks.{module}", json.dumps(arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True, check=False,
        timeout=LONGEST,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{module} {arguments}: ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


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
