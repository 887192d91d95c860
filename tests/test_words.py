"""No dialect in what a user reads: documents, examples, docstrings, messages and comments."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: Each with the words to write instead.
FORBIDDEN = {
    "somebody": "a user, a process, other code",
    "nobody": "no user, no process; of a directory: unclaimed",
    "strangers?": "other code, another process",
    "whoever": "the process that …",
    "anew": "again",
    "spelt": "written",
    "save for": "except",
    "as ever": "as always",
    "as it comes": "by default",
    "signs? of life": "heartbeat",
    "stand-ins?": "mock server, mock",
    "stands in": "replaces",
    "given up": "permanently failed",
    "gives up": "fails permanently",
    "behind the block": "after the block",
    "comes? back in step": "retry at the same time",
}

_FORBIDDEN = re.compile(rf"\b(?:{'|'.join(FORBIDDEN)})\b", re.IGNORECASE)

DOCUMENTS = [
    *(
        ROOT / f"{name}.rst"
        for name in ("README", "CHANGELOG", "CONTRIBUTING", "RELEASING", "SECURITY")
    ),
    *sorted((ROOT / "docs").rglob("*.rst")),
]
EXAMPLES = sorted(
    path
    for path in (ROOT / "examples").rglob("*")
    if path.suffix in {".py", ".rst", ".md", ".html", ".txt", ".toml", ".ini", ".cfg", ".yaml"}
)
MODULES = sorted((ROOT / "valued").rglob("*.py"))
FILES = {
    str(path.relative_to(ROOT)): path
    for path in [*DOCUMENTS, *EXAMPLES, *MODULES]
    if path.exists() and "_build" not in path.parts
}


def found(text: str) -> list[str]:
    """The forbidden words in *text*, also across line breaks, each with what is around it."""
    line = " ".join(text.split())
    return [line[max(0, it.start() - 30) : it.end() + 30] for it in _FORBIDDEN.finditer(line)]


def strings_and_comments(code: str) -> Iterator[str]:
    """What a reader of a module reads besides names: its strings, and its comments in blocks."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            parts = (it.value if isinstance(it, ast.Constant) else "…" for it in node.values)
            yield "".join(map(str, parts))
    comments: list[str] = []
    line = 0
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT:
            apart = [] if token.start[0] == line + 1 else ["|"]
            comments += [*apart, token.string.lstrip("#:")]
            line = token.start[0]
    yield "\n".join(comments)


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_in_plain_words(name: str) -> None:
    text = FILES[name].read_text("utf-8")
    texts = strings_and_comments(text) if name.startswith("valued/") else [text]
    assert [words for each in texts for words in found(each)] == []


@pytest.mark.parametrize(
    "text", ["Somebody did.", "a sign\n    of life", "a stand-in", "it is given  up", "SAVE FOR it"]
)
def test_a_forbidden_word_is_found(text: str) -> None:
    assert len(found(text)) == 1


def test_strings_in_parts_and_comments_in_blocks_are_read() -> None:
    code = '"""As\n    ever."""\nx = "some" "body"\ny = f"a {x} stand" "-in"\n#: save\n# for it\n'
    words = {each for text in strings_and_comments(code) for each in found(text)}
    assert words >= {"As ever.", "somebody", "a … stand-in", "| save for it"}


def test_words_within_words_are_no_dialect() -> None:
    assert found("renewal, as everyone, saved for") == []
