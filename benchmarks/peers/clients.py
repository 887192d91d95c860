"""Other clients that record events and send them in the background, as their documents say.

Each is installed into an environment of its own. They send many events in one request, so that
their CPU time for an event is no measure of a client that may not.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from benchmarks.servers import ROOT

FOLDER: Final = ROOT / ".peers"
TOKEN: Final = "a-token"
#: What the benchmarks themselves need there.
OURS: Final = ("psutil", "pyperf", "requests")

#: Records an event with this key, and attributes.
Record: TypeAlias = Callable[..., object]
#: Makes a client of the server's address, and how many events may wait (None: by default).
Make: TypeAlias = Callable[[str, "int | None"], "tuple[Record, Callable[[], object]]"]


class Client(NamedTuple):
    """One client: how it is made, its packages (none: it is in this tree), what is imported."""

    make: Make
    packages: tuple[str, ...]
    module: str


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _valued(url: str, room: int | None) -> tuple[Record, Callable[[], object]]:
    import valued

    options: dict[str, Any] = {} if room is None else {"max_queue": room}
    client = valued.Client(TOKEN, url, **options)

    def record(key: str, **more: object) -> None:
        client.action(key, {"user.id": 123}, attributes=more or None)

    return record, lambda: client.flush(60)


def _valued_signals(url: str, room: int | None) -> tuple[Record, Callable[[], object]]:
    import valued

    made = _valued(url, room)
    valued.flush_on_signals()
    return made


def _posthog(url: str, room: int | None) -> tuple[Record, Callable[[], object]]:
    import posthog  # type: ignore[import-not-found]

    options = {} if room is None else {"max_queue_size": room}
    client = posthog.Posthog(TOKEN, host=_origin(url), **options)

    def record(key: str, **more: object) -> None:
        client.capture(key, distinct_id="123", properties=more)

    return record, client.flush


def _tracking(module: str) -> Make:
    """Of segment, and of rudder, which descends from it."""

    def make(url: str, room: int | None) -> tuple[Record, Callable[[], object]]:
        import importlib

        options = {} if room is None else {"max_queue_size": room}
        client = importlib.import_module(module).Client(TOKEN, host=_origin(url), **options)

        def record(key: str, **more: object) -> None:
            client.track("123", key, more)

        return record, client.flush

    return make


def _sentry(url: str, room: int | None) -> tuple[Record, Callable[[], object]]:
    import sentry_sdk  # type: ignore[import-not-found]

    parts = urlsplit(url)
    options = {} if room is None else {"transport_queue_size": room}
    sentry_sdk.init(dsn=f"{parts.scheme}://{TOKEN}@{parts.netloc}/1", **options)

    def record(key: str, **more: object) -> None:
        sentry_sdk.capture_message(key, extras=more)

    return record, lambda: sentry_sdk.flush(300)


def _opentelemetry(url: str, room: int | None) -> tuple[Record, Callable[[], object]]:
    from opentelemetry.exporter.otlp.proto.http import _log_exporter  # type: ignore[import-not-found]
    from opentelemetry.sdk._logs import LoggerProvider, export  # type: ignore[import-not-found]

    provider = LoggerProvider()
    options = {} if room is None else {"max_queue_size": room, "max_export_batch_size": room}
    exporter = _log_exporter.OTLPLogExporter(endpoint=f"{_origin(url)}/v1/logs")
    provider.add_log_record_processor(export.BatchLogRecordProcessor(exporter, **options))
    logger = provider.get_logger("probe")

    def record(key: str, **more: object) -> None:
        logger.emit(event_name=key, attributes={"user.id": 123, **more})

    return record, provider.force_flush


_SEGMENT, _RUDDER = "segment.analytics.client", "rudderstack.analytics.client"
CLIENTS: Final = {
    "valued": Client(_valued, (), "valued"),
    "valued, flush_on_signals": Client(_valued_signals, (), "valued"),
    "posthog": Client(_posthog, ("posthog",), "posthog"),
    "segment": Client(_tracking(_SEGMENT), ("segment-analytics-python",), _SEGMENT),
    "rudder": Client(_tracking(_RUDDER), ("rudder-sdk-python",), _RUDDER),
    "sentry": Client(_sentry, ("sentry-sdk",), "sentry_sdk"),
    "opentelemetry": Client(
        _opentelemetry, ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"),
        "opentelemetry.sdk._logs.export",
    ),
}  # fmt: skip
#: Those that are in the rows of the table.
IN_TABLE: Final = ("posthog", "segment", "rudder", "sentry")


def in_table() -> dict[str, dict[str, str]]:
    """Each client of the table, by name, with its interpreter, as `Bench` wants them."""
    return {name: {"python": environment(name)} for name in IN_TABLE}


def environment(name: str) -> str:
    """The interpreter that has this client; its latest packages are installed if need be."""
    packages = CLIENTS[name].packages
    if not packages:
        return sys.executable
    folder = FOLDER / name
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *packages, *OURS], stdout=sys.stderr, check=True)
    return str(python)


def version(python: str, name: str) -> str:
    """The version that is installed."""
    packages = CLIENTS[name].packages
    if not packages:
        return "this tree"
    code = f"from importlib.metadata import version; print(version({packages[0]!r}))"
    done = subprocess.run([python, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()
