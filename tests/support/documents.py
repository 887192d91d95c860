"""Documents in reStructuredText, and the code that they print."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable
from pathlib import Path

import docutils.core
import docutils.nodes

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"


@dataclasses.dataclass(frozen=True)
class Block:
    """One code block of a document."""

    language: str
    code: str

    @property
    def file(self) -> str | None:
        """The name that the first line gives it: ``# app.py``, ``# tests/test_app.py``."""
        match = re.match(r"(?:#|;) ([\w./-]+\.\w+)\n", self.code)
        return match[1] if match else None


def pages() -> list[str]:
    """All documents with code: the README, and each page of the site."""
    found = [
        path.relative_to(ROOT).as_posix()
        for path in sorted(DOCS.rglob("*.rst"))
        if "_build" not in path.parts
    ]
    return ["README.rst", "CONTRIBUTING.rst", *found]


def doctree(name: str, report_level: int = 5, highlight: str = "none") -> docutils.nodes.document:
    """The document, read; it must have no fault of *report_level* or above.

    Sphinx's own roles and directives are faults to docutils, so pages of the site are read with the
    default.
    """
    settings = {
        "report_level": report_level,
        "halt_level": report_level,
        "syntax_highlight": highlight,
        "file_insertion_enabled": False,
    }
    text = (ROOT / name).read_text("utf-8")
    return docutils.core.publish_doctree(text, name, settings_overrides=settings)


@functools.cache
def sections(name: str) -> dict[str, list[Block]]:
    """The code blocks of a document, by the title of the section that they are in."""
    found: dict[str, list[Block]] = {}
    for node in doctree(name).findall(docutils.nodes.literal_block):
        if isinstance(node.parent, docutils.nodes.system_message):
            continue  # a directive of Sphinx's
        section = node.parent
        while not isinstance(section, (docutils.nodes.section, docutils.nodes.document)):
            section = section.parent
        title = section.next_node(docutils.nodes.title)
        assert title is not None
        languages = [name for name in node["classes"] if name != "code"]
        assert len(languages) == 1, f"{name}: a block without a language: {node.astext()}"
        found.setdefault(title.astext(), []).append(Block(languages[0], node.astext()))
    return found


def write_files(folder: Path, blocks: Iterable[Block]) -> None:
    """Write those blocks that say what their file is called."""
    for block in blocks:
        if block.file is not None:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            code = block.code
            if path.suffix != ".py":
                code = code.split("\n", 1)[1]
            path.write_text(code + "\n", "utf-8")
