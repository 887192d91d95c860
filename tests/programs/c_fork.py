"""A program that forks in C, so that Python hears nothing of it: URL LOADER ENDING.

LOADER is the class of ctypes that calls ``fork``: CDLL lets go of the interpreter's lock around the
call, PyDLL keeps it. Such a fork needs all other threads to be away from that lock. So each line on
the standard input is waited for: the first comes when the server has got an event that it doesn't
answer yet, the second when it has answered.
"""

import ctypes
import os
import sys
import threading
import time
import traceback

import psutil

import valued

URL, LOADER, ENDING = sys.argv[1:]
PORT = int(URL.split(":")[2].partition("/")[0])
fork = getattr(ctypes, LOADER)(None).fork

client = valued.Client("token", URL, max_workers=1)
idle = valued.Connection("token", URL)


def record(key: str) -> None:
    client.action(key, {"user.id": 1, "attributes.pid": os.getpid()})


def ports() -> set[int]:
    """Our ends of this process's connections to the server."""
    process = psutil.Process()
    # psutil before 6.0 knows it by the second name only.
    connections = (getattr(process, "net_connections", None) or process.connections)("tcp")
    return {each.laddr.port for each in connections if each.raddr and each.raddr.port == PORT}


def others_read_from_their_sockets() -> bool:
    """Whether the client's one thread is in the call that waits for the server."""
    time.sleep(0.01)  # it needs the interpreter's lock once more, before it waits
    here = threading.get_ident()
    others = [frame for ident, frame in sys._current_frames().items() if ident != here]
    # Another thread of the pool may idle: it waits for a lock.
    return sorted({frame.f_code.co_name for frame in others} - {"_run"}) == ["is_readable"]


def in_child(inherited: set[int]) -> None:
    assert ports() == inherited, "something told of the fork"
    figures = client.stats()
    assert (figures["accepted"], figures["pid"]) == (0, os.getpid()), figures
    record("child")
    assert not ports() & inherited, (ports(), inherited)
    if ENDING == "flush":
        assert client.flush(10)
        assert len(ports()) == 1
        figures = client.stats()
        assert (figures["accepted"], figures["delivered"]) == (1, 1), figures


idle({"category": "action", "key": "idle", "user": {"id": 1}})
record("warm")
assert client.flush(10)
record("held")
record("queued")
sys.stdin.readline()
while not others_read_from_their_sockets():
    pass
before = ports()
assert len(before) == 2
pid = fork()
if pid == 0:
    try:
        in_child(before)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    if ENDING == "flush":
        os._exit(0)
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert ports() == before
print("the child is gone", flush=True)
sys.stdin.readline()
assert client.flush(10)
assert ports() == before
figures = client.stats()
assert (figures["accepted"], figures["delivered"]) == (3, 3), figures
