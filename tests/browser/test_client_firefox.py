"""The browser client in a real Firefox, whose WebSocket, EventSource, channels and locks are others than Chromium's."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from sanic import Request

from sanic_nats_bridge import Permissions
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import Publisher, until
from tests.support.client import (
    BEGIN,
    HOSTILE,
    RECONNECT_GAP,
    back,
    begin,
    both,
    publishing,
    ready,
    serving,
    true,
)
from tests.support.example import ExampleApp
from tests.support.firefox import Firefox, Profile, Tab
from tests.support.middlebox import Habit

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def firefox(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Firefox]:
    async with Firefox.running(tmp_path_factory.mktemp("firefox")) as firefox:
        yield firefox


@pytest_asyncio.fixture(loop_scope="module")
async def profile(firefox: Firefox) -> AsyncIterator[Profile]:
    """A browser of its own, as it were, whose pages must raise no error, and break no policy."""
    async with firefox.profile(f"() => {{ {BEGIN} }}") as profile:
        yield profile
    assert profile.complaints == []


@pytest_asyncio.fixture(loop_scope="module")
async def page(profile: Profile) -> Tab:
    return await profile.tab()


@pytest_asyncio.fixture(loop_scope="module")
async def publisher(shared_nats: NatsServer) -> AsyncIterator[Publisher]:
    async with Publisher.connected(shared_nats) as publisher:
        yield publisher


@pytest.mark.parametrize("habit", ["pass", "refuse", "cut", "swallow", "buffer"])
async def test_messages_come_whatever_stands_between(
    page: Tab, shared_nats: NatsServer, publisher: Publisher, habit: Habit
) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats, habit) as (bridge, box), publishing(publisher, subject):
        await page.goto(box.url)
        await begin(page, {}, subject)
        await true(page, "messages.length")
        assert await page.evaluate("first") / 1000 < 5
        status = await page.evaluate("nats.status")
        assert status["transport"] == ("websocket" if habit in ("pass", "buffer") else "sse")
        assert bool(status["why"]) == (status["transport"] == "sse")
        await until(lambda: len(bridge.extension.sessions) == 1)
        await page.evaluate("nats.close()")
        await until(lambda: not bridge.extension.sessions)


@both
async def test_it_comes_back_when_the_server_does(
    page: Tab, shared_nats: NatsServer, publisher: Publisher, transport: str
) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats) as (bridge, box):
        await page.goto(box.url)
        await begin(page, {"transports": [transport]}, subject)
        await ready(page, transport)
        await page.evaluate("Math.random = () => 0")  # as short as it may wait
        box.down = True
        box.cut()
        await true(page, "seen('status').filter(({ state }) => state === 'waiting').length === 2")
        box.down = False
        await back(page, bridge, publisher, subject)
        assert await page.evaluate(RECONNECT_GAP) == [[[subject], None, "reconnect"]]


async def test_it_survives_a_killed_server(profile: Profile) -> None:
    with ExampleApp() as app:
        tabs = {transport: await profile.tab() for transport in ("websocket", "sse")}
        for transport, tab in tabs.items():
            # The text of the client is of the app's origin, and runs no script of its own.
            await tab.goto(f"{app.url}client.js")
            await tab.evaluate("window.module = '/client.js'")
            await begin(tab, {"transports": [transport]}, "test.subject")
            await true(tab, "messages.length")
        await asyncio.to_thread(app.restart, signal.SIGKILL)
        for transport, tab in tabs.items():
            await true(tab, "nats.status.state === 'connected'", 25)
            await tab.evaluate("messages.length = 0")
            await true(tab, "messages.length")
            assert await tab.evaluate("nats.status.transport") == transport
            assert await tab.evaluate(RECONNECT_GAP) == [[["test.subject"], None, "reconnect"]]


@both
async def test_it_comes_back_at_once_when_the_network_does(
    page: Tab, shared_nats: NatsServer, publisher: Publisher, transport: str
) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats) as (bridge, box):
        await page.goto(box.url)
        await begin(page, {"transports": [transport]}, subject)
        await ready(page, transport)
        await page.evaluate("Math.random = () => 1")  # as long as it may wait
        await page.offline(True)
        box.down = True
        box.cut()
        await true(page, "nats.status.retry >= 2000")
        box.down = False
        await page.offline(False)
        await true(page, "nats.status.state === 'connected'", 1)
        await back(page, bridge, publisher, subject)
        assert await page.evaluate(RECONNECT_GAP) == [[[subject], None, "reconnect"]]


@both
async def test_a_dead_link_is_noticed_by_its_silence(
    page: Tab, shared_nats: NatsServer, publisher: Publisher, transport: str
) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats, heartbeat=0.5) as (bridge, box):
        await page.goto(box.url)
        await begin(page, {"transports": [transport]}, subject)
        await ready(page, transport)
        box.silent = True
        await true(page, "nats.status.reason === 'silence'")
        box.silent = False
        box.cut()
        await back(page, bridge, publisher, subject)


@both
async def test_credentials_that_are_refused_are_asked_for_again(
    page: Tab, shared_nats: NatsServer, publisher: Publisher, transport: str
) -> None:
    methods: list[str] = []

    def permissions(request: Request) -> Permissions | None:
        methods.append(request.method)
        return Permissions([">"]) if request.args.get("token") == "2" else None

    async with serving(shared_nats, permissions=permissions) as (_, box):
        await page.goto(box.url)
        await page.evaluate("window.asked = 0")
        begun = """([transports, subject]) =>
          begin({ transports, credentials: async () => ({ token: ++asked }) }, subject)"""
        await page.evaluate(begun, [[transport], publisher.subject("a")])
        await ready(page, transport)
        assert await page.evaluate("asked") == 2
        # An EventSource that is refused tells nothing: HEAD does.
        streams = [method for method in methods if method != "POST"]
        assert streams == {"websocket": ["GET", "GET"], "sse": ["GET", "HEAD", "GET"]}[transport]


@both
async def test_it_does_not_come_back_where_it_may_not(page: Tab, shared_nats: NatsServer, transport: str) -> None:
    methods: list[str] = []

    def permissions(request: Request) -> None:
        methods.append(request.method)

    async with serving(shared_nats, permissions=permissions) as (_, box):
        await page.goto(box.url)
        await begin(page, {"transports": [transport]}, "a")
        await true(page, "nats.status.state === 'closed'")
        assert await page.evaluate("seen('close').map(({ code }) => code)") == [4401]
        assert methods == {"websocket": ["GET"], "sse": ["GET", "HEAD"]}[transport]


@both
async def test_hostile_payloads_and_subjects_are_data(
    page: Tab, shared_nats: NatsServer, publisher: Publisher, transport: str
) -> None:
    async with serving(shared_nats) as (_, box):
        await page.goto(box.url)
        subjects = [f"{publisher.base}.__proto__", "constructor", f"{publisher.base}.<img/src=x/onerror=alert(1)"]
        await begin(page, {"transports": [transport]}, *subjects)
        await ready(page, transport)
        for subject in subjects:
            await publisher.send(subject, *(payload.encode() for payload in HOSTILE))
        await true(page, f"messages.length === {len(subjects) * len(HOSTILE)}")
        assert await page.evaluate("messages.map(({ subject }) => subject)") == [
            subject for subject in subjects for _ in HOSTILE
        ]
        assert await page.evaluate("({}).polluted ?? null") is None
        assert await page.evaluate("nats.status.state") == "connected"


async def shared_tab(profile: Profile, url: str, share: str, *patterns: str) -> Tab:
    tab = await profile.tab()
    await tab.goto(url)
    await begin(tab, {"transports": ["sse"], "share": share}, *patterns)
    await tab.evaluate("Promise.all(followed.map(({ ready }) => ready))")
    return tab


async def test_tabs_share_one_stream(profile: Profile, shared_nats: NatsServer, publisher: Publisher) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats) as (bridge, box):
        # The first one leads. They are more than the connections that a browser makes to one host.
        leader, *tabs = [await shared_tab(profile, box.url, "ada", subject) for _ in range(8)]
        other = await shared_tab(profile, box.url, "bob", publisher.subject("b"))
        assert box.streams == 2
        assert len(bridge.extension.sessions) == 2
        await publisher.send(subject, b"1")
        for tab in (leader, *tabs):
            await true(tab, "messages.length === 1")
        await leader.close()
        closed = time.monotonic()
        for tab in tabs:
            await true(tab, "seen('gap').length")
        assert time.monotonic() - closed < 2
        await until(
            lambda: sorted(set(s.subscriptions) == {subject} for s in bridge.extension.sessions) == [False, True]
        )
        await publisher.send(subject, b"2")
        for tab in tabs:
            await true(tab, "messages.length === 2")
            assert await tab.evaluate(RECONNECT_GAP) == [[[subject], None, "reconnect"]]
        assert await other.evaluate("messages.length") == 0
        assert box.streams == 3
