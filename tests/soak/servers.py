"""Servers of the soak, and how each is started."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from tests.soak.figures import Journal
from tests.soak.load import Who, by_cookie_or_header
from tests.support.django_site import Served
from tests.support.programs import free_port

DJANGO = "tests.programs.django_site"
DJANGO_WSGI = f"{DJANGO}.wsgi:application"
DJANGO_ASGI = f"{DJANGO}.asgi:application"
FASTAPI = "tests.soak.apps.fastapi_app:app"
FLASK = "tests.soak.apps.flask_app:app"
UVICORN_WORKER = "uvicorn_worker.UvicornWorker"


@dataclasses.dataclass(frozen=True)
class Case:
    command: tuple[str, ...]
    pages: tuple[str, ...]
    streams: tuple[str, ...]
    needs: tuple[str, ...]
    django: bool = False
    flush_on_signals: bool = False
    #: By SIGHUP, in the middle.
    reloads: bool = True


def gunicorn(worker: str, app: str, *options: str, preload: bool = False) -> tuple[str, ...]:
    if preload:
        options = (*options, "--preload")
        if worker == "gevent":  # before the framework is imported
            options = (*options, "-c", f"python:{DJANGO}.patched")
    return (
        *("-m", "gunicorn", "--bind", "127.0.0.1:0", "--workers", "2", "--no-control-socket"),
        *("--worker-class", worker, *options, app),
    )


#: Gunicorn's options to replace workers all the time.
RECYCLED = ("--max-requests", "250", "--max-requests-jitter", "100")


def uvicorn(app: str, *options: str) -> tuple[str, ...]:
    return ("-m", "uvicorn", "--port", "0", "--no-access-log", *options, app)


@dataclasses.dataclass
class Site:
    database: Path
    sessions: dict[str, str]

    def who(self, user: str) -> dict[str, str]:
        return {"Cookie": f"sessionid={self.sessions[user]}"}


#: Starts the server of a case, with options of its client.
Start: TypeAlias = Callable[..., "tuple[Served, Journal, Who]"]


def serve(
    case: Case, folder: Path, endpoint: str, site: Site | None, options: dict[str, object]
) -> tuple[Served, Journal, Who]:
    """The server, its journal, and what its visitors carry. *site*: where it is Django's."""
    journal = folder / "journal"
    journal.touch()
    environment = {
        **os.environ,
        "JOURNAL": str(journal),
        "VALUED_TOKEN": "test-token",
        "VALUED_ENDPOINT": endpoint,
        "PYTHONWARNINGS": "ignore:This process",
    }
    if site is not None:
        settings = {name.upper(): value for name, value in options.items()}
        environment |= {
            "DJANGO_DATABASE": str(site.database),
            "DJANGO_SETTINGS_MODULE": "tests.soak.apps.django_settings",
            "DJANGO_VALUED": json.dumps({**settings, "FLUSH_ON_SIGNALS": case.flush_on_signals}),
        }
    else:
        environment["CLIENT_OPTIONS"] = json.dumps(options)
        if case.flush_on_signals:
            environment["FLUSH_ON_SIGNALS"] = "1"
    command, port = case.command, 0
    if "runserver" in command:
        port = free_port()
        command = (*command, f"127.0.0.1:{port}")
    who = by_cookie_or_header if site is None else site.who
    return Served(folder, environment, *command, port=port), Journal(journal), who
