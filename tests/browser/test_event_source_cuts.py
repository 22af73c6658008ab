"""The EventSource of browsers, without the browser client, while a proxy cuts its connections."""

import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import product
from pathlib import Path

import pytest
import pytest_asyncio

from sanic_nats_bridge.testing import NatsServer
from tests.browser.test_client import RUNNING
from tests.support.bridge import Bridge
from tests.support.browsers import BROWSERS, Browser, Profile, Tab
from tests.support.clock import moment
from tests.support.event_cuts import CUTS, FOLLOW, Cuts, CuttingProxy, EventStart, Receiver
from tests.support.history import Numbers, Stream, serving
from tests.support.streams import jetstream_fixture

pytestmark = pytest.mark.asyncio(loop_scope="module")

_PATTERNS = (("x.>",), ("x.>", "y"), ("x.>", "x.1"))
_PER_PAGE = 4
"""Browsers open six connections to one host and port."""
_STORED = 500


jetstream = jetstream_fixture("module")


@pytest_asyncio.fixture(loop_scope="module", params=BROWSERS)
async def profile(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Profile]:
    browser: Browser
    async with RUNNING[request.param](tmp_path) as browser, browser.profile() as profile:
        await profile.add_script(FOLLOW)
        yield profile


def receivers(stream: Stream) -> Iterator[Receiver]:
    starts: tuple[EventStart, ...] = ("all", "new")
    for patterns, start, _ in product(_PATTERNS, starts, range(2)):
        yield Receiver([stream.subject(each) for each in patterns], start)


@contextlib.asynccontextmanager
async def opened(profile: Profile, bridge: Bridge, cuts: Cuts, page: Sequence[Receiver]) -> AsyncIterator[Tab]:
    """Open a page with event streams that are cut."""
    async with CuttingProxy(bridge.port, cuts).running() as proxy:
        tab = await profile.tab()
        await tab.goto(f"{proxy.url}/")
        await tab.evaluate("(queries) => follow(queries)", [each.query(number) for number, each in enumerate(page)])
        yield tab
        await tab.close()


async def test_cut_event_sources_lose_and_double_nothing(profile: Profile, jetstream: NatsServer) -> None:
    async with Stream.created(jetstream) as stream, serving(jetstream, stream, retry=0.1) as (bridge, _):
        numbers = Numbers(stream)
        for _ in range(_STORED):
            await numbers.send(numbers.choose.choice(["x.1", "x.2", "y"]))
        cuts = Cuts(numbers.choose, CUTS)
        all_receivers = list(receivers(stream))
        async with contextlib.AsyncExitStack() as stack:
            pages: list[tuple[Tab, Sequence[Receiver]]] = []
            for first in range(0, len(all_receivers), _PER_PAGE):
                page = all_receivers[first : first + _PER_PAGE]
                pages.append((await stack.enter_async_context(opened(profile, bridge, cuts, page)), page))

            async def take() -> None:
                await moment()
                for tab, page in pages:
                    for receiver, (got, wrong) in zip(page, await tab.evaluate("taken()"), strict=True):
                        assert wrong == []
                        for entry in got:
                            receiver.note(*entry)

            async with numbers.publishing("x.1", "x.2", "y"):
                while cuts.left:
                    await take()
            while not all(each.is_complete(numbers.expected) for each in all_receivers):
                await take()
    for receiver in all_receivers:
        receiver.check(numbers.expected)
    assert {moment for moment, _ in cuts.kinds} == {"start", "replay", "live"}
