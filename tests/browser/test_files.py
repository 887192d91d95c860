"""The page as a file, and its picture."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PICTURE = ROOT / "docs" / "images" / "listen.png"
PAGE = ROOT / "valued" / "_service" / "page.html"


def test_the_page_is_one_file_that_allows_a_strict_policy() -> None:
    page = PAGE.read_text("utf-8")
    for tag in ("style", "script"):
        assert len(re.findall(rf"<{tag}>", page)) == len(re.findall(rf"<{tag}\b", page)) == 1
    assert not re.search(r"<[^>]*\s(?:style|on\w+)=", page.partition("<script>")[0])
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", page)
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page)


def test_the_picture_of_the_readme_is_there_and_small() -> None:
    content = PICTURE.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(content) < 200_000
    assert 1100 <= int.from_bytes(content[16:20], "big") <= 2600
