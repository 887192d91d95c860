"""The pages about data, production and scopes run as printed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import docutils.nodes
import pytest

import valued
from tests.docs.support import Case, Cases, blocks, objects, run_section
from tests.support.documents import ROOT, doctree
from tests.support.server import Server

MODEL = "data-model"
OBJECTS = "howto/objects"
TRANSPORTS = "howto/transports"
PRODUCTION = "howto/production"
PRIVACY = "howto/privacy"
SCOPES = "explanation/scopes"
PROMETHEUS = "howto/prometheus"
WIRE = "reference/wire-format"

#: A project that has the app which the page about objects configures.
_SHOP = """
import django
from django.conf import settings
names = ["django.contrib.contenttypes", "django.contrib.auth", "shop.apps.ShopConfig"]
settings.configure(INSTALLED_APPS=names)
django.setup()
from django.contrib.auth.models import AnonymousUser, User
from django.utils.functional import SimpleLazyObject
import valued
valued.connect(anonymous="drop")
valued.action("report.generated", user=User(pk=7, email="ada@example.com"))
valued.action("report.opened", user=SimpleLazyObject(lambda: User(pk=8)))
valued.action("report.closed", user=AnonymousUser())
assert valued.client().stats()["anonymous"] == 1
valued.action("report.closed", user=AnonymousUser(), customer={"id": 12})
"""

#: Records an event, and uses what the page about Prometheus writes.
_SCRAPED = """
import valued
valued.connect()
valued.action("report.generated", {"user.id": 123})
valued.disconnect()
import metrics, multiprocess_metrics
from prometheus_client import generate_latest
assert b"valued_events_delivered_total 1.0" in generate_latest()
assert b"valued_events_delivered_total 1.0" in multiprocess_metrics.metrics()
"""
#: Reports, by what the page about Prometheus writes for OpenTelemetry.
_OTEL = """
import io, json, sys
sys.stdout = printed = io.StringIO()
import report_otel
import valued
valued.connect()
valued.action("report.generated", {"user.id": 123})
valued.disconnect()
from opentelemetry.metrics import get_meter_provider
get_meter_provider().shutdown()
[one] = json.loads(printed.getvalue())["resource_metrics"][0]["scope_metrics"]
points = {it["name"]: it["data"]["data_points"] for it in one["metrics"]}
assert [it["value"] for it in points["valued_events_delivered"]] == [1]
assert {"reason": "overflow"} in [it["attributes"] for it in points["valued_events_dropped"]]
assert [it["value"] for it in points["valued_processes"]] == [1]
"""

#: The same twice for StatsD, with an event before each; what was sent, an agent got.
_STATSD = """
import socket
import statsd, valued
import report_statsd
valued.connect()
valued.action("report.generated", {"user.id": 123})
valued.disconnect()
agent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
agent.bind(("127.0.0.1", 0))
agent.settimeout(10)
client, status = statsd.StatsClient(port=agent.getsockname()[1]), valued.Status()
before = report_statsd.report(client, status, {})
valued.connect()
valued.action("report.generated", {"user.id": 124})
valued.disconnect()
after = report_statsd.report(client, status, before)
sent = [agent.recv(999).decode() for _name in (*before, *after)]
assert [it for it in sent if "delivered" in it] == [
    "valued_events_delivered:0|c", "valued_events_delivered:1|c"
], sent
assert sent.count("valued_events_pending:0|g") == 2, sent
assert "valued_events_dropped.overflow:0|c" in sent, sent
"""

CASES: Cases = {
    (MODEL, "The data model"): Case(events=3),
    (MODEL, "Users and customers"): Case(events=3),
    (MODEL, "Page views"): Case(events=2),
    (MODEL, "Syncs"): Case(events=3),
    (MODEL, "Goals and signals"): Case(events=2),
    (MODEL, "What goes where"): Case(events=1),
    (MODEL, "The time of an event"): Case(events=2),
    (MODEL, "A plan for a small product"): Case(events=6),
    (MODEL, "With the Ruby client: calls"): Case(events=3),
    (MODEL, "With the Ruby client: scopes"): Case(events=6),
    (MODEL, "With the Ruby client: the shared client"): Case(events=4),
    (MODEL, "With the Ruby client: your own objects"): Case(events=2),
    (MODEL, "With the Ruby client: transports and executors"): Case(
        events=5,
        needs=("httpx",),
        may_complain=True,  # it connects again
    ),
    (OBJECTS, "Send your own objects"): Case(events=1),
    (OBJECTS, "Values that are sent as they are"): Case(),
    (OBJECTS, "A method of the class"): Case(events=1),
    (OBJECTS, "A registered converter"): Case(events=1),
    (OBJECTS, "Which converter counts"): Case(),
    (OBJECTS, "Users and customers"): Case(events=1),
    (OBJECTS, "Dataclasses"): Case(events=1),
    (OBJECTS, "Pydantic"): Case(events=1, needs=("pydantic",)),
    (OBJECTS, "attrs"): Case(events=1, needs=("attrs",)),
    (OBJECTS, "SQLAlchemy"): Case(events=1, needs=("sqlalchemy",)),
    (OBJECTS, "Django models"): Case(events=3, needs=("django",), driver=("-c", _SHOP)),
    (OBJECTS, "Look before you send"): Case(),
    (OBJECTS, "Error messages and their fixes"): Case(),
    (TRANSPORTS, "Transports and executors"): Case(events=1, needs=("httpx",)),
    # It logs that one event failed permanently.
    (TRANSPORTS, "A transport of your own"): Case(may_complain=True),
    (TRANSPORTS, "A transport that takes bytes"): Case(events=1, needs=("httpx",)),
    (TRANSPORTS, "Endpoint and headers from the client"): Case(
        events=1,
    ),
    (TRANSPORTS, "Executors"): Case(events=1),
    (TRANSPORTS, "Send synchronously"): Case(events=1),
    (TRANSPORTS, "One executor for all clients"): Case(events=2),
    (TRANSPORTS, "Threads of an event loop"): Case(events=1),
    (PRODUCTION, "Go to production"): Case(events=1),
    (PRODUCTION, "Bad input"): Case(),
    (PRODUCTION, "Change or drop events"): Case(events=1),
    (PRODUCTION, "Turn it off"): Case(),
    (PRODUCTION, "Data that every event has"): Case(events=1),
    (PRODUCTION, "The log"): Case(events=1),
    (PRODUCTION, "Stats"): Case(events=1),
    (PRODUCTION, "Several clients"): Case(events=2),
    (PRIVACY, "Privacy and consent"): Case(events=1),
    (PRIVACY, "Don't record without consent"): Case(events=1),
    (PRIVACY, "One switch for all events"): Case(events=1),
    (PRIVACY, "Pseudonymous ids"): Case(events=1),
    (PRIVACY, "Personal data in URLs"): Case(events=1),
    (SCOPES, "Scopes and units of work"): Case(events=4),
    (SCOPES, "What a scope holds"): Case(events=1),
    (SCOPES, "Why the wrong user?"): Case(),
    (SCOPES, "A unit of work"): Case(),
    (SCOPES, "nested or isolated?"): Case(),
    (SCOPES, "Several threads, one request"): Case(events=2),
    (SCOPES, "Ask for the user later"): Case(events=2),
    (SCOPES, "Generators"): Case(),
    (SCOPES, "Tasks of asyncio"): Case(),
    (SCOPES, "Dependencies and middlewares"): Case(),
    (SCOPES, "The shared client"): Case(events=3),
    (PROMETHEUS, "Let Prometheus ask for them"): Case(
        events=1,
        driver=("-c", _SCRAPED),
        needs=("prometheus_client",),
        environment=(("VALUED_STATUS", "status"), ("PROMETHEUS_MULTIPROC_DIR", ".")),
    ),
    (PROMETHEUS, "Send them to OpenTelemetry"): Case(
        events=1,
        driver=("-c", _OTEL),
        needs=("opentelemetry.sdk",),
        environment=(("VALUED_STATUS", "status"),),
    ),
    (PROMETHEUS, "Send them to StatsD"): Case(
        events=2,
        driver=("-c", _STATSD),
        needs=("statsd",),
        environment=(("VALUED_STATUS", "status"),),
    ),
    (WIRE, "Events"): Case(events=4),
    (WIRE, "JSON"): Case(),
}


@pytest.mark.parametrize(("page", "title"), CASES)
def test_section_runs_as_printed(page: str, title: str, shell: Path, server: Server) -> None:
    run_section(page, title, CASES[page, title], shell, server)


def test_what_the_model_prints_beside_the_ruby_client_is_what_that_client_sends() -> None:
    printed = [
        {name: value for name, value in one.items() if name != "occured_at"}
        for page, title in CASES
        if page == MODEL and title.startswith("With the Ruby client")
        for one in objects(blocks(page, title))
    ]
    cases = {it["name"]: it for it in json.loads((ROOT / "tests/vectors/events.json").read_text())}
    recorded = [
        cases["page_view: as in the README"]["expect"],
        cases["action: nested as in the README"]["expect"],
        cases["sync_user: as in the README"]["expect"],
        *cases["scope: as in the README"]["expect"],
        *cases["scope: sync of both, as in the README"]["expect"],
    ]
    # The second page view of the scope is not printed.
    assert [one for one in recorded if one not in printed] == [
        {
            "category": "pageview",
            "user": {"id": 123},
            "attributes": {"source": {"url": "https://big.company.com/profile"}},
        }
    ]


def test_the_messages_that_the_page_about_objects_lists_are_those_that_are_raised() -> None:
    client = valued.Client(lambda _event: None)
    checked = 0
    for item in doctree("docs/howto/objects.rst").findall(docutils.nodes.definition_list_item):
        code, printed = (it.astext() for it in item.findall(docutils.nodes.literal))
        with pytest.raises(valued.ValuedError) as caught:
            eval(code, {"client": client})
        assert printed == str(caught.value)
        checked += 1
    assert checked > 15


def test_the_request_that_the_page_about_the_wire_prints_is_the_one_that_is_sent(
    server: Server,
) -> None:
    [printed] = blocks(WIRE, "Wire format")
    head, _, body = printed.code.partition("\n\n")
    first, *lines = head.splitlines()
    headers = dict(line.split(": ", 1) for line in lines)
    with valued.Client("TOKEN", server.url) as client:
        client.action("report.generated", {"user.id": 123}, occured_at="2026-11-23T10:00:00+01:00")
    [request] = server.requests
    assert first == f"{request.method} {request.path} HTTP/1.1"
    assert request.body.decode("ascii") == body
    sent = dict(request.headers)
    for name, pattern in {
        "Host": r".+",
        "User-Agent": r"valued-client/[\w.]+ \(Python/\d+\.\d+\.\d+\)",
        "Idempotency-Key": r"[0-9a-f]{32}-1",
        "Accept-Encoding": r"gzip, deflate.*",  # more, where packages for it are installed
    }.items():
        assert re.fullmatch(pattern, sent.pop(name))
        assert re.fullmatch(pattern, headers.pop(name))
    assert sent == headers
