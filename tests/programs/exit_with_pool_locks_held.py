"""Fork while a thread holds every lock of the session; the child does nothing but end: URL WHO.

WHO says whether anything still refers to the session in the child: nobody, or the program.
"""

import json
import os
import sys
import warnings

import locks

from valued import Connection


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
    found = locks.locks_of(session, *managers, *pools)
    # The thread is this program's, and on purpose.
    warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
    release = locks.hold(found)
    if who == "nobody":
        del session, adapter, managers, pools
    pid = os.fork()
    if pid == 0:
        sys.exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    release()
    connection({"number": 2})
    print(json.dumps({"status": status, "locks": len(found)}))


if __name__ == "__main__":
    main()
