"""``client_url`` of an app behind a proxy that removes a prefix from the path."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sanic import HTTPResponse, Request, Sanic
from sanic.response import text

from sanic_nats_bridge import NatsBridge
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import SERVERS, Bridge, ServerName, running

FROM_PROXY = {"X-Forwarded-For": "192.0.2.1"}
SENT: dict[str, tuple[str, str]] = {
    "a path": ("/app", "/app"),
    "two segments": ("/apps/shop", "/apps/shop"),
    "a slash at the end": ("/app/", "/app"),
    "spaces around": ("  /app  ", "/app"),
    "a client's value before": ("/evil, /app", "/app"),
    "the root": ("/", ""),
    "nothing": ("", ""),
    "another host": ("//evil.example", ""),
    "another host after a client's value": ("/app,//evil.example", ""),
    "a URL": ("https://evil.example/app", ""),
    "no slash": ("app", ""),
    "a slash too many": ("/app//shop", ""),
    "dots": ("/app/../other", ""),
    "a quote": ('/app"', ""),
    "a tag": ("/app><script>", ""),
    "a query": ("/app?x", ""),
    "a backslash": ("/\\evil.example", ""),
    "a tab": ("/a\tpp", ""),
    "an escape": ("/a%0app", ""),
    "no ASCII": ("/größe", ""),
}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> ServerName:
    name: ServerName = request.param
    return name


def add_page(app: Sanic[Any, Any]) -> None:
    @app.get("/page")
    async def page(request: Request, bridge: NatsBridge) -> HTTPResponse:
        in_task = asyncio.create_task(asyncio.to_thread(lambda: bridge.client_url))
        assert await in_task == bridge.client_url
        return text(bridge.client_url)


@pytest.fixture
async def bridge(shared_nats: NatsServer, server: ServerName) -> AsyncIterator[Bridge]:
    async with running(servers=shared_nats.url, subscribe=["a"], server=server, prepare=add_page) as served:
        served.app.config.PROXIES_COUNT = 1
        yield served


async def prefix(bridge: Bridge, headers: dict[str, str] | list[tuple[str, str]]) -> str:
    """Return the prefix in the URL of the client on a page."""
    async with bridge.http.get(f"http://127.0.0.1:{bridge.port}/page", headers=headers) as response:
        before, path, rest = (await response.text()).partition(f"{bridge.prefix}/client-")
        assert path, rest
        return before


async def test_client_url_begins_with_forwarded_prefix(bridge: Bridge) -> None:
    for what, (value, expected) in SENT.items():
        assert (what, await prefix(bridge, FROM_PROXY | {"X-Forwarded-Prefix": value})) == (what, expected)
    assert await prefix(bridge, FROM_PROXY) == ""
    headers = [*FROM_PROXY.items(), ("X-Forwarded-Prefix", "/evil"), ("X-Forwarded-Prefix", "/app")]
    assert await prefix(bridge, headers) == "/app"


async def test_each_trusted_proxy_may_add_a_prefix(bridge: Bridge) -> None:
    bridge.app.config.PROXIES_COUNT = 2
    chain = {"X-Forwarded-For": "192.0.2.1, 192.0.2.2"}
    assert await prefix(bridge, chain | {"X-Forwarded-Prefix": "/evil, /apps, /shop/"}) == "/apps/shop"
    assert await prefix(bridge, chain | {"X-Forwarded-Prefix": "/apps"}) == "/apps"


async def test_forwarded_prefix_counts_only_if_sanic_trusts_proxy(bridge: Bridge) -> None:
    said = {"X-Forwarded-Prefix": "/app"}
    config = bridge.app.config
    assert await prefix(bridge, said) == "", "the request came through no proxy"
    config.PROXIES_COUNT = None
    assert await prefix(bridge, FROM_PROXY | said) == ""
    config.REAL_IP_HEADER = "x-real-ip"
    assert await prefix(bridge, FROM_PROXY | said) == ""
    assert await prefix(bridge, {"X-Real-IP": "192.0.2.1"} | said) == "/app"
    config.REAL_IP_HEADER = None
    config.FORWARDED_SECRET = "secret"
    assert await prefix(bridge, FROM_PROXY | said) == ""
    assert await prefix(bridge, {"Forwarded": "for=192.0.2.1;secret=wrong"} | said) == ""
    assert await prefix(bridge, {"Forwarded": "for=192.0.2.1;secret=secret"} | said) == "/app"


@pytest.mark.parametrize("setting", ["/shop", ""])
async def test_setting_takes_precedence_over_header(shared_nats: NatsServer, setting: str) -> None:
    async with running(servers=shared_nats.url, subscribe=["a"], public_prefix=setting, prepare=add_page) as bridge:
        bridge.app.config.PROXIES_COUNT = 1
        assert await prefix(bridge, FROM_PROXY | {"X-Forwarded-Prefix": "/app"}) == setting
        assert bridge.extension.client_url.startswith(f"{setting}/nats/client-")


async def test_client_url_outside_of_a_request_has_no_forwarded_prefix(bridge: Bridge) -> None:
    assert await prefix(bridge, FROM_PROXY | {"X-Forwarded-Prefix": "/app"}) == "/app"
    assert bridge.extension.client_url.startswith("/nats/client-")


async def test_routes_stay_at_the_path_that_reaches_the_app(shared_nats: NatsServer) -> None:
    async with running(servers=shared_nats.url, subscribe=["a"], public_prefix="/shop") as bridge:
        for path, status in (("/nats/client.js", 200), ("/shop/nats/client.js", 404)):
            async with bridge.http.get(f"http://127.0.0.1:{bridge.port}{path}") as response:
                assert response.status == status
