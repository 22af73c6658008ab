import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
import pytest
from sanic import Sanic

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import SERVERS, WAIT_SECONDS, Bridge, ServerName, running, until
from tests.support.process import managed_process

READY = {"ready": True, "stopping": False, "nats": "connected", "control": "connected"}
FOREIGN = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> ServerName:
    name: ServerName = request.param
    return name


async def request_health(
    bridge: Bridge, which: str, method: str = "GET", headers: Mapping[str, str] | None = None
) -> Any:
    async with bridge.http.request(method, f"{bridge.url}/health/{which}", headers=headers) as response:
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["Content-Type"] == "application/json"
        return response.status, await response.json() if method == "GET" else await response.read()


async def test_serving_worker_is_live_and_ready(bridge: Bridge) -> None:
    assert await request_health(bridge, "live") == (200, {"live": True})
    assert await request_health(bridge, "ready") == (200, READY)


async def test_head_response_has_no_body(bridge: Bridge) -> None:
    for _ in range(2):  # on one connection: a body would be taken for the next answer
        assert await request_health(bridge, "live", "HEAD") == (200, b"")
        assert await request_health(bridge, "ready", "HEAD") == (200, b"")


async def test_stopping_worker_is_live_but_not_ready(bridge: Bridge) -> None:
    bridge.runtime.sessions.close_all("The server is going away")
    assert await request_health(bridge, "live") == (200, {"live": True})
    status, body = await request_health(bridge, "ready")
    assert (status, body["ready"], body["stopping"]) == (503, False, True)
    assert await request_health(bridge, "ready", "HEAD") == (503, b"")


@pytest.mark.parametrize("needed", [False, True], ids=["not needed", "needed"])
async def test_readiness_requires_nats_only_if_configured(
    nats_server: NatsServer, needed: bool, server: ServerName
) -> None:
    nats_server.stop()
    async with running(servers=nats_server.url, connected=False, ready_needs_nats=needed, server=server) as bridge:
        assert await request_health(bridge, "live") == (200, {"live": True})
        away = {"ready": not needed, "stopping": False, "nats": "disconnected", "control": "disconnected"}
        assert await request_health(bridge, "ready") == (503 if needed else 200, away)
        nats_server.start()
        await until(lambda: bridge.runtime.sessions.hub.connected and bridge.runtime.control.ready)
        assert await request_health(bridge, "ready") == (200, READY)


async def test_health_routes_accept_any_origin(bridge: Bridge) -> None:
    for which in ("live", "ready"):
        status, _ = await request_health(bridge, which, headers=FOREIGN)
        assert status == 200
    async with bridge.http.head(f"{bridge.url}/events", headers=FOREIGN) as response:
        assert response.status == 403


async def test_health_response_does_not_wait_for_body(shared_nats: NatsServer) -> None:
    async with running(servers=shared_nats.url) as bridge:
        reader, writer = await asyncio.open_connection("127.0.0.1", bridge.port)
        writer.write(b"GET /nats/health/live HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n")
        async with asyncio.timeout(WAIT_SECONDS):
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("auto_head", [True, False])
async def test_head_is_served_with_or_without_sanic_ext_auto_head(shared_nats: NatsServer, auto_head: bool) -> None:
    def prepare(app: Sanic[Any, Any]) -> None:
        app.config.HTTP_AUTO_HEAD = auto_head
        app.config.HTTP_AUTO_OPTIONS = auto_head

    async with running(servers=shared_nats.url, prefix="", prepare=prepare) as bridge:
        assert await request_health(bridge, "live", "HEAD") == (200, b"")
        assert await request_health(bridge, "ready") == (200, READY)


async def test_sanic_ext_health_extension_works_alongside_bridge(shared_nats: NatsServer) -> None:
    configuration = {"HEALTH": "true", "HEALTH_ENDPOINT": "true", "HEALTH_MONITOR": "false"}
    configuration |= {"NATS_BRIDGE_SERVERS": shared_nats.url, "NATS_BRIDGE_PREFIX": "", "NATS_BRIDGE_METRICS": "true"}
    async with (
        managed_process(configuration) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http,
    ):
        async with http.get("/__health__/") as response:
            assert (await response.json())["Sanic-Server-0-0"]["state"] == "ACKED"
        for path in ("/health/live", "/health/ready", "/metrics", "/__health__/"):
            for method in ("GET", "HEAD"):
                async with http.request(method, path) as response:
                    assert response.status == 200, (method, path)
                    assert bool(await response.read()) == (method == "GET")
