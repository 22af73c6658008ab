import ast
import asyncio
import json
import logging
import re
import ssl
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sanic import HTTPResponse, Request, Sanic
from sanic.application.constants import Mode
from sanic.compat import Header
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from sanic_nats_bridge.auth.hosts import HostPolicy
from sanic_nats_bridge.auth.origins import OriginPolicy
from sanic_nats_bridge.errors import ForbiddenHost, ForbiddenOrigin
from sanic_nats_bridge.log_limits import LINES, limited_logger
from sanic_nats_bridge.routes.request_guard import RequestGuard
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import SERVERS, WAIT_SECONDS, Bridge, ServerName, WebSocketClient, running, sanic_only
from tests.support.raw import UPGRADE, raw_connection, sessions

FOREIGN = "https://evil.example"
ALLOWED = "https://app.example"
REFUSED = {
    "type": "reply",
    "success": False,
    "code": "origin.forbidden",
    "message": "This origin is not allowed to use this server",
}
ROUTES = [
    ("GET", "/events"), ("GET", "/events/"), ("HEAD", "/events"), ("OPTIONS", "/events"),
    ("POST", "/subscribe"), ("OPTIONS", "/subscribe"), ("POST", "/unsubscribe"), ("OPTIONS", "/unsubscribe"),
    ("GET", "/stream"), ("OPTIONS", "/stream"),
]  # fmt: skip


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> ServerName:
    name: ServerName = request.param
    return name


async def status(bridge: Bridge, path: str = "/events", method: str = "HEAD", **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with bridge.http.request(method, bridge.url + path, headers=named) as response:
        return response.status


@pytest.mark.parametrize(
    "headers", [{"Origin": FOREIGN}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}], ids=str
)
async def test_foreign_page_is_rejected_on_every_route(bridge: Bridge, headers: dict[str, str]) -> None:
    asked: list[str] = []
    bridge.runtime.sessions.hub.acquire = lambda patterns, _: asked.extend(patterns)  # type: ignore[method-assign,assignment,misc]
    for method, path in ROUTES:
        async with bridge.http.request(
            method, bridge.url + path, json={"subjects": ["a"]}, params={"subjects": "a"}, headers=headers
        ) as response:
            assert response.status == 403, (method, path)
            assert response.headers["Content-Type"] == "application/json"
            assert response.headers["Cache-Control"] == "no-store"
            if method != "HEAD":
                reply = await response.json()
                assert {name: value for name, value in reply.items() if name != "action"} == REFUSED
    assert len(sessions(bridge)) == 0
    assert asked == []


async def test_websocket_of_foreign_page_is_rejected(bridge: Bridge, server: ServerName) -> None:
    address = bridge.url.replace("http", "ws") + "/stream"
    if server == "sanic":
        with pytest.raises(InvalidStatus) as refused:
            await connect(address, origin=FOREIGN)  # type: ignore[arg-type]
        assert refused.value.response.status_code == 403
        assert b"origin.forbidden" in refused.value.response.body
    else:
        async with connect(address, origin=FOREIGN) as connection:  # type: ignore[arg-type]
            frame = await WebSocketClient(connection).frame()
            assert frame == {
                "type": "close", "code": 4403, "reason": REFUSED["message"], "reconnect": False
            }  # fmt: skip
            with pytest.raises(ConnectionClosed) as closed:
                await connection.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4403
    assert len(sessions(bridge)) == 0


async def test_own_pages_and_non_browser_clients_are_accepted(bridge: Bridge) -> None:
    own = f"http://127.0.0.1:{bridge.port}"
    for headers in ({"Origin": own}, {"Sec_Fetch_Site": "same-origin"}, {"Sec_Fetch_Site": "none"}, {}):
        assert await status(bridge, **headers) == 200
        assert await status(bridge, "/subscribe", "POST", **headers) == 415
    async with bridge.websocket(origin=own), bridge.websocket():
        assert len(sessions(bridge)) == 2


async def test_pages_of_allowed_origin_are_accepted(shared_nats: NatsServer, server: ServerName) -> None:
    async with running(servers=shared_nats.url, server=server, allowed_origins=ALLOWED) as bridge:
        assert await status(bridge, Origin=ALLOWED, Sec_Fetch_Site="cross-site") == 200
        async with bridge.websocket(origin=ALLOWED):
            assert len(sessions(bridge)) == 1
        assert await status(bridge, Origin=FOREIGN) == 403


async def test_request_with_two_origins_is_rejected_before_handshake(shared_nats: NatsServer) -> None:
    async with running(servers=shared_nats.url, allowed_origins=ALLOWED) as bridge:
        request = f"GET /nats/stream HTTP/1.1\r\n{UPGRADE}" + f"Origin: {ALLOWED}\r\n" * 2 + "\r\n"
        async with raw_connection(bridge.port, request) as (reader, _):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_SECONDS)
            assert head.startswith(b"HTTP/1.1 403")


async def test_app_middleware_runs_before_guard_and_may_respond(shared_nats: NatsServer) -> None:
    def prepare(app: Sanic[Any, Any]) -> None:
        @app.middleware("request", priority=-100)
        async def tag(request: Request) -> HTTPResponse | None:
            request.ctx.tag = "seen"
            return HTTPResponse("mine", 401) if request.headers.get("authorization") == "wrong" else None

        @app.on_response  # type: ignore[untyped-decorator]
        async def show(request: Request, response: HTTPResponse) -> None:
            response.headers["X-Tag"] = request.ctx.tag

    async with running(servers=shared_nats.url, prepare=prepare) as bridge:
        async with bridge.http.get(f"{bridge.url}/events", headers={"Origin": FOREIGN}) as response:
            assert (response.status, response.headers["X-Tag"]) == (403, "seen")
        assert await status(bridge, Origin=FOREIGN, Authorization="wrong") == 401


FORWARDED = {"X_Forwarded_For": "192.0.2.1", "X_Forwarded_Host": "shop.example", "X_Forwarded_Proto": "https"}


async def test_forwarded_headers_count_only_if_sanic_trusts_proxy(shared_nats: NatsServer) -> None:
    origin = "https://shop.example"
    async with running(servers=shared_nats.url) as bridge:
        assert await status(bridge, Origin=origin, **FORWARDED) == 403
        # A plain proxy with TLS, which passes the Host header on: the scheme is not known.
        assert await status(bridge, Origin=origin, Host="shop.example") == 200
        assert await status(bridge, Origin="http://shop.example", Host="shop.example") == 200

        bridge.app.config.PROXIES_COUNT = 1
        assert await status(bridge, Origin=origin, **FORWARDED) == 200
        assert await status(bridge, Origin="http://shop.example", **FORWARDED) == 403
        port = {"X_Forwarded_Port": "8443"}
        assert await status(bridge, Origin=origin, **FORWARDED, **port) == 403
        assert await status(bridge, Origin=f"{origin}:8443", **FORWARDED, **port) == 200
        # A proxy that sends `wss` for a WebSocket.
        async with bridge.websocket(origin=origin, additional_headers={
            "X-Forwarded-For": "192.0.2.1", "X-Forwarded-Host": "shop.example", "X-Forwarded-Proto": "wss",
        }):  # fmt: skip
            assert len(sessions(bridge)) == 1


async def test_sanic_server_name_determines_own_origin(shared_nats: NatsServer) -> None:
    async with running(servers=shared_nats.url) as bridge:
        bridge.app.config.SERVER_NAME = "https://shop.example"
        assert await status(bridge, Origin="https://shop.example") == 200
        assert await status(bridge, Origin="http://shop.example") == 403
        assert await status(bridge, Origin="http://evil.example", Host="evil.example") == 403


async def test_scheme_is_compared_if_sanic_terminates_tls(shared_nats: NatsServer, server_tls: ssl.SSLContext) -> None:
    async with running(servers=shared_nats.url, server_options={"ssl": server_tls}) as bridge:
        for scheme, expected in (("https", 200), ("http", 403)):
            headers = {"Origin": f"{scheme}://shop.example", "Host": "shop.example"}
            url = f"https://127.0.0.1:{bridge.port}/nats/events"
            async with bridge.http.head(url, headers=headers, ssl=False) as response:
                assert response.status == expected


async def test_scheme_is_compared_if_asgi_server_reports_it(shared_nats: NatsServer) -> None:
    async with running(servers=shared_nats.url, server="uvicorn") as bridge:
        for scheme, expected in (("https", 200), ("http", 403)):
            headers = {"Origin": f"{scheme}://shop.example", "Host": "shop.example", "X_Forwarded_Proto": "https"}
            assert await status(bridge, **headers) == expected


async def test_each_rejected_origin_is_logged_once_with_remedy(
    shared_nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(servers=shared_nats.url) as bridge:
        for _ in range(2):
            await status(bridge, Origin=FOREIGN, Host="shop.example:80")
            await status(bridge, Origin="https://\u0435vil", Host="shop.example")
            await status(bridge, Sec_Fetch_Site="same-site")
        lines = [record.getMessage() for record in caplog.records if "Rejected" in record.getMessage()]
    assert len(lines) == 3
    assert "'https://evil.example' to host 'shop.example:80'" in lines[0]
    assert "add it to the setting 'allowed_origins'" in lines[0]
    assert "Origin header 'https://\\u0435vil' to host" in lines[1]
    assert "the setting 'allowed_origins' cannot name it" in lines[1]
    assert "'same-site'" in lines[2]


SENT = [
    FOREIGN,
    "http://evil.example:8080",
    f"https://{'.'.join(['x' * 61] * 4)}:65535",
    "http://[2001:db8::1]:8000",
    "file://",
    "capacitor://localhost",
    "ionic://localhost",
    "tauri://localhost",
    "app://.",
    "app://a,b;'c'",
    "qrc://",
    "chrome-extension://nkbihfbeogaeaoehlefnkodbefgpgknn",
    "safari-web-extension://E3449EA7-EC22-4CD5-9EDA-0D6FD2E16F32",
    "null",
]
UNNAMEABLE = ["file:///", "https://evil.example/", "https://*.evil.example", "app://\u0435vil", "", "x" * 1000]


async def test_advice_in_log_about_origin_works_if_followed_literally(
    shared_nats: NatsServer, server: ServerName, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def advised() -> list[str]:
        lines = [record.getMessage() for record in caplog.records if "Rejected a request from" in record.getMessage()]
        named = [re.search(r"from origin (\S+) to host .* to the setting 'allowed_origins'", line) for line in lines]
        return [ast.literal_eval(match[1]) for match in named if match is not None]

    async with running(servers=shared_nats.url, server=server) as bridge:
        for origin in SENT + UNNAMEABLE:
            assert await status(bridge, Origin=origin) == 403
    assert advised() == SENT
    assert sum("cannot name it" in record.getMessage() for record in caplog.records) == len(UNNAMEABLE)
    (null,) = [line for line in caplog.messages if "'null'" in line]
    assert "sandboxed frames of any website" in null

    async def check(bridge: Bridge) -> None:
        for origin in SENT:
            async with bridge.http.head(f"{bridge.url}/events", headers={"Origin": origin}) as response:
                # A browser compares it with its own origin, byte by byte.
                assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (200, origin)
            async with bridge.websocket(origin=origin):
                pass
        for origin in UNNAMEABLE:
            assert await status(bridge, Origin=origin) == 403

    async with running(servers=shared_nats.url, server=server, allowed_origins=advised()) as bridge:
        await check(bridge)
    # As Sanic takes it from the environment.
    monkeypatch.setenv("SANIC_NATS_BRIDGE_ALLOWED_ORIGINS", json.dumps(advised()))
    async with running(servers=shared_nats.url, server=server) as bridge:
        await check(bridge)


async def test_log_does_not_call_a_served_module_a_rejected_request(
    shared_nats: NatsServer, server: ServerName, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings() -> list[str]:
        lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        return [line for line in lines if "requires no login" not in line]

    async with running(servers=shared_nats.url, subscribe=["a"], server=server) as bridge:
        for path in ("/client.js", "/share.js", "/client-0123456789abcdef.js"):
            for origin in SENT + UNNAMEABLE:
                assert await status(bridge, path, Origin=origin, Host="shop.example") == 200
            assert await status(bridge, path, Sec_Fetch_Site="cross-site") == 200
        served = warnings()
        # That it was served the client doesn't keep an origin's rejection out of the log.
        assert await status(bridge, Origin=FOREIGN, Host="shop.example") == 403
        (rejected,) = warnings()[len(served) :]
    assert "Rejected a request from origin 'https://evil.example' to host 'shop.example'" in rejected
    assert [line for line in served if not line.startswith("Served the browser client to ")] == []
    named = [re.search(r"to origin (\S+), whose .* to the setting 'allowed_origins'", line) for line in served]
    assert [ast.literal_eval(match[1]) for match in named if match is not None] == SENT
    assert "sandboxed frames of any website" in served[SENT.index("null")]
    assert "(Sec-Fetch-Site 'cross-site', no Origin header)" in served[-1]
    assert len(served) == len(SENT) + 1


async def test_advice_in_log_about_page_without_origin_works_if_followed_literally(
    shared_nats: NatsServer, server: ServerName, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(servers=shared_nats.url, server=server) as bridge:
        assert await status(bridge, Sec_Fetch_Site="cross-site") == 403
    (line,) = [line for line in caplog.messages if "Rejected" in line]
    assert line.endswith("add its origin to the setting 'allowed_origins', and let it send a CORS request")
    async with running(servers=shared_nats.url, server=server, allowed_origins=[FOREIGN]) as bridge:
        assert await status(bridge, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="cors", Origin=FOREIGN) == 200


# Hosts

OPERATORS = [("GET", "/health/live"), ("HEAD", "/health/ready"), ("GET", "/metrics")]
MODULES = [("GET", "/client.js"), ("GET", "/share.js"), ("GET", "/client-0123456789abcdef.js")]
UNKNOWN_HOST = "evil.example:8000"
"""The name of a page that lets it resolve to the app's address."""


def own_page(host: str) -> dict[str, str]:
    """Return the headers of a request that a page of the host sends to its own origin."""
    return {"Host": host, "Origin": f"http://{host}"}


@pytest.mark.parametrize("origin", [True, False], ids=["with origin", "without origin"])
async def test_request_to_unknown_host_is_rejected_on_every_route(
    shared_nats: NatsServer, server: ServerName, origin: bool
) -> None:
    asked: list[str] = []

    def permissions(request: Request) -> None:
        asked.append(request.path)

    async with running(
        servers=shared_nats.url, server=server, permissions=permissions, metrics=True, allowed_hosts="app.example"
    ) as bridge:
        headers = own_page(UNKNOWN_HOST) if origin else {"Host": UNKNOWN_HOST}
        for method, path in (*ROUTES, *OPERATORS, *MODULES):
            async with bridge.http.request(
                method, bridge.url + path, json={"subjects": ["a"]}, params={"subjects": "a"}, headers=headers
            ) as response:
                assert response.status == 403, (method, path)
                assert response.headers["Sanic-Nats-Bridge"] == "1"
                if method != "HEAD":
                    assert (await response.json())["code"] == "host.forbidden"
        assert asked == []
        assert bridge.extension.stats().refused == {"host.forbidden": len((*ROUTES, *OPERATORS, *MODULES))}
        for method, path in (*OPERATORS, *MODULES):
            assert await status(bridge, path, method, Host="APP.example.:1234") == 200, path
        assert await status(bridge, **own_page("app.example")) == 401


async def test_websocket_to_unknown_host_is_rejected_before_app_is_asked(
    shared_nats: NatsServer, server: ServerName
) -> None:
    asked: list[str] = []

    def permissions(request: Request) -> None:
        asked.append(request.path)

    async with running(
        servers=shared_nats.url, server=server, permissions=permissions, allowed_hosts="app.example"
    ) as bridge:
        request = f"GET /nats/stream HTTP/1.1\r\n{UPGRADE}\r\n".replace("localhost", UNKNOWN_HOST)
        async with raw_connection(bridge.port, request) as (reader, _):
            answer = await asyncio.wait_for(reader.read(65_536), WAIT_SECONDS)
            while b"}" not in answer:
                answer += await asyncio.wait_for(reader.readexactly(1), WAIT_SECONDS)
        if server == "sanic":
            assert answer.startswith(b"HTTP/1.1 403")
            assert b"host.forbidden" in answer
        else:
            assert b'"code":4403' in answer
            assert b"host" in answer
        assert asked == []
        assert bridge.extension.stats().refused["host.forbidden"] == 1


async def test_any_host_is_allowed_by_default(shared_nats: NatsServer, server: ServerName) -> None:
    async with running(servers=shared_nats.url, server=server) as bridge:
        assert await status(bridge, **own_page(UNKNOWN_HOST)) == 200


@pytest.mark.parametrize("settings", [{}, {"allowed_hosts": ["app.example"]}], ids=str)
async def test_debug_mode_allows_local_and_listed_hosts_only(
    shared_nats: NatsServer, server: ServerName, settings: dict[str, Any]
) -> None:
    def prepare(app: Sanic[Any, Any]) -> None:
        app.state.mode = Mode.DEBUG

    async with running(servers=shared_nats.url, server=server, prepare=prepare, **settings) as bridge:
        for host in ("localhost:5001", "127.0.0.1", "[::1]:80", "192.168.1.7:5001"):
            assert await status(bridge, Host=host) == 200, host
        assert await status(bridge, Host=UNKNOWN_HOST) == 403
        assert await status(bridge, Host="app.example") == (200 if settings else 403)


async def test_probe_without_host_or_by_address_is_allowed(shared_nats: NatsServer, server: ServerName) -> None:
    async with running(servers=shared_nats.url, server=server, allowed_hosts="app.example") as bridge:
        for path in ("/health/live", "/health/ready"):
            assert await status(bridge, path, "GET", Host="10.0.0.7:8000") == 200
            async with raw_connection(bridge.port, f"GET /nats{path} HTTP/1.0\r\n\r\n") as (reader, _):
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_SECONDS)
                assert b" 200 " in head.partition(b"\r\n")[0]
        assert await status(bridge, Host="10.0.0.7:8000") == 403


async def test_forwarded_host_counts_if_sanic_trusts_proxy(shared_nats: NatsServer, server: ServerName) -> None:
    def prepare(app: Sanic[Any, Any]) -> None:
        app.config.PROXIES_COUNT = 1

    forwarded = {"X_Forwarded_For": "192.0.2.1", "X_Forwarded_Host": "app.example"}
    async with running(servers=shared_nats.url, server=server, allowed_hosts="app.example") as bridge:
        assert await status(bridge, Host="backend", **forwarded) == 403
    async with running(servers=shared_nats.url, server=server, prepare=prepare, allowed_hosts="app.example") as bridge:
        assert await status(bridge, Host="backend", **forwarded) == 200
        assert await status(bridge, Host="app.example", X_Forwarded_For="192.0.2.1") == 200
        assert await status(bridge, Host="backend", X_Forwarded_For="192.0.2.1") == 403
        evil = forwarded | {"X_Forwarded_Host": UNKNOWN_HOST}
        assert await status(bridge, Host="app.example", **evil) == 403


@pytest.mark.parametrize("name", ["https://shop.example", "https://shop.example/app", "shop.example:8000"])
@pytest.mark.parametrize("settings", [{}, {"allowed_hosts": ["other.example"]}], ids=str)
async def test_server_name_is_allowed_and_does_not_hide_other_hosts(
    shared_nats: NatsServer, server: ServerName, name: str, settings: dict[str, Any]
) -> None:
    async with running(servers=shared_nats.url, server=server, **settings) as bridge:
        bridge.app.config.SERVER_NAME = name
        assert await status(bridge, Host="shop.example") == 200
        # An event stream of the page's own origin has no Origin header.
        assert await status(bridge, Host=UNKNOWN_HOST) == 403
        assert await status(bridge, "/events", "GET", Host=UNKNOWN_HOST) == 403
        assert await status(bridge, Host="other.example") == (200 if settings else 403)
        assert await status(bridge, Host="127.0.0.1") == (403 if settings else 200)


@sanic_only  # h11 rejects such a request by itself
async def test_every_one_of_several_hosts_must_be_allowed(shared_nats: NatsServer, server: ServerName) -> None:
    async with running(servers=shared_nats.url, server=server, allowed_hosts="app.example") as bridge:
        request = "GET /nats/client.js HTTP/1.1\r\nHost: app.example\r\nHost: evil.example\r\n\r\n"
        async with raw_connection(bridge.port, request) as (reader, _):
            assert (await asyncio.wait_for(reader.readline(), WAIT_SECONDS)).startswith(b"HTTP/1.1 403")


async def test_unknown_host_is_logged_once(
    shared_nats: NatsServer, server: ServerName, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(servers=shared_nats.url, server=server, allowed_hosts="app.example") as bridge:
        for host in ("evil.example", "evil.example", "a'b\u00e9", "other.example"):
            for path in ("/events", "/health/live", "/client.js"):
                assert await status(bridge, path, "GET", Host=host) == 403
    lines = [line for line in caplog.messages if "'allowed_hosts'" in line]
    assert len(lines) == 3
    assert lines[0] == (
        "Rejected a request to host 'evil.example', which is not a known name of this app. If clients use this name, "
        "add it to the setting 'allowed_hosts'"
    )
    assert all(line.isascii() for line in lines)


async def test_app_can_check_hosts_of_its_own_routes(shared_nats: NatsServer, server: ServerName) -> None:
    def prepare(app: Sanic[Any, Any]) -> None:
        @app.get("/own")
        async def own(request: Request) -> HTTPResponse:
            return HTTPResponse("", 200 if app.ctx.nats_bridge.allows_host(request) else 403)

    async with running(servers=shared_nats.url, server=server, prepare=prepare, allowed_hosts="app.example") as bridge:
        for host, expected in (("app.example:1", 200), ("evil.example", 403), ("127.0.0.1", 403)):
            async with bridge.http.get(f"http://127.0.0.1:{bridge.port}/own", headers={"Host": host}) as response:
                assert response.status == expected


class _Foreign:
    """Requests as the rule sees them, each from an origin of its own."""

    scheme, host, transport = "http", "shop\n.example", None
    app = SimpleNamespace(config={})
    conn_info = None

    def __init__(self, origin: str) -> None:
        self.headers = Header({"Origin": origin})
        self.forwarded: dict[str, Any] = {}


def test_rejected_hosts_use_bounded_log_and_memory(caplog: pytest.LogCaptureFixture) -> None:
    guard = RequestGuard(OriginPolicy([]), HostPolicy(["app.example"]))
    for number in range(3000):
        limited_logger().reset()
        request: Any = _Foreign("https://evil.example")
        request.headers = Header({"Host": f"{number}.example\n" + "x" * 10_000})
        with pytest.raises(ForbiddenHost):
            guard.check(request)
    assert all(len(record.getMessage()) < 700 for record in caplog.records)
    assert not any("\n" in record.getMessage() for record in caplog.records)
    assert sum(map(len, guard._logged)) <= 1000 * 300


def test_rejected_origins_use_bounded_log_and_memory(caplog: pytest.LogCaptureFixture) -> None:
    guard = RequestGuard(OriginPolicy([]))
    with caplog.at_level(logging.WARNING):
        for number in range(3000):
            request: Any = _Foreign(f"https://{number}.example\n" + "x" * 10_000)
            with pytest.raises(ForbiddenOrigin):
                guard.check(request)
    assert len(caplog.records) == LINES
    # An origin that wasn't logged is logged when there is room again.
    limited_logger().reset()
    with caplog.at_level(logging.WARNING), pytest.raises(ForbiddenOrigin):
        guard.check(request)
    assert len(caplog.records) == LINES + 1
    for number in range(3000):
        limited_logger().reset()
        with pytest.raises(ForbiddenOrigin):
            guard.check(cast(Any, _Foreign(f"https://{number}.example\n" + "x" * 10_000)))
    assert all(len(record.getMessage()) < 700 for record in caplog.records)
    assert not any("\n" in record.getMessage() for record in caplog.records)
    assert sum(map(len, guard._logged)) <= 1000 * 300
