"""The NATS permissions that the guide lists are what history needs, on a real server."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.js.api import StreamConfig

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import Bridge, WebSocketClient, free_port, running, until
from tests.support.docs import file_of, table

PAGE = "docs/guides/jetstream.md"
USERS = {"admin": "a", "bridge": "b"}
FLOW_CONTROL_BYTES = 2 * 1024 * 1024
"""The bytes after which nats-server waits for an answer to its flow control."""


def configuration() -> str:
    """Return the configuration of the guide, with the passwords of this test and any app's control subjects."""
    text = file_of(PAGE, "nats.conf").replace("_NATSBRIDGE.shop.>", "_NATSBRIDGE.>")
    for name, password in USERS.items():
        text = text.replace(f"${name.upper()}_PASSWORD", password)
    # The server of the tests has a folder of its own for JetStream.
    assert text.startswith("jetstream:")
    return text.partition("\n")[2]


def url(server: NatsServer, user: str) -> str:
    return server.url.replace("nats://", f"nats://{user}:{USERS[user]}@")


@pytest.fixture(scope="module")
def server() -> Iterator[NatsServer]:
    with NatsServer(jetstream=True, config=configuration()) as server:
        yield server


@pytest.fixture(params=[True, False], ids=["direct", "singly"])
async def publisher(server: NatsServer, request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    """Make a stream with 300 messages on 20 subjects."""
    client = await nats.connect(url(server, "admin"))
    jetstream = client.jetstream()
    await jetstream.add_stream(StreamConfig("ORDERS", subjects=["orders.>"], allow_direct=request.param))
    for number in range(300):
        await client.publish(f"orders.{number % 20}", b"%d" % number)
    await client.flush()
    yield client
    await jetstream.delete_stream("ORDERS")
    await client.close()


async def replayed(client: WebSocketClient, **start: object) -> int:
    """Subscribe, and return the number of old messages; unsubscribe again."""
    await client.send({"action": "subscribe", "subjects": ["orders.>"], **start})
    frames = [await client.frame()]
    while frames[-1]["type"] != "caught_up":
        frames.append(await client.frame())
    assert (frames[0]["active"], frames[0]["resumable"], frames[-1]["recovered"]) == (True, True, True)
    assert (await client.ask({"action": "unsubscribe", "subjects": ["orders.>"]}))["success"]
    return int(frames[-1]["replayed"])


def bridge_of(server: NatsServer, **settings: Any) -> AbstractAsyncContextManager[Bridge]:
    options = {"subscribe": ["orders.>"], "history": ["orders.>"], "streams": {"ORDERS": None}, **settings}
    return running(servers=url(server, "bridge"), **options)


async def test_permissions_in_guide_suffice_for_every_start(
    server: NatsServer, publisher: Client, caplog: pytest.LogCaptureFixture
) -> None:
    async with bridge_of(server) as bridge, bridge.websocket() as client:
        assert await replayed(client, **{"from": "new"}) == 0
        assert await replayed(client, **{"from": "all"}) == 300
        assert await replayed(client, **{"from": {"last": 30}}) == 30
        assert await replayed(client, **{"from": "last_per_subject"}) == 20
    assert [record.message for record in caplog.records if "ermission" in record.message] == []


async def test_permissions_in_guide_suffice_for_more_than_flow_control_lets_through(
    server: NatsServer, publisher: Client
) -> None:
    payload = b'"%s"' % (b"x" * 8000)
    count = 3 * FLOW_CONTROL_BYTES // len(payload)
    async with bridge_of(server) as bridge, bridge.websocket() as client:
        await client.send({"action": "subscribe", "subjects": ["orders.>"], "from": "new"})
        while (await client.frame())["type"] != "caught_up":
            pass
        for _ in range(count):
            await publisher.publish("orders.large", payload)
        frames = await client.frames(count)
        assert {frame["type"] for frame in frames} == {"message"}


async def test_permissions_in_guide_suffice_for_a_domain_behind_a_leaf_node(tmp_path: Path) -> None:
    users = configuration().replace("$JS.API.", "$JS.hub.API.")
    port = free_port()
    hub_config = f"""
      jetstream: {{store_dir: "{tmp_path}", domain: hub}}
      leafnodes: {{listen: "127.0.0.1:{port}", no_advertise: true}}
      {users}"""
    leaf_config = f"""
      leafnodes: {{remotes: [{{url: "nats://admin:{USERS["admin"]}@127.0.0.1:{port}"}}]}}
      {users}"""
    with NatsServer(config=hub_config) as hub, NatsServer(config=leaf_config) as leaf:
        await until(lambda: hub.monitor("/leafz")["leafnodes"])
        client = await nats.connect(url(hub, "admin"))
        jetstream = client.jetstream()
        await jetstream.add_stream(StreamConfig("ORDERS", subjects=["orders.>"], allow_direct=True))
        await jetstream.publish("orders.1", b"1")
        async with bridge_of(leaf, jetstream_domain="hub") as bridge, bridge.websocket() as browser:
            assert await replayed(browser, **{"from": "all"}) == 1
            assert await replayed(browser, **{"from": "last_per_subject"}) == 1
        await client.close()


def test_permissions_table_has_those_of_the_configuration() -> None:
    rows = [row[0].strip("`") for row in table(PAGE, "Permissions")]
    assert rows == re.findall(r'"(\$JS\..+?)"', file_of(PAGE, "nats.conf"))
