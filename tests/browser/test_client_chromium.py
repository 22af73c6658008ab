"""The browser client in a real Chromium, and what may stand between it and the bridge."""

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, async_playwright
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
from tests.support.middlebox import Habit

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium is not None, "make test installs chromium"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    """A browser of its own, as it were, whose pages must raise no error, and break no policy."""
    complaints: list[str] = []
    context = await browser.new_context()
    context.on("weberror", lambda error: complaints.append(str(error.error)))
    await context.expose_function("complain", lambda what: complaints.append(what))
    await context.add_init_script(BEGIN)
    await context.add_init_script(
        "document.addEventListener('securitypolicyviolation', (event) => complain(event.violatedDirective));"
    )
    yield context
    await context.close()
    assert complaints == []


@pytest_asyncio.fixture(loop_scope="module")
async def page(context: BrowserContext) -> Page:
    return await context.new_page()


@pytest_asyncio.fixture(loop_scope="module")
async def publisher(shared_nats: NatsServer) -> AsyncIterator[Publisher]:
    async with Publisher.connected(shared_nats) as publisher:
        yield publisher


@pytest.mark.parametrize("habit", ["pass", "refuse", "cut", "swallow", "buffer"])
async def test_messages_come_whatever_stands_between(
    page: Page, shared_nats: NatsServer, publisher: Publisher, habit: Habit
) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats, habit) as (bridge, box), publishing(publisher, subject):
        await page.goto(box.url)
        await begin(page, {}, subject)
        await true(page, "messages.length")
        seconds = await page.evaluate("first") / 1000
        assert seconds < 5
        status = await page.evaluate("nats.status")
        assert status["transport"] == ("websocket" if habit in ("pass", "buffer") else "sse")
        assert bool(status["why"]) == (status["transport"] == "sse")
        await until(lambda: len(bridge.extension.sessions) == 1)
        await page.evaluate("nats.close()")
        await until(lambda: not bridge.extension.sessions)


async def test_what_worked_is_remembered_for_the_tab(page: Page, shared_nats: NatsServer, publisher: Publisher) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats, "swallow") as (_, box), publishing(publisher, subject):
        await page.goto(box.url)
        await begin(page, {"timeout": 300}, subject)
        await ready(page, "sse")
        await page.reload()
        # The box would take as long to show that it swallows again.
        await begin(page, {"timeout": 60_000}, subject)
        await ready(page, "sse")


async def test_the_better_way_is_tried_again(page: Page, shared_nats: NatsServer, publisher: Publisher) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats, "refuse", heartbeat=1) as (bridge, box):
        await page.goto(box.url)
        await begin(page, {"retryBetter": 300}, subject)
        await ready(page, "sse")
        box.habit = "pass"
        await true(page, "nats.status.transport === 'websocket'")
        await true(page, "seen('gap').length")
        assert await page.evaluate(RECONNECT_GAP) == [[[subject], None, "reconnect"]]
        await back(page, bridge, publisher, subject)


@both
async def test_it_comes_back_when_the_server_does(
    page: Page, shared_nats: NatsServer, publisher: Publisher, transport: str
) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats) as (bridge, box):
        await page.goto(box.url)
        await begin(page, {"transports": [transport]}, subject)
        await ready(page, transport)
        box.down = True
        box.cut()
        await true(page, "nats.status.state === 'waiting'")
        box.down = False
        await back(page, bridge, publisher, subject)
        assert await page.evaluate(RECONNECT_GAP) == [[[subject], None, "reconnect"]]


async def test_it_survives_a_killed_server(page: Page) -> None:
    with ExampleApp() as app:
        await page.goto(app.url)
        await page.evaluate("window.module = '/client.js'")
        await begin(page, {}, "test.subject")
        await true(page, "messages.length")
        await asyncio.to_thread(app.restart, signal.SIGKILL)
        await page.evaluate("messages.length = 0")
        await true(page, "messages.length", 20)
        assert await page.evaluate("nats.status.transport") == "websocket"
        assert await page.evaluate("seen('gap').length") == 1


@both
async def test_it_comes_back_at_once_when_the_network_does(
    context: BrowserContext, page: Page, shared_nats: NatsServer, publisher: Publisher, transport: str
) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats) as (bridge, box):
        await page.goto(box.url)
        await begin(page, {"transports": [transport]}, subject)
        await ready(page, transport)
        await page.evaluate("Math.random = () => 1")  # as long as it may wait
        await context.set_offline(True)
        box.down = True
        box.cut()
        await true(page, "nats.status.retry >= 2000")
        box.down = False
        await context.set_offline(False)
        await true(page, "nats.status.state === 'connected'", 1)
        await back(page, bridge, publisher, subject)
        assert await page.evaluate(RECONNECT_GAP) == [[[subject], None, "reconnect"]]


@both
async def test_a_dead_link_is_noticed_by_its_silence(
    page: Page, shared_nats: NatsServer, publisher: Publisher, transport: str
) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats, heartbeat=0.5) as (bridge, box):
        await page.goto(box.url)
        await begin(page, {"transports": [transport]}, subject)
        await ready(page, transport)
        box.silent = True
        started = time.time()
        await true(page, "nats.status.state === 'waiting'")
        noticed = await page.evaluate("seen('status').find(({ state }) => state === 'waiting').at / 1000")
        assert noticed - started < 2.5 * 0.5
        box.silent = False
        box.cut()
        await back(page, bridge, publisher, subject)


async def test_a_command_that_hangs_holds_up_no_other_session(
    page: Page, shared_nats: NatsServer, publisher: Publisher
) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats, heartbeat=0.5) as (bridge, box):
        await page.goto(box.url)
        await begin(page, {"transports": ["sse"]}, subject)
        await ready(page, "sse")
        box.silent = True
        await page.evaluate(f"void (window.late = nats.subscribe('{subject}.late'))")
        await true(page, "nats.status.state === 'waiting'")
        box.silent = False  # and what has hung hangs on
        await page.evaluate("Promise.race([late.ready, new Promise((_, no) => setTimeout(no, 8000))])")
        await until(
            lambda: any({subject, f"{subject}.late"} == set(s.subscriptions) for s in bridge.extension.sessions)
        )
        box.cut()


async def test_after_a_sleep_the_clocks_are_compared(page: Page, shared_nats: NatsServer, publisher: Publisher) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats) as (bridge, box):
        await page.goto(box.url)
        await page.clock.install()
        await begin(page, {}, subject)
        await ready(page, "websocket")
        box.silent = True
        await page.clock.fast_forward(3_600_000)  # each timer that was due comes once
        await true(page, "seen('status').some(({ state }) => state === 'waiting')", 5)
        box.silent = False
        box.cut()
        await back(page, bridge, publisher, subject)


@contextlib.asynccontextmanager
async def frozen(browser: Browser) -> AsyncIterator[None]:
    """All pages stand still, as in a sleep, while the browser's network goes on."""
    devtools = await browser.new_browser_cdp_session()
    processes = (await devtools.send("SystemInfo.getProcessInfo"))["processInfo"]
    renderers = [process["id"] for process in processes if process["type"] == "renderer"]
    assert renderers
    for pid in renderers:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in renderers:
            os.kill(pid, signal.SIGCONT)


@both
async def test_what_has_waited_for_a_frozen_page_is_not_lost(
    browser: Browser, page: Page, shared_nats: NatsServer, publisher: Publisher, transport: str
) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats, heartbeat=0.3) as (_, box):
        await page.goto(box.url)
        await begin(page, {"transports": [transport]}, subject)
        await ready(page, transport)
        async with frozen(browser):
            await publisher.send(subject, b"1")
            await asyncio.sleep(1)  # longer than two heartbeats
            await publisher.send(subject, b"2")
        await true(page, "messages.length === 2")
        assert await page.evaluate("seen('gap')") == []


@both
async def test_a_link_that_died_while_the_page_was_frozen_is_noticed(
    browser: Browser, page: Page, shared_nats: NatsServer, publisher: Publisher, transport: str
) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats, heartbeat=0.3) as (bridge, box):
        await page.goto(box.url)
        await begin(page, {"transports": [transport]}, subject)
        await ready(page, transport)
        async with frozen(browser):
            box.silent = True
            await asyncio.sleep(1)
        await true(page, "nats.status.state === 'waiting'", 2)
        box.silent = False
        box.cut()
        await back(page, bridge, publisher, subject)


async def test_a_page_that_is_shown_again_comes_back_at_once(
    page: Page, shared_nats: NatsServer, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = publisher.subject("a")
    monkeypatch.setattr("random.uniform", lambda _, most: most)
    async with serving(shared_nats, reconnect_spread=600) as (bridge, box):
        await page.goto(box.url)
        await begin(page, {}, subject)
        await ready(page, "websocket")
        await page.evaluate("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
        bridge.runtime.sessions.close_all("The server is going away")
        await true(page, "nats.status.state === 'waiting'")
        assert await page.evaluate("nats.status.retry") > 500_000
        bridge.runtime.sessions.stop_reason = None
        await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        assert await page.evaluate("nats.status.state") == "waiting"
        await page.evaluate(
            "delete document.hidden; Object.defineProperty(document, 'hidden', { value: false });"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )
        await back(page, bridge, publisher, subject, 2)


@both
async def test_expired_credentials_are_renewed(
    page: Page, shared_nats: NatsServer, publisher: Publisher, transport: str
) -> None:
    subject = publisher.subject("a")
    token = SimpleNamespace(value="1", expires=0.0)

    def permissions(request: Request) -> Permissions | None:
        if request.args.get("token") != token.value:
            return None
        return Permissions([">"], identity="ada", expires=token.expires)

    async with serving(shared_nats, permissions=permissions) as (bridge, box):
        await page.goto(box.url)
        token.expires = time.time() + 1.5
        await page.evaluate("window.asked = 0; window.token = '1'")
        await page.evaluate(
            """([transports, subject]) =>
              begin({ transports, credentials: async () => ({ token: (asked++, token) }) }, subject)""",
            [[transport], subject],
        )
        await ready(page, transport)
        await page.evaluate("window.token = '2'")
        token.value = "2"
        expired, token.expires = token.expires, time.time() + 3600
        await true(page, "asked === 2")
        assert time.time() >= expired - 0.2
        await back(page, bridge, publisher, subject, 2)
        assert await page.evaluate("asked") == 2
        assert await page.evaluate(RECONNECT_GAP) == [[[subject], None, "reconnect"]]


@both
async def test_credentials_that_are_refused_are_not_tried_in_a_hot_loop(
    page: Page, shared_nats: NatsServer, transport: str
) -> None:
    without_any = 0

    def permissions(request: Request) -> None:
        nonlocal without_any
        without_any += "token" not in request.args

    async with serving(shared_nats, permissions=permissions) as (_, box):
        await page.goto(box.url)
        await page.evaluate(
            """(transports) => {
                window.asked = 0;
                return begin({ transports, credentials: async () => ({ token: asked++ }) });
            }""",
            [transport],
        )
        await true(page, "asked >= 3")
        assert await page.evaluate("seen('status').filter(({ retry }) => retry >= 500).length") >= 1
        await page.evaluate("nats.close()")
        await begin(page, {"transports": [transport]}, "a")
        await true(page, "nats.status.state === 'closed'")
        assert await page.evaluate("seen('close').map(({ code }) => code)") == [4401]
        assert without_any == {"websocket": 1, "sse": 2}[transport]


@both
async def test_it_does_not_come_back_where_it_may_not(
    page: Page, shared_nats: NatsServer, publisher: Publisher, transport: str
) -> None:
    def permissions(_: Request) -> Permissions:
        return Permissions([">"], identity="ada")

    async with serving(shared_nats, permissions=permissions) as (bridge, box):
        await page.goto(box.url)
        await begin(page, {"transports": [transport]}, "a")
        await ready(page, transport)
        await page.evaluate("(async () => { for await (const _ of nats.subscribe('a')); window.ended = true })(), 0")
        await bridge.extension.revoke(identity="ada")
        await true(page, "window.ended")
        assert await page.evaluate("seen('close').map(({ code }) => code)") == [4403]
        assert await page.evaluate("nats.subscribe('b').ready.catch(({ code }) => code)") == "closed"
        assert await page.evaluate("nats.status.state") == "closed"


async def test_many_callbacks_share_one_subscription_and_overlaps_reach_the_right_ones(
    page: Page, shared_nats: NatsServer, publisher: Publisher
) -> None:
    base = publisher.base
    async with serving(shared_nats) as (bridge, box):
        await page.goto(box.url)
        await begin(page)
        await page.evaluate(
            """async (base) => {
              window.got = [];
              window.commands = [];
              nats.addEventListener("frame", ({ detail }) => detail.type === "reply" && commands.push(detail.subjects));
              const note = (name) => (data, message) => got.push([name, data, message.subject]);
              window.subs = [`${base}.>`, `${base}.x`, `${base}.x`, `${base}.*`].map(
                (pattern, index) => nats.subscribe(pattern, note(index)));
              await Promise.all(subs.map(({ ready }) => ready));
            }""",
            base,
        )
        assert await page.evaluate("commands") == [[f"{base}.>", f"{base}.x", f"{base}.*"]]
        await publisher.send(f"{base}.x", b"1")
        await publisher.send(f"{base}.x.y", b"2")
        await true(page, "got.length === 5")
        assert sorted(await page.evaluate("got")) == [
            [0, 1, f"{base}.x"],
            [0, 2, f"{base}.x.y"],
            [1, 1, f"{base}.x"],
            [2, 1, f"{base}.x"],
            [3, 1, f"{base}.x"],
        ]
        await page.evaluate("subs[1].unsubscribe(); subs[0].unsubscribe(); got.length = 0")
        (session,) = bridge.extension.sessions
        await until(lambda: set(session.subscriptions) == {f"{base}.x", f"{base}.*"})
        await publisher.send(f"{base}.x", b"3")
        await true(page, "got.length === 2")
        assert sorted(await page.evaluate("got")) == [[2, 3, f"{base}.x"], [3, 3, f"{base}.x"]]


@both
async def test_a_refusal_reaches_those_alone_who_asked_for_what_is_refused(
    page: Page, shared_nats: NatsServer, publisher: Publisher, transport: str
) -> None:
    base = publisher.base

    def permissions(_: Request) -> Permissions:
        return Permissions([f"{base}.>"])

    async with serving(shared_nats, permissions=permissions, max_subscriptions=5) as (bridge, box):
        await page.goto(box.url)
        await begin(page, {"transports": [transport]})
        outcome = await page.evaluate(
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
        thrown = await page.evaluate(
            """(async () => {
              try { for await (const _ of nats.subscribe("secret")); } catch ({ code }) { return code }
            })()"""
        )
        assert thrown == forbidden


async def test_what_the_bridge_ends_ends_for_iterators_and_callbacks(
    page: Page, shared_nats: NatsServer, publisher: Publisher
) -> None:
    def permissions(_: Request) -> Permissions:
        return Permissions([">"], identity="ada")

    async with serving(shared_nats, permissions=permissions) as (bridge, box):
        await page.goto(box.url)
        await begin(page)
        await page.evaluate(
            """async () => {
              window.ends = [];
              await nats.subscribe("a", () => {}, ({ code }) => ends.push(code)).ready;
              (async () => { for await (const _ of nats.subscribe("a")); ends.push("iterated"); })();
            }"""
        )
        await bridge.extension.update_permissions(Permissions(["b"], identity="ada"), identity="ada")
        await true(page, "ends.length === 2")
        assert sorted(await page.evaluate("ends")) == ["iterated", "subject.forbidden"]
        assert await page.evaluate("seen('unsubscribed').map(({ subjects }) => subjects)") == [["a"]]


@both
async def test_hostile_payloads_and_subjects_are_data(
    page: Page, shared_nats: NatsServer, publisher: Publisher, transport: str
) -> None:
    async with serving(shared_nats) as (_, box):
        await page.goto(box.url)
        subjects = [
            f"{publisher.base}.__proto__",
            "__proto__",
            "constructor",
            f"{publisher.base}.<img/src=x/onerror=alert(1)",
        ]
        await begin(page, {"transports": [transport]}, "__proto__x", *subjects)
        await page.evaluate("followed[0].ready.catch(({ code }) => code)")
        await page.evaluate("Promise.allSettled(followed.map(({ ready }) => ready))")
        for subject in subjects:
            await publisher.send(subject, *(payload.encode() for payload in HOSTILE))
        open_ones = [subject for subject in subjects if not subject.startswith("_")]
        await true(page, f"messages.length === {len(open_ones) * len(HOSTILE)}")
        assert await page.evaluate("messages.map(({ subject }) => subject)") == [
            subject for subject in open_ones for _ in HOSTILE
        ]
        assert await page.evaluate("({}).polluted ?? null") is None
        assert await page.evaluate("nats.status.state") == "connected"


async def open_tab(context: BrowserContext, url: str, share: str, *patterns: str) -> Page:
    page = await context.new_page()
    await page.goto(url)
    await begin(page, {"transports": ["sse"], "share": share}, *patterns)
    return page


async def test_fifty_tabs_share_one_stream(
    context: BrowserContext, shared_nats: NatsServer, publisher: Publisher
) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats) as (bridge, box):
        tabs = await asyncio.gather(*(open_tab(context, box.url, "ada", subject) for _ in range(50)))
        other = await open_tab(context, box.url, "bob", publisher.subject("b"))
        for tab in (*tabs, other):
            await tab.evaluate("followed[0].ready")
        assert box.streams == 2
        assert len(bridge.extension.sessions) == 2
        await publisher.send(subject, b"1")
        for tab in tabs:
            await true(tab, "messages.length === 1")

        # The one that holds the lock leads.
        name = "(await navigator.locks.query()).held.find(({ name }) => name.includes('\"ada\"')).clientId"
        holder = await tabs[0].evaluate(f"(async () => {name})()")
        mine = """(async () => { const name = crypto.randomUUID(); return navigator.locks.request(name, async () =>
          (await navigator.locks.query()).held.find((lock) => lock.name === name).clientId) })()"""
        clients = [await tab.evaluate(mine) for tab in tabs]
        leader = tabs.pop(clients.index(holder))
        await leader.close()
        closed = time.monotonic()
        for tab in tabs:
            await true(tab, "seen('gap').length")
        assert time.monotonic() - closed < 2
        await until(
            lambda: sorted(set(s.subscriptions) == {subject} for s in bridge.extension.sessions) == [False, True]
        )
        for tab in tabs:
            await tab.evaluate("messages.length = 0")
        await publisher.send(subject, b"2")
        for tab in tabs:
            await true(tab, "messages.length === 1")
            assert await tab.evaluate(RECONNECT_GAP) == [[[subject], None, "reconnect"]]
        assert await other.evaluate("messages.length") == 0
        assert box.streams == 3


async def test_in_a_shared_stream_each_tab_has_what_it_asked_for(
    context: BrowserContext, shared_nats: NatsServer, publisher: Publisher
) -> None:
    async with serving(shared_nats, max_subscriptions=2) as (bridge, box):
        a, b, c = (publisher.subject(name) for name in "abc")
        first = await open_tab(context, box.url, "ada", a, b)
        await ready(first, "sse")
        second = await open_tab(context, box.url, "ada", b)
        await ready(second, "sse")
        assert (
            await second.evaluate(f"nats.subscribe('{c}').ready.catch(({{ code }}) => code)") == "limit.subscriptions"
        )
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
        third = await open_tab(context, box.url, "ada", c)
        await ready(third, "sse")
        await third.close()
        await until(lambda: set(session.subscriptions) == {b})


async def test_a_leader_that_hangs_is_deposed(
    context: BrowserContext, shared_nats: NatsServer, publisher: Publisher
) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats, heartbeat=0.5) as (bridge, box):
        leader = await open_tab(context, box.url, "ada", subject)
        await ready(leader, "sse")
        other = await open_tab(context, box.url, "ada", subject)
        await ready(other, "sse")
        await leader.evaluate(
            """() => {
              window.post = BroadcastChannel.prototype.postMessage;
              BroadcastChannel.prototype.postMessage = () => {};
            }"""
        )
        # The one that hangs may take the lock back at once; the other then waits 15 s for a welcome.
        await true(other, "seen('gap').length", 30)
        await leader.evaluate("() => { BroadcastChannel.prototype.postMessage = post; }")
        await back(leader, bridge, publisher, subject)
        await back(other, bridge, publisher, subject)


async def test_a_dead_link_deposes_no_leader(
    context: BrowserContext, shared_nats: NatsServer, publisher: Publisher
) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats, heartbeat=1) as (bridge, box):
        tabs = [await open_tab(context, box.url, "ada", subject) for _ in range(6)]
        for tab in tabs:
            await ready(tab, "sse")
        box.silent = True
        for tab in tabs:
            await true(tab, "seen('status').some(({ state }) => state === 'waiting')")
        box.silent = False
        box.cut()
        for tab in tabs:
            await true(tab, "seen('gap').length")
            await back(tab, bridge, publisher, subject)
            assert await tab.evaluate(RECONNECT_GAP) == [[[subject], None, "reconnect"]]


@pytest.mark.parametrize("refused", [False, True])
async def test_where_locks_are_refused_each_tab_has_its_own_stream(
    context: BrowserContext, shared_nats: NatsServer, publisher: Publisher, refused: bool
) -> None:
    # As Chromium does where cookies are blocked.
    refuse = "Promise.reject(new DOMException('Access is denied', 'SecurityError'))"
    if refused:
        await context.add_init_script(f"if (navigator.locks) navigator.locks.request = () => {refuse}")
    async with serving(shared_nats) as (_, box):
        for _ in range(2):
            await ready(await open_tab(context, box.url, "ada", publisher.subject("a")), "sse")
        assert box.streams == (2 if refused else 1)


async def test_without_locks_each_tab_has_its_own_stream(
    context: BrowserContext, shared_nats: NatsServer, publisher: Publisher
) -> None:
    await context.add_init_script("Object.defineProperty(Navigator.prototype, 'locks', { value: undefined })")
    async with serving(shared_nats) as (_, box):
        for _ in range(2):
            await ready(await open_tab(context, box.url, "ada", publisher.subject("a")), "sse")
        assert box.streams == 2
