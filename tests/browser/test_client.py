"""The browser client in real browsers, which differ in their WebSocket, EventSource, locks, channels and modules."""

import asyncio
import contextlib
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
import pytest_asyncio
from sanic import Request

from sanic_nats_bridge import Permissions
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import Bridge, Publisher, free_port, running, until
from tests.support.bridge_proxy import BridgeProxy, Habit
from tests.support.browsers import BROWSERS, Browser, Profile, Tab
from tests.support.chromium import Chromium, ChromiumTab
from tests.support.client import (
    BEGIN,
    HOSTILE,
    RECONNECT_GAP,
    back,
    begin,
    both,
    counting,
    publishing,
    ready,
    serving,
    true,
)
from tests.support.clock import moment
from tests.support.example import ExampleApp
from tests.support.firefox import Firefox
from tests.support.raw import sessions

pytestmark = pytest.mark.asyncio(loop_scope="module")

RUNNING: dict[str, Callable[[Path], AbstractAsyncContextManager[Browser]]] = {
    "chromium": Chromium.running,
    "firefox": Firefox.running,
}

one_browser = pytest.mark.parametrize("browser", ["chromium"], indirect=True)
"""For the client's own logic, which is the same in every browser."""

chromium_only = one_browser
"""Mark for tests that need features of Playwright's Chromium. Each test names the feature."""


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=BROWSERS)
async def browser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Browser]:
    async with RUNNING[request.param](tmp_path_factory.mktemp(request.param)) as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def module_profile(browser: Browser) -> AsyncIterator[Profile]:
    async with browser.profile() as profile:
        await profile.add_script(BEGIN)
        yield profile


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def module_tab(module_profile: Profile) -> Tab:
    return await module_profile.tab()


@pytest_asyncio.fixture(loop_scope="module")
async def profile(module_profile: Profile, module_tab: Tab) -> AsyncIterator[Profile]:
    """Yield a profile and fail the test if a page raised an error or broke its policy.

    All tests share its storage and one tab, because a tab is slow to open. Each test has an origin of its own.
    """
    yield module_profile
    await module_tab.goto("about:blank")
    await module_profile.close_tabs(module_tab)
    complaints = module_profile.complaints.copy()
    module_profile.complaints.clear()
    assert complaints == []


@pytest_asyncio.fixture(loop_scope="module")
async def tab(profile: Profile, module_tab: Tab) -> Tab:
    return module_tab


@pytest_asyncio.fixture(loop_scope="module")
async def publisher(shared_nats: NatsServer) -> AsyncIterator[Publisher]:
    async with Publisher.connected(shared_nats) as publisher:
        yield publisher


# Transports


@pytest.mark.parametrize(
    ("habit", "transport", "why"),
    [
        ("pass", "websocket", ""),
        ("buffer", "websocket", ""),
        ("refuse", "sse", "websocket: 1006"),
        ("cut", "sse", "websocket: 1006"),
        ("swallow", "sse", "websocket: no welcome in 300 ms"),
    ],
)
async def test_messages_arrive_through_any_proxy(
    tab: Tab, shared_nats: NatsServer, publisher: Publisher, habit: Habit, transport: str, why: str
) -> None:
    subject = publisher.subject("a")
    options = {"timeout": 300} if habit == "swallow" else {}
    async with serving(shared_nats, habit) as (bridge, proxy), publishing(publisher, subject):
        await tab.goto(proxy.url)
        await begin(tab, options, subject)
        await true(tab, "messages.length")
        status = await tab.evaluate("nats.status")
        assert (status["transport"], status["why"]) == (transport, why)
        await until(lambda: len(bridge.extension.sessions) == 1)
        await tab.evaluate("nats.close()")
        await until(lambda: not bridge.extension.sessions)


async def test_tab_remembers_working_transport(tab: Tab, shared_nats: NatsServer, publisher: Publisher) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats, "refuse") as (_, proxy):
        await tab.goto(proxy.url)
        await begin(tab, {}, subject)
        await ready(tab, "sse")
        await tab.reload()
        await begin(tab, {}, subject)
        await ready(tab, "sse")
        assert await tab.evaluate("nats.status.why") == "remembered"
        assert proxy.paths.count("/nats/stream") == 1


async def test_client_switches_back_to_websocket_when_it_works_again(
    tab: Tab, shared_nats: NatsServer, publisher: Publisher
) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats, "refuse", heartbeat=8) as (bridge, proxy):
        await tab.goto(proxy.url)
        await begin(tab, {"retryBetter": 300}, subject)
        await ready(tab, "sse")
        proxy.habit = "pass"
        await true(tab, "nats.status.transport === 'websocket'")
        await true(tab, "seen('gap').length")
        assert await tab.evaluate(RECONNECT_GAP) == [[[subject], None, "reconnect"]]
        await back(tab, bridge, publisher, subject)


# Reconnects


@both
async def test_client_reconnects_when_server_is_back(
    tab: Tab, shared_nats: NatsServer, publisher: Publisher, transport: str
) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats) as (bridge, proxy):
        await tab.goto(proxy.url)
        await begin(tab, {"transports": [transport]}, subject)
        await ready(tab, transport)
        await tab.evaluate("Math.random = () => 0")  # the shortest backoff
        proxy.down = True
        proxy.cut()
        await true(tab, "seen('status').filter(({ state }) => state === 'waiting').length === 2")
        proxy.down = False
        await back(tab, bridge, publisher, subject)
        assert await tab.evaluate(RECONNECT_GAP) == [[[subject], None, "reconnect"]]


async def test_client_reconnects_after_server_is_killed(profile: Profile) -> None:
    with ExampleApp() as app:
        tabs = {transport: await profile.tab() for transport in ("websocket", "sse")}
        for transport, tab in tabs.items():
            # A page of the app's origin that runs no script of its own.
            await tab.goto(f"{app.url}client.js")
            await tab.evaluate("window.module = '/client.js'")
            await begin(tab, {"transports": [transport]}, "test.subject")
            await true(tab, "messages.length")
            await tab.evaluate("Math.random = () => 0")  # the shortest backoff
        await asyncio.to_thread(app.restart, signal.SIGKILL)
        for transport, tab in tabs.items():
            await true(tab, "seen('gap').length")
            await tab.evaluate("messages.length = 0")
            await true(tab, "messages.length")
            assert await tab.evaluate("nats.status.transport") == transport
            # The app's own nats-server begins with a new stream.
            assert await tab.evaluate(RECONNECT_GAP) == [[["test.subject"], None, "reset"]]


@both
async def test_client_reconnects_immediately_when_network_is_back(
    tab: Tab, shared_nats: NatsServer, publisher: Publisher, transport: str
) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats) as (bridge, proxy):
        await tab.goto(proxy.url)
        await begin(tab, {"transports": [transport]}, subject)
        await ready(tab, transport)
        await tab.evaluate("Math.random = () => 1000")  # a backoff that no test waits out
        await tab.offline(True)
        proxy.down = True
        proxy.cut()
        await true(tab, "nats.status.retry > 1_000_000")
        proxy.down = False
        await tab.offline(False)
        await back(tab, bridge, publisher, subject)
        assert await tab.evaluate(RECONNECT_GAP) == [[[subject], None, "reconnect"]]


async def test_client_reconnects_immediately_when_page_becomes_visible(
    tab: Tab, shared_nats: NatsServer, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = publisher.subject("a")
    monkeypatch.setattr("random.uniform", lambda _, most: most)
    async with serving(shared_nats, reconnect_spread=600) as (bridge, proxy):
        await tab.goto(proxy.url)
        await begin(tab, {}, subject)
        await ready(tab, "websocket")
        await tab.evaluate("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
        bridge.runtime.sessions.close_all("The server is going away")
        await true(tab, "nats.status.state === 'waiting'")
        assert await tab.evaluate("nats.status.retry") > 500_000
        bridge.runtime.sessions.stop_reason = None
        await tab.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        assert await tab.evaluate("nats.status.state") == "waiting"
        await tab.evaluate(
            "delete document.hidden; Object.defineProperty(document, 'hidden', { value: false });"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )
        await back(tab, bridge, publisher, subject)


async def test_client_and_bare_event_source_return_soon_after_stream_reached_its_age(
    tab: Tab, shared_nats: NatsServer, publisher: Publisher
) -> None:
    subject = publisher.subject("a")
    # With any delay but that of the `close` frame, they would return after an hour.
    async with serving(shared_nats, retry=3600, reconnect_spread=3600) as (bridge, proxy):
        await tab.goto(proxy.url)
        await begin(tab, {"transports": ["sse"]}, subject)
        await ready(tab, "sse")
        await tab.evaluate(
            """(subject) => {
              window.bare = { welcomes: 0, got: [] };
              window.source = new EventSource(`/nats/events?subjects=${subject}`);
              source.addEventListener("reply", () => bare.welcomes++);
              source.onmessage = ({ data }) => bare.got.push(JSON.parse(data).data);
            }""",
            subject,
        )
        await true(tab, "bare.welcomes === 1")
        for number in range(2, 5):
            old = list(bridge.extension.sessions)
            assert [session.transport for session in old] == ["sse", "sse"]
            for session in old:
                sessions(bridge)._end_old_streams([session.key])
            await true(tab, f"bare.welcomes === {number}")
            await until(lambda: len(bridge.extension.sessions) == 2)
            await until(lambda: all(session.subscriptions for session in bridge.extension.sessions))
            await publisher.send(subject, b"%d" % number)
            await true(tab, f"bare.got.at(-1) === {number} && messages.at(-1)?.data === {number}")
        assert await tab.evaluate("bare.got") == [2, 3, 4]
        assert await tab.evaluate("messages.map(({ data }) => data)") == [2, 3, 4]
        await tab.evaluate("source.close(); nats.close()")


# Keepalive


@both
async def test_client_detects_dead_connection_by_silence(
    tab: Tab, shared_nats: NatsServer, publisher: Publisher, transport: str
) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats, heartbeat=2) as (bridge, proxy):
        await tab.goto(proxy.url)
        await begin(tab, {"transports": [transport]}, subject)
        await ready(tab, transport)
        proxy.silent = True
        await true(tab, "seen('status').some(({ reason }) => reason === 'silence')")
        proxy.silent = False
        proxy.cut()
        await back(tab, bridge, publisher, subject)


@chromium_only  # Playwright sets the clock of its pages
async def test_silence_is_detected_within_two_heartbeats_and_after_sleep(
    browser: Chromium, shared_nats: NatsServer, publisher: Publisher
) -> None:
    subject = publisher.subject("a")
    # The clock is that of the whole profile.
    async with serving(shared_nats, heartbeat=120) as (bridge, proxy), browser.profile() as profile:
        await profile.add_script(BEGIN)
        tab = await profile.tab()
        await tab.goto(proxy.url)
        await tab.install_clock()
        for asleep in (False, True):
            await begin(tab, {}, subject)
            await ready(tab, "websocket")
            proxy.silent = True
            if asleep:
                await tab.sleep(3_600_000)
            else:
                await tab.run_for(180_000)
                assert await tab.evaluate("nats.status.state") == "connected"
                await tab.run_for(60_000)
            await true(tab, "seen('status').some(({ reason }) => reason === 'silence')")
            proxy.silent = False
            proxy.cut()
            await back(tab, bridge, publisher, subject)
            await tab.evaluate("nats.close()")


@chromium_only  # its DevTools protocol reports which processes host the pages
async def test_frozen_page_loses_no_messages(
    browser: Chromium, profile: Profile, shared_nats: NatsServer, publisher: Publisher
) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats, heartbeat=2) as (_, proxy):
        tabs = {transport: await profile.tab() for transport in ("websocket", "sse")}
        for transport, tab in tabs.items():
            await tab.goto(proxy.url)
            await begin(tab, {"transports": [transport]}, subject)
            await ready(tab, transport)
        async with browser.frozen():
            await publisher.send(subject, b"1")
            await asyncio.sleep(4.2)  # the state to test: more than two heartbeats have passed
            await publisher.send(subject, b"2")
        for tab in tabs.values():
            await true(tab, "messages.length === 2")
            assert await tab.evaluate("seen('gap')") == []


@chromium_only  # its DevTools protocol reports which processes host the pages
async def test_client_detects_connection_that_died_while_page_was_frozen(
    browser: Chromium, profile: Profile, shared_nats: NatsServer, publisher: Publisher
) -> None:
    subjects = {transport: publisher.subject(transport) for transport in ("websocket", "sse")}
    async with serving(shared_nats, heartbeat=2) as (bridge, proxy):
        tabs = {transport: await profile.tab() for transport in subjects}
        for transport, tab in tabs.items():
            await tab.goto(proxy.url)
            await begin(tab, {"transports": [transport]}, subjects[transport])
            await ready(tab, transport)
        async with browser.frozen():
            proxy.silent = True
            await asyncio.sleep(4.2)  # the state to test: more than two heartbeats have passed
        for tab in tabs.values():
            await true(tab, "seen('status').some(({ reason }) => reason === 'silence')")
        proxy.silent = False
        proxy.cut()
        for tab in tabs.values():
            await true(tab, "seen('gap').length && nats.status.state === 'connected'")
        subscribed = sorted((subject,) for subject in subjects.values())
        await until(lambda: sorted(session.subscriptions for session in bridge.extension.sessions) == subscribed)
        for transport, tab in tabs.items():
            await publisher.send(subjects[transport], b"1")
            await true(tab, "messages.length")


@one_browser
async def test_hanging_command_does_not_delay_next_session(
    tab: Tab, shared_nats: NatsServer, publisher: Publisher
) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats, heartbeat=2) as (bridge, proxy):
        await tab.goto(proxy.url)
        await tab.evaluate(
            """(() => {
              const { fetch } = window;
              window.pending = 0;
              window.fetch = (...all) => (pending++, fetch(...all).finally(() => pending--));
            })()"""
        )
        await begin(tab, {"transports": ["sse"]}, subject)
        await ready(tab, "sse")
        proxy.silent = True
        await tab.evaluate(f"void (window.late = nats.subscribe('{subject}.late'))")
        await true(tab, "nats.status.state === 'waiting'")
        proxy.silent = False  # for new requests; the one that hangs still does
        assert await tab.evaluate("late.ready.then(() => pending)") == 1
        await until(
            lambda: any({subject, f"{subject}.late"} == set(s.subscriptions) for s in bridge.extension.sessions)
        )
        proxy.cut()


# Credentials


@both
async def test_client_renews_expired_credentials(
    tab: Tab, shared_nats: NatsServer, publisher: Publisher, transport: str
) -> None:
    subject = publisher.subject("a")
    token = SimpleNamespace(value="1")

    def permissions(request: Request) -> Permissions | None:
        return Permissions([">"], identity="ada") if request.args.get("token") == token.value else None

    async with serving(shared_nats, permissions=permissions) as (bridge, proxy):
        await tab.goto(proxy.url)
        await tab.evaluate("window.asked = 0; window.token = '1'")
        await tab.evaluate(
            """([transports, subject]) =>
              begin({ transports, credentials: async () => ({ token: (asked++, token) }) }, subject)""",
            [[transport], subject],
        )
        await ready(tab, transport)
        await tab.evaluate("window.token = '2'")
        token.value = "2"
        expiring = Permissions([">"], identity="ada", expires=time.time() + 0.1)
        await bridge.extension.update_permissions(expiring, identity="ada")
        await true(tab, "asked === 2")
        await back(tab, bridge, publisher, subject)
        assert await tab.evaluate("asked") == 2
        assert await tab.evaluate(RECONNECT_GAP) == [[[subject], None, "reconnect"]]


@both
async def test_client_renews_rejected_credentials_with_backoff(
    tab: Tab, shared_nats: NatsServer, publisher: Publisher, transport: str
) -> None:
    methods: list[str] = []

    def permissions(request: Request) -> Permissions | None:
        methods.append(request.method)
        return Permissions([">"]) if request.args.get("token") == "3" else None

    async with serving(shared_nats, permissions=permissions) as (_, proxy):
        await tab.goto(proxy.url)
        await tab.evaluate("Math.random = () => 0; window.asked = 0")  # the shortest backoff
        await tab.evaluate(
            """([transports, subject]) =>
              begin({ transports, credentials: async () => ({ token: ++asked }) }, subject)""",
            [[transport], publisher.subject("a")],
        )
        await ready(tab, transport)
        assert await tab.evaluate("asked") == 3
        waits = "seen('status').filter(({ state }) => state === 'waiting').map(({ retry }) => retry)"
        assert await tab.evaluate(waits) == [0, 500]
        # A rejected EventSource does not expose the reason: another request does.
        streams = [method for method in methods if method != "POST"]
        assert streams == ["GET"] * {"websocket": 3, "sse": 5}[transport]


@both
async def test_client_without_credentials_does_not_retry_when_rejected(
    tab: Tab, shared_nats: NatsServer, transport: str
) -> None:
    methods: list[str] = []

    def permissions(request: Request) -> None:
        methods.append(request.method)

    async with serving(shared_nats, permissions=permissions) as (_, proxy):
        await tab.goto(proxy.url)
        await begin(tab, {"transports": [transport]}, "a")
        await true(tab, "nats.status.state === 'closed'")
        assert await tab.evaluate("seen('close').map(({ code }) => code)") == [4401]
        assert methods == {"websocket": ["GET"], "sse": ["GET", "GET"]}[transport]


@both
async def test_client_does_not_reconnect_after_session_is_revoked(
    tab: Tab, shared_nats: NatsServer, transport: str
) -> None:
    def permissions(_: Request) -> Permissions:
        return Permissions([">"], identity="ada")

    async with serving(shared_nats, permissions=permissions) as (bridge, proxy):
        await tab.goto(proxy.url)
        await begin(tab, {"transports": [transport]}, "a")
        await ready(tab, transport)
        await tab.evaluate("(async () => { for await (const _ of nats.subscribe('a')); window.ended = true })(), 0")
        await bridge.extension.revoke(identity="ada")
        await true(tab, "window.ended")
        assert await tab.evaluate("seen('close').map(({ code }) => code)") == [4403]
        assert await tab.evaluate("nats.subscribe('b').ready.catch(({ code }) => code)") == "closed"
        assert await tab.evaluate("nats.status.state") == "closed"


# Origins


async def test_page_of_local_file_connects_if_advice_in_log_is_followed(
    tab: Tab, profile: Profile, shared_nats: NatsServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    page = tmp_path / "page.html"
    page.write_text("<!doctype html><title>x</title>")
    attempt = """async (url) => {
      try {
        const { connect } = await import(`${url}/client.js`);
        for (const transport of ["websocket", "sse"]) {
          const nats = connect({ url, transports: [transport] });
          const outcome = await new Promise((resolve) => {
            nats.addEventListener("status", ({ detail }) => detail.state === "connected" && resolve("connected"));
            nats.addEventListener("status", ({ detail }) => detail.state === "waiting" && resolve("waiting"));
            nats.addEventListener("close", () => resolve("closed"));
          });
          nats.close();
          if (outcome !== "connected") return `${transport} ${outcome}`;
        }
        return "connected";
      } catch (error) {
        return `${error}`;
      }
    }"""

    def advised() -> set[str]:
        advice = re.compile(r"(?:from|to) origin '(\S+)'.* host .* to the setting 'allowed_origins'")
        return {match[1] for line in caplog.messages if (match := advice.search(line))}

    allowed: set[str] = set()
    outcomes = []
    while True:
        async with running(servers=shared_nats.url, subscribe=[">"], allowed_origins=list(allowed)) as bridge:
            await tab.goto(page.as_uri())
            outcomes.append(await tab.evaluate(attempt, bridge.url))
        if outcomes[-1] == "connected":
            break
        assert advised() > allowed, outcomes
        allowed = advised()
    assert allowed == {"null"}, outcomes
    # Firefox reports the module that it could not load at first.
    profile.complaints.clear()


# Subscriptions


@one_browser
async def test_callbacks_share_subscription_and_get_only_matching_messages(
    tab: Tab, shared_nats: NatsServer, publisher: Publisher
) -> None:
    base = publisher.base
    async with serving(shared_nats) as (bridge, proxy):
        await tab.goto(proxy.url)
        await begin(tab)
        await tab.evaluate(
            """async (base) => {
              window.got = [];
              window.commands = [];
              nats.addEventListener("frame", ({ detail: { action, subjects } }) => {
                if (action === "subscribe") commands.push(subjects);
              });
              const note = (name) => (data, message) => got.push([name, data, message.subject]);
              window.subs = [`${base}.>`, `${base}.x`, `${base}.x`, `${base}.*`].map(
                (pattern, index) => nats.subscribe(pattern, note(index)));
              await Promise.all(subs.map(({ ready }) => ready));
            }""",
            base,
        )
        assert await tab.evaluate("commands") == [[f"{base}.>", f"{base}.x", f"{base}.*"]]
        await publisher.send(f"{base}.x", b"1")
        await publisher.send(f"{base}.x.y", b"2")
        await true(tab, "got.length === 5")
        assert sorted(await tab.evaluate("got")) == [
            [0, 1, f"{base}.x"],
            [0, 2, f"{base}.x.y"],
            [1, 1, f"{base}.x"],
            [2, 1, f"{base}.x"],
            [3, 1, f"{base}.x"],
        ]
        await tab.evaluate("subs[1].unsubscribe(); subs[0].unsubscribe(); got.length = 0")
        (session,) = bridge.extension.sessions
        await until(lambda: set(session.subscriptions) == {f"{base}.x", f"{base}.*"})
        await publisher.send(f"{base}.x", b"3")
        await true(tab, "got.length === 2")
        assert sorted(await tab.evaluate("got")) == [[2, 3, f"{base}.x"], [3, 3, f"{base}.x"]]


@one_browser
@both
async def test_rejection_affects_only_subscriptions_to_rejected_pattern(
    tab: Tab, shared_nats: NatsServer, publisher: Publisher, transport: str
) -> None:
    base = publisher.base

    def permissions(_: Request) -> Permissions:
        return Permissions([f"{base}.>"])

    async with serving(shared_nats, permissions=permissions, max_subscriptions=5) as (bridge, proxy):
        await tab.goto(proxy.url)
        await begin(tab, {"transports": [transport]})
        outcome = await tab.evaluate(
            """async (base) => {
              const patterns = ["secret", `${base}.0`, "a..b", ...[1, 2, 3, 4, 5, 6].map((n) => `${base}.${n}`)];
              const ready = patterns.map((pattern) => nats.subscribe(pattern, () => {}, () => {}).ready);
              return (await Promise.allSettled(ready)).map(({ value, reason }) => value?.active ?? reason.code);
            }""",
            base,
        )
        forbidden, invalid, limit = "subject.forbidden", "subject.invalid", "limit.subscriptions"
        assert outcome == [forbidden, True, invalid, True, True, True, True, limit, limit]
        (session,) = bridge.extension.sessions
        assert set(session.subscriptions) == {f"{base}.{number}" for number in range(5)}
        thrown = await tab.evaluate(
            """(async () => {
              try { for await (const _ of nats.subscribe("secret")); } catch ({ code }) { return code }
            })()"""
        )
        assert thrown == forbidden


@one_browser
async def test_loops_and_callbacks_end_when_bridge_ends_subscription(
    tab: Tab, shared_nats: NatsServer, publisher: Publisher
) -> None:
    def permissions(_: Request) -> Permissions:
        return Permissions([">"], identity="ada")

    async with serving(shared_nats, permissions=permissions) as (bridge, proxy):
        await tab.goto(proxy.url)
        await begin(tab)
        await tab.evaluate(
            """(async () => {
              window.ends = [];
              await nats.subscribe("a", () => {}, ({ code }) => ends.push(code)).ready;
              (async () => { for await (const _ of nats.subscribe("a")); ends.push("iterated"); })();
            })()"""
        )
        await bridge.extension.update_permissions(Permissions(["b"], identity="ada"), identity="ada")
        await true(tab, "ends.length === 2")
        assert sorted(await tab.evaluate("ends")) == ["iterated", "subject.forbidden"]
        assert await tab.evaluate("seen('unsubscribed').map(({ subjects }) => subjects)") == [["a"]]


@both
async def test_hostile_payloads_and_subjects_are_treated_as_data(
    tab: Tab, shared_nats: NatsServer, publisher: Publisher, transport: str
) -> None:
    async with serving(shared_nats) as (_, proxy):
        await tab.goto(proxy.url)
        subjects = [
            f"{publisher.base}.__proto__",
            "__proto__",
            "constructor",
            f"{publisher.base}.<img/src=x/onerror=alert(1)",
        ]
        await begin(tab, {"transports": [transport]}, "__proto__x", *subjects)
        await tab.evaluate("followed[0].ready.catch(({ code }) => code)")
        await tab.evaluate("Promise.allSettled(followed.map(({ ready }) => ready)).then(() => 0)")
        for subject in subjects:
            await publisher.send(subject, *(payload.encode() for payload in HOSTILE))
        allowed = [subject for subject in subjects if not subject.startswith("_")]
        await true(tab, f"messages.length === {len(allowed) * len(HOSTILE)}")
        assert await tab.evaluate("messages.map(({ subject }) => subject)") == [
            subject for subject in allowed for _ in HOSTILE
        ]
        assert await tab.evaluate("({}).polluted ?? null") is None
        assert await tab.evaluate("nats.status.state") == "connected"


# Shared streams


async def open_shared(profile: Profile, url: str, share: str, *patterns: str) -> Tab:
    """Open a tab that shares its event stream, and return when its subscriptions are confirmed."""
    tab = await profile.tab()
    await tab.goto(url)
    await begin(tab, {"transports": ["sse"], "share": share}, *patterns)
    await ready(tab, "sse")
    return tab


FRAMES = """async ([count, options, pattern]) => {
  const open = () => new Promise((resolve) => {
    const frame = document.createElement("iframe");
    frame.src = "/";
    frame.onload = () => resolve(frame.contentWindow);
    document.body.append(frame);
  });
  window.pages = await Promise.all(Array.from({ length: count }, open));
  await Promise.all(pages.map((page) => page.begin(options, pattern)));
  await Promise.all(pages.map((page) => page.followed[0].ready));
}"""
"""Opens pages in frames: they have clients of their own, and are cheaper than tabs."""


async def test_fifty_pages_share_one_stream_and_replace_closed_leader(
    profile: Profile, shared_nats: NatsServer, publisher: Publisher
) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats) as (bridge, proxy):
        leader = await open_shared(profile, proxy.url, "ada", subject)
        # With their frames they are many more than the connections that a browser makes to one host.
        tabs = [await open_shared(profile, proxy.url, "ada", subject) for _ in range(2)]
        for tab in tabs:
            await tab.evaluate(FRAMES, [24, {"transports": ["sse"], "share": "ada"}, subject])
            await tab.evaluate("pages.push(window), 0")
        other = await open_shared(profile, proxy.url, "bob", publisher.subject("b"))
        assert proxy.streams == 2
        assert len(bridge.extension.sessions) == 2
        await publisher.send(subject, b"1")
        await true(leader, "messages.length === 1")
        for tab in tabs:
            await true(tab, "pages.every(({ messages }) => messages.length === 1)")
        await leader.close()
        for tab in tabs:
            await true(tab, "pages.every(({ seen }) => seen('gap').length)")
            # By the lock that the leader has left, not by a timeout.
            assert await tab.evaluate("pages.some((page) => page.seen('status').some(({ reason }) => reason))") is False
        await until(
            lambda: sorted(set(s.subscriptions) == {subject} for s in bridge.extension.sessions) == [False, True]
        )
        await publisher.send(subject, b"2")
        for tab in tabs:
            await true(tab, "pages.every(({ messages }) => messages.length === 2)")
            assert await tab.evaluate(RECONNECT_GAP) == [[[subject], None, "reconnect"]]
            assert await tab.evaluate("pages.every(({ seen }) => seen('gap').length === 1)") is True
        assert await other.evaluate("messages.length") == 0
        assert proxy.streams == 3


async def test_tabs_sharing_stream_have_separate_subscriptions(
    profile: Profile, shared_nats: NatsServer, publisher: Publisher
) -> None:
    async with serving(shared_nats, max_subscriptions=2) as (bridge, proxy):
        a, b, c = (publisher.subject(name) for name in "abc")
        first = await open_shared(profile, proxy.url, "ada", a, b)
        second = await open_shared(profile, proxy.url, "ada", b)
        refused = await second.evaluate(f"nats.subscribe('{c}').ready.catch(({{ code }}) => code)")
        assert refused == "limit.subscriptions"
        await publisher.send(a, b"1")
        await publisher.send(b, b"2")
        await true(first, "messages.length === 2")
        await true(second, "messages.length === 1")
        assert await second.evaluate("messages[0].data") == 2
        (session,) = bridge.extension.sessions
        await second.close()
        assert set(session.subscriptions) == {a, b}
        await first.evaluate("followed[0].unsubscribe()")
        await until(lambda: set(session.subscriptions) == {b})
        third = await open_shared(profile, proxy.url, "ada", c)
        await third.close()
        await until(lambda: set(session.subscriptions) == {b})


@one_browser
async def test_tabs_sharing_stream_may_use_same_command_id(
    profile: Profile, shared_nats: NatsServer, publisher: Publisher
) -> None:
    async with serving(shared_nats) as (_, proxy):
        tabs = [await open_shared(profile, proxy.url, "ada", publisher.subject("a")) for _ in range(2)]
        command = "nats.send({ id: 'same', subjects: [] }).then(({ id, code }) => [id, code])"
        replies = await asyncio.gather(*(tab.evaluate(command) for tab in tabs))
        assert replies == [["same", "command.invalid"]] * 2


HURRY = """
  window.sources = [];
  window.EventSource = class extends EventSource {
    constructor(...all) {
      super(...all);
      sources.push(this);
    }
  };
  const { setInterval } = window;
  window.setInterval = (callback, pause) => setInterval(callback, pause / 10); // only share.js uses it
  Math.random = () => 0; // the shortest backoff
"""
"""Shortens the waits of a tab, and collects the event streams that it opens if it is the leader."""

AnyTab = TypeVar("AnyTab", bound=Tab)

LEADS = "sources.some(({ readyState }) => readyState < 2)"

LOG = """(subject) => {
  window.log = [];
  window.gaps = 0;
  nats.addEventListener("gap", () => {
    log.push("gap");
    gaps++;
  });
  return nats.subscribe(subject, (data) => log.push(data)).ready.then(() => null);
}"""
"""Keeps the data of messages, and gaps, in their order."""

HIGHEST_NUMBER = """navigator.locks.query().then(({ held }) =>
  Math.max(...held.map(({ name }) => Number(name.match(/^sanic-nats-bridge .* (\\d+)$/)?.[1] ?? 0))))"""
"""The number of the shared stream's leader: it grows with each tab that takes over."""


async def open_logging(profile: Profile, url: str, subject: str) -> ChromiumTab:
    tab = await profile.tab()
    assert isinstance(tab, ChromiumTab)
    await tab.goto(url)
    await tab.evaluate(f"() => {{ {HURRY} }}")
    await begin(tab, {"transports": ["sse"], "share": "ada"})
    await tab.evaluate(LOG, subject)
    return tab


@contextlib.asynccontextmanager
async def busy(tab: ChromiumTab, bridge: Bridge, proxy: BridgeProxy) -> AsyncIterator[None]:
    """Keep the tab busy with one long task."""
    before = proxy.paths.count("/hang")
    synchronous = "(() => { const r = new XMLHttpRequest(); r.open('GET', '/hang', false); r.send(); })()"
    hanging = asyncio.create_task(tab.evaluate(synchronous))
    await until(lambda: proxy.paths.count("/hang") > before)
    yield
    bridge.app.ctx.released.set()
    await hanging
    bridge.app.ctx.released.clear()


def faults(log: list[Any]) -> list[str]:
    """Return the numbers that come twice or out of order, or after others that are missing without a gap."""
    found, last, may_miss = [], 0, True
    for entry in log:
        if entry != "gap":
            if entry <= last or (entry > last + 1 and not may_miss):
                found.append(f"{entry} after {last}")
            last = entry
        may_miss = entry == "gap"
    return found


async def find_leader(tabs: list[AnyTab]) -> AnyTab:
    while True:
        leaders = [tab for tab in tabs if await tab.evaluate(LEADS)]
        if len(leaders) == 1:
            return leaders[0]
        await moment()


@chromium_only  # each of its tabs has a process of its own, so that one can be suspended
@pytest.mark.parametrize("way", ["paused", "busy"])
async def test_suspended_leader_hands_on_nothing(
    profile: Profile, shared_nats: NatsServer, publisher: Publisher, way: str
) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats, heartbeat=2) as (bridge, proxy):
        tabs = [await open_logging(profile, proxy.url, subject) for _ in range(3)]
        async with counting(publisher, subject) as count:
            for _ in range(2):
                for tab in tabs:
                    await true(tab, "log.length > 0")
                    await tab.evaluate("gaps = 0")
                leader = await find_leader(tabs)
                others = [tab for tab in tabs if tab is not leader]
                async with leader.paused() if way == "paused" else busy(leader, bridge, proxy):
                    commands = [tab.evaluate("nats.send({ subjects: [] }).then(({ code }) => code)") for tab in others]
                    assert await asyncio.gather(*commands) == ["disconnected"] * 2
                    for tab in others:
                        await true(tab, "gaps && log.at(-1) > 0")
                last = count()
                for tab in tabs:
                    await true(tab, f"gaps && log.at(-1) > {last}")
        for tab in tabs:
            await true(tab, f"log.at(-1) === {count()}")
            assert faults(await tab.evaluate("log")) == []
        await until(lambda: len(bridge.extension.sessions) == 1)


@chromium_only  # its DevTools protocol can stop a page
async def test_frozen_leader_hands_over_at_once(
    profile: Profile, shared_nats: NatsServer, publisher: Publisher
) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats) as (bridge, proxy):
        leader, other = [await open_logging(profile, proxy.url, subject) for _ in range(2)]
        async with counting(publisher, subject) as count:
            async with leader.paused("freeze"):
                await true(other, "gaps && log.at(-1) > 0")
                # By the lock that the leader has left, not by a timeout.
                assert await other.evaluate("seen('status').some(({ reason }) => reason)") is False
            await true(leader, "gaps && log.at(-1) > 0")
        for tab in (leader, other):
            await true(tab, f"log.at(-1) === {count()}")
            assert faults(await tab.evaluate("log")) == []
        assert await other.evaluate(LEADS) is True
        await until(lambda: len(bridge.extension.sessions) == 1)


async def test_reconnect_in_any_tab_renews_credentials_of_shared_stream(
    profile: Profile, shared_nats: NatsServer, publisher: Publisher
) -> None:
    subject = publisher.subject("a")

    def permissions(request: Request) -> Permissions:
        return Permissions([">"], identity=request.args.get("user"))

    async with serving(shared_nats, permissions=permissions) as (bridge, proxy):

        def identities() -> list[str | None]:
            return [session.identity for session in bridge.extension.sessions]

        tabs = []
        for _ in range(3):
            tab = await profile.tab()
            await tab.goto(proxy.url)
            await tab.evaluate(f"(() => {{{HURRY}}})()")
            await tab.evaluate(
                """(subject) => {
                  const credentials = async () => ({ user: localStorage.user ?? "ada" });
                  return begin({ transports: ["sse"], share: "key", credentials }, subject);
                }""",
                subject,
            )
            await ready(tab, "sse")
            tabs.append(tab)

        async def renewed(tabs: list[Tab], user: str, gaps: int) -> None:
            await until(lambda: identities() == [user])
            for tab in tabs:
                await true(tab, f"nats.status.state === 'connected' && seen('gap').length === {gaps}")
            await publisher.send(subject, b"%d" % gaps)
            for tab in tabs:
                await true(tab, f"messages.at(-1)?.data === {gaps}")

        leader = await find_leader(tabs)
        others = [tab for tab in tabs if tab is not leader]
        await renewed(tabs, "ada", 0)
        for gaps, (user, tab) in enumerate([("bob", others[0]), ("eve", leader)], 1):
            await tab.evaluate("(user) => { localStorage.user = user; nats.reconnect(); }", user)
            await renewed(tabs, user, gaps)
        assert await find_leader(tabs) is leader
        await leader.close()
        # The next leader asks for the credentials again: those with which it began are of another user.
        await renewed(others, "eve", 3)


@one_browser
async def test_dead_connection_does_not_replace_leader(
    profile: Profile, shared_nats: NatsServer, publisher: Publisher
) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats, heartbeat=2) as (bridge, proxy):
        tabs = [await open_shared(profile, proxy.url, "ada", subject) for _ in range(4)]
        proxy.silent = True
        for tab in tabs:
            await true(tab, "seen('status').some(({ state }) => state === 'waiting')")
        proxy.silent = False
        proxy.cut()
        for tab in tabs:
            await true(tab, "seen('gap').length")
            await back(tab, bridge, publisher, subject)
        for tab in tabs:
            gaps = await tab.evaluate(RECONNECT_GAP)
            # One, and one more for each keepalive that a busy machine has missed.
            assert gaps == [[[subject], None, "reconnect"]] * len(gaps)
        assert await tabs[0].evaluate(HIGHEST_NUMBER) == 1


@chromium_only  # Playwright sets the clock of its pages
async def test_shared_stream_that_is_tried_beside_a_websocket_does_not_change_the_status(
    browser: Chromium, shared_nats: NatsServer, publisher: Publisher
) -> None:
    subject = publisher.subject("a")
    options = {"transports": ["sse", "websocket"], "share": "ada", "timeout": 1_000_000}
    # The clock is that of the whole profile.
    async with serving(shared_nats, heartbeat=120) as (_, proxy), browser.profile() as profile:
        await profile.add_script(BEGIN)
        tab = await profile.tab()
        await tab.goto(proxy.url)
        await tab.install_clock()
        remembered = """([url, { transports, share }]) => sessionStorage.setItem(
          `sanic-nats-bridge ${JSON.stringify([url, transports, share])}`,
          `1 ${Date.now() + 150_000}`)"""
        await tab.evaluate(remembered, [f"{proxy.url}/nats/", options])
        await begin(tab, options, subject)
        await ready(tab, "websocket")
        await tab.run_for(156_000)
        await true(tab, "nats.status.transport === 'sse' && seen('gap').length")
        states = await tab.evaluate("seen('status').map(({ state, transport }) => [state, transport])")
        assert states[-3:] == [["connected", "websocket"], ["subscribing", "sse"], ["connected", "sse"]]


NO_LOCKS = "Object.defineProperty(Navigator.prototype, 'locks', { value: undefined });"
# As Chromium does if cookies are blocked. In an insecure context there is no `locks`.
DENIED_LOCKS = """
  if (navigator.locks) navigator.locks.request = () => Promise.reject(new DOMException("Denied", "SecurityError"));
"""


@pytest.mark.parametrize(("script", "streams"), [("", 1), (DENIED_LOCKS, 2), (NO_LOCKS, 2)], ids=["", "denied", "none"])
async def test_tabs_share_stream_only_if_locks_are_available(
    browser: Browser, shared_nats: NatsServer, publisher: Publisher, script: str, streams: int
) -> None:
    async with serving(shared_nats) as (_, proxy), browser.profile() as profile:
        await profile.add_script(BEGIN)
        await profile.add_script(script)
        for _ in range(2):
            tab = await open_shared(profile, proxy.url, "ada", publisher.subject("a"))
            assert await tab.evaluate("nats.status.shared") is (streams == 1)
        assert proxy.streams == streams
        assert profile.complaints == []


@pytest.mark.parametrize("place", ["fixed", "versioned", "other release", "other origin"])
async def test_share_module_is_loaded_beside_client_only_if_needed(
    profile: Profile, shared_nats: NatsServer, publisher: Publisher, place: str
) -> None:
    port = free_port()
    async with (
        serving(shared_nats, allowed_origins=[f"http://127.0.0.1:{port}"]) as (bridge, proxy),
        BridgeProxy(bridge.port).running(port) as other,
    ):
        fixed, other_release = "/nats/client.js", "/nats/client-0123456789abcdef.js"
        path = {"fixed": fixed, "other release": other_release}.get(place, bridge.extension.client_url)
        page = f"{other.url}/open" if place == "other origin" else proxy.url
        subject = publisher.subject("a")

        shared = {"transports": ["sse"], "share": "ada"}
        tabs = [await profile.tab() for _ in range(2)]
        for tab in tabs:
            await tab.goto(page)
            await tab.evaluate(f"window.module = '{proxy.url}{path}'")
            for options in ({"transports": ["sse"]}, {"transports": ["websocket"], "share": "ada"}):
                await begin(tab, options, subject)
                await ready(tab, options["transports"][0])
                await tab.evaluate("nats.close()")
        assert {path for path in proxy.paths if path.endswith(".js")} == {path}
        for tab in tabs:
            await begin(tab, shared, subject)
            await ready(tab, "sse")
            assert await tab.evaluate("nats.status.shared") is True
        await until(lambda: len(bridge.extension.sessions) == 1)
        (loaded,) = {path for path in proxy.paths if path.endswith(".js")} - {path}
        assert re.fullmatch(r"/nats/share.js" if place == "fixed" else r"/nats/share-[0-9a-f]{16}.js", loaded)
        assert not [path for path in other.paths if path.startswith("/nats/")]


async def test_each_tab_has_own_stream_if_share_module_is_missing(
    profile: Profile, shared_nats: NatsServer, publisher: Publisher
) -> None:
    async with serving(shared_nats) as (_, proxy):
        proxy.missing = "/nats/share.js"
        for streams in (1, 2):
            tab = await open_shared(profile, proxy.url, "ada", publisher.subject("a"))
            assert await tab.evaluate("nats.status.shared") is False
            assert proxy.streams == streams
        # Firefox reports the module that it can't load.
        assert all("/nats/share.js" in complaint for complaint in profile.complaints)
        profile.complaints.clear()
