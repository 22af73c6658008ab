import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from multidict import CIMultiDictProxy
from sanic import HTTPResponse, Request, Sanic
from sanic.response import BaseHTTPResponse, text

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import SERVERS, WAIT_SECONDS, Bridge, ServerName, running
from tests.support.raw import raw_connection

ALLOWED = "https://app.example"
OTHER = "https://shop.example"
FOREIGN = "https://evil.example"

# What an app may have set for its other routes, as the environment gives it to sanic-ext.
APPS_CORS: dict[str, dict[str, str]] = {
    "all origins, reflected": {"ORIGINS": "*", "ALWAYS_SEND": "true"},
    "all origins, by wildcard": {"ORIGINS": "*", "SEND_WILDCARD": "true"},
    "another": {"ORIGINS": f"{OTHER},{FOREIGN}", "SUPPORTS_CREDENTIALS": "true", "EXPOSE_HEADERS": "x-mark"},
    "none": {},
}

Answer = tuple[int, CIMultiDictProxy[str]]


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> ServerName:
    name: ServerName = request.param
    return name


def add_permissive_middleware(app: Sanic[Any, Any]) -> None:
    """Give the app a route, and a response middleware that opens everything."""

    @app.get("/own")
    async def own(request: Request) -> HTTPResponse:
        return text("own")

    @app.on_response  # type: ignore[untyped-decorator]
    async def reflect(request: Request, response: HTTPResponse) -> None:
        response.headers["Access-Control-Allow-Origin"] = request.headers.get("origin", "*")
        response.headers["Access-Control-Allow-Credentials"] = "true"
        response.headers["Vary"] = "Accept-Encoding"


@pytest.fixture(params=APPS_CORS)
async def bridge(
    request: pytest.FixtureRequest, shared_nats: NatsServer, server: ServerName, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bridge]:
    """Serve a bridge with one allowed origin, in an app with CORS settings of its own."""
    for name, value in APPS_CORS[request.param].items():
        monkeypatch.setenv(f"SANIC_CORS_{name}", value)
    async with running(
        servers=shared_nats.url, subscribe=[">"], allowed_origins=[ALLOWED], metrics=True, server=server
    ) as served:  # fmt: skip
        yield served


async def ask(bridge: Bridge, method: str, path: str, origin: str | None = None, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()} | ({"Origin": origin} if origin else {})
    async with bridge.http.request(method, bridge.url + path, headers=named) as response:
        return response.status, response.headers


def cors(headers: CIMultiDictProxy[str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items() if name.lower().startswith("access-control-")}


def varies(headers: CIMultiDictProxy[str]) -> list[str]:
    return sorted(word.strip().lower() for value in headers.getall("Vary", []) for word in value.split(","))


ADMITTED = {"access-control-allow-origin": ALLOWED, "access-control-allow-credentials": "true"}
SHOWN = ADMITTED | {"access-control-expose-headers": "retry-after, sanic-nats-bridge"}
PREFLIGHT = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "content-type"}
ANSWERS = [
    ("GET", "/events", 200), ("HEAD", "/events", 200), ("GET", "/events?subjects=a..b", 400),
    ("POST", "/events", 405), ("POST", "/subscribe", 415), ("GET", "/subscribe", 405), ("POST", "/unsubscribe/", 415),
]  # fmt: skip


async def test_allowed_origin_gets_cors_headers_on_every_response(bridge: Bridge) -> None:
    for method, path, status in ANSWERS:
        answered, headers = await ask(bridge, method, path, ALLOWED)
        assert (method, path, answered, cors(headers)) == (method, path, status, SHOWN)
        assert varies(headers) == ["origin"]


async def test_other_origins_get_no_cors_headers(bridge: Bridge) -> None:
    own = f"http://127.0.0.1:{bridge.port}"
    for method, path, status in ANSWERS:
        for origin in (None, own, FOREIGN, OTHER, "null"):
            answered, headers = await ask(bridge, method, path, origin)
            known = origin in (None, own) or status == 405
            assert (method, path, origin, answered) == (method, path, origin, status if known else 403)
            assert cors(headers) == {}
            assert varies(headers) == ["origin"]


async def test_health_and_metrics_have_cors_headers_for_allowed_origins(bridge: Bridge) -> None:
    for path in ("/health/live", "/health/ready", "/metrics"):
        for origin, shown in ((ALLOWED, SHOWN), (None, {}), (FOREIGN, {}), (OTHER, {})):
            status, headers = await ask(bridge, "GET", path, origin)
            assert (path, origin, status, cors(headers)) == (path, origin, 200, shown)


async def test_preflight_succeeds_for_allowed_origins_only(bridge: Bridge) -> None:
    for path in ("/events", "/subscribe", "/unsubscribe"):
        status, headers = await ask(bridge, "OPTIONS", path, ALLOWED, **PREFLIGHT)
        assert status == 204
        assert cors(headers) == ADMITTED | {
            "access-control-allow-methods": "GET, HEAD, POST",
            "access-control-allow-headers": "authorization, content-type, last-event-id",
            "access-control-max-age": "600",
        }
        assert varies(headers) == ["origin"]
        for origin in (FOREIGN, OTHER):
            status, headers = await ask(bridge, "OPTIONS", path, origin, **PREFLIGHT)
            assert (status, cors(headers)) == (403, {})


async def test_app_keeps_own_cors_on_other_routes(
    bridge: Bridge, request: pytest.FixtureRequest, server: ServerName
) -> None:
    expected = {
        "all origins, reflected": FOREIGN, "all origins, by wildcard": "*", "another": FOREIGN, "none": None,
    }[request.node.callspec.params["bridge"]]  # fmt: skip
    async with bridge.http.get(f"http://127.0.0.1:{bridge.port}/docs", headers={"Origin": FOREIGN}) as response:
        assert response.status == 200
        assert response.headers.get("Access-Control-Allow-Origin") == expected


@pytest.mark.parametrize("bridge", ["none"], indirect=True)
@pytest.mark.parametrize("server", ["sanic"])
async def test_errors_of_sanic_have_no_cors_headers(bridge: Bridge) -> None:
    head = f"GET /nats/events?{'a' * 20_000} HTTP/1.1\r\nHost: localhost\r\nOrigin: {FOREIGN}\r\n\r\n"
    async with raw_connection(bridge.port, head) as (reader, _):
        answer = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_SECONDS)).lower()
        assert answer.startswith(b"http/1.1 413")
        assert b"access-control-" not in answer


async def test_app_middleware_cannot_override_cors_headers(
    shared_nats: NatsServer, server: ServerName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANIC_CORS", "false")  # sanic-ext's own replaces every Vary

    def prepare(app: Sanic[Any, Any]) -> None:
        add_permissive_middleware(app)

        async def replace(request: Request, response: BaseHTTPResponse) -> HTTPResponse | None:
            if request.method == "GET":
                return None
            # A response that a middleware returns keeps those behind it from running.
            return HTTPResponse("other", response.status, {"Access-Control-Allow-Origin": "*", "X-Replaced": "yes"})

        app.register_middleware(replace, "response", priority=-10_000_000)

    async with running(
        servers=shared_nats.url, allowed_origins=ALLOWED, prepare=prepare, server=server
    ) as bridge:  # fmt: skip
        for method, path, status in (("GET", "/events", 200), ("POST", "/subscribe", 415), ("HEAD", "/events", 200)):
            for origin, shown in ((ALLOWED, SHOWN), (FOREIGN, {})):
                answered, headers = await ask(bridge, method, path, origin)
                assert (answered, cors(headers)) == (status if shown else 403, shown)
                assert "origin" in varies(headers)
                assert ("X-Replaced" in headers) == (method != "GET")
        _, headers = await ask(bridge, "GET", "/events", ALLOWED)
        assert varies(headers) == ["accept-encoding", "origin"]
        async with bridge.http.get(f"http://127.0.0.1:{bridge.port}/own", headers={"Origin": FOREIGN}) as response:
            assert response.headers["Access-Control-Allow-Origin"] == FOREIGN
            assert response.headers["Vary"] == "Accept-Encoding"
