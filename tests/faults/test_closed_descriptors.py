"""Code that closes descriptors which aren't its own, as daemons do, while events are sent.

What is opened next gets their numbers. No byte of ours gets into it, none is read from it, and it
isn't closed by us; and every event is delivered.
"""

from __future__ import annotations

import collections
import contextlib
import json
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.faults._raw import NO_CONTENT, Peer, RawServer
from tests.support.dead import DeadAddress
from tests.support.processes import PROGRAMS, run_program
from tests.support.proxy import Listener, read_request
from tests.support.server import Server
from tests.support.tls import Authority, TLSServer

pytest.importorskip("resource", reason="descriptors have no numbers here")

BOUND = 30.0  # seconds; bounds a failure

#: How often all descriptors are closed. The soak does it 1,000 times.
INSTANTS = 10  # the soak has a thousand


class Run(NamedTuple):
    """What the program said."""

    damage: list[str]
    recorded: list[str]
    stats: dict[str, Any]


def close_descriptors(
    url: str,
    between: Callable[[], object],
    afterwards: Callable[[], object] = lambda: None,
    when: str = "told",
) -> Run:
    """Run the program; *between* an event and the closing, and *afterwards*, something is done."""
    arguments = [sys.executable, str(PROGRAMS / "closes_descriptors.py"), url, "", when, "0", "0"]
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        try:
            if when == "flushed":
                assert program.stdout.readline() == "flushed\n"
            between()
            print(file=program.stdin, flush=True)
            assert program.stdout.readline() == "opened\n"
            afterwards()
            print(file=program.stdin, flush=True)
            said = json.loads(program.stdout.readline())
            assert program.wait(BOUND) == 0
        finally:
            program.kill()
    assert said["settled"], said
    return Run(said["damage"], said["recorded"], said["stats"])


def test_a_kept_connection_whose_number_is_used_by_other_code_is_forgotten(server: Server) -> None:
    run = close_descriptors(server.url, lambda: server.wait_for(1), when="flushed")
    assert run.damage == []
    assert server.keys() == ["after", "before"]


def test_an_answer_is_not_read_from_what_has_the_number_of_its_connection(
    serve: Callable[..., RawServer],
) -> None:
    answers = threading.Event()

    def holds(peer: Peer) -> None:
        while peer.read_request() is not None:
            answers.wait(BOUND)
            peer.send(NO_CONTENT)

    server = serve(holds)
    run = close_descriptors(server.url, lambda: server.wait_for(1), answers.set)
    assert run.damage == []
    assert sorted(set(server.keys)) == ["after", "before"]
    assert len({headers["idempotency-key"] for headers in server.headers}) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux drops what a full listener gets")
def test_a_connection_that_is_being_made_does_not_close_what_has_its_number() -> None:
    with contextlib.closing(socket.create_server(("127.0.77.2", 0))) as free:
        port = free.getsockname()[1]
    dead = DeadAddress("127.0.77.2", port)
    listening: list[socket.socket] = []
    keys: list[str] = []

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                accepted, _ = listener.accept()
                threading.Thread(target=talk, args=(accepted,), daemon=True).start()

    def talk(accepted: socket.socket) -> None:
        with contextlib.suppress(OSError), accepted, accepted.makefile("rb") as stream:
            while head := read_request(stream):
                keys.append(next(line for line in head if line.startswith("Idempotency-Key")))
                accepted.sendall(NO_CONTENT)

    def comes_to_life() -> None:
        threading.Event().wait(2.5)  # longer than the attempt, which then is over
        dead.close()
        listening.append(socket.create_server(("127.0.77.2", port)))
        threading.Thread(target=serve, args=listening, daemon=True).start()

    url = f"http://127.0.77.2:{port}/events"
    try:
        # A connection is being made as soon as there was time to start a thread.
        run = close_descriptors(url, lambda: threading.Event().wait(0.5), comes_to_life)
    finally:
        for listener in listening:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
    assert run.damage == []
    assert run.stats["delivered"] == 2
    assert len(set(keys)) == 2


def test_a_handshake_is_not_continued_on_what_has_the_number_of_its_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.bundle))
    context = authority.context()
    goes_on = threading.Event()
    keys: list[str] = []

    def serve(client: socket.socket) -> None:
        client.recv(1, socket.MSG_PEEK)
        begun.set()
        goes_on.wait(BOUND)
        with context.wrap_socket(client, server_side=True) as tls, tls.makefile("rb") as stream:
            while head := read_request(stream):
                keys.append(next(line for line in head if line.startswith("Idempotency-Key")))
                tls.sendall(NO_CONTENT)

    begun = threading.Event()
    with Listener(serve) as service:
        url = f"https://127.0.0.1:{service.port}/events"
        run = close_descriptors(url, lambda: begun.wait(BOUND), goes_on.set)
    assert run.damage == []
    assert run.stats["delivered"] == 2
    assert len(set(keys)) == 2


KINDS = ["http", "https", "http with an outbox", "https with an outbox"]


def close_at_random_instants(
    kind: str, instants: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> int:
    """Run the program; all that it recorded arrived. Returns at how many instants was damage."""
    seed = random.randrange(1 << 32)
    print(f"seed: {seed}")  # pytest shows it if the test fails
    outbox = str(folder / "outbox") if "outbox" in kind else ""
    if kind.startswith("https"):
        authority = Authority(folder)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.bundle))
        server: Server = TLSServer(authority)
    else:
        server = Server()
    try:
        done = run_program(
            "closes_descriptors.py", server.url, outbox, "random", str(seed), str(instants),
            timeout=60 + instants,
        )  # fmt: skip
    finally:
        server.close()
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["settled"], said["stats"]
    keys: dict[str, set[str]] = collections.defaultdict(set)
    for request in server.requests:
        if len(request.body) < int(request.headers["Content-Length"]):
            continue  # its connection ended in the middle
        keys[request.event["key"]].add(request.headers["Idempotency-Key"])
    assert sorted(keys) == sorted(said["recorded"])
    assert {len(each) for each in keys.values()} == {1}
    for one in said["damage"]:
        print(one)
    # For each connection OpenSSL reads the file of certificates, by a number of its own.
    found = [one for one in said["damage"] if not kind.startswith("https") or "written" in one]
    return len({one.partition(":")[0] for one in found})


@pytest.mark.parametrize("kind", KINDS)
def test_each_event_arrives_although_all_descriptors_are_closed_at_random_instants(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # How much damage was done is for the soak: ten instants are too few to tell.
    close_at_random_instants(kind, INSTANTS, tmp_path, monkeypatch)
