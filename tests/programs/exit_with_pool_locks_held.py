"""Fork while a thread holds every lock of the session; the child does nothing but end: URL WHO.

WHO says whether somebody else still refers to the session in the child: nobody, or the program.
"""

import gc
import json
import os
import sys
import threading
import types
import warnings

from valued import Connection

LOCKS = (type(threading.Lock()), type(threading.RLock()))
ELSEWHERE = (type, types.ModuleType, types.FunctionType, types.FrameType)


def locks_of(*roots):
    """Every lock that is reachable, but by classes, modules and functions."""
    found, seen, todo = [], [], list(roots)
    known = set()
    while todo:
        thing = todo.pop()
        if id(thing) in known:
            continue
        known.add(id(thing))
        seen.append(thing)  # or its id might be another's
        if isinstance(thing, LOCKS):
            found.append(thing)
        elif not isinstance(thing, ELSEWHERE):
            todo.extend(gc.get_referents(thing))
    return found


def main() -> None:
    url, who = sys.argv[1:]
    connection = Connection("token", url)
    connection({"number": 1})
    session = connection.session
    adapter = session.get_adapter(url)
    managers = [adapter.poolmanager, *adapter.proxy_manager.values()]
    pools = [
        manager.pools[key]
        for manager in managers
        for key in manager.pools.keys()  # noqa: SIM118 - it can't be iterated
    ]
    assert len(pools) == 1
    locks = locks_of(session, *managers, *pools)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        for lock in locks:
            assert lock.acquire(timeout=10)
        held.set()
        release.wait(30)
        for lock in locks:
            lock.release()

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    # The thread is this program's, and on purpose.
    warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
    if who == "nobody":
        del session, adapter, managers, pools
    pid = os.fork()
    if pid == 0:
        sys.exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    release.set()
    thread.join()
    connection({"number": 2})
    print(json.dumps({"status": status, "locks": len(locks)}))


if __name__ == "__main__":
    main()
