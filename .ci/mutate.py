"""Change one thing at a time in ``valued/_process``, and print which changes no test notices.

``python .ci/mutate.py [MODULE …]``: all modules of that folder, or those named, as ``signals``. It
works on copies of the tree. For each mutant, the tests of the module run first, then those of the
folder and of the ends of real processes. A survivor shows a line that needs a test, a line that is
not needed, or a change that makes no difference.
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import copy
import os
import queue
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
FOLDER = Path("valued/_process")
COPIED = ("valued", "tests", "pyproject.toml", "setup.cfg", "examples")

#: Tests that a module needs besides `tests/process/test_<module>.py`; all others run after them.
MORE = {
    "fork": ["tests/process/test_weak_list.py", "tests/prefork/test_fork.py"],
    "facts": ["tests/process/test_interpreter.py"],
    "pickling": ["tests/test_pickling.py"],
    "tasks": ["tests/integrations/test_celery.py"],
}
LAST = ["tests/process", "tests/prefork/test_exit.py"]

#: Seconds for one run of tests: a mutant that hangs is killed.
BOUND = 90


class Mutant(NamedTuple):
    module: str
    line: int
    what: str
    code: str


def mutants(module: str) -> Iterator[Mutant]:
    """Each with the whole code of its module."""
    tree = ast.parse((ROOT / FOLDER / f"{module}.py").read_text("utf-8"))
    skipped = {
        id(part)
        for node in ast.walk(tree)
        for part in _skipped(node)
        if part is not None
        for part in ast.walk(part)
    }
    for index, node in enumerate(ast.walk(tree)):
        if id(node) in skipped:
            continue
        changed = copy.deepcopy(tree)
        target = next(each for number, each in enumerate(ast.walk(changed)) if number == index)
        what = _mutate(target)
        if what:
            ast.fix_missing_locations(changed)
            yield Mutant(module, getattr(node, "lineno", 0), what, ast.unparse(changed))


def _skipped(node: ast.AST) -> list[ast.AST | None]:
    """The parts of *node* in which no change makes a difference."""
    if isinstance(node, ast.FunctionDef):
        return [node.returns, *node.decorator_list]
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return [node]
    if isinstance(node, ast.ClassDef) and "Protocol" in {ast.unparse(base) for base in node.bases}:
        return [node]
    if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "Final":
        return [node]  # how long to wait, and the like: no test waits so long
    return [getattr(node, "annotation", None)]


def _mutate(node: ast.AST) -> str:
    """Change *node* in place; what was changed, or nothing."""
    if isinstance(node, (ast.Expr, ast.Assign, ast.AugAssign, ast.AnnAssign)):
        return _drop(node)
    if isinstance(node, ast.Constant):
        return _replace(node)
    if isinstance(node, ast.BoolOp):
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return f"`and` and `or` exchanged: {ast.unparse(node)}"
    if isinstance(node, (ast.If, ast.While, ast.IfExp)):
        before = ast.unparse(node.test)
        node.test = ast.UnaryOp(ast.Not(), node.test)
        return f"negated: {before}"
    if isinstance(node, ast.comprehension) and node.ifs:
        before = ast.unparse(node.ifs[0])
        node.ifs[0] = ast.UnaryOp(ast.Not(), node.ifs[0])
        return f"negated: {before}"
    return ""


def _drop(node: ast.Expr | ast.Assign | ast.AugAssign | ast.AnnAssign) -> str:
    if isinstance(node, ast.Expr):
        if isinstance(node.value, ast.Constant):  # a docstring
            return ""
        before = ast.unparse(node)
        node.value = ast.Constant(None)
        return f"dropped: {before}"
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    if node.value is None or not all(isinstance(each, ast.Attribute) for each in targets):
        return ""  # without a local or global name nothing works, which says nothing
    if isinstance(node.value, ast.Constant) and not node.value.value:
        return ""  # None does the same
    before = ast.unparse(node)
    node.value = ast.Constant(None)
    return f"not assigned: {before}"


def _replace(node: ast.Constant) -> str:
    before = node.value
    if isinstance(before, bool):
        node.value = not before
    elif isinstance(before, (int, float)):
        node.value = before + 1
    else:
        return ""
    return f"{before!r} replaced by {node.value!r}"


def _passes(copied: Path, module: str) -> bool:
    """Whether all tests pass, the quickest ones first."""
    own = copied / "tests" / "process" / f"test_{module}.py"
    first = [str(own.relative_to(copied))] if own.exists() else []
    environment = {**os.environ, "PYTHONPATH": str(copied), "PYTHONDONTWRITEBYTECODE": "1"}
    for tests in ([*first, *MORE.get(module, [])], LAST):
        if not tests:
            continue
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider",
                   "--timeout", "30", *tests]  # fmt: skip
        silent = subprocess.DEVNULL
        process = subprocess.Popen(
            command, cwd=copied, env=environment, stdout=silent, stderr=silent,
            start_new_session=True,
        )  # fmt: skip
        try:
            if process.wait(BOUND) != 0:
                return False
        except subprocess.TimeoutExpired:
            return False
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 9)
                process.wait()
    return True


def _copy(folder: Path) -> Path:
    folder.mkdir()
    for name in COPIED:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return folder


def main() -> int:
    """Return 1 if a mutant survived, 2 if the tests fail without any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time (default 2)")
    options = parser.parse_args()
    names = options.modules or sorted(
        path.stem for path in (ROOT / FOLDER).glob("*.py") if path.stem != "__init__"
    )
    os.nice(10)
    with tempfile.TemporaryDirectory() as home:
        free: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(options.jobs):
            free.put(_copy(Path(home, str(number))))

        def survives(mutant: Mutant) -> bool:
            copied = free.get()
            file = copied / FOLDER / f"{mutant.module}.py"
            code = file.read_text("utf-8")
            try:
                file.write_text(mutant.code, "utf-8")
                return _passes(copied, mutant.module)
            finally:
                file.write_text(code, "utf-8")
                free.put(copied)

        count = survivors = 0
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as threads:
            for name in names:
                code = (ROOT / FOLDER / f"{name}.py").read_text("utf-8")
                if not survives(Mutant(name, 0, "", code)):
                    print(f"{name}: its tests fail without a change")
                    return 2
                found = list(mutants(name))
                count += len(found)
                for mutant, alive in zip(found, threads.map(survives, found), strict=True):
                    if alive:
                        survivors += 1
                        print(f"{FOLDER}/{name}.py:{mutant.line}: {mutant.what}", flush=True)
    print(f"{survivors} of {count} mutants survived")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
