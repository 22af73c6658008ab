"""Apps behind proxies that remove a prefix from the path, by the configuration of the documents."""

import asyncio
import tomllib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from playwright.async_api import Browser, Page, Response, expect
from sanic import HTTPResponse, Request, Sanic
from sanic.response import html, text

from sanic_nats_bridge import NatsBridge
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS, Bridge, Publisher, running
from tests.support.docs import file_of
from tests.support.example import ExampleApp
from tests.support.proxies import PROXIES, Proxy, ProxyName, below_sub_path, running_proxy
from tools.harness.certificates import Certificate
from tools.harness.chromium import chromium

expect.set_options(timeout=1000 * WAIT_SECONDS)

GUIDE = "docs/guides/sub-paths.md"
FOLLOW = """<!doctype html><script type="module">
import {{ connect }} from "{client}";
window.got = [];
window.nats = connect({{ transports: ["{transport}"] }});
nats.subscribe("{subject}", (data) => got.push(data)).ready.then(() => document.body.append("ready"));
</script><body></body>"""


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


@pytest.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    """Open a page, and fail the test if it requests anything outside of the sub-path, or gets an error."""
    page = await browser.new_page(ignore_https_errors=True)
    page.set_default_timeout(1000 * WAIT_SECONDS)
    requested: list[str] = []
    refused: list[str] = []
    errors: list[str] = []

    def note(response: Response) -> None:
        if response.status >= 400:
            refused.append(response.url)

    page.on("request", lambda request: requested.append(request.url))
    page.on("websocket", lambda websocket: requested.append(websocket.url))
    page.on("response", note)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    await page.close()
    icon = {url for url in requested if url.endswith("/favicon.ico")}  # which a page without one has at the root
    assert {url for url in requested if not f"{urlsplit(url).path}/".startswith("/app/")} <= icon
    assert set(refused) <= icon
    assert errors == []


def add_pages(app: Sanic[Any, Any]) -> None:
    """Add a page with the client at ``client_url``, and one with the client at a relative URL."""
    app.config.PROXIES_COUNT = 1

    @app.get("/absolute")
    async def absolute(request: Request, bridge: NatsBridge) -> HTTPResponse:
        values = {name: request.args.get(name) for name in ("transport", "subject")}
        return html(FOLLOW.format(client=bridge.client_url, **values))

    @app.get("/relative")
    async def relative(request: Request) -> HTTPResponse:
        values = {name: request.args.get(name) for name in ("transport", "subject")}
        return html(FOLLOW.format(client="./nats/client.js", **values))

    @app.get("/url")
    async def url(request: Request, bridge: NatsBridge) -> HTTPResponse:
        return text(bridge.client_url)


@pytest.fixture
async def bridge(shared_nats: NatsServer) -> AsyncIterator[Bridge]:
    async with running(servers=shared_nats.url, subscribe=[">"], prepare=add_pages) as served:
        yield served


@pytest.fixture
def nginx(bridge: Bridge, certificate: Certificate, tmp_path: Path) -> Iterator[Proxy]:
    with running_proxy("nginx", certificate, tmp_path, (bridge.port,) * 2, changes=below_sub_path()) as proxy:
        yield proxy


@pytest.mark.parametrize("transport", ["websocket", "sse"])
@pytest.mark.parametrize("client", ["absolute", "relative"])
async def test_page_below_stripped_prefix_gets_messages(
    nginx: Proxy, page: Page, publisher: Publisher, client: str, transport: str
) -> None:
    subject = publisher.subject("a")
    origin = f"https://localhost:{nginx.ports['https']}"
    await page.goto(f"{origin}/app/{client}?transport={transport}&subject={subject}")
    await expect(page.locator("body")).to_have_text("ready")
    await publisher.send(subject, b"1", b"2")
    await page.wait_for_function("got.length === 2")
    assert await page.evaluate("got") == [1, 2]
    assert await page.evaluate("nats.status.transport") == transport


async def test_example_page_works_below_stripped_prefix(
    shared_nats: NatsServer, certificate: Certificate, tmp_path: Path, page: Page
) -> None:
    with (
        ExampleApp("--nats", shared_nats.url, SANIC_PROXIES_COUNT="1") as app,
        running_proxy("nginx", certificate, tmp_path, (app.port,) * 2, changes=below_sub_path()) as proxy,
    ):
        # nginx adds the slash at the end.
        await page.goto(f"https://localhost:{proxy.ports['https']}/app")
        assert page.url.endswith("/app/")
        await expect(page.locator("#state")).to_have_text("Connected")
        await page.click("#subscribe button")
        await expect(page.locator("#rows tr").first).to_contain_text("test.subject")


async def test_nginx_by_http10_passes_each_event_immediately(
    bridge: Bridge, certificate: Certificate, tmp_path: Path, publisher: Publisher
) -> None:
    older = {"proxy_http_version 1.1;": "proxy_http_version 1.0;"}
    subject = publisher.subject("a")
    with running_proxy("nginx", certificate, tmp_path, (bridge.port,) * 2, changes=below_sub_path() | older) as proxy:
        behind = Bridge(bridge.app, bridge.extension, proxy.ports["http"], "/app/nats", bridge.http)
        async with behind.events(subject) as client:
            for number in range(20):
                await publisher.send(subject, b"%d" % number)
                assert await client.data(1) == [number]


@pytest.mark.parametrize("name", PROXIES)
async def test_shipped_configurations_drop_the_prefix_of_a_client(
    name: ProxyName, shared_nats: NatsServer, certificate: Certificate, tmp_path: Path
) -> None:
    evil = {"X-Forwarded-Prefix": "/evil"}
    async with running(servers=shared_nats.url, prefix="", prepare=add_pages) as bridge:
        with running_proxy(name, certificate, tmp_path, (bridge.port,) * 2) as proxy:
            async with asyncio.timeout(WAIT_SECONDS):
                assert (await client_url(bridge.http, proxy, "/url", evil)).startswith("/client-")


async def test_nginx_below_sub_path_replaces_the_prefix_of_a_client(bridge: Bridge, nginx: Proxy) -> None:
    url = await client_url(bridge.http, nginx, "/app/url", {"X-Forwarded-Prefix": "/evil"})
    assert url.startswith("/app/nats/client-")


async def client_url(http: aiohttp.ClientSession, proxy: Proxy, path: str, headers: dict[str, str]) -> str:
    """Return ``client_url`` as a page gets it through the proxy."""
    while True:
        async with http.get(f"http://localhost:{proxy.ports['http']}{path}", headers=headers) as response:
            if response.status == 200:  # otherwise HAProxy hasn't checked the app yet
                return await response.text()


async def test_openapi_pages_work_below_prefix_in_server_name(bridge: Bridge, nginx: Proxy) -> None:
    origin = f"http://localhost:{nginx.ports['http']}"
    bridge.app.config.SERVER_NAME = f"{origin}/app"
    for page in ("docs/redoc", "docs/swagger"):
        async with bridge.http.get(f"{origin}/app/{page}") as response:
            document = f"{origin}/app/docs/openapi.json"
            assert document in await response.text()
    async with bridge.http.get(document) as response:
        assert "/nats/events" in (await response.json())["paths"]
    for source, status in ((origin, 200), ("https://evil.example", 403)):
        async with bridge.http.head(f"{origin}/app/nats/events", headers={"Origin": source}) as response:
            assert response.status == status


def test_configuration_of_traefik_is_complete() -> None:
    """Check the references in the guide's file, because Traefik isn't packaged by Debian."""
    http = tomllib.loads(file_of(GUIDE, "traefik.toml"))["http"]
    (router,) = http["routers"].values()
    assert set(router["middlewares"]) == http["middlewares"].keys()
    assert {router["service"]} == http["services"].keys()
    (middleware,) = http["middlewares"].values()
    (prefix,) = middleware["stripPrefix"]["prefixes"]
    assert f"PathPrefix(`{prefix}/`)" in router["rule"]
