"""Publishing and requests by the app, with the bridge's public API."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import msgspec
import nats
import pytest
from nats.aio.msg import Msg
from sanic import HTTPResponse, Request, Sanic
from sanic.response import text

from sanic_nats_bridge import (
    Acknowledgement,
    NatsBridge,
    NatsUnavailable,
    NoResponders,
    Publication,
    PublishUnstored,
    RequestFailed,
    RequestTimedOut,
)
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import (
    SERVERS,
    UNHURRIED,
    WAIT_SECONDS,
    Bridge,
    Publisher,
    ServerName,
    flush,
    running,
    served,
    until,
)
from tests.support.clock import held

App = Sanic[Any, Any]


class Order(msgspec.Struct):
    item: str
    count: int = 1


@pytest.fixture(scope="module")
def jetstream() -> Iterator[NatsServer]:
    with NatsServer(jetstream=True) as server:
        yield server


def add_routes(app: App) -> None:
    @app.get("/publish")
    async def publish(request: Request, bridge: NatsBridge) -> HTTPResponse:
        await bridge.publish("orders.new", {"item": "tin"})
        return text("published")

    @app.get("/request")
    async def ask(request: Request, bridge: NatsBridge) -> HTTPResponse:
        return text(str((await bridge.request("price", {"item": "tin"})).json()))


async def get(bridge: Bridge, path: str) -> tuple[int, str]:
    async with bridge.http.get(f"http://127.0.0.1:{bridge.port}{path}") as response:
        return response.status, await response.text()


async def echo(message: Msg) -> None:
    await message.respond(message.data)


@pytest.mark.parametrize(
    ("data", "received"),
    [(Order("tin"), {"item": "tin", "count": 1}), ({"a": 1}, {"a": 1}), ("café", "café"), (b"[1]", [1]), (None, None)],
)
async def test_browsers_get_messages_of_the_app(bridge: Bridge, publisher: Publisher, data: Any, received: Any) -> None:
    subject = publisher.subject("a")
    async with bridge.websocket() as websocket:
        await websocket.follow(subject)
        await bridge.extension.publish(subject, data)
        assert await websocket.data(1) == [received]


async def test_acknowledgement_names_the_stored_message(jetstream: NatsServer) -> None:
    async with running(servers=jetstream.url) as bridge, Publisher.connected(jetstream) as publisher:
        await publisher.client.jetstream().add_stream(name="ORDERS", subjects=["orders.>"])
        extension = bridge.extension
        first = await extension.publish("orders.new", {"n": 1}, ack=True, msg_id="1", headers={"Trace": ["a", "b"]})
        assert first == Acknowledgement("ORDERS", 1, duplicate=False)
        assert await extension.publish("orders.new", {"n": 1}, ack=True, msg_id="1") == Acknowledgement(
            "ORDERS", 1, duplicate=True
        )
        stored = await publisher.client.jetstream().get_msg("ORDERS", 1)
        assert stored.data == b'{"n":1}'
        with pytest.raises(PublishUnstored):
            await extension.publish("nowhere", b"", ack=True)


async def test_request_has_the_first_answer(bridge: Bridge, publisher: Publisher) -> None:
    subject = publisher.subject("svc")

    async def answer(message: Msg) -> None:
        order = json.loads(message.data)
        headers = {"Seen": message.headers["Trace"]} if message.headers else None
        await publisher.client.publish(message.reply, json.dumps(order["count"] * 2).encode(), headers=headers)
        await message.respond(b"second")

    await publisher.client.subscribe(subject, cb=answer)
    await flush(publisher.client)
    reply = await bridge.extension.request(subject, Order("tin", 21), headers={"Trace": "x"})
    assert (reply.data, reply.json(int), reply.headers) == (b"42", 42, {"Seen": ["x"]})


async def test_failures_of_requests_have_errors_of_their_own(bridge: Bridge, publisher: Publisher) -> None:
    async def fail(message: Msg) -> None:
        headers = {"Nats-Service-Error": "sold out", "Nats-Service-Error-Code": "410"}
        await publisher.client.publish(message.reply, headers=headers)

    asked: list[Msg] = []

    async def note(message: Msg) -> None:
        asked.append(message)

    await publisher.client.subscribe(publisher.subject("fail"), cb=fail)
    await publisher.client.subscribe(publisher.subject("silent"), cb=note)
    await flush(publisher.client)
    with pytest.raises(RequestFailed, match="sold out") as raised:
        await bridge.extension.request(publisher.subject("fail"))
    assert raised.value.service_code == "410"
    async with held() as clock:
        asking = asyncio.create_task(bridge.extension.request(publisher.subject("silent")))
        await until(lambda: asked)
        await clock.forward(bridge.extension.settings.request_timeout)
        with pytest.raises(RequestTimedOut, match="within 5 s"):
            await asking
    with pytest.raises(NoResponders):
        await bridge.extension.request(publisher.subject("nobody"))


async def test_no_inbox_is_used() -> None:
    config = (
        "authorization { timeout: 60, users: [ {user: bridge, password: x, permissions: "
        '{publish: ["price", "_NATSBRIDGE.>"], subscribe: ["_NATSBRIDGE.>"]}}, {user: other, password: x} ] }'
    )
    with NatsServer(config=config) as server:
        async with running(servers=server.url, user="bridge", password="x", prepare=add_routes) as bridge:
            with pytest.raises(NoResponders):
                await bridge.extension.request("price")
            client = await nats.connect(server.url, user="other", password="x")
            await client.subscribe("price", cb=echo)
            await flush(client)
            assert await get(bridge, "/request") == (200, "{'item': 'tin'}")
            await client.close()


@pytest.mark.parametrize("server", SERVERS)
async def test_handler_without_check_responds_503_while_disconnected(
    server: ServerName, nats_server: NatsServer
) -> None:
    async with (
        running(servers=nats_server.url, prepare=add_routes, server=server) as bridge,
        Publisher.connected(nats_server) as publisher,
    ):
        await publisher.client.subscribe("price", cb=echo)
        await flush(publisher.client)
        assert await get(bridge, "/publish") == (200, "published")
        assert await get(bridge, "/request") == (200, "{'item': 'tin'}")
        nats_server.stop()
        await until(lambda: bridge.extension.client is None)
        for path in ("/publish", "/request"):
            status, page = await get(bridge, path)
            assert (status, "NATS is disconnected" in page) == (503, True)
        with pytest.raises(NatsUnavailable) as raised:
            await bridge.extension.publish("orders.new", b"")
        assert raised.value.status_code == 503
        with pytest.raises(NatsUnavailable, match="NATS is disconnected"):
            await bridge.extension.connected(0.01)
        nats_server.start()
        await bridge.extension.connected(WAIT_SECONDS)
        assert await get(bridge, "/publish") == (200, "published")


@pytest.mark.parametrize("server", SERVERS)
async def test_app_publishes_in_its_listeners(server: ServerName, shared_nats: NatsServer) -> None:
    subject, got = f"t{uuid4().hex}", []

    def prepare(app: App) -> None:
        @app.after_server_start
        async def started(app: App) -> None:
            bridge = app.ctx.nats_bridge
            await bridge.connected(WAIT_SECONDS)
            await bridge.publish(subject, "started")
            got.append((await bridge.request(subject, "asked")).data)

        @app.before_server_stop
        async def stopping(app: App) -> None:
            await app.ctx.nats_bridge.publish(subject, "stopping")

    async with Publisher.connected(shared_nats) as publisher:

        async def note(message: Msg) -> None:
            got.append(message.data)
            if message.reply:
                await message.respond(b"answer")

        await publisher.client.subscribe(subject, cb=note)
        await flush(publisher.client)
        async with running(servers=shared_nats.url, prepare=prepare, server=server):
            await until(lambda: got == [b"started", b"asked", b"answer"])
        await until(lambda: got[-1] == b"stopping")


async def test_worker_that_stops_ends_requests_in_flight(shared_nats: NatsServer) -> None:
    subject, asked = f"t{uuid4().hex}", []

    async def note(message: Msg) -> None:
        asked.append(message)

    async with Publisher.connected(shared_nats) as publisher:
        await publisher.client.subscribe(subject, cb=note)
        await flush(publisher.client)
        async with running(servers=shared_nats.url) as bridge:
            extension = bridge.extension
            tasks = [asyncio.create_task(extension.request(subject, timeout=WAIT_SECONDS)) for _ in range(100)]
            await until(lambda: len(asked) == 100)
        for task in tasks:
            with pytest.raises(NatsUnavailable, match="No answer, because this worker is stopping"):
                await task
        with pytest.raises(NatsUnavailable):
            await extension.publish(subject, b"")
        with pytest.raises(NatsUnavailable, match="stopping"):
            await extension.connected()


async def test_nothing_is_published_without_app_or_before_the_start(shared_nats: NatsServer) -> None:
    bridge = NatsBridge(servers=shared_nats.url, **UNHURRIED)
    for early in (bridge.publish("a", b""), bridge.request("a"), bridge.connected()):
        with pytest.raises(RuntimeError, match="on no app yet"):
            await early
    app: App = Sanic(f"test_{uuid4().hex}", configure_logging=False)
    bridge.init_app(app)
    with pytest.raises(RuntimeError, match="wait in after_server_start or later"):
        await bridge.connected()
    with pytest.raises(NatsUnavailable):
        await bridge.publish("a", b"")
    async with served(app):
        await bridge.connected(WAIT_SECONDS)
        await bridge.publish("a", b"")


async def test_functions_are_registered_before_or_after_the_bridge_is_on_an_app() -> None:
    bridge = NatsBridge()

    @bridge.on_publish("rooms.*.say", schema=Order)
    async def first(publication: Publication[Order]) -> None: ...

    bridge.init_app(Sanic(f"test_{uuid4().hex}", configure_logging=False))

    @bridge.on_publish("rooms.>")
    def second(publication: Publication[Any]) -> str:
        assert isinstance(publication, Publication)
        return str(publication.data)

    functions = bridge._publish_functions
    assert [each.call for each in functions._functions] == [first, second]
    limits = bridge._on_app.sessions.deadlines
    checked = await functions.check(
        "rooms.7.x", b"[1]", "json", (), identity=None, session=None, limits=limits, seconds=1
    )
    assert checked == b"[1]"
    with pytest.raises(ValueError, match="pattern must be a valid pattern"):
        bridge.on_publish("a..b")(second)
