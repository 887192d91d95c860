"""Make ``docs/images/listen.png``, the README's picture: the page of ``valued demo --open``.

$ python -m tests.browser.picture
"""

from __future__ import annotations

import base64
import contextlib
import os
import shlex
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import browser as browsers

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PICTURE = Path(__file__).parent.parent.parent / "docs" / "images" / "listen.png"
WIDTH, HEIGHT = 1200, 1000

#: Its pixels, as red, green, blue; a step of 4 is not seen, and makes the file smaller.
PIXELS = """async picture => {
    const image = new Image()
    image.src = "data:image/png;base64," + picture
    await image.decode()
    const canvas = new OffscreenCanvas(image.width, image.height).getContext("2d")
    canvas.drawImage(image, 0, 0)
    const { data } = canvas.getImageData(0, 0, image.width, image.height)
    let pixels = ""
    for (let at = 0; at < data.length; at += 4)
        pixels += String.fromCharCode(...[0, 1, 2].map(c => Math.min(255, (data[at + c] + 2) & ~3)))
    return btoa(pixels)
}"""


@contextlib.contextmanager
def demonstrated(browser: Browser) -> Iterator[Page]:
    """The page of ``valued demo --open``, opened while it runs, after all has arrived."""
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder, "address")
        opener = f"sh -c {shlex.quote(f'echo %s >{told}.new && mv {told}.new {told}')}"
        demo = subprocess.Popen(
            [sys.executable, "-m", "valued", "demo", "--open"],
            stdout=subprocess.DEVNULL,
            env={**os.environ, "BROWSER": opener},
        )
        try:
            deadline = time.monotonic() + 20
            while not told.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            page.goto(told.read_text("utf-8").strip())
            for text in ("1,100 Requests", "8 processes, 1 running", "0 in the last second"):
                page.get_by_text(text).wait_for()
            yield page
        finally:
            demo.send_signal(signal.SIGINT)
            demo.communicate(timeout=20)
            page.close()


def taken(browser: Browser) -> bytes:
    """A picture of that page."""
    with demonstrated(browser) as page:
        return smaller(browser, page.screenshot())


def smaller(browser: Browser, picture: bytes) -> bytes:
    """The same picture; the browser's own PNG of text is a third larger."""
    pixels = browser.new_page().evaluate(PIXELS, base64.b64encode(picture).decode())
    rows = base64.b64decode(pixels)
    size = 3 * WIDTH
    lines = b"".join(b"\0" + rows[at : at + size] for at in range(0, len(rows), size))
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


if __name__ == "__main__":
    with browsers.running() as chromium:
        PICTURE.write_bytes(taken(chromium))
