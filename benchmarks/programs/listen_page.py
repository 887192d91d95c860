"""The page of ``valued listen`` at work: how fast, how heavy, and what it costs the sender.

1. Events are sent one by one: the milliseconds from the POST to the painted row, in a real browser.
2. 50,000 events arrive at 900 a second while a row is clicked again and again: the
   milliseconds from the click to the painted event, and the memory of the page and of the server:
   at the start, once 10,000 records are kept, which is the most, and at the end.
3. 5,000 events as fast as a client with its defaults sends them: with the page on, with one stream
   of it open, and with ``--no-ui``, in turns. The median of the ratios of each round, and the CPU
   of the server for an event.

It holds when a row is painted within 200 ms (median), each click within 200 ms, memory hardly
grows once the most is kept, and the throughput is at least 0.9 of that with ``--no-ui``. The exit
status says so. It needs Chromium, and ``playwright`` of the ``test`` extra.

    python -m benchmarks.programs.listen_page [--events 50000] [--rate 900] [--rounds 5]
                                              [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil
import requests

from benchmarks.programs.verdict import verdict
from benchmarks.senders import ATTRIBUTES, DATA, KEY
from benchmarks.servers import ROOT
from tests.support import browser as browsers
from tests.support.cli import listening

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

#: Milliseconds that a row, and a click, may take.
BOUND: Final = 200.0
#: By how much memory may grow once the most records are kept, in MiB. Heaps breathe; and the server
#: knows the idempotency keys of 50,000 events, to tell repeats.
GROWTH: Final = {"page": 4.0, "server": 16.0}
#: What throughput has to be, of that without the page.
SHARE: Final = 0.9

#: Events for the first part; records that are kept; events of each turn of the third part.
ONE_BY_ONE, KEPT, AT_ONCE = 100, 10_000, 5_000

#: Milliseconds that a person holds the button down.
PRESSED: Final = 80

#: When each row was painted, by its key: a frame's own end is the earliest task after it.
PAINTED: Final = """() => {
    window.painted = {}
    const look = () => {
        const rows = document.querySelectorAll(".row:not([hidden]) .key bdi:first-child")
        const found = [...rows].map(row => row.textContent).filter(key => !(key in painted))
        for (const key of found) painted[key] = 0
        if (found.length) setTimeout(() => {
            for (const key of found) painted[key] = performance.timeOrigin + performance.now()
        })
        requestAnimationFrame(look)
    }
    look()
}"""

#: What each click took. Its own time is that of the input, however busy the page was just then.
CLICKED: Final = """() => {
    window.clicks = []
    addEventListener("click", event => requestAnimationFrame(() => setTimeout(() => clicks.push(
        [performance.now() - event.timeStamp, !document.querySelector("#detail").hidden]
    ))), true)
}"""

#: The total that is shown of events that were accepted.
ACCEPTED: Final = """document.querySelector("#kinds [data-kind='accepted'] b")
    .textContent.replace(/[^0-9]/g, "")"""


def send(url: str, count: int, rate: float) -> float:
    """Be the sender: *count* events, *rate* a second (0: as fast as it can); events a second."""
    import valued

    # It waits rather than drop: all that is sent is to arrive.
    client = valued.Client("token", url, overflow="block")
    begun = time.perf_counter()
    for number in range(count):
        data = {**DATA, "user.id": number, "attributes": {**ATTRIBUTES, "pages": number}}
        client.action(f"{KEY}.{number % 40}", data)
        early = begun + number / rate - time.perf_counter() if rate else 0.0
        if early > 0.005:  # less is not slept exactly
            time.sleep(early)
    assert client.close(300), "not delivered in 300 s"
    return count / (time.perf_counter() - begun)


@contextlib.contextmanager
def sending(url: str, count: int, rate: float) -> Iterator[subprocess.Popen[str]]:
    """The sender, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.programs.listen_page", "--send", url]
    given = ["--events", str(count), "--rate", str(rate)]
    with subprocess.Popen([*command, *given], cwd=ROOT, stdout=subprocess.PIPE, text=True) as sent:
        try:
            yield sent
        finally:
            sent.kill()  # which is nothing to one that has ended


def figures_of(times: Sequence[float]) -> dict[str, float]:
    """Milliseconds of *times*."""
    ordered = sorted(times)
    return {
        "median": round(statistics.median(ordered), 1),
        "95th percentile": round(ordered[int(0.95 * (len(ordered) - 1))], 1),
        "slowest": round(ordered[-1], 1),
    }


@contextlib.contextmanager
def shown(browser: Browser, url: str) -> Iterator[Page]:
    """The page of the endpoint *url*; what went wrong in it is an error."""
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    seen = browsers.Shown(page, url)
    seen.open()
    yield page
    page.close()
    assert not seen.troubles, seen.troubles


def until(page: Page, condition: str) -> None:
    """Wait until *condition* is true. Playwright's own way is forbidden by the page's policy."""
    deadline = time.monotonic() + 60
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(50)


def rows(browser: Browser, count: int) -> list[float]:
    """From a POST to its row: milliseconds of each of *count*."""
    chance = random.Random(1)
    sent = {}
    with listening() as listener, shown(browser, listener.url) as page:
        page.evaluate(PAINTED)
        sender = browsers.Sender(listener.url)
        for number in range(count):
            key = f"row.{number}"
            sent[key] = time.time() * 1e3
            assert sender.send(browsers.event(key=key)) == 204
            time.sleep(chance.uniform(0.05, 0.2))  # in step with no batch
        sender.close()
        last = f"row.{count - 1}"
        until(page, f"painted[{last!r}] > 0")
        painted = page.evaluate("painted")
    return [painted[key] - at for key, at in sent.items()]


def mebibytes(page: Page, server: psutil.Process) -> tuple[float, float]:
    """What the page keeps, after a collection, and the server's resident pages."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    used = session.send("Runtime.getHeapUsage")["usedSize"]
    session.detach()
    return round(used / 2**20, 1), round(server.memory_info().rss / 2**20, 1)


def clicked(page: Page, url: str, count: int, rate: float) -> None:
    """Click a row again and again while *count* events arrive."""
    with sending(url, count, rate) as sender:
        page.locator(".row:not([hidden])").nth(9).wait_for()  # there is one below each click
        while sender.poll() is None:
            # On the third row or so, at the top, where rows move most.
            page.evaluate("document.querySelector('#rows').scrollTop = 0")
            box = page.locator("#rows").bounding_box()
            assert box is not None
            page.mouse.click(box["x"] + 8, box["y"] + 100, delay=PRESSED)
            page.wait_for_timeout(400)
            page.keyboard.press("Escape")
            page.wait_for_timeout(100)
        assert sender.returncode == 0


def many(browser: Browser, count: int, rate: float) -> tuple[list[float], dict[str, list[float]]]:
    """Milliseconds of each click while *count* events arrive, and memory by when."""
    memory: dict[str, list[float]] = {}
    with listening() as listener, shown(browser, listener.url) as page:
        server = psutil.Process(listener.process.pid)
        page.evaluate(CLICKED)
        memory["start"] = list(mebibytes(page, server))
        arrived = 0
        for when, more in (("most kept", min(KEPT, count // 2)), ("end", count)):
            clicked(page, listener.url, more - arrived, rate)
            arrived = more
            until(page, f"{ACCEPTED} == {more}")
            memory[when] = list(mebibytes(page, server))
        clicks = page.evaluate("clicks")
    assert all(opened for _, opened in clicks), "a click opened nothing"
    return [took for took, _ in clicks], memory


def follow(page: str) -> None:
    """Read the stream of *page* on a thread, until the server ends."""
    stream = requests.get(f"{page}stream", stream=True, timeout=60)
    threading.Thread(target=_read, args=(stream,), daemon=True).start()


def _read(stream: requests.Response) -> None:
    with stream, contextlib.suppress(requests.RequestException):
        for _ in stream.iter_content(65536):
            pass


def throughput(subject: str, count: int) -> dict[str, float]:
    """Events a second of a client, and microseconds of the server's CPU for each."""
    options = ["--no-ui"] if subject == "--no-ui" else []
    with listening(*options) as listener:
        if subject == "a stream open":
            follow(listener.page)
        server = psutil.Process(listener.process.pid)
        before = server.cpu_times()
        with sending(listener.url, count, 0) as sender:
            said, _ = sender.communicate(timeout=300)
        after = server.cpu_times()
    assert sender.returncode == 0
    seconds = after.user + after.system - before.user - before.system
    return {"events a second": float(said), "CPU, us": seconds / count * 1e6}


def compared(rounds: int, count: int) -> dict[str, dict[str, float]]:
    """Medians by subject, and of the ratios of each round to that with ``--no-ui``."""
    subjects = ["the page on", "a stream open", "--no-ui"]
    found: dict[str, list[dict[str, float]]] = {subject: [] for subject in subjects}
    throughput("--no-ui", count)  # nothing is in the caches before it
    for turn in range(rounds):
        for subject in subjects[turn % 3 :] + subjects[: turn % 3]:
            found[subject].append(throughput(subject, count))
    speeds = {name: [one["events a second"] for one in all_] for name, all_ in found.items()}
    return {
        name: {
            "events a second": round(statistics.median(speeds[name])),
            "ratio": round(
                statistics.median(
                    speed / bare
                    for speed, bare in zip(speeds[name], speeds["--no-ui"], strict=True)
                ),
                2,
            ),
            "CPU, us": round(statistics.median(one["CPU, us"] for one in all_)),
        }
        for name, all_ in found.items()
    }


def run(given: argparse.Namespace) -> tuple[dict[str, Any], dict[str, bool]]:
    """The figures, and the promises that they keep or not."""
    full = given.events >= 2 * KEPT  # else it is run to see that it runs
    with browsers.running() as browser:
        version = browser.version
        painted = figures_of(rows(browser, ONE_BY_ONE if full else 10))
        times, memory = many(browser, given.events, given.rate)
    clicks = figures_of(times)
    speeds = compared(given.rounds, AT_ONCE if full else 100)
    figures = {
        "browser": f"Chromium {version}",
        "load": [round(load, 1) for load in os.getloadavg()],
        "from POST to row, ms": painted,
        "from click to event, ms": clicks,
        "memory of page and server, MiB": memory,
        "throughput": speeds,
    }
    (heap, resident), (heap_at_end, resident_at_end) = memory["most kept"], memory["end"]
    return figures, {
        f"a row is painted within {BOUND:g} ms (median)": painted["median"] <= BOUND,
        f"each click is answered within {BOUND:g} ms": clicks["slowest"] <= BOUND,
        "the page's memory is bounded": heap_at_end <= heap + GROWTH["page"],
        "the server's memory is bounded": resident_at_end <= resident + GROWTH["server"],
        f"throughput is at least {SHARE:g} of that without the page": (
            speeds["the page on"]["ratio"] >= SHARE
        ),
    }


def show(figures: dict[str, Any]) -> None:
    for name, value in figures.items():
        if not isinstance(value, dict):
            print(f"{name:32} {value}")
            continue
        for part, figure in value.items():
            if isinstance(figure, dict):
                figure = ", ".join(f"{what}: {number:,}" for what, number in figure.items())
            print(f"{name:32} {part:18} {figure}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument("--rate", type=float, default=900.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--send", metavar="URL", help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ["VALUED_ENV"] = "production"
    if given.send:
        print(send(given.send, given.events, given.rate))
        return 0
    if missing := browsers.missing():
        parser.error(f"it needs a browser, and {missing}: pip install playwright, and a Chromium")
    figures, promises = run(given)
    show(figures)
    return verdict(figures, promises, given.json)


if __name__ == "__main__":
    sys.exit(main())
