"""The rule of docs/internals/proxies.md: the client gets what a bare EventSource gets, and is honest otherwise.

All set-ups are measured at the same time, in pages of one Chromium, until the verdict on each is good.
"""

import os
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
import pytest_asyncio

from tools.proxies.catalogue import CATALOGUE
from tools.proxies.measure import Length
from tools.proxies.results import SetupResult
from tools.proxies.run import run

pytestmark = pytest.mark.asyncio(loop_scope="module")

LANE = (
    "pass",
    "ws-403",
    "ws-swallowed",
    "ws-up-lost",
    "ws-up-cut",
    "ws-cut-2s",
    "post-403",
    "post-login",
    "post-swallowed",
    "head-405",
    "sse-flushed",
    "sse-gzip-flushed",
    "sse-cut-bytes",
    "cut-2s-6s",
    "deploy",
    "deploy-sse",
    "login",
    "nginx",
    "nginx-guide",
    "haproxy",
    "haproxy-guide",
    "tabs",
)
"""The set-ups for which `make test` has installed everything, and whose verdict takes seconds."""

UNREAD = {
    "sse-unread",
    "lighttpd",
    "http-proxy",
    "http-proxy-guide",
    "webpack",
    "webpack-guide",
    "webpack-guide-uncompressed",
}
"""The set-ups whose proxies read on after the browser has gone."""

NAMES = tuple(CATALOGUE) if "TOOLS_IN_FULL" in os.environ else LANE
"""The set-ups to measure: all in ``make test-tools``."""

LENGTH = Length(least=60, most=900, quiet=30, leave_seconds=60)
"""The most is only reached if a verdict stays bad."""

SETTINGS = {"heartbeat": 2}
"""Settings of the bridge. Clients notice silence within two heartbeats; `sse-flushed` is silent for two seconds."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def results(request: pytest.FixtureRequest) -> AsyncIterator[Mapping[str, SetupResult]]:
    """Measure the set-ups of the tests that were selected."""
    tests: list[Any] = [item for item in request.session.items if item.path == request.path]
    setups = [CATALOGUE[name] for name in NAMES if name in {test.callspec.params["name"] for test in tests}]
    found = await run(setups, LENGTH, rate=5, at_once=len(LANE), settings=SETTINGS, on_result=lambda _: None)
    yield {result.setup: result for result in found}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
async def test_client_gets_messages_of_bare_event_source_or_is_honest(
    name: str, results: Mapping[str, SetupResult]
) -> None:
    assert results[name].failures == []


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
async def test_bridge_notices_that_page_was_closed(name: str, results: Mapping[str, SetupResult]) -> None:
    assert (None in results[name].gone.values()) is (name in UNREAD)
