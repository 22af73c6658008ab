"""The example's page in a real browser, by https through nginx and HAProxy."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS, Publisher, until
from tests.support.example import ExampleApp
from tests.support.proxies import PROXIES, ProxyName, running_proxy
from tools.harness.certificates import Certificate
from tools.harness.chromium import chromium

expect.set_options(timeout=3_000 * WAIT_SECONDS)

OPEN = """([subject, count]) => {
  window.got = [];
  window.sources = [...Array(count).keys()].map((number) => {
    const source = new EventSource(`/events?subjects=${subject}.${number}&subjects=${subject}.all`);
    source.onmessage = ({ data }) => got.push(JSON.parse(data).data);
    return new Promise((resolve) => source.addEventListener("reply", () => resolve(source)));
  });
  return Promise.all(sources).then((opened) => { window.sources = opened; return opened.length; });
}"""


@pytest.fixture(scope="module")
def example(shared_nats: NatsServer) -> Iterator[ExampleApp]:
    settings = {
        "SANIC_PROXIES_COUNT": "1",
        "SANIC_NATS_BRIDGE_UNSUBSCRIBE_DELAY": "0.1",
        "SANIC_NATS_BRIDGE_RETRY": "0.2",
    }
    with ExampleApp("--nats", shared_nats.url, **settings) as app:
        yield app


async def wait_until_true(page: Page, fact: str) -> None:
    # Playwright's own function evaluates in the page, whose policy does not let it.
    async with asyncio.timeout(WAIT_SECONDS):
        while not await page.evaluate(fact):
            pass


@pytest.mark.parametrize("name", PROXIES)
async def test_page_works_behind_proxy(
    name: ProxyName,
    example: ExampleApp,
    certificate: Certificate,
    tmp_path: Path,
    publisher: Publisher,
    shared_nats: NatsServer,
) -> None:
    async with chromium() as browser:
        with running_proxy(name, certificate, tmp_path, (example.port, example.port)) as proxy:
            page = await browser.new_page(ignore_https_errors=True)
            await page.goto(f"https://localhost:{proxy.ports['https']}/")
            state, count = page.locator("#state"), page.locator("#count")
            await expect(state).to_have_text("Connected")
            await page.click("#subscribe button")
            await expect(count).not_to_have_text("0 messages")
            await page.check("input[value=sse]", force=True)
            await expect(page.locator("#used")).to_have_text("Server-Sent Events")
            await expect(state).to_have_text("Connected")
            await page.click("#clear")
            await expect(count).not_to_have_text("0 messages")
            protocol = await page.evaluate("performance.getEntriesByType('navigation')[0].nextHopProtocol")
            assert protocol == "h2"

            # More than the six that HTTP/1.1 gives a browser.
            subject = publisher.base
            assert await page.evaluate(OPEN, [subject, 8]) == 8
            await publisher.send(f"{subject}.all", b"7")
            await wait_until_true(page, "got.length === 8")
            await page.evaluate("sources.slice(0, 4).forEach((source) => source.close())")
            gone = {f"{subject}.{number}" for number in range(4)}
            await until(lambda: not gone & set(shared_nats.subscriptions()))
            assert {f"{subject}.{number}" for number in range(4, 8)} <= set(shared_nats.subscriptions())

            # While the app is down, its event sources get responses that they don't treat as final.
            tried: list[int] = []
            page.on("response", lambda response: tried.append(response.status) if "/events?" in response.url else None)
            await asyncio.to_thread(example.end, signal.SIGKILL)
            await until(lambda: len(tried) >= 5)
            await asyncio.to_thread(example.start)
            # The client waits for up to 20 s before it reconnects.
            await expect(state).to_have_text("Connected")
            await wait_until_true(page, "sources.slice(4).every((source) => source.readyState === 1)")
            assert set(tried) == {200}
