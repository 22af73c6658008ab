"""Pages whose own name resolves to the address of an app (DNS rebinding), in real browsers.

The name leads to a proxy, which forwards first to the server of the page and then to the app. To a browser, this is the
same as a name that resolves to another address. The page keeps its origin, and the app gets its name as the host.
"""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sanic import Sanic
from sanic.application.constants import Mode

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS, Publisher, running
from tests.support.browsers import BROWSERS, LOCAL_NAME, Browser
from tests.support.chromium import Chromium
from tests.support.client import publishing
from tests.support.example import ExampleApp
from tests.support.firefox import Firefox
from tools.harness.tcp_proxy import Proxy
from tools.harness.tcp_server import TcpServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

RUNNING: dict[str, Callable[[Path], AbstractAsyncContextManager[Browser]]] = {
    "chromium": Chromium.running,
    "firefox": Firefox.running,
}

ROUTES = [
    "GET /client.js", "GET /share.js", "GET /events", "HEAD /events", "OPTIONS /events", "GET /stream",
    "HEAD /stream", "OPTIONS /stream", "POST /subscribe", "OPTIONS /subscribe", "POST /unsubscribe",
    "GET /health/live", "GET /health/ready",
]  # fmt: skip
"""Requests to the routes of the bridge, below its prefix."""

OF_EXAMPLE = ["GET /", "GET /static/page.js", "GET /docs", "GET /docs/openapi.json", "GET /nothing"]
"""Requests to the other routes of the example app."""

CLOSED = [3, 2]
"""The states of a WebSocket and an EventSource that are closed for good."""

READ = """async ({ prefix, requests, subject }) => {
  const read = [];
  const finished = (source, begin) => new Promise((resolve) => {
    source.onopen = begin;
    source.onmessage = ({ data }) => {
      read.push(data);
      if (JSON.parse(data).type === "message") resolve("read");
    };
    source.onerror = () => resolve(source.readyState);
  }).finally(() => source.close());
  const socket = new WebSocket(`ws://${location.host}${prefix}/stream`);
  const events = new EventSource(`${prefix}/events?subjects=${subject}`);
  const streams = await Promise.all([
    finished(socket, () => socket.send(JSON.stringify({ subjects: [subject] }))),
    finished(events, () => {}),
  ]);
  const answer = async (request) => {
    const [method, path] = request.split(" ");
    const options = { method, headers: {}, credentials: "include" };
    if (method === "POST") {
      options.headers["Content-Type"] = "application/json";
      options.body = JSON.stringify({ session: "x", subjects: [subject] });
    }
    const controller = new AbortController();
    const response = await fetch(path, { ...options, signal: controller.signal });
    // An event stream has no end.
    const isStream = response.headers.get("Content-Type")?.startsWith("text/event-stream");
    const text = isStream ? "" : await response.text();
    controller.abort();
    return [response.status, text];
  };
  const answers = {};
  for (const request of requests) answers[request] = await answer(request);
  const imported = await import(`${prefix}/client.js`).then(() => "imported", () => "rejected");
  return { streams, read, answers, imported };
}"""


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=BROWSERS)
async def browser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Browser]:
    async with RUNNING[request.param](tmp_path_factory.mktemp(request.param)) as browser:
        yield browser


class PageServer(TcpServer):
    """A server of a page without a policy, which closes each connection."""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<title>page</title>")
            await writer.drain()
        writer.close()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def attacker() -> AsyncIterator[int]:
    """Serve the attacker's page and return the port."""
    async with PageServer().running() as server:
        yield server.port


@contextlib.asynccontextmanager
async def example(nats: NatsServer, *arguments: str) -> AsyncIterator[int]:
    """Serve the example app and return its port."""
    app = ExampleApp("--nats", nats.url, *arguments)
    await asyncio.to_thread(app.start)
    try:
        yield app.port
    finally:
        await asyncio.to_thread(app.end, signal.SIGTERM)


@contextlib.asynccontextmanager
async def own_app(nats: NatsServer, *, debug: bool = False, **settings: Any) -> AsyncIterator[int]:
    """Serve an app without a login and return its port."""

    def prepare(app: Sanic[Any, Any]) -> None:
        app.state.mode = Mode.DEBUG if debug else Mode.PRODUCTION

    async with running(servers=nats.url, subscribe=[">"], metrics=True, prepare=prepare, **settings) as bridge:
        yield bridge.port


async def read_by_page(
    browser: Browser, attacker: int, port: int, publisher: Publisher, prefix: str, others: list[str]
) -> dict[str, Any]:
    """Return what a page reads from the app on a port, once the page's name leads to that port."""
    requests = [request.replace(" ", f" {prefix}", 1) for request in ROUTES] + others
    subject = publisher.subject("secret")
    async with Proxy(attacker).running() as proxy, browser.profile() as profile, publishing(publisher, subject):
        tab = await profile.tab()
        origin = f"http://{LOCAL_NAME}:{proxy.port}"
        await tab.goto(f"{origin}/page")
        assert await tab.evaluate("[document.title, location.origin]") == ["page", origin]
        proxy.target = port
        async with asyncio.timeout(WAIT_SECONDS):
            argument = {"prefix": prefix, "requests": requests, "subject": subject}
            read: dict[str, Any] = await tab.evaluate(READ, argument)
        await tab.close()
    return read


def check_nothing_was_read(read: dict[str, Any], prefix: str) -> None:
    assert (read["streams"], read["read"], read["imported"]) == (CLOSED, [], "rejected")
    for request, (status, text) in read["answers"].items():
        assert status == 403, request
        assert text == "" if request.startswith("HEAD ") else "host" in text, request
    for request in ROUTES:
        if not request.startswith("HEAD "):
            assert '"code":"host.forbidden"' in read["answers"][request.replace(" ", f" {prefix}", 1)][1]


def check_messages_were_read(read: dict[str, Any]) -> None:
    assert (read["streams"], read["imported"]) == (["read", "read"], "imported")
    messages = [frame["data"] for frame in map(json.loads, read["read"]) if frame["type"] == "message"]
    assert messages == [{"key": 1}] * 2
    assert {status for status, _ in read["answers"].values()}.isdisjoint({403})


async def test_page_with_rebound_name_reads_nothing_of_example_app(
    browser: Browser, attacker: int, shared_nats: NatsServer
) -> None:
    async with Publisher.connected(shared_nats) as publisher, example(shared_nats) as port:
        read = await read_by_page(browser, attacker, port, publisher, "", OF_EXAMPLE)
    check_nothing_was_read(read, "")


async def test_page_with_allowed_name_reads_example_app(
    browser: Browser, attacker: int, shared_nats: NatsServer
) -> None:
    async with (
        Publisher.connected(shared_nats) as publisher,
        example(shared_nats, "--allow-host", LOCAL_NAME) as port,
    ):
        read = await read_by_page(browser, attacker, port, publisher, "", OF_EXAMPLE)
    check_messages_were_read(read)
    assert "NATS, live in the browser" in read["answers"]["GET /"][1]


@pytest.mark.parametrize(
    "settings",
    [{"debug": True}, {"debug": True, "allowed_hosts": "app.example"}, {"allowed_hosts": "*.app.example"}],
    ids=str,
)
async def test_page_with_rebound_name_reads_nothing_of_app(
    browser: Browser, attacker: int, shared_nats: NatsServer, settings: dict[str, Any]
) -> None:
    async with Publisher.connected(shared_nats) as publisher, own_app(shared_nats, **settings) as port:
        read = await read_by_page(browser, attacker, port, publisher, "/nats", ["GET /nats/metrics"])
    check_nothing_was_read(read, "/nats")


@pytest.mark.parametrize("settings", [{"debug": True, "allowed_hosts": LOCAL_NAME}, {}], ids=str)
async def test_page_with_allowed_name_reads_app(
    browser: Browser, attacker: int, shared_nats: NatsServer, settings: dict[str, Any]
) -> None:
    async with Publisher.connected(shared_nats) as publisher, own_app(shared_nats, **settings) as port:
        read = await read_by_page(browser, attacker, port, publisher, "/nats", ["GET /nats/metrics"])
    check_messages_were_read(read)
