"""Build the source distribution and the wheel, check them, and test them away from the clone.

``tox run -e package`` runs it in an environment that has the tools, with a folder to work in. The
wheel is built from the source distribution, and so do the tests come from there. Those of the
package's files run first. Then ``valued`` is removed, so that the others can only find the wheel.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parent.parent

#: What is said of the files of the package.
OF_FILES = ["tests/test_house.py", "tests/test_package.py"]

#: What runs with the wheel: it needs no framework, and takes less than a minute.
OF_THE_WHEEL = [
    "tests/cli/test_events.py",
    "tests/cli/test_send.py",
    "tests/events/test_categories.py",
    "tests/events/test_vectors.py",
    "tests/prefork/test_fork.py",
    "tests/scopes/test_scope.py",
    "tests/test_client.py",
    "tests/http/test_pool.py",
    "tests/test_shared.py",
]


def _run(*arguments: str, cwd: Path) -> None:
    print("$", *arguments, flush=True)
    subprocess.run(arguments, cwd=cwd, check=True)


def main(folder: Path) -> None:
    """Raise, or end well."""
    shutil.rmtree(folder, ignore_errors=True)
    dist = folder / "dist"
    _run(sys.executable, "-W", "error::DeprecationWarning", "-m", "build",
         "--outdir", str(dist), str(_copy(folder)), cwd=folder)  # fmt: skip
    [archive], [wheel] = dist.glob("*.tar.gz"), dist.glob("*.whl")
    _run(sys.executable, "-m", "twine", "check", "--strict", str(archive), str(wheel), cwd=folder)
    _run("check-wheel-contents", str(wheel), cwd=folder)
    _run(sys.executable, "-m", "pip", "install", "--quiet", "--force-reinstall", f"{wheel}[cli]",
         cwd=folder)  # fmt: skip
    with tarfile.open(archive) as packed:
        packed.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    unpacked = folder / archive.name.removesuffix(".tar.gz")
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q"]
    _run(*pytest, *OF_FILES, cwd=unpacked)
    shutil.rmtree(unpacked / "valued")
    where = "import sys, valued; sys.exit(not valued.__file__.startswith(sys.prefix))"
    _run(sys.executable, "-c", where, cwd=unpacked)
    _run(*pytest, *OF_THE_WHEEL, cwd=unpacked)


def _copy(folder: Path) -> Path:
    """A copy of the clone to build in: setuptools leaves folders where it builds."""
    copy = folder / "clone"
    leave = (".git", ".tox", ".venv", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info",
             "build", "dist", "_build")  # fmt: skip
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*leave))
    return copy


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
