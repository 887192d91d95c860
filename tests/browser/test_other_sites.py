"""A page of another site, in the same browser, gets nothing of the server and changes nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.support.browser import Sender, Shown, event

pytest.importorskip("playwright")

from playwright.sync_api import Page

#: What a page may try; each result is what it read, or an empty string.
TRIES = """async (base) => {
  const read = async (path, options) => {
    try { const answer = await fetch(base + path, options); return answer.type + await answer.text(); }
    catch { return ""; }
  };
  const stream = () => new Promise((done) => {
    const source = new EventSource(base + "stream");
    for (const name of ["hello", "records"]) source.addEventListener(name, (one) => done(one.data));
    source.onerror = () => { source.close(); done(""); };
  });
  const element = (name, attribute) => new Promise((done) => {
    const made = document.createElement(name);
    made.onload = () => done("loaded");
    made.onerror = () => done("");
    made[attribute] = base + "events";
    document.body.append(made);
  });
  const framed = () => new Promise((done) => {
    const frame = document.createElement("iframe");
    frame.onload = () => { try { done(frame.contentDocument.body.textContent); } catch { done(""); } };
    frame.src = base;
    document.body.append(frame);
  });
  const form = async (path, type) => {
    const frame = document.createElement("iframe");
    frame.name = "target" + Math.random();
    const made = document.createElement("form");
    Object.assign(made, { action: base + path, method: "post", enctype: type, target: frame.name });
    const input = document.createElement("input");
    Object.assign(input, { name: '{"paused": true, "x": "', value: '"}' });
    made.append(input);
    document.body.append(frame, made);
    const loaded = new Promise((done) => { frame.onload = done; });
    made.submit();
    await loaded;
    return "";
  };
  const json = JSON.stringify({ paused: true });
  const found = {};
  for (const path of ["", "events", "wait?n=1&timeout=1", "lanes", "control", "stream"])
    found["GET /" + path] = await read(path, {});
  found["no-cors"] = (await read("events", { mode: "no-cors" })).replace("opaque", "");
  found["stream"] = await stream();
  found["script"] = await element("script", "src");
  found["img"] = await element("img", "src");
  found["frame"] = await framed();
  found["DELETE"] = await read("events", { method: "DELETE" });
  found["POST"] = await read("control", { method: "POST", body: json });
  found["POST as JSON"] = await read("control", { method: "POST", body: json, headers: { "Content-Type": "application/json" } });
  found["POST, no-cors"] = (await read("control", { method: "POST", body: json, mode: "no-cors" })).replace("opaque", "");
  found["form"] = await form("control", "text/plain");
  return found;
}"""  # noqa: E501 - a program


class Site(BaseHTTPRequestHandler):
    """Another site's empty page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>Another site</title><body></body>")

    def log_message(self, *_arguments: object) -> None: ...


@pytest.fixture
def port() -> Iterator[int]:
    """Where another site answers."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_page_of_another_site_reads_nothing_and_changes_nothing(
    host: str, port: int, shown: Shown, sender: Sender
) -> None:
    assert sender.send(event(key="a.secret")) == 204
    shown.wait_for("a.secret")
    other: Page = shown.page.context.new_page()
    other.goto(f"http://{host}:{port}/")
    found: dict[str, Any] = other.evaluate(TRIES, shown.endpoint.removesuffix("events"))
    other.close()
    assert {name: read for name, read in found.items() if read} == {}
    assert len(found) == 16
    # Nothing was changed either: the event is there, and the next one doesn't wait.
    assert sender.send(event(key="the.next")) == 204
    shown.wait_for("the.next")
    shown.wait_for("a.secret")
    assert shown.page.locator("#state").get_attribute("data-state") == "live"
