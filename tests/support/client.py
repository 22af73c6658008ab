"""What the tests of the browser client share: an app for its pages, and what is asked of a page in any browser."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any, Protocol

import pytest
from sanic import HTTPResponse, Request, Sanic
from sanic.response import empty, html

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import Bridge, Publisher, running, until
from tests.support.middlebox import Habit, Middlebox

both = pytest.mark.parametrize("transport", ["websocket", "sse"])

RECONNECT_GAP = "seen('gap').map(({ subjects, lost, reason }) => [subjects, lost, reason])"

HOSTILE = ['{"__proto__":{"polluted":1},"constructor":{"prototype":{"polluted":1}}}', '{"type":"close","then":1}']

BEGIN = """
window.begin = async (options, ...patterns) => {
  const { connect } = await import(window.module ?? "/nats/client.js");
  window.events = [];
  window.messages = [];
  window.nats = connect(options);
  for (const type of ["status", "gap", "close", "unsubscribed"]) {
    nats.addEventListener(type, ({ detail }) => events.push({ ...detail, type, at: Date.now() }));
  }
  const follow = (pattern) => nats.subscribe(pattern, (data, message) => {
    if (!messages.length) window.first = performance.now();
    messages.push(message);
  });
  window.followed = patterns.map(follow);
};
window.seen = (type) => events.filter((event) => event.type === type);
"""


class Page(Protocol):
    """A tab of Playwright's, or of another driver."""

    async def evaluate(self, expression: str, arg: Any = None) -> Any:
        """What the expression comes to; if it is a function, it is called with the argument."""
        ...


@contextlib.asynccontextmanager
async def serving(nats: NatsServer, habit: Habit = "pass", **settings: Any) -> AsyncIterator[tuple[Bridge, Middlebox]]:
    """A bridge in an app with an empty page, and what stands before it."""

    def prepare(app: Sanic[Any, Any]) -> None:
        @app.get("/")
        async def index(_: Request) -> HTTPResponse:
            return html("<!doctype html><title>x</title>", headers={"Content-Security-Policy": "default-src 'self'"})

        @app.get("/favicon.ico")
        async def icon(_: Request) -> HTTPResponse:
            return empty()

    if "permissions" not in settings:
        settings["subscribe"] = [">"]
    async with (
        running(servers=nats.url, unsubscribe_delay=0, prepare=prepare, **settings) as bridge,
        Middlebox.listening(bridge.port, habit) as box,
    ):
        yield bridge, box


@contextlib.asynccontextmanager
async def publishing(publisher: Publisher, subject: str) -> AsyncIterator[None]:
    """Publish all the time."""

    over = asyncio.Event()

    async def publish() -> None:
        # Not cancelled: nats-py does not stand it within a flush.
        while not over.is_set():
            await publisher.send(subject, b'{"key": 1}')
            await asyncio.sleep(0.02)

    task = asyncio.create_task(publish())
    try:
        yield
    finally:
        over.set()
        await task


async def begin(page: Page, options: dict[str, Any] | None = None, *patterns: str) -> None:
    await page.evaluate("([options, patterns]) => begin(options, ...patterns)", [options or {}, patterns])


async def true(page: Page, fact: str, seconds: float = 10) -> None:
    """Wait until the fact holds; not by Playwright's own way, which the page's policy forbids."""
    deadline = time.monotonic() + seconds
    while not await page.evaluate(fact):
        assert time.monotonic() < deadline, (fact, await page.evaluate("[nats.status, events, messages]"))
        await asyncio.sleep(0.01)


async def ready(page: Page, transport: str) -> None:
    await page.evaluate("Promise.all(followed.map(({ ready }) => ready))")
    assert await page.evaluate("nats.status.transport") == transport


async def back(page: Page, bridge: Bridge, publisher: Publisher, subject: str, seconds: float = 15) -> None:
    """It has come back, once, and follows what it has followed."""
    await true(page, "nats.status.state === 'connected'", seconds)
    await until(lambda: [set(session.subscriptions) for session in bridge.extension.sessions] == [{subject}])
    await page.evaluate("messages.length = 0")
    await publisher.send(subject, b"1", b"2")
    await true(page, "messages.length >= 2")
    assert await page.evaluate("messages.map(({ data }) => data)") == [1, 2]
