"""Fork while a thread holds every lock that can be found; the child ends as END says: URL END.

The locks are those that hang off the client, its connections and its session, whatever library
made them, and those of logging, which Python sees to itself.
"""

import json
import logging
import os
import sys

import locks

import valued


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
    found = locks.locks_of(client, session, manager, handler, *pools)
    release = locks.hold(found)
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
    release()
    client.action("parent", {"user.id": 1})
    print(json.dumps({"status": status, "locks": len(found)}))


if __name__ == "__main__":
    main()
