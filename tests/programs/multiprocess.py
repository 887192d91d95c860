"""Children of multiprocessing that record events and flush nothing: URL METHOD ROAD.

Prints the keys that were recorded, as the children, or the results of the tasks, told.
"""

import concurrent.futures
import json
import multiprocessing
import multiprocessing.pool
import os
import signal
import sys
from threading import Barrier

import valued

client: valued.Client


def start(given: valued.Client) -> None:
    """What a pool's initializer does: a spawned child has no client but the one it is given."""
    global client
    client = given


def start_and_flush_on_signals(given: valued.Client, started: Barrier) -> None:
    start(given)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # coverage has a handler there
    valued.flush_on_signals()
    started.wait(30)


def task(key: str) -> str:
    client.action(key, {"user.id": 1, "attributes.pid": os.getpid()})
    return key


def failing_task(key: str) -> str:
    task(key)
    raise valued.ValidationError(f"{key}: carried back by a pickle")


def child(given: valued.Client, key: str) -> None:
    start(given)
    task(key)


def exiting_child(given: valued.Client, key: str) -> None:
    child(given, key)
    sys.exit(3)


def failing_child(given: valued.Client, key: str) -> None:
    sys.stderr = open(os.devnull, "w")
    child(given, key)
    raise ZeroDivisionError


def scope_child(scope: valued.Scope, key: str) -> None:
    scope.action(key)


def parent_of_a_child(given: valued.Client, key: str, method: str) -> None:
    child(given, key)
    process = multiprocessing.get_context(method).Process(target=child, args=(given, f"{key}'s"))
    process.start()
    process.join()


def processes(context, target, *keys: str, status: int = 0, arguments=()) -> list[str]:
    started = [context.Process(target=target, args=(client, key, *arguments)) for key in keys]
    for process in started:
        process.start()
    for process in started:
        process.join()
        assert process.exitcode == status, process.exitcode
    return list(keys)


KEYS = [f"task {number}" for number in range(12)]


def process(context) -> list[str]:
    return processes(context, child, "one", "two")


def process_with_sys_exit(context) -> list[str]:
    return processes(context, exiting_child, "one", "two", status=3)


def process_with_an_exception(context) -> list[str]:
    return processes(context, failing_child, "one", "two", status=1)


def process_of_a_process(context) -> list[str]:
    method = context.get_start_method()
    recorded = processes(context, parent_of_a_child, "one", arguments=(method,))
    return [*recorded, "one's"]


def scope(context) -> list[str]:
    given = valued.Scope(client, {"user.id": 1})
    given["attributes.pid"] = 0
    process = context.Process(target=scope_child, args=(given, "scoped"))
    process.start()
    process.join()
    assert process.exitcode == 0
    return ["scoped"]


def pool(context, **options) -> list[str]:
    with_pool = context.Pool(3, initializer=start, initargs=(client,), **options)
    done = with_pool.map(task, KEYS, chunksize=1)
    with_pool.close()
    with_pool.join()
    return done


def pool_with_maxtasksperchild(context) -> list[str]:
    return pool(context, maxtasksperchild=3)


def pool_as_a_block(context) -> list[str]:
    # Where coverage is measured, a worker that `terminate` meets in the instant of its fork never
    # ends: CPython forgets a signal that came before the child's first step, if it has a handler.
    started = context.Barrier(4)
    with context.Pool(3, start_and_flush_on_signals, (client, started)) as with_pool:
        started.wait(30)
        return with_pool.map(task, KEYS, chunksize=1)


def pool_with_failing_tasks(context) -> list[str]:
    with_pool = context.Pool(3, initializer=start, initargs=(client,))
    results = [with_pool.apply_async(failing_task, (key,)) for key in KEYS]
    for key, result in zip(KEYS, results, strict=True):
        try:
            result.get(30)
        except valued.ValidationError as error:
            assert str(error).startswith(key)  # noqa: PT017 - no test, but a program
    with_pool.close()
    with_pool.join()
    return KEYS


def pool_of_threads(_context) -> list[str]:
    with multiprocessing.pool.ThreadPool(3) as threads:
        return threads.map(task, KEYS)


def process_pool_executor(context) -> list[str]:
    with concurrent.futures.ProcessPoolExecutor(
        3, mp_context=context, initializer=start, initargs=(client,)
    ) as executor:
        return list(executor.map(task, KEYS))


def main() -> None:
    url, method, road = sys.argv[1:]
    start(valued.Client("token", url))
    task("parent, before")
    recorded = globals()[road](multiprocessing.get_context(method))
    task("parent, after")
    print(json.dumps(sorted([*recorded, "parent, before", "parent, after"])))


if __name__ == "__main__":
    main()
