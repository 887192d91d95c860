"""``valued stats``: the stats of all processes of an application."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import socket
import sys
from typing import TYPE_CHECKING

import valued
from valued._service import render

if TYPE_CHECKING:
    import argparse

#: The format of Prometheus.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def run(arguments: argparse.Namespace) -> int:
    """Run the command in *arguments*; returns the exit status."""
    if arguments.directory is not None:
        os.stat(arguments.directory)  # a wrong path would show zeros
    status = valued.Status(arguments.directory)
    found = status.read()
    if arguments.listen is not None:
        return _listen(status, arguments.listen)
    if arguments.prometheus:
        print(exposition(found), end="")
    elif arguments.json:
        print(_as_json(found))
    else:
        rows = [[name, count] for name, count in found.totals.items() if isinstance(count, int)]
        rows.append(["processes", len(found.processes)])
        render.table(sys.stdout, ["events", "count"], rows)
    return 0


def _as_json(found: valued.ApplicationStats) -> str:
    processes = [process._asdict() for process in found.processes]
    return json.dumps({"totals": found.totals, "processes": processes})


def exposition(found: valued.ApplicationStats) -> str:
    """The metrics in the format of Prometheus."""
    lines = []
    for metric in found.metrics():
        name = f"{metric.name}_total" if metric.kind == "counter" else metric.name
        lines += [f"# HELP {name} {metric.text}", f"# TYPE {name} {metric.kind}"]
        for labels, value in metric.samples:
            # The reasons are ours: nothing in them needs to be escaped.
            shown = ",".join(f'{label}="{content}"' for label, content in labels.items())
            lines.append(f"{name}{{{shown}}} {value}" if shown else f"{name} {value}")
    return "\n".join(lines) + "\n"


def _listen(status: valued.Status, address: tuple[str, int]) -> int:
    class Answer(http.server.BaseHTTPRequestHandler):
        timeout = 10.0  # seconds; without it, a connection without a request kept a thread

        def do_GET(self) -> None:
            try:
                code, text = 200, exposition(status.read())
            except OSError as error:
                code, text = 500, f"{error}\n"
            body = text.encode()
            self.send_response(code)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        daemon_threads = True

    try:
        server = Server(address, Answer)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"can't listen on {address[0]}:{address[1]}: {reason}") from None
    with server:
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        print(f"listening on http://{host}:{server.server_port}/metrics", flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # its normal end
            server.serve_forever()
    return 0
