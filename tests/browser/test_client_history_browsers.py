"""The browser client in Chromium and Firefox on a bridge with history, while its connections are cut."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from sanic_nats_bridge.testing import NatsServer
from tests.browser.test_client import RUNNING
from tests.support.browsers import BROWSERS, Browser, Profile, Tab
from tests.support.client import BEGIN, begin, both, true
from tests.support.history import CUTS, Numbers, Stream, serving
from tests.support.streams import jetstream_fixture

pytestmark = pytest.mark.asyncio(loop_scope="module")

COUNT = """
  window.got = [];
  window.wrong = [];
  Math.random = ((random) => () => random() / 50)(Math.random); // short delays before it reconnects
  window.count = (transport, patterns) => begin({ transports: [transport] }).then(() => {
    nats.addEventListener("gap", ({ detail }) => wrong.push(detail));
    const follow = (pattern) => nats.subscribe(pattern, (data) => got.push([pattern, data])).caughtUp;
    return Promise.all(patterns.map(follow));
  });
"""


jetstream = jetstream_fixture("module")


@pytest_asyncio.fixture(loop_scope="module", params=BROWSERS)
async def profile(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Profile]:
    browser: Browser
    async with RUNNING[request.param](tmp_path) as browser, browser.profile() as profile:
        await profile.add_script(BEGIN + COUNT)
        yield profile


@pytest_asyncio.fixture(loop_scope="module")
async def tab(profile: Profile) -> Tab:
    return await profile.tab()


@both
async def test_cut_connections_lose_and_double_nothing(tab: Tab, jetstream: NatsServer, transport: str) -> None:
    async with Stream.created(jetstream) as stream, serving(jetstream, stream) as (_, proxy):
        numbers = Numbers(stream, "x.>", "x.1", "y")
        await tab.goto(f"{proxy.url}/")
        await tab.evaluate("([transport, patterns]) => count(transport, patterns)", [transport, numbers.patterns])
        taken = 0
        async with numbers.publishing("x.1", "x.2", "y", "z"):
            for _ in range(CUTS):
                await true(tab, f"got.length >= {taken + numbers.choose.choice([0, 1, 2, 30, 200])}")
                proxy.cut()
                taken = await tab.evaluate("got.length")
        read = 0
        while not numbers.are_complete:
            await true(tab, f"got.length > {read}")
            for pattern, number in await tab.evaluate(f"got.slice({read})"):
                numbers.note(pattern, number)
                read += 1
        assert await tab.evaluate("wrong") == []
    numbers.check()


async def test_leader_resumes_for_all_tabs_and_one_with_a_past_leaves_the_stream(
    profile: Profile, jetstream: NatsServer
) -> None:
    tabs = [await profile.tab() for _ in range(3)]
    async with Stream.created(jetstream) as stream, serving(jetstream, stream) as (_, proxy):
        subject = stream.subject("a")
        await stream.send("a", b"1")
        for tab in tabs:
            await tab.goto(f"{proxy.url}/")
            await begin(tab, {"transports": ["sse"], "share": "ada"}, subject)
            await tab.evaluate("followed[0].ready")
            await true(tab, "nats.status.state === 'connected'")
            assert await tab.evaluate("nats.status.shared") is True
        other = tabs[-1]
        await other.evaluate("followed[0].unsubscribe()")
        pattern = stream.subject(">")
        follow = "(data) => messages.push({ data })"
        await other.evaluate(f"nats.subscribe('{pattern}', {{ from: 'all' }}, {follow}).caughtUp.then(() => 1)")
        assert await other.evaluate("messages.map(({ data }) => data)") == [1]
        assert await other.evaluate("nats.status.shared") is False
        proxy.down = True
        proxy.cut()
        await stream.send("a", b"2", b"3")
        proxy.down = False
        for tab, expected in zip(tabs, [[2, 3, 4], [2, 3, 4], [1, 2, 3, 4]], strict=True):
            if tab is tabs[0]:
                for each in tabs:
                    await true(each, "messages.at(-1)?.data === 3")
                await stream.send("a", b"4")
            await true(tab, "messages.at(-1)?.data === 4")
            assert await tab.evaluate("messages.map(({ data }) => data)") == expected
            assert await tab.evaluate("seen('gap')") == []
