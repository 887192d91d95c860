"""Programs with a loop of asyncio: URL ROAD. What a road found out it prints, as JSON."""

import asyncio
import concurrent.futures
import inspect
import json
import multiprocessing
import os
import sys
import time

import valued

URL, ROAD = sys.argv[1:]
# Where a process forks, the events behind the one that is held are to be queued.
client = valued.Client("token", URL, max_workers=1 if "fork" in ROAD else 10)

#: Seconds between two ticks of whoever measures the pauses of the loop.
TICK = 0.001


def record(key: str) -> None:
    client.action(key, {"user.id": 1, "attributes.pid": os.getpid()})


async def pauses() -> None:
    """1,000 events, of tasks that take turns, for a server that answers none of them."""
    found = {"worst": 0.0, "ticks": 0}

    async def tick() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(TICK)
            now = time.perf_counter()
            found["ticks"] += 1
            found["worst"] = max(found["worst"], now - last - TICK)
            last = now

    async def visitor() -> None:
        for _ in range(100):
            record("visit")
            await asyncio.sleep(0)

    ticker = asyncio.create_task(tick())
    await asyncio.gather(*(visitor() for _ in range(10)))
    ticker.cancel()
    print(json.dumps({**found, "pending": client.stats()["pending"]}), flush=True)
    os._exit(0)  # nobody answers: there is nothing to wait for


async def flush_in_a_thread() -> None:
    """The loop goes on while a thread waits."""
    record("held")
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(TICK)
            ticks += 1

    ticker = asyncio.create_task(tick())
    flushing = asyncio.create_task(asyncio.to_thread(client.flush, 10))
    while ticks < 10:
        await asyncio.sleep(TICK)
    assert not flushing.done()
    record("go on")  # lets the server answer
    assert await flushing
    ticker.cancel()


async def scopes() -> None:
    """Each task has a scope of its own, however they take turns; it begins with its parent's."""
    valued.connect(client)

    async def visitor(number: int) -> None:
        assert valued.scope.to_dict() == {"attributes": {"shared": True}}
        valued.scope["user.id"] = number
        await asyncio.sleep(0)
        with valued.nested({"customer.id": -number}):
            await asyncio.sleep(0)
            valued.action(f"both-{number}")
        await asyncio.sleep(0)
        valued.action(f"user-{number}")

    valued.scope["attributes.shared"] = True
    await asyncio.gather(*(visitor(number) for number in range(1, 11)))
    assert valued.scope.to_dict() == {"attributes": {"shared": True}}


async def end() -> None:
    """With events that nobody flushed."""

    async def visitor(number: int) -> None:
        await asyncio.sleep(0)
        record(f"event-{number}")

    await asyncio.gather(*(visitor(number) for number in range(50)))


async def end_by_an_exception() -> None:
    await end()
    raise SystemExit(3)


def warm() -> None:
    record("warm")
    assert client.flush(10)
    record("held")
    record("queued")


def fork() -> int:
    """The exit status of a child that records, too, and then leaves as any program."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 1
    try:
        in_child()
        status = 0
    finally:
        os._exit(status)


def in_child() -> None:
    figures = client.stats()
    assert (figures["accepted"], figures["pid"]) == (0, os.getpid()), figures
    record("child")
    assert client.flush(10)


async def fork_in_the_loop() -> None:
    warm()
    assert fork() == 0
    assert await asyncio.to_thread(client.flush, 10)


async def fork_in_an_executor() -> None:
    warm()
    assert await asyncio.get_running_loop().run_in_executor(None, fork) == 0
    assert await asyncio.to_thread(client.flush, 10)


async def fork_by_multiprocessing() -> None:
    """Its children end without a flush: the end of each delivers."""
    warm()
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        await asyncio.get_running_loop().run_in_executor(pool, record, "child")
    assert await asyncio.to_thread(client.flush, 10)


def fork_and_run_a_loop() -> None:
    """A child has a loop of its own."""
    warm()
    pid = os.fork()
    if pid == 0:

        async def child() -> None:
            in_child()
            record("child-at-end")

        asyncio.run(child())
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert client.flush(10)


road = globals()[ROAD]
if inspect.iscoroutinefunction(road):
    asyncio.run(road())
else:
    road()
