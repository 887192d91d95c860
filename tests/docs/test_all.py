"""Each Python block that a document prints is run by a test of this folder."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

from tests.docs.support import Cases, document
from tests.support.documents import pages, sections

HERE = Path(__file__).parent


def _run_somewhere() -> set[tuple[str, str]]:
    """The sections that the tests say they run, as document and title."""
    found: set[tuple[str, str]] = set()
    for path in sorted(HERE.glob("test_*.py")):
        module = importlib.import_module(f"tests.docs.{path.stem}")
        cases: Cases = getattr(module, "CASES", {})
        tests = [getattr(it, "runs", ()) for name, it in vars(module).items()
                 if name.startswith("test_")]  # fmt: skip
        found |= {(document(page), title) for page, title in cases}
        found |= {(document(page), title) for one in tests for page, title in one}
    return found


def test_every_python_block_is_run() -> None:
    printed = {
        (name, title)
        for name in pages()
        for title, found in sections(name).items()
        if any(block.language == "python" for block in found)
    }
    assert printed - _run_somewhere() == set()
    assert _run_somewhere() - printed == set(), "sections that are not there any more"


def test_each_python_block_is_python() -> None:
    for name in pages():
        for found in sections(name).values():
            for block in found:
                if block.language == "python":
                    ast.parse(block.code)
