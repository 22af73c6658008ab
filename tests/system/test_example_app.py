import asyncio
import json
import signal
import urllib.request
from collections.abc import Iterator

import nats
import pytest
from websockets.asyncio.client import connect

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS, alive, wait_until
from tests.support.example import ROOT, ExampleApp


@pytest.fixture(scope="module")
def example() -> Iterator[ExampleApp]:
    with ExampleApp("--workers", "2") as app:
        yield app


async def messages(url: str, count: int) -> list[dict[str, object]]:
    async with asyncio.timeout(WAIT_SECONDS), connect(url) as websocket:
        await websocket.recv()
        await websocket.send('{"subjects":["test.subject"],"action":"subscribe"}')
        assert json.loads(await websocket.recv())["success"]
        return [json.loads(await websocket.recv())["data"] for _ in range(count)]


async def test_only_one_worker_publishes(example: ExampleApp) -> None:
    first, second, third = await messages(example.url.replace("http", "ws") + "stream", 3)
    connections = await asyncio.to_thread(example.connections)
    assert [connection["in_msgs"] > 0 for connection in connections].count(True) == 1
    assert len(connections) == 2
    for message in (first, second, third):
        kinds = {key: type(value) for key, value in message.items()}
        expected = [str, int, float, list, dict, dict, type(None)]
        assert kinds == {f"key{number}": kind for number, kind in enumerate(expected, 1)}
    assert len({str(message["key3"]) for message in (first, second, third)}) == 3


def test_one_nats_server_serves_all_workers(example: ExampleApp) -> None:
    assert len(example.nats_servers()) == 1


def test_every_page_has_content_security_policy(example: ExampleApp) -> None:
    files = sorted(f"static/{file.name}" for file in (ROOT / "example_app" / "static").iterdir())
    assert {"static/index.html", "static/page.js", "static/page.css", "static/icon.svg"} < set(files)
    for path in ("", "client.js", *files):
        with urllib.request.urlopen(example.url + path) as response:
            assert response.headers["Content-Security-Policy"] == "default-src 'self'"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_nats_server_ends_when_app_ends(number: signal.Signals) -> None:
    with ExampleApp() as app:
        servers = app.nats_servers()
        assert len(servers) == 1
        family = app.family()
        app.end(number)
        ending = servers if number is signal.SIGKILL else family
        wait_until(lambda: not any(map(alive, ending)))


@pytest.mark.parametrize("way", ["option", "environment"])
async def test_app_uses_given_nats_server(way: str) -> None:
    with NatsServer() as server:
        example = ExampleApp("--nats", server.url) if way == "option" else ExampleApp(NATS_URL=server.url)
        with example:
            assert example.nats_servers() == set()
            client = await nats.connect(server.url)
            subscription = await client.subscribe("test.subject")
            message = await subscription.next_msg(WAIT_SECONDS)
            assert set(json.loads(message.data)) == {f"key{number}" for number in range(1, 8)}
            await client.close()
