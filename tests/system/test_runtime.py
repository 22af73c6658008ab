import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sanic import Blueprint, HTTPResponse, Request, Sanic
from sanic.response import text

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS, Bridge, Publisher, running, until
from tests.support.process import app_process, managed_process

ORIGIN = "https://app.example"


async def receive_on_both_transports(bridge: Bridge, publisher: Publisher, subject: str) -> list[Any]:
    """Return the data of one message that a client of each transport gets."""
    async with bridge.websocket() as websocket, bridge.events(subject) as events:
        await websocket.follow(subject)
        await publisher.send(subject, b"1")
        return [*(await websocket.data(1)), *(await events.data(1))]


@pytest.fixture
def cors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configure sanic-ext by the environment, because it reads its configuration during setup."""
    monkeypatch.setenv("SANIC_CORS_ORIGINS", ORIGIN)


async def test_two_bridges_in_one_process_are_isolated(shared_nats: NatsServer, nats_server: NatsServer) -> None:
    async with (
        running(servers=shared_nats.url, subscribe=["a.>"], prefix="/one") as one,
        running(servers=nats_server.url, subscribe=["b.>"], prefix="/two") as two,
        Publisher.connected(shared_nats) as first,
        Publisher.connected(nats_server) as second,
        one.websocket() as client,
        two.websocket() as other,
    ):
        assert (await client.ask({"subjects": ["b.c"]}))["code"] == "subject.forbidden"
        assert (await other.ask({"subjects": ["a.c"]}))["code"] == "subject.forbidden"
        await client.follow("a.c")
        await other.follow("b.c")
        for publisher in (first, second):
            await publisher.send("a.c", b'"to one by %b"' % publisher.base.encode())
            await publisher.send("b.c", b'"to two by %b"' % publisher.base.encode())
        await first.send("a.c", b'"end"')
        await second.send("b.c", b'"end"')
        assert await client.data(2) == [f"to one by {first.base}", "end"]
        assert await other.data(2) == [f"to two by {second.base}", "end"]
        async with one.http.get(f"http://127.0.0.1:{one.port}/two/events") as response:
            assert response.status == 404


def populate_app(app: Sanic[Any, Any], folder: Path) -> list[str]:
    """Give the app routes, a blueprint, middleware and static files; returns the list of the paths it is asked for."""
    seen: list[str] = []
    blueprint = Blueprint("shop", url_prefix="/shop")

    @blueprint.get("/item/<number:int>")
    async def item(request: Request, number: int) -> HTTPResponse:
        return text(f"item {number}")

    @app.post("/echo")
    async def echo(request: Request) -> HTTPResponse:
        return text(request.body.decode())

    @app.on_request
    async def note(request: Request) -> None:
        seen.append(request.path)

    @app.on_response  # type: ignore[untyped-decorator]
    async def mark(request: Request, response: HTTPResponse) -> None:
        response.headers["X-Neighbour"] = "yes"

    (folder / "page.txt").write_text("static")
    app.static("/files", folder)
    app.blueprint(blueprint)
    return seen


@pytest.mark.usefixtures("cors")
async def test_app_keeps_its_routes_static_files_and_cors(shared_nats: NatsServer, tmp_path: Path) -> None:
    def prepare(app: Sanic[Any, Any]) -> None:
        populate_app(app, tmp_path)

    async with running(servers=shared_nats.url, prepare=prepare) as bridge:
        base = f"http://127.0.0.1:{bridge.port}"
        for method, path, answer in (
            ("GET", "/shop/item/7", "item 7"),
            ("POST", "/echo", "x" * 100_000),
            ("GET", "/files/page.txt", "static"),
        ):
            body = answer if method == "POST" else None
            async with bridge.http.request(method, base + path, data=body, headers={"Origin": ORIGIN}) as response:
                assert (response.status, await response.text()) == (200, answer)
                assert response.headers["X-Neighbour"] == "yes"
                assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
        async with bridge.http.get(f"{base}/shop/item/x") as response:
            assert response.status == 404
        async with bridge.http.head(f"{base}/shop/item/7") as response:
            assert (response.status, response.headers["Content-Length"]) == (200, "6")


@pytest.mark.usefixtures("cors")
async def test_app_middleware_applies_to_bridge_but_cors_does_not(
    shared_nats: NatsServer, publisher: Publisher, tmp_path: Path
) -> None:
    seen: list[str] = []

    def prepare(app: Sanic[Any, Any]) -> None:
        nonlocal seen
        seen = populate_app(app, tmp_path)

    async with running(servers=shared_nats.url, subscribe=[">"], prepare=prepare) as bridge:
        assert await receive_on_both_transports(bridge, publisher, publisher.subject("a")) == [1, 1]
        async with bridge.http.get(f"{bridge.url}/events", headers={"Origin": ORIGIN}) as response:
            assert response.status == 403
            assert response.headers["X-Neighbour"] == "yes"
            assert "Access-Control-Allow-Origin" not in response.headers
        assert (await bridge.post("/subscribe", {}))[0] == 400
        assert seen == ["/nats/stream", "/nats/events", "/nats/events", "/nats/subscribe"]


async def test_middleware_can_reject_clients(shared_nats: NatsServer) -> None:
    def prepare(app: Sanic[Any, Any]) -> None:
        @app.on_request
        async def refuse(request: Request) -> HTTPResponse:
            return text("no", status=401)

    async with running(servers=shared_nats.url, prepare=prepare) as bridge:
        for path in ("/events", "/stream"):
            async with bridge.http.get(f"{bridge.url}{path}") as response:
                assert (response.status, await response.text()) == (401, "no")
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await bridge.http.ws_connect(f"{bridge.url}/stream")
        assert refused.value.status == 401


async def test_prefix_can_be_empty(shared_nats: NatsServer, publisher: Publisher) -> None:
    def prepare(app: Sanic[Any, Any]) -> None:
        @app.get("/")
        async def home(request: Request) -> HTTPResponse:
            return text("home")

    async with running(servers=shared_nats.url, subscribe=[">"], prefix="", prepare=prepare) as bridge:
        assert await receive_on_both_transports(bridge, publisher, publisher.subject("a")) == [1, 1]
        assert (await bridge.post("/subscribe", {}))[0] == 400
        async with bridge.http.get(f"{bridge.url}/") as response:
            assert await response.text() == "home"


@pytest.mark.parametrize("prefix", ["", "/nats"], ids=["no prefix", "prefix"])
async def test_sanic_ext_health_extension_works_with_bridge(shared_nats: NatsServer, prefix: str) -> None:
    configuration = {"HEALTH": "true", "HEALTH_ENDPOINT": "true", "HEALTH_MONITOR": "false"}
    configuration |= {"NATS_BRIDGE_SERVERS": shared_nats.url, "NATS_BRIDGE_PREFIX": prefix}
    async with (
        managed_process(configuration) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http,
    ):
        async with http.get("/__health__/") as response:
            assert response.status == 200, await response.text()
            assert (await response.json())["Sanic-Server-0-0"]["state"] == "ACKED"
        async with http.ws_connect(f"{prefix}/stream") as client:
            assert (await client.receive_json(timeout=WAIT_SECONDS))["type"] == "welcome"


async def test_two_apps_in_one_process_have_separate_bridges(shared_nats: NatsServer, nats_server: NatsServer) -> None:
    async with (
        app_process(
            {"servers": shared_nats.url, "subscribe": [">"], "prefix": "/one"},
            {"servers": nats_server.url, "subscribe": [">"]},
        ) as apps,
        Publisher.connected(shared_nats) as first,
        Publisher.connected(nats_server) as second,
        aiohttp.ClientSession() as http,
    ):
        cases = ((apps.ports[0], "/one", first, shared_nats), (apps.ports[1], "/nats", second, nats_server))
        for port, prefix, publisher, server in cases:
            subject = publisher.subject("a")
            async with http.ws_connect(f"http://127.0.0.1:{port}{prefix}/stream") as client:
                assert (await client.receive_json(timeout=WAIT_SECONDS))["type"] == "welcome"
                await client.send_json({"subjects": [subject]})
                # The reply may precede the subscription at NATS, if the app isn't connected yet.
                while (await client.receive_json(timeout=WAIT_SECONDS))["type"] != "reply":
                    pass
                await until(lambda server=server, subject=subject: subject in server.subscriptions())  # type: ignore[misc]
                await publisher.send(subject, b"1")
                while (frame := await client.receive_json(timeout=WAIT_SECONDS))["type"] != "message":
                    pass
                assert frame == {"type": "message", "subject": subject, "data": 1}


@pytest.mark.parametrize("metrics", [False, True])
async def test_process_with_two_apps_exits_if_one_nats_server_hangs(
    shared_nats: NatsServer, nats_server: NatsServer, metrics: bool
) -> None:
    async with app_process(
        {"servers": shared_nats.url, "metrics": metrics}, {"servers": nats_server.url, "metrics": metrics}
    ) as apps:
        for port in apps.ports:
            await wait_until_connected(port)
        nats_server.pause()
        apps.process.terminate()
        async with asyncio.timeout(WAIT_SECONDS):
            assert await apps.process.wait() == 0


async def wait_until_connected(port: int) -> None:
    """Wait until the app is connected to NATS."""
    async with aiohttp.ClientSession() as http:
        while True:
            async with http.get(f"http://127.0.0.1:{port}/nats/health/ready") as response:
                if (await response.json())["nats"] == "connected":
                    return
