"""Make the pictures of terminals in ``docs/images``, from programs that really run.

    $ pip install '.[cli]' flask playwright
    $ python docs/pictures.py --browser /usr/bin/chromium

Each program runs on a terminal of its own; what it writes there is drawn by rich, and photographed
by the browser.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.request import Request, urlopen

from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

IMAGES = Path(__file__).parent / "images"
COLUMNS = 84

#: One after the other, so that they are shown in this order.
EVENTS = """
import valued

valued.connect()
valued.page_view("https://shop.example/reports/12", {"user.id": 123})
valued.flush()
valued.action("report.generated", {"user.id": 123}, attributes={"format": "pdf"})
valued.flush()
valued.sync_customer(id=12, name="Analytical Engines")
"""

APPLICATION = """
import valued
from flask import Flask, request
from valued.integrations.flask import init_app

valued.connect(anonymous="drop", invalid="log")
app = Flask(__name__)
init_app(app, user=lambda: {"id": request.headers.get("X-User", type=int)})

@app.post("/reports")
def generate():
    valued.action("report.generated", attributes={"format": "pdf"})
    return "", 201
"""

#: A process that is killed before its events are delivered.
KILLED = """
import os, signal
import valued

client = valued.Client()
for number in range(3):
    client.action("report.generated", {"user.id": 123})
os.kill(os.getpid(), signal.SIGKILL)
"""

#: Four processes of a shop; the last one has no way to the service.
SHOP = """
import os, sys, time
import valued

for number in range(4):
    if os.fork() == 0:
        endpoint = "http://127.0.0.1:9/events" if number == 3 else None
        client = valued.Client(endpoint=endpoint, shutdown_timeout=0.1)
        end = time.monotonic() + 12
        while time.monotonic() < end:
            client.action("report.generated", {"user.id": 123})
            time.sleep(0.02 * (number + 1))
        os._exit(0)
for _ in range(4):
    os.wait()
"""


class Terminal:
    """A program on a terminal, and what it has written there."""

    def __init__(self, *arguments: str, folder: Path, **variables: str) -> None:
        self._ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS), **variables}
        self._process = subprocess.Popen(
            arguments, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=environment
        )
        os.close(theirs)
        self.text = ""

    def read_until(self, pattern: str, timeout: float = 20.0) -> re.Match[str]:
        """What matches, once it was written. Raises `TimeoutError`."""
        deadline = time.monotonic() + timeout
        while True:
            match = re.search(pattern, self.text)
            if match:
                return match
            if not select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"{pattern!r} is not in {self.text!r}")
            self.text += os.read(self._ours, 65536).decode().replace("\r\n", "\n")

    def end(self) -> None:
        """End the program."""
        self._process.terminate()
        self._process.wait(10)
        os.close(self._ours)


def listen(folder: Path) -> str:
    """`valued listen` and three events."""
    terminal = Terminal(sys.executable, "-m", "valued", "listen", "--port", "0", folder=folder)
    try:
        url = terminal.read_until(r"Listening on (\S+)\n")[1]
        (folder / "shop.py").write_text(EVENTS, "utf-8")
        variables = {"VALUED_TOKEN": "any-token", "VALUED_ENDPOINT": url}
        subprocess.run(
            [sys.executable, "shop.py"], cwd=folder, check=True, env={**os.environ, **variables}
        )
        terminal.read_until(r"Analytical(.|\n)+?\n\S*}\S*\n")
    finally:
        terminal.end()
    return "$ valued listen\n" + terminal.text.replace(
        url[: -len("events")], "http://127.0.0.1:4567/"
    )


def outage(folder: Path) -> str:
    """An application whose service is down."""
    (folder / "app.py").write_text(APPLICATION, "utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = {"VALUED_TOKEN": "any-token", "VALUED_ENDPOINT": f"http://127.0.0.1:{port}/events"}
    command = ("-m", "flask", "--app", "app", "run", "--port", "0")
    terminal = Terminal(sys.executable, *command, folder=folder, **variables)
    try:
        site = terminal.read_until(r"Running on (\S+)\n")[1]
        for _ in range(3):
            visit = Request(f"{site}/reports", method="POST")
            visit.add_header("X-User", "7")
            urlopen(visit).close()
        terminal.read_until(r"valued: .*latest.*\n")
        terminal.read_until(r"(POST(.|\n)*){3}")
    finally:
        terminal.end()
    said = re.sub(rf"\b{port}\b", "4567", terminal.text)  # as the tutorial has it
    return "$ flask --app app run\n" + said.replace(site, "http://127.0.0.1:5000")


def doctor(folder: Path) -> str:
    """`valued doctor`, of an application in which two things should be looked at."""
    listener = Terminal(sys.executable, "-m", "valued", "listen", "--port", "0", folder=folder)
    try:
        url = listener.read_until(r"Listening on (\S+)\n")[1]
        shop = folder / "shop"
        shop.mkdir()
        (shop / "gunicorn.conf.py").write_text("workers = 4\ngraceful_timeout = 1\n", "utf-8")
        outbox = str(folder / "outbox")
        nowhere = {"VALUED_ENDPOINT": "http://127.0.0.1:9/events"}
        variables = {"VALUED_TOKEN": "any-token", "VALUED_ENDPOINT": url, "VALUED_OUTBOX": outbox}
        environment = {**os.environ, **variables, **nowhere}
        subprocess.run([sys.executable, "-c", KILLED], check=False, env=environment)
        program = (sys.executable, "-m", "valued", "doctor")
        terminal = Terminal(*program, folder=shop, **variables)
        try:
            terminal.read_until(r"gevent .*\n")
        finally:
            terminal.end()
    finally:
        listener.end()
    said = terminal.text.replace(outbox, "/srv/shop/outbox")
    port = re.findall(r":(\d+)/", url)[0]
    return "$ valued doctor\n" + re.sub(rf"\b{port}\b", "4567", said)


def top(folder: Path) -> str:
    """`valued top`, of an application with four processes."""
    (folder / "shop.py").write_text(SHOP, "utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = {
        "VALUED_TOKEN": "any-token",
        "VALUED_ENDPOINT": f"http://127.0.0.1:{port}/events",
        "VALUED_STATUS": str(folder / "status"),
    }
    command = [sys.executable, "-m", "valued", "listen", "--port", str(port), "--no-ui"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as listener:
        shop = subprocess.Popen(
            [sys.executable, "shop.py"], cwd=folder, env={**os.environ, **variables},
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            while len(list(folder.glob("status/v1/stats/*/stats.json"))) < 4:
                time.sleep(0.1)  # how often to look
            terminal = Terminal(sys.executable, "-m", "valued", "top", folder=folder, **variables)
            try:
                terminal.read_until(r"(all(.|\n)*){6}")
            finally:
                terminal.end()
            shop.wait()
        finally:
            listener.terminate()
    frame = terminal.text.split("\x1b[H")[-2]  # each begins at the top left
    return "$ valued top\n" + frame.rstrip() + "\n"


PICTURES: dict[str, tuple[str, Callable[[Path], str]]] = {
    "terminal": ("Terminal 2", listen),
    "outage": ("Terminal 1", outage),
    "doctor": ("Terminal", doctor),
    "top": ("Terminal", top),
}


def main() -> None:
    """Make them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--browser", required=True, help="path of Chromium")
    browser_path = parser.parse_args().browser
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path)
        page = browser.new_page(device_scale_factor=2, viewport={"width": 1200, "height": 1200})
        for name, (title, make) in PICTURES.items():
            with tempfile.TemporaryDirectory() as folder:
                text = make(Path(folder))
            console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"))  # noqa: SIM115
            console.print(Text.from_ansi(text.rstrip()))
            page.set_content(console.export_svg(title=title, theme=DIMMED_MONOKAI))
            page.locator("svg").screenshot(path=IMAGES / f"{name}.png", omit_background=True)
        browser.close()


if __name__ == "__main__":
    main()
