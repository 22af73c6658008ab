"""Shared parts of the tests of the browser client: an app for its pages, and functions for a tab of any browser."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from sanic import HTTPResponse, Request, Sanic
from sanic.response import empty, html

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS, Bridge, Publisher, running, until
from tests.support.bridge_proxy import BridgeProxy, Habit
from tests.support.browsers import Tab

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


@contextlib.asynccontextmanager
async def serving(
    nats: NatsServer, habit: Habit = "pass", **settings: Any
) -> AsyncIterator[tuple[Bridge, BridgeProxy]]:
    """Serve a bridge, in an app with empty pages, behind a proxy.

    ``/open`` has no policy, and ``/hang`` answers when ``app.ctx.released`` is set.
    """

    def prepare(app: Sanic[Any, Any]) -> None:
        app.ctx.released = asyncio.Event()

        @app.get("/")
        async def index(_: Request) -> HTTPResponse:
            return html("<!doctype html><title>x</title>", headers={"Content-Security-Policy": "default-src 'self'"})

        @app.get("/open")
        async def without_policy(_: Request) -> HTTPResponse:
            return html("<!doctype html><title>x</title>")

        @app.get("/hang")
        async def hang(_: Request) -> HTTPResponse:
            await app.ctx.released.wait()
            return empty()

        @app.get("/favicon.ico")
        async def icon(_: Request) -> HTTPResponse:
            return empty()

    if "permissions" not in settings:
        settings["subscribe"] = [">"]
    async with (
        running(servers=nats.url, unsubscribe_delay=0, prepare=prepare, **settings) as bridge,
        BridgeProxy(bridge.port, habit).running() as proxy,
    ):
        yield bridge, proxy


@contextlib.asynccontextmanager
async def publishing(publisher: Publisher, subject: str) -> AsyncIterator[None]:
    """Publish a message every 20 ms."""
    async with _publishing(publisher, subject, itertools.repeat(b'{"key": 1}')):
        yield


@contextlib.asynccontextmanager
async def counting(publisher: Publisher, subject: str) -> AsyncIterator[Callable[[], int]]:
    """Publish a number every 20 ms, from 1 on. Yield a function that returns the last one."""
    last = 0

    def numbers() -> Iterator[bytes]:
        nonlocal last
        while True:
            last += 1
            yield b"%d" % last

    async with _publishing(publisher, subject, numbers()):
        yield lambda: last


@contextlib.asynccontextmanager
async def _publishing(publisher: Publisher, subject: str, payloads: Iterator[bytes]) -> AsyncIterator[None]:
    over = asyncio.Event()

    async def publish() -> None:
        # Not cancelled, because nats-py fails if a flush is cancelled.
        while not over.is_set():
            await publisher.send(subject, next(payloads))
            await asyncio.sleep(0.02)

    task = asyncio.create_task(publish())
    try:
        yield
    finally:
        over.set()
        await task


async def begin(tab: Tab, options: dict[str, Any] | None = None, *patterns: str) -> None:
    await tab.evaluate("([options, patterns]) => begin(options, ...patterns)", [options or {}, patterns])


async def true(tab: Tab, fact: str) -> None:
    """Wait until the fact holds. The page's policy forbids Playwright's own function for it."""
    deadline = time.monotonic() + 3 * WAIT_SECONDS
    while not await tab.evaluate(fact):
        assert time.monotonic() < deadline, (fact, await tab.evaluate("[nats.status, events, messages]"))
        await asyncio.sleep(0.01)


async def ready(tab: Tab, transport: str) -> None:
    await tab.evaluate("Promise.all(followed.map(({ ready }) => ready))")
    assert await tab.evaluate("nats.status.transport") == transport


async def back(tab: Tab, bridge: Bridge, publisher: Publisher, subject: str) -> None:
    """Wait until the client has reconnected, in one session, and has its subscription again."""
    await true(tab, "nats.status.state === 'connected'")
    await until(lambda: [set(session.subscriptions) for session in bridge.extension.sessions] == [{subject}])
    await tab.evaluate("messages.length = 0")
    await publisher.send(subject, b"1", b"2")
    await true(tab, "messages.length >= 2")
    assert await tab.evaluate("messages.map(({ data }) => data)") == [1, 2]
