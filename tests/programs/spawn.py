"""Hand something of ours to a child that multiprocessing starts: METHOD WHAT URL.

Prints the child's pid, whether its token could be seen from outside, and how a pickle for
anybody else is refused.
"""

import json
import multiprocessing
import os
import pickle
import sys

import psutil

import valued

TOKEN = "t0ken-that-nobody-may-see"


class Transport:
    """One of a user's own, with a connection in it."""

    def __init__(self, url):
        self.connection = valued.Connection(TOKEN, url)

    def __call__(self, event):
        self.connection(event)


def ignore(error, event):
    """An on_error that can be pickled."""


def make(what, url):
    client = valued.Client(TOKEN, url, max_workers=2, retries=3, on_error=ignore)
    if what == "scope":
        scope = valued.Scope(client, {"user.id": 1, "attributes.default": True})
        scope["customer.id"] = 12
        return scope
    if what == "connection":
        return valued.Connection(TOKEN, url, timeout=5, pool_size=3)
    if what == "transport":
        return valued.Client(Transport(url), executor=valued.ImmediateExecutor())
    return client


def send(key, subject):
    """Send an event by whatever it is, and wait until it is there."""
    if isinstance(subject, valued.Connection):
        subject({"category": "action", "key": key, "attributes": {"pid": os.getpid()}})
    elif isinstance(subject, valued.Scope):
        subject.action(key, {"attributes.pid": os.getpid()})
        assert subject._own.client.flush(10)
    else:
        subject.action(key, {"user.id": 1, "attributes.pid": os.getpid()})
        assert subject.flush(10)


def options_of(subject):
    """What a client was made with, by name: a function is another object in another process."""
    options = subject._options._asdict() if isinstance(subject, valued.Client) else {}
    return {name: str(getattr(value, "__name__", value)) for name, value in options.items()}


def child(subject, findings):
    send("child", subject)
    process = psutil.Process()
    shown = [*process.cmdline(), *process.environ().values()]
    findings.put(
        {
            "pid": os.getpid(),
            "shown": any(TOKEN in text for text in shown),
            "options": options_of(subject),
        }
    )


def keep(client):
    global kept
    kept = client


def task(number):
    send(f"task-{number}", kept)
    return os.getpid()


def refusal(function, *args):
    try:
        function(*args)
    except valued.PicklingError as error:
        return str(error)
    return None


def main():
    method, what, url = sys.argv[1:]
    context = multiprocessing.get_context(method)
    if what == "pool":
        client = make(what, url)
        pool = context.Pool(2, keep, (client,))
        pids = pool.map(task, range(6), chunksize=1)
        found = {"pids": pids, "refused": refusal(pool.apply, send, ("never", client))}
        pool.close()
        pool.join()
    else:
        subject = make(what, url)
        send("parent", subject)
        findings = context.Queue()
        process = context.Process(target=child, args=(subject, findings))
        process.start()
        found = findings.get(timeout=30)
        process.join(30)
        found |= {
            "status": process.exitcode,
            "refused": refusal(pickle.dumps, subject),
            "same options": found["options"] == options_of(subject),
        }
    print(json.dumps({**found, "parent": os.getpid()}))


if __name__ == "__main__":
    main()
