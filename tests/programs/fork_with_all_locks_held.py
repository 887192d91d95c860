"""Fork while a thread holds every lock that can be found; the child ends as END says: URL END.

The locks are those that hang off the client, its connections and its session, whatever library
made them, and those of logging, which Python sees to itself.
"""

import gc
import json
import logging
import os
import sys
import threading
import types

import valued

LOCKS = (type(threading.Lock()), type(threading.RLock()))
ELSEWHERE = (type, types.ModuleType, types.FunctionType, types.FrameType, logging.Logger)


def locks_of(*roots):
    """Every lock that is reachable, but by classes, modules and functions."""
    found, seen, todo = [], set(), list(roots)
    while todo:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, LOCKS):
            found.append(thing)
        elif not isinstance(thing, ELSEWHERE):
            todo.extend(gc.get_referents(thing))
    return found


def main() -> None:
    url, end = sys.argv[1:]
    handler = logging.StreamHandler()
    logging.getLogger("valued").addHandler(handler)
    client = valued.Client("token", url)
    client.action("parent", {"user.id": 1})
    assert client.flush(10)
    session = client._transport.session
    manager = session.get_adapter(url).poolmanager
    pools = [manager.pools[key] for key in manager.pools.keys()]  # noqa: SIM118 - no mapping
    assert pools
    locks = locks_of(client, session, manager, handler, *pools)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        # Not waited for: one that is held already (an idle thread's) is held, which is the aim.
        taken = [lock for lock in locks if lock.acquire(blocking=False)]
        held.set()
        release.wait(30)
        for lock in taken:
            lock.release()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    pid = os.fork()
    if pid == 0:
        sys.stderr = open(os.devnull, "w")  # for the traceback of the exception
        client.action("child", {"user.id": 2})
        if end == "sys.exit":
            sys.exit(0)
        if end == "exception":
            raise ZeroDivisionError
        return
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    release.set()
    thread.join()
    client.action("parent", {"user.id": 1})
    print(json.dumps({"status": status, "locks": len(locks)}))


if __name__ == "__main__":
    main()
