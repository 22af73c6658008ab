"""The header of the bridge's own responses, which those of the app don't have."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from sanic import HTTPResponse, Request, Sanic
from sanic.exceptions import MethodNotAllowed
from sanic.response import BaseHTTPResponse, html, redirect, text

from sanic_nats_bridge import Permissions
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS, Bridge, ServerName, running, until
from tests.support.raw import UPGRADE, raw_connection

ALLOWED = "https://app.example"
FOREIGN = "https://evil.example"
JSON = "application/json"
EACH_SERVER: tuple[ServerName, ...] = ("sanic", "uvicorn", "hypercorn")


@pytest.fixture(params=EACH_SERVER)
def server(request: pytest.FixtureRequest) -> ServerName:
    name: ServerName = request.param
    return name


def permissions(request: Request) -> Permissions | None:
    """Return the permissions of a client, by a header."""
    client = request.headers.get("x-client")
    if client == "broken":
        raise RuntimeError("the app's own fault")
    return None if client == "unknown" else Permissions(["a"])


@pytest.fixture
async def bridge(shared_nats: NatsServer, server: ServerName) -> AsyncIterator[Bridge]:
    async with running(
        servers=shared_nats.url,
        permissions=permissions,
        allowed_origins=ALLOWED,
        metrics=True,
        command_rate=0.001,
        command_burst=1,
        max_sessions=1,
        server=server,
    ) as served:
        yield served


async def ask(
    http: aiohttp.ClientSession, method: str, url: str, status: int, body: bytes | None = None, **headers: str
) -> list[str]:
    """Send a request, check the status, and return the values of the bridge's header."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with http.request(method, url, data=body, headers=named, allow_redirects=False) as response:
        assert (method, url, response.status) == (method, url, status)
        return response.headers.getall("Sanic-Nats-Bridge", [])


async def test_every_response_of_a_route_has_the_header_once(bridge: Bridge) -> None:
    async def check(method: str, path: str, status: int, body: bytes | None = None, **headers: str) -> None:
        before = len(bridge.extension.sessions)
        assert await ask(bridge.http, method, bridge.url + path, status, body, **headers) == ["1"], (method, path)
        # A stream that is still there would fill the worker.
        await until(lambda: len(bridge.extension.sessions) == before)

    for method in ("GET", "HEAD"):
        await check(method, "/events?subjects=a", 200)
        await check(method, "/events?subjects=a..b", 400)
        await check(method, "/events", 401, X_Client="unknown")
        await check(method, "/events?subjects=b", 403)
        await check(method, "/events", 403, Origin=FOREIGN)
        await check(method, "/stream", 400)
        for path in ("/health/live", "/health/ready", "/metrics", "/client.js", "/share.js"):
            await check(method, path, 200)
        await check(method, "/client.js", 304, If_None_Match="*")
        await check(method, "/client.js", 200, Origin=FOREIGN)
    for path in ("/events", "/subscribe", "/unsubscribe", "/stream"):
        await check("OPTIONS", path, 204, Origin=ALLOWED)
        await check("OPTIONS", path, 403, Origin=FOREIGN)
    await check("POST", "/subscribe", 415)
    await check("POST", "/subscribe", 400, b"{", Content_Type=JSON)
    await check("POST", "/subscribe", 404, b'{"session": "x", "subjects": ["a"]}', Content_Type=JSON)
    await check("POST", "/subscribe", 413, b" " * 70_000, Content_Type=JSON)
    await check("POST", "/subscribe", 500, b'{"session": "x", "subjects": ["a"]}', X_Client="broken", Content_Type=JSON)
    async with bridge.events() as client:
        async with bridge.http.get(f"{bridge.url}/events") as full:
            assert b"1013" in await full.read()
            assert full.headers.getall("Sanic-Nats-Bridge") == ["1"]
        command = b'{"session": "%b", "subjects": ["a"]}' % client.session.encode()
        await check("POST", "/subscribe", 200, command, Content_Type=JSON)
        await check("POST", "/unsubscribe", 429, command, Content_Type=JSON)
    bridge.runtime.sessions.close_all("The server is going away")
    await check("GET", "/health/ready", 503)


async def test_405_of_sanic_at_a_route_has_the_header(bridge: Bridge) -> None:
    for path in ("/events", "/stream", "/health/live", "/metrics", "/client.js", "/events/"):
        assert await ask(bridge.http, "POST", bridge.url + path, 405) == ["1"]
    assert await ask(bridge.http, "GET", f"{bridge.url}/subscribe", 405) == ["1"]


@pytest.mark.parametrize("server", ["sanic"])
async def test_refused_websocket_handshake_has_the_header(bridge: Bridge) -> None:
    refusals = {
        "Origin: https://evil.example\r\n": b"403",
        "Content-Length: 1\r\n": b"400",
        "Sec-WebSocket-Key: x\r\n": b"400",
    }
    for more, status in refusals.items():
        request = f"GET /nats/stream HTTP/1.1\r\n{UPGRADE}{more}\r\n"
        async with raw_connection(bridge.port, request) as (reader, _):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_SECONDS)
            assert head.startswith(b"HTTP/1.1 " + status)
            assert b"\r\nsanic-nats-bridge: 1\r\n" in head


async def test_scripts_of_allowed_origins_can_read_the_header(bridge: Bridge) -> None:
    for method, path in (("GET", "/events"), ("HEAD", "/events"), ("POST", "/subscribe"), ("GET", "/health/live")):
        async with bridge.http.request(method, bridge.url + path, headers={"Origin": ALLOWED}) as response:
            exposed = response.headers["Access-Control-Expose-Headers"]
            assert [name.strip() for name in exposed.split(",")] == ["retry-after", "sanic-nats-bridge"]


async def test_responses_of_the_app_do_not_have_the_header(shared_nats: NatsServer, server: ServerName) -> None:
    def prepare(app: Sanic[Any, Any]) -> None:
        @app.on_request
        async def login(request: Request) -> HTTPResponse | None:
            stopped = request.headers.get("x-stop")
            return {"redirect": redirect("/login"), "page": html("log in", 403)}.get(stopped or "")

        @app.on_response  # type: ignore[untyped-decorator]
        async def replace(request: Request, response: BaseHTTPResponse) -> HTTPResponse | None:
            return text("replaced", 404) if request.headers.get("x-stop") == "replace" else None

        @app.exception(MethodNotAllowed)
        async def not_allowed(request: Request, error: Exception) -> HTTPResponse:
            return text("not here", 405)

        @app.route("/<path:path>", methods=["GET", "POST"])
        async def catch_all(request: Request, path: str) -> HTTPResponse:
            if path == "refused":
                raise MethodNotAllowed("not now", "GET", ["POST"])
            return html("the frontend", 404)

    async with running(servers=shared_nats.url, prepare=prepare, server=server) as bridge:
        for path in ("/events", "/client.js", "/health/live"):
            url = bridge.url + path
            assert await ask(bridge.http, "GET", url, 302, X_Stop="redirect") == []
            assert await ask(bridge.http, "GET", url, 403, X_Stop="page") == []
            assert await ask(bridge.http, "GET", url, 404, X_Stop="replace") == []
            assert await ask(bridge.http, "POST", url, 405) == []
            assert await ask(bridge.http, "GET", url, 200) == ["1"]
        assert await ask(bridge.http, "GET", f"{bridge.url}/nothing", 404) == []
        assert await ask(bridge.http, "GET", f"http://127.0.0.1:{bridge.port}/refused", 405) == []


async def test_other_paths_of_sanic_do_not_have_the_header(bridge: Bridge) -> None:
    for path in ("/nothing", "/events/more"):
        assert await ask(bridge.http, "GET", bridge.url + path, 404) == []
