"""The NATS permissions in docs/guides/deployment.md."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from sanic import Request

from sanic_nats_bridge import Permissions
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS, Bridge, flush, running, subscribed, until
from tests.support.docs import file_of


async def permissions(request: Request) -> Permissions | None:
    return Permissions([">"], identity=request.cookies.get("user"))


@pytest.fixture
def server() -> Iterator[NatsServer]:
    """Start a nats-server with the documented users, and one more user who may do everything else."""
    documented = file_of("docs/guides/deployment.md", "nats.conf")
    everybody_else = """
    {user: others, password: o, permissions: {publish: {deny: "_NATSBRIDGE.>"}, subscribe: {deny: "_NATSBRIDGE.>"}}}
  ]"""
    config = documented.replace("$BRIDGE_PASSWORD", "b").replace("\n  ]", everybody_else)
    with NatsServer(config=config) as server:
        yield server


@pytest.fixture
def publish_server() -> Iterator[NatsServer]:
    """Start a nats-server with the documented users of publishes and requests, JetStream and other users."""
    documented = file_of("docs/guides/deployment.md", "nats-publish.conf")
    others = """
    {user: others, password: o, permissions: {publish: {deny: "_NATSBRIDGE.>"}, subscribe: {deny: "_NATSBRIDGE.>"}}}
    {user: listed, password: l, permissions: {subscribe: ["prices.get"], publish: ["_NATSBRIDGE.shop.answer.>"]}}
  ]"""
    config = documented.replace("$BRIDGE_PASSWORD", "b").replace("$PRICES_PASSWORD", "p").replace("\n  ]", others)
    with NatsServer(config=config, jetstream=True) as server:
        yield server


@pytest.fixture
async def workers(server: NatsServer) -> AsyncIterator[tuple[Bridge, Bridge]]:
    options: dict[str, Any] = {
        "servers": server.url.replace("//", "//bridge:b@"),
        # Two apps of one process cannot have one name.
        "control_prefix": "_NATSBRIDGE.shop",
        "permissions": permissions,
    }
    async with running(**options) as one, running(**options) as other:
        yield one, other


@pytest.fixture
async def others(server: NatsServer) -> AsyncIterator[Client]:
    client = await nats.connect(server.url.replace("//", "//others:o@"))
    yield client
    await client.close()


async def test_documented_nats_permissions_are_sufficient(
    workers: tuple[Bridge, Bridge], others: Client, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = workers
    async with one.events(Cookie="user=ada") as client, other.events(Cookie="user=ada") as second:
        command = {"session": client.session, "subjects": ["orders.>"]}
        assert await other.post("/subscribe", command, Cookie="user=ada") == (200, subscribed("orders.>"))
        await others.publish("orders.new", b"1")
        assert await client.data(1) == [1]
        refused = {"session": client.session, "subjects": ["payments.>"]}
        assert (await other.post("/subscribe", refused, Cookie="user=ada"))[1]["code"] == "nats.refused"
        await one.extension.revoke(identity="ada")
        assert [(await each.frame())["code"] for each in (client, second)] == [4403, 4403]
    await until(lambda: not one.extension.sessions and not other.extension.sessions)
    denied = [message for each in caplog.records if "permissions violation" in (message := each.message.lower())]
    assert not [message for message in denied if "_natsbridge" in message]


async def test_documented_nats_permissions_for_publishes_are_sufficient(
    publish_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    received: list[Msg] = []

    async def keep(message: Msg) -> None:
        received.append(message)

    async def answer(message: Msg) -> None:
        await message.respond(message.data)

    async def connect(user: str) -> Client:
        client = await nats.connect(
            publish_server.url.replace("//", f"//{user}:{user[0]}@"), connect_timeout=WAIT_SECONDS
        )
        clients.append(client)
        return client

    clients: list[Client] = []
    async with running(
        servers=publish_server.url.replace("//", "//bridge:b@"),
        control_prefix="_NATSBRIDGE.shop",
        publish=[">"],
        request=[">"],
        request_timeout=WAIT_SECONDS,
    ) as bridge:
        others = await connect("others")
        await others.jetstream().add_stream(name="ROOMS", subjects=["rooms.>"])
        await others.subscribe("rooms.>", cb=keep)
        await flush(others)
        for ack in (False, True):
            status, reply = await bridge.post("/publish", {"subject": "rooms.7.say", "data": 1, "ack": ack})
            assert (status, reply["success"]) == (200, True), reply
        assert reply["sequence"] == 2
        await until(lambda: len(received) == 2)
        for user in ("prices", "listed"):
            service = await connect(user)
            await service.subscribe("prices.get", cb=answer)
            await flush(service)
            _, reply = await bridge.post("/request", {"subject": "prices.get", "data": user})
            assert reply["data"] == user
            await service.close()
        assert not [each for each in caplog.records if "Permissions Violation" in each.getMessage()]
        # What the list doesn't have is refused, and known if there is an answer to wait for.
        for path, fields in (("publish", {"ack": True}), ("request", {})):
            status, reply = await bridge.post(f"/{path}", {"subject": "denied", "data": 1} | fields)
            assert (status, reply["code"]) == (403, "nats.refused"), reply
            assert reply["message"] == "NATS does not let the bridge publish to this subject"
        status, reply = await bridge.post("/publish", {"subject": "denied", "data": 1})
        assert (status, reply["success"]) == (200, True)
        await until(lambda: any("The NATS server reported an error" in each.getMessage() for each in caplog.records))
    for client in clients:
        if not client.is_closed:
            await client.close()
