"""The NATS permissions in docs/guides/deployment.md."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from sanic import Request

from sanic_nats_bridge import Permissions
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import Bridge, running, subscribed, until
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
