"""Pytest as others run it: in a process and a project of their own, with the plugin."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parent / "project"


def write(folder: Path, *names: str, **files: str) -> None:
    """Files of `PROJECT`, and others with their text; ``ini`` is pytest's settings."""
    for name in names:
        shutil.copy(PROJECT / name, folder)
    for name, text in files.items():
        file = "pytest.ini" if name == "ini" else f"{name}.py"
        (folder / file).write_text(f"[pytest]\n{text}\n" if name == "ini" else text, "utf-8")


def pytest_in(
    folder: Path,
    *arguments: str,
    plugin: tuple[str, ...] = (),
    timeout: float = 240,
    **more: str,
) -> subprocess.CompletedProcess[str]:
    """Run it there; *more* is of its environment."""
    # No project says where its tests come from, but those of this one: pytest looks upwards.
    (folder / "pytest.ini").touch()
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *plugin, *arguments]
    # Forks while other threads live, of which Python warns from 3.12 on, are what some are about.
    command += ["-W", "ignore:This process:DeprecationWarning"]
    dropped = {"VALUED_ENV", "PYTEST_CURRENT_TEST", "PYTEST_VERSION"}
    environment = {name: os.environ[name] for name in os.environ if name not in dropped}
    return subprocess.run(
        command,
        cwd=folder,
        env={**environment, **more},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """How many tests passed, failed, and so on."""
    summary = done.stdout.strip().splitlines()[-1]
    return {what: int(count) for count, what in re.findall(r"(\d+) (\w+?)s?\b", summary)}


def assert_passed(done: subprocess.CompletedProcess[str], count: int) -> None:
    """That many, and nothing else: no failure, no warning."""
    assert (done.returncode, outcomes(done)) == (0, {"passed": count}), done.stdout + done.stderr
