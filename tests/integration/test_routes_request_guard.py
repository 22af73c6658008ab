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
from sanic.compat import Header
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from sanic_nats_bridge.auth.origins import OriginPolicy
from sanic_nats_bridge.errors import ForbiddenOrigin
from sanic_nats_bridge.log_limits import LINES, limited_logger
from sanic_nats_bridge.routes.request_guard import RequestGuard
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import SERVERS, WAIT_SECONDS, Bridge, ServerName, WebSocketClient, running
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


class _Foreign:
    """Requests as the rule sees them, each from an origin of its own."""

    scheme, host, transport = "http", "shop\n.example", None
    app = SimpleNamespace(config={})
    conn_info = None

    def __init__(self, origin: str) -> None:
        self.headers = Header({"Origin": origin})
        self.forwarded: dict[str, Any] = {}


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
