"""Lanes of processes, and repeats."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from tests.support.browser import Sender, Shown, event
from tests.support.cli import Listening

pytest.importorskip("playwright")

from playwright.sync_api import expect

FAMILY = """
import multiprocessing, os, sys
import valued

def record(key):
    valued.action(key, {"user.id": os.getpid()})
    valued.flush()
    return os.getpid()

valued.connect("token", sys.argv[1])
record("of.parent")
child = os.fork()
if not child:
    record("of.child")
    grandchild = os.fork()
    if not grandchild:
        record("of.grandchild")
        sys.exit()
    os.waitpid(grandchild, 0)
    print("grandchild", grandchild)
    sys.exit()
os.waitpid(child, 0)
print("child", child)
pool = multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1)
for name in ("worker", "replacement"):
    print(name, pool.apply(record, ("of.pool",)))
pool.close()
pool.join()
print("parent", os.getpid(), flush=True)
sys.stdin.read()
record("of.parent")
"""


def left(shown: Shown, pid: int) -> float:
    """How far to the right the lane of a process begins."""
    box = shown.page.locator(".lane", has_text=f"pid {pid}").locator(".who button").bounding_box()
    assert box is not None
    return box["x"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_each_process_has_a_lane_below_its_parent(shown: Shown, server: Listening) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", FAMILY, server.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert program.stdout is not None
        pids: dict[str, int] = {}
        while "parent" not in pids:
            name, pid = program.stdout.readline().split()
            pids[name] = int(pid)
        expect(shown.page.locator(".lane")).to_have_count(5)
        lanes = {
            name: shown.page.locator(".lane", has_text=f"pid {pid}") for name, pid in pids.items()
        }
        for name in ("child", "worker", "replacement"):
            expect(lanes[name]).to_contain_text(f"child of {pids['parent']}")
            expect(lanes[name]).to_contain_text("ended")
            assert left(shown, pids[name]) > left(shown, pids["parent"])
        expect(lanes["grandchild"]).to_contain_text(f"child of {pids['child']}")
        assert left(shown, pids["grandchild"]) > left(shown, pids["child"])
        assert len(set(pids.values())) == 5  # a recycled worker is another process
        expect(lanes["parent"]).to_contain_text("running")
        program.communicate("\n", timeout=20)
        expect(lanes["parent"]).to_contain_text("ended")
        expect(lanes["parent"]).to_contain_text("2 events")
    finally:
        program.kill()
        program.communicate()
    lanes["grandchild"].locator("button").click()
    expect(shown.wait_for()).to_contain_text("of.grandchild")
    expect(shown.page.locator("#lane option:checked")).to_contain_text(str(pids["grandchild"]))
    lanes["grandchild"].locator("button").click()  # again: all of them
    shown.wait_for(count=6)


SILENT = """
import os, sys
import valued

client = valued.Client("token", sys.argv[1])
children = [os.fork() or 0]
if children[0]:
    children.append(os.fork() or 0)
if not children[-1]:
    client.action("of.child", {"user.id": os.getpid()})
    sys.exit()
for child in children:
    os.waitpid(child, 0)
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_parent_that_sent_nothing_is_named_above_its_children(
    shown: Shown, server: Listening
) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", SILENT, server.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert program.stdout is not None
        pid = int(program.stdout.readline())
        name = psutil.Process(pid).name()
        lanes = shown.page.locator(".lane")
        expect(lanes).to_have_count(3)
        expect(lanes.first).to_contain_text(f"{name}pid {pid}")
        expect(lanes.first).to_contain_text("parent, sent no events")
        for number in (1, 2):
            expect(lanes.nth(number)).to_contain_text(f"child of {pid}")
    finally:
        program.communicate("", timeout=20)


def test_a_repeat_is_marked_with_the_one_that_was_accepted_first(
    shown: Shown, sender: Sender
) -> None:
    sender.send(event(key="other.one"))
    for _ in range(2):
        assert sender.send(event(key="sent.twice"), Idempotency_Key="one-key") == 204
    rows = shown.wait_for("sent.twice", count=2)
    first = rows.nth(0).filter(has_not_text="repeat").or_(rows.nth(1).filter(has_not_text="repeat"))
    number = first.locator(".id").inner_text()
    repeat = shown.wait_for(f"repeat of {number}")
    expect(shown.count("repeat")).to_have_text("1")
    expect(shown.page.locator(".lane")).to_contain_text("1 repeat")
    repeat.get_by_role("button", name=f"repeat of {number}").click()
    expect(shown.page.locator("#detail-title")).to_contain_text(f"{number} action sent.twice")
    expect(shown.page.locator(".attempts li")).to_have_count(2)
    shown.page.click("#kinds [data-kind=repeat]")
    shown.wait_for("repeat of")
    expect(shown.page.locator("#meaning")).to_contain_text("same idempotency key")


def test_events_of_one_process_over_two_connections_are_in_one_lane(
    shown: Shown, sender: Sender
) -> None:
    other = Sender(shown.endpoint)
    sender.send(event())
    other.send(event())
    other.close()
    expect(shown.page.locator(".lane")).to_have_count(1)
    expect(shown.page.locator(".lane")).to_contain_text("2 connections")
    expect(shown.page.locator(".lane")).to_contain_text("2 events")
