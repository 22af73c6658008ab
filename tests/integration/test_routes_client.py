import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import sanic_nats_bridge
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import SERVERS, Bridge, ServerName, running

MODULE = (Path(sanic_nats_bridge.__file__).parent / "browser" / "client.js").read_bytes()
ALLOWED = "https://app.example"


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> ServerName:
    name: ServerName = request.param
    return name


@pytest.fixture(params=["/nats", ""], ids=["prefix", "no prefix"])
async def bridge(request: pytest.FixtureRequest, shared_nats: NatsServer, server: ServerName) -> AsyncIterator[Bridge]:
    async with running(
        servers=shared_nats.url, subscribe=["a"], prefix=request.param, allowed_origins=ALLOWED, server=server
    ) as served:  # fmt: skip
        yield served


async def ask(bridge: Bridge, method: str, url: str, **headers: str) -> tuple[int, Any, bytes]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with bridge.http.request(method, url, headers=named) as response:
        return response.status, response.headers, await response.read()


def addresses(bridge: Bridge) -> dict[str, str]:
    versioned = bridge.url.removesuffix(bridge.prefix) + bridge.extension.client_url
    return {f"{bridge.url}/client.js": "no-cache", versioned: "public, max-age=31536000, immutable"}


async def test_the_module_is_served_at_both_addresses(bridge: Bridge) -> None:
    assert re.fullmatch(rf"{bridge.prefix}/client-[0-9a-f]{{16}}\.js", bridge.extension.client_url)
    for url, caching in addresses(bridge).items():
        for method, expected in (("GET", MODULE), ("HEAD", b"")):
            status, headers, body = await ask(bridge, method, url)
            assert (status, body) == (200, expected)
            assert headers["Content-Type"] == "text/javascript; charset=utf-8"
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Cache-Control"] == caching
            assert re.fullmatch(r'"[0-9a-f]{32}"', headers["ETag"])
            assert "Access-Control-Allow-Origin" not in headers


async def test_a_browser_that_has_it_is_not_sent_it_again(bridge: Bridge) -> None:
    for url, caching in addresses(bridge).items():
        etag = (await ask(bridge, "GET", url))[1]["ETag"]
        for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
            for method in ("GET", "HEAD"):
                status, headers, body = await ask(bridge, method, url, If_None_Match=known)
                assert (status, body) == (304, b"")
                assert (headers["ETag"], headers["Cache-Control"]) == (etag, caching)
        for unknown in ('"other"', etag.strip('"'), ""):
            assert (await ask(bridge, "GET", url, If_None_Match=unknown))[0] == 200


async def test_pages_of_allowed_origins_alone_may_import_it(bridge: Bridge) -> None:
    for url in addresses(bridge):
        status, headers, _ = await ask(bridge, "GET", url, Origin=ALLOWED, Sec_Fetch_Site="cross-site")
        assert (status, headers["Access-Control-Allow-Origin"]) == (200, ALLOWED)
        assert headers["Vary"] == "origin"
        status, headers, _ = await ask(bridge, "GET", url, Origin="https://evil.example", Sec_Fetch_Site="cross-site")
        assert (status, headers.get("Access-Control-Allow-Origin")) == (403, None)
        for site in ("same-origin", "none"):
            assert (await ask(bridge, "GET", url, Sec_Fetch_Site=site))[0] == 200


async def test_no_other_version_is_served_and_nothing_is_changed_there(bridge: Bridge) -> None:
    for url in addresses(bridge):
        assert (await ask(bridge, "POST", url))[0] == 405
    assert (await ask(bridge, "GET", f"{bridge.url}/client-0123456789abcdef.js"))[0] == 404
